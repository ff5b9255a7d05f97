"""Layer scores against scipy and scikit-learn, the SVM against scikit-learn, calibration by hand."""

import numpy as np
import pytest
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import EmpiricalCovariance, LedoitWolf
from sklearn.svm import OneClassSVM

from rankwise.continual.unlearning import detector as module
from rankwise.continual.unlearning.detector import Detector, OneClass, statistics
from rankwise.continual.unlearning.router import auroc


def states(n=40, layers=3, d=12, seed=0, shift=0.0):
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(9).normal(size=(layers, d, d)) / np.sqrt(d)
    return (np.einsum("nld,lde->nle", rng.normal(size=(n, layers, d)), mixing) + 1 + shift).astype(np.float32)


@pytest.fixture
def exact(monkeypatch):
    """Nothing is rounded to half precision."""
    monkeypatch.setattr(np, "float16", np.float64)


@pytest.mark.parametrize("n", [8, 40])
def test_mahalanobis_is_scipys_with_ledoit_wolfs_precision(n, exact):
    h, new = states(n), states(5, seed=1, shift=0.5)
    M = statistics(h).mahalanobis(new)
    for layer in range(3):
        precision = LedoitWolf().fit(h[:, layer].astype(float)).precision_
        rows, centre = new[:, layer].astype(float), h[:, layer].astype(float).mean(0)
        by_scipy = [mahalanobis(x, centre, precision) ** 2 for x in rows]
        np.testing.assert_allclose(M[:, layer], by_scipy, rtol=1e-5)


@pytest.mark.parametrize("n", [8, 40])
def test_the_released_mahalanobis_is_scikit_learns_empirical_one(n):
    h, new = states(n), states(5, seed=1)
    M = statistics(h, shrunk=False).mahalanobis(new)
    for layer in range(3):
        expected = EmpiricalCovariance().fit(h[:, layer].astype(float)).mahalanobis(new[:, layer].astype(float))
        np.testing.assert_allclose(M[:, layer], expected, rtol=1e-5)


def test_unshrunk_mahalanobis_does_not_change_under_affine_maps():
    h, new = states(60), states(5, seed=1)
    W, b = np.random.default_rng(3).normal(size=(12, 12)), np.arange(12)
    before = statistics(h, shrunk=False).mahalanobis(new)
    after = statistics((h @ W + b).astype(np.float64), shrunk=False).mahalanobis((new @ W + b).astype(np.float64))
    np.testing.assert_allclose(after, before, rtol=1e-4)


def test_fewer_directions_than_texts_keep_the_variance_as_a_whole(monkeypatch, exact):
    monkeypatch.setattr(module, "MOST", 4)
    h = states(40)
    known, whole = statistics(h), [LedoitWolf().fit(h[:, i].astype(float)).covariance_ for i in range(3)]
    assert known.basis.shape == (3, 4, 12)
    for layer in range(3):
        trace = (1 / known.inverse[layer]).sum() + 8 / known.rest[layer]
        assert trace == pytest.approx(np.trace(whole[layer]), rel=1e-5)


def test_cosine_is_the_largest_over_the_texts_that_are_kept(exact):
    h, new = states(20), states(3, seed=1)
    unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (h, new)]
    expected = np.einsum("nld,mld->nlm", unit[1], unit[0]).max(2)
    np.testing.assert_allclose(statistics(h).cosine(new), expected, rtol=1e-5)
    of_one = np.einsum("nld,ld->nl", unit[1], unit[0][4])
    np.testing.assert_allclose(statistics(h, rows=np.array([4])).cosine(new), of_one, rtol=1e-5)


def test_svm_arrays_give_scikit_learns_scores():
    u = np.random.default_rng(0).normal(size=(50, 6)) + 3
    ours, theirs = OneClass.fit(u, 0.1), OneClassSVM(kernel="linear", nu=0.1).fit(u)
    new = np.random.default_rng(1).normal(size=(20, 6))
    np.testing.assert_allclose(ours.score(new), theirs.score_samples(new), atol=1e-9)
    np.testing.assert_allclose(ours.score(new) - ours.offset, theirs.decision_function(new), atol=1e-9)


def test_the_released_score_is_minus_a_thousand_cosines_minus_half_mahalanobis():
    h, new = states(40), states(4, seed=1)
    found = Detector.fit(h, score="released")
    known = found.statistics
    by_hand = (-1000 * known.cosine(new) - 0.5 * known.mahalanobis(new)) @ found.svm.weights
    np.testing.assert_allclose(found.scores(new), by_hand, rtol=1e-9)


def test_released_calibration_is_the_two_parts_means_and_the_held_out_spread():
    h, order = states(40), np.random.default_rng(5).permutation(40)
    found = Detector.fit(h, score="released", seed=5)
    fitted, held = found.scores(h[order[:32]]), found.scores(h[order[32:]])
    c = found.calibration
    np.testing.assert_allclose([c.fitted, c.held_out, c.std], [fitted.mean(), held.mean(), held.std()], rtol=1e-6)


@pytest.mark.parametrize("score", ["standardised", "released"])
def test_texts_from_elsewhere_are_told_apart(score):
    found = Detector.fit(states(60), score=score)
    inside, outside = states(40, seed=1), states(40, seed=2, shift=3.0)
    p = [found.calibration.likeness(found.scores(x), two_sided=score == "released") for x in (inside, outside)]
    assert auroc(*p) > 0.97


def test_what_was_not_fitted_is_scored_like_what_was():
    """In 12 dimensions 32 texts say little of their covariance; in-sample scores would be far above."""
    found = Detector.fit(states(40, d=60))
    c = found.calibration
    assert abs(c.fitted - c.held_out) < c.std
    naive = Detector.fit(states(40, d=60), score="released").calibration
    assert abs(naive.fitted - naive.held_out) > naive.std


def test_a_detector_sees_its_request_alone_and_the_same_seed_gives_the_same_one():
    h = states(40)
    one, again = Detector.fit(h, seed=3), Detector.fit(h.copy(), seed=3)
    for name, array in one.arrays().items():
        np.testing.assert_array_equal(array, again.arrays()[name])
    assert not np.array_equal(one.arrays()["mean"], Detector.fit(h, seed=4).arrays()["mean"])


def test_arrays_make_the_same_detector():
    one = Detector.fit(states(40))
    again = Detector.of(one.arrays(), "standardised")
    np.testing.assert_array_equal(one.scores(states(9, seed=2)), again.scores(states(9, seed=2)))
    assert again.calibration == one.calibration
    assert one.bytes() <= module.most_bytes(3, 12)


def _broken(arrays, name, change):
    return {**arrays, name: change(arrays[name])}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("svm", lambda a: a[:-1]),
        ("mean", lambda a: a * np.nan),
        ("basis", lambda a: a[0]),
        ("scale", lambda a: a * 0),
        ("numbers", lambda a: a * 0),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(name, change):
    with pytest.raises(ValueError, match=name if name != "numbers" else "calibration"):
        Detector.of(_broken(Detector.fit(states(40)).arrays(), name, change), "standardised")


def test_too_few_texts_and_equal_texts_are_refused():
    with pytest.raises(ValueError, match="at least 10 examples, and the request has 9"):
        Detector.fit(states(9))
    with pytest.raises(ValueError, match="all the same"):
        Detector.fit(np.repeat(states(1), 12, 0))


def test_directions_and_variances_are_those_of_numpys_decomposition():
    h = states(30)
    h[:, 1] = h[0, 1]  # a layer without spread has no directions that count
    known = statistics(h, shrunk=False)
    for layer in (0, 2):
        centred = h[:, layer].astype(np.float64) - h[:, layer].astype(np.float64).mean(0)
        _, s, V = np.linalg.svd(centred, full_matrices=False)
        np.testing.assert_allclose(known.inverse[layer], 30 / s**2, rtol=1e-6)
        np.testing.assert_allclose(np.abs((known.basis[layer] * V).sum(1)), 1, rtol=1e-6)
    assert not known.inverse[1].any()
