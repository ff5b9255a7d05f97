"""PerSEval and EGISES against closed forms, a loop of their definitions, and published figures."""

import inspect
import json
import math
import os
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon

from ranking import literal
from rankwise.data.personal import pens
from rankwise.data.summaries import read_summaries
from rankwise.ranking import (
    consistency_penalty,
    degress,
    differences,
    egises,
    inaccuracy_discount,
    inaccuracy_penalty,
    jsd,
    leaderboard,
    perseval,
)
from rankwise.ranking.personalisation import check_options

DATA = Path(os.environ.get("RANKWISE_DATA", Path(__file__).parents[3] / "shared" / "data"))
DOCUMENT = {"rule": "States sue over the pollution rule. Critics say the rule is lax; business and towns are glad."}
WROTE = {"rule": {"ann": "states sue over pollution", "bob": "business glad of lax rule", "cid": "towns glad"}}
SAME = {"rule": dict.fromkeys(["ann", "bob", "cid"], "states sue over rule")}


def of_words(a, b):
    """Jensen-Shannon divergence of words in lower case, by scipy."""
    a, b = a.lower().split(), b.lower().split()
    words = sorted({*a, *b})
    if sorted(a) == sorted(b):
        return 0.0
    return float(np.nan_to_num(jensenshannon([a.count(w) for w in words], [b.count(w) for w in words], base=2)) ** 2)


def lower(text):
    return text.lower().split()


def numbers(n, seed):
    """Distances between n readers (not symmetric), to a document, and of summaries."""
    rng = np.random.default_rng(seed)
    between, given = rng.uniform(0, 1, (2, n, n)) * (1 - np.eye(n))
    return between, given, rng.uniform(0.1, 1, n), rng.uniform(0, 1, n)


# --- closed forms


@pytest.mark.parametrize(("beta", "expected"), [(1.0, 0.998999), (1.7, 0.998991), (2.0, 0.998981)])
def test_without_inaccuracy_the_discount_is_its_closed_form(beta, expected):
    penalty = 2 / (1 + 1e4)
    exact = 1 - 1 / (1 + 1e3 * math.exp(-(10**beta) * penalty)) + 1e-7
    found = inaccuracy_discount(np.zeros(3), beta=beta)
    assert found == pytest.approx(exact, abs=1e-12)
    assert found == pytest.approx(expected, abs=6e-7)


@pytest.mark.parametrize(
    ("best", "adp"), [(0.2, 0.0012), (0.3, 0.0072), (0.4, 0.0729), (0.48, 0.505), (0.5, 0.688), (0.6, 0.997)]
)
def test_the_penalty_of_inaccuracy_is_the_published_ladder(best, adp):
    assert inaccuracy_penalty(np.array([best, 0.9]))[0] == pytest.approx(adp, abs=6e-4)


@pytest.mark.parametrize(("beta", "edp"), [(1.0, 0.507), (1.7, 1e-12)])
def test_at_the_average_reader_beta_decides_nearly_everything(beta, edp):
    accuracy = np.array([0.0, 0.3, 0.6])  # the best is perfect, the second is the mean: ACP(1) = .688
    assert consistency_penalty(accuracy)[1] == pytest.approx(0.688, abs=1e-3)
    assert inaccuracy_discount(accuracy, beta=beta)[1] - 1e-7 == pytest.approx(edp, rel=0.01, abs=1e-12)


def test_of_two_readers_the_worse_is_punished_as_twice_the_mean_and_of_equal_ones_neither():
    assert consistency_penalty(np.array([0.2, 0.7]))[1] == pytest.approx(0.99998, abs=1e-5)
    assert consistency_penalty(np.array([0.4, 0.4])) == pytest.approx(1 / (1 + 1e4))


def test_the_published_penalty_does_not_know_scale_and_the_absolute_one_does():
    wide, narrow = np.array([0.1, 0.5, 0.6]), np.array([0.1, 0.1004, 0.1005])
    assert consistency_penalty(wide) == pytest.approx(consistency_penalty(narrow), abs=0.01)
    absolute = [consistency_penalty(a, acp="absolute") for a in (wide, narrow)]
    assert absolute[0][2] == pytest.approx(1 / (1 + 1e4 * math.exp(-10 * 0.5 / 0.5)), rel=1e-4)
    assert absolute[1] == pytest.approx(1 / (1 + 1e4), rel=0.01)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.05, 0.9), min_size=3, max_size=6), st.floats(0.01, 0.1))
def test_a_reader_who_is_served_worse_is_not_discounted_less_but_the_others_may_be(accuracy, more):
    before = np.array(accuracy)
    worst = int(np.argmax(before))
    after = before.copy()
    after[worst] += more
    a, b = inaccuracy_discount(before), inaccuracy_discount(after)
    if np.argmin(before) != worst:
        assert b[worst] <= a[worst] + 1e-12
        others = np.arange(len(before)) != worst
        assert (b[others] >= a[others] - 1e-12).all()  # the mean has grown


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 7), st.integers(0, 999))
def test_degress_and_discount_lie_above_0_and_at_most_at_1(n, seed):
    between, given_, to_document, accuracy = numbers(n, seed)
    d = degress(differences(between, to_document), differences(given_, to_document))
    e = inaccuracy_discount(accuracy)
    assert ((d > 0) & (d <= 1)).all()
    assert ((e > 0) & (e <= 1)).all()
    assert (d * e <= d).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 7), st.integers(0, 999))
def test_arrays_give_what_loops_over_the_definitions_give(n, seed):
    between, given_, to_document, accuracy = numbers(n, seed)
    X, Y = (literal.differences(s.tolist(), to_document.tolist()) for s in (between, given_))
    assert differences(between, to_document) == pytest.approx(np.array(X), abs=1e-12)
    assert degress(np.array(X), np.array(Y)) == pytest.approx(np.array(literal.degress(X, Y)), abs=1e-12)
    assert inaccuracy_discount(accuracy) == pytest.approx(np.array(literal.discount(accuracy.tolist())), abs=1e-12)


def test_a_stack_of_documents_gives_what_each_gives_alone():
    stack = [numbers(4, seed) for seed in range(3)]
    between, _, to_document, accuracy = (np.stack(parts) for parts in zip(*stack, strict=True))
    together = differences(between, to_document), inaccuracy_discount(accuracy)
    for i, (b, _, t, a) in enumerate(stack):
        assert together[0][i] == pytest.approx(differences(b, t), abs=1e-15)
        assert together[1][i] == pytest.approx(inaccuracy_discount(a), abs=1e-15)


def test_two_readers_by_hand():
    between = np.array([[0.0, 0.6], [0.6, 0.0]])
    given_ = np.array([[0.0, 0.3], [0.3, 0.0]])
    far = np.array([0.5, 0.8])
    # of one other reader the weight is 1, whatever the distances to the document
    assert differences(between, far) == pytest.approx(between)
    assert degress(between, given_) == pytest.approx((0.3 + 1e-5) / (0.6 + 1e-5))


def test_three_readers_by_hand():
    X = differences(np.array([[0.0, 0.2, 0.4], [0.2, 0.0, 0.5], [0.4, 0.5, 0.0]]), np.array([0.4, 1.0, 0.5]))
    a, b = math.exp(0.5), math.exp(1.0)
    assert X[0] == pytest.approx([0, 0.2 * a / (a + b), 0.4 * b / (a + b)])


def test_a_text_equal_to_its_document_weighs_the_others_alike_and_a_near_one_does_not_overflow():
    between = np.array([[0.0, 0.2, 0.4], [0.2, 0.0, 0.5], [0.4, 0.5, 0.0]])
    assert differences(between, np.array([0.0, 1, 1]))[0] == pytest.approx([0, 0.1, 0.2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        near = differences(between, np.array([1e-4, 1e-300, 1]))
    assert near[0] == pytest.approx([0, 0, 0.4])  # the furthest has all the weight
    assert np.isfinite(near).all()


# --- of texts


def test_a_system_that_writes_what_readers_wrote_follows_them_entirely():
    found = perseval(DOCUMENT, WROTE, WROTE)
    exact = 1 - 1 / (1 + 1e3 * math.exp(-10 * 2 / (1 + 1e4))) + 1e-7
    assert (found.degress, found.egises, found.distance) == (1, 0, 0)
    assert found.score == pytest.approx(exact, abs=1e-12)


def test_one_summary_for_all_has_degress_at_its_limit():
    found = perseval(DOCUMENT, WROTE, SAME)
    assert np.all(np.asarray(found.users["degress"]) < 1e-4)
    assert found.degress == pytest.approx(np.mean(found.users["degress"]))
    assert found.score <= found.degress


def test_another_readers_summary_pleases_egises_and_not_perseval():
    wrote = {"rule": {"ann": WROTE["rule"]["ann"], "bob": WROTE["rule"]["bob"]}}
    swapped = {"rule": {"ann": wrote["rule"]["bob"], "bob": wrote["rule"]["ann"]}}
    assert egises(None, wrote, swapped, simplified=True).score == 0
    assert perseval(None, wrote, wrote, simplified=True).score > 0.99
    least = 1 - 1 / (1 + 1e3 * math.exp(-10 * (1 + 1 / (1 + 1e4)))) + 1e-7  # ADP 1, ACP of equal readers
    assert perseval(None, wrote, swapped, simplified=True).score == pytest.approx(least, abs=1e-4)


def test_egises_is_1_minus_the_degress_of_perseval():
    given_ = {"rule": {"ann": "states sue", "bob": "states sue over lax rule", "cid": "towns"}}
    found, whole = egises(DOCUMENT, WROTE, given_), perseval(DOCUMENT, WROTE, given_)
    assert (found.score, found.degress) == (whole.egises, whole.degress)
    for column in ("document", "user", "degress"):
        assert list(found.users[column]) == list(whole.users[column])
    assert list(found.documents["between_summaries"]) == list(whole.documents["between_summaries"])


def test_scores_do_not_depend_on_the_names_or_the_order_of_readers_and_documents():
    documents = DOCUMENT | {"rain": "Rain fell at noon and the towns were wet."}
    wrote = WROTE | {"rain": {"ann": "rain fell", "bob": "wet towns"}}
    given_ = {"rain": {"bob": "towns wet", "ann": "noon rain"}, "rule": {u: f"{u} states" for u in WROTE["rule"]}}
    new = {"ann": "x", "bob": "a", "cid": "m"}
    turned = [{d: {new[u]: t[d][u] for u in reversed(t[d])} for d in reversed(t)} for t in (wrote, given_)]
    assert perseval(documents, *turned).score == pytest.approx(perseval(documents, wrote, given_).score, abs=1e-14)


def test_documents_of_different_numbers_of_readers_are_each_a_loop_over_the_definitions():
    documents = DOCUMENT | {"rain": "Rain fell at noon and towns were wet", "one": "alone"}
    wrote = WROTE | {"rain": {"ann": "rain fell", "bob": "wet towns"}, "one": {"ann": "alone"}}
    given_ = {d: {u: f"{t} {documents[d].split()[i]}" for i, (u, t) in enumerate(w.items())} for d, w in wrote.items()}
    with pytest.warns(UserWarning, match="1 documents with fewer than two readers"):
        found = perseval(documents, wrote, given_, distance=jsd(words=lower))
    rows = [literal.document_score(of_words, documents[d], wrote[d], given_[d]) for d in ("rule", "rain")]
    expected = np.array(rows)
    assert found.documents["document"] == ["rule", "rain"]
    for column, values in zip(("degress", "perseval", "distance"), expected.T, strict=True):
        assert found.documents[column] == pytest.approx(values, abs=1e-10)
    assert found.score == pytest.approx(expected[:, 1].mean(), abs=1e-10)
    assert found.users["document"] == ["rule"] * 3 + ["rain"] * 2
    assert found.users["user"] == ["ann", "bob", "cid", "ann", "bob"]


@pytest.mark.skipif(not DATA.is_dir(), reason="data that cannot be shipped is not here: the authors' sample")
@pytest.mark.parametrize("simplified", [False, True])
def test_the_authors_sample_is_a_loop_over_the_definitions(simplified):
    sample = read_summaries(DATA / "perseval" / "sample_consolidated.jsonl")
    text, wrote = (m["N24110"] for m in (sample.documents, sample.users))
    assert (len(wrote), len(sample.systems)) == (12, 5)
    for given_ in sample.systems.values():
        found = perseval(
            sample.documents, sample.users, given_, distance=jsd(words=lower), simplified=simplified, resamples=1
        )
        expected = literal.document_score(of_words, text, wrote, given_["N24110"], simplified=simplified)
        assert (found.degress, found.score, found.distance) == pytest.approx(expected, abs=1e-10)


REFERENCE = {  # distance, DEGRESS, EGISES, PerSEval of the simplified form
    "NAML": (0.7291, 0.1127, 0.8873, 0.01608),
    "NRMS": (0.7240, 0.0916, 0.9084, 0.01313),
    "EBNR": (0.7260, 0.0529, 0.9471, 0.00841),
    "EBNR_2": (0.7238, 0.0085, 0.9915, 0.00163),
    "NRMS_2": (0.7255, 0.0068, 0.9932, 0.00146),
}


@pytest.mark.skipif(not (DATA / "pens").is_dir(), reason="data that cannot be shipped is not here: PENS")
def test_five_systems_headlines_for_103_readers_score_as_published():
    news = pens(DATA / "pens")
    assert (len(news.users), sum(map(len, news.users.values()))) == (3840, 20_599 - 45)
    words = jsd(words=lambda text: re.findall("[a-z]+", text.lower()))
    for name, expected in REFERENCE.items():
        with pytest.warns(UserWarning, match="109 documents with fewer than two readers"):
            found = perseval(None, news.users, news.systems[name], distance=words, simplified=True, resamples=1)
        assert len(found.documents["document"]) == 3731
        rounded = (*(round(v, 4) for v in (found.distance, found.degress, found.egises)), round(found.score, 5))
        assert rounded == expected, name


# --- intervals


def test_the_interval_is_a_bootstrap_over_documents_decided_by_the_seed():
    rng = np.random.default_rng(0)
    words = ["states", "sue", "rule", "law", "fight", "city", "town", "rain"]

    def texts(seed):
        rng = np.random.default_rng(seed)
        return {f"d{i}": {u: " ".join(rng.choice(words, 4)) for u in "abc"} for i in range(40)}

    wrote = texts(1)
    near = {d: {u: w + " " + rng.choice(words) for u, w in r.items()} for d, r in wrote.items()}
    found = [perseval(None, wrote, near, simplified=True, seed=s, resamples=2000) for s in (0, 0, 1)]
    assert found[0].low < found[0].score < found[0].high
    assert (found[0].low, found[0].high) == (found[1].low, found[1].high) != (found[2].low, found[2].high)
    values = np.asarray(found[0].documents["perseval"])
    error = values.std() / math.sqrt(len(values))
    assert found[0].low == pytest.approx(values.mean() - 1.96 * error, abs=0.35 * error)
    assert found[0].high == pytest.approx(values.mean() + 1.96 * error, abs=0.35 * error)


# --- what is refused, left out and warned of


@pytest.mark.parametrize("gone", [None, "", "  \n"])
def test_a_reader_without_a_summary_is_left_out_there_and_counted(gone):
    given_ = {"rule": {"ann": "states sue", "bob": "business glad"} | ({} if gone is None else {"cid": gone})}
    with pytest.warns(UserWarning, match="1 readers without a summary of every system"):
        found = perseval(DOCUMENT, WROTE, given_)
    assert found.users["user"] == ["ann", "bob"]
    assert found.left_out == {"readers without a summary of every system": 1}
    alone = perseval(DOCUMENT, {"rule": {u: WROTE["rule"][u] for u in ("ann", "bob")}}, given_, resamples=1)
    assert found.score == alone.score


def test_summaries_for_nobody_and_readers_who_wrote_nothing_are_counted():
    wrote = {"rule": WROTE["rule"] | {"eve": " "}}
    given_ = {"rule": WROTE["rule"] | {"eve": "states", "zoe": "rule"}, "rain": {"ann": "rain"}}
    with pytest.warns(UserWarning, match="left out"):
        found = perseval(DOCUMENT, wrote, given_)
    assert found.left_out == {"readers who wrote nothing": 1, "summaries for readers who are not known": 2}


def test_one_reader_is_refused_since_personalisation_is_undefined():
    for wrote in ({"rule": {"ann": "states sue"}}, {}):
        with pytest.raises(ValueError, match="no document has two readers"):
            perseval(DOCUMENT, wrote, wrote)


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.2, 1.2])
@pytest.mark.parametrize(
    ("where", "said"),
    [
        (("towns glad", "states sue over pollution"), "what readers wrote"),
        (("towns wet", "states"), "the system"),
        (("towns glad", "towns wet"), "what was written by reader cid"),
        (("towns wet", DOCUMENT["rule"]), "to the document"),
    ],
)
def test_a_distance_that_is_no_number_from_0_to_1_is_refused_with_its_document_and_readers(value, where, said):
    def distance(left, right):
        return [value if {a, b} == set(where) else 0.5 for a, b in zip(left, right, strict=True)]

    given_ = {"rule": {"ann": "states", "bob": "business", "cid": "towns wet"}}
    with pytest.raises(ValueError, match=r"document rule") as refused:
        perseval(DOCUMENT, WROTE, given_, distance=distance)
    assert said in str(refused.value)
    assert "reader cid" in str(refused.value)
    assert f"is {value:g}" in str(refused.value)


def test_a_document_without_text_is_refused_unless_the_form_is_simplified():
    for documents in (None, {}, {"rule": " "}):
        with pytest.raises(ValueError, match="simplified=True"):
            perseval(documents, WROTE, SAME)
        assert perseval(documents, WROTE, SAME, simplified=True).score < 1e-4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"alpha": -1}, "alpha=-1"),
        ({"beta": math.nan}, "beta=nan"),
        ({"gamma": 11}, "gamma=11"),
        ({"acp": "relativ"}, "did you mean relative"),
        ({"digits": 0}, "digits=0"),
        ({"resamples": 0}, "resamples=0"),
        ({"distance": "jds"}, "did you mean jsd"),
    ],
)
def test_options_out_of_range_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        perseval(DOCUMENT, WROTE, SAME, **options)


def test_what_is_no_text_is_refused_by_its_place():
    with pytest.raises(ValueError, match="document rule, reader ann: a text is needed, found int"):
        perseval(DOCUMENT, WROTE, {"rule": {"ann": 3, "bob": "x", "cid": "y"}})


def test_each_document_says_how_many_readers_it_was_judged_by():
    wrote = {f"d{n}": {f"u{i}": f"states sue {i}" for i in range(n)} for n in (4, 2, 3)}
    for report in (
        perseval(None, wrote, wrote, simplified=True, resamples=1),
        egises(None, wrote, wrote, simplified=True),
    ):
        assert dict(zip(report.documents["document"], report.documents["users"], strict=True)) == {
            "d4": 4, "d2": 2, "d3": 3}  # fmt: skip


def test_rouge_l_and_bleu_come_with_a_warning_and_jsd_and_a_function_without():
    for name in ("rouge-l", "bleu"):
        with pytest.warns(UserWarning, match="agree with people's"):
            perseval(DOCUMENT, WROTE, SAME, distance=name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for distance in ("jsd", lambda left, right: np.linspace(0.2, 0.9, len(left))):
            perseval(DOCUMENT, WROTE, SAME, distance=distance)


def test_equal_service_of_all_readers_is_warned_of_where_the_penalty_does_not_know_scale():
    values = iter([0.3, 0.3, 0.31])

    def distance(left, right):
        return [next(values) if a != b and b.startswith("given") and not a.startswith("given") and a != DOCUMENT["rule"]
                and b != DOCUMENT["rule"] else 0.5 for a, b in zip(left, right, strict=True)]  # fmt: skip

    given_ = {"rule": {u: f"given {u}" for u in WROTE["rule"]}}
    with pytest.warns(UserWarning, match="1 of 1 documents .* acp='absolute'"):
        relative = perseval(DOCUMENT, WROTE, given_, distance=distance)
    values = iter([0.3, 0.3, 0.31])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        absolute = perseval(DOCUMENT, WROTE, given_, distance=distance, acp="absolute")
    assert relative.users["acp"][2] > 0.9
    assert absolute.users["acp"][2] < 0.001


def test_distances_are_rounded_as_published_unless_told_otherwise():
    given_ = {"rule": {"ann": "states sue", "bob": "lax rule", "cid": "towns"}}
    rounded, exact = (perseval(DOCUMENT, WROTE, given_, digits=d).users["distance"] for d in (4, None))
    assert np.asarray(rounded) == pytest.approx(np.round(exact, 4), abs=1e-15)
    assert np.asarray(rounded) != pytest.approx(np.asarray(exact), abs=1e-9)


def test_the_columns_of_a_report_are_a_table_of_json_numbers():
    found = perseval(DOCUMENT, WROTE, SAME)
    assert len({len(column) for column in found.users.values()}) == 1
    json.dumps({k: list(map(str, v)) for k, v in found.documents.items()})


def test_one_document_tells_no_interval():
    found = perseval(DOCUMENT, WROTE, SAME)
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_the_mathematics_refuses_a_penalty_that_it_does_not_know():
    for of in (consistency_penalty, inaccuracy_discount):
        with pytest.raises(ValueError, match="did you mean relative"):
            of(np.array([0.1, 0.2]), acp="relativ")


def test_readers_without_a_pair_that_counts_have_no_degress_and_no_warning():
    X = np.array([[0.0, 0.2], [0.2, 0.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = degress(X, X, pairs=np.array([[True, True], [False, True]]))
    assert found[0] == 1
    assert math.isnan(found[1])


def test_defaults_are_the_published_ones_wherever_they_stand():
    published = {"alpha": 3.0, "beta": 1.0, "gamma": 4.0, "acp": "relative", "digits": 4, "simplified": False}
    for of in (perseval, leaderboard, egises, check_options, inaccuracy_discount, inaccuracy_penalty,
               consistency_penalty):  # fmt: skip
        given_ = {k: p.default for k, p in inspect.signature(of).parameters.items()}
        assert {k: v for k, v in given_.items() if k in published}.items() <= published.items(), of
