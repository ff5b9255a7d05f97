import hashlib
from pathlib import Path

from scipy import stats

from rankwise.data.corpus import Corpus, side


def corpus(n=1000, name="a"):
    return Corpus(
        name=name,
        texts=[f"text {i}" for i in range(n)],
        labels=[float(i) for i in range(n)],
        groups=[f"document {i // 100}" for i in range(n)],
        audio=[Path(f"{i}.wav") for i in range(n)],
    )


def test_a_head_is_drawn_from_all_rows_in_their_order_and_not_from_the_first_documents():
    rows = [int(y) for y in corpus().head(200).labels]
    assert len(rows) == 200
    assert rows == sorted(rows)
    assert stats.kstest([r / 1000 for r in rows], "uniform").pvalue > 0.01
    assert len(set(corpus().head(200).groups)) == 10


def test_a_row_of_a_head_keeps_what_belongs_to_it():
    head = corpus().head(30)
    for text, label, group, audio in zip(head.texts, head.labels, head.groups, head.audio, strict=True):
        i = int(label)
        assert (text, group, audio) == (f"text {i}", f"document {i // 100}", Path(f"{i}.wav"))
    assert (head.name, len(head)) == ("a", 30)


def test_a_longer_head_holds_the_shorter_one_and_another_corpus_has_another():
    assert set(corpus().head(20).texts) < set(corpus().head(40).texts)
    assert corpus(name="b").head(20).texts != corpus().head(20).texts
    for limit in (None, 1000, 2000):
        assert corpus().head(limit) == corpus()
    assert len(corpus().head(0)) == 0


def test_a_head_is_the_same_on_every_machine():
    def key(row):
        return hashlib.sha256(f"a|{row}|text {row}".encode()).hexdigest()

    assert corpus(50).head(3).labels == sorted(sorted(range(50), key=key)[:3])


def test_rows_without_labels_and_recordings_stay_so():
    bare = Corpus(name="a", texts=["x", "y", "z"], labels=[], groups=["1", "2", "3"])
    kept = bare.where(lambda i: i != 1)
    assert (kept.texts, kept.labels, kept.groups, kept.audio) == (["x", "z"], [], ["1", "3"], [])


def test_fifteen_percent_of_documents_each_are_for_validation_and_test():
    sides = [side(f"document {i}") for i in range(4000)]
    for name, share in (("train", 0.7), ("validation", 0.15), ("test", 0.15)):
        assert stats.binomtest(sides.count(name), 4000, share).pvalue > 0.01
    assert [side(f"{i}", validation=0.0, test=1.0) for i in range(20)] == ["test"] * 20
    assert [side(f"{i}", validation=1.0, test=0.0) for i in range(20)] == ["validation"] * 20


def test_a_split_keeps_every_row_once_and_a_document_together():
    whole = corpus(3000)
    parts = whole.split()
    assert sorted(y for part in parts for y in part.labels) == whole.labels
    for name, part in zip(parts._fields, parts, strict=True):
        assert {side(g) for g in part.groups} <= {name}
        assert part.labels == sorted(part.labels)
