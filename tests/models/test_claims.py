"""What a model folder may claim: compared with its weights before anything is built; never any code of its own."""

import json
import shutil
import time
from contextlib import suppress

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import OPTConfig, OPTModel, RobertaConfig, RobertaModel
from typer.testing import CliRunner

from attack import folders
from rankwise.cli.main import app
from rankwise.models import load, load_tokenizer, model_fingerprint
from rankwise.models.embedding import TextEncoder
from rankwise.models.loading import _dequantised, most_tokens, pretrained
from rankwise.models.names import check_own_files
from small_models import bert, gpt2, llama, whisper


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return {kind: folders.model(tmp_path_factory.mktemp(kind), kind) for kind in ("bert", "llama")}


@pytest.fixture
def changed(whole, tmp_path):
    """A copy of a model folder with other entries in a JSON file of it; names may be ``outer.inner``."""

    def change(entries, kind="llama", file="config.json"):
        for path in whole[kind].iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        tree = json.loads((tmp_path / file).read_text())
        for name, value in entries.items():
            *above, last = name.split(".")
            inner = tree
            for key in above:
                inner = inner.setdefault(key, {})
            inner[last] = value
        (tmp_path / file).write_text(json.dumps(tree))
        return tmp_path

    return change


@pytest.mark.parametrize(
    ("kind", "entries"),
    [
        ("llama", {"num_hidden_layers": 10**9}),
        ("llama", {"num_hidden_layers": 10**30}),
        ("llama", {"num_hidden_layers": 1e9}),
        ("llama", {"vocab_size": 10**9}),
        ("llama", {"hidden_size": 10**9}),
        ("llama", {"num_attention_heads": 10**9}),
        ("llama", {"max_position_embeddings": 10**9}),
        ("llama", {"text_config.num_hidden_layers": 10**9}),
        ("llama", {"depths": [2, 10**9]}),
        ("bert", {"num_labels": 10**9}),
        ("bert", {"max_position_embeddings": 10**9}),
        ("bert", {"type_vocab_size": 10**9}),
        ("llama", {"n_layer": 10**9, "model_type": "gpt2"}),
    ],
)
def test_a_configuration_that_its_weights_cannot_fill_is_refused_before_anything_is_built(changed, kind, entries):
    folder, start = changed(entries, kind), time.perf_counter()
    with pytest.raises(
        ValueError, match=rf"config\.json: {next(iter(entries)).replace('.', '[.]')} is 1.*but the weights"
    ):
        load(str(folder), task="classification")
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("entries", [{"vocab_size": 1_900_000, "hidden_size": 1024}, {"intermediate_size": 1_900_000}])
def test_many_moderate_sizes_that_multiply_are_refused_too(changed, entries):
    with pytest.raises(ValueError, match=r"describes a model of .* numbers; the weights beside it have"):
        load(str(changed(entries | {"num_hidden_layers": 60, "hidden_size": 4096})), task="classification")


@pytest.mark.parametrize("maker", [bert, llama, gpt2, whisper])
def test_honest_models_load_with_every_number(tmp_path, maker):
    made = maker()
    made.save_pretrained(tmp_path)
    folders.tokenizer().save_pretrained(tmp_path)
    task = {"bert": "classification", "whisper": "asr"}.get(maker.__name__, "causal-lm")
    state = load(str(tmp_path), task=task).state_dict()
    assert all(torch.equal(state[n], value) for n, value in made.state_dict().items())
    load(str(tmp_path), task="base")
    if task == "causal-lm":
        assert load(str(tmp_path), task="classification", num_labels=7).config.num_labels == 7  # a new head


@pytest.mark.parametrize(
    ("entries", "task"), [({"num_hidden_layers": 3}, "causal-lm"), ({"intermediate_size": 31}, "classification")]
)
def test_a_model_that_would_partly_be_random_is_refused(changed, entries, task):
    with pytest.raises(ValueError, match=r"do not fill|would be random|cannot be read as"):
        load(str(changed(entries)), task=task)


def test_a_configuration_that_nests_deeply_is_refused(changed):
    folder = changed({})
    (folder / "config.json").write_text('{"a": ' + "[" * 100_000)
    with pytest.raises(ValueError, match=r"config\.json nests deeper"):
        load(str(folder))


def test_files_of_absurd_size_are_not_read(changed):
    folder = changed({})
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        with (folder / name).open("r+b") as stream:
            size = stream.seek(0, 2)
            stream.truncate(1 << 30)
        with pytest.raises(ValueError, match=rf"{name} has 1,073,741,824 bytes"):
            load_tokenizer(str(folder))
        with (folder / name).open("r+b") as stream:
            stream.truncate(size)
    load_tokenizer(str(folder))


@pytest.mark.parametrize(("place", "name"), [("vocab", "yes"), ("added", "id")])
def test_a_tokens_number_beyond_any_vocabulary_is_refused(changed, place, name):
    folder = changed({})
    tree = json.loads((folder / "tokenizer.json").read_text())
    holder = tree["model"]["vocab"] if place == "vocab" else tree["added_tokens"][0]
    old, holder[name] = holder[name], 2**31
    (folder / "tokenizer.json").write_text(json.dumps(tree))
    with pytest.raises(ValueError, match=r"tokenizer\.json: .* is 2,147,483,648, more than a token's number may be"):
        load_tokenizer(str(folder))
    holder[name] = old
    tree["model"]["vocab"]['": 123456789'] = 320  # a text, not a number
    (folder / "tokenizer.json").write_text(json.dumps(tree))
    load_tokenizer(str(folder))


def test_pickled_weights_are_named_and_not_opened(changed, tmp_path):
    class Planted:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    folder = changed({})
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({**state, "planted": Planted()}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is pickled and is not opened"):
        load(str(folder))
    assert not (tmp_path / "ran").exists()


def test_tensors_that_overlap_are_refused(changed):
    folder = changed({})
    state = load_file(folder / "model.safetensors")
    save_file(state, folder / "model.safetensors")
    data = (folder / "model.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    names = [n for n in header if n != "__metadata__"]
    header[names[1]] = header[names[0]]
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read as safetensors"):
        load(str(folder))


# code of its own


@pytest.fixture
def planted(changed):
    """A model folder that brings code, which leaves a file where it runs."""

    def plant(kind="llama"):
        maps = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model", "AutoTokenizer": [None, "code.Tok"]}
        maps |= dict.fromkeys(("AutoModel", "AutoModelForSequenceClassification"), "code.Model")
        folder = changed({"model_type": "its own", "auto_map": maps}, kind)
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        settings |= {"auto_map": maps, "tokenizer_class": "Tok"}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        (folder / "code.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\n")
        return folder

    return plant


def commands(folder):
    adapter = folder.parent / f"{folder.name}-adapter"
    adapter.mkdir(exist_ok=True)
    (adapter / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(folder), "target_modules": ["q_proj"], "r": 2})
    )
    save_file({"x": torch.ones(1)}, adapter / "adapter_model.safetensors")
    trained = shutil.copytree(adapter, folder.parent / f"{folder.name}-trained", dirs_exist_ok=True)
    about = {"task": "classification", "method": "lora", "base": str(folder), "labels": ["a", "b"]}
    about["base_content"] = model_fingerprint(str(folder), weights_only=True)
    (trained / "rankwise.json").write_text(json.dumps(about))
    out = folder.parent / f"{folder.name}-out"
    recipe = folder.parent / f"{folder.name}.yaml"
    recipe.write_text(
        f"merge_method: linear\nmodels:\n  - model: {folder}\n  - model: {folder}\ntokenizer_source: union\n"
    )
    texts = folders.texts(folder.parent / f"{folder.name}.jsonl")
    return {
        "inspect": ["inspect", folder],
        "answer": ["answer", "--model", folder, "--question", "a", "--choices", "b", "--choices", "c"],
        "select": ["select", "--model", folder, "--pool", texts, "--queries", texts, "--out", out],
        "compress": ["compress", "--model", folder, "--data", texts, "--ratio", "0.5", "--out", out],
        "compare": ["compare", texts, texts, "--model", folder],
        "export": ["export", adapter, "--out", out],
        "predict": ["predict", trained, "--model", folder, "--text", "a"],
        "adapt": ["adapt", "--model", folder, "--data", texts, "--steps", "1", "--out", out],
        "merge": ["merge", recipe, "--out", out],
    }


@pytest.mark.parametrize(
    "command", ["inspect", "answer", "select", "compress", "compare", "export", "predict", "adapt", "merge"]
)
def test_code_beside_a_model_never_runs_whatever_is_piped_in(planted, command):
    folder = planted()
    done = CliRunner().invoke(app, [str(a) for a in commands(folder)[command]], input="y\n" * 20)
    assert not (folder / "ran").exists()
    assert "[y/N]" not in done.output
    if command != "merge":  # which reads tensors and tokens, and builds no model
        assert isinstance(done.exception, ValueError)
        assert done.exit_code != 0


def test_the_error_says_that_there_is_code(planted):
    folder = planted()
    with pytest.raises(ValueError, match="brings code of its own, which rankwise never runs"):
        load(str(folder))


def test_a_kernel_of_a_hub_is_not_asked_for(changed):
    folder = changed({"_attn_implementation": "owner/kernel"})
    with pytest.raises(ValueError, match="names code on a hub"):
        load(str(folder))


def test_whatever_a_library_says_is_one_error_that_names_the_folder(changed):
    from transformers import AutoConfig

    for value in ("float", [1], {"a": 1}, None):
        folder = changed({"hidden_size": value, "num_attention_heads": "many"})
        with pytest.raises(ValueError, match=str(folder)):
            pretrained(AutoConfig, folder)


# what would be written anew


COPYING = ["compress", "export lora", "export merged", "export dense", "adapt", "encoder"]


@pytest.mark.parametrize("name", ["tokenizer_secret.json", "chat_template.jinja", "config.json", "vocab.txt"])
@pytest.mark.parametrize("command", COPYING)
def test_a_link_to_outside_of_a_model_is_not_followed_into_what_is_written(changed, tmp_path_factory, command, name):
    folder, secret = changed({}, "bert"), tmp_path_factory.mktemp("elsewhere") / "secret"
    secret.write_bytes((folder / name).read_bytes() if (folder / name).exists() else b"{}")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(secret)
    out = folder.parent / f"{folder.name}-out"
    if command == "encoder":
        encoder = TextEncoder(str(folder))
        with pytest.raises(ValueError, match=rf"{name} is a link to outside of its folder"):
            encoder.save(out)
    else:
        asked = commands(folder)[command.split()[0]]
        if command == "export dense":
            asked = ["export", folder, "--to", "dense", "--out", out]
        elif command.startswith("export"):
            asked = [*asked, "--to", command.split()[1]]
        done = CliRunner().invoke(app, [str(a) for a in asked])
        assert isinstance(done.exception, ValueError)
        assert f"{name} is a link to outside of its folder" in str(done.exception)
    assert not out.exists()


def test_links_of_weights_and_of_a_hubs_cache_are_followed(whole, tmp_path):
    snapshot = tmp_path / "models--owner--a" / "snapshots" / "abc"
    (tmp_path / "models--owner--a" / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for i, path in enumerate(sorted(whole["bert"].iterdir())):
        (tmp_path / "models--owner--a" / "blobs" / str(i)).write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(f"../../blobs/{i}")
    check_own_files(str(snapshot))
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(whole["bert"] / "model.safetensors")
    check_own_files(str(snapshot))


def test_a_link_in_a_circle_is_no_file_to_copy(changed):
    folder = changed({}, "bert")
    (folder / "vocab.txt").symlink_to("vocab.txt")
    with pytest.raises(ValueError, match=r"vocab\.txt is a link to outside"):
        check_own_files(str(folder))


def test_code_beside_a_gguf_file_never_runs_whatever_is_piped_in(tmp_path, monkeypatch):
    folder = folders.gguf(tmp_path / "smollm2-1")
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    maps = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model", "AutoTokenizer": [None, "code.Tok"]}
    for name in ("config.json", "tokenizer_config.json"):
        (folder / name).write_text(json.dumps({"model_type": "x", "tokenizer_class": "Tok", "auto_map": maps}))
    (folder / "code.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\n")
    with suppress(ValueError, OSError):
        _dequantised(folder, "model.gguf")
    assert not (folder / "ran").exists()


# texts longer than a model


def roberta():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return RobertaModel(RobertaConfig(vocab_size=50, max_position_embeddings=20, pad_token_id=1, **sizes)).eval()


def opt():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 16}
    return OPTModel(OPTConfig(vocab_size=50, max_position_embeddings=20, word_embed_proj_dim=16, **sizes)).eval()


@pytest.mark.parametrize("maker", [bert, gpt2, roberta, opt])
def test_a_model_takes_as_many_tokens_as_it_has_positions(maker):
    model = maker()
    most = most_tokens(model)
    model(input_ids=torch.full((1, most), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, most + 1), 5))


def test_positions_that_are_worked_out_have_no_end():
    assert most_tokens(llama()) is None


def test_texts_longer_than_an_encoder_are_cut_and_longer_than_a_trained_model_refused(whole, tmp_path):
    encoder = TextEncoder(str(whole["bert"]))
    assert encoder.max_length == 32
    assert torch.equal(torch.tensor(encoder(["a " * 100])), torch.tensor(encoder(["a " * 99])))
    (tmp_path / "rows.csv").write_text("text,label\n" + "".join(f"{'a ' * 60}{i},{'xy'[i % 2]}\n" for i in range(90)))
    asked = ["--model", str(whole["bert"]), "--data", str(tmp_path / "rows.csv"), "--methods", "lora"]
    done = CliRunner().invoke(app, ["adapt", *asked, "--budget", "10%", "--steps", "1", "--out", str(tmp_path / "run")])
    assert isinstance(done.exception, ValueError), done.exception
    assert "the model takes 32; give max_length=32 or less" in str(done.exception)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("value", ["1e9", [1, "2"], {"a": 1}, 1.5])
def test_what_is_no_number_of_a_token_is_refused(tmp_path, name, value):
    llama().save_pretrained(tmp_path)
    path = tmp_path / name
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(known | {"eos_token_id": value}))
    with pytest.raises(ValueError, match=rf"{name}: eos_token_id is .* no token's number"):
        load(str(tmp_path), task="causal-lm")


@pytest.mark.parametrize("value", [1, [1], "LlamaForCausalLM", [["a"]]])
def test_architectures_that_are_no_names_are_refused(tmp_path, value):
    llama().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": value}))
    with pytest.raises(ValueError, match="a list of names is needed"):
        load(str(tmp_path), task="causal-lm")
