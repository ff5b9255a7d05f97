"""What the recipe of G-Rank concludes: every claim by its own comparison, and both controls can fail."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from rankwise.bench.ranking import g_rank as recipe
from rankwise.bench.ranking.g_rank import MAIN, OURS
from rankwise.bench.speed import peers as speed
from rankwise.ranking import simulate

WOBBLE = (-0.2, 0.0, 0.2)  # by seed, alike in all arms: differences are certain


def summary(late, wobble, **changed):
    base = {
        "late": late, "counted": late, "tastes": late + 5, "early": 40, "distance": 10, "led": 0, "holding": 80,
        "reached": 50, "hearing": late, "deaf": late, "last": {"before": 60, "after": late},
    } | changed  # fmt: skip
    base = {
        k: v + wobble if isinstance(v, float | int) else {n: x + wobble for n, x in v.items()} for k, v in base.items()
    }
    return base | {"curve": [[1, 2], [late, late]]}


def found(**changed):
    """All claims hold, but for arms (named with _ for what is no letter or digit) whose values are replaced."""
    late = {OURS: 75, recipe.ISOLATED: 74, recipe.RELEASED: 76, recipe.SHUFFLED: 70, recipe.GOSSIPED: 71,
            recipe.LOCAL: 30, recipe.SERVER: 55, recipe.TASTES: 60, recipe.CHANCE: 40, recipe.GRADES: 99}  # fmt: skip
    values = {}
    for arm in recipe.arms():
        name = arm.partition(": ")[2]
        values[arm] = {"late": late.get(name, 75)}
        if arm.startswith("first"):
            values[arm] = {"late": 40}
        for kind, cost in (("inflation", 2), ("targeted", 3)):
            if name.startswith(kind):
                step = 1 + [f"{s:.0%}" for s in recipe.SHARES].index(name.split()[1].rstrip(","))
                ranker = name.partition(", ")[2]
                start = late.get(ranker, 75)
                values[arm] = {"late": start - cost * step, "led": 6 if ranker == recipe.GOSSIPED else 1}
    values[f"{MAIN}: {recipe.PUSH}"] |= {"early": 42}
    values[f"{MAIN}: targeted 10%, {recipe.PUSH}"] |= {"reached": 60}
    values[f"{MAIN}: {recipe.DEAF}"] |= {"deaf": 30, "hearing": 74}
    values[f"{MAIN}: {recipe.OFFLINE}"] |= {"last": {"before": 65, "after": 72}}
    for arm, replaced in changed.items():
        values[arm] = values[arm] | replaced
    return {arm: [summary(wobble=w, **v) for w in WOBBLE] for arm, v in values.items()}


NAMES = [
    "interest", "position", "counted", "control: shuffled", "control: first", "long", "isolation", "push", "poisoned",
    "offline", "deaf", "monotone", "targeted", "led", "inflation", "epic",
]  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "fails"),
    [
        ({}, []),
        ({f"interest: {recipe.GOSSIPED}": {"late": 75}}, ["interest"]),
        ({f"position: {recipe.SERVER}": {"late": 76}}, ["position"]),
        ({f"position: {recipe.TASTES}": {"late": 76}}, ["position"]),
        ({f"position: {recipe.LOCAL}": {"late": 76}, f"{MAIN}: {recipe.DEAF}": {"deaf": 76}}, ["position"]),
        ({f"position: {recipe.CHANCE}": {"late": 76}}, ["position"]),
        ({f"position: {OURS}": {"counted": 77}}, ["counted"]),
        ({f"interest: {recipe.SHUFFLED}": {"late": 75}}, ["control: shuffled"]),
        ({f"first: {OURS}": {"late": 44}}, ["control: first"]),
        ({f"position, long: {recipe.SHUFFLED}": {"late": 75}}, ["long"]),
        ({f"position, long: {recipe.GOSSIPED}": {"late": 75}}, ["long"]),
        ({f"position: {recipe.ISOLATED}": {"late": 75}}, ["isolation"]),
        ({f"position: {recipe.PUSH}": {"early": 40}}, ["push"]),
        ({f"position: targeted 10%, {recipe.PUSH}": {"reached": 50}}, ["poisoned"]),
        ({f"position: {recipe.OFFLINE}": {"last": {"before": 72, "after": 72}}}, ["offline"]),
        ({f"position: {recipe.OFFLINE}": {"last": {"before": 60, "after": 66}}}, ["offline"]),
        ({f"position: {recipe.DEAF}": {"deaf": 34}}, ["deaf"]),
        ({f"position: {recipe.DEAF}": {"hearing": 71}}, ["deaf"]),
        ({"position: inflation 30%": {"late": 72}}, ["monotone"]),
        ({"position: targeted 50%": {"late": 75}}, ["monotone"]),
        ({"position: inflation 10%": {"late": 71.9}}, ["targeted", "inflation"]),
        ({f"position: targeted 10%, {recipe.GOSSIPED}": {"led": 1}}, ["led"]),
        ({f"position: inflation 10%, {recipe.GOSSIPED}": {"late": 70}}, ["inflation"]),
        ({f"position: {recipe.EPIC}": {"holding": 100}}, ["epic"]),
    ],
)  # fmt: skip
def test_each_claim_fails_by_its_own_comparison(changed, fails):
    claims = recipe._claims(found(**changed))
    assert [n for n, c in zip(NAMES, claims, strict=True) if not c.held] == fails
    assert [n for n, c in zip(NAMES, claims, strict=True) if c.control] == ["control: shuffled", "control: first"]
    assert all(c.found for c in claims)


def test_differences_are_paired_and_their_interval_is_students():
    a, b = [3.0, 5.0, 10.0], [1.0, 2.0, 6.0]
    low, high = stats.ttest_rel(a, b).confidence_interval(0.95)
    d = recipe._difference(a, b)
    assert d == pytest.approx((3.0, low, high))
    assert str(d) == f"+3.0 [{low:+.1f}, {high:+.1f}]"
    assert recipe._difference([1.0], [0.0]) == (1.0, -math.inf, math.inf)


def test_power_is_the_difference_that_a_test_sees_in_four_of_five_cases():
    rng = np.random.default_rng(0)
    spread = rng.normal(size=4)
    far = recipe._power(spread, np.zeros(4), 10)
    drawn = rng.normal(far, spread.std(ddof=1), (20_000, 10))
    seen = stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05
    exact = stats.nct.sf(stats.t.ppf(0.975, 9), 9, far / (spread.std(ddof=1) / 10**0.5))
    assert seen.mean() == pytest.approx(exact, abs=5 * (0.8 * 0.2 / 20_000) ** 0.5)  # 5 standard errors
    assert exact == pytest.approx(0.8, abs=0.005)  # the sum of two quantiles of t is near the noncentral one
    assert recipe._power(spread, np.zeros(4), 1) == math.inf


def test_arms_differ_from_ours_by_what_their_name_says():
    arms = recipe.arms()
    assert arms[f"{MAIN}: {OURS}"] == {"click": MAIN}
    assert arms["position: targeted 50%"] == {"click": MAIN, "attack": "targeted", "attackers": 100}
    assert arms["position: inflation 10%"]["attackers"] == 11  # of 111
    assert arms[f"position: inflation 10%, {recipe.GOSSIPED}"]["similarity"] == "equal"
    assert arms[f"position, long: {OURS}"]["searches"] == recipe.LONG
    for options in arms.values():
        simulate(**{**options, "nodes": 30, "searches": 2, "attackers": None})
    with_attack = [a for a, o in arms.items() if o.get("attackers")]
    assert all("%" in a for a in with_attack)


def test_what_ran_before_is_read_back(tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "NODES", 6)
    monkeypatch.setattr(recipe, "SEARCHES", 4)
    asked = {f"{MAIN}: {OURS}": {"click": MAIN}, f"{MAIN}: {recipe.PUSH}": {"click": MAIN, "gossip": "push"}}
    first = recipe._runs(tmp_path, asked, range(2), lambda *_: None)
    assert len(list(tmp_path.glob("*.json"))) == 4
    monkeypatch.setattr(recipe, "_measured", lambda asked: pytest.fail("it ran again"))
    assert recipe._runs(tmp_path, asked, range(2), lambda *_: None) == first
    one = simulate(nodes=6, searches=4, click=MAIN, seed=1)
    kept = first[f"{MAIN}: {OURS}"][1]
    assert kept["late"] == pytest.approx((100 * one.ndcg[2:].mean(0)).tolist(), rel=1e-3)
    assert recipe.summed(kept)["late"] == pytest.approx(100 * one.ndcg[2:].mean(), rel=1e-3)
    assert recipe.summed(kept)["deaf"] is None
    half = recipe.summed(kept | {"hears": "100000"})
    assert (half["hearing"], half["deaf"]) == (kept["late"][0], pytest.approx(np.mean(kept["late"][1:])))


# --- speed


def test_a_scan_of_the_log_scores_what_a_search_shows(monkeypatch):
    monkeypatch.setattr(speed, "CLICKS", 3_000)
    monkeypatch.setattr(speed, "PEERS", 20)
    log = speed.clicks()
    assert [c.counter for c in log if c.node == "node0003"] == list(range(sum(c.node == "node0003" for c in log)))
    _, peer = speed._merged(log, speed.MemoryLog())
    assert len(peer) == 3_000
    scanned = speed._scanned(peer, log, "term00000")
    assert scanned == {f.item: f.score for f in peer.search("term00000")}
    assert len(scanned) == 10


def test_claims_on_speed_hold_by_limits_and_equal_lists(monkeypatch):
    for name, value in speed.RECIPE.smoke.items():
        monkeypatch.setattr(speed, name, value)
    rows, claims = speed.network()
    assert [c.held for c in claims] == [True, True]
    monkeypatch.setattr(speed, "LIMITS", speed.LIMITS | {"network": 0.0, "search": 0.0, "insertion": 1e12})
    monkeypatch.setattr(speed, "looped", lambda **how: simulate(**how, seed=1, keep=True).lists)
    assert [c.held for c in speed.network()[1]] == [False, False]
    assert [c.held for c in speed.node()[1]] == [False, False]
    assert json.dumps(rows)


def test_the_picture_shows_mean_curves_and_the_cost_of_attackers():
    from rankwise.report.plots.ranking import network_learning

    learned, harmed = recipe._curves(found())
    assert learned[OURS] == ([1, 2], [75, 75])
    assert harmed["targeted"][0] == [0, 10, 20, 30, 40, 50]
    assert harmed["targeted"][1] == pytest.approx([75, 72, 69, 66, 63, 60])
    left, right = network_learning(learned, harmed).axes
    assert [line.get_label() for line in left.lines] == list(learned)
    assert [line.get_ydata() for line in right.lines] == [pytest.approx(y) for _, y in harmed.values()]


def test_one_list_that_is_not_the_simulations_is_enough():
    assert recipe._same_lists("1111").held
    claim = recipe._same_lists("1011")
    assert (claim.held, claim.found) == (False, "3 of 4 lists")
