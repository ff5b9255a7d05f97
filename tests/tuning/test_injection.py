"""Which layers an adapter goes to: PEFT's LoRA is the oracle wherever it has the option."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import MambaConfig, MambaForCausalLM, MixtralConfig, MixtralForCausalLM

from rankwise.tuning import BitFitConfig, EvaConfig, S2LoraConfig, initialize
from small_models import bert, gpt2, llama, randomise

pytestmark = pytest.mark.filterwarnings("ignore")
CONFIGS = {"s2lora": lambda **o: S2LoraConfig(r=2, **o), "bitfit": BitFitConfig}
LINEARS = ["query", "key", "value", "intermediate.dense", "attention.output.dense", "output.dense"]


def layers(model):
    return {n.removeprefix("base_model.model.") for n, m in model.named_modules() if isinstance(m, BaseTunerLayer)}


def adapted(make, config, **options):
    return layers(get_peft_model(make(), config(**options)))


def mixtral():
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, max_position_embeddings=64,
    )  # fmt: skip
    return MixtralForCausalLM(config).eval()


# --- defaults and the options beside them


@pytest.mark.parametrize(
    "options",
    [
        {"layers_to_transform": [0]},
        {"layers_to_transform": 1},
        {"layers_to_transform": [1], "layers_pattern": "layer"},
        {"exclude_modules": ["key"]},
        {"exclude_modules": r".*layer\.0\..*"},
        {"modules_to_save": ["intermediate"]},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["s2lora", "bitfit"])
def test_default_targets_obey_the_other_options_as_named_ones_do(name, options):
    defaults = LINEARS if name == "s2lora" else [*LINEARS, "LayerNorm"]
    options = {"exclude_modules": ["embeddings.LayerNorm"]} | options
    expected = adapted(bert, CONFIGS[name], **({"target_modules": defaults} | options))
    expected = {n for n in expected if ".encoder." in n}
    assert adapted(bert, CONFIGS[name], **options) == expected
    assert len(expected) < (12 if name == "s2lora" else 16)


def test_options_that_leave_nothing_are_refused_by_name():
    for config in CONFIGS.values():
        with pytest.raises(ValueError, match=r"layers_to_transform=\[7\] leaves no layer of BertForSequence"):
            get_peft_model(bert(), config(layers_to_transform=[7]))


@pytest.mark.parametrize("make", [bert, llama, gpt2])
@pytest.mark.parametrize("task", [None, "SEQ_CLS"])
def test_all_linear_is_pefts(make, task):
    expected = adapted(make, lambda **o: LoraConfig(r=1, **o), target_modules="all-linear", task_type=task)
    for targets in ("all-linear", "ALL-LINEAR"):
        assert adapted(make, CONFIGS["s2lora"], target_modules=targets, task_type=task) == expected
    assert layers(get_peft_model(make(), EvaConfig(r=1, target_modules="all-linear", task_type=task))) == expected


# --- further adapters


@pytest.mark.parametrize("name", list(CONFIGS))
@pytest.mark.parametrize("targets", [None, "all-linear", ["query", "dense"], r".*layer\.1.*(query|key|value)"])
def test_a_further_adapter_finds_the_layers_that_the_first_wrapped(name, targets):
    config = CONFIGS[name](target_modules=targets)
    alone = adapted(bert, CONFIGS[name], target_modules=targets)
    model = get_peft_model(bert(), CONFIGS[name]())
    model.add_adapter("second", config)
    found = {
        n.removeprefix("base_model.model.")
        for n, m in model.named_modules()
        if isinstance(m, BaseTunerLayer) and "second" in m._get_available_adapters()
    }
    assert found == alone


@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_configuration_is_its_owners_and_serves_one_set_of_layers(name):
    config = CONFIGS[name]()
    first = get_peft_model(bert(), config)
    names = set(config.target_modules)
    assert layers(get_peft_model(bert(), config)) == layers(first)  # another model of the same layers
    with pytest.raises(ValueError, match="belongs to an adapter on other layers"):
        get_peft_model(bert(layers=3), config)
    assert config.target_modules == names
    assert len(layers(get_peft_model(bert(layers=3), CONFIGS[name]()))) > len(names)


def test_explicit_targets_do_not_carry_pairs_to_another_model():
    config = S2LoraConfig(r=2, target_modules=["query"])
    get_peft_model(bert(), config)
    with pytest.raises(ValueError, match="belongs to an adapter on other layers"):
        get_peft_model(bert(layers=3), config)


# --- what cannot be adapted


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)])
        self.conv = nn.Conv1d(16, 16, 3, padding=1)

    def forward(self, x):
        return self.conv(self.layers[0](x).mT).mT


@pytest.mark.parametrize(
    ("target", "parent"),
    [("self_attn.out_proj", "MultiheadAttention"), ("linear1", "TransformerEncoderLayer"), ("conv", "Conv1d")],
)
def test_weights_that_are_read_without_a_call_and_convolutions_are_refused_by_s2lora(target, parent):
    with pytest.raises(TypeError, match=rf"{target.rpartition('.')[2]}.*{parent}"):
        get_peft_model(Attention(), S2LoraConfig(r=2, target_modules=[target]))


def test_mambas_fused_projection_is_refused_as_for_lora():
    config = MambaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, state_size=4)
    for options in (LoraConfig(target_modules=["out_proj"]), S2LoraConfig(r=2, target_modules=["out_proj"])):
        with pytest.raises(ValueError, match="out_proj"):
            get_peft_model(MambaForCausalLM(config), options)


def test_experts_in_one_parameter_are_named_not_left_out():
    for make in (lambda: S2LoraConfig(r=2), lambda: EvaConfig(r=2)):
        with pytest.raises(ValueError, match=r"MixtralForCausalLM .*mlp\.experts\.gate_up_proj.*attention"):
            initialize(mixtral(), [{"input_ids": torch.ones(1, 4, dtype=torch.long)}], make())
    attention = ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert len(adapted(mixtral, CONFIGS["s2lora"], target_modules=attention)) == 8


# --- what can


def test_one_row_without_a_batch_goes_through_an_adapted_layer():
    for config in CONFIGS.values():
        model = get_peft_model(bert(), config(target_modules=["query"], init_weights=False))
        layer = model.base_model.model.bert.encoder.layer[0].attention.self.query
        x = torch.randn(3, 16)
        assert layer(x[0]).shape == (16,)
        torch.testing.assert_close(layer(x[0]), layer(x)[0], atol=1e-6, rtol=1e-5)
        assert layer(x[:0]).shape == (0, 16)
        assert layer(x[None, None]).shape == (1, 1, 3, 16)


def test_a_rank_above_a_narrow_layers_side_is_that_side(tmp_path):
    """A head of two classes beside wide layers, as PEFT's LoRA takes it."""
    model = get_peft_model(
        bert(), S2LoraConfig(r=20, target_modules=["query", "key", "intermediate.dense", "classifier"])
    )
    randomise(model)
    ranks = {key: P.shape[1] for key, P in model.base_model.s2lora_P["default"].items()}
    assert ranks == {"16x16": 16, "32x16": 16, "2x16": 2}
    ids = torch.ones(1, 4, dtype=torch.long)
    expected = model.eval()(input_ids=ids).logits
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(bert(), tmp_path).eval()
    assert torch.equal(again(input_ids=ids).logits, expected)
    merged = copy.deepcopy(model).merge_and_unload()
    torch.testing.assert_close(merged(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-5)


def test_one_pair_for_all_shapes_has_the_largest_shapes_rank():
    options = {"share": "max", "target_modules": ["query", "classifier"]}
    model = get_peft_model(bert(), S2LoraConfig(r=8, **options))
    assert model.base_model.s2lora_P["default"]["max"].shape == (16, 8)
