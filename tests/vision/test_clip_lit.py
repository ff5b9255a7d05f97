"""The enhancer as people use it: learn, enhance, score, keep."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from rankwise.vision import BacklitEnhancer
from small_models import clip as small_clip
from small_models import vit

TRY = {
    "preset": "small", "rounds": 1, "size_network": 32, "size_prompts": 32, "most": 64, "first_steps": 2,
    "warm_steps": 1, "network_steps": 2, "prompt_steps": 2, "batch_network": 2, "batch_prompts": 4,
}  # fmt: skip
RNG = np.random.default_rng(0)
WELL = RNG.integers(100, 256, (4, 40, 40, 3)).astype(np.uint8)
DARK = (RNG.integers(100, 256, (4, 40, 40, 3)) // 8).astype(np.uint8)
PICTURE = RNG.integers(0, 256, (90, 70, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def learned():
    return BacklitEnhancer("clip-cifar10", **TRY).fit(DARK, WELL)


def constant(enhancer, value):
    """An enhancer whose network says the same of every pixel."""
    with torch.no_grad():
        for p in enhancer.network.parameters():
            p.zero_()
        enhancer.network.last.bias.fill_(value)
    return enhancer


@pytest.fixture
def still(learned, tmp_path):
    learned.save(tmp_path / "still")
    return constant(BacklitEnhancer.load(tmp_path / "still"), 1.0)


@pytest.mark.parametrize("size", [(40, 50), (90, 70), (300, 200)])  # above 64 through a copy
def test_an_illumination_of_one_gives_every_pixel_back(still, size):
    picture = RNG.integers(0, 256, (*size, 3)).astype(np.uint8)
    assert np.abs(still.enhance(picture).astype(int) - picture).max() <= 0
    deep = RNG.integers(0, 65536, (*size, 3)).astype(np.uint16)
    assert np.abs(still.enhance(deep).astype(int) - deep).max() <= 1


def test_half_the_illumination_is_twice_the_light(still):
    constant(still, 0.5)
    assert np.array_equal(still.enhance(DARK[0]), DARK[0] * 2)
    assert still.illumination(PICTURE) == pytest.approx(np.full((90, 70), 0.5), abs=1e-5)


def test_no_illumination_is_black_and_white_and_never_nan(still):
    constant(still, 0.0).settings = replace(still.settings, least=0.0)  # the formula alone
    found = still.enhance(PICTURE.astype(np.float32) / 255)
    assert set(np.unique(found)) <= {0.0, 1.0}


@pytest.mark.parametrize("size", [(40, 50), (300, 200)])  # above 64 through a copy
def test_no_pixel_gets_more_than_one_over_the_least_of_maps_times_its_light(still, size):
    constant(still, 0.0)
    assert still.settings.least == 0.1
    picture = np.arange(np.prod(size)).reshape(*size, 1).repeat(3, -1) % 20
    assert np.array_equal(still.enhance(picture.astype(np.uint8)), picture * 10)
    assert still.illumination(picture.astype(np.uint8)).min() == pytest.approx(0.1)


def test_an_enhancer_that_compared_contents_by_a_function_reloads_and_asks_for_it_to_learn_on(tmp_path):
    own = BacklitEnhancer("clip-cifar10", identity=lambda pictures: [pictures] * 5, **TRY).fit(DARK, WELL)
    again = BacklitEnhancer.load(own.save(tmp_path / "own"))
    assert np.array_equal(again.enhance(PICTURE), own.enhance(PICTURE))
    with pytest.raises(ValueError, match="identity=…"):
        again.fit(DARK, WELL)


def test_a_function_that_gives_another_number_of_stages_is_refused():
    with pytest.raises(ValueError, match="identity gives 4 tensors of a picture; 5 are needed"):
        BacklitEnhancer("clip-cifar10", identity=lambda pictures: [pictures] * 4, **TRY).fit(DARK, WELL)


def test_one_picture_is_not_taken_for_a_stack_of_grey_ones(learned):
    with pytest.raises(ValueError, match=r"one of shape \(90, 70, 3\)"):
        learned.score(PICTURE)


def test_a_picture_comes_back_in_the_form_in_which_it_came(learned, tmp_path):
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    array = learned.enhance(PICTURE)
    assert np.array_equal(np.asarray(learned.enhance(Image.fromarray(PICTURE))), array)
    assert np.array_equal(learned.enhance(tmp_path / "a.png"), array)
    assert learned.enhance(PICTURE[..., 0]).shape == (90, 70)


def test_the_map_of_a_large_picture_is_near_the_networks_own(learned):
    """Of what the network knows, which is smooth pictures."""
    y, x = np.mgrid[0:120, 0:120] / 120
    picture = np.repeat((0.2 + 0.6 * x * y)[..., None], 3, -1).astype(np.float32)
    with torch.inference_mode():
        whole = learned.network(torch.from_numpy(picture).permute(2, 0, 1)[None])[0, 0].numpy()
    assert np.abs(learned.illumination(picture) - whole).mean() < 0.05


def test_scores_are_probabilities_and_those_of_the_history(learned):
    found = learned.score(DARK)
    assert found.shape == (4,)
    assert ((found >= 0) & (found <= 1)).all()
    assert found.mean() == pytest.approx(learned.history[-1]["dark"], abs=0.02)


def test_what_is_kept_reloads_to_the_same_outputs(learned, tmp_path):
    again = BacklitEnhancer.load(learned.save(tmp_path / "kept"))
    assert np.array_equal(again.enhance(PICTURE), learned.enhance(PICTURE))
    assert np.array_equal(again.score(DARK), learned.score(DARK))
    assert again.history == learned.history
    assert again.settings == learned.settings
    assert sorted(p.name for p in (tmp_path / "kept").iterdir() if p.name[0] != ".") == [
        "enhancer.json", "enhancer.safetensors",
    ]  # fmt: skip


def test_enhancing_loads_no_clip(learned, tmp_path, monkeypatch):
    learned.save(tmp_path / "kept")
    monkeypatch.setattr("rankwise.vision.clip_lit.load_model", lambda name: pytest.fail("a CLIP was loaded"))
    BacklitEnhancer.load(tmp_path / "kept").enhance(PICTURE)


def test_a_loaded_clip_needs_its_tokens_and_is_asked_for_when_scoring(tmp_path):
    clip = small_clip(layers=2)
    with pytest.raises(ValueError, match="tokens="):
        BacklitEnhancer(clip, **TRY)
    kept = BacklitEnhancer(clip, tokens=[47, 3, 48], **TRY).fit(DARK, WELL)
    again = BacklitEnhancer.load(kept.save(tmp_path / "kept"))
    assert np.array_equal(again.enhance(PICTURE), kept.enhance(PICTURE))
    with pytest.raises(ValueError, match="clip=…"):
        again.score(DARK)
    found = BacklitEnhancer.load(tmp_path / "kept", clip=clip).score(DARK)
    assert found == pytest.approx(kept.score(DARK), abs=1e-6)


def test_folders_decide_what_is_dark_and_names_say_nothing(tmp_path):
    for i, (dark, well) in enumerate(zip(DARK, WELL, strict=True)):
        for folder, picture in (("one/normal/DIV2K", dark), ("two/backlit", well)):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(tmp_path / folder / f"high_output_{i}.png")
    named = BacklitEnhancer("clip-cifar10", **TRY).fit(tmp_path / "one", str(tmp_path / "two"))
    arrays = BacklitEnhancer("clip-cifar10", **TRY).fit(DARK, WELL)
    assert named.history == arrays.history


def test_progress_is_told_stage_by_stage():
    seen = []
    BacklitEnhancer("clip-cifar10", **TRY).fit(DARK, WELL, on_event=lambda *event: seen.append(event))
    assert [(e[0], e[1]) for e in seen if e[2] == e[3]] == [
        ("prompts", "start"), ("network", "warm-up"), ("network", "round 1"), ("prompts", "round 1"),
    ]  # fmt: skip


def test_nothing_learned_is_said():
    fresh = BacklitEnhancer("clip-cifar10")
    for act in (lambda: fresh.enhance(PICTURE), lambda: fresh.score(DARK), lambda: fresh.save("x")):
        with pytest.raises(ValueError, match="nothing is learned yet"):
            act()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"preset": "smal"}, "did you mean small"),
        ({"lr": 1.0}, "unknown setting 'lr'"),
        ({"identity": "vti"}, "RN101/openai"),
        ({"rounds": -1}, "rounds=-1"),
        ({"preset": None}, "unknown preset 'None'"),
        ({"tokens": "X X"}, "tokens='X X'; whole numbers"),
        ({"tokens": [47, 3.5, 48]}, "whole numbers"),
        ({"mean": [0.5]}, r"mean=\[0.5\]; three numbers"),
        ({"std": (0.0, 0.2, 0.2)}, "three numbers above 0"),
    ],
)
def test_options_are_refused_by_name(given, said):
    with pytest.raises(ValueError, match=said):
        BacklitEnhancer("clip-cifar10", **given)


def test_what_is_no_clip_is_refused():
    with pytest.raises(ValueError, match="is no CLIP"):
        BacklitEnhancer(vit(), tokens=[1, 2, 3])
    with pytest.raises(ValueError, match="vit-cifar10"):
        BacklitEnhancer("vit-cifar10", **TRY).fit(DARK, WELL)


@pytest.mark.parametrize("damage", ["json", "network", "prompts", "nan", "setting"])
def test_a_damaged_folder_is_refused_by_name(learned, tmp_path, damage):
    folder = learned.save(tmp_path / "kept")
    tensors, told = load_file(folder / "enhancer.safetensors"), json.loads((folder / "enhancer.json").read_text())
    if damage == "json":
        told = {}
    elif damage == "network":
        tensors.pop("network.last.bias")
    elif damage == "prompts":
        tensors.pop("prompts.rows")
    elif damage == "nan":
        tensors["network.last.bias"][0] = float("nan")
    else:
        told["settings"]["rounds"] = -3
    save_file(tensors, folder / "enhancer.safetensors")
    (folder / "enhancer.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match=r"enhancer\.(json|safetensors)"):
        BacklitEnhancer.load(folder)


def test_a_folder_of_something_else_is_never_replaced(learned, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="own"):
        learned.save(tmp_path / "own")
