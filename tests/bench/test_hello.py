"""The recipes of HeLlO: what each claim can lose to, what is kept, what a student is given."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rankwise.bench.shared import distilled as recipe
from rankwise.bench.shared.distilled import (
    ARMS,
    FULL,
    HARD,
    KL,
    OURS,
    PRUNED,
    RANDOM,
    RANDOM_SOFT,
    SHOWING,
    STORED,
    STRONG,
    STUDENTS,
    ZERO,
    Run,
    Sizes,
    claims_of,
    prepared,
    students_of,
)
from seeing import coloured

SEEDS = 5
SIZES = Sizes(
    pictures=Path("none"), flip=True, ipcs=(1, 10, 50), epochs=(300, 120, 40), ranks=(8, 2, 16), tiles=2, teachers=3,
    teaching=1, learning=1, candidates=9, lr=1e-3, width=4, full=1,
)  # fmt: skip
RIGHT = {RANDOM: 0.3, RANDOM_SOFT: 0.6, HARD: 0.4, STORED: 0.7, PRUNED: 0.5, ZERO: 0.2, OURS: 0.7, STRONG: 0.65,
         KL: 0.6, "rank 2": 0.6, "rank 16": 0.7, FULL: 0.9, SHOWING: 0.75}  # fmt: skip
LABELS = {OURS: 100, STORED: 100_000, PRUNED: 100}


def claims(share=100, pace=1.2, **changes):
    """Claims where every student of a kind is so good, and a little different by seed."""
    names = {"ours": OURS, "zero": ZERO, "stored": STORED, "pruned": PRUNED, "hard": HARD, "random": RANDOM,
             "soft": RANDOM_SOFT, "strong": STRONG, "kl": KL, "wide": "rank 16", "full": FULL,
             "showing": SHOWING}  # fmt: skip
    scores = RIGHT | {names[k]: v for k, v in changes.items()}
    found = {}
    for run in students_of(SIZES, 0):
        found[run.kind, run.ipc, run.student] = [
            {"accuracy": scores[run.kind] + 0.001 * s, "images": 1, "labels": LABELS.get(run.kind, 0) * (
                share if run.kind == OURS else 100) // 100, "seconds": pace if run.kind == OURS else 1.0}
            for s in range(SEEDS)
        ]  # fmt: skip
    return claims_of(found, SIZES)


def test_pictures_that_were_kept_as_a_file_go_to_a_distiller_with_their_classes():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 8, 6), dtype=np.uint8)
    images = recipe.images_of({"train": pixels, "labels": np.array([0, 1, 1, 0]), "names": np.array(["a", "b"])})
    assert [*images.labels] == [0, 1, 1, 0]
    assert [*images.label_names] == ["a", "b"]
    np.testing.assert_array_equal(np.asarray(images[2]), pixels[2].transpose(1, 2, 0))


def test_the_table_has_a_row_for_each_kind_with_its_bytes():
    runs = [{"accuracy": 0.5, "images": 30_000, "labels": 1_200}, {"accuracy": 0.7, "images": 30_000, "labels": 1_200}]
    rows = recipe.rows_of({(OURS, 10, "net"): runs, (FULL, 0, "net"): runs})
    assert rows[0] == ["10", "net", OURS, "60.0±14.1", "30,000", "1,200"]
    assert rows[1][:3] == ["-", "net", "all pictures, hard labels"]


def test_what_was_published_holds_every_claim():
    assert [c.text for c in claims() if not c.held] == []


@pytest.mark.parametrize(("changes", "lost"), [
    ({"full": 0.35}, ["control: all pictures"]),
    ({"zero": 0.75}, ["control: labels of the base"]),
    ({"stored": 0.72}, ["within a point of stored"]),
    ({"share": 2000}, ["1 % of their bytes"]),
    ({"pruned": 0.7}, ["pruned to its bytes, at 1", "pruned to its bytes, at 10", "pruned to its bytes, at 50"]),
    ({"hard": 0.7}, ["hard-label recovery"]),
    ({"random": 0.7}, ["with hard labels", "other student"]),
    ({"soft": 0.7}, ["random pictures under the same labels"]),
    ({"showing": 0.7}, ["squares that show something teach more than RDED's choice, at 10 a class"]),
    ({"strong": 0.7}, ["several weak teachers"]),
    ({"kl": 0.7}, ["divergence"]),
    ({"wide": 0.72}, ["rank 8 is within"]),
    ({"pace": 1.6}, ["1.5 times"]),
])  # fmt: skip
def test_each_claim_can_fail_alone(changes, lost):
    failed = [c.text for c in claims(**changes) if not c.held]
    assert len(failed) == len(lost)
    assert all(word in text for word, text in zip(lost, failed, strict=True))


def test_every_kind_of_label_has_a_student_of_each_kind_at_each_number_of_pictures():
    runs = students_of(SIZES, 0)
    assert len({r.name for r in runs}) == len(runs) == 3 * 2 * len(ARMS) + 4 + 2 + 1
    variants = (STRONG, KL, "rank 2", "rank 16", SHOWING)
    assert {(r.ipc, r.student) for r in runs if r.kind in variants} == {(10, STUDENTS[0])}
    assert runs[-1].name == "0 / squares that show something / 10 / convnet"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    images = coloured(60, size=32)
    pictures = prepared(folder / "pictures.npz", images.taken(range(45)), images.taken(range(45, 60)), 32)
    sizes = replace(SIZES, pictures=pictures, ipcs=(1, 2), epochs=(2, 3), ranks=(1, 2), tiles=1, teachers=2)
    recipe.taught(Run(folder=folder, sizes=sizes, seed=0, kind="teachers"))
    recipe.adapted(Run(folder=folder, sizes=sizes, seed=0, kind=OURS))
    return folder, sizes


def given(small, kind, ipc=2):
    """What a student of a kind sees and learns from."""
    folder, sizes = small
    run = Run(folder=folder, sizes=sizes, seed=0, kind=kind, ipc=ipc, student="convnet")
    held = np.load(sizes.pictures)
    few, tiles = recipe._pictures(run, torch.from_numpy(held["train"]), torch.from_numpy(held["labels"]))
    soft, kept = recipe._labels(run, few, recipe._views(sizes, tiles=tiles), 3, 2)
    return few, soft, kept


def test_random_pictures_are_the_same_whatever_labels_them_and_as_many_of_each_class(small):
    one, hard, none = given(small, RANDOM)
    two, soft, kept = given(small, RANDOM_SOFT)
    assert torch.equal(one.images, two.images)
    assert one.classes.tolist() == [0, 0, 1, 1, 2, 2]
    assert hard is None
    assert none == 0
    assert kept == given(small, OURS)[2] > 0
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(soft(x), given(small, OURS)[1](x))


def test_tiles_are_the_same_whatever_labels_them(small):
    ours = given(small, OURS)[0]
    for kind in (HARD, STORED, PRUNED, ZERO):
        assert torch.equal(given(small, kind)[0].images, ours.images)


def test_squares_that_show_something_are_chosen_anew_and_labelled_as_ours(small, monkeypatch):
    asked, made = [], recipe.Distiller
    monkeypatch.setattr(recipe, "Distiller", lambda *given, **own: asked.append(own) or made(*given, **own))
    few, soft, kept = given(small, SHOWING)
    assert [(own["empty"], own["ipc"]) for own in asked] == [(False, 2)]
    assert few.classes.tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.equal(load_file(small[0] / "tiles-showing-2-0.safetensors")["images"], few.images)
    assert kept == given(small, OURS)[2]
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(soft(x), given(small, OURS)[1](x))


def test_our_own_arm_has_the_squares_that_were_published(small, monkeypatch):
    folder, sizes = small
    run = Run(folder=folder, sizes=sizes, seed=0)
    held = np.load(sizes.pictures)
    assert recipe._distiller(run).empty
    made = recipe._distiller(run, ipc=2, rank=0, head_rank=0, empty=True).fit(recipe.images_of(held))
    assert torch.equal(given(small, OURS)[0].images, made.images)


def test_labels_of_the_base_alone_are_without_adapters_and_stored_ones_the_teachers(small):
    x = torch.rand(4, 3, 32, 32)
    zero, ours = (given(small, kind)[1](x) for kind in (ZERO, OURS))
    assert not torch.allclose(zero, ours, atol=1e-3)
    stored, kept = given(small, STORED)[1:]
    assert kept == stored.nbytes == 3 * 6 * 3 * 2
    folder, sizes = small
    teachers = recipe._models(Run(folder=folder, sizes=sizes, seed=0))
    few = given(small, STORED)[0]
    rows, view, soft = next(stored.epoch(few.images, 0))
    by_hand = torch.stack([t(view.pixels) for t in teachers]).mean(0)
    torch.testing.assert_close(soft, by_hand, atol=1e-2, rtol=1e-2)
    assert len(rows) == 2


def test_pruned_labels_are_of_at_most_the_bytes_of_the_adapters(small, monkeypatch):
    monkeypatch.setattr(
        recipe, "_loaded", lambda run, kind: type("Few", (), {"nbytes": type("B", (), {"projector": 60})})
    )
    _, held, kept = given(small, PRUNED)
    assert 0 < kept <= 60
    assert len(held.kept) == 3  # of 20 bytes each: 2 pictures, 3 classes, and which they are


def test_every_model_is_judged_by_what_it_said_of_its_own_seed():
    truth = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]

    def said(right):
        return [t if i < right else (t + 1) % 3 for i, t in enumerate(truth)]

    found = {"truth": truth}
    for seed in range(2):
        told = {"images": 30, "labels": 9, "bytes": 9, "seconds": 1.0}
        found[Run(sizes=SIZES, seed=seed, kind="teachers").name] = {
            "predicted": [said(7 + k) for k in range(3)], "base": said(4 + 2 * seed)
        }  # fmt: skip
        for variant in SIZES.variants:
            found[Run(sizes=SIZES, seed=seed, kind=variant).name] = told | {"predicted": said(8)}
        for run in students_of(SIZES, seed):
            found[run.name] = told | {"predicted": said(5 + seed if run.kind == HARD else 9)}
    evidence = recipe.evidence_of(
        found, SIZES, seeds=2, recipe="hello", title="", command="rankwise bench hello", setting="made up"
    )
    assert "teachers at 70.0±0.0, 80.0±0.0, 90.0±0.0 %, base alone at 50.0±14.1 %, with adapters 80.0±0.0 %" in (
        evidence.setting
    )
    rows = {(row[2], row[0], row[1]): row[3] for row in evidence.rows}
    assert rows[HARD, "10", "convnet"] == "55.0±7.1"
    assert rows[OURS, "10", "convnet"] == "90.0±0.0"
