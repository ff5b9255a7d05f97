"""Distances of texts against other libraries, and what is done with functions of one's own."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon

from rankwise.ranking import Distance, bleu, content_words, embedding, jsd, plain_words, rouge_l, singular
from rankwise.ranking.distances import as_distance, of_pairs

TEXTS = st.lists(
    st.sampled_from(["state", "sue", "rule", "law", "fight", "city", "2020"]), min_size=1, max_size=14
).map(" ".join)
PAIRS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=12)


def sides(pairs):
    return [a for a, _ in pairs], [b for _, b in pairs]


@settings(max_examples=60, deadline=None)
@given(PAIRS)
def test_the_divergence_is_scipys_distance_squared_symmetric_and_at_most_1(pairs):
    left, right = sides(pairs)
    found = jsd(words=str.split).of(left, right)
    for a, b, value in zip(left, right, found, strict=True):
        words = sorted({*a.split(), *b.split()})
        p, q = ([t.split().count(w) for w in words] for t in (a, b))
        expected = 0.0 if a.split() == b.split() else np.nan_to_num(jensenshannon(p, q, base=2)) ** 2
        assert value == pytest.approx(expected, abs=1e-12)
    assert jsd(words=str.split).of(right, left) == pytest.approx(found, abs=1e-12)
    assert jsd(words=str.split).of(left, left) == pytest.approx(0, abs=1e-12)
    assert found.max() <= 1


@settings(max_examples=60, deadline=None)
@given(PAIRS)
def test_rouge_l_is_that_of_rouge_score(pairs):
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"])
    left, right = sides(pairs)
    expected = [1 - scorer.score(a, b)["rougeL"].fmeasure for a, b in pairs]
    assert rouge_l().of(left, right) == pytest.approx(expected, abs=1e-12)
    assert rouge_l().of(right, left) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(PAIRS)
def test_bleu_of_a_sentence_is_that_of_sacrebleu(pairs):
    metrics = pytest.importorskip("sacrebleu.metrics")
    scorer = metrics.BLEU(effective_order=True, tokenize="none")
    left, right = sides(pairs)
    expected = [1 - scorer.sentence_score(b, [a]).score / 100 for a, b in pairs]
    assert bleu().of(left, right) == pytest.approx(expected, abs=1e-9)


def test_bleu_takes_the_first_text_as_the_reference():
    short, long = "states sue", "states sue over the new rule"
    there, back = bleu().of([short, long], [long, short])
    assert there != pytest.approx(back, abs=0.01)
    assert not bleu().symmetric


def test_long_texts_have_common_subsequences_of_any_length():
    words = [f"w{i}" for i in range(500)]
    assert rouge_l().of([" ".join(words)], [" ".join(words[::2])])[0] == pytest.approx(1 - 2 * 250 / 750)


def test_texts_without_words_are_far_from_all_but_themselves():
    for distance in (jsd(), rouge_l(), bleu()):
        assert distance.of(["!!", "😀", "rule", "!!"], ["rule", "😢", "??", "!!"]).tolist() == [1, 1, 1, 0]


def test_an_embeddings_distance_is_1_minus_the_cosine_and_never_above_1():
    vectors = {"a": [2.0, 0.0], "b": [1.0, 1.0], "c": [-1.0, 0.0]}
    far = embedding(lambda texts: [vectors[t] for t in texts])
    assert far.of(list("aaa"), list("abc")) == pytest.approx([0, 1 - 0.5**0.5, 1])


@pytest.mark.slow
def test_minilm_puts_a_paraphrase_nearer_than_another_matter():
    near, other = embedding().of(["states sue over the rule"] * 2, ["legal fight about a regulation", "rain at noon"])
    assert near < other - 0.2


def test_words_are_of_letters_without_stopwords_and_plural():
    assert content_words("The 3 rules' critics + cities; it's law") == ["rule", "critic", "city", "law"]
    assert content_words("die Regeln", stopwords=(), lemma=str) == ["die", "regeln"]
    assert content_words("running runs", lemma=lambda w: w[:3]) == ["run", "run"]
    assert plain_words("U.S. 2-rule") == ["u", "s", "2", "rule"]


def test_scripts_without_spaces_are_parted_by_character():
    assert plain_words("法律 law") == ["法", "律", "law"]
    assert jsd().of(["法律很好"], ["法律不好"])[0] == pytest.approx(0.25)


@pytest.mark.parametrize(("word", "one"), [("cities", "city"), ("rules", "rule"), ("shoes", "shoes"), ("bus", "bus"),
                                           ("pass", "pass"), ("gas", "gas"), ("trees", "trees")])  # fmt: skip
def test_plurals_end_as_harmans_rules_say(word, one):
    assert singular(word) == one


def test_every_pair_is_measured_once_and_symmetric_ones_in_one_order():
    seen = []

    def count(left, right):
        seen.extend(zip(left, right, strict=True))
        return [0.5] * len(left)

    texts = ["a", "b", "c"]
    left, right = np.array([0, 1, 0, 0, 2]), np.array([1, 0, 1, 0, 2])
    found = of_pairs(Distance(name="x", of=count, symmetric=True), texts, left, right)
    assert (found.tolist(), seen) == ([0.5, 0.5, 0.5, 0, 0], [("a", "b")])
    seen.clear()
    of_pairs(Distance(name="x", of=count), texts, left, right)
    assert sorted(seen) == [("a", "a"), ("a", "b"), ("b", "a"), ("c", "c")]


def test_many_pairs_are_measured_in_portions(monkeypatch):
    from rankwise.ranking import distances

    sizes = []

    def count(left, right):
        sizes.append(len(left))
        return [len(a) / 10 for a in left]

    monkeypatch.setattr(distances, "CHUNK", 2)
    texts = ["a", "bb", "ccc"]
    found = of_pairs(as_distance(count), texts, np.array([2, 1, 0]), np.array([0, 0, 1]))
    assert (found.tolist(), sizes) == ([0.3, 0.2, 0.1], [2, 1])


@pytest.mark.parametrize(
    "wrong", [lambda a, b: 0.5, lambda a, b: [0.1], lambda a, b: ["x"] * len(a), lambda a, b: None]
)
def test_a_function_that_gives_no_number_a_pair_is_refused(wrong):
    with pytest.raises(ValueError, match="distance <lambda> gives"):
        of_pairs(as_distance(wrong), ["a", "b", "c"], np.array([0, 1]), np.array([1, 2]))


def test_an_unknown_distance_offers_the_nearest():
    with pytest.raises(ValueError, match="did you mean rouge-l"):
        as_distance("rougel")
    with pytest.raises(ValueError, match="order=0"):
        bleu(order=0)
