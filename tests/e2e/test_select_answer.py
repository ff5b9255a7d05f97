"""``rankwise select`` and ``rankwise answer`` with the real model, as a person would run them."""

import json

import pytest
from typer.testing import CliRunner

from command import rankwise
from prompting.loopback import Loopback
from rankwise.cli.main import app
from rankwise.prompting.transformers_model import TransformersModel

POOL = [
    {"question": f"What is {a} plus {b}?", "answer": str(a + b), "rationale": f"Start at {a} and count {b} more."}
    for a in range(2, 8)
    for b in range(1, 5)
]
QUERIES = [{"question": "What is 9 plus 2?"}, {"question": "Combien font 3 et 4 – «trois et quatre»?"}]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("select")
    for name, rows in (("pool", POOL), ("queries", QUERIES)):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return root


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def inside(*args):
    """The same without a process of its own, which takes seconds to start."""
    return CliRunner(env={"COLUMNS": "80"}).invoke(app, [str(a) for a in args])


@pytest.mark.parametrize("method", ["dq-lore", "knn", "bm25", "depth", "random"])
def test_every_method_writes_a_prompt_a_query(files, method):
    out = files / f"{method}.jsonl"
    done = inside(
        "select", "--pool", files / "pool.jsonl", "--queries", files / "queries.jsonl", "--method", method, "-k", 3,
        "--candidates", 12, "--rank", 4, "--max-new-tokens", 12, "--out", out,
    )  # fmt: skip
    assert done.exit_code == 0, done.exception
    assert f"2 prompts of up to 3 examples from 24 by {method}" in done.stdout
    found = rows(out)
    assert [r["question"] for r in found] == [q["question"] for q in QUERIES]
    for row in found:
        assert len(row["examples"]) == 3
        assert all(e in POOL for e in row["examples"])
        assert row["prompt"].endswith(f"Question: {row['question']}\nAnswer:")
        assert [row["prompt"].index(e["question"]) for e in row["examples"]] == sorted(
            row["prompt"].index(e["question"]) for e in row["examples"]
        )


def test_the_same_command_asks_the_model_nothing_twice(files):
    command = (
        "select", "--pool", files / "pool.jsonl", "--queries", files / "queries.jsonl", "-k", 2, "--candidates", 9,
        "--rank", 3, "--max-new-tokens", 8, "--out", files / "again.jsonl",
    )  # fmt: skip
    assert rankwise(*command).returncode == 0
    first, record = (files / "again.jsonl").read_bytes(), (files / "again.jsonl.record").read_bytes()
    assert len(record.splitlines()) == 2
    assert rankwise(*command).returncode == 0
    assert (files / "again.jsonl").read_bytes() == first
    assert (files / "again.jsonl.record").read_bytes() == record


def test_examples_that_do_not_fit_are_dropped_and_told(files):
    done = inside(
        "select", "--pool", files / "pool.jsonl", "--queries", files / "queries.jsonl", "--method", "knn", "-k", 6,
        "--context", 150, "--max-new-tokens", 20, "--out", files / "short.jsonl",
    )  # fmt: skip
    assert done.exit_code == 0, done.exception
    assert "did not fit into the context" in done.stdout
    assert all(
        row["dropped"] and len(row["examples"]) + len(row["dropped"]) == 6 for row in rows(files / "short.jsonl")
    )


def test_an_answer_is_chosen_and_every_score_shown(files):
    choices = [x for c in ("Madrid", "Paris", "Oslo") for x in ("--choices", c)]
    done = rankwise("answer", "--question", "What is the capital of France?", *choices)
    assert done.returncode == 0, done.stderr
    assert "equilibrium: Paris" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_a_file_of_questions_gives_a_file_of_answers(files):
    quiz = [
        {"question": "What is the capital of Spain?", "choices": ["Madrid", "Lima"]},
        {"question": "What is the capital of Norway?"},
    ]
    (files / "quiz.jsonl").write_text("".join(json.dumps(r) + "\n" for r in quiz))
    out = files / "answers.jsonl"
    done = rankwise("answer", "--questions", files / "quiz.jsonl", "--samples", 2, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    found = rows(out)
    assert found[0]["answer"] == "Madrid"
    assert found[1]["answer"]
    assert [json.loads(line) for line in done.stdout.splitlines()] == found


def test_a_server_does_what_the_local_model_does(files):
    local = TransformersModel("smollm2")
    quiz = ("answer", "--method", "g", "--question", "What is the capital of Spain?")
    quiz = (*quiz, "--choices", "Madrid", "--choices", "Lima")
    with Loopback(local) as server:
        done = inside(*quiz, "--style", "text", "--server", server.url, "--json")
        assert done.exit_code == 0, done.exception
        theirs = json.loads(done.stdout)
        mine = json.loads(inside(*quiz, "--style", "text", "--json").stdout)
        assert theirs["answer"] == mine["answer"] == "Madrid"
        assert theirs["scores"]["g"] == pytest.approx(mine["scores"]["g"], abs=1e-2)
        refused = inside(*quiz, "--server", server.url)
        assert "--style text" in str(refused.exception)
        done = inside(
            "select", "--pool", files / "pool.jsonl", "--queries", files / "queries.jsonl", "-k", 2, "--candidates", 9,
            "--rank", 3, "--max-new-tokens", 8, "--server", server.url, "--out", files / "served.jsonl",
        )  # fmt: skip
        assert done.exit_code == 0, done.exception
    assert rows(files / "served.jsonl") == rows(files / "again.jsonl")


def test_bad_input_is_named(files):
    (files / "bad.jsonl").write_text('{"question": "a", "choices": "b"}\n')
    select = ("select", "--pool", files / "pool.jsonl", "--queries", files / "queries.jsonl", "--out", files / "x")
    wrong = [
        (("answer",), "give either"),
        (("answer", "--questions", files / "bad.jsonl"), "line 1"),
        ((*select, "--method", "dqlore"), "did you mean dq-lore"),
        ((*select, "--rank", "30", "--candidates", "20"), "rank=30"),
        ((*select, "--server", "nowhere"), "http://"),
        (("select", "--pool", files / "none", "--queries", files / "x", "--out", files / "y"), "no such file"),
    ]
    for command, message in wrong:
        done = inside(*command)
        assert isinstance(done.exception, ValueError), command
        assert message in str(done.exception)
    done = rankwise("answer", "--questions", files / "bad.jsonl")
    assert done.returncode == 2
    assert "line 1" in done.stderr
    assert "Traceback" not in done.stderr
