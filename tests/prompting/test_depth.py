import warnings
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import cdist

from rankwise.prompting import TextDepth, depth, depth_rank_test, pooled_quality, quality


def corpus(n=30, d=8, seed=0, shift=1.0):
    x = np.random.default_rng(seed).normal(size=(n, d))
    x[:, 0] += shift
    return x


def by_definition(F, G, distance):
    """Mean distances from the whole matrix, as the paper writes them."""

    def matrix(A, B):
        cosine = cdist(A, B, "cosine")
        return cosine if distance == "cosine" else np.sqrt(np.maximum(2 * cosine, 0))

    own = matrix(F, F)
    np.fill_diagonal(own, 0)
    return 2 - own.sum(1) / (len(F) - 1), 2 - matrix(G, F).mean(1)


@pytest.mark.parametrize("distance", ["cosine", "chord"])
@pytest.mark.parametrize("m", [20, 30])  # 30: as many as F, where the released code goes wrong
def test_depths_are_those_of_the_definition(distance, m):
    F, G = corpus(30), corpus(m, seed=1, shift=0.3)
    fitted = TextDepth(distance).fit(F)
    f, g = by_definition(F, G, distance)
    np.testing.assert_allclose(fitted.depths_, f, atol=1e-10)
    np.testing.assert_allclose(fitted.score_samples(G), g, atol=1e-10)


def test_blocks_change_nothing(monkeypatch):
    F = corpus(50)
    whole = TextDepth("chord").fit(F).depths_
    monkeypatch.setattr(depth, "_BLOCK", 120)
    np.testing.assert_allclose(TextDepth("chord").fit(F).depths_, whole, atol=1e-12)


@pytest.mark.parametrize("distance", ["cosine", "chord"])
@given(seed=st.integers(0, 30))
def test_rotations_and_lengths_change_nothing_and_depth_lies_between_zero_and_two(distance, seed):
    F, rng = corpus(12, seed=seed), np.random.default_rng(seed)
    turned = F @ np.linalg.qr(rng.normal(size=(8, 8)))[0] * rng.uniform(0.1, 9, (12, 1))
    a, b = TextDepth(distance).fit(F).depths_, TextDepth(distance).fit(turned).depths_
    np.testing.assert_allclose(a, b, atol=1e-10)
    assert ((a >= -1e-12) & (a <= 2 + 1e-12)).all()


@pytest.mark.parametrize("distance", ["cosine", "chord"])
def test_identical_points_have_depth_two_and_an_antipodal_pair_none(distance):
    for dtype in (np.float32, np.float64):
        same = TextDepth(distance).fit(np.tile(corpus(1).astype(dtype), (5, 1)))
        np.testing.assert_allclose(same.depths_, 2, atol=1e-6)
    x = corpus(1)
    np.testing.assert_allclose(TextDepth(distance).fit(np.concatenate([x, -x])).depths_, 0, atol=1e-7)


def test_the_mean_direction_is_the_deepest():
    F = stats.vonmises_fisher(np.eye(5)[0], 20).rvs(400, random_state=0)
    fitted = TextDepth().fit(F)
    assert fitted.rank(np.concatenate([F, np.eye(5)[:1]]))[0] == 400
    assert fitted.score_samples(np.eye(5)[:1]) > fitted.depths_.max() - 0.05
    assert list(fitted.rank()) == list(np.argsort(-fitted.depths_))


@pytest.mark.parametrize("distance", ["cosine", "chord"])
def test_float32_agrees_with_float64(distance):
    F = corpus(200, 64)
    a, b = (TextDepth(distance).fit(F.astype(t)).depths_ for t in (np.float32, np.float64))
    np.testing.assert_allclose(a, b, atol=1e-5)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_quality_counts_pairs_with_ties_half_and_swapping_complements(f, g):
    pairs = [(a < b) + (a == b) / 2 for a in f for b in g]
    assert quality(f, g) == pytest.approx(np.mean(pairs))
    assert quality(f, g) + quality(g, f) == pytest.approx(1)
    ranks = stats.rankdata([*f, *g])
    pooled = np.mean([(ranks < r).mean() for r in ranks[len(f) :]])
    assert pooled_quality(f, g) == pytest.approx(pooled)


def test_quality_of_a_corpus_with_itself_is_one_half():
    x = np.random.default_rng(0).normal(size=50)
    assert quality(x, x) == 0.5


def test_the_rank_sum_is_scipys_and_a_shift_is_found():
    F, G = corpus(80), corpus(60, seed=1, shift=-1.0)
    found = depth_rank_test(F, G, method="ranksum")
    assert found.statistic == stats.ranksums(found.depths_f, found.depths_g).statistic
    assert found.q_low < found.q < found.q_high < 0.5
    assert found.pvalue < 1e-6
    assert depth_rank_test(F, G, permutations=199).pvalue == pytest.approx(1 / 200)
    assert depth_rank_test(F, G, permutations=199, alternative="less").pvalue > 0.9


@pytest.mark.parametrize("alternative", ["greater", "less", "two-sided"])
def test_the_cautious_p_value_widens_scipys_by_the_pairs_that_are_shared(alternative):
    F, G = corpus(40, seed=2), corpus(20, seed=3, shift=0.9)
    found = depth_rank_test(F, G, method="ranksum", alternative=alternative)
    scale = np.sqrt((2 / 40 + 1 / 20) / (1 / 40 + 1 / 20))
    normal = stats.norm(scale=scale)
    tail = {"greater": normal.sf(found.statistic), "less": normal.cdf(found.statistic)}
    assert found.pvalue == pytest.approx(tail.get(alternative, 2 * min(tail.values())))


def halves(seed, n, m, d):
    x = np.random.default_rng(seed).normal(size=(n + m, d))
    return x[:n], x[n:]


def test_p_values_call_no_more_equal_corpora_different_than_they_say():
    """In many dimensions pairs decide, and independent depths would be called different in 10% of cases, not 5%."""
    found = [
        (depth_rank_test(*halves(s, 20, 60, 64), permutations=99, bootstrap=0).pvalue,
         depth_rank_test(*halves(s, 20, 60, 64), method="ranksum", bootstrap=0))
        for s in range(500)
    ]  # fmt: skip
    permuted = np.array([p for p, _ in found])
    limit = 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / 500)
    assert (permuted <= 0.05).mean() < limit
    assert stats.kstest(permuted, "uniform").pvalue > 0.01
    assert np.mean([t.pvalue <= 0.05 for _, t in found]) < limit
    assert np.mean([stats.norm.sf(t.statistic) <= 0.05 for _, t in found]) > limit  # what is wrong with those


@pytest.mark.parametrize("distance", ["cosine", "chord"])
@pytest.mark.parametrize("alternative", ["greater", "less", "two-sided"])
def test_few_texts_are_relabelled_in_every_way(distance, alternative):
    F, G = corpus(4, 3, seed=5), corpus(4, 3, seed=6, shift=-2)
    pooled, sums = np.concatenate([F, G]), []
    for chosen in combinations(range(8), 4):
        rest = [i for i in range(8) if i not in chosen]
        f, g = by_definition(pooled[list(chosen)], pooled[rest], distance)
        sums.append(stats.rankdata(np.round([*f, *g], 10))[:4].sum() - 18)
    sums = np.array(sums)
    far = {"greater": sums >= sums[0], "less": sums <= sums[0], "two-sided": abs(sums) >= abs(sums[0])}[alternative]
    found = depth_rank_test(F, G, distance=distance, alternative=alternative)
    assert found.pvalue == pytest.approx(far.mean())
    assert far.mean() >= 1 / 70
    assert depth_rank_test(F, G, method="ranksum").pvalue >= 1 / 70  # no relabelling could give less


def test_blocks_of_relabellings_change_nothing(monkeypatch):
    F, G = corpus(20), corpus(15, seed=1, shift=0.7)
    whole = depth_rank_test(F, G, permutations=199, distance="chord").pvalue
    monkeypatch.setattr(depth, "_BLOCK", 700)
    assert depth_rank_test(F, G, permutations=199, distance="chord").pvalue == whole


def test_texts_of_both_corpora_are_counted_and_warned_of():
    x = corpus(12, 64, shift=0)
    with pytest.warns(UserWarning, match="12 of 12 texts are in the other corpus"):
        same = depth_rank_test(x, x, permutations=9)
    assert same.shared == 12
    assert same.q > 0.9  # what the warning is about
    texts = ["a", "bb", "ccc", "dddd"]
    with pytest.warns(UserWarning, match="1 of 2 texts"):
        depth_rank_test(texts, ["bb", "e"], encoder=lambda t: np.array([[len(x), 1.0] for x in t]), permutations=9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert depth_rank_test(x, corpus(20, 64, seed=4), permutations=9).shared == 0


def test_texts_are_embedded_by_the_bundled_model():
    texts = ["The film was a joy.", "A joyful, lovely film.", "I loved this film.", "Interest rates rose in May."]
    assert TextDepth().fit(texts).rank()[-1] == 3
    given = TextDepth(encoder=lambda t: np.array([[len(x), 1.0] for x in t])).fit(["a", "bb", "cccccccc"])
    assert given.n_features_in_ == 2


@pytest.mark.parametrize(
    ("F", "message"),
    [
        (np.ones((1, 3)), "one text"),
        (np.array([[1.0, 0], [0, 0], [1, 1]]), "zero vectors.* rows 1"),
        (np.array([[1.0, np.nan], [0, 1]]), "NaN"),
        (np.zeros((0, 3)), "0 sample"),
        ("a single text", "a list of texts"),
    ],
)
def test_bad_corpora_are_named(F, message):
    with pytest.raises(ValueError, match=message):
        TextDepth().fit(F)


def test_other_bad_input_is_named():
    with pytest.raises(ValueError, match="did you mean cosine"):
        TextDepth("cosin").fit(corpus())
    with pytest.raises(ValueError, match="X has 3 dimensions, the corpus 8"):
        TextDepth().fit(corpus()).score_samples(np.ones((2, 3)))
    for options, message in (
        ({"method": "perm"}, "unknown method 'perm'"),
        ({"alternative": "grater"}, "did you mean greater"),
        ({"permutations": 0}, "permutations=0"),
    ):
        with pytest.raises(ValueError, match=message):
            depth_rank_test(corpus(), corpus(seed=1), **options)


@pytest.mark.parametrize("distance", ["cosine", "chord"])
def test_depths_are_those_of_the_released_package_where_it_is_right(distance):
    from tte_depth import StatDepth

    rng = np.random.default_rng(0)
    F, G = (rng.normal(size=(n, 12)) for n in (40, 30))  # of equal sizes the released code measures F against G
    F, G = (X / np.linalg.norm(X, axis=1, keepdims=True) for X in (F, G))
    expected_f, expected_g = StatDepth(distance).depths_paired(F, G)
    depth = TextDepth(distance).fit(F)
    np.testing.assert_allclose(depth.depths_, expected_f, atol=1e-10)
    np.testing.assert_allclose(depth.score_samples(G), expected_g, atol=1e-10)
    np.testing.assert_allclose(TextDepth(distance).fit(G).depths_, StatDepth(distance).depths(G), atol=1e-10)


@pytest.mark.parametrize("distance", ["cosine", "chord"])
def test_sums_over_a_large_float32_corpus_are_those_of_float64(distance):
    F = corpus(4000, 16).astype(np.float32)
    fitted = TextDepth(distance).fit(F)
    assert fitted.units_.dtype == np.float32
    f, g = by_definition(fitted.units_.astype(float), fitted.units_[:50].astype(float), distance)
    tol = 1e-9 if distance == "cosine" else 1e-6  # there the distances themselves have float32's digits
    if distance == "cosine":  # the rows' lengths are 1 but for float32's rounding
        U = fitted.units_.astype(float)
        f = 2 - (len(U) - U @ U.sum(0)) / (len(U) - 1)
        g = 2 - (len(U) - U[:50] @ U.sum(0)) / len(U)
    np.testing.assert_allclose(fitted.depths_, f, atol=tol, rtol=0)
    np.testing.assert_allclose(fitted._total(fitted.units_[:50]), (2 - g) * len(F), atol=tol * len(F), rtol=0)
    assert fitted.depths_.dtype == fitted.score_samples(F[:50]).dtype == np.float64


@pytest.mark.parametrize(
    ("given", "kept"), [(np.int64, np.float64), (np.float16, np.float64), (np.float32, np.float32), (float, float)]
)
def test_embeddings_are_float32_or_float64(given, kept):
    X = np.array([[3, 4], [4, 3], [-8, 6]]).astype(given)
    fitted = TextDepth().fit(X)
    assert fitted.units_.dtype == kept
    np.testing.assert_allclose(fitted.units_, [[0.6, 0.8], [0.8, 0.6], [-0.8, 0.6]], rtol=1e-6)
    far = [0.04 + 1, 0.04 + 1.28, 1 + 1.28]
    np.testing.assert_allclose(fitted.depths_, [2 - d / 2 for d in far], atol=1e-6)


@pytest.mark.parametrize("distance", ["cosine", "chord"])
@pytest.mark.parametrize("alternative", ["greater", "less", "two-sided"])
def test_texts_that_occur_twice_share_their_ranks(distance, alternative):
    F, G = corpus(4, 3, seed=5), corpus(4, 3, seed=6, shift=-1)
    F[1] = 2 * F[0]  # the same direction
    G[3] = G[2]
    pooled, sums = np.concatenate([F, G]), []
    for chosen in combinations(range(8), 4):
        rest = [i for i in range(8) if i not in chosen]
        f, g = by_definition(pooled[list(chosen)], pooled[rest], distance)
        ranks = stats.rankdata(np.round([*f, *g], 7))
        sums.append(ranks[:4].sum() - 18)
    sums = np.array(sums)
    far = {"greater": sums >= sums[0], "less": sums <= sums[0], "two-sided": abs(sums) >= abs(sums[0])}[alternative]
    found = depth_rank_test(F, G, distance=distance, alternative=alternative, bootstrap=0)
    assert found.pvalue == pytest.approx(far.mean())
    assert found.statistic == stats.ranksums(found.depths_f.round(7), found.depths_g.round(7)).statistic


def test_few_texts_are_relabelled_in_every_way_in_blocks_as_well(monkeypatch):
    F, G = corpus(4, 3, seed=5), corpus(4, 3, seed=6, shift=-1)
    whole = depth_rank_test(F, G, bootstrap=0).pvalue
    monkeypatch.setattr(depth, "_BLOCK", 100)
    assert depth_rank_test(F, G, bootstrap=0).pvalue == whole


def test_relabellings_are_drawn_only_where_not_all_are_wanted():
    F, G = corpus(4, 3, seed=5), corpus(4, 3, seed=6, shift=-0.5)
    every = {depth_rank_test(F, G, permutations=70, bootstrap=0, seed=s).pvalue for s in range(8)}
    assert len(every) == 1  # all 70: nothing is drawn
    drawn = [depth_rank_test(F, G, permutations=69, bootstrap=0, seed=s).pvalue for s in range(8)]
    assert len(set(drawn)) > 2
    np.testing.assert_allclose(np.array(drawn) * 70, np.round(np.array(drawn) * 70), atol=1e-9)  # 69, and its own


def test_drawn_labels_keep_the_corpora_as_large_as_they_are(monkeypatch):
    monkeypatch.setattr(depth, "_BLOCK", 70)
    blocks = list(depth._drawn_labels(7, 3, 25, np.random.default_rng(0)))
    assert [b.shape for b in blocks] == [(10, 7), (10, 7), (5, 7)]
    labels = np.concatenate(blocks)
    assert (labels.sum(1) == 3).all()
    assert set(labels.ravel()) == {0.0, 1.0}
    assert (labels.sum(0) > 3).all()  # every text gets to be in F
    monkeypatch.setattr(depth, "_BLOCK", 3)  # a row alone is more
    assert [b.shape for b in depth._drawn_labels(7, 3, 2, np.random.default_rng(0))] == [(1, 7), (1, 7)]
    assert np.array_equal(np.concatenate(list(depth._every_label(4, 2))).sum(1), [2] * 6)


def test_the_cautious_p_value_is_no_less_than_any_relabelling_could_give():
    F = np.array([[1.0, 0.05 * i] for i in range(5)])
    found = depth_rank_test(F, np.array([[-1.0, 0.3]]), method="ranksum", bootstrap=0)
    assert stats.norm.sf(found.statistic) < 1 / 6
    assert found.pvalue == pytest.approx(1 / 6)  # of six texts the one that lies furthest out


def test_the_interval_of_q_holds_the_middle_95_percent_of_resamples():
    F, G = corpus(40), corpus(30, seed=1, shift=0.4)
    found = depth_rank_test(F, G, method="ranksum", bootstrap=4000)
    rng = np.random.default_rng(12)
    f, g = rng.choice(found.depths_f, (4000, 40)), rng.choice(found.depths_g, (4000, 30))
    q = ((f[:, :, None] < g[:, None]) + 0.5 * (f[:, :, None] == g[:, None])).mean((1, 2))
    np.testing.assert_allclose([found.q_low, found.q_high], np.quantile(q, [0.025, 0.975]), atol=0.012)
    assert found.q == quality(found.depths_f, found.depths_g)
    assert found.q_pooled == pooled_quality(found.depths_f, found.depths_g)
    none = depth_rank_test(F, G, method="ranksum", bootstrap=0)
    assert np.isnan([none.q_low, none.q_high]).all()


def test_settings_are_these_where_none_are_given():
    F, G = corpus(40), corpus(30, seed=1, shift=-2.5)
    found = depth_rank_test(F, G)
    named = depth_rank_test(
        F, G, distance="cosine", method="permutation", alternative="greater", permutations=9999, bootstrap=999, seed=0
    )
    assert found.pvalue == named.pvalue == 1 / 10_000  # nothing lies further out
    assert (found.q_low, found.q_high) == (named.q_low, named.q_high)
    assert depth_rank_test(F, G, seed=1).q_high != found.q_high
    assert np.array_equal(TextDepth().fit(F).depths_, TextDepth("cosine").fit(F).depths_)


def test_duplicates_lie_at_no_chord_distance_and_neighbours_at_theirs():
    for dtype in (np.float32, np.float64):
        eps = float(np.finfo(dtype).eps)
        x = np.array([[1.0, 0.0]])
        near = np.array([[1.0, np.sqrt(50 * eps)]])  # 1 - cos = 25 eps: more than rounding
        X = np.concatenate([x, x, near]).astype(dtype)
        total = TextDepth("chord").fit(X)._total(TextDepth("chord").fit(X).units_)
        assert total[0] == total[1] == pytest.approx(np.sqrt(50 * eps), rel=0.1)


@pytest.mark.parametrize(("n", "rows"), [(1, "0$"), (5, "0, 1, 2, 3, 4$"), (6, "0, 1, 2, 3, 4 …$")])
def test_at_most_five_rows_are_named(n, rows):
    with pytest.raises(ValueError, match=f"the corpus has zero vectors, .* rows {rows}"):
        TextDepth().fit(np.concatenate([np.zeros((n, 3)), np.ones((2, 3))]))
    with pytest.raises(ValueError, match=f"G has zero vectors, .* rows {rows}"):
        depth_rank_test(corpus(4, 3), np.zeros((n, 3)))


def test_texts_are_shared_as_texts_and_embeddings_as_embeddings():
    def encoder(texts):
        return np.array([[len(x), 1.0] for x in texts])  # "bb" and "cc" alike

    with pytest.warns(UserWarning, match="2 of 3 texts") as record:
        found = depth_rank_test(["a", "bb", "dddd"], ["bb", "a", "cc"], encoder=encoder, permutations=9)
    assert found.shared == 2
    assert record[0].filename == __file__
    with pytest.warns(UserWarning, match="3 of 3 texts"):  # only one of them as texts
        assert depth_rank_test(["a", "bb", "dddd"], encoder(["bb", "a", "cc"]), encoder=encoder).shared == 3
    with pytest.raises(ValueError, match="X has 3 dimensions, the corpus 8"):
        depth_rank_test(corpus(), np.ones((2, 3)))
    with pytest.raises(ValueError, match="bootstrap=-1"):
        depth_rank_test(corpus(), corpus(seed=1), bootstrap=-1)


def test_equally_deep_texts_are_ranked_by_position():
    fitted = TextDepth().fit(corpus(40))
    fitted.depths_ = np.tile([1.0, 1.5, 1.25, 1.5], 10)
    expected = [i for kind in ((1, 3), (2,), (0,)) for i in range(40) if i % 4 in kind]
    assert fitted.rank().tolist() == expected


@pytest.mark.parametrize("alternative", ["greater", "less", "two-sided"])
def test_texts_that_are_all_as_deep_say_nothing(alternative):
    """Directions at right angles: every relabelling has the same rank sum."""
    F, G = np.eye(8)[:4], np.eye(8)[4:]
    found = depth_rank_test(F, G, alternative=alternative, bootstrap=0)
    assert (found.pvalue, found.statistic, found.q) == (1.0, 0.0, 0.5)
