"""What goes beside the weights, and what must not."""

import json

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rankwise.merging import merge_checkpoints, prepare
from rankwise.merging.engine.templates import TEMPLATES
from small_checkpoints import tensors, tiny

OLD, NEW = "{{ 'old' }}", "{{ 'new' }}"


def model(folder, *, template=None, seed=0):
    """A model folder with a tokenizer."""
    torch.manual_seed(seed)
    tiny().save_pretrained(folder)
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate("abcdef")}, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="a", eos_token="b")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


def average(*folders, **changes):
    return {"merge_method": "linear", "models": [{"model": str(f)} for f in folders], **changes}


FILES = [
    "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", "preprocessor_config.json",
    "processor_config.json", "video_preprocessor_config.json", "sentencepiece.bpe.model", "tokenizer.model",
    "spiece.model", "normalizer.json", "generation_config.json", "vocab.json", "merges.txt", "special_tokens_map.json",
    "added_tokens.json", "cl100k.tiktoken", "chat_template.jinja",
]  # fmt: skip


def test_all_that_loading_needs_goes_along_and_nothing_else(tmp_path):
    a, b = model(tmp_path / "a"), model(tmp_path / "b", seed=1)
    content = {name: f'["{name}"]' if name.endswith(".json") else name for name in FILES}
    content |= {"modules.json": json.dumps([{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Normalize"}])}
    content |= {
        "generation_config.json": '{"max_new_tokens": 3}',
        "special_tokens_map.json": "{}",
        "added_tokens.json": "{}",
    }
    for name, text in content.items():
        (a / name).write_text(text)
    (a / "1_Pooling").mkdir()
    (a / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    strange = [
        "optimizer.pt",
        "training_args.bin",
        ".env",
        "notes.txt",
        "modeling_own.py",
        "README.md",
        "runs/log.json",
    ]
    (a / "runs").mkdir()
    for name in strange:
        (a / name).write_text("secret")
    ready = merge_checkpoints(average(a, b), tmp_path / "out")
    for name, text in content.items():
        assert (tmp_path / "out" / name).read_text() == text, name
    assert (tmp_path / "out" / "1_Pooling" / "config.json").is_file()
    written = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert not written & set(strange) - {"README.md"}
    assert "secret" not in (tmp_path / "out" / "README.md").read_text()
    assert any("code is not copied: modeling_own.py" in n for n in ready.notes)


def test_modules_with_weights_of_their_own_have_to_be_the_same(tmp_path):
    folders = [model(tmp_path / n, seed=i) for i, n in enumerate("ab")]
    for i, folder in enumerate(folders):
        (folder / "modules.json").write_text(json.dumps([{"path": ""}, {"path": "2_Dense"}]))
        (folder / "2_Dense").mkdir()
        save_file({"linear.weight": torch.full((2, 2), float(i))}, folder / "2_Dense" / "model.safetensors")
    with pytest.raises(ValueError, match=r"2_Dense/model.safetensors holds weights that are not merged, and .*b has"):
        prepare(average(*folders))
    save_file({"linear.weight": torch.zeros(2, 2)}, folders[1] / "2_Dense" / "model.safetensors")
    merge_checkpoints(average(*folders), tmp_path / "out")
    assert tensors(tmp_path / "out" / "2_Dense")["linear.weight"].sum() == 0


@pytest.mark.parametrize("path", ["../secrets", "/etc", "a/../..", 3])
def test_modules_outside_the_folder_are_refused(tmp_path, path):
    a = model(tmp_path / "a")
    (a / "modules.json").write_text(json.dumps([{"path": ""}, {"path": path}]))
    with pytest.raises(ValueError, match=r"modules.json names paths outside its folder"):
        prepare(average(a))


@pytest.mark.parametrize(
    "name", ["tokenizer_secrets.json", "config.json", "generation_config.json", "vocab.txt", "tokenizer.model"]
)
def test_a_link_to_outside_of_the_model_is_not_followed_into_the_result(tmp_path, name):
    a = model(tmp_path / "a")
    secret = tmp_path / "secret.json"
    old = a / name
    secret.write_bytes(old.read_bytes() if old.exists() else b"{}")
    old.unlink(missing_ok=True)
    old.symlink_to(secret)
    with pytest.raises(ValueError, match=rf"{name} is a link to outside of its folder, and would be copied"):
        merge_checkpoints(average(a), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_behind_a_link_is_not_written_anew_either(tmp_path):
    a, b = model(tmp_path / "a"), model(tmp_path / "b", seed=1)
    (b / "tokenizer.json").rename(tmp_path / "elsewhere.json")
    (b / "tokenizer.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(ValueError, match=r"b/tokenizer.json is a link to outside"):
        prepare(average(a, b, tokenizer_source="union"))


def test_links_within_the_hubs_cache_are_the_models_own_files(tmp_path):
    real = model(tmp_path / "real")
    cache = tmp_path / "models--owner--a"
    snapshot = cache / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for i, path in enumerate(sorted(real.iterdir())):
        path.rename(cache / "blobs" / str(i))
        (snapshot / path.name).symlink_to(f"../../blobs/{i}")
    merge_checkpoints(average(snapshot), tmp_path / "out")
    assert not (tmp_path / "out" / "tokenizer.json").is_symlink()
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out")) == 6


# chat templates


def of(folder):
    return AutoTokenizer.from_pretrained(folder).chat_template


@pytest.mark.parametrize("asked", [NEW, "chatml", "auto"])
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("source", [None, "union"])
def test_a_chat_template_that_is_given_is_the_only_one_left(tmp_path, asked, inside, source):
    folders = [model(tmp_path / n, template=t, seed=i) for i, (n, t) in enumerate([("a", OLD), ("b", NEW), ("c", NEW)])]
    if inside:  # as files of before: in tokenizer_config.json, and one of a processor beside it
        path = folders[0] / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": OLD}))
        (folders[0] / "chat_template.jinja").unlink()
        (folders[0] / "chat_template.json").write_text(json.dumps({"chat_template": OLD}))
        (folders[0] / "additional_chat_templates").mkdir()
        (folders[0] / "additional_chat_templates" / "tool.jinja").write_text(OLD)
    changes = {} if source is None else {"tokenizer_source": source}
    merge_checkpoints(average(*folders, chat_template=asked, **changes), tmp_path / "out")
    assert of(tmp_path / "out") == (TEMPLATES[asked] if asked == "chatml" else NEW)
    texts = [p.read_text() for p in (tmp_path / "out").rglob("*") if p.suffix in (".json", ".jinja")]
    assert not any("'old'" in t for t in texts)


def test_without_a_choice_the_leads_template_stays(tmp_path):
    folders = [model(tmp_path / n, template=t, seed=i) for i, (n, t) in enumerate([("a", OLD), ("b", NEW)])]
    merge_checkpoints(average(*folders), tmp_path / "out")
    assert of(tmp_path / "out") == OLD
    merge_checkpoints(average(*folders, tokenizer_source="union"), tmp_path / "union")
    assert of(tmp_path / "union") == OLD


def test_a_template_needs_a_tokenizer_and_auto_one_to_choose(tmp_path):
    with pytest.raises(ValueError, match="none of the models has one"):
        prepare(average(model(tmp_path / "a"), chat_template="auto"))
    tiny().save_pretrained(tmp_path / "bare")
    for asked in ("auto", "chatml", NEW):
        with pytest.raises(ValueError, match="bare has no tokenizer"):
            prepare(average(tmp_path / "bare", chat_template=asked))


def test_a_tokenizer_that_cannot_be_loaded_is_named_where_it_is_needed(tmp_path):
    a, b = model(tmp_path / "a"), model(tmp_path / "b", seed=1)
    (b / "tokenizer.json").write_text('{"version": 3}')
    assert any("the tokenizers are not compared: the tokenizer of" in n for n in prepare(average(a, b)).notes)
    with pytest.raises(ValueError, match=r"the tokenizer of .*b cannot be loaded"):
        prepare(average(a, b, tokenizer_source="union"))
    (b / "tokenizer.json").write_text("[" * 200_000)
    with pytest.raises(ValueError, match=r"the tokenizer of .*b cannot be loaded"):
        prepare(average(a, b, tokenizer_source="union"))


def test_the_card_names_hub_models_without_revision_or_adapter(tmp_path):
    a = model(tmp_path / "a")
    ready = prepare(average(a))
    from rankwise.merging.engine.companions import _card

    ready.sources.update({"owner/x@main+owner/lora": ready.lead, "owner/x": ready.lead})
    assert "base_model:\n- owner/x\n---" in _card(ready, "")
