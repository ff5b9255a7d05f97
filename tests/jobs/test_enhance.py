"""Files enhanced: pictures of every kind, folders, videos, and what stops before work."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from browser import needs_chromium, opened
from rankwise.data import read_image
from rankwise.data.images import write_image
from rankwise.jobs.enhance import enhance_files, fit_enhancer
from rankwise.report.slider import render_pairs
from rankwise.vision import BacklitEnhancer
from rankwise.vision.lit.training import Training

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 100, (48, 64, 3)).astype(np.uint8)
TRY = {
    "size_network": 32, "size_prompts": 32, "first_steps": 2, "warm_steps": 1, "network_steps": 2, "prompt_steps": 2,
    "batch_network": 2, "batch_prompts": 4, "rounds": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """An enhancer that doubles the light."""
    place = tmp_path_factory.mktemp("light")
    for i in range(3):
        for kind, scale in (("dark", 4), ("well", 1)):
            (place / kind).mkdir(exist_ok=True)
            pixels = RNG.integers(100, 256, (40, 40, 3)) // scale
            Image.fromarray(pixels.astype(np.uint8)).save(place / kind / f"{i}.png")
    enhancer = fit_enhancer(place / "dark", place / "well", place / "fitted", **TRY)
    with torch.no_grad():
        for p in enhancer.network.parameters():
            p.zero_()
        enhancer.network.last.bias.fill_(0.5)
    enhancer.save(place / "fitted")
    return place / "fitted"


def test_what_was_fitted_says_what_it_saw(fitted):
    told = json.loads((fitted / "enhancer.json").read_text())
    assert told["clip"] == "clip-cifar10"
    assert [row["round"] for row in told["history"]] == [0, 1]
    assert BacklitEnhancer.load(fitted).settings.network == "light"


def test_learning_cut_short_goes_on_from_its_last_round_and_leaves_the_enhancer_alone(fitted, tmp_path, monkeypatch):
    folders, begun, real = [fitted.parent / kind for kind in ("dark", "well")], [], Training._network_stage

    def cut(self, turn):
        begun.append(turn)
        if begun == [1, 2]:
            raise KeyboardInterrupt
        real(self, turn)

    whole = fit_enhancer(*folders, tmp_path / "whole", **TRY | {"rounds": 2})
    monkeypatch.setattr(Training, "_network_stage", cut)
    with pytest.raises(KeyboardInterrupt):
        fit_enhancer(*folders, tmp_path / "out", **TRY | {"rounds": 2})
    assert not (tmp_path / "out").exists()
    again = fit_enhancer(*folders, tmp_path / "out", **TRY | {"rounds": 2})
    assert begun == [1, 2, 2]
    assert again.history == whole.history
    kept = sorted(p.name for p in (tmp_path / "out").iterdir() if p.name[0] != ".")
    assert kept == ["enhancer.json", "enhancer.safetensors"]


def test_a_picture_is_written_with_its_light_and_its_exif_upright(fitted, tmp_path):
    image = Image.fromarray(PICTURE)
    exif = image.getexif()
    exif[0x0112], exif[0x0110] = 6, "camera"
    image.save(tmp_path / "a.png", exif=exif)
    done = enhance_files(tmp_path / "a.png", tmp_path / "out", fitted=fitted)
    assert np.array_equal(read_image(tmp_path / "out" / "a.png"), np.rot90(PICTURE, -1) * 2)
    with Image.open(tmp_path / "out" / "a.png") as written:
        assert written.getexif().get(0x0110) == "camera"
        assert written.getexif().get(0x0112, 1) == 1
    assert (done.files[0].width, done.files[0].height) == (48, 64)
    assert done.files[0].after == pytest.approx(2 * done.files[0].before)


def test_sixteen_bits_stay_sixteen_bits(fitted, tmp_path):
    deep = RNG.integers(0, 30000, (40, 50, 3)).astype(np.uint16)
    write_image(tmp_path / "deep.png", deep)
    enhance_files(tmp_path / "deep.png", tmp_path / "out", fitted=fitted)
    found = read_image(tmp_path / "out" / "deep.png", bits=16)
    assert np.abs(found.astype(int) - 2 * deep.astype(int)).max() <= 1


def test_a_folder_keeps_its_places_and_kinds_that_cannot_be_written_become_png(fitted, tmp_path):
    (tmp_path / "in" / "deeper").mkdir(parents=True)
    Image.fromarray(PICTURE).save(tmp_path / "in" / "a.jpg")
    Image.fromarray(PICTURE[..., 0]).save(tmp_path / "in" / "deeper" / "b.bmp")
    Image.fromarray(np.dstack([PICTURE, PICTURE[..., 0]])).save(tmp_path / "in" / "c.webp", lossless=True)
    done = enhance_files(tmp_path / "in", tmp_path / "out", fitted=fitted)
    assert sorted(f.written for f in done.files) == ["a.jpg", "c.webp", "deeper/b.bmp.png"]
    assert all((tmp_path / "out" / f.written).is_file() for f in done.files)
    assert json.loads((tmp_path / "out" / "enhance.json").read_text())["files"][0]["picture"] == "a.jpg"


@pytest.mark.parametrize("damage", ["cut", "tiny", "text"])
def test_a_bad_picture_is_named_and_nothing_is_written(fitted, tmp_path, damage):
    (tmp_path / "in").mkdir()
    bad = tmp_path / "in" / "bad.png"
    Image.fromarray(PICTURE[:20] if damage == "tiny" else PICTURE).save(bad)
    if damage == "cut":
        bad.write_bytes(bad.read_bytes()[:200])
    elif damage == "text":
        bad.write_text("no picture")
    with pytest.raises(ValueError, match=r"bad\.png"):
        enhance_files(tmp_path / "in", tmp_path / "out", fitted=fitted)
    assert not (tmp_path / "out").exists()


def test_inputs_are_never_written_over(fitted, tmp_path):
    (tmp_path / "in").mkdir()
    Image.fromarray(PICTURE).save(tmp_path / "in" / "a.png")
    with pytest.raises(ValueError, match="is read"):
        enhance_files(tmp_path / "in", tmp_path / "in", fitted=fitted)
    with pytest.raises(ValueError, match="is read"):
        enhance_files(tmp_path / "in" / "a.png", tmp_path / "in", fitted=fitted)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"path": "none"}, "no such file"),
        ({"fitted": "in"}, "enhancer.json is missing"),
        ({"smooth": 1.0}, "smooth=1.0"),
        ({"smooth": float("nan")}, "smooth=nan"),
    ],
)
def test_mistakes_stop_before_work(fitted, tmp_path, changes, said):
    (tmp_path / "in").mkdir()
    given = {"path": tmp_path / "in", "fitted": fitted} | {
        k: tmp_path / v if isinstance(v, str) else v for k, v in changes.items()
    }
    with pytest.raises(ValueError, match=said):
        enhance_files(out=tmp_path / "out", **given)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dark": "none"}, "no such folder"),
        ({"well_lit": "dark"}, "dark and as well-lit"),
        ({"preset": "smal"}, "did you mean small"),
        ({"network": "deep"}, "unknown network"),
        ({"rounds": 0}, "rounds=0"),
        ({"seed": -1}, "seed=-1"),
        ({"model": "smollm2"}, "smollm2"),
    ],
)
def test_mistakes_stop_before_learning(tmp_path, changes, said):
    for kind in ("dark", "well"):
        (tmp_path / kind).mkdir()
    places = {"dark": tmp_path / "dark", "well_lit": tmp_path / "well"}
    given = places | {k: tmp_path / v if k in places else v for k, v in changes.items()}
    with pytest.raises(ValueError, match=said):
        fit_enhancer(out=tmp_path / "out", **given)


def written_video(path, frames, size=(48, 64)):
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as made:
        stream = made.add_stream("libx264", rate=10, options={"crf": "4"})
        stream.height, stream.width, stream.pix_fmt = *size, "yuv444p"
        for value in frames:
            still = np.full((*size, 3), value, np.uint8)
            made.mux(stream.encode(av.VideoFrame.from_ndarray(still, format="rgb24")))
        made.mux(stream.encode(None))
    return path


def frames_of(path):
    import av

    with av.open(str(path)) as given:
        return [(frame.time, frame.to_ndarray(format="rgb24")) for frame in given.decode(video=0)]


@pytest.mark.parametrize("size", [(48, 64), (49, 63)])
def test_a_video_keeps_its_frames_times_and_size(fitted, tmp_path, size):
    source = written_video(tmp_path / "clip.mp4", [20, 40, 60, 80], size)
    done = enhance_files(source, tmp_path / "out", fitted=fitted)
    before, after = frames_of(source), frames_of(tmp_path / "out" / "clip.mp4")
    assert [t for t, _ in after] == pytest.approx([t for t, _ in before])
    for (_, dark), (_, light) in zip(before, after, strict=True):
        assert light.shape == (*size, 3)
        assert light.mean() == pytest.approx(2 * dark.mean(), abs=4)
    assert [name for name, *_ in done.pairs] == [f"clip.mp4, {p} frame" for p in ("first", "middle", "last")]


def test_maps_are_averaged_over_frames_and_begun_anew_at_a_cut():
    from rankwise.vision.lit.video import Smoothed

    smoothed = Smoothed(lambda frame: frame[:, :1] * 2, 0.5)
    values = [0.1, 0.2, 0.2, 0.9]
    found = [float(smoothed(torch.full((1, 3, 4, 4), v)).mean()) for v in values]
    assert found == pytest.approx([0.2, 0.3, 0.35, 1.8])
    with pytest.raises(ValueError, match="smooth=1"):
        Smoothed(lambda frame: frame, 1)


def test_what_is_no_video_is_refused(fitted, tmp_path):
    pytest.importorskip("av")
    (tmp_path / "clip.mp4").write_text("no video")
    with pytest.raises(ValueError, match=r"clip\.mp4 cannot be read as a video"):
        enhance_files(tmp_path / "clip.mp4", tmp_path / "out", fitted=fitted)
    assert not (tmp_path / "out").exists()


def page(path, pairs):
    told = {"title": "<b>Light</b>", "subtitle": "x", "command": "rankwise enhance", "header": ["a"], "rows": [["<i>"]]}
    render_pairs(path, pairs=pairs, **told)
    return path


def test_names_on_the_page_are_text_and_nothing_comes_from_outside(tmp_path):
    text = page(tmp_path / "page.html", [('"><script>x', PICTURE, PICTURE)]).read_text()
    assert "<script>x" not in text
    assert "<b>Light" not in text
    assert "http" not in text.replace("http-equiv", "")


@needs_chromium
def test_the_line_between_before_and_after_is_dragged_by_mouse_and_by_keys(tmp_path):
    black, white = np.zeros((200, 300, 3), np.uint8), np.full((200, 300, 3), 255, np.uint8)
    path = page(tmp_path / "page.html", [("one.jpg", black, white), ("two.jpg", black, white)])
    with opened() as browser:
        view = browser.new_page(viewport={"width": 800, "height": 900})
        view.goto(path.as_uri())
        pair, line = view.locator(".pair").first, view.locator(".pair input").first

        def cut():
            return float(pair.evaluate("e => getComputedStyle(e).getPropertyValue('--cut')").strip().rstrip("%"))

        def light(share):
            shot = np.asarray(Image.open(__import__("io").BytesIO(pair.screenshot())).convert("L"))
            return shot[shot.shape[0] // 2, int(share * shot.shape[1])]

        assert cut() == pytest.approx(50)
        assert light(0.3) < 20  # as it was, on the left
        assert light(0.7) > 235
        box = pair.bounding_box()
        view.mouse.move(box["x"] + box["width"] / 2, box["y"] + 50)
        view.mouse.down()
        view.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 50, steps=5)
        view.mouse.up()
        assert cut() == pytest.approx(20, abs=1)
        assert light(0.3) > 235
        line.focus()
        view.keyboard.press("End")
        assert cut() == pytest.approx(100)
        assert light(0.7) < 20
        assert float(view.locator(".pair input").nth(1).input_value()) == 50  # the other stays
        view.set_viewport_size({"width": 320, "height": 600})
        assert view.evaluate("document.documentElement.scrollWidth") <= 320
