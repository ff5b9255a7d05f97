"""The recipe of ViDA: what each claim can lose to, which pictures are left out, and runs that are read back."""

import numpy as np
import pytest

from rankwise.bench.continual import vida as recipe
from rankwise.bench.speed import streams as speed
from rankwise.data import Images

SEEDS = 5
RIGHT = {
    recipe.SOURCE_ARM: 0.44, "TENT": 0.43, "CoTTA": 0.42, recipe.AVERAGED: 0.5, "low only": 0.42, "high only": 0.42,
    "one branch of both ranks": 0.42, recipe.PLAIN: 0.41, recipe.FULL: 0.40, "as released (wide scale 1)": 0.41,
    recipe.WRONG: 0.41, recipe.SOURCE_ARM + recipe.WARM: 0.42, recipe.PLAIN + recipe.WARM: 0.40,
    recipe.FULL + recipe.WARM: 0.39,
}  # fmt: skip


def claims(drift=0.0, clean=0.18, **changes):
    """Claims where every arm errs so much in every round, and a little differently by seed."""
    shift = np.linspace(-0.001, 0.001, SEEDS)[:, None]
    names = {"full": recipe.FULL, "wrong": recipe.WRONG, "plain": recipe.PLAIN, "warm": recipe.FULL + recipe.WARM,
             "source": recipe.SOURCE_ARM, "low": "low only", "high": "high only", "tent": "TENT", "cotta": "CoTTA",
             "one": "one branch of both ranks", "warm_source": recipe.SOURCE_ARM + recipe.WARM}  # fmt: skip
    means = RIGHT | {names[k]: v for k, v in changes.items()}
    rounds = np.repeat(np.arange(recipe.ROUNDS) - 1, recipe.KINDS) * drift
    errors = {arm: m + shift + (rounds if arm == recipe.FULL else 0) for arm, m in means.items()}
    errors = {arm: np.broadcast_to(e, (SEEDS, recipe.ROUNDS * recipe.KINDS)) for arm, e in errors.items()}
    before = np.full(SEEDS, 0.18)
    return recipe._claims(errors, {recipe.FULL: np.full(SEEDS, clean)}, before)


def test_what_was_published_holds_every_claim():
    assert all(c.held for c in claims())


@pytest.mark.parametrize(("changes", "lost"), [
    ({"full": 0.45, "warm": 0.39}, ["source model", "TENT", "CoTTA", "homeostasis", "control: the wrong"]),
    ({"tent": 0.39}, ["TENT"]),
    ({"cotta": 0.39}, ["CoTTA"]),
    ({"low": 0.45}, ["narrow"]),
    ({"high": 0.45}, ["wide one"]),
    ({"one": 0.40}, ["same number of parameters"]),
    ({"plain": 0.40}, ["homeostasis"]),
    ({"wrong": 0.40}, ["control: the wrong"]),
    ({"warm": 0.405}, ["warm-up"]),
    ({"warm_source": 0.38}, ["adapting still adds"]),
    ({"drift": 0.01}, ["the last round"]),
    ({"clean": 0.195}, ["clean pictures"]),
])  # fmt: skip
def test_each_claim_can_fail_alone(changes, lost):
    failed = [c.text for c in claims(**changes) if not c.held]
    assert len(failed) == len(lost)
    assert all(word in text for word, text in zip(lost, failed, strict=True))


def test_a_stream_that_does_not_hurt_cannot_tell():
    failed = next(c for c in claims(source=0.27, full=0.2, low=0.2, high=0.2) if not c.held)
    assert failed.control
    assert "hurts" in failed.text


def test_arms_of_one_number_of_parameters_have_it():
    low, high = recipe.OURS[recipe.PLAIN][1]
    assert recipe.OURS["one branch of both ranks"][1] == (0, low + high)


def test_the_pictures_on_which_rates_were_chosen_are_left_out(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    images = Images.of(rng.integers(0, 256, (40, 32, 32, 3)).astype(np.uint8), labels=np.arange(40) % 10)
    monkeypatch.setattr(recipe, "read_images", lambda *_, **__: images)
    for name, value in {"CHOSEN": 15, "CLEAN": 20, "PICTURES": 4, "KINDS": 1, "WARMED": 1, "BATCH": 4}.items():
        monkeypatch.setattr(recipe, name, value)
    held = np.load(recipe._prepared(tmp_path / "pictures.npz", None))
    chosen = images.head(15)
    known = {chosen[i].tobytes() for i in range(len(chosen))}
    assert len(held["clean"]) == 20
    assert not known & {picture.tobytes() for picture in held["clean"]}
    assert held["gaussian_noise"].shape == (4, 32, 32, 3)


def test_speed_needs_its_factor_and_the_same_error():
    def held(gain, worse):
        (claim,) = speed._claims({"ours": gain, "loop": 1.0}, {"ours": 0.3 + worse, "loop": 0.3}, "loop")
        return claim.held

    assert held(2.0, 0.0)
    assert held(2.5, -0.009)
    assert not held(1.9, 0.0)
    assert not held(2.5, 0.02)
