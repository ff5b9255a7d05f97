import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankwise.prompting.equilibrium import EquilibriumRanker, baselines, merged


def game(B=3, K=5, seed=0, scale=2.0):
    g = torch.Generator().manual_seed(seed)
    G = scale * torch.randn(B, 2, K, generator=g, dtype=torch.float64)
    return G, scale * torch.randn(B, K, 2, generator=g, dtype=torch.float64)


def by_history(G, D, *, lam, eta, iterations):
    """One question, every past policy kept: the equations as they are written, from initial policies."""
    log_g, log_d = G.log(), D.log()
    past_g, past_d = [], []
    for t in range(1, iterations + 1):
        past_g.append(G)
        past_d.append(D)
        Q_g, Q_d = sum(past_d).T / (2 * t), sum(past_g).T / (2 * t)
        G = torch.softmax((Q_g + lam * log_g) / (1 / (eta * t) + lam), 1)
        D = torch.softmax((Q_d + lam * log_d) / (1 / (eta * t) + lam), 1)
    return G, D


def share(P, dim):
    return P / P.sum(dim, keepdim=True)


def initial(G, D, normalise="both"):
    """π⁰ of both sides as the paper has them: each normalised across what it conditions on, then over what it says."""
    g, d = share(G.exp(), 2), share(D.exp(), 2)
    return (share(share(g, 1), 2), share(share(d, 1), 2)) if normalise == "both" else (g, d)


@pytest.mark.parametrize("normalise", ["both", "own"])
def test_the_game_starts_from_sides_that_are_comparable_across_what_they_condition_on(normalise):
    G, D = game()
    kept = EquilibriumRanker(lambda_g=math.inf, lambda_d=math.inf, iterations=1, normalise=normalise).rank(G, D)
    g, d = initial(G, D, normalise)
    torch.testing.assert_close(kept.policy_g, g)
    torch.testing.assert_close(kept.policy_d, d)


def test_what_the_generator_would_say_just_as_well_when_lying_tells_nothing():
    same = torch.tensor([3.0, 1.0, 0.0]).log_softmax(0)
    G, D = torch.stack([same, same])[None], torch.zeros(1, 3, 2)
    kept = EquilibriumRanker(lambda_g=math.inf, lambda_d=math.inf, iterations=1).rank(G, D)
    torch.testing.assert_close(kept.policy_g, torch.full((1, 2, 3), 1 / 3, dtype=torch.float64))
    # a discriminator that says "correct" to everything says nothing either
    eager = torch.tensor([2.0, -2.0]).expand(1, 3, 2)
    kept = EquilibriumRanker(lambda_g=math.inf, lambda_d=math.inf, iterations=1).rank(G, eager)
    torch.testing.assert_close(kept.policy_d, torch.full((1, 3, 2), 0.5, dtype=torch.float64))


@pytest.mark.parametrize("normalise", ["both", "own"])
def test_running_averages_equal_the_whole_history(normalise):
    G, D = game(1)
    found = EquilibriumRanker(iterations=60, tol=0, normalise=normalise).rank(G, D)
    g0, d0 = initial(G, D, normalise)
    g, d = by_history(g0[0], d0[0], lam=0.1, eta=0.1, iterations=60)
    torch.testing.assert_close(found.policy_g[0], g, atol=1e-12, rtol=0)
    torch.testing.assert_close(found.policy_d[0], d, atol=1e-12, rtol=0)


@given(st.integers(0, 50), st.sampled_from(["both", "raw", "own"]))
def test_policies_sum_to_one_and_permuting_candidates_permutes_them(seed, normalise):
    ranker, order = EquilibriumRanker(iterations=200, normalise=normalise), torch.randperm(5)
    G, D = game(seed=seed)
    a, b = ranker.rank(G, D), ranker.rank(G[:, :, order], D[:, order])
    torch.testing.assert_close(a.policy_g.sum(2), torch.ones(3, 2, dtype=torch.float64))
    torch.testing.assert_close(a.policy_d.sum(2), torch.ones(3, 5, dtype=torch.float64))
    torch.testing.assert_close(a.policy_g[:, :, order], b.policy_g, atol=1e-10, rtol=0)
    torch.testing.assert_close(a.policy_d[:, order], b.policy_d, atol=1e-10, rtol=0)


def test_a_batch_is_its_questions_and_masked_candidates_are_not_there():
    ranker = EquilibriumRanker(iterations=300, tol=0)
    G, D = game(4, 5)
    mask = torch.ones(4, 5, dtype=torch.bool)
    mask[1, 3:] = False
    G[1, :, 3:], D[1, 3:] = math.nan, math.nan  # whatever stands there
    whole = ranker.rank(G, D, mask)
    for i, k in enumerate((5, 3, 5, 5)):
        one = ranker.rank(G[i : i + 1, :, :k], D[i : i + 1, :k])
        torch.testing.assert_close(whole.policy_g[i, :, :k], one.policy_g[0], atol=1e-12, rtol=0)
        torch.testing.assert_close(whole.policy_d[i, :k], one.policy_d[0], atol=1e-12, rtol=0)
        torch.testing.assert_close(whole.gap[i], one.gap[0], atol=1e-12, rtol=0)
        assert whole.order_d[i, :k].tolist() == one.order_d[0].tolist()
    assert set(whole.order_d[1, 3:].tolist()) == {3, 4}


def test_raw_probabilities_are_divided_across_conditions_as_the_paper_does():
    """The equation itself, in probabilities: no distribution of its own before."""
    ranker = EquilibriumRanker(normalise="raw", lambda_g=math.inf, lambda_d=math.inf)
    G, D = game(40, 4, seed=2)
    G[:, 1] -= 3  # one prompt makes every answer less likely
    found = ranker.rank(G, D)
    g, d = G.exp(), D.exp()
    g, d = g / g.sum(1, keepdim=True), d / d.sum(1, keepdim=True)
    torch.testing.assert_close(found.policy_g, g / g.sum(2, keepdim=True))
    torch.testing.assert_close(found.policy_d, d / d.sum(2, keepdim=True))
    both = EquilibriumRanker(normalise="both", lambda_g=math.inf, lambda_d=math.inf)
    torch.testing.assert_close(both.rank(G.log_softmax(2), D.log_softmax(2)).policy_g, both.rank(G, D).policy_g)
    torch.testing.assert_close(
        both.rank(G, D).policy_g, ranker.rank(G.log_softmax(2), D.log_softmax(2)).policy_g
    )  # the whole difference
    first, other = (EquilibriumRanker(normalise=n, iterations=500).rank(G, D).order_d[:, 0] for n in ("raw", "both"))
    assert 0 < (first != other).float().mean() < 0.2  # another answer wins now and then


def test_one_candidate_is_certain():
    found = EquilibriumRanker().rank(*game(2, 1))
    torch.testing.assert_close(found.policy_g, torch.ones(2, 2, 1, dtype=torch.float64))


def test_infinite_lambda_keeps_the_initial_policies_and_large_lambda_nearly():
    G, D = game()
    for lam, tol in ((math.inf, 1e-15), (1e5, 1e-4)):
        found = EquilibriumRanker(lambda_g=lam, lambda_d=lam, iterations=500).rank(G, D)
        g0, d0 = initial(G, D)
        torch.testing.assert_close(found.policy_g, g0, atol=tol, rtol=0)
        torch.testing.assert_close(found.policy_d, d0, atol=tol, rtol=0)


def test_without_lambda_the_discriminator_is_always_right():
    found = EquilibriumRanker(lambda_g=0, lambda_d=0, tol=0).rank(*game(20, 4, seed=3))
    right = (found.policy_g * found.policy_d.mT).sum((1, 2)) / 2
    assert (right > 0.99).all()
    assert found.gap.max() < 0.02


def test_symmetric_policies_stay_symmetric():
    zero = torch.zeros(1, 2, 4)
    found = EquilibriumRanker(iterations=500).rank(zero, zero.mT)
    torch.testing.assert_close(found.policy_g, torch.full((1, 2, 4), 0.25, dtype=torch.float64))
    torch.testing.assert_close(found.policy_d, torch.full((1, 4, 2), 0.5, dtype=torch.float64))


def test_the_refined_end_of_a_two_by_two_game_solves_both_softmax_equations():
    lam, ranker = 0.6, EquilibriumRanker(lambda_g=0.6, lambda_d=0.6, refine=200)
    G, D = game(1, 2, scale=0.7)
    found, (g0, d0) = ranker.rank(G, D), initial(G, D)
    g, d = found.policy_g, found.policy_d
    assert (g - torch.softmax(d.mT / (2 * lam) + g0.log(), 2)).abs().max() < 1e-8
    assert (d - torch.softmax(g.mT / (2 * lam) + d0.log(), 2)).abs().max() < 1e-8
    plain = EquilibriumRanker(lambda_g=0.6, lambda_d=0.6).rank(G, D)
    torch.testing.assert_close(plain.policy_g, g, atol=0.02, rtol=0)  # the dynamics were on their way there


def test_the_gap_falls_and_is_small_in_the_end():
    G, D = game(200, 6, seed=5)
    gaps = [EquilibriumRanker(iterations=n, tol=0).rank(G, D).gap for n in (10, 500, 5000)]
    assert (gaps[0] >= gaps[2]).all()
    assert gaps[0].median() > gaps[1].median() > gaps[2].median()
    assert gaps[2].median() < 1e-3
    assert gaps[2].max() < 2e-2
    assert EquilibriumRanker(refine=200).rank(G, D).gap.max() < 1e-6
    early = EquilibriumRanker(tol=5e-2).rank(G, D)
    assert early.iterations < 5000
    assert early.gap.max() < 5e-2


def test_sides_that_agree_keep_their_order():
    scores = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    G = torch.stack([scores, -scores], 1)
    found = EquilibriumRanker().rank(G, torch.stack([scores, -scores], 2))
    assert found.order_d.tolist() == found.order_g.tolist() == [[0, 1, 2, 3]]


def test_a_constant_on_one_side_and_extreme_scores_change_nothing_or_give_no_nan():
    ranker = EquilibriumRanker(iterations=300)
    G, D = game()
    a, b = ranker.rank(G, D), ranker.rank(G + torch.tensor([5.0, -7.0])[:, None], D + 3)
    torch.testing.assert_close(a.policy_d, b.policy_d, atol=1e-10, rtol=0)
    G[0, :, 1], D[1, 2, 0] = -1e4, -1e4
    assert ranker.rank(G, D).policy_g.isfinite().all()
    G[0, :, 1] = -math.inf
    found = ranker.rank(G, D)
    assert found.policy_g.isfinite().all()
    assert found.gap.isfinite().all()
    assert found.policy_g[0, :, 1].max() == 0


def test_baselines_are_what_they_are_called():
    G, D = game(2, 3)
    plain = G[:, 0]
    scores = baselines(G, D, plain)
    torch.testing.assert_close(scores["MI"], plain.log_softmax(1) + D.log_softmax(2)[:, :, 0])
    torch.testing.assert_close(scores["SC"].exp(), G.softmax(2)[:, 0] / G.softmax(2)[:, 1])


def test_equal_candidates_are_merged_and_their_mass_summed():
    names, logp = merged(["a", "b", "a"], torch.tensor([[0.2, 0.3, 0.5]]).log())
    assert names == ["a", "b"]
    torch.testing.assert_close(logp.exp(), torch.tensor([[0.7, 0.3]]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda G, D: (G[:, :1], D), "do not fit"),
        (lambda G, D: (G[:, :, :0], D[:, :0]), "without a candidate"),
        (lambda G, D: (G * math.nan, D), "NaN"),
        (lambda G, D: (G - math.inf, D), "all have probability 0"),
    ],
)
def test_bad_scores_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        EquilibriumRanker().rank(*change(*game()))


def test_bad_settings_are_named():
    for settings, message in (
        ({"lambda_g": -1}, "lambda_g=-1 must not be negative"),
        ({"eta_d": 0}, "eta_d=0 must be positive"),
        ({"normalise": "bth"}, "did you mean both"),
        ({"lambda_g": 0, "refine": 5}, "refine=5 needs lambda_g and lambda_d above 0"),
        ({"lambda_d": 0, "refine": 1}, "refine=1 needs lambda_g and lambda_d above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            EquilibriumRanker(**settings)
    with pytest.raises(ValueError, match="no candidate"):
        merged([], torch.zeros(0))


def test_each_side_has_its_own_lambda_and_eta():
    (G, D), settings = game(1), {"lambda_g": 0.3, "lambda_d": 0.05, "eta_g": 0.7, "eta_d": 0.2}
    found = EquilibriumRanker(iterations=30, tol=0, **settings).rank(G, D)
    g, d = (side[0] for side in initial(G, D))
    log_g, log_d, sum_g, sum_d = g.log(), d.log(), 0, 0
    for t in range(1, 31):
        sum_g, sum_d = sum_g + g, sum_d + d
        g = torch.softmax((sum_d.T / (2 * t) + 0.3 * log_g) / (1 / (0.7 * t) + 0.3), 1)
        d = torch.softmax((sum_g.T / (2 * t) + 0.05 * log_d) / (1 / (0.2 * t) + 0.05), 1)
    torch.testing.assert_close(found.policy_g[0], g, atol=1e-12, rtol=0)
    torch.testing.assert_close(found.policy_d[0], d, atol=1e-12, rtol=0)
    assert found.iterations == 30


def worth(policy, Q, log0, lam):
    """``π·Q - λ KL(π ‖ π⁰)`` of one row, in plain numbers."""
    kl = sum(p * (math.log(p) - q) for p, q in zip(policy.tolist(), log0.tolist(), strict=True) if p > 0)
    return float(policy @ Q) - (lam * kl if lam else 0.0)


def answered(Q, log0, lam):
    """The best response to Q: softmax, or the best of what is possible where nothing is paid for keeping to π⁰."""
    if lam:
        return torch.softmax(Q / lam + log0, 0)
    return torch.nn.functional.one_hot(Q.masked_fill(log0 == -math.inf, -math.inf).argmax(), len(Q)).double()


@pytest.mark.parametrize(
    ("lambda_g", "lambda_d"), [(0.1, 0.4), (0.0, 0.2), (0.3, 0.0), (math.inf, 0.2), (0.2, math.inf)]
)
def test_the_gap_is_what_best_responses_gain(lambda_g, lambda_d):
    G, D = game(3, 4)
    G[1, :, 2] = -math.inf  # an answer that the model rules out
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[2, 3] = False
    found = EquilibriumRanker(lambda_g=lambda_g, lambda_d=lambda_d, iterations=7, tol=0).rank(G, D, mask)
    for b, k in enumerate((4, 4, 3)):
        g0, d0 = (side[0] for side in initial(G[b : b + 1, :, :k].clone(), D[b : b + 1, :k]))
        if b == 1:  # 0 / 0 across the conditions: still ruled out
            share_g = share(G[b : b + 1].exp(), 2)[0]
            share_g[:, [0, 1, 3]] /= share_g[:, [0, 1, 3]].sum(0, keepdim=True)
            g0 = share(share_g, 1)
        g, d = found.policy_g[b, :, :k], found.policy_d[b, :k]
        gain = 0.0
        for policy, Q, log0, lam in (
            *((g[v], d[:, v] / 2, g0[v].log(), lambda_g) for v in range(2)),
            *((d[y], g[:, y] / 2, d0[y].log(), lambda_d) for y in range(k)),
        ):
            if lam < math.inf:
                gain += worth(answered(Q, log0, lam), Q, log0, lam) - worth(policy, Q, log0, lam)
        assert float(found.gap[b]) == pytest.approx(gain, abs=1e-10)


def test_it_is_looked_every_hundred_iterations_whether_all_gaps_are_small():
    G, D = game(20, 4, seed=1)
    early = EquilibriumRanker(tol=5e-2).rank(G, D)
    assert early.iterations % 100 == 0
    assert early.iterations > 100
    before = EquilibriumRanker(tol=0, iterations=early.iterations - 100).rank(G, D)
    assert before.gap.max() >= 5e-2 > before.gap.min()  # one that is small does not stop the others
    assert EquilibriumRanker(tol=0, iterations=150).rank(G, D).iterations == 150


def test_masked_candidates_come_last_on_both_sides_and_equals_in_their_order():
    G, D = torch.zeros(1, 2, 5), torch.zeros(1, 5, 2)
    mask = torch.tensor([[True, False, True, False, True]])
    found = EquilibriumRanker(iterations=10).rank(G, D, mask)
    assert found.order_g.tolist() == found.order_d.tolist() == [[0, 2, 4, 1, 3]]
    assert found.policy_g[0, :, [1, 3]].abs().max() == 0


def test_settings_are_those_of_the_paper_but_for_the_normalisation():
    assert EquilibriumRanker() == EquilibriumRanker(
        lambda_g=0.1, lambda_d=0.1, eta_g=0.1, eta_d=0.1, iterations=5000, tol=1e-6, normalise="both", refine=0
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda G, D: (G[0], D, None), "do not fit"),
        (lambda G, D: (G, D[:, :, :1], None), "do not fit"),
        (lambda G, D: (G, D[:2], None), "do not fit"),
        (lambda G, D: (G, D[:, :4], None), "do not fit"),
        (lambda G, D: (G, D, torch.ones(3, 4)), r"mask \(3, 4\) does not fit 3 questions of 5"),
        (lambda G, D: (G, D, torch.tensor([[1] * 5, [0] * 5, [0] * 5])), r"without a candidate: \[1, 2\]"),
        (lambda G, D: (G, D.index_fill(1, torch.tensor([2]), math.nan), None), "NaN"),
        (lambda G, D: (G.index_fill(2, torch.tensor([2]), math.nan), D, None), "NaN"),
        (lambda G, D: (G, D.index_fill(1, torch.tensor([2]), -math.inf), None), "either correct or incorrect"),
        (lambda G, D: (torch.cat([G[:2], G[2:] - math.inf]), D, None), "all have probability 0"),
    ],
)
def test_every_score_that_does_not_fit_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        EquilibriumRanker().rank(*change(*game()))


@pytest.mark.parametrize("name", ["lambda_g", "lambda_d", "tol", "refine", "eta_g", "eta_d", "iterations"])
def test_every_setting_has_its_least_value(name):
    positive = name in ("eta_g", "eta_d", "iterations")
    with pytest.raises(ValueError, match=f"{name}=-1 must"):
        EquilibriumRanker(**{name: -1})
    with pytest.raises(ValueError, match=f"{name}=nan must"):
        EquilibriumRanker(**{name: math.nan})
    if positive:
        with pytest.raises(ValueError, match=f"{name}=0 must be positive"):
            EquilibriumRanker(**{name: 0})
    else:
        assert getattr(EquilibriumRanker(**{name: 0}), name) == 0
    assert getattr(EquilibriumRanker(**{name: 1}), name) == 1
