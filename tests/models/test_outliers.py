import pytest
import torch
from torch import nn

from rankwise.models import blocks, linear_layers
from rankwise.models.activations import input_norms
from rankwise.models.outliers import outlier_scores
from small_models import bert, gpt2, llama


def planted(per_layer, value=100.0):
    """Blocks of constant weights with so many outliers each."""
    model = llama()
    with torch.no_grad():
        for n, layer in linear_layers(model).items():
            layer.weight.fill_(0.01)
            for index, count in enumerate(per_layer):
                if n == f"model.layers.{index}.mlp.up_proj":
                    layer.weight.view(-1)[:count] = value
    return model


def test_planted_outliers_are_counted_exactly():
    model = planted([3, 7])
    entries = sum(layer.weight.numel() for n, layer in linear_layers(model).items() if ".0." in n)
    expected = 100 * torch.tensor([3, 7], dtype=torch.float64) / entries
    torch.testing.assert_close(outlier_scores(model, threshold=13), expected)


def test_the_mean_is_the_blocks_not_the_matrix():
    """One matrix a thousand times larger: no entry stands out within it, all of them stand out in the block."""
    model = llama()
    with torch.no_grad():
        for layer in linear_layers(model).values():
            layer.weight.fill_(0.01)
        k = model.model.layers[0].self_attn.k_proj.weight
        k.fill_(10.0)
    entries = sum(layer.weight.numel() for n, layer in linear_layers(model).items() if ".0." in n)
    scores = outlier_scores(model, threshold=5)
    assert scores[0] == pytest.approx(100 * k.numel() / entries)
    assert scores[1] == 0


def test_scaling_all_weights_changes_nothing():
    a, b = llama(), llama()
    with torch.no_grad():
        for layer in linear_layers(b).values():
            layer.weight.mul_(7)
    torch.testing.assert_close(outlier_scores(a, threshold=2), outlier_scores(b, threshold=2))


@pytest.mark.parametrize("make", [llama, gpt2, bert])
def test_inputs_weigh_the_entries(make):
    model, ids = make(), torch.randint(0, 50, (4, 9))
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    batches = [{"input_ids": ids, "attention_mask": mask}]
    with_data = outlier_scores(model, batches, threshold=2)
    assert not torch.equal(with_data, outlier_scores(model, threshold=2))
    linear = linear_layers(model)
    norms = input_norms(model, batches, linear)
    name, layers = blocks(model)
    entries = []
    for n, layer in linear.items():
        if n.startswith(f"{name}.0."):
            W = layer.weight.detach() if isinstance(layer, nn.Linear) else layer.weight.detach().T
            entries.append((W.abs().double() * norms[n]).flatten())
    A = torch.cat(entries)
    assert float(with_data[0]) == pytest.approx(100 * float((2 * A.mean() < A).double().mean()), abs=0.05)
    assert len(with_data) == len(layers)


def test_input_norms_leave_padding_out():
    model, ids = llama(), torch.randint(0, 50, (2, 6))
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    linear = linear_layers(model)
    padded = input_norms(model, [{"input_ids": ids, "attention_mask": mask}], linear)
    first = input_norms(model, [{"input_ids": ids[:1]}], linear)
    second = input_norms(model, [{"input_ids": ids[1:, :3]}], linear)
    for n in linear:
        together = (first[n].square() + second[n].square()).sqrt()
        torch.testing.assert_close(padded[n], together, rtol=1e-4, atol=1e-5)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="empty"):
        outlier_scores(llama(), [])
    with pytest.raises(ValueError, match="threshold=0"):
        outlier_scores(llama(), threshold=0)
    model = llama()
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"NaN or Inf in model.layers.1"):
        outlier_scores(model)


def test_the_longer_stack_holds_the_blocks():
    assert blocks(llama())[0] == "model.layers"
    assert blocks(gpt2())[0] == "transformer.h"
    assert blocks(bert())[0] == "bert.encoder.layer"
    assert blocks(llama(), layers_attribute="model.layers")[0] == "model.layers"
