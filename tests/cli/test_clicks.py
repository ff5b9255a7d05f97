"""Rankers from clicks as they are called: what is printed, and what is refused before anything is read."""

import json
from functools import partial

import pytest

import commanded

called, refused = (partial(f, "rank") for f in (commanded.called, commanded.refused))
LOG = "query,doc,position,click,session,bm25"


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A log whose first places nobody clicks, a ranker fitted to it, documents, scores and grades of one query."""
    place = tmp_path_factory.mktemp("work")
    rows = [f"{s % 6},{s % 6}-{d},{d},{int(d == 2 + s % 2)},{s},{s % 6 * d % 5}" for s in range(60) for d in (1, 2, 3)]
    (place / "clicks.csv").write_text("\n".join([LOG, *rows]))
    (place / "docs.svm").write_text("0 qid:1 0:1 # a\n1 qid:1 0:2 # b\n")
    (place / "scores.csv").write_text("query,doc,score\n1,a,0.5\n1,b,0.7\n")
    (place / "qrels.txt").write_text("1 0 a 1\n1 0 b 0\n")
    args = "--network", "linear", "--steps", 3, "--resamples", 20, "--out", place / "ranker"
    done = called("fit", place / "clicks.csv", *args, "--json")
    assert done.exit_code == 0, done.output
    (place / "said.json").write_text(done.stdout)
    return place


def test_what_programs_read_is_json_without_nan(work):
    said = json.loads((work / "said.json").read_text(), parse_constant=pytest.fail)
    assert said["propensity"]["low"] == [None] * 3
    done = called("evaluate", work / "scores.csv", work / "qrels.txt", "--json")
    found = json.loads(done.stdout, parse_constant=pytest.fail)
    assert (found["queries"], found["empty"]) == (1, 0)
    assert {(m["low"], m["high"]) for m in found["metrics"]} == {(None, None)}  # one query has no interval


def test_a_cell_without_a_number_is_a_dash(work):
    told = called("evaluate", work / "scores.csv", work / "qrels.txt").stdout
    assert "nan" not in told
    assert told.split("MRR")[1].split()[:3] == ["0.5000", "-", "0.5000"]
    fit = called("fit", work / "clicks.csv", "--network", "linear", "--steps", 2, "--out", work / "other")
    assert fit.exit_code == 0, fit.output
    assert "nan" not in fit.stdout
    assert "no training list was clicked at its first place" in fit.stderr


def test_scores_of_documents_are_printed_or_written_and_a_table_is_no_file_of_documents(work):
    printed = json.loads(called("score", work / "ranker", work / "docs.svm", "--json").stdout)
    assert [(r["query"], r["doc"]) for r in printed] == [("1", "a"), ("1", "b")]
    done = called("score", work / "ranker", work / "docs.svm", "--out", work / "out.csv")
    assert "2 documents" in done.stdout
    assert (work / "out.csv").read_text().splitlines()[1].split(",")[:2] == ["1", "a"]
    (work / "wide.svm").write_text("0 qid:1 7:1 # a\n")
    assert "wide.svm: there are 8 features" in refused("score", work / "ranker", work / "wide.svm")
    table = "is a table, and svmlight lines with qid are read"
    assert table in refused("score", work / "ranker", work / "clicks.csv")
    args = work / "clicks.csv", "--features", work / "clicks.csv", "--out", work / "x"
    assert table in refused("fit", *args)
    assert "no such data file" in refused("score", work / "ranker", work / "none.svm")
    assert "holds no ranker" in refused("score", work, work / "docs.svm")
    assert "file type" in refused("score", work / "ranker", work / "docs.svm", "--out", work / "out.xls")


def test_scores_are_written_over_nothing_that_is_read(work):
    before = (work / "ranker/results.json").read_bytes()
    said = refused("score", work / "ranker", work / "docs.svm", "--out", work / "ranker/results.json")
    assert "is read by the same command: it is not replaced" in said
    assert (work / "ranker/results.json").read_bytes() == before


def test_draws_are_at_most_a_million_and_lists_have_two_places(work):
    for args in (
        ("fit", work / "clicks.csv", "--out", work / "x", "--resamples", 2_000_000),
        ("evaluate", work / "scores.csv", work / "qrels.txt", "--resamples", 2_000_000),
        ("fit", work / "clicks.csv", "--out", work / "x", "--list-size", 1),
    ):
        assert called(*args).exit_code == 2


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--network", "linear", "--hidden", "64"), "hidden layers are of dnn, and the network is linear"),
        (("--hidden", "0"), "hidden layers are 0: whole numbers from 1 on"),
        (("--hidden", "inf"), "hidden layers are inf"),
        (("--hidden", "nan"), "hidden layers are nan"),
        (("--hidden", "8,1.5"), "hidden layers are 8, 1.5"),
        (("--hidden", "a"), "--hidden"),
        (("--max-weight", "0"), "max_weight=0.0: it has to be above 0"),
        (("--held-out", "0"), "held-out share is 0.0"),
    ],
)
def test_options_are_refused_before_a_log_is_read(tmp_path, args, said):
    (tmp_path / "clicks.csv").write_text("no log at all")
    assert said in refused("fit", tmp_path / "clicks.csv", "--out", tmp_path / "x", *args)
