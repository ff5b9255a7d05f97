import pytest
import torch

from rankwise.models import check_model, load, load_image_processor, load_tokenizer, resolve
from rankwise.models.names import OWN_TASKS
from small_models import bert, clip, deit, saved_with_processor, vit


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


PIXELS = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)


@pytest.mark.parametrize("make", [vit, deit])
def test_an_image_classifier_loads_with_its_own_head(tmp_path, make):
    model = make()
    model.config.id2label = dict(enumerate("abcde"))
    saved_with_processor(model, tmp_path)
    for task in (None, "image-classification"):
        again = load(str(tmp_path), task=task).eval()
        torch.testing.assert_close(again(pixel_values=PIXELS).logits, model(pixel_values=PIXELS).logits)
        assert again.config.id2label[4] == "e"
    assert load(str(tmp_path), task="base").config.model_type == model.config.model_type
    check_model(str(tmp_path), "image-classification")


def test_an_image_classifier_takes_a_new_head_only_when_its_size_is_given(tmp_path):
    saved_with_processor(vit(), tmp_path / "head")
    vit().vit.save_pretrained(tmp_path / "none")
    assert load(str(tmp_path / "head"), task="image-classification", num_labels=7).classifier.out_features == 7
    assert load(str(tmp_path / "none"), task="image-classification", num_labels=7).classifier.out_features == 7
    with pytest.raises(ValueError, match=r"classifier\.bias, classifier\.weight"):
        load(str(tmp_path / "none"), task="image-classification")
    assert type(load(str(tmp_path / "none"))).__name__ == "ViTModel"


def test_a_distilled_deit_keeps_both_heads(tmp_path):
    from transformers import DeiTForImageClassificationWithTeacher

    model = DeiTForImageClassificationWithTeacher(deit().config).eval()
    saved_with_processor(model, tmp_path)
    again = load(str(tmp_path)).eval()
    torch.testing.assert_close(
        again(pixel_values=PIXELS).distillation_logits, model(pixel_values=PIXELS).distillation_logits
    )


def test_a_clip_loads_whole_and_as_a_classifier_with_a_new_head(tmp_path):
    model = clip()
    saved_with_processor(model, tmp_path)
    given = {"pixel_values": PIXELS, "input_ids": torch.tensor([[47, 3, 4, 48]])}
    again = load(str(tmp_path), dropout=0.25)
    torch.testing.assert_close(again.eval()(**given).logits_per_image, model(**given).logits_per_image)
    assert again.config.vision_config.attention_dropout == again.config.text_config.attention_dropout == 0.25
    assert load(str(tmp_path), task="image-classification", num_labels=3).classifier.out_features == 3
    with pytest.raises(ValueError, match=r"classifier\.bias"):
        load(str(tmp_path), task="image-classification")


def test_a_tower_that_is_absent_is_no_new_head(tmp_path):
    from safetensors.torch import load_file, save_file

    saved_with_processor(clip(), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(
        {k: v for k, v in tensors.items() if "vision_model.encoder.layers.1" not in k},
        tmp_path / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(ValueError, match=r"do not fill|vision_model"):
        load(str(tmp_path), task="image-classification", num_labels=3)


@pytest.mark.parametrize("task", ["classification", "causal-lm", "asr", "zero-shot-image"])
def test_an_image_classifier_is_refused_for_other_tasks(tmp_path, task):
    saved_with_processor(vit(), tmp_path)
    for refusing in (check_model, lambda name, task: load(name, task=task)):
        with pytest.raises(ValueError, match="is a vit model: its task is image-classification"):
            refusing(str(tmp_path), task)


@pytest.mark.parametrize("task", ["image-classification", "zero-shot-image"])
def test_a_text_model_is_refused_for_images(tmp_path, task):
    bert().save_pretrained(tmp_path)
    for name in (str(tmp_path), "minilm"):
        with pytest.raises(ValueError, match=f"{task} needs a"):
            check_model(name, task)
    with pytest.raises(ValueError, match=f"{task} needs a"):
        load(str(tmp_path), task=task)


def test_the_types_of_image_models_are_those_of_transformers():
    from transformers.models.auto import modeling_auto as auto

    for task, mapping in (
        ("image-classification", auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES),
        ("zero-shot-image", auto.MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES),
    ):
        assert {kind for kind, tasks in OWN_TASKS.items() if task in tasks} <= set(mapping)


def test_images_are_prepared_as_the_checkpoint_says(tmp_path):
    import numpy as np
    from PIL import Image

    saved_with_processor(vit(), tmp_path)
    image = Image.fromarray(np.full((32, 32, 3), 255, np.uint8))
    assert load_image_processor(str(tmp_path))(image, return_tensors="pt")["pixel_values"].unique().tolist() == [1.0]
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match=r"has no preprocessor_config\.json"):
        load_image_processor(str(tmp_path))
