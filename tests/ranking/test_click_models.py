"""Click models: rates in closed form, against a loop over patterns, and estimates that recover what was simulated."""

import itertools

import numpy as np
import pytest

from rankwise.ranking import PBM, UBM, Cascade, attraction, lists_of
from rankwise.ranking.click_models import BROWSING, POSITIONS

A = np.array([0.1, 0.52, 0.28, 1.0])


def chance(model, a, pattern):
    """Of a pattern of clicks, place by place from the model's definition."""
    p, last = 1.0, None
    for k, clicked in enumerate(pattern):
        if isinstance(model, PBM):
            examined = float(model.positions[min(k, len(model.positions) - 1)])
        elif isinstance(model, UBM):
            examined = float(model.table[k][k if last is None else k - last - 1])
        else:
            examined = 1.0 if last is None else 0.0
        p *= examined * a[k] if clicked else 1 - examined * a[k]
        last = k if clicked else last
    return p


MODELS = [PBM(), PBM(eta=0.5), UBM(), UBM(eta=2), Cascade()]


@pytest.mark.parametrize("model", MODELS, ids=repr)
def test_rates_are_sums_over_all_patterns_and_simulated_ones_are_binomial_about_them(model):
    patterns = list(itertools.product((0, 1), repeat=4))
    weights = np.array([chance(model, A, p) for p in patterns])
    assert weights.sum() == pytest.approx(1)
    exact = weights @ np.array(patterns)
    assert model.probabilities(A[None])[0] == pytest.approx(exact)
    n = 40_000
    clicks = model.simulate(np.tile(A, (n, 1)), seed=0)
    assert (np.abs(clicks.mean(0) - exact) < 4.5 * np.sqrt(exact * (1 - exact) / n) + 1e-12).all()
    seen = np.array([(clicks == p).all(1).mean() for p in np.array(patterns)])
    assert (np.abs(seen - weights) < 4.5 * np.sqrt(weights * (1 - weights) / n) + 1e-12).all()


@pytest.mark.parametrize("model", MODELS, ids=repr)
def test_with_a_click_asked_for_rates_are_conditional_on_one(model):
    patterns = np.array([p for p in itertools.product((0, 1), repeat=4) if any(p)])
    weights = np.array([chance(model, A, p) for p in patterns])
    exact, n = weights @ patterns / weights.sum(), 20_000
    clicks = model.simulate(np.tile(A, (n, 1)), seed=1, keep_empty=False)
    assert clicks.any(1).all()
    assert (np.abs(clicks.mean(0) - exact) < 4.5 * np.sqrt(exact * (1 - exact) / n) + 1e-12).all()
    if isinstance(model, PBM):
        p = model.of(4) * A
        assert exact == pytest.approx(p / (1 - np.prod(1 - p)))


@pytest.mark.parametrize("model", MODELS, ids=repr)
def test_examination_of_a_pattern_gives_its_probability(model):
    for pattern in itertools.product((0, 1), repeat=4):
        p = model.examination([pattern])[0] * A
        told = np.prod(np.where(pattern, p, 1 - p))
        assert told == pytest.approx(chance(model, A, pattern))
        if told > 0:
            assert model.log_likelihood([A], [pattern]) == pytest.approx(np.log(told) / 4)


def test_the_tables_are_the_authors_and_continue_past_their_end():
    assert attraction([0, 1, 2, 3, 4]) == pytest.approx([0.1, 0.16, 0.28, 0.52, 1.0])
    assert PBM().of(12).tolist() == [*POSITIONS, 0.06, 0.06]
    assert PBM(eta=2).of(2) == pytest.approx([0.68**2, 0.61**2])
    assert [len(row) for row in BROWSING] == list(range(1, 11))
    gamma = UBM().of(12)
    assert gamma[11, 0] == gamma[9, 0] == 0.43  # nothing clicked yet
    assert gamma[11, 11] == 1.0  # a click just above
    assert gamma[11, 1] == gamma[9, 1] == 0.12  # a click far above


def test_places_that_show_nothing_are_not_clicked_and_a_seed_decides():
    mask = np.array([[True, False]] * 50)
    clicks = PBM().simulate(np.ones((50, 2)), seed=0, mask=mask)
    assert clicks[:, 1].sum() == 0
    assert clicks[:, 0].any()
    assert np.array_equal(clicks, PBM().simulate(np.ones((50, 2)), seed=0, mask=mask))
    assert not np.array_equal(clicks, PBM().simulate(np.ones((50, 2)), seed=1, mask=mask))


def shuffled(model, lists=30_000, documents=8, n=4, seed=0):
    """A log in which documents change places."""
    rng = np.random.default_rng(seed)
    document = rng.random((lists, documents)).argsort(1)[:, :n]
    a = np.linspace(0.2, 0.9, documents)
    clicks = model.simulate(a[document], seed=seed)
    return a, lists_of(clicks.ravel(), query=np.repeat(np.arange(lists), n), document=document.ravel())


def test_expectation_maximisation_recovers_positions_and_attraction_up_to_scale():
    a, lists = shuffled(PBM([0.9, 0.5, 0.3, 0.1]))
    model = PBM.estimate(lists, iterations=60)
    assert model.positions == pytest.approx(np.array([0.9, 0.5, 0.3, 0.1]) / 0.9, abs=0.03)
    assert model.attraction_ == pytest.approx(a * 0.9, abs=0.03)


def test_expectation_maximisation_recovers_the_browsing_table():
    true = UBM([[1.0], [0.9, 0.5], [0.8, 0.6, 0.3], [0.9, 0.7, 0.4, 0.2]])
    a, lists = shuffled(true)
    model = UBM.estimate(lists, iterations=60)
    for k in range(4):
        assert model.table[k] == pytest.approx(true.table[k], abs=0.06)
    assert model.attraction_ == pytest.approx(a, abs=0.05)
    assert model.log_likelihood(model.attraction_[lists.rows], lists.clicks) > PBM.estimate(lists).log_likelihood(
        PBM.estimate(lists).attraction_[lists.rows], lists.clicks)  # fmt: skip


def test_what_is_no_probability_is_refused():
    with pytest.raises(ValueError, match="probabilities"):
        PBM([1.2])
    with pytest.raises(ValueError, match="one value for rank 1"):
        UBM([[1.0], [0.5]])
    with pytest.raises(ValueError, match="attractive has shape"):
        PBM().simulate([[1.5]], seed=0)
    with pytest.raises(ValueError, match="can get no click"):
        PBM().simulate([[0.0, 0.0]], seed=0, keep_empty=False)
    with pytest.raises(ValueError, match="grades lie between 0 and 5"):
        attraction([0, 5])
    assert attraction([0, 1], epsilon=0, max_grade=1).tolist() == [0, 1]
    for options in ({"max_grade": 0}, {"epsilon": 1.1}, {"epsilon": -0.1}):
        with pytest.raises(ValueError, match="from 0 to 1, and above 0"):
            attraction([0], **options)
    for model in (PBM, UBM):
        for eta in (-1, np.nan, np.inf):
            with pytest.raises(ValueError, match=f"eta={eta}: a power from 0 on"):
                model(eta=eta)


def test_clicks_are_independent_of_data_that_the_same_seed_drew():
    grades = np.random.default_rng(0).integers(0, 5, size=(20_000, 10))
    a = attraction(grades)
    found, wanted = PBM().simulate(a, seed=0).mean(0), PBM().of(10) * a.mean(0)
    np.testing.assert_allclose(found, wanted, atol=5 * np.sqrt(0.25 / 20_000))
