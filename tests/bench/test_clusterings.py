"""Clusterings side by side: each is scored on the same rows, and subspaces are told from blobs."""

import numpy as np
import pytest

from rankwise.bench.dynamics import molrg_features
from rankwise.bench.shared.clusterings import ARMS, EM, HARD, better_than_others, clusterings, indices


def crossing_lines(n, rng):
    """Two lines of the plane z = 1 that cross: no two blobs."""
    y = np.arange(n) % 2
    along = rng.uniform(-3, 3, n)
    X = np.stack([np.where(y, along, 0), np.where(y, 0, along), np.ones(n)], 1)
    return X + 0.02 * rng.standard_normal(X.shape), y


def test_lines_that_cross_are_found_by_subspaces_and_not_by_k_means():
    X, y = crossing_lines(240, np.random.default_rng(0))
    found = clusterings(X[:160], y[:160], X[160:], clusters=2, dims=(1,), starts=3, seed=0)
    assert found["dim"] == 1
    assert {len(v) for v in found["labels"].values()} == {len(found["right"])} == {160}
    scores = indices([found])
    assert set(scores) == set(ARMS)
    assert min(*scores[EM], *scores[HARD]) > 0.85  # rows where the lines cross are of either
    assert scores["k-means"] < 0.6


def test_the_dimension_is_that_under_which_rows_left_out_are_likeliest():
    rng = np.random.default_rng(0)
    y = np.arange(200) % 2
    flat = rng.uniform(-3, 3, (200, 2))
    X = np.where(y[:, None], np.pad(flat, ((0, 0), (0, 2))), np.pad(flat, ((0, 0), (2, 0))))
    X = X + 0.02 * rng.standard_normal(X.shape)  # two planes in four dimensions
    for dims in ((1, 2), (2, 1)):
        assert clusterings(X[:140], y[:140], X[140:], clusters=2, dims=dims, starts=2, seed=0)["dim"] == 2


def test_every_other_clustering_is_compared_and_the_better_one_holds():
    scores = {arm: np.linspace(0.2, 0.3, 6) for arm in ARMS}
    scores[EM] = scores["k-means"] + np.linspace(0.09, 0.11, 6)
    claims = better_than_others(scores, "them")
    assert [c.held for c in claims] == [True] * 4
    assert "k-means" in claims[0].text
    assert claims[0].found.startswith("+10.00")
    scores["spectral"] = scores[EM] + 0.1
    assert [c.held for c in better_than_others(scores, "them")] == [True, False, True, True]


def test_blobs_keep_the_classes_means_and_spread_and_nothing_else():
    rng = np.random.default_rng(0)
    y = np.repeat([3, 7], 4000)
    X = np.where(y[:, None] == 3, [5.0, 0.0], [0.0, 9.0]) + rng.standard_normal((8000, 2)) * [2.0, 0.1]
    blobs = molrg_features._blobs(X, y, np.random.default_rng(1))
    for kind in (3, 7):
        assert blobs[y == kind].mean(0) == pytest.approx(X[y == kind].mean(0), abs=0.08)  # 3 standard errors of 4,000
        assert blobs[y == kind].std(0) == pytest.approx([np.sqrt((4 + 0.01) / 2)] * 2, rel=0.04)
