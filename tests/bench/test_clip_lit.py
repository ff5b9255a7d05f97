"""CLIP-LIT's recipe: what each claim can lose to, and that every picture counts alike."""

import numpy as np
import pytest
from sklearn.datasets import load_sample_images

from rankwise.bench.vision import clip_lit as recipe
from rankwise.bench.vision.clip_lit import (
    BEST,
    CURVE,
    FIRST,
    FULL,
    GAMMA,
    INPUT,
    LEARNED,
    MEASURES,
    PLAIN,
    SHUFFLED,
    SUMMED,
)

SEEDS = 5
GAINED = {FULL: 20.0, FIRST: 18.0, SUMMED: 17.0, SHUFFLED: 12.0, INPUT: 8.0, BEST: 22.0}
ORDER = {"dark": 0.9, "result": 0.4, "well": 0.1}


def runs(order=ORDER, ladder=1.0, blind=False, **changes):
    """Every arm so good, a little different by seed and by picture."""
    names = {"full": FULL, "first": FIRST, "shuffled": SHUFFLED, "input": INPUT, "best": BEST, "gamma": GAMMA,
             "curve": CURVE, "summed": SUMMED}  # fmt: skip
    means = GAINED | {names[k]: v for k, v in changes.items()}
    told = {"counts": {"dark": 9, "well": 9, "scenes": 2, "backlit": 2}, "held": [order], "ladder": ladder}
    found = {}
    for arm in (*LEARNED, *PLAIN):
        for seed in range(SEEDS):
            psnr = [means.get(arm, 15.0) + 0.1 * seed + d for d in (-0.5, 0.5)]
            one = {"psnr": psnr, "ssim": [0.5, 0.7], "perceptual": [0.1, 0.3]} | (
                {"piqe": [40.0, 60.0]} if blind else {}
            )
            found[f"{arm} {seed}"] = {"scenes": one, "backlit": one} | (told if arm in LEARNED else {})
    return found


def lost(**changes):
    return [c.text for c in recipe.judge(runs(**changes), seeds=SEEDS).claims if not c.held]


def test_what_was_published_holds_every_claim():
    assert lost() == []


@pytest.mark.parametrize(("changes", "said"), [
    ({"best": 9.0}, ["control: the best gamma"]),
    ({"first": 21.0}, ["rounds of prompts"]),
    ({"summed": 21.0}, ["the mean of the identity loss"]),
    ({"shuffled": 21.0}, ["control: with labels shuffled"]),
    ({"gamma": 21.0}, ["nearer than by gamma", "darkened foregrounds nearer"]),
    ({"curve": 21.0}, ["than by a curve"]),
    ({"order": ORDER | {"result": 0.95}}, ["scores of held-out pictures are in order"]),
    ({"ladder": 0.8}, ["every halving of the light"]),
])  # fmt: skip
def test_each_claim_can_be_lost(changes, said):
    found = lost(**changes)
    assert len(found) == len(said)
    assert all(word in text for word, text in zip(said, found, strict=True))


def test_a_row_is_the_mean_over_pictures_and_its_spread_over_seeds():
    evidence = recipe.judge(runs(), seeds=SEEDS)
    row = next(r for r in evidence.rows if r[0] == INPUT)
    assert row[1:4] == ["8.20±0.16", "0.600±0.000", "0.200±0.000"]
    assert len(evidence.header) == len(row) == 1 + 2 * (len(MEASURES) - 1)


def test_a_score_without_reference_is_a_column_where_it_was_measured():
    evidence = recipe.judge(runs(blind=True), seeds=SEEDS)
    assert evidence.header[4] == "PIQE, no reference, held-out scenes"
    assert [row[4] for row in evidence.rows] == ["50.0±0.0"] * len(evidence.rows)


def test_results_are_drawn_between_what_was_and_what_should_be(tmp_path):
    pictures = tmp_path / "pictures.npz"
    for arm in (*LEARNED, *PLAIN):
        np.save(recipe._shown(pictures, arm), np.zeros((2, 2, 8, 8, 3), np.uint8))
    figure = recipe.drawn(pictures)
    labels = [a.get_ylabel() for a in figure.axes if a.get_ylabel()]
    assert labels == [INPUT, GAMMA, CURVE, FULL, FIRST, SHUFFLED, "well-lit shot"]
    assert len(figure.axes) == 2 * len(labels)


def test_distortion_is_seen_without_the_truth():
    pytest.importorskip("pypiqe", reason="pip install pypiqe")
    picture = load_sample_images().images[0][:256, :256].astype(float)
    noisy = picture + np.random.default_rng(0).normal(0, 40, picture.shape)
    clean, worse = (recipe._blind(p.clip(0, 255).astype(np.uint8)) for p in (picture, noisy))
    assert clean < worse < 100.0 == recipe._blind(np.zeros((64, 64, 3), np.uint8))


def test_equal_pictures_have_a_number_too(tmp_path):
    pytest.importorskip("skimage")
    picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    parts = recipe.Split(*[picture[None]] * 2, {t: [(picture, picture)] for t in recipe.TESTS}, *[picture[None]] * 2)
    asked = recipe.Asked(arm=INPUT, seed=1, pictures=tmp_path, rounds=1, steps=(), most=1)
    found = recipe._measured(asked, lambda before, truth: before, parts)
    assert found["scenes"]["psnr"] == [100.0]
