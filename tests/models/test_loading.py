import pytest
import torch

from rankwise.models import load, load_tokenizer, resolve
from small_models import bert


def test_minilm_is_the_real_model():
    model, tokenizer = load("minilm", task="base"), load_tokenizer("minilm")
    assert sum(p.numel() for p in model.parameters()) == 22_713_216
    batch = tokenizer(
        ["A cat sits.", "A kitten is sitting.", "Interest rates rose."], padding=True, return_tensors="pt"
    )
    hidden, mask = model.eval()(**batch).last_hidden_state, batch["attention_mask"][..., None]
    a, b, c = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    assert a @ b > 0.6 > 0.3 > a @ c


def test_smollm2_is_the_real_model_and_cached_as_safetensors():
    model, tokenizer = load("smollm2"), load_tokenizer("smollm2")
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    out = model.generate(**ids, max_new_tokens=8, do_sample=False)
    assert "Paris" in tokenizer.decode(out[0, ids["input_ids"].shape[1] :])
    assert model.config.tie_word_embeddings


def test_folder_head_and_dropout(tmp_path):
    bert().save_pretrained(tmp_path)
    model = load(str(tmp_path), task="classification", num_labels=5, dropout=0.0)
    assert model.classifier.out_features == 5
    assert model.config.hidden_dropout_prob == 0.0
    assert load(str(tmp_path), task="classification", num_labels=1).config.problem_type == "regression"


def test_hub_ids_pass_through_and_other_names_offer_the_nearest(tmp_path):
    assert resolve("owner/model") == "owner/model"
    with pytest.raises(ValueError, match="unknown model 'minlm'; did you mean minilm"):
        resolve("minlm")
    with pytest.raises(ValueError, match=r"no config\.json"):
        resolve(str(tmp_path))
    with pytest.raises(ValueError, match="did you mean classification"):
        load("minilm", task="clasification")


def test_truncated_weights_name_the_file(tmp_path):
    bert().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=rf"{tmp_path}.*Is the file whole"):
        load(str(tmp_path), task="classification")
