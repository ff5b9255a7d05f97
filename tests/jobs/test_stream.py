"""Pictures through a classifier that adapts: the table, the order, the state, what is refused."""

import csv
import json
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from rankwise import continual
from rankwise.cli.main import app
from rankwise.continual.stream import MADE_BY
from rankwise.jobs.early import STREAM_METHODS, STREAMS
from rankwise.jobs.stream import adapt_to_pictures
from rankwise.models import load, load_image_processor
from small_models import bert, saved, saved_with_processor, vit


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("stream")
    saved_with_processor(vit(layers=2), root / "vit")
    for i in range(7):
        noise = np.random.default_rng(i).integers(0, 256, (40, 48, 3)).astype(np.uint8)
        for folder in ("photos", f"classes/LABEL_{i % 3}"):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise).save(root / folder / f"{i}.png")
    return root


def run(place, out, **options):
    given = {"images": str(place / "photos"), "model": str(place / "vit"), "batch_size": 3}
    return adapt_to_pictures(out=out, **given | options)


def test_methods_and_presets_that_are_checked_early_are_those_that_there_are():
    assert STREAMS == MADE_BY
    for name, presets in STREAM_METHODS.values():
        assert tuple(sorted(getattr(continual, name).presets)) == tuple(sorted(presets))


@pytest.mark.parametrize("method", STREAM_METHODS)
def test_the_table_is_what_the_adapter_says_of_each_picture_in_order(place, tmp_path, method):
    done = run(place, tmp_path / "out.csv", method=method)
    model, processor = load(str(place / "vit")).eval(), load_image_processor(str(place / "vit"))
    source = load(str(place / "vit")).eval()
    kind = getattr(continual, STREAM_METHODS[method][0])
    adapter = kind(model, mean=processor.image_mean, std=processor.image_std)
    expected = []
    for start in (0, 3, 6):
        pictures = [Image.open(place / "photos" / f"{i}.png") for i in range(start, min(start + 3, 7))]
        pixels = processor(pictures, return_tensors="pt")["pixel_values"]
        p = adapter.predict(pixels).softmax(1)
        with torch.no_grad():
            plain = source(pixels).logits.argmax(1)
        expected += [(f"LABEL_{q.argmax()}", float(q.max()), f"LABEL_{s}") for q, s in zip(p, plain, strict=True)]
    with (tmp_path / "out.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [r["image"] for r in rows] == [f"{i}.png" for i in range(7)]
    assert [(r["predicted"], r["source"]) for r in rows] == [(a, s) for a, _, s in expected]
    assert [float(r["probability"]) for r in rows] == pytest.approx([p for _, p, _ in expected], abs=1e-4)
    assert [r["batch"] for r in rows] == list("1112223")
    assert ("uncertainty" in rows[0]) == (method == "vida")
    assert done.error is None
    assert done.skipped == 0


def test_with_classes_the_order_is_drawn_and_the_error_told(place, tmp_path):
    done = run(place, tmp_path / "out.csv", images=str(place / "classes"), classes=True)
    seen = [row["image"] for row in done.rows]
    assert seen != sorted(seen)
    assert sorted(seen) == sorted(f"LABEL_{i % 3}/{i}.png" for i in range(7))
    for key, told in (("predicted", done.error), ("source", done.source_error)):
        assert told == pytest.approx(np.mean([row[key] != row["image"].split("/")[0] for row in done.rows]))
    again = run(place, tmp_path / "again.csv", images=str(place / "classes"), classes=True)
    assert again.rows == done.rows
    other = run(place, tmp_path / "other.csv", images=str(place / "classes"), classes=True, seed=1)
    assert [row["image"] for row in other.rows] != seen


def test_folders_without_classes_come_by_name_and_a_note_says_so(place, tmp_path):
    done = run(place, tmp_path / "out.csv", images=str(place / "classes"))
    seen = [row["image"] for row in done.rows]
    assert seen == sorted(seen)
    assert any("--classes" in note for note in done.notes)


def test_folders_that_are_no_classes_of_the_model_are_named(place, tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "animals" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "animals" / name / "a.png")
    with pytest.raises(ValueError, match="unknown class 'cat'"):
        run(place, tmp_path / "out.csv", images=str(tmp_path / "animals"), classes=True)


def test_a_state_is_written_and_gone_on_from(place, tmp_path):
    state = tmp_path / "learned"
    names = [str(place / "photos" / f"{i}.png") for i in range(7)]
    whole = run(place, tmp_path / "a.csv", images="-", listed=names[:6])
    run(place, tmp_path / "b.csv", images="-", listed=names[:3], state=state)
    rest = run(place, tmp_path / "c.csv", images="-", listed=[f"{n}\n" for n in names[3:6]], state=state)
    assert [r["probability"] for r in rest.rows] == [r["probability"] for r in whole.rows[3:]]
    assert json.loads((state / "state.json").read_text())["seen"] == 2
    with pytest.raises(ValueError, match="another method"):
        run(place, tmp_path / "d.csv", method="tent", state=state)
    assert not (tmp_path / "d.csv").exists()


@pytest.mark.parametrize("damage", ["cut", "numbers", "foreign", "scales", "optimizer"])
def test_a_damaged_state_is_one_line(place, tmp_path, damage):
    from safetensors.torch import load_file, save_file

    state = tmp_path / "learned"
    run(place, tmp_path / "a.csv", state=state)
    told, tensors = json.loads((state / "state.json").read_text()), load_file(state / "state.safetensors")
    if damage == "cut":
        data = (state / "state.safetensors").read_bytes()
        (state / "state.safetensors").write_bytes(data[: len(data) // 2])
    elif damage == "numbers":
        (state / "state.json").write_text(json.dumps(told | {"seen": "many"}))
    elif damage == "scales":
        (state / "state.json").write_text(json.dumps(told | {"scales": [1, 2, 3]}))
    elif damage == "foreign":
        save_file({"a": torch.ones(1)}, state / "state.safetensors")
    else:
        name = next(n for n in tensors if n.endswith("exp_avg"))
        save_file(tensors | {name: torch.ones(3)}, state / "state.safetensors")
    with pytest.raises(ValueError, match="stat"):
        run(place, tmp_path / "b.csv", state=state)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"images": "nowhere"}, "no such folder"),
        ({"images": "-"}, "no picture was listed"),
        ({"images": "-", "listed": ["none.png"]}, "none.png"),
        ({"method": "vidas"}, "unknown method 'vidas'"),
        ({"method": "tent", "preset": "cifar100c"}, "unknown preset"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"seed": -1}, "seed=-1"),
        ({"model": "minilm"}, "minilm"),
    ],
)
def test_what_cannot_be_served_is_refused(place, tmp_path, options, match):
    with pytest.raises((ValueError, OSError), match=match):
        run(place, tmp_path / "out.csv", **options)
    assert not (tmp_path / "out.csv").exists()


def test_a_text_model_and_a_foreign_folder_for_the_state_are_refused_early(place, tmp_path):
    saved(bert(), tmp_path / "bert")
    with pytest.raises(ValueError, match="needs an image model"):
        run(place, tmp_path / "out.csv", model=str(tmp_path / "bert"))
    with pytest.raises(ValueError, match="replaced"):
        run(place, tmp_path / "out.csv", state=place / "photos")


def test_the_command_prints_a_table_or_json(place, tmp_path):
    words = ["continual", "adapt", "--images", str(place / "classes"), "--classes", "--model", str(place / "vit")]
    words += ["--batch-size", "4", "--out", str(tmp_path / "out.jsonl"), "--state", str(tmp_path / "learned")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.exception
    assert "error, adapting" in done.output
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 7
    again = CliRunner().invoke(app, [*words, "--json"])
    assert json.loads(again.stdout)["pictures"] == 7


@pytest.mark.parametrize("broken", ["absent", "damaged"])
def test_what_was_predicted_before_a_listed_picture_that_cannot_be_read_is_kept(place, tmp_path, broken):
    bad = tmp_path / "bad.png"
    if broken == "damaged":
        bad.write_bytes((place / "photos/0.png").read_bytes()[:300])
    good = [str(place / "photos" / f"{i}.png") for i in range(4)]
    whole = run(place, tmp_path / "whole.csv", images="-", listed=good, state=tmp_path / "whole")
    with pytest.raises(ValueError, match=r"bad\.png.*; the 4 pictures listed before it are in .*part\.csv"):
        run(place, tmp_path / "part.csv", images="-", listed=[*good, str(bad), good[0]], state=tmp_path / "part")
    assert (tmp_path / "part.csv").read_text() == (tmp_path / "whole.csv").read_text()
    states = [(tmp_path / name / "state.safetensors").read_bytes() for name in ("whole", "part")]
    assert states[0] == states[1]
    assert len(whole.rows) == 4
    with pytest.raises(ValueError, match=r"bad\.png"):
        run(place, tmp_path / "none.csv", images="-", listed=[str(bad)])
    assert not (tmp_path / "none.csv").exists()


def test_an_interrupt_ends_after_its_batch_and_keeps_the_table_and_the_state(place, tmp_path, monkeypatch):
    predict = continual.TestTimeAdapter.predict
    seen = []

    def interrupted(self, batch):
        seen.append(len(batch["pixel_values"]))
        if len(seen) == 2:
            signal.raise_signal(signal.SIGINT)
        return predict(self, batch)

    names = [str(place / "photos" / f"{i}.png") for i in range(7)]
    run(place, tmp_path / "six.csv", images="-", listed=names[:6], state=tmp_path / "six")
    monkeypatch.setattr(continual.TestTimeAdapter, "predict", interrupted)
    words = ["continual", "adapt", "--images", str(place / "photos"), "--model", str(place / "vit")]
    done = CliRunner().invoke(
        app, [*words, "--batch-size", "3", "--out", str(tmp_path / "cut.csv"), "--state", str(tmp_path / "cut")]
    )
    assert done.exit_code == 130
    assert "interrupted; the 6 pictures predicted until then are in" in " ".join(done.output.split())
    assert seen == [3, 3]
    read = [(tmp_path / name).read_text().splitlines() for name in ("six.csv", "cut.csv")]
    assert [line.rsplit("/", 1)[-1] for line in read[0]] == [line.rsplit("/", 1)[-1] for line in read[1]]
    states = [(tmp_path / name / "state.safetensors").read_bytes() for name in ("six", "cut")]
    assert states[0] == states[1]
