"""Blocks on linear layers against PEFT's LoRA, row by row, and orthogonality against finite differences."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import small_models
from rankwise.continual.unlearning.blocks import acting, fresh, overlap
from rankwise.models import linear_layers

IDS = torch.arange(4, 24).reshape(4, 5)


def drawn(layers, rank, seed):
    g = torch.Generator().manual_seed(seed)
    return {
        n: (torch.randn(A.shape, generator=g) / 4, torch.randn(B.shape, generator=g) / 4)
        for n, (A, B) in fresh(layers, rank, [], seed=0).items()
    }


@pytest.fixture(params=["llama", "gpt2"])
def model(request):
    return small_models.MAKERS[request.param]()


def test_at_weight_zero_the_model_is_what_it_was_bit_for_bit(model):
    layers = linear_layers(model)
    plain = model(IDS).logits
    with acting(layers, [drawn(layers, 2, 1)], torch.zeros(4, 1)):
        assert torch.equal(model(IDS).logits, plain)
        assert not any(layer._forward_hooks for layer in layers.values())
    assert torch.equal(model(IDS).logits, plain)


def test_at_weight_one_it_is_pefts_lora(model):
    layers = linear_layers(model)
    block = drawn(layers, 2, 1)
    with acting(layers, [block], torch.ones(4, 1), scaling=1.5):
        ours = model(IDS).logits
    theirs = get_peft_model(model, LoraConfig(r=2, lora_alpha=3, target_modules=list(layers)))
    for name, layer in theirs.named_modules():
        if hasattr(layer, "lora_A"):
            A, B = block[name.removeprefix("base_model.model.")]
            layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data = A, B
    torch.testing.assert_close(ours, theirs(IDS).logits, rtol=1e-4, atol=1e-5)


def test_rows_of_a_batch_have_weights_of_their_own(model):
    layers = linear_layers(model)
    blocks, weights = [drawn(layers, 2, 1), drawn(layers, 3, 2)], torch.tensor([[0, 1.0], [0.5, 0], [1.2, 1], [0, 0]])
    with acting(layers, blocks, weights):
        together = model(IDS).logits
    for i in range(4):
        with acting(layers, blocks, weights[i : i + 1]):
            torch.testing.assert_close(together[i : i + 1], model(IDS[i : i + 1]).logits, rtol=1e-4, atol=1e-5)


def test_beams_of_a_row_keep_its_weight():
    model = small_models.llama()
    layers = linear_layers(model)
    weights = torch.tensor([[1.0], [0.0]])
    with acting(layers, [drawn(layers, 2, 1)], weights):
        doubled = model(IDS[:2].repeat_interleave(2, 0)).logits
        torch.testing.assert_close(doubled[::2], model(IDS[:2]).logits)


def test_a_batch_of_another_number_of_rows_is_refused():
    model = small_models.llama()
    layers = linear_layers(model)
    with acting(layers, [drawn(layers, 2, 1)], torch.ones(3, 1)), pytest.raises(ValueError, match="3 weights"):
        model(IDS)


def test_hooks_are_gone_after_an_error():
    model = small_models.llama()
    layers = linear_layers(model)
    with pytest.raises(RuntimeError), acting(layers, [drawn(layers, 2, 1)], torch.ones(1, 1)):
        raise RuntimeError
    assert not any(layer._forward_hooks for layer in layers.values())


def test_overlap_is_the_squared_norm_of_products_and_zero_iff_rows_are_orthogonal():
    layer = {"a": nn.Linear(6, 4)}
    A = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    block = {"a": (A, torch.zeros(4, 2))}
    assert overlap(block, [block]) == pytest.approx(float((A @ A.T).square().sum()), rel=1e-6)
    apart = fresh(layer, 2, [block], seed=1)
    assert overlap(apart, [block]) == pytest.approx(0, abs=1e-10)
    assert apart["a"][0].abs().max() > 0.05
    tilted = {"a": (apart["a"][0] + 0.1 * A, apart["a"][1])}
    assert overlap(tilted, [block]) > 1e-3


def test_overlaps_sum_over_layers_and_earlier_blocks():
    g = torch.Generator().manual_seed(0)
    block, one, two = ({n: (torch.randn(2, 6, generator=g), torch.zeros(4, 2)) for n in "ab"} for _ in range(3))
    by_hand = sum((e[n][0] @ block[n][0].T).square().sum() for e in (one, two) for n in "ab")
    torch.testing.assert_close(overlap(block, [one, two]), by_hand)


def test_gradient_of_the_overlap_is_that_of_finite_differences():
    g = torch.Generator().manual_seed(0)
    A, E = torch.randn(2, 5, generator=g, dtype=torch.float64), torch.randn(3, 5, generator=g, dtype=torch.float64)
    empty = torch.zeros(4, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a: overlap({"a": (a, empty)}, [{"a": (E, empty)}]), A.requires_grad_())


def test_a_fresh_block_changes_nothing_and_is_decided_by_its_seed(model):
    layers = linear_layers(model)
    one, again, other = (fresh(layers, 2, [], seed=s) for s in (1, 1, 2))
    assert all(not B.any() for _, B in one.values())
    assert all(torch.equal(one[n][0], again[n][0]) for n in one)
    assert not any(torch.equal(one[n][0], other[n][0]) for n in one)


def test_scaling_one_orthogonal_block_leaves_inputs_of_the_other_alone():
    layer = {"a": nn.Linear(8, 4)}
    first = {n: (A, torch.ones(4, 2)) for n, (A, _) in fresh(layer, 2, [], seed=0).items()}
    second = {n: (A, torch.ones(4, 2)) for n, (A, _) in fresh(layer, 2, [first], seed=1).items()}
    x = (torch.randn(3, 2) @ first["a"][0])[:, None]  # inputs in the first one's row space
    with acting(layer, [first, second], torch.tensor([[1.0, 0.0]])):
        one = layer["a"](x)
    with acting(layer, [first, second], torch.tensor([[1.0, 5.0]])):
        torch.testing.assert_close(layer["a"](x), one)


def test_the_order_of_blocks_does_not_matter(model):
    layers = linear_layers(model)
    a, b = drawn(layers, 2, 1), drawn(layers, 2, 2)
    with acting(layers, [a, b], torch.ones(1, 2)):
        one = model(IDS).logits
    with acting(layers, [b, a], torch.ones(1, 2)):
        torch.testing.assert_close(model(IDS).logits, one, rtol=1e-4, atol=1e-5)
