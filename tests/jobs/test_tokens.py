"""Pictures through a model with fewer tokens: what is said before and after, what is drawn and written."""

import json
import shutil
import weakref

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from PIL import Image
from typer.testing import CliRunner

from attack import folders
from rankwise.cli.main import app
from rankwise.compression import zero_tprune
from rankwise.data import Images
from rankwise.jobs.tokens import prune_pictures
from rankwise.models import load, load_image_processor
from rankwise.report.plots.tokens import _faded
from small_models import bert, clip, saved, saved_with_processor, vit


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    saved_with_processor(vit(), root / "vit")
    (root / "photos").mkdir()
    for i in range(5):
        noise = np.random.default_rng(i).integers(0, 256, (40, 48, 3)).astype(np.uint8)
        Image.fromarray(noise).save(root / "photos" / f"{i}.png")
    return root


def test_predictions_and_patches_are_those_of_the_pruned_model(place, tmp_path):
    done = prune_pictures(place / "photos" / "3.png", tmp_path / "out", model=str(place / "vit"), flops=0.6)
    model = load(str(place / "vit")).eval()
    pixels = load_image_processor(str(place / "vit"))(Image.open(place / "photos" / "3.png"), return_tensors="pt")
    with torch.no_grad():
        before = model(**pixels).logits.softmax(-1)[0]
        with zero_tprune(model, target_flops=0.6) as pruned:
            after = model(**pixels).logits.softmax(-1)[0]
            kept = pruned.tokens(pixels["pixel_values"])
    (seen,) = done.seen
    assert (seen.image, seen.before, seen.after) == ("3.png", f"LABEL_{before.argmax()}", f"LABEL_{after.argmax()}")
    assert seen.p_before == pytest.approx(float(before.max()), abs=1e-5)
    assert seen.p_after == pytest.approx(float(after.max()), abs=1e-5)
    assert seen.kept == {k.layer: k.patches[0].tolist() for k in kept}
    assert done.share <= 0.6
    told = json.loads((tmp_path / "out" / "tokens.json").read_text())
    assert told["images"][0]["kept"] == {str(n): p for n, p in seen.kept.items()}
    assert (done.pixels[0].shape, done.grid) == ((32, 32, 3), (8, 8))


def test_the_command_writes_a_page_and_a_picture_each(place, tmp_path):
    words = [
        "tokens",
        str(place / "photos"),
        "--model",
        str(place / "vit"),
        "--limit",
        "2",
        "--out",
        str(tmp_path / "out"),
    ]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "p before" in done.output
    assert sorted(p.name for p in (tmp_path / "out").glob("*.*") if p.name[0] != ".") == [
        "01.png", "02.png", "report.html", "tokens.json",
    ]  # fmt: skip
    assert imread(tmp_path / "out" / "01.png").ndim == 3
    told = json.loads(CliRunner().invoke(app, [*words, "--json"]).output)
    assert len(told["images"]) == 2
    assert told["agreement"] == sum(i["before"] == i["after"] for i in told["images"]) / 2


def test_a_clip_chooses_among_captions(place, tmp_path):
    saved_with_processor(clip(), place / "clip")
    saved(bert(), place / "words")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (place / "clip" / name).write_bytes((place / "words" / name).read_bytes())
    picture = place / "photos" / "0.png"
    done = prune_pictures(picture, tmp_path / "a", model=str(place / "clip"), captions=["great film", "awful film"])
    assert done.seen[0].before in ("great film", "awful film")
    with pytest.raises(ValueError, match="chooses among captions"):
        prune_pictures(picture, tmp_path / "b", model=str(place / "clip"))
    with pytest.raises(ValueError, match="labels of its own"):
        prune_pictures(picture, tmp_path / "b", model=str(place / "vit"), captions=["a", "b"])
    assert not (tmp_path / "b").exists()


def test_patches_that_are_kept_are_shown_as_they_are_and_others_faded():
    pixels = np.random.default_rng(0).random((8, 8, 3))
    shown = _faded(pixels, (2, 2), kept=[0, 3], similar=[1])
    np.testing.assert_allclose(shown[:4, :4], pixels[:4, :4])
    np.testing.assert_allclose(shown[4:, 4:], pixels[4:, 4:])
    assert shown[4:, :4].min() > 0.65  # pale blue
    assert (shown[4:, :4, 2] > 0.83).all()
    assert shown[:4, 4:, 2].max() < 0.6  # tinted: no blue


@pytest.mark.parametrize(("change", "match"), [
    ({"path": "none.png"}, "no such picture"),
    ({"flops": 0.0}, "flops=0.0"),
    ({"flops": 1.5}, "flops=1.5"),
    ({"limit": 0}, "limit=0"),
    ({"model": "minilm"}, "needs an image model"),
    ({"flops": 0.01}, "out of reach"),
])  # fmt: skip
def test_what_is_wrong_is_said_and_nothing_written(change, match, place, tmp_path):
    given = {"path": place / "photos", "model": str(place / "vit")} | change
    given["path"] = place / given["path"]
    with pytest.raises(ValueError, match=match):
        prune_pictures(out=tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_picture_is_named(place, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"text\.png"):
        prune_pictures(tmp_path / "text.png", tmp_path / "out", model=str(place / "vit"))


def test_a_folder_of_something_else_is_not_replaced(place, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"thesis\.txt"):
        prune_pictures(place / "photos", tmp_path / "mine", model=str(place / "vit"))


def test_large_pictures_are_held_one_at_a_time(place, tmp_path, monkeypatch):
    held, most = [], []
    original = Images.pil

    def counted(self, row):
        picture = original(self, row)
        held.append(weakref.ref(picture))
        most.append(sum(r() is not None for r in held))
        return picture

    monkeypatch.setattr(Images, "pil", counted)
    prune_pictures(place / "photos", tmp_path / "out", model=str(place / "vit"))
    assert len(most) == 5
    assert max(most) <= 2  # one that is read, one that is about to be let go


def test_an_output_among_the_pictures_is_not_read_when_the_command_is_given_again(place, tmp_path):
    shutil.copytree(place / "photos", tmp_path / "photos")
    first, again = (
        prune_pictures(tmp_path / "photos", tmp_path / "photos" / "kept", model=str(place / "vit"), limit=20)
        for _ in range(2)
    )
    assert [s.image for s in again.seen] == [s.image for s in first.seen] == [f"{i}.png" for i in range(5)]


def test_a_split_is_chosen_and_what_was_passed_over_is_told(place, tmp_path):
    for split, name in (("train", "0.png"), ("test", "1.png")):
        (tmp_path / "sets" / split).mkdir(parents=True)
        shutil.copy(place / "photos" / name, tmp_path / "sets" / split)
    (tmp_path / "sets" / "test" / "notes.txt").write_text("of mine")
    words = ["tokens", str(tmp_path / "sets"), "--model", str(place / "vit"), "--out", str(tmp_path / "out")]
    with pytest.raises(ValueError, match="has the splits test, train"):
        CliRunner().invoke(app, words, catch_exceptions=False)
    done = CliRunner().invoke(app, [*words, "--split", "test"], catch_exceptions=False)
    assert "test/1.png" in done.output
    assert "notes.txt" in done.output
    assert json.loads((tmp_path / "out" / "tokens.json").read_text())["notes"]
    with pytest.raises(ValueError, match="one picture, which has no splits"):
        prune_pictures(place / "photos" / "0.png", tmp_path / "x", model=str(place / "vit"), split="test")


def test_pictures_in_parquet_are_read_as_other_folders_are(place, tmp_path):
    folders.cifar(tmp_path / "cifar", rows=12)
    done = prune_pictures(tmp_path / "cifar", tmp_path / "out", model=str(place / "vit"), split="test", limit=20)
    assert len(done.seen) == 4


def test_captions_are_each_given_once_and_read_whole(place, tmp_path):
    picture = place / "photos" / "0.png"
    for captions, said in (
        (["a cat", "a dog", "a cat"], "caption 'a cat' is given twice"),
        (["a cat", "a dog " * 30], r"has 6\d tokens; clip-cifar10 reads up to 32"),
    ):
        with pytest.raises(ValueError, match=said):
            prune_pictures(picture, tmp_path / "x", model="clip-cifar10", captions=captions)
    assert not (tmp_path / "x").exists()


def test_a_model_that_says_nothing_finite_is_refused(place, tmp_path):
    model = vit()
    with torch.no_grad():
        model.vit.layers[0].attention.q_proj.weight[0, 0] = float("nan")
    saved_with_processor(model, tmp_path / "broken")
    with pytest.raises(ValueError, match="nan or inf of a picture"):
        prune_pictures(place / "photos", tmp_path / "x", model=str(tmp_path / "broken"))
    assert not (tmp_path / "x").exists()
