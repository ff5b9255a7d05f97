"""Students, their schedule and their labels: made, stored, pruned, none."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rankwise.vision import Views, train_student
from rankwise.vision.distilled import students
from rankwise.vision.distilled.losses import distance, hard
from rankwise.vision.distilled.networks import NETWORKS, network
from rankwise.vision.distilled.pictures import Pictures
from rankwise.vision.distilled.rivals import KEY, StoredLabels, label_bytes, rows_of, shown
from rankwise.vision.distilled.students import batch_of, rate
from rankwise.vision.distilled.teachers import Mean, accuracy, predicted, snapshots

FEW = Pictures(
    torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
    torch.arange(12) % 3,
)
VIEWS = Views(tiles=2)


def small(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 3))


def teacher(x):
    return x.mean((2, 3)) * 10


# --- bytes


def test_the_published_bytes_of_stored_labels_come_out():
    assert label_bytes(1000, 1000) / 2**20 == pytest.approx(572, abs=0.5)
    assert 110 <= label_bytes(200_000, 1000) / 2**30 <= 113
    assert 3.2e6 / label_bytes(200_000, 1000) == pytest.approx(0.003 / 100, rel=0.15)  # at 200 a class alone


def test_stored_labels_take_what_the_formula_says():
    held = StoredLabels(teacher, FEW.images, views=VIEWS, epochs=3, batch_size=5, seed=0)
    assert held.nbytes == label_bytes(12, 3, epochs=3)


# --- the schedule


def test_the_rate_falls_by_half_a_period_and_ends_at_half():
    found = [rate(e, 300) for e in range(301)]
    assert found[0] == 1
    assert found[150] == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert found[300] == pytest.approx(0.5)
    assert all(a > b for a, b in itertools.pairwise(found))


def test_the_optimiser_has_the_rate_of_its_epoch(monkeypatch):
    seen = []

    class Told(torch.optim.AdamW):
        def step(self, closure=None):
            seen.append(self.param_groups[0]["lr"])
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "AdamW", Told)
    train_student(small(), FEW, epochs=4, batch_size=12, lr=0.5)
    assert seen == pytest.approx([0.5 * rate(e, 4) for e in range(4)])


def test_batches_grow_with_pictures_a_class():
    assert [batch_of(10 * ipc, 10) for ipc in (1, 10, 50)] == [10, 50, 100]
    assert batch_of(6, 3) == 6


# --- labels of the very view


def test_a_label_is_made_for_the_very_pixels_that_the_student_gets():
    got, asked = [], []

    class Student(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = small()

        def forward(self, x):
            got.append(x.clone())
            return self.inner(x)

    def labels(view):
        asked.append(view.clone())
        return teacher(view)

    train_student(Student(), FEW, labels=labels, views=VIEWS, epochs=2, batch_size=5)
    assert len(got) == len(asked) == 6
    assert all(torch.equal(a, b) for a, b in zip(got, asked, strict=True))


def test_a_step_is_squares_of_logits_and_a_weighted_cross_entropy_on_mixed_classes():
    model, by_hand = small(), small()
    train_student(model, FEW, labels=teacher, views=VIEWS, epochs=1, batch_size=12, weight=0.3, lr=0.01, seed=4)
    (rows,) = rows_of(12, 12, 4, 0)
    view = shown(FEW.images, rows, VIEWS, (4, 0, 0))
    optimizer = torch.optim.AdamW(by_hand.parameters(), lr=0.01, weight_decay=0.01)
    said, y = by_hand(view.pixels), FEW.classes[rows]
    p = said.log_softmax(1)
    ce = -sum(view.share * p[i, y[i]] + (1 - view.share) * p[i, y[view.other[i]]] for i in range(12)) / 12
    (((said - teacher(view.pixels)) ** 2).mean() + 0.3 * ce).backward()
    optimizer.step()
    for a, b in zip(model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_squares_are_of_logits_and_the_divergence_is_of_answers():
    a, b = torch.randn(4, 3), torch.randn(4, 3)
    assert distance(a, 2 * b, "mse") != distance(a, b, "mse")
    assert float(distance(a, b, "mse")) == pytest.approx(float(((a - b) ** 2).mean()))
    apart = (a - a.mean(1, keepdim=True)) - (b - b.mean(1, keepdim=True))
    assert float(distance(a, b, "centred")) == pytest.approx(float((apart**2).mean()))
    assert float(distance(a, b + torch.randn(len(b), 1), "centred")) == pytest.approx(
        float((apart**2).mean()), rel=1e-5
    )
    p, q = (b / 4).softmax(1), (a / 4).softmax(1)
    assert float(distance(a, b, "kl")) == pytest.approx(float(16 * (p * (p / q).log()).sum(1).mean()), rel=1e-4)
    torch.testing.assert_close(distance(a, b, "kl"), distance(a, b + 5, "kl"))


def test_an_unmixed_batch_has_the_plain_cross_entropy():
    a, y = torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    torch.testing.assert_close(hard(a, y, torch.tensor([1, 0, 3, 2]), 1.0), F.cross_entropy(a, y))


# --- stored and pruned


def test_a_student_of_stored_labels_is_the_student_of_made_ones_but_for_float16():
    size = {"views": VIEWS, "epochs": 3, "batch_size": 5, "seed": 2}
    made = train_student(small(), FEW, labels=teacher, **size)
    stored = train_student(small(), FEW, labels=StoredLabels(teacher, FEW.images, **size), **size)
    for a, b in zip(made.parameters(), stored.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_pruned_labels_fit_into_the_bytes_and_each_is_used_with_its_own_view():
    size = {"views": VIEWS, "epochs": 6, "batch_size": 4, "seed": 0}
    whole = StoredLabels(teacher, FEW.images, **size)
    batch = 4 * 3 * 2 + KEY
    few = whole.pruned(3 * batch + 1)
    assert len(few.kept) == 3
    assert few.nbytes == 3 * batch
    assert whole.nbytes == label_bytes(12, 3, epochs=6)  # as it was
    used = set()
    for epoch in range(6):
        for rows, view, soft in few.epoch(FEW.images, epoch):
            torch.testing.assert_close(soft, teacher(view.pixels).half().float())
            used.add(tuple(rows.tolist()))
    assert len(used) == 3
    assert whole.pruned(10**6) is whole
    assert few.kept.keys() == whole.pruned(3 * batch).kept.keys()
    with pytest.raises(ValueError, match="no batch"):
        whole.pruned(batch - 1)


@pytest.mark.parametrize("other", [{"epochs": 2}, {"batch_size": 4}, {"seed": 1}, {"views": Views()}])
def test_labels_stored_for_other_views_are_refused(other):
    size = {"views": VIEWS, "epochs": 3, "batch_size": 5, "seed": 0}
    held = StoredLabels(teacher, FEW.images, **size)
    with pytest.raises(ValueError, match=f"stored for {next(iter(other))}"):
        train_student(small(), FEW, labels=held, **size | other)


def test_labels_stored_for_other_pictures_are_refused():
    size = {"views": VIEWS, "epochs": 1, "batch_size": 5, "seed": 0}
    held = StoredLabels(teacher, FEW.images[:4], **size)
    with pytest.raises(ValueError, match="other pictures"):
        train_student(small(), FEW, labels=held, **size)


# --- seeds, refusals


def test_the_seed_decides_a_student():
    one, two, other = (train_student(small(), FEW, labels=teacher, epochs=2, seed=s)[1].weight for s in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    "bad",
    [{"epochs": 0}, {"batch_size": 0}, {"lr": 0.0}, {"lr": float("nan")}, {"weight": -1.0}, {"loss": "l1"},
     {"seed": -1}],
)  # fmt: skip
def test_what_is_out_of_range_is_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        train_student(small(), FEW, **bad)


def test_a_loss_that_is_no_number_stops_at_once():
    with pytest.raises(FloatingPointError, match="epoch 1"):
        train_student(small(), FEW, labels=lambda view: teacher(view) * float("nan"), epochs=3)


def test_every_epoch_is_told():
    told = []
    train_student(small(), FEW, epochs=3, on_epoch=lambda *a: told.append(a[:2]))
    assert told == [(1, 3), (2, 3), (3, 3)]


# --- networks and teachers


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [8, 28, 33])
def test_a_network_takes_any_size_and_its_seed_decides_it(name, size):
    torch.manual_seed(3)
    one = network(name, 5, width=4)
    torch.manual_seed(3)
    two = network(name, 5, width=4)
    x = torch.rand(2, 3, size, size)
    assert one.eval()(x).shape == (2, 5)
    assert torch.equal(one(x), two.eval()(x))


def test_an_unknown_network_is_refused():
    with pytest.raises(ValueError, match="resnet"):
        network("resnt", 3)


def test_teachers_are_averaged_by_logits_and_keep_their_mode():
    one, two = small(1).train(), small(2)
    x = torch.rand(4, 3, 8, 8)
    found = Mean([one, two])(x)
    torch.testing.assert_close(found, (one(x) + two(x)) / 2)
    assert not torch.allclose(found.softmax(1), (one(x).softmax(1) + two(x).softmax(1)) / 2, atol=1e-5)
    assert one.training
    assert not found.requires_grad


def test_snapshots_are_evenly_spaced_the_end_last_and_weak_ones_are_weaker():
    rng = np.random.default_rng(0)
    classes = torch.arange(90) % 3
    pixels = torch.from_numpy(rng.integers(0, 150, (90, 3, 8, 8)).astype(np.uint8))
    pixels[torch.arange(90), classes] += 60
    found = snapshots(pixels, classes, 3, number=3, epochs=6, width=4, batch_size=15, seed=0)
    longer = snapshots(pixels, classes, 3, number=1, epochs=6, width=4, batch_size=15, seed=0)
    weights = [torch.cat([p.flatten() for p in t.parameters()]) for t in found]
    assert len(found) == 3
    assert torch.equal(weights[-1], torch.cat([p.flatten() for p in longer[0].parameters()]))
    assert (weights[0] - weights[2]).norm() > (weights[1] - weights[2]).norm() > 0
    assert accuracy(found[-1], pixels, classes) > 0.9
    assert not any(p.requires_grad or t.training for t in found for p in t.parameters())


def test_students_module_offers_its_public_name_alone():
    assert students.__all__ == ["train_student"]


def test_what_a_model_says_is_asked_without_a_gradient_in_its_evaluation_mode_and_the_mode_comes_back():
    class Told(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.asked = torch.nn.Parameter(torch.eye(3)), []

        def forward(self, pixels):
            self.asked.append((torch.is_grad_enabled(), self.training))
            return pixels.mean((2, 3)) @ self.weight

    model, pixels = Told().train(), torch.zeros(4, 3, 2, 2, dtype=torch.uint8)
    for row, channel in enumerate((2, 0, 1, 2)):
        pixels[row, channel] = 255
    assert predicted(model, pixels, batch_size=3).tolist() == [2, 0, 1, 2]
    assert model.asked == [(False, False)] * 2
    assert model.training
    assert accuracy(model, pixels, torch.tensor([2, 0, 0, 2])) == 0.75
