"""What makes labels: zero-shot until it has learned, adapters on every kind of convolution, a head that is rebuilt."""

import copy

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import nn
from transformers import CLIPModel

from rankwise.vision.distilled import projector as projectors
from rankwise.vision.distilled.projector import Projector, Seeing, adapted, based, numbers, ranks
from seeing import PLAIN, Convolutions, Words

TEXTS = ["a red photo", "a green photo", "the blue one"]


def stirred(model, seed=0):
    """Adapters that do something."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in numbers(model).values():
            p.copy_(0.1 * torch.randn(p.shape, generator=g))
    return model


def test_with_fresh_adapters_logits_are_the_clips_own_zero_shot_logits(clip):
    x = torch.rand(4, 3, 16, 16)
    seeing = Seeing(size=16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    encoder, rows = based(clip, TEXTS, Words())
    plain = Projector(encoder, rows, seeing)
    said = plain(x)
    assert torch.equal(adapted(Projector(encoder, rows, seeing), rank=2)(x), said)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (seeing.mean, seeing.std))
    with torch.no_grad():
        own = clip(pixel_values=(x - mean) / std, **Words()(TEXTS)).logits_per_image
    torch.testing.assert_close(said, own, atol=1e-4, rtol=1e-5)


def test_the_clip_that_was_given_is_not_touched(clip):
    before = {n: v.clone() for n, v in clip.state_dict().items()}
    stirred(adapted(Projector(*based(clip, TEXTS, Words()), PLAIN), rank=2))
    assert all(torch.equal(v, before[n]) for n, v in clip.state_dict().items())
    assert all(p.requires_grad for p in clip.parameters())


def test_every_convolution_and_linear_layer_has_an_adapter_of_its_rank_and_the_head_one_of_its_own(convolutions, head):
    held = ranks(Projector(convolutions, head, PLAIN), 4, 2)
    assert held == {"encoder.body.0": 4, "encoder.body.3": 4, "encoder.out": 4, "head": 2}
    wide = ranks(Projector(convolutions, head, PLAIN), 64, 64)
    assert wide == {"encoder.body.0": 8, "encoder.body.3": 8, "encoder.out": 6, "head": 3}
    model = adapted(Projector(convolutions, head, PLAIN), rank=4, head_rank=2)
    assert isinstance(model, PeftModel)
    assert {n: tuple(p.shape) for n, p in numbers(model).items() if "lora_A" in n} == {
        "encoder.body.0.lora_A.weight": (4, 3, 3, 3), "encoder.body.3.lora_A.weight": (4, 8, 1, 1),
        "encoder.out.lora_A.weight": (4, 32),
        "head.lora_A.weight": (2, 6),
    }  # fmt: skip


def test_a_convolution_in_groups_is_left_as_it_is_and_so_are_weights_that_attention_reads_itself(convolutions, head):
    assert convolutions.body[4].groups == 2
    assert "encoder.body.4" not in ranks(Projector(convolutions, head, PLAIN), 4, 2)
    attention = nn.Sequential(nn.Flatten(), nn.MultiheadAttention(6, 1))
    assert list(ranks(Projector(attention, head, PLAIN), 4, 2)) == ["head"]


def test_an_encoders_own_head_is_no_head_of_texts():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(12, 6)

        def forward(self, x):
            return self.head(x.flatten(1))

    rows = torch.randn(5, 6)
    model = adapted(Projector(Named(), rows, Seeing()), rank=2, head_rank=4)
    shapes = {n: p.shape[0] for n, p in numbers(model).items() if "lora_A" in n}
    assert shapes == {"encoder.head.lora_A.weight": 2, "head.lora_A.weight": 4}


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_merged_is_unmerged(rank, convolutions, head):
    model = stirred(adapted(Projector(convolutions, head, PLAIN), rank=rank, head_rank=2))
    x = torch.rand(3, 3, 16, 16)
    with torch.no_grad():
        before = model(x)
        merged = copy.deepcopy(model).merge_and_unload()
        torch.testing.assert_close(merged(x), before, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(before, Projector(convolutions, head, PLAIN)(x), atol=1e-2)


def test_the_adapted_head_is_w0_and_a_product_of_its_rank(convolutions, head):
    model = stirred(adapted(Projector(convolutions, head, PLAIN), rank=1, head_rank=2))
    A, B = (numbers(model)[f"head.lora_{k}.weight"] for k in "AB")
    features = F.normalize(torch.randn(4, 6), dim=1)
    inner = model.base_model.model
    torch.testing.assert_close(inner.head(features), features @ (head + B @ A).T)


def test_only_the_adapters_numbers_are_trained_and_statistics_stand_still(convolutions, head):
    model = adapted(Projector(convolutions, head, PLAIN), rank=2)
    model.train()
    before = model.base_model.model.encoder.body[1].running_mean.clone()
    model(torch.rand(4, 3, 16, 16)).sum().backward()
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in numbers(model).values()}
    assert torch.equal(model.base_model.model.encoder.body[1].running_mean, before)


def test_pictures_of_another_size_are_scaled_to_the_bases(clip):
    model = Projector(*based(clip, TEXTS, Words()), PLAIN)
    grey = torch.full((1, 3, 40, 40), 0.3)
    torch.testing.assert_close(model(grey), model(grey[..., :16, :16]), atol=1e-4, rtol=1e-4)


def test_texts_that_a_base_reads_alike_are_found(clip):
    _, rows = based(clip, ["a red photo", "a green photo", "a red photo"], Words())
    assert projectors.same_rows(rows) == [(0, 2)]


def test_a_head_of_other_numbers_is_refused_and_another_machines_rounding_is_not(head):
    told = projectors.checksum(head)
    projectors.check_rows(head, told)
    projectors.check_rows(head * (1 + 1e-6), told)
    with pytest.raises(ValueError, match="another than the one"):
        projectors.check_rows(head + 0.01, told)
    with pytest.raises(ValueError, match="another than the one"):
        projectors.check_rows(head[:2], told)


def test_adapters_of_other_names_or_shapes_are_refused(convolutions, head):
    model = adapted(Projector(convolutions, head, PLAIN), rank=2)
    held = {n: p.detach().clone() for n, p in numbers(model).items()}
    projectors.give(model, held)
    with pytest.raises(ValueError, match="does not fit"):
        projectors.give(model, {n: p for n, p in held.items() if "head" not in n})
    other = adapted(Projector(convolutions, head, PLAIN), rank=4)
    with pytest.raises(ValueError, match="this base needs"):
        projectors.give(other, held)


def test_numbers_beyond_float16_are_refused_and_others_are_what_float16_holds(convolutions, head):
    model = stirred(adapted(Projector(convolutions, head, PLAIN), rank=2))
    projectors.halved(model)
    assert all(torch.equal(p, p.half().float()) for p in numbers(model).values())
    with torch.no_grad():
        next(iter(numbers(model).values()))[0] = 1e6
    with pytest.raises(ValueError, match="beyond float16"):
        projectors.halved(model)


def test_what_is_no_clip_is_refused(clip, convolutions):
    with pytest.raises(ValueError, match="CLIPModel"):
        based(convolutions, TEXTS, Words())
    with pytest.raises(ValueError, match="needs its tokenizer"):
        based(clip, TEXTS)
    with pytest.raises(ValueError, match="head of numbers"):
        based("clip-cifar10", torch.randn(3, 96))
    with pytest.raises(ValueError, match="finite"):
        based(Convolutions(), torch.tensor([[1.0], [float("nan")]]))
    with pytest.raises(ValueError, match="images and words"):
        based("minilm", TEXTS)
    assert isinstance(clip, CLIPModel)
