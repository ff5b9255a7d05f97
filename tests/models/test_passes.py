"""What a batch may be, and which rows of a layer's input count."""

import pytest
import torch
from torch import nn
from transformers import BartConfig, BartForSequenceClassification, T5Config, T5ForConditionalGeneration

from rankwise.models import linear_layers
from rankwise.models.activations import ActivationSpectra, gather, input_norms
from rankwise.models.passes import Passes, evaluating
from small_models import bert, llama, whisper

HEAD = "bert.encoder.layer.0.attention.self.query"


def t5():
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=50,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        decoder_start_token_id=0,
        dropout_rate=0.0,
    )
    return T5ForConditionalGeneration(config).eval()


def rows_of(model, batch, *layers, **options):
    """What each layer's readers were given, stacked."""
    seen = {n: [] for n in layers}
    modules = {n: model.get_submodule(n) for n in layers}
    passes = Passes(model, **options)
    with torch.no_grad(), evaluating(model):
        passes.run(batch, {m: seen[n].append for n, m in modules.items()})
    return [torch.cat(seen[n]) for n in layers]


def ids(*shape, seed=1):
    return torch.randint(1, 50, shape, generator=torch.Generator().manual_seed(seed))


def test_every_modules_own_mode_comes_back():
    model = bert()
    model.train()
    model.bert.embeddings.eval()
    modes = [m.training for m in model.modules()]
    gather(model, [{"input_ids": ids(2, 4)}], {HEAD: model.get_submodule(HEAD)}, n_components=1)
    assert [m.training for m in model.modules()] == modes
    input_norms(model, [{"input_ids": ids(2, 4)}], {HEAD: model.get_submodule(HEAD)})
    assert [m.training for m in model.modules()] == modes
    with pytest.raises(RuntimeError), evaluating(model):
        raise RuntimeError
    assert [m.training for m in model.modules()] == modes


ENCODER = "encoder.block.0.layer.0.SelfAttention.q"
CROSS_KEY = "decoder.block.1.layer.1.EncDecAttention.k"
CROSS_QUERY = "decoder.block.1.layer.1.EncDecAttention.q"


@pytest.mark.parametrize("target_length", [5, 7])
def test_encoder_and_decoder_positions_have_their_own_masks(target_length):
    """Of equal length too, where shapes cannot tell the sides apart."""
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, 4:] = 0
    labels = ids(2, target_length)
    labels[0, 2:] = -100
    batch = {"input_ids": ids(2, 7), "attention_mask": mask, "labels": labels}
    found = rows_of(t5(), batch, ENCODER, CROSS_KEY, CROSS_QUERY, label_mask_value=-100)
    assert [len(x) for x in found] == [11, 11, 2 + target_length]


def test_decoder_inputs_that_are_given_are_masked_by_their_own_mask():
    target_mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]])
    batch = {"input_ids": ids(2, 4), "decoder_input_ids": ids(2, 4), "decoder_attention_mask": target_mask}
    assert [len(x) for x in rows_of(t5(), batch, ENCODER, CROSS_KEY, CROSS_QUERY)] == [8, 8, 5]


def test_encoder_outputs_that_are_given_are_the_encoders():
    model = t5()
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]])
    states = model.get_encoder()(input_ids=ids(2, 4), attention_mask=mask)
    batch = {"encoder_outputs": states, "attention_mask": mask, "decoder_input_ids": ids(2, 4)}
    assert [len(x) for x in rows_of(model, batch, CROSS_KEY, CROSS_QUERY)] == [5, 8]


def test_a_whisper_batch_of_features_and_labels_is_read():
    model = whisper()
    labels = ids(2, 6)
    labels[1, 3:] = -100
    batch = {"input_features": torch.randn(2, 8, 400), "labels": labels}
    names = list(linear_layers(model))
    spectra = gather(model, [batch], {n: model.get_submodule(n) for n in names}, n_components=2)
    n = {k: spectra.stream(k).n_samples for k in names}
    assert n["model.encoder.layers.0.self_attn.q_proj"] == n["model.decoder.layers.0.encoder_attn.k_proj"] == 2 * 200
    assert n["model.decoder.layers.0.self_attn.q_proj"] == n["model.decoder.layers.1.fc1"] == 6 + 3
    assert set(input_norms(model, [batch], {k: model.get_submodule(k) for k in names})) == set(names)


def test_a_classifier_with_a_decoder_masks_the_padding_that_the_decoder_reads():
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=50, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=32,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=2, num_labels=2,
    )  # fmt: skip
    tokens = ids(2, 6)
    tokens[:, 3] = 2
    tokens[:, 4:] = 0
    tokens[:, :3] = tokens[:, :3].clamp(min=3)
    batch = {"input_ids": tokens, "attention_mask": (tokens != 0).long(), "labels": torch.tensor([0, 1])}
    name = "model.decoder.layers.0.fc1"
    assert len(rows_of(BartForSequenceClassification(config).eval(), batch, name)[0]) == 8


def test_labels_that_are_no_token_labels_mask_nothing():
    model = bert()
    for labels in (torch.zeros(4), torch.zeros(4, 2), torch.zeros(4, 6), torch.tensor([0, 1, 0, 1])):
        batch = {"input_ids": ids(4, 6), "labels": labels - 100 if labels.is_floating_point() else labels}
        assert len(rows_of(model, batch, HEAD, label_mask_value=-100)[0]) == 24


def test_scalars_and_options_reach_the_model_as_they_are():
    model, seen = bert(), {}
    forward = model.forward

    def spy(**given):
        seen.update(given)
        return forward(**{k: v for k, v in given.items() if k != "scale"})

    model.forward = spy
    batch = {
        "input_ids": ids(3, 5),
        "attention_mask": torch.ones(3, 5),
        "scale": torch.tensor(2.0),
        "return_dict": True,
    }
    batch["attention_mask"][1, 3:] = 0
    spectra = gather(model, [batch], {HEAD: model.get_submodule(HEAD)}, n_components=2)
    assert spectra.stream(HEAD).n_samples == 13
    assert seen["scale"].dim() == 0
    assert seen["return_dict"] is True


def test_tensors_that_are_not_one_entry_a_row_are_never_cut():
    model = bert()
    mask = torch.ones(4, 6, dtype=torch.long)
    mask[1:, 3:] = 0
    batch = {"input_ids": ids(4, 6), "attention_mask": mask, "position_ids": torch.arange(6)[None]}
    without = {k: v for k, v in batch.items() if k != "position_ids"}
    one, other = (input_norms(model, [b], {HEAD: model.get_submodule(HEAD)})[HEAD] for b in (batch, without))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert gather(model, [batch], {HEAD: model.get_submodule(HEAD)}, n_components=2).stream(HEAD).n_samples == 15


@pytest.mark.parametrize("batch", [(ids(2, 3), torch.zeros(2)), [ids(2, 3)], ids(2, 3)])
def test_batches_that_are_no_mappings_are_refused_with_the_fix(batch):
    model = bert()
    layers = {HEAD: model.get_submodule(HEAD)}
    with pytest.raises(TypeError, match=r"a batch is a dict .*for x, _ in loader"):
        gather(model, [batch], layers, n_components=1)
    with pytest.raises(TypeError, match=type(batch).__name__):
        input_norms(model, [batch], layers)


class Experts(nn.Module):
    """Two experts; the second sees tokens of class 1 only, and the flat rows of a batch."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4), "o": nn.Linear(4, 4)})])

    def forward(self, x, attention_mask=None):
        block, flat = self.layers[0], x.flatten(0, 1)
        out = block["o"](flat)
        return out + sum(
            block[n](flat[flat[:, 0] > t]).sum() for n, t in (("a", -9), ("b", 5)) if (flat[:, 0] > t).any()
        )


def test_experts_that_the_first_row_does_not_reach_are_read_later():
    model, x = Experts(), torch.randn(3, 5, 4)
    x[2, :, 0] = 9.0
    names = [f"layers.0.{n}" for n in "abo"]
    spectra = gather(model, [{"x": x}], {n: model.get_submodule(n) for n in names}, n_components=1)
    assert [spectra.stream(n).n_samples for n in names] == [15, 5, 15]
    with pytest.raises(ValueError, match=r"layer layers\.0\.b did not run"):
        gather(model, [{"x": x[:2]}], {n: model.get_submodule(n) for n in names}, n_components=1)


def test_padding_of_flattened_rows_is_dropped_too():
    model, mask = Experts(), torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert len(rows_of(model, {"x": torch.randn(2, 3, 4), "attention_mask": mask}, "layers.0.o")[0]) == 3


class Twice(nn.Module):
    """A layer that is called twice in a forward pass."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4)])

    def forward(self, x):
        return self.layers[0](input=self.layers[0](x))


def test_every_call_of_a_shared_layer_is_read():
    model = Twice()
    spectra = gather(model, [{"x": torch.randn(6, 4)}], {"layers.0": model.layers[0]}, n_components=1)
    assert spectra.stream("layers.0").n_samples == 12


def test_damaged_and_strange_states_are_refused_by_name(tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(ValueError, match=r"eva_state\.safetensors"):
        ActivationSpectra.load(tmp_path)
    (tmp_path / "eva_state.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        ActivationSpectra.load(tmp_path)
    save_file({"x": torch.ones(2)}, tmp_path / "eva_state.safetensors")
    with pytest.raises(ValueError, match="does not hold activation spectra"):
        ActivationSpectra.load(tmp_path)


def test_saved_spectra_come_back_bit_for_bit(tmp_path):
    model = llama()
    names = list(linear_layers(model))
    spectra = gather(model, [{"input_ids": ids(4, 6)}], {n: model.get_submodule(n) for n in names}, n_components=2)
    spectra.save(tmp_path / "state")
    again = ActivationSpectra.load(tmp_path / "state")
    assert (again.leader, again.batches) == (spectra.leader, 1)
    for name in names:
        for one, other in zip(again.stream(name).components(2), spectra.stream(name).components(2), strict=True):
            assert torch.equal(one, other)
