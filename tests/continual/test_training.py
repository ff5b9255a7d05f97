"""The training loop beside torch's own pieces, and a training that was cut short."""

import pytest
import torch
from torch import nn

from rankwise.continual import Schedule
from rankwise.continual.training import rows_of, train


def weights():
    torch.manual_seed(0)
    return {"w": nn.Parameter(torch.randn(3, 2)), "b": nn.Parameter(torch.randn(2))}


def loss_of(p, dropout=0.3):
    x = torch.arange(12.0).view(4, 3) / 10
    return lambda step: (nn.functional.dropout(x @ p["w"] + p["b"], dropout) - step / 10).square().mean()


def test_steps_are_adamws_with_a_cosine():
    schedule, mine, theirs = Schedule(steps=20, learning_rate=0.1, betas=(0.8, 0.99)), weights(), weights()
    losses = train(mine, loss_of(mine, 0.0), schedule, 0)
    optimizer = torch.optim.AdamW([*theirs.values()], lr=0.1, betas=(0.8, 0.99), weight_decay=0.0)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    for step in range(20):
        optimizer.zero_grad()
        loss = loss_of(theirs, 0.0)(step)
        loss.backward()
        optimizer.step()
        cosine.step()
        assert losses[step] == pytest.approx(loss.item(), rel=1e-5)
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name])


def test_passes_see_every_row_once_in_orders_of_their_own():
    for number, size in ((10, 5), (11, 4), (3, 8)):
        per = number // min(size, number)
        passes = [[r for s in range(per) for r in rows_of(p * per + s, number, size, 7)] for p in range(3)]
        for seen in passes:
            assert len(seen) == len(set(seen)) == per * min(size, number)
            assert set(seen) <= set(range(number))
        assert passes[0] != passes[1]
    assert rows_of(0, 100, 10, 1) != rows_of(0, 100, 10, 2)
    assert rows_of(3, 100, 10, 1) == rows_of(3, 100, 10, 1)


class Killed(BaseException):
    pass


def test_a_training_cut_short_goes_on_to_the_same_numbers(tmp_path):
    schedule, whole, cut = Schedule(steps=23, learning_rate=0.05), weights(), weights()
    expected = train(whole, loss_of(whole), schedule, 3)
    path = tmp_path / "state.safetensors"

    def kill(step, loss):
        if step == 12:
            raise Killed

    with pytest.raises(Killed):
        train(cut, loss_of(cut), schedule, 3, checkpoint=path, every=5, on_step=kill, told="me")
    again, steps = weights(), []
    torch.manual_seed(99)
    losses = train(
        again, loss_of(again), schedule, 3, checkpoint=path, every=5, told="me", on_step=lambda s, _: steps.append(s)
    )
    assert steps[0] == 10
    assert losses == expected
    assert all(torch.equal(again[n], whole[n]) for n in whole)
    other, steps = weights(), []
    train(other, loss_of(other), schedule, 3, checkpoint=path, told="you", on_step=lambda s, _: steps.append(s))
    assert steps[0] == 0


def test_the_generator_of_the_caller_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    p = weights()
    torch.manual_seed(5)
    train(p, loss_of(p), Schedule(steps=2), 0)
    assert torch.equal(torch.rand(3), expected)


def test_a_loss_that_is_not_finite_stops():
    p = weights()
    with pytest.raises(FloatingPointError, match="nan at step 2"):
        train(p, lambda s: p["w"].sum() * (float("nan") if s == 2 else 1), Schedule(steps=5), 0)


@pytest.mark.parametrize(
    ("options", "match"), [({"steps": 0}, "steps=0"), ({"batch_size": 0}, "batch_size=0"),
                           ({"learning_rate": 0.0}, "learning_rate=0.0"), ({"learning_rate": float("nan")}, "nan"),
                           ({"precision": "bf8"}, "bf16")]
)  # fmt: skip
def test_schedules_out_of_range_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        Schedule(**options)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_products_have_the_schedules_precision_and_weights_stay_as_they_are(precision, dtype):
    p, seen = weights(), []

    def loss(step):
        product = torch.arange(12.0).view(4, 3) @ p["w"]
        seen.append(product.dtype)
        return (product.float() + p["b"]).square().mean()

    train(p, loss, Schedule(steps=2, precision=precision), 0)
    assert seen == [dtype] * 2
    assert {x.dtype for x in p.values()} == {torch.float32}


def test_defaults_are_the_papers():
    s = Schedule()
    assert (s.steps, s.batch_size, s.learning_rate, s.betas) == (500, 64, 5e-4, (0.9, 0.9999))
