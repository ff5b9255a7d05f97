"""Folders of pictures made few, students of them, and the page."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from command import rankwise
from rankwise.jobs.distill import distill_pictures, load_student, train_from
from rankwise.report.page import write_distilled
from rankwise.vision import DistilledDataset
from seeing import coloured

SMALL = {"ipc": 1, "tiles": 1, "rank": 1, "teachers": 1, "epochs": 1}


def written(folder, images, **options):
    for i in range(len(images)):
        place = folder / images.label_names[int(images.labels[i])]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[i]).save(place / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return written(tmp_path_factory.mktemp("data") / "photos", coloured(12))


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "few"
    distill_pictures(str(photos), out, **SMALL, report=lambda folder, done: write_distilled(folder, done, "rankwise"))
    return out


def test_folders_are_the_classes_and_the_page_shows_the_tiles(run):
    few = DistilledDataset.load(run)
    assert not few.told["empty"]
    assert few.label_names == ["blue", "green", "red"]  # of folders: by the alphabet
    assert [int(p.float().mean((1, 2)).argmax()) for p in few.images] == [2, 1, 0]
    page = (run / "report.html").read_text()
    assert page.count("data:image/png") == 1
    assert f"{few.nbytes.projector:,}" in page
    assert f"{300 * 3 * 3 * 2:,}" in page  # labels of 300 epochs
    assert (run / "tiles.png").is_file()
    assert all(word in page for word in ("12 pictures as 3", "clip-cifar10"))


def test_a_student_is_judged_and_kept(run, photos, tmp_path):
    told = []
    done = train_from(run, str(photos), out=tmp_path / "net", width=8, epochs=25, on_event=lambda *a: told.append(a))
    assert len(told) == 25
    assert done.tested == 12
    assert done.trained == 3
    assert done.accuracy == pytest.approx(np.mean(list(done.by_class.values())))  # as many of each
    assert any("no test" in note for note in done.notes)
    model, names = load_student(tmp_path / "net")
    assert names == ["blue", "green", "red"]
    red = torch.from_numpy(coloured(12)[0]).permute(2, 0, 1)[None].float() / 255
    from rankwise.vision.distilled.tiles import scaled

    assert model(scaled(red, 32, 32)).shape == (1, 3)
    (tmp_path / "net" / "student.json").write_text("{}")
    with pytest.raises(ValueError, match="no student"):
        load_student(tmp_path / "net")


def test_test_folders_may_lack_classes_and_must_not_have_others(run, tmp_path):
    fewer = written(tmp_path / "fewer", coloured(12, classes=2))
    done = train_from(run, str(fewer), width=2, epochs=1)
    assert sorted(done.by_class) == ["green", "red"]
    assert not any("no test" in note for note in done.notes)
    with pytest.raises(ValueError, match="unknown class 'grey'"):
        train_from(run, str(written(tmp_path / "more", coloured(12, classes=4))), width=2, epochs=1)


def test_grey_alpha_16_bit_and_rotated_pictures_are_read(tmp_path):
    images = coloured(12)
    folder = written(tmp_path / "odd", images)
    kinds = {
        "red/0.png": lambda a: Image.fromarray(a).convert("L"),
        "green/1.png": lambda a: Image.fromarray(a).convert("RGBA"),
        "blue/2.png": lambda a: Image.fromarray(a[..., 0].astype(np.uint16) * 257),
    }
    for i, (name, made) in enumerate(kinds.items()):
        made(images[i]).save(folder / name)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(images[3]).save(folder / "red" / "3.jpg", exif=turned)
    (folder / "red" / "3.png").unlink()
    done = distill_pictures(str(folder), tmp_path / "few", **SMALL)
    assert len(done.few) == 3


def test_the_same_command_makes_the_same_files(photos, run, tmp_path):
    distill_pictures(str(photos), tmp_path / "again", **SMALL)
    assert (tmp_path / "again" / "distilled.safetensors").read_bytes() == (run / "distilled.safetensors").read_bytes()
    again, first = (json.loads((p / "distilled.json").read_text()) for p in (tmp_path / "again", run))
    assert again == first


@pytest.mark.parametrize(
    ("bad", "said"),
    [({"ipc": 0}, "ipc=0"), ({"tiles": 0}, "tiles=0"), ({"rank": -1}, "rank=-1"), ({"template": "a"}, "template"),
     ({"limit": 0}, "limit=0"), ({"lr": float("nan")}, "rate=nan"),
     ({"model": "vit-cifar10"}, "image-classification"), ({"model": "clp"}, "clip"),
     ({"data": "none"}, "unknown pictures"), ({"data": "./none"}, "no such folder")],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_work(photos, tmp_path, bad, said):
    options = {"data": str(photos), "out": tmp_path / "o"} | SMALL | bad
    with pytest.raises(ValueError, match=said):
        distill_pictures(options.pop("data"), options.pop("out"), **options)
    assert not (tmp_path / "o").exists()


def test_too_few_pictures_an_empty_class_and_a_strangers_folder_are_refused_and_nothing_is_left(photos, tmp_path):
    with pytest.raises(ValueError, match="gives 4 squares"):
        distill_pictures(str(photos), tmp_path / "o", **SMALL | {"ipc": 5})
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no pictures"):
        distill_pictures(str(tmp_path / "empty"), tmp_path / "o", **SMALL)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(ValueError):
        distill_pictures(str(photos), tmp_path / "mine", **SMALL)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "mine"]


@pytest.mark.parametrize(
    ("bad", "said"),
    [({"student": "vgg"}, "student"), ({"epochs": 0}, "epochs=0"), ({"width": 0}, "width=0"), ({"seed": -1}, "seed")],
)
def test_students_that_cannot_be_are_refused(run, photos, bad, said):
    with pytest.raises(ValueError, match=said):
        train_from(run, str(photos), **bad)


def test_the_commands_say_what_was_kept_and_how_good_it_is(photos, tmp_path):
    made = rankwise("distill", "--data", photos, "--ipc", 1, "--tiles", 1, "--rank", 1, "--teachers", 1, "--epochs", 1,
                    "--empty", "--out", tmp_path / "few", "--json")  # fmt: skip
    assert made.returncode == 0, made.stderr
    told = json.loads(made.stdout)
    files = [tmp_path / "few" / f"distilled.{end}" for end in ("safetensors", "json")]
    assert told["pictures"] == 3
    kept = json.loads(files[1].read_text())
    assert kept["base"] == "clip-cifar10"
    assert kept["empty"]
    assert told["total"] == sum(f.stat().st_size for f in files)
    done = rankwise("distill-train", tmp_path / "few", "--data", photos, "--width", 4, "--epochs", 2)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\d+\.\d% of 12 test pictures, from 3", done.stdout)
    wrong = rankwise("distill-train", tmp_path / "none", "--data", photos)
    assert wrong.returncode == 2
    assert "holds no distilled pictures" in wrong.stderr


def test_nothing_is_written_among_the_folders_that_are_classes(photos, run):
    with pytest.raises(ValueError, match="write beside it"):
        distill_pictures(str(photos), photos / "few", **SMALL)
    with pytest.raises(ValueError, match="write beside it"):
        train_from(run, str(photos), out=photos / "red" / "net", width=2, epochs=1)
    assert sorted(p.name for p in photos.iterdir()) == ["blue", "green", "red"]


def test_a_note_is_said_once(run, photos):
    notes = train_from(run, str(photos), width=2, epochs=1).notes
    assert len(set(notes)) == len(notes)
    assert sum("32 x 32" in note for note in notes) == 1
