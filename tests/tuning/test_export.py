import json
import subprocess
import sys

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel, VeraConfig, get_peft_model
from safetensors.torch import load_file

from rankwise.tuning import BitFitConfig, S2LoraConfig, export_lora
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
    written = export_lora(adapted, tmp_path / "out")
    assert set(written.ranks.values()) == {1, 2}
    assert len(written.ranks) == 8  # of twelve, a third has none
    for name, tensor in load_file(tmp_path / "out/adapter_model.safetensors").items():
        if "lora_A" in name:
            assert len(tensor) == written.ranks[name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")]


def test_scale_is_right_for_readers_that_know_one_alpha_and_each_layers_rank(batch, tmp_path):
    adapted = sparse(randomise(get_peft_model(bert(), S2LoraConfig(r=3))))
    export_lora(adapted, tmp_path / "out")
    alpha = json.loads((tmp_path / "out/adapter_config.json").read_text())["lora_alpha"]
    tensors = load_file(tmp_path / "out/adapter_model.safetensors")
    for name, layer in adapted.named_modules():
        if isinstance(layer, S2LoraLayer) and f"{name}.lora_A.weight" in tensors:
            A, B = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
            torch.testing.assert_close(alpha / len(A) * B @ A, layer.get_delta_weight("default"), atol=1e-6, rtol=1e-5)


def test_truncation_is_the_best_of_its_rank_and_its_error_is_reported(tmp_path):
    adapted = randomise(get_peft_model(bert(), LoraConfig(r=4, lora_alpha=4, target_modules=["query"]))).eval()
    layer = adapted.base_model.model.bert.encoder.layer[0].attention.self.query
    S = torch.linalg.svdvals(layer.get_delta_weight("default").double())
    written = export_lora(adapted, tmp_path / "out", max_rank=2)
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
