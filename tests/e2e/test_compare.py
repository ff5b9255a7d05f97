"""``rankwise compare`` on real sentences, as a person would run it."""

import json

import pytest

from command import rankwise
from rankwise.data import sentiment


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("compare")
    for domain in ("movies", "nyt"):
        (root / f"{domain}.txt").write_text("\n".join(sentiment(domain, task="rating").head(80).texts) + "\n")
    return root


def test_two_domains_differ_and_the_page_and_plot_are_written(files):
    done = rankwise("compare", files / "movies.txt", files / "nyt.txt", "--out", files / "out")
    assert done.returncode == 0, done.stderr
    for word in ("central", "outlying", "Q = 0.", "words a text", "report"):
        assert word in done.stdout
    assert max(map(len, done.stdout.splitlines()[:-2])) <= 80
    assert (files / "out" / "depths.png").stat().st_size > 5000
    page = (files / "out" / "report.html").read_text()
    assert "data:image/png" in page
    assert "Extreme texts" in page
    assert "…" not in page  # whole texts there, cut ones in the terminal


def test_halves_of_a_corpus_do_not_differ_and_a_corpus_compared_with_itself_is_told(files):
    lines = (files / "nyt.txt").read_text().splitlines()
    for name, part in (("a", lines[::2]), ("b", lines[1::2])):
        (files / f"{name}.txt").write_text("\n".join(part))
    found = json.loads(rankwise("compare", files / "a.txt", files / "b.txt", "--json").stdout)
    assert found["q_low"] < 0.5 < found["q_high"]
    assert found["pvalue"] > 0.01
    assert found["notes"] == []
    assert len(found["depths"]["first"]) == len(lines[::2])
    done = rankwise("compare", files / "nyt.txt", files / "nyt.txt", "--p-value", "ranksum")
    assert done.returncode == 0, done.stderr
    assert "note: 80 of 80 texts are in the other corpus" in " ".join(done.stdout.split())


def test_a_folder_of_something_else_is_not_replaced(files):
    (files / "mine").mkdir(exist_ok=True)
    (files / "mine" / "kept.txt").write_text("kept")
    done = rankwise("compare", files / "movies.txt", files / "nyt.txt", "--out", files / "mine")
    assert done.returncode == 2
    assert (files / "mine" / "kept.txt").read_text() == "kept"
    again = rankwise("compare", files / "movies.txt", files / "nyt.txt", "--out", files / "out", "--p-value", "ranksum")
    assert again.returncode == 0, again.stderr  # an earlier result is


def test_bad_files_are_named(files):
    (files / "empty.txt").write_text("\n\n")
    (files / "one.txt").write_text("Only this.\n")
    (files / "binary.txt").write_bytes(b"\xff\xfe\x00")
    wrong = {"absent.txt": "no such file", "empty.txt": "has no text", "one.txt": "one text", "binary.txt": "not UTF-8"}
    for bad, message in wrong.items():
        done = rankwise("compare", files / bad, files / "nyt.txt")
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr
