"""``rankwise perseval``: a file that a person could have, to a leaderboard with its page and tables."""

import csv
import json

import pytest
from typer.testing import CliRunner

from attack import folders
from rankwise.cli.main import app
from rankwise.jobs.personalisation import judge_file
from rankwise.ranking import leaderboard

HOSTILE = "<script>alert(1)</script>"
NEWS = {
    f"N{i}": {"ann": f"states sue over rule {i}", "bob": f"business glad of lax {word}", "cid": f"towns wet and {word}"}
    for i, word in enumerate(["power", "water", "trade", "roads"])
}
BODY = "States sue over the rule. Business is glad of lax power, water, trade and roads. Towns are wet."


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "news.jsonl"
    rows = [
        {
            "doc_id": name,
            "doc_text": BODY,
            "m_summary_dict": {
                u: {"user": text, "own": text, "same": "states sue", HOSTILE: "\x1b]0;x\x07towns"}
                for u, text in wrote.items()
            },
        }
        for name, wrote in NEWS.items()
    ]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def run(*args):
    return CliRunner(env={"COLUMNS": "80"}).invoke(app, ["perseval", *map(str, args)])


def test_the_leaderboard_is_that_of_the_library_and_its_tables_have_a_reason_a_document(lines, tmp_path):
    done = run(lines, "--out", tmp_path / "out", "--resamples", 50)
    assert done.exit_code == 0, done.exception
    assert max(map(len, done.stdout.splitlines()[:5])) <= 80
    told = json.loads((tmp_path / "out" / "results.json").read_text())
    systems = {
        "own": NEWS, "same": {d: dict.fromkeys(w, "states sue") for d, w in NEWS.items()},
        HOSTILE: {d: dict.fromkeys(w, "\x1b]0;x\x07towns") for d, w in NEWS.items()},
    }  # fmt: skip
    board = leaderboard(dict.fromkeys(NEWS, BODY), NEWS, systems, resamples=50)
    assert [s["system"] for s in told["systems"]] == board.systems
    for s in told["systems"]:
        report = board.reports[s["system"]]
        assert (s["score"], s["low"], s["high"], s["egises"]) == (report.score, report.low, report.high, report.egises)
        assert s["borda"] == board.borda[s["system"]]
    assert (told["documents"], told["readers"], told["distance"]) == (4, 12, "jsd")
    with (tmp_path / "out" / "documents.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 12
    assert all(r["reason"] for r in rows)
    own = [r["reason"] for r in rows if r["system"] == "own"]
    assert all(why.startswith("summaries differ as readers do (") for why in own)
    assert all(why.endswith("; all are near, .00 to .00 away") for why in own)
    with (tmp_path / "out" / "readers.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == 36
    for name in ("leaderboard.png", "stability.png"):
        assert (tmp_path / "out" / name).stat().st_size > 5_000


def test_what_a_file_says_is_shown_on_the_page_and_never_run(lines, tmp_path):
    assert run(lines, "--out", tmp_path / "out").exit_code == 0
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "one summary for all" in page


def test_json_is_one_value_and_nothing_else(lines):
    done = run(lines, "--json", "--systems", "own,same", "--simplified")
    assert [s["system"] for s in json.loads(done.stdout)["systems"]] == ["own", "same"]


def test_options_reach_the_measure(lines):
    def score(*options):
        return json.loads(run(lines, "--json", "--systems", HOSTILE, *options).stdout)["systems"][0]["score"]

    plain = score()
    for options in (["--simplified"], ["--beta", "0.5"], ["--alpha", "1"], ["--gamma", "2"], ["--acp", "absolute"],
                    ["--stopwords", "none"], ["--distance", "rouge-l"], ["--distance", "bleu"]):  # fmt: skip
        assert score(*options) != plain, options


def test_stopwords_are_none_or_those_of_a_file(lines, tmp_path):
    own = tmp_path / "words.txt"
    own.write_text("states\nSUE\n")

    def far(stopwords):
        judged = judge_file(lines, systems=["same"], simplified=True, stopwords=stopwords)
        return judged.board.reports["same"].distance

    assert far("english") == far(None) < far(str(own))
    assert far("none") != far(None)


def test_embeddings_are_of_the_named_model(lines, tmp_path):
    folders.model(tmp_path / "bert", "bert")
    done = run(lines, "--distance", "embedding", "--model", tmp_path / "bert", "--systems", "own,same", "--json")
    assert done.exit_code == 0, done.exception
    own, same = json.loads(done.stdout)["systems"]
    assert (own["system"], own["distance"]) == ("own", 0)
    assert 0 < same["distance"] <= 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--systems", "owm"], "did you mean own"),
        (["--distance", "jds"], "did you mean jsd"),
        (["--acp", "x"], "acp"),
        (["--stopwords", "none", "--distance", "bleu"], "stopwords is of jsd"),
        (["--model", "minilm"], "model is of embedding"),
        (["--stopwords", "german"], "english, none, or a file"),
        (["--beta", "-1"], "beta=-1"),
    ],
)
def test_options_that_do_not_apply_are_refused(lines, options, said):
    done = run(lines, *options)
    assert isinstance(done.exception, ValueError)
    assert said in str(done.exception)


def test_without_texts_of_documents_the_simplified_form_is_offered(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("doc_id,uid,user,T5\nN1,ann,states sue,suit\nN1,bob,a rule,suit\n")
    assert "--simplified" in str(run(path).exception)
    assert run(path, "--simplified").exit_code == 0
    assert json.loads(run(path, "--simplified", "--json").stdout)["systems"][0]["low"] is None  # of one document


def test_what_is_left_out_is_a_note(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("doc_id,uid,user,T5\nN1,ann,states sue,suit\nN1,bob,a rule,suit\nN1,cid,rain,\n")
    done = run(path, "--simplified")
    assert "note: left out: 1 readers without a summary of every system" in done.stderr
