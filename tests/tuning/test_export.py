import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from peft import AdaLoraConfig, IA3Config, LoraConfig, LoraGAConfig, PeftModel, VeraConfig, get_peft_model
from peft.tuners.lora.config import BdLoraConfig, MontecloraConfig
from safetensors.torch import load_file
from torch import nn

from rankwise.tuning import BitFitConfig, S2LoraConfig, export_lora
from rankwise.tuning.export import UNSAYABLE
from rankwise.tuning.s2lora import S2LoraLayer
from small_models import MAKERS, bert, randomise

CONFIGS = {
    "s2lora": lambda: S2LoraConfig(r=3),
    "lora": lambda: LoraConfig(r=3, lora_alpha=7, target_modules="all-linear", rank_pattern={}),
    "adalora": lambda: AdaLoraConfig(init_r=3, target_r=3, total_step=10, target_modules="all-linear"),
    "vera": lambda: VeraConfig(r=3, target_modules="all-linear"),
}


def sparse(adapted, keep=2):
    """Zero all but some of the coefficients, so that layers have different ranks and one has none."""
    with torch.no_grad():
        for i, layer in enumerate(m for m in adapted.modules() if isinstance(m, S2LoraLayer)):
            layer.s2lora_lambda["default"][i % (keep + 1) :] = 0
    return adapted


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
@pytest.mark.parametrize("method", ["s2lora", "lora", "adalora"])
@pytest.mark.parametrize("pad", [False, True])
def test_stock_peft_gives_the_same_logits(kind, method, pad, batch, tmp_path):
    adapted = randomise(get_peft_model(MAKERS[kind](), CONFIGS[method]())).eval()
    if method == "s2lora":
        sparse(adapted)
    expected = adapted(**batch).logits
    written = export_lora(adapted, tmp_path / "out", pad=pad)
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    if pad:
        assert set(written.ranks.values()) == {8}
        assert not config["rank_pattern"]
    stock = PeftModel.from_pretrained(MAKERS[kind](), tmp_path / "out").eval()
    torch.testing.assert_close(stock(**batch).logits, expected, atol=1e-5, rtol=1e-5)


def test_vera_on_equal_shapes_converts_too(batch, tmp_path):
    adapted = randomise(get_peft_model(bert(), VeraConfig(r=3, target_modules=["query", "key"]))).eval()
    export_lora(adapted, tmp_path / "out")
    stock = PeftModel.from_pretrained(bert(), tmp_path / "out").eval()
    torch.testing.assert_close(stock(**batch).logits, adapted(**batch).logits, atol=1e-5, rtol=1e-5)


def test_zero_directions_and_layers_are_dropped(batch, tmp_path):
    adapted = sparse(randomise(get_peft_model(bert(), S2LoraConfig(r=3)))).eval()
    written = export_lora(adapted, tmp_path / "out", pad=False)
    assert set(written.ranks.values()) == {1, 2}
    assert len(written.ranks) == 8  # of twelve, a third has none
    for name, tensor in load_file(tmp_path / "out/adapter_model.safetensors").items():
        if "lora_A" in name:
            assert len(tensor) == written.ranks[name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")]


def test_truncation_is_the_best_of_its_rank_and_its_error_is_reported(tmp_path):
    adapted = randomise(get_peft_model(bert(), LoraConfig(r=4, lora_alpha=4, target_modules=["query"]))).eval()
    layer = adapted.base_model.model.bert.encoder.layer[0].attention.self.query
    S = torch.linalg.svdvals(layer.get_delta_weight("default").double())
    written = export_lora(adapted, tmp_path / "out", max_rank=2, pad=False)
    assert set(written.ranks.values()) == {2}
    assert written.error >= float(S[2:].norm() / S.norm()) - 1e-6
    assert written.error < 1


def test_head_travels_and_a_process_without_rankwise_gives_the_same_logits(batch, tmp_path):
    bert().save_pretrained(tmp_path / "base")
    adapted = randomise(get_peft_model(bert(), S2LoraConfig(r=3, task_type="SEQ_CLS"))).eval()
    with torch.no_grad():
        adapted.base_model.model.classifier.modules_to_save["default"].weight.normal_()
    export_lora(adapted, tmp_path / "out")
    torch.save({"batch": batch, "logits": adapted(**batch).logits.detach()}, tmp_path / "expected.pt")
    code = f"""
import sys, torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification
saved = torch.load(r'{tmp_path}/expected.pt', weights_only=True)
base = AutoModelForSequenceClassification.from_pretrained(r'{tmp_path}/base')
model = PeftModel.from_pretrained(base, r'{tmp_path}/out').eval()
torch.testing.assert_close(model(**saved['batch']).logits, saved['logits'], atol=1e-5, rtol=1e-5)
assert 'rankwise' not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_what_cannot_be_exported_says_so(tmp_path):
    with pytest.raises(ValueError, match="nothing to export"):
        export_lora(get_peft_model(bert(), S2LoraConfig(r=2)), tmp_path / "a")
    with pytest.raises(TypeError, match="export it merged"):
        export_lora(get_peft_model(bert(), BitFitConfig()), tmp_path / "b")
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()


def readers(folder):
    """Layer deltas as three programs compute them from a file: PEFT, one alpha / r for all, alpha over its own rank."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    for name, A in tensors.items():
        if name.endswith("lora_A.weight"):
            short, B = name.removesuffix(".lora_A.weight"), tensors[name.replace("lora_A", "lora_B")]
            plain = short.removeprefix("base_model.model.")
            peft = config["lora_alpha"] / config["rank_pattern"].get(plain, config["r"])
            yield short, B @ A, peft, config["lora_alpha"] / config["r"], config["lora_alpha"] / len(A)


@pytest.mark.parametrize("method", ["s2lora", "lora", "adalora"])
def test_by_default_every_reader_of_the_file_finds_the_same_deltas(method, tmp_path):
    adapted = randomise(get_peft_model(bert(), CONFIGS[method]()))
    if method == "s2lora":
        sparse(adapted)
    export_lora(adapted, tmp_path / "out")
    seen = list(readers(tmp_path / "out"))
    assert len(seen) >= 8
    for name, product, *scales in seen:
        expected = adapted.get_submodule(name).get_delta_weight("default")
        for scale in scales:
            torch.testing.assert_close(scale * product, expected, atol=1e-6, rtol=1e-5)


def test_without_padding_peft_and_readers_of_the_tensors_rank_agree_and_one_scale_for_all_is_wrong(tmp_path):
    adapted = sparse(randomise(get_peft_model(bert(), S2LoraConfig(r=3))))
    export_lora(adapted, tmp_path / "out", pad=False)
    wrong = []
    for name, product, peft, for_all, own in readers(tmp_path / "out"):
        expected = adapted.get_submodule(name).get_delta_weight("default")
        for scale in (peft, own):
            torch.testing.assert_close(scale * product, expected, atol=1e-6, rtol=1e-5)
        wrong.append(not torch.allclose(for_all * product, expected, atol=1e-4))
    assert any(wrong)


VARIANTS = {
    "use_dora": {"use_dora": True},
    "lora_bias": {"lora_bias": True},
    "bias": {"bias": "lora_only"},
    "alora_invocation_tokens": {"alora_invocation_tokens": [1, 2]},
    "kasa_config": {"kasa_config": {}},
    "monteclora_config": {"monteclora_config": MontecloraConfig()},
    "use_bdlora": {"use_bdlora": BdLoraConfig(target_modules_bd_a=["query"], nblocks=1)},
    "trainable_token_indices": {"trainable_token_indices": {"word_embeddings": [1, 2]}},
    "layer_replication": {"layer_replication": [(0, 2), (1, 2)]},
    "init_lora_weights='pissa'": {"init_lora_weights": "pissa"},
    "init_lora_weights='pissa_niter_2'": {"init_lora_weights": "pissa_niter_2"},
    "init_lora_weights='olora'": {"init_lora_weights": "olora"},
    "init_lora_weights='lora_ga'": {"init_lora_weights": "lora_ga", "lora_ga_config": LoraGAConfig()},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", list(VARIANTS))
def test_a_variant_that_plain_lora_cannot_say_is_refused_by_name(name, tmp_path):
    adapted = get_peft_model(bert(), LoraConfig(r=2, target_modules=["query"], **VARIANTS[name]))
    with pytest.raises(TypeError, match=name):
        export_lora(adapted, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "options",
    [
        {"init_lora_weights": "mica"},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": "gaussian"},
        {"velora_config": {}},
        {"use_rslora": True, "lora_alpha": 5},
        {"rank_pattern": {"query": 3}, "alpha_pattern": {"key": 7}},
        {"lora_dropout": 0.1},
    ],
    ids=str,
)
def test_a_variant_whose_forward_pass_is_plain_loras_is_exported(options, batch, tmp_path):
    adapted = randomise(get_peft_model(bert(), LoraConfig(r=2, target_modules=["query", "key"], **options))).eval()
    export_lora(adapted, tmp_path / "out")
    stock = PeftModel.from_pretrained(bert(), tmp_path / "out").eval()
    torch.testing.assert_close(stock(**batch).logits, adapted(**batch).logits, atol=1e-5, rtol=1e-5)


def test_every_option_of_lora_is_looked_at():
    """A later PEFT's options appear here: can a plain LoRA say them?"""
    said = {
        "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
        "inference_mode", "r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out",
        "use_rslora", "modules_to_save", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern",
        "runtime_config", "ensure_weight_tying", "velora_config",
        # those of other starts, without effect where init_lora_weights is not theirs
        "loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size", "megatron_core",
    }  # fmt: skip
    variants = {f.name for f in dataclasses.fields(LoraConfig) if f.metadata.get("is_lora_variant")}
    checked = {"bias", "init_lora_weights"} | set(UNSAYABLE) | variants
    assert {f.name for f in dataclasses.fields(LoraConfig)} == said | checked


@pytest.mark.filterwarnings("ignore")
def test_trained_biases_of_other_methods_are_refused_too(tmp_path):
    for config in (S2LoraConfig(r=2, bias="all"), VeraConfig(r=2, target_modules=["query"], bias="vera_only")):
        with pytest.raises(TypeError, match="bias="):
            export_lora(get_peft_model(bert(), config), tmp_path / "out")


class Various(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb, self.conv, self.lin = nn.Embedding(9, 4), nn.Conv1d(4, 4, 3, padding=1), nn.Linear(4, 4)
        self.mha = nn.MultiheadAttention(4, 1)
        self.w = nn.ParameterDict({"x": nn.Parameter(torch.ones(2, 4, 4))})

    def forward(self, ids):
        return self.lin(self.conv(self.emb(ids).mT).mT)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("target", "kind"), [("emb", "Embedding"), ("conv", "Conv1d"), ("mha", "MultiheadAttention")])
def test_loras_of_other_layers_than_linear_ones_are_refused_by_name(target, kind, tmp_path):
    adapted = get_peft_model(Various(), LoraConfig(r=2, target_modules=[target, "lin"]))
    with pytest.raises(TypeError, match=kind):
        export_lora(adapted, tmp_path / "out")


def test_other_methods_are_refused_by_name(tmp_path):
    with pytest.raises(TypeError, match="IA3"):
        export_lora(get_peft_model(bert(), IA3Config(target_modules=["query"], feedforward_modules=[])), tmp_path / "a")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_factors_that_are_not_finite_are_named_and_nothing_is_written(value, tmp_path):
    adapted = randomise(get_peft_model(bert(), LoraConfig(r=2, target_modules=["query"])))
    with torch.no_grad():
        adapted.base_model.model.bert.encoder.layer[1].attention.self.query.lora_B["default"].weight[0, 0] = value
    with pytest.raises(ValueError, match=r"layer\.1\.attention\.self\.query\.lora_B.*nothing was written"):
        export_lora(adapted, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_factors_that_overflow_the_asked_type_are_named(tmp_path):
    adapted = randomise(get_peft_model(bert(), LoraConfig(r=2, target_modules=["query"])))
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_B" in name:
                p.mul_(1e6)
    with pytest.raises(ValueError, match="float16"):
        export_lora(adapted, tmp_path / "out", dtype=torch.float16)
    assert set(export_lora(adapted, tmp_path / "out", dtype=torch.bfloat16).ranks.values()) == {8}
