"""Where a command is told to write: settled before any work, and nothing that was there is lost."""

import errno
import os
import resource
import shutil
from contextlib import contextmanager

import pytest
from typer.testing import CliRunner

from attack import folders
from rankwise.cli.main import app

FOLDERS = {
    "merge": "merge merge.yaml --out",
    "compress": "compress --model llama --ratio 0.5 --no-measure --out",
    "export lora": "export adapter --model model --to lora --out",
    "export merged": "export adapter --model model --to merged --out",
    "export dense": "export model --to dense --out",
    "adapt": "adapt --model model --data texts.csv --methods lora --budget 10% --steps 1 --out",
    "quantile fit": "quantile fit data.csv --response price --models linear --out",
    "inspect": "inspect model --out",
    "pretrain": "pretrain vit-cifar10 --data cifar10 --epochs 1 --batch-size 16 --out",
    "compare": "compare a.txt b.txt --model model --out",
    "perseval": "perseval readers.csv --simplified --out",
    "dynamics subspaces": "dynamics subspaces numbers.csv --k 2 --dim 1 --out",
    "rank fit": "rank fit clicks.csv --network linear --steps 2 --out",
}
FILES = {
    "select": "select --pool pool.jsonl --queries queries.jsonl --selector bm25 --model model --out",
    "answer": "answer --model model --questions queries.jsonl --out",
    "quantile predict": "quantile predict fitted new.csv --out",
    "rank score": "rank score fitted docs.svm --out",
    "continual adapt": "continual adapt --images mine --out",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A working folder that holds what the commands read, and one of somebody's own; home lies elsewhere."""
    place = tmp_path_factory.mktemp("work")
    folders.model(place / "model", "bert")
    folders.model(place / "llama", "llama")
    folders.adapter(place / "adapter", place / "model", "lora")
    (place / "merge.yaml").write_text("merge_method: linear\nmodels: [{model: model}, {model: model}]\n")
    folders.texts(place / "texts.csv")
    folders.table(place / "data.csv")
    folders.cifar(place / "cifar10")
    folders.table(place / "new.csv")
    for name in ("pool.jsonl", "queries.jsonl"):
        folders.lines(place / name, [{"question": "a good film ?", "answer": "yes", "choices": ["yes", "no"]}] * 4)
    headlines = [f"N{i},{u},{u} sues,a suit {i}" for i in range(80) for u in ("ann", "bob")]
    (place / "readers.csv").write_text("\n".join(["doc_id,uid,user,T5", *headlines]))
    shown = [f"{s % 9},{s % 9}-{d},{d},{int(s % 3 == d)},{s},{s % 9 * d}" for s in range(40) for d in (1, 2)]
    (place / "clicks.csv").write_text("\n".join(["query,doc,position,click,session,bm25", *shown]))
    (place / "numbers.csv").write_text("\n".join(["a,b,c", *(f"{s},{s % 3},{s % 5}" for s in range(40))]))
    for name in ("a.txt", "b.txt"):
        (place / name).write_text("\n".join(folders.TEXTS))
    (place / "mine").mkdir()
    (place / "mine" / "thesis.tex").write_text("years")
    (place / "folder.jsonl").mkdir()
    os.mkfifo(place / "pipe.jsonl")
    return place


@pytest.fixture
def work(made, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(made)
    return made


def tree(folder):
    return {str(p.relative_to(folder)): p.lstat().st_size for p in folder.rglob("*")}


@pytest.mark.parametrize("place", [".", "..", "~", "mine", "model", "data.csv", "mine/thesis.tex"])
@pytest.mark.parametrize("command", FOLDERS)
def test_no_command_replaces_a_folder_that_it_did_not_make_and_says_so_before_it_reads_anything(work, command, place):
    before = tree(work)
    done = CliRunner().invoke(app, [*FOLDERS[command].split(), place])
    assert isinstance(done.exception, ValueError), done.exception
    assert "replaced" in str(done.exception) or "is a file: a folder is written" in str(done.exception)
    assert tree(work) == before


@pytest.mark.parametrize("place", ["folder.jsonl", "pipe.jsonl"])
@pytest.mark.parametrize("command", FILES)
def test_no_command_puts_a_file_in_the_place_of_anything_but_a_file(work, command, place):
    before = tree(work)
    done = CliRunner().invoke(app, [*FILES[command].split(), place])
    assert isinstance(done.exception, ValueError), done.exception
    assert "only a regular file is written or replaced" in str(done.exception)
    assert tree(work) == before


@pytest.mark.parametrize(("command", "read"), [("select", "pool.jsonl"), ("answer", "queries.jsonl")])
def test_no_command_writes_over_what_it_reads(work, command, read):
    before = tree(work)
    done = CliRunner().invoke(app, [*FILES[command].split(), read])
    assert isinstance(done.exception, ValueError), done.exception
    assert "is read by the same command: it is not replaced" in str(done.exception)
    assert tree(work) == before


@contextmanager
def no_file_above(size):
    """Writes beyond so many bytes of a file fail, whoever writes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("command", [c for c in FOLDERS if c not in ("export lora", "export dense")])
def test_a_disk_that_takes_no_more_is_one_error_and_leaves_nothing_that_looks_whole(work, command):
    before = tree(work)
    with no_file_above(6000):
        done = CliRunner().invoke(app, [*FOLDERS[command].split(), "full"])
    try:
        assert isinstance(done.exception, OSError), done.exception
        assert done.exception.errno == (errno.EIO if command == "adapt" else errno.EFBIG)
        assert command == "adapt" or not (work / "full").exists()
        assert not (work / "full" / "results.json").exists()
        assert before.items() <= tree(work).items()
    finally:
        for left in ("full", ".full.rankwise-draft"):
            shutil.rmtree(work / left, ignore_errors=True)
