import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from rankwise.tuning import BitFitConfig
from rankwise.tuning.bitfit import biased_modules
from small_models import bert, llama, randomise


def test_only_biases_are_trained_and_there_are_as_many_as_the_model_has(model):
    expected = sum(b.numel() for b in biased_modules(model).values())
    adapted = get_peft_model(model, BitFitConfig())
    assert adapted.get_nb_trainable_parameters()[0] == expected
    assert all("bitfit_bias" in n for n, p in adapted.named_parameters() if p.requires_grad)


def test_starts_at_the_base_model_and_equals_it_with_shifted_biases(model, batch):
    base = model(**batch).logits
    adapted = get_peft_model(model, BitFitConfig()).eval()
    assert torch.equal(adapted(**batch).logits, base)
    randomise(adapted)
    shifted = bert()
    with torch.no_grad():
        for name, bias in biased_modules(shifted).items():
            bias += adapted.base_model.model.get_submodule(name).bitfit_bias["default"]
    expected = shifted(**batch).logits
    torch.testing.assert_close(adapted(**batch).logits, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(
        adapted.merge_and_unload(safe_merge=True)(**batch).logits, expected, atol=1e-6, rtol=1e-5
    )


def test_saves_loads_disables_and_unmerges(model, batch, tmp_path):
    base = model(**batch).logits
    adapted = randomise(get_peft_model(model, BitFitConfig(task_type="SEQ_CLS"))).eval()
    expected = adapted(**batch).logits
    adapted.save_pretrained(tmp_path)
    with adapted.disable_adapter():
        assert torch.equal(adapted(**batch).logits, base)
    adapted.merge_adapter()
    adapted.unmerge_adapter()
    torch.testing.assert_close(adapted(**batch).logits, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(PeftModel.from_pretrained(bert(), tmp_path).eval()(**batch).logits, expected)


def test_gradient_is_the_biases_own(model, batch):
    labels = torch.tensor([0, 1, 1, 0])
    plain = bert()
    plain(**batch, labels=labels).loss.backward()
    adapted = get_peft_model(model, BitFitConfig()).eval()
    adapted(**batch, labels=labels).loss.backward()
    for name, bias in biased_modules(plain).items():
        mine = adapted.base_model.model.get_submodule(name).bitfit_bias["default"].grad
        torch.testing.assert_close(mine, bias.grad, atol=1e-7, rtol=1e-4)


def test_a_model_without_biases_is_refused():
    with pytest.raises(ValueError, match="this model has none"):
        get_peft_model(llama(), BitFitConfig())
    with pytest.raises(ValueError, match=r"q_proj has none"):
        get_peft_model(llama(), BitFitConfig(target_modules=["q_proj"]))


class Norms(nn.Module):
    """Biases in every place that a bias can be."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(
            [
                nn.Conv1d(4, 6, 3, padding=1),
                nn.ConvTranspose1d(6, 6, 3, padding=1),
                nn.BatchNorm1d(6),
                nn.GroupNorm(2, 6),
                nn.Conv1d(6, 6, 1, groups=3),
            ]
        )

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class Images(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Conv3d(1, 2, 2), nn.Bilinear(4, 4, 3)])

    def forward(self, x):
        h = self.layers[1](self.layers[0](x))
        return self.layers[3](self.layers[2](h[:, None]).flatten(1)[:, :4], h.flatten(1)[:, :4])


@pytest.mark.parametrize(
    ("make", "x"),
    [(Norms, torch.randn(3, 4, 6)), (Norms, torch.randn(2, 4, 9)), (Images, torch.randn(2, 3, 6, 6))],
    ids=["as many positions as channels", "other lengths", "images"],
)
@pytest.mark.parametrize("training", [False, True])
def test_an_offset_goes_where_the_bias_goes_in_any_module(make, x, training):
    adapted = randomise(get_peft_model(make(), BitFitConfig())).train(training)
    shifted = make().train(training)
    with torch.no_grad():
        for name, bias in biased_modules(shifted).items():
            bias += adapted.base_model.model.get_submodule(name).bitfit_bias["default"]
    assert len(biased_modules(shifted)) == len(shifted.layers)
    expected = shifted(x)
    torch.testing.assert_close(adapted(x), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(adapted.eval().merge_and_unload()(x), shifted.eval()(x), atol=1e-5, rtol=1e-5)


def test_a_convolution_without_a_batch_is_shifted_by_channel():
    adapted = randomise(get_peft_model(nn.Sequential(nn.Conv1d(4, 6, 3)), BitFitConfig(target_modules=["0"]))).eval()
    x = torch.randn(2, 4, 8)
    torch.testing.assert_close(adapted(x[0]), adapted(x)[0], atol=1e-6, rtol=1e-5)


def test_gradients_of_a_shifted_convolution_are_the_biases_own():
    x, plain, adapted = torch.randn(3, 4, 6), Norms().eval(), get_peft_model(Norms(), BitFitConfig()).eval()
    plain(x).square().sum().backward()
    adapted(x).square().sum().backward()
    for name, bias in biased_modules(plain).items():
        mine = adapted.base_model.model.get_submodule(name).bitfit_bias["default"].grad
        torch.testing.assert_close(mine, bias.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("grad", [True, False], ids=["with gradients", "in the fused path"])
def test_biases_that_a_parent_reads_are_shifted_too(grad):
    def make():
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()

    with pytest.warns(UserWarning, match=r"leaves layers\.0\.self_attn\.in_proj_bias"):
        adapted = randomise(get_peft_model(make(), BitFitConfig())).eval()
    shifted, x = make(), torch.randn(2, 5, 16)
    with torch.no_grad():
        for name, bias in biased_modules(shifted).items():
            bias += adapted.base_model.model.get_submodule(name).bitfit_bias["default"]
    assert {n.rpartition(".")[2] for n in biased_modules(shifted)} == {
        "out_proj",
        "linear1",
        "linear2",
        "norm1",
        "norm2",
    }
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(adapted(x), shifted(x), atol=1e-5, rtol=1e-5)
        with adapted.disable_adapter():
            torch.testing.assert_close(adapted(x), make()(x), atol=1e-5, rtol=1e-5)
        adapted.merge_adapter()
        torch.testing.assert_close(adapted(x), shifted(x), atol=1e-5, rtol=1e-5)
        with adapted.disable_adapter():
            torch.testing.assert_close(adapted(x), make()(x), atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_mixed_batches_through_biases_that_a_parent_reads_are_refused():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    adapted = get_peft_model(nn.Sequential(layer), BitFitConfig()).eval()
    with pytest.raises(ValueError, match=r"TransformerEncoderLayer|MultiheadAttention"):
        adapted(torch.randn(2, 5, 16), adapter_names=["default", "__base__"])
