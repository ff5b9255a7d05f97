"""What the recipe of dual learning concludes: every claim by its own comparison, the control can fail, and its logs."""

import numpy as np
import pytest

from rankwise.bench.ranking import dla as recipe
from rankwise.bench.shared.measured import plain
from rankwise.ranking import err, ndcg

SCORES = {"naive": 0.60, "DLA": 0.70, "true propensities": 0.705, "of shuffled lists": 0.705, "PBM, by EM": 0.65,
          "UBM, by EM": 0.65, "LightGBM, positions": 0.66}  # fmt: skip
TURNED = [(1.0, 0.2)] * 5


def found(*, unbiased=0.70, seen=1.1, **changed):
    """Five seeds of every severity; ``changed`` are (nDCG, ERR), ``unbiased`` is naive's nDCG without bias."""
    truth = np.array([1.0, 0.5, 0.1])
    worth = {n: (s, s) for n, s in SCORES.items()} | {k.replace("_", " "): v for k, v in changed.items()}
    out = {}
    for eta in recipe.ETAS:
        of = worth | ({"naive": (unbiased, unbiased)} if eta == 0 else {})
        gain, rank = of["DLA"]
        scores = {n: (s, s, e) for n, (s, e) in of.items()}
        out[eta] = [
            recipe.Found(scores | {"DLA": (gain + k / 1e5, gain, rank)}, {"DLA": truth * [1, seen, seen]}, truth)
            for k in range(5)
        ]
    return out


@pytest.mark.parametrize(
    ("changed", "turned", "fails"),
    [
        ({}, TURNED, []),
        ({"naive": (0.71, 0.60)}, TURNED, [0]),
        ({"naive": (0.60, 0.71)}, TURNED, [1]),
        ({"true propensities": (0.72, 0.7)}, TURNED, [2]),
        ({"of shuffled lists": (0.72, 0.7)}, TURNED, [3]),
        ({"PBM, by EM": (0.71, 0.7)}, TURNED, [4]),
        ({"UBM, by EM": (0.71, 0.7)}, TURNED, [4]),
        ({"seen": 1.3}, TURNED, [5]),
        ({"seen": 0.7}, TURNED, [5]),
        ({"LightGBM, positions": (0.72, 0.7)}, TURNED, [6]),
        ({}, [*TURNED[:4], (0.5, 0.6)], [7]),
        ({"unbiased": 0.68}, TURNED, [8]),
        ({"unbiased": 0.72}, TURNED, [8]),
    ],
)
def test_each_claim_fails_by_its_own_comparison(changed, turned, fails):
    claims = recipe._claims(found(**changed), turned)
    assert [c.control for c in claims] == [False] * 8 + [True]
    assert [i for i, c in enumerate(claims) if not c.held] == fails


def test_a_row_a_ranker_has_all_its_scores_and_one_that_is_not_installed_says_what_to_install(monkeypatch):
    for there, more in ((True, []), (False, ["XGBoost, unbiased: pip install xgboost-cpu"])):
        monkeypatch.setattr(recipe, "find_spec", lambda name, there=there: there or None)
        rows = recipe._rows(found())
        assert [r[0] for r in rows] == [*SCORES, *more, "error of propensity (%), DLA"]
        assert {len(r) for r in rows} == {len(recipe.ETAS) + 3}
    assert rows[-1][1].startswith("10.0±")


def test_scores_leave_empty_queries_out_of_both_metrics():
    lists = recipe.Lists(np.zeros((4, 1)), np.array([0.0, 2, 0, 0]), np.array([0, 0, 1, 1]))
    kept = plain(recipe._scores(lists, np.array([2.0, 1, 1, 0])))
    assert np.isnan(kept["ndcg"][1])
    skip, zero, rank = recipe._summed(**kept)
    assert skip == pytest.approx(ndcg([0, 2], [2.0, 1.0], query=[0, 0])[0], rel=1e-3)
    assert skip == 2 * zero
    assert rank == pytest.approx(err([0, 2], [2.0, 1.0], query=[0, 0], max_grade=2)[0], rel=1e-3)


def test_lists_are_always_shown_in_one_order_but_for_the_shuffled_ones_whose_estimate_is_the_truth(monkeypatch):
    lists = recipe._generated(0)
    log, other = (recipe._log(lists, 1.0, 0, 3000, shuffled=s) for s in (False, True))
    places = [{tuple(row) for row in one["document"].reshape(-1, recipe.PLACES)} for one in (log, other)]
    assert len(places[0]) == len({frozenset(row) for row in places[0]}) == 60
    assert {frozenset(row) for row in places[1]} == {frozenset(row) for row in places[0]}
    assert len(places[1]) > 2000
    truth = recipe.PBM().of(recipe.PLACES) / 0.68
    monkeypatch.setattr(recipe, "SHUFFLED", 20_000)
    assert recipe._randomised(lists, 1.0, 0) == pytest.approx(truth, rel=0.12)
