"""An adapter's folder is all that is needed beside its base model: to predict, and to export."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from jobs_fixtures import METHODS, config, table
from rankwise import reading
from rankwise.jobs import predictions
from rankwise.jobs.adapt import Job, load_adapted
from rankwise.jobs.adapt.adapters import ABOUT, adapter_folder, read_about
from rankwise.jobs.serving import answers, export_merged, export_plain, load_adapter, load_trained
from rankwise.models import load
from small_models import bert, llama, randomise, saved

TEXTS = ["great film 3", "awful film 4", "film number 12"]


@pytest.fixture
def moved(finished, tmp_path):
    """The finished run's adapters, alone in another place."""
    return shutil.copytree(finished[0] / "adapters", tmp_path / "elsewhere")


def logits(model, tokenizer):
    with torch.no_grad():
        return model.eval()(**tokenizer(TEXTS, return_tensors="pt", padding=True).to(model.device)).logits.cpu()


# self-contained


@pytest.mark.parametrize("method", ["head", *METHODS])
def test_an_adapters_folder_alone_predicts_as_the_trained_model_did(finished, moved, method):
    out, settings, _ = finished
    job = Job(settings, out)
    torch.manual_seed(0)
    trained = load_adapted(job.ready.fresh_model(), out / "adapters" / method)
    expected = logits(trained, job.ready.task.tokenizer).softmax(-1).max(-1)
    found = answers(load_trained(moved / method), TEXTS)
    assert [a["label"] for a in found] == [["neg", "pos"][i] for i in expected.indices]
    assert [a["probability"] for a in found] == pytest.approx(expected.values.tolist(), rel=1e-5)


def test_renaming_a_label_in_the_training_file_afterwards_changes_nothing(finished, moved, place):
    before = answers(load_trained(moved / "lora"), TEXTS)
    data = place / "data.csv"
    content = data.read_text()
    try:
        data.write_text(content.replace("neg", "zzz"))
        assert answers(load_trained(moved / "lora"), TEXTS) == before
        data.unlink()
        assert answers(load_trained(moved / "lora"), TEXTS) == before
    finally:
        data.write_text(content)


@pytest.mark.parametrize("method", ["head", *METHODS])
def test_an_adapters_folder_names_no_place_of_this_machine_but_the_models_as_given(finished, method, place):
    folder = finished[0] / "adapters" / method
    for path in folder.iterdir():
        if path.suffix in (".json", ".md") and path.name not in ("tokenizer.json", ".rankwise.json"):
            text = path.read_text().replace(str(place / "bert"), "AS GIVEN")
            assert str(place) not in text, path
            assert ".cache" not in text, path
    assert read_about(folder).labels == ["neg", "pos"]
    assert (folder / "tokenizer.json").is_file()


def test_a_bundled_model_is_named_by_its_name(place, tmp_path):
    job = Job(config(place, model="minilm", methods=["lora"], budget="0.5%", steps=1, baseline=False), tmp_path / "run")
    job.run()
    folder = tmp_path / "run/adapters/lora"
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "minilm"
    assert read_about(folder).base == "minilm"
    assert answers(load_trained(folder), TEXTS)[0]["label"] in ("neg", "pos")


def test_another_base_model_is_refused_and_a_moved_one_can_be_named(moved, place, tmp_path):
    copy = shutil.copytree(place / "bert", tmp_path / "copy")
    before = answers(load_trained(moved / "lora"), TEXTS)
    assert answers(load_trained(moved / "lora", model=str(copy)), TEXTS) == before
    about = json.loads((moved / "lora" / ABOUT).read_text())
    (moved / "lora" / ABOUT).write_text(json.dumps({**about, "base": "./gone"}))
    with pytest.raises(ValueError, match=r"the base model of .*, \./gone, is not here .* --model"):
        load_trained(moved / "lora")
    assert answers(load_trained(moved / "lora", model=str(copy)), TEXTS) == before
    changed = bert()
    with torch.no_grad():
        changed.bert.encoder.layer[0].output.dense.weight[0, 0] += 0.5
    changed.save_pretrained(copy)
    for use in (load_trained, load_adapter):
        with pytest.raises(ValueError, match=r"made for another model than this: for \./gone, and .*copy is another"):
            use(moved / "lora", model=str(copy))


def test_a_run_and_an_adapter_are_told_apart(finished, moved, tmp_path):
    out, _, _ = finished
    assert adapter_folder(out, "eva") == out / "adapters/eva"
    assert adapter_folder(moved / "eva") == moved / "eva"
    with pytest.raises(ValueError, match=r"has several adapters: give --adapter, one of adalora, bitfit, eva, head"):
        adapter_folder(out)
    with pytest.raises(ValueError, match="did you mean eva"):
        adapter_folder(out, "evaa")
    with pytest.raises(ValueError, match="is the adapter of eva, not of lora"):
        adapter_folder(moved / "eva", "lora")
    with pytest.raises(ValueError, match=r"is not a run, nor an adapter that rankwise made: it has no rankwise\.json"):
        adapter_folder(tmp_path)


BROKEN = [
    ("[1]", "an object is needed"),
    ("{", "is not valid JSON"),
    ('{"version": 2}', "version"),
    ({"task": "steal"}, "task"),
    ({"labels": ["neg"]}, "two or more, and differ"),
    ({"labels": ["neg", "neg"]}, "two or more, and differ"),
    ({"labels": "neg"}, "labels"),
    ({"labels": [1, 2]}, r"labels\.0"),
    ({"max_length": 10**12}, "max_length"),
    ({"max_length": "12"}, "max_length"),
    ({"base_content": "abc"}, "base_content"),
    ({"command": "rm"}, "command"),
]


@pytest.mark.parametrize(("change", "match"), BROKEN)
def test_a_description_is_checked_when_it_is_read(moved, change, match):
    path = moved / "lora" / ABOUT
    text = change if isinstance(change, str) else json.dumps({**json.loads(path.read_text()), **change})
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"rankwise\.json.*{match}"):
        load_trained(moved / "lora")


def test_more_labels_than_the_head_has_are_refused(moved):
    path = moved / "lora" / ABOUT
    path.write_text(json.dumps({**json.loads(path.read_text()), "labels": ["a", "b", "c"]}))
    with pytest.raises(ValueError, match="cannot be loaded on this model"):
        load_trained(moved / "lora")


# kinds of answers


def trained_on(place, tmp_path, rows, *, model="llama", method="lora", **options):
    (tmp_path / "rows.csv").write_text("text,label\n" + "".join(f"{t},{y}\n" for t, y in rows))
    settings = config(
        place,
        model=str(place / model),
        data=str(tmp_path / "rows.csv"),
        methods=[method],
        baseline=False,
        **{"steps": 1, **options},
    )
    Job(settings, tmp_path / "run").run()
    return load_trained(adapter_folder(tmp_path / "run"))


def test_text_to_label_answers_by_the_labels_first_tokens(place, tmp_path):
    rows = [(f"film {i}", ("negative", "positive")[i % 2]) for i in range(60)]
    trained = trained_on(place, tmp_path, rows, task="text-to-label", label_prompt=" label :")
    found = answers(trained, TEXTS)
    tokenizer = AutoTokenizer.from_pretrained(place / "llama")
    for text, answer in zip(TEXTS, found, strict=True):
        ids = tokenizer(text + " label :", return_tensors="pt").to(trained.model.device)
        with torch.no_grad():
            last = trained.model(**ids).logits[0, -1]
        p = last[tokenizer.convert_tokens_to_ids(["negative", "positive"])].softmax(-1)
        assert answer["label"] == ("negative", "positive")[int(p.argmax())]
        assert answer["probability"] == pytest.approx(float(p.max()), rel=1e-5)


def test_regression_answers_a_value(place, tmp_path):
    rated = trained_on(place, tmp_path, [(f"film {i}", i / 7) for i in range(60)], model="bert", task="regression")
    tokenizer = AutoTokenizer.from_pretrained(place / "bert")
    expected = logits(rated.model, tokenizer).flatten().tolist()
    assert [a["value"] for a in answers(rated, TEXTS)] == pytest.approx(expected, rel=1e-5)


def test_a_chat_adapter_is_asked_in_its_template(place, tmp_path):
    chats = [[{"role": "user", "content": f"film {i}"}, {"role": "assistant", "content": "great"}] for i in range(40)]
    (tmp_path / "chats.jsonl").write_text("\n".join(json.dumps({"messages": c}) for c in chats))
    settings = config(
        place,
        task="causal-lm",
        data=str(tmp_path / "chats.jsonl"),
        model=str(place / "llama"),
        methods=["lora"],
        steps=1,
    )
    Job(settings, tmp_path / "run").run()
    trained = load_trained(tmp_path / "run/adapters/lora")
    seen = []
    trained.model.get_base_model().register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True
    )
    answers(trained, ["film 7"])
    asked = AutoTokenizer.from_pretrained(place / "llama")("user : film 7")["input_ids"]
    assert seen[0][0].tolist() == asked
    with pytest.raises(ValueError, match=r"has 70 tokens; between 1 and 24 can be continued"):
        answers(trained, ["film " * 68])


def test_a_whole_model_predicts_from_its_folder_without_a_base(place, tmp_path):
    rows = [(f"{'great' if i % 2 else 'awful'} film {i}", ("neg", "pos")[i % 2]) for i in range(60)]
    trained_on(place, tmp_path, rows, model="bert", method="full")
    folder = shutil.move(tmp_path / "run/adapters/full", tmp_path / "alone")
    found = answers(load_trained(folder), TEXTS)
    stock = AutoModelForSequenceClassification.from_pretrained(folder)
    assert stock.config.id2label == {0: "neg", 1: "pos"}
    assert stock.config.label2id == {"neg": 0, "pos": 1}
    p = logits(stock, AutoTokenizer.from_pretrained(folder)).softmax(-1).max(-1)
    assert [a["probability"] for a in found] == pytest.approx(p.values.tolist(), rel=1e-5)


# files


@pytest.mark.parametrize("name", ["new.csv", "new.jsonl", "new.parquet"])
def test_a_file_keeps_its_columns_and_gets_what_is_predicted(moved, tmp_path, name):
    from rankwise.data.tables import read_table, write_rows

    rows = [{"id": f"{i:03}", "text": t, "more": "a,\nb"} for i, t in enumerate(TEXTS * 50)]
    write_rows(tmp_path / name, rows)
    read, asked = predictions.read(moved / "lora", tmp_path / name)
    joined = predictions.joined(read, answers(load_trained(moved / "lora"), asked))
    write_rows(tmp_path / f"out-{name}", joined)
    back = [row for _, row in read_table(tmp_path / f"out-{name}").rows]
    assert [list(row) for row in back] == [["id", "text", "more", "label", "probability"]] * 150
    assert [{k: row[k] for k in rows[0]} for row in back] == rows
    alone = answers(load_trained(moved / "lora"), TEXTS)
    assert [row["label"] for row in back[:3]] == [a["label"] for a in alone]
    assert [float(row["probability"]) for row in back[147:]] == pytest.approx(
        [a["probability"] for a in alone], abs=1e-6
    )


def test_a_column_that_is_there_already_is_kept_beside_the_prediction(moved, tmp_path):
    path = tmp_path / "labelled.csv"
    table(path, 4)
    rows, _ = predictions.read(moved / "lora", path)
    joined = predictions.joined(rows, [{"label": "x", "probability": 1.0}] * 4)
    assert list(joined[0]) == ["text", "label", "predicted_label", "probability"]
    assert [r["label"] for r in joined] == ["neg", "pos", "neg", "pos"]


def test_files_that_cannot_be_predicted_are_refused(moved, tmp_path):
    path = tmp_path / "new.csv"
    path.write_text("text,id\nfilm,1\n ,2\n")
    with pytest.raises(ValueError, match=r"new\.csv, line 3: column 'text' is empty"):
        predictions.read(moved / "lora", path)
    with pytest.raises(ValueError, match="unknown column 'body'; accepted: id, text"):
        predictions.read(moved / "lora", path, column="body")
    for out, match in (
        ("new.csv", "is read by the same command"),
        ("x.txt", "file type"),
        ("x.csv.gz", "not compressed"),
    ):
        with pytest.raises(ValueError, match=match):
            predictions.check_out(tmp_path / out, data=path)


# exports


@pytest.mark.parametrize("method", METHODS)
def test_a_merged_export_is_a_model_with_its_classes_and_tokenizer(moved, tmp_path, method):
    export_merged(moved / method, tmp_path / "merged")
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert stock.config.id2label == {0: "neg", 1: "pos"}
    assert stock.config.label2id == {"neg": 0, "pos": 1}
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    trained = load_trained(moved / method)
    torch.testing.assert_close(logits(stock, tokenizer), logits(trained.model, tokenizer), atol=1e-5, rtol=1e-4)
    assert answers(load_trained(tmp_path / "merged"), TEXTS) == [
        {"label": a["label"], "probability": pytest.approx(a["probability"], abs=1e-5)} for a in answers(trained, TEXTS)
    ]


def test_a_trained_head_is_exported_as_a_whole_model_and_has_no_low_rank_part(moved, tmp_path):
    export_merged(moved / "head", tmp_path / "merged")
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert stock.config.id2label == {0: "neg", 1: "pos"}
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    expected = logits(load_trained(moved / "head").model, tokenizer)
    torch.testing.assert_close(logits(stock, tokenizer), expected, atol=1e-6, rtol=1e-5)
    with pytest.raises(ValueError, match=r"has no low-rank part: .* export it with --to merged"):
        export_plain(moved / "head", tmp_path / "lora")
    assert not (tmp_path / "lora").exists()


@pytest.mark.parametrize("method", ["lora", "s2lora", "eva"])
def test_a_lora_export_is_self_contained_and_may_be_replaced(moved, tmp_path, place, method):
    for _ in range(2):  # what was added belongs to the export
        export_plain(moved / method, tmp_path / "lora")
    expected = answers(load_trained(moved / method), TEXTS)
    found = answers(load_trained(tmp_path / "lora"), TEXTS)
    assert [a["label"] for a in found] == [a["label"] for a in expected]
    assert [a["probability"] for a in found] == pytest.approx([a["probability"] for a in expected], abs=1e-5)
    settings = json.loads((tmp_path / "lora/adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(place / "bert")
    base = AutoModelForSequenceClassification.from_pretrained(place / "bert")
    stock = PeftModel.from_pretrained(base, tmp_path / "lora")
    trained = load_trained(moved / method)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "lora")
    torch.testing.assert_close(logits(stock, tokenizer), logits(trained.model, tokenizer), atol=1e-5, rtol=1e-4)


def test_an_export_replaces_neither_its_adapter_nor_a_strangers_folder(moved, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("mine")
    for out in (moved / "lora", moved, tmp_path / "mine"):
        for export in (export_merged, export_plain):
            with pytest.raises(ValueError, match=r"not replaced|was made by"):
                export(moved / "lora", out)
    assert (tmp_path / "mine/thesis.tex").read_text() == "mine"
    assert (moved / "lora/adapter_model.safetensors").is_file()


# adapters found elsewhere


@pytest.fixture
def foreign(place, tmp_path):
    """A plain LoRA that PEFT wrote, with another tool's keys in its configuration."""
    model = randomise(
        get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    )
    folder = tmp_path / "foreign"
    model.save_pretrained(folder)
    change(folder, base_model_name_or_path=str(place / "llama"))
    return folder


def change(folder, *without, **keys):
    path = folder / "adapter_config.json"
    config = {**json.loads(path.read_text()), **keys}
    path.write_text(json.dumps({k: v for k, v in config.items() if k not in without}))


def test_a_foreign_lora_is_merged_and_rewritten(foreign, place, tmp_path):
    expected = logits(load_adapter(foreign), AutoTokenizer.from_pretrained(place / "llama"))
    for to, export in (("merged", export_merged), ("lora", export_plain)):
        export(foreign, tmp_path / to)
        assert (tmp_path / to / "tokenizer.json").is_file()
    merged = load(str(tmp_path / "merged"), task="causal-lm")
    again = load_adapter(tmp_path / "lora")
    for model in (merged, again):
        found = logits(model, AutoTokenizer.from_pretrained(tmp_path / "lora"))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_merged_model_is_rounded_once_to_the_asked_type(foreign, place, dtype, tmp_path):
    half = shutil.copytree(place / "llama", tmp_path / "half")
    load(str(half), task="causal-lm", dtype=torch.bfloat16).save_pretrained(half)
    base, lora = load_file(half / "model.safetensors"), load_file(foreign / "adapter_model.safetensors")
    export_merged(foreign, tmp_path / "out", model=str(half), dtype=dtype)
    found, wanted = load_file(tmp_path / "out/model.safetensors"), getattr(torch, dtype)
    scale = json.loads((foreign / "adapter_config.json").read_text())["lora_alpha"] / 2
    for name, tensor in found.items():
        exact, key = base[name].float(), f"base_model.model.{name.removesuffix('.weight')}.lora_"
        if f"{key}A.weight" in lora:
            exact = exact + scale * lora[f"{key}B.weight"] @ lora[f"{key}A.weight"]
        assert tensor.dtype == wanted, name
        torch.testing.assert_close(
            tensor.float(), exact.to(wanted).float(), rtol=1e-6 if dtype == "float32" else 8e-3, atol=1e-6
        )
        assert (tensor.float() != exact.to(wanted).float()).float().mean() < (1.0 if dtype == "float32" else 0.01), name
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == dtype


def test_a_merged_model_beyond_its_type_is_not_written(foreign, place, tmp_path):
    large = shutil.copytree(place / "llama", tmp_path / "large")
    model = load(str(large), task="causal-lm")
    model.model.norm.weight.data[0] = 1e5
    model.save_pretrained(large)
    with pytest.raises(ValueError, match=r"norm\.weight is not finite in float16: nothing is written"):
        export_merged(foreign, tmp_path / "out", model=str(large), dtype="float16")
    with pytest.raises(ValueError, match="unknown dtype 'half'"):
        export_merged(foreign, tmp_path / "out", model=str(large), dtype="half")
    assert not (tmp_path / "out").exists()


FOREIGN = [
    ({"base_model_name_or_path": None}, "names no base model .*: give --model"),
    ({"base_model_name_or_path": 5}, "names no base model"),
    ({"base_model_name_or_path": "minilmm"}, "did you mean minilm"),
    ({"peft_type": "LORAA"}, "unknown peft_type 'LORAA'; did you mean LORA"),
    ({"peft_type": None}, "unknown peft_type 'None'"),
    ({"peft_type": ["LORA"]}, "unknown peft_type"),
    ({"r": 10**9}, "declares a size of 1,000,000,000, which no tensor"),
    ({"rank_pattern": {"q_proj": 10**8}}, "declares a size of 100,000,000"),
    ({"r": "two"}, "cannot be loaded on this model"),
    ({"target_modules": ["nothing"]}, "cannot be loaded on this model"),
    ({"target_modules": ["q_proj"]}, "in the weights or in the model, not in both"),
    ({"target_modules": ["q_proj", "v_proj", "k_proj"]}, "in the weights or in the model, not in both"),
    ({"target_modules": "(q_proj"}, "is no regular expression|cannot be loaded"),
]


@pytest.mark.parametrize(("keys", "match"), FOREIGN)
def test_missing_and_foreign_keys_give_one_line_that_names_the_file(foreign, tmp_path, keys, match):
    change(foreign, *[k for k, v in keys.items() if v is None], **keys)
    with pytest.raises(ValueError, match=match) as error:
        export_merged(foreign, tmp_path / "out")
    if "minilmm" not in str(error.value):
        assert str(foreign) in str(error.value)
    assert not (tmp_path / "out").exists()


def test_pickled_and_missing_weights_are_refused_by_name(foreign):
    weights = foreign / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:200])
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors cannot be read as safetensors"):
        load_adapter(foreign)
    torch.save(load_file_bytes(content), foreign / "adapter_model.bin")
    weights.unlink()
    with pytest.raises(ValueError, match=r"adapter_model\.bin: pickled weights are not read"):
        load_adapter(foreign)
    (foreign / "adapter_model.bin").unlink()
    with pytest.raises(ValueError, match=r"has no adapter_model\.safetensors"):
        load_adapter(foreign)


def load_file_bytes(content):
    from safetensors.torch import load as from_bytes

    return from_bytes(content)


SLOW = r"(([a-z_.0-9]+)+)+\?"


@pytest.mark.parametrize(
    "keys",
    [
        {"target_modules": SLOW},
        {"exclude_modules": SLOW},
        {"rank_pattern": {SLOW: 1}},
        {"alpha_pattern": {SLOW: 1}},
        {"modules_to_save": [SLOW]},
        {"layers_to_transform": [0], "layers_pattern": [SLOW]},
    ],
)
def test_patterns_that_backtrack_for_ever_are_refused_before_peft_uses_them(foreign, keys, monkeypatch):
    monkeypatch.setattr(reading, "SECONDS", 0.5)
    change(foreign, **keys)
    with pytest.raises(ValueError, match=r"adapter_config\.json: \w+: the pattern .* takes too long to match"):
        load_adapter(foreign)


def test_patterns_that_end_are_used(foreign, place):
    tokenizer = AutoTokenizer.from_pretrained(place / "llama")
    expected = logits(load_adapter(foreign), tokenizer)
    change(foreign, target_modules=r".*\.(q|v)_proj")
    torch.testing.assert_close(logits(load_adapter(foreign), tokenizer), expected)
    change(foreign, alpha_pattern={r"layers\.[01]\.self_attn\.q_proj": 0.0})
    weights = load_file(foreign / "adapter_model.safetensors")
    half = logits(load_adapter(foreign), tokenizer)
    kept = {k: v if "v_proj" in k else v * 0 for k, v in weights.items()}
    save_file(kept, foreign / "adapter_model.safetensors")
    change(foreign, alpha_pattern={})
    torch.testing.assert_close(logits(load_adapter(foreign), tokenizer), half, atol=1e-6, rtol=1e-5)


def test_an_adapter_of_another_model_is_refused(foreign, tmp_path):
    wide = bert()
    saved(wide, tmp_path / "wide")
    with pytest.raises(ValueError, match=r"cannot be loaded on this model|a causal language model is needed"):
        load_adapter(foreign, model=str(tmp_path / "wide"))
