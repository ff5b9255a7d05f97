"""``rankwise select`` and ``rankwise answer`` with the real model, as a person would run them."""

import json
import signal
import subprocess
import time

import pytest
from typer.testing import CliRunner

from command import ENV, RANKWISE, rankwise
from prompting.loopback import Loopback, interruptible, read  # noqa: F401
from rankwise.cli.main import app
from rankwise.files import locked
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
    own = ("--candidates", 12, "--rank", 4) if method == "dq-lore" else ()
    done = inside(
        "select", "--pool", files / "pool.jsonl", "--queries", files / "queries.jsonl", "--selector", method, "-k", 3,
        "--max-new-tokens", 12, "--out", out, *own,
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
        "select", "--pool", files / "pool.jsonl", "--queries", files / "queries.jsonl", "--selector", "knn", "-k", 6,
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
    quiz = ("answer", "--ranker", "g", "--question", "What is the capital of Spain?")
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
        (("answer", "--questions", files / "bad.jsonl", "--choices", "a"), "--choices belong to --question"),
        (("answer", "--question", "a", "--choices", "b", "--samples", "3"), "--samples is for questions without"),
        (("answer", "--question", "a", "--choices", "b", "--ranker", "er_g"), "did you mean er-g"),
        (("answer", "--question", "a", "--choices", "b", "--timeout", "3"), "--timeout is for --server"),
        (("answer", "--question", "a", "--choices", "b", "--prompts", files / "bad.jsonl"), "unknown part of"),
        (("answer", "--questions", files / "pool.jsonl", "--out", files / "pool.jsonl"), "read by the same command"),
        ((*select, "--selector", "dqlore"), "did you mean dq-lore"),
        ((*select, "--selector", "knn", "--rank", "3"), "knn has no rank"),
        (
            (*select, "--selector", "bm25", "--train-retriever", "--retriever", "minilm"),
            "bm25 has no train and no retriever",
        ),
        ((*select, "--seed", "3"), "dq-lore draws nothing unless"),
        ((*select, "--order", "ascend"), "did you mean ascending"),
        ((*select, "--max-new-tokens", "0"), "max_new_tokens=0"),
        ((*select, "--question-column", "q"), "no q among question"),
        ((*select, "--server", "http://localhost:1/v1", "--extra-body", "{"), "--extra-body is not valid JSON"),
        ((*select, "--server", "http://h/v1", "--key-variable", "NO_SUCH_KEY"), "no NO_SUCH_KEY"),
        ((*select[:-1], files / "queries.jsonl"), "read by the same command"),
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


def test_text_from_data_reaches_the_terminal_as_text(files):
    names = ["w3 [/b]", "[link=x]y[/link]", "a\x1b[2Jb\x07"]
    done = rankwise("answer", "--ranker", "g", "--style", "text", "--question", "Which [bold]?",
                    *[x for n in names for x in ("--choices", n)])  # fmt: skip
    assert done.returncode == 0, done.stderr
    for shown in ("w3 [/b]", "[link=x]y[/link]", "a[2Jb", "Which [bold]?"):
        assert shown in done.stdout
    assert not {"\x1b", "\x07"} & set(done.stdout)


def test_a_query_that_is_too_long_costs_itself_alone_and_is_named(files):
    asked = [*QUERIES, {"question": "word " * 300, "id": 3}]
    (files / "long.jsonl").write_text("".join(json.dumps(q) + "\n" for q in asked))
    done = rankwise("select", "--pool", files / "pool.jsonl", "--queries", files / "long.jsonl", "--selector", "bm25",
                    "-k", 2, "--context", 200, "--out", files / "long.out")  # fmt: skip
    assert done.returncode == 2
    assert "query 3: the question 'word word" in done.stderr
    found = rows(files / "long.out")
    assert [bool(r["prompt"]) for r in found] == [True, True, False]
    assert "does not fit" in found[2]["error"]
    assert found[2]["id"] == 3


def test_a_question_that_cannot_be_answered_costs_itself_alone_and_is_named(files):
    quiz = [
        {"question": "Capital of Spain?", "choices": ["Madrid", "Lima"], "answer": "Madrid", "id": 7},
        {"question": "word " * 9000, "choices": ["a", "b"]},
        {"question": "words " * 9000},
    ]
    (files / "long_quiz.jsonl").write_text("".join(json.dumps(q) + "\n" for q in quiz))
    done = inside("answer", "--questions", files / "long_quiz.jsonl", "--ranker", "g", "--out", files / "quiz.out")
    assert "question 2: 'word word" in str(done.exception)
    assert "question 3: 'words words" in str(done.exception)
    found = rows(files / "quiz.out")
    assert (found[0]["answer"], found[0]["given_answer"], found[0]["id"]) == ("Madrid", "Madrid", 7)
    assert [r["answer"] for r in found[1:]] == [None, None]


def test_pools_and_queries_of_other_kinds_and_names_are_read_and_their_columns_kept(files):
    (files / "pool.csv").write_text("nr;ask;gold\n1;What is 2 plus 2?;4\n2;What is 3 plus 2?;5\n", encoding="utf-8")
    (files / "queries.tsv").write_text("id\task\tgold\nq1\tWhat is 9 plus 2?\t11\n", encoding="utf-8")
    done = inside(
        "select", "--pool", files / "pool.csv", "--queries", files / "queries.tsv", "--question-column", "ask",
        "--answer-column", "gold", "--selector", "bm25", "-k", 1, "--out", files / "named.jsonl",
    )  # fmt: skip
    assert done.exit_code == 0, done.exception
    (row,) = rows(files / "named.jsonl")
    assert (row["id"], row["question"], row["answer"]) == ("q1", "What is 9 plus 2?", "11")
    assert row["examples"] == [{"question": "What is 2 plus 2?", "answer": "4", "nr": "1"}]


def test_two_commands_with_one_record_do_not_mix(files):
    command = ("select", "--pool", files / "pool.jsonl", "--queries", files / "queries.jsonl", "-k", 2, "--candidates",
               9, "--rank", 3, "--max-new-tokens", 8, "--out", files / "locked.jsonl")  # fmt: skip
    with locked(files / "locked.jsonl.record"):
        done = inside(*command)
    assert "locked.jsonl.record" in str(done.exception)
    assert not (files / "locked.jsonl").exists()


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_command_says_truly_whether_it_continues(files):
    quiz = [{"question": f"What is {i} plus 1?", "choices": ["a", "b", "c", "d"]} for i in range(10)]
    (files / "slow.jsonl").write_text("".join(json.dumps(q) + "\n" for q in quiz))
    with Loopback(delay=0.3) as server:
        server.answer = lambda path, body: read(body["prompt"])
        for out, said in ((("--out", str(files / "slow.out")), True), ((), False)):
            command = [RANKWISE, "answer", "--questions", str(files / "slow.jsonl"), "--server", server.url, "--style",
                       "text", "--concurrency", "2", *out]  # fmt: skip
            server.requests.clear()
            running = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENV)
            while not server.requests and running.poll() is None:
                time.sleep(0.05)
            record = files / "slow.out.record"
            while said and running.poll() is None and not (record.exists() and record.stat().st_size):
                time.sleep(0.05)  # until a prompt is whole
            sent = len(server.requests)
            running.send_signal(signal.SIGINT)
            _, errors = running.communicate(timeout=60)
            assert running.returncode == 130, errors
            assert "no further request is sent" in errors
            assert ("the same command continues" in errors) is said
            assert len(server.requests) <= sent + 2
    kept = rows(files / "slow.out.record")
    assert kept
    assert all(len(entry["result"]) in (2, 4) for entry in kept)  # scores of whole prompts
