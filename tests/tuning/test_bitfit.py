import pytest
import torch
from peft import PeftModel, get_peft_model

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
