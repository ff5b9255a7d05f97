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


def test_a_corpus_does_not_differ_from_itself(files):
    done = rankwise("compare", files / "nyt.txt", files / "nyt.txt", "--method", "permutation", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["q_low"] < 0.55
    assert len(found["depths"]["first"]) == 80
    assert found["pvalue"] > 0.2


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
