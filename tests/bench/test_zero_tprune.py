"""The recipes of fewer tokens: verdicts, what is read back, arms of equal cost."""

import numpy as np
import pytest

from rankwise.bench import recipes
from rankwise.bench.compression import zero_tprune as recipe
from rankwise.bench.shared.measured import plain
from rankwise.bench.speed import tokens as speed
from rankwise.compression import TowerShape

DEIT_S = TowerShape(
    depth=12, width=384, heads=6, inner=384, hidden=1536, patches=196, prefix=1, embedding=196 * 768 * 384
)
N = 2000


def right(**shares):
    """Each arm right on so many of 2,000 pictures, at every target; the same pictures first."""
    made = {recipe.FULL: np.arange(N) < 0.8 * N}
    for kind, share in shares.items():
        for t in recipe.TARGETS:
            made[f"{NAMES[kind]} {t}"] = np.arange(N) < share * N
    return {k: v.astype(float) for k, v in made.items()}


NAMES = {
    "random": recipe.RANDOM, "votes": "votes", "rms": "+ root mean square", "filtered": recipe.BEFORE,
    "ours": recipe.OURS, "alike": recipe.ALIKE, "cls": recipe.CLS, "merged": recipe.MERGED,
}  # fmt: skip
LADDER = {
    "random": 0.70, "votes": 0.76, "rms": 0.77, "filtered": 0.78, "ours": 0.797, "alike": 0.75, "cls": 0.76,
    "merged": 0.77,
}  # fmt: skip


def test_the_published_ladder_holds_every_claim():
    assert all(c.held for c in recipe._claims(right(**LADDER), 1.4))


@pytest.mark.parametrize(("change", "lost"), [
    ({"random": 0.76}, ["control"]),
    ({"rms": 0.74}, ["root mean square"]),
    ({"filtered": 0.75}, ["filtered"]),
    ({"filtered": 0.797}, ["similar tokens first"]),
    ({"alike": 0.8}, ["similar tokens alone"]),
    ({"cls": 0.8}, ["attention to CLS"]),
    ({"merged": 0.8}, ["merging"]),
    ({"ours": 0.79}, ["0.4 points are lost"]),
])  # fmt: skip
def test_each_claim_can_fail_alone(change, lost):
    failed = [c.text for c in recipe._claims(right(**LADDER | change), 1.4) if not c.held]
    assert len(failed) == len(lost)
    assert all(word in text for word, text in zip(lost, failed, strict=True))


@pytest.mark.parametrize(("share", "held"), [(0.759, True), (0.757, False)])
def test_at_most_so_many_points_worse_is_the_whole_interval_within_the_margin(share, held):
    # -.1 ± .14 and -.3 ± .24 points of two thousand pictures: .4 is the margin
    claims = recipe._claims(right(**LADDER | {"rms": share, "filtered": 0.78}), 1.4)
    assert next(c.held for c in claims if "root mean square" in c.text) == held


def test_a_gain_below_what_was_asked_does_not_hold():
    assert next(c.text for c in recipe._claims(right(**LADDER), 1.2) if not c.held).startswith("and throughput")


def test_which_pictures_are_right_is_read_back_as_it_was():
    drawn = np.random.default_rng(0).random(203) < 0.5
    packed = np.packbits(drawn).tobytes().hex()
    assert np.array_equal(recipe._unpacked(packed, 203), drawn)


def test_all_arms_of_a_target_cost_about_the_same_and_never_more():
    dense = DEIT_S.macs([197] * 12)
    for name, (schedule, _) in recipe._arms(DEIT_S, 2).items():
        if schedule is not None:
            target = next(t for t in recipe.TARGETS if f" {t}" in name)
            share = DEIT_S.macs(schedule.counts(patches=196, prefix=1, depth=12)) / dense
            assert target - 0.02 < share <= target, name


def test_the_recipe_asks_for_data_and_offers_a_small_run():
    located = recipes()["zero-tprune"]["accuracy"]
    assert located.recipe.smoke["MODEL"] == ""
    with pytest.raises(ValueError, match="no such folder of data"):
        located.check(None, data=located.place / "none")


def test_gains_are_of_neighbours_in_time():
    seconds = {"dense": [1.0, 4.0, 2.0], "Zero-TPrune": [0.5, 2.0, 2.0]}
    assert speed._gain("Zero-TPrune", seconds) == 2.0


def test_speed_claims_are_judged_by_the_limit_that_the_cost_sets():
    gains = {"Zero-TPrune": 1.4, "keep = 1": 1.0, "random tokens": 1.45}
    held = [c.held for c in speed._claims(gains, {"Zero-TPrune": 0.65}, equal=True)]
    assert held == [True, True, True, True]
    held = [c.held for c in speed._claims(gains, {"Zero-TPrune": 0.5}, equal=False)]
    assert held == [False, True, False, True]
    slow = gains | {"Zero-TPrune": 1.25, "keep = 1": 0.9}
    assert [c.held for c in speed._claims(slow, {"Zero-TPrune": 0.65}, equal=True)] == [True, False, False, False]


def test_gains_are_of_the_middle_batches_and_rows_are_judged_alone(monkeypatch):
    monkeypatch.setattr(recipe, "TARGETS", (recipe.MAIN,))
    assert recipe._gains({recipe.FULL: [1.0, 9.0, 2.0], "a": [0.5, 1.0, 8.0]}) == {recipe.FULL: 1.0, "a": 2.0}
    given = right(**LADDER) | {f"T={T} {recipe.MAIN}": np.ones(N) for T in recipe.ROUNDS}
    given[f"{recipe.RANDOM} {recipe.MAIN} 0"] = given.pop(f"{recipe.RANDOM} {recipe.MAIN}")
    packed = {k: {"right": np.packbits(v.astype(bool)).tobytes().hex()} for k, v in given.items()}
    told = {"title": "a model", "pictures": N, "heads": 3, "dropped": [[2, 0.5]], "threads": 1}
    seconds = {k: [1.0] for k in recipe.KINDS} | {recipe.FULL: [1.4]}
    evidence = recipe.judge(plain({"told": told, "seconds": seconds, **packed}), seeds=1)
    assert all(c.held for c in evidence.claims)
    assert len(evidence.rows) == 1 + len(recipe.KINDS) + len(recipe.ROUNDS)
