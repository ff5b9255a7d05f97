"""TENT and CoTTA against their published rules, written out by hand."""

import copy

import pytest
import torch
from torch import nn

from rankwise.continual import CoTTA, Settings, Tent
from rankwise.continual.tent import entropy
from small_models import vit
from streams import Shades, base, batches


def test_tent_is_one_step_on_entropy_over_the_norms_alone():
    model = base()
    twin = copy.deepcopy(model)
    mine = Tent(model, preset=Settings(optimizer="sgd", momentum=0.9, lr=0.05))
    norms = [p for m in twin.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters()]
    optimizer = torch.optim.SGD(norms, lr=0.05, momentum=0.9, nesterov=True)
    for x in batches():
        logits = twin(x).logits
        p = logits.softmax(1)
        loss = -(p * p.log()).sum() / len(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        torch.testing.assert_close(mine.predict(x), logits.detach(), atol=1e-5, rtol=1e-4)
    for (name, p), (_, q) in zip(mine.model.named_parameters(), twin.named_parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-5, rtol=1e-4, msg=name)
    assert all("layernorm" in n for n in mine.trained)
    assert len(mine.trained) == 2 * (2 * 2 + 1)


def test_tents_entropy_falls_on_a_batch_seen_again():
    mine, x = Tent(base(), lr=1e-3), batches(1)[0]
    values = [float(entropy(mine.predict(x))) for _ in range(5)]
    assert values == sorted(values, reverse=True)


def test_tent_of_a_model_without_norms_is_refused():
    with pytest.raises(ValueError, match="Tent finds nothing to train"):
        Tent(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)))


def test_tent_gives_the_model_back():
    model = vit(layers=2)
    mine = Tent(model, lr=1e-2)
    for x in batches():
        mine.predict(x)
    assert mine.release() is model
    plain = dict(vit(layers=2).named_parameters())
    assert all(torch.equal(p, plain[n]) and p.requires_grad for n, p in model.named_parameters())


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_cotta_is_the_published_loop(threshold):
    model = base()
    student, teacher, anchor = (copy.deepcopy(model) for _ in range(3))
    mine = CoTTA(
        model,
        preset=Settings(n_aug=3, augmentation=Shades(), threshold=threshold, lr=1e-3, alpha=0.7, chunk=4),
    )
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)
    draws = torch.Generator().manual_seed(0)
    for x in batches():
        with torch.no_grad():
            sure = anchor(x).logits.softmax(1).max(1).values.mean()
            expected = teacher(x).logits
            if sure < threshold:
                views = [teacher(x * float(torch.rand(1, generator=draws))).logits for _ in range(3)]
                expected = torch.stack(views).mean(0)
        loss = -(expected.softmax(1) * student(x).logits.log_softmax(1)).sum() / len(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for t, s in zip(teacher.parameters(), student.parameters(), strict=True):
                t.copy_(0.7 * t + 0.3 * s)
        torch.testing.assert_close(mine.predict(x), expected, atol=1e-4, rtol=1e-4)
    for (name, p), (_, q) in zip(mine.model.named_parameters(), student.named_parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=2e-4, rtol=1e-3, msg=name)


def test_cotta_restores_at_its_rate_and_its_state_goes_on(tmp_path):
    settings = Settings(n_aug=2, augmentation=Shades(), restore=0.3, lr=1e-2)
    mine, xs = CoTTA(base(), preset=settings), batches(4)
    mine.predict(xs[0])
    moved = torch.cat([(p != mine.source[n]).flatten() for n, p in mine.trained.items()]).float()
    assert float(moved.mean()) == pytest.approx(0.7, abs=5 * (0.3 * 0.7 / len(moved)) ** 0.5)  # 5 standard errors
    mine.predict(xs[1])
    mine.save(tmp_path / "state")
    again = CoTTA(base(), preset=settings).load(tmp_path / "state")
    for x in xs[2:]:
        assert torch.equal(again.predict(x), mine.predict(x))
    with pytest.raises(ValueError, match="another method"):
        Tent(base(), preset=settings).load(tmp_path / "state")


def test_presets_are_the_published_ones():
    cotta, tent = CoTTA.presets["cifar10c"], Tent.presets["cifar10c"]
    assert (cotta.lr, cotta.n_aug, cotta.threshold, cotta.restore, cotta.alpha) == (1e-3, 32, 0.92, 0.01, 0.999)
    assert (tent.lr, tent.optimizer) == (1e-3, "adam")
