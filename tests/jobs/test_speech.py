import json
import shutil

import numpy as np
import pytest
import soundfile
import torch
from peft import PeftModel

from rankwise.data import speech
from rankwise.jobs.adapt import AdaptConfig, Job
from rankwise.jobs.adapt.preparation import read_rows
from rankwise.jobs.serving import answers, export_merged, export_plain, load_adapter, load_trained
from rankwise.jobs.speech import SpeechTask
from rankwise.models import load, load_processor
from rankwise.models.whisper import encoder_of, shorten
from rankwise.report.tables import comparison

MODEL = "whisper-tiny.en"


@pytest.fixture(scope="module")
def task():
    return SpeechTask.of(MODEL)


@pytest.fixture(scope="module")
def examples(task):
    return task.encode(speech("child").split().test.head(4))


def test_features_are_the_extractors_padded_to_30_seconds(task, examples):
    corpus = speech("child").split().test.head(4)
    whole = [soundfile.read(p)[0] for p in corpus.audio]
    extractor = load_processor(MODEL).feature_extractor
    expected = extractor(whole, sampling_rate=16_000, return_tensors="pt").input_features
    torch.testing.assert_close(task.collate(examples)["input_features"], expected, atol=1e-5, rtol=1e-5)


def test_every_transcript_token_and_the_end_are_learnt_once_and_the_prompt_is_not(task, examples):
    batch = task.collate(examples)
    inputs, labels = batch["decoder_input_ids"], batch["labels"]
    end = task.processor.tokenizer.eos_token_id
    for row, example in enumerate(examples):
        assert labels[row][labels[row] != -100].tolist() == [*example["tokens"], end]
        n = len(task.prompt) + len(example["tokens"])
        assert inputs[row, :n].tolist() == [*task.prompt, *example["tokens"]]
        assert labels[row, : len(task.prompt) - 1].eq(-100).all()
        # the label at a position is the next input
        assert torch.equal(labels[row, len(task.prompt) - 1 : n - 1], inputs[row, len(task.prompt) : n])


def test_scores_are_those_of_whole_sentences_and_of_the_models_own_loss(task, examples):
    import jiwer

    model = load(MODEL).eval()
    scores = task.evaluate(model, examples)
    heard = [task.normalize(t) for t in task.transcribe(model, examples)]
    said = [task.normalize(e["text"]) for e in examples]
    assert scores["wer"] == pytest.approx(jiwer.wer(said, heard))
    assert scores["score"] == pytest.approx(1 - scores["wer"])
    weights = [len(e["tokens"]) + 1 for e in examples]
    with torch.no_grad():
        losses = [float(model(**task.collate([e])).loss) for e in examples]
    assert scores["loss"] == pytest.approx(np.average(losses, weights=weights), rel=1e-4)
    assert task.loss(model, examples) == pytest.approx(scores["loss"], rel=1e-4)


def test_the_normaliser_is_whispers(task):
    assert task.normalize("Mr. Colour's twenty-one dogs, um, won't!") == "mister color is 21 dogs will not"
    with pytest.raises(ValueError, match="English only; language 'fr'"):
        SpeechTask.of(MODEL, language="fr")


def test_short_audio_changes_training_no_more_than_rounding(task, examples):
    batch, found = task.collate(examples), {}
    for name, stride in (("whole", 1), ("half", 2)):
        model = shorten(load(MODEL), stride=stride)
        model.requires_grad_(False)
        weight = model.model.encoder.layers[1].fc1.weight.requires_grad_(True)
        loss = model(**batch).loss
        loss.backward()
        found[name] = loss.item(), weight.grad.flatten()
    assert found["half"][0] == pytest.approx(found["whole"][0], rel=0.02)
    assert torch.cosine_similarity(found["half"][1], found["whole"][1], dim=0) > 0.95


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("speech") / "run"
    config = AdaptConfig(
        task="asr",
        methods=["bitfit", "lora", "adalora", "s2lora", "eva"],
        learning_rates={"bitfit": [4e-3], "lora": [2e-3], "adalora": [1e-2], "s2lora": [3e-3], "eva": [1e-3]},
        steps=2,
        batch_size=2,
        train_limit=4,
        eval_limit=2,
        silence_stride=4,
    )
    return out, Job(config, out).run()


def test_every_method_adapts_whisper_and_is_scored(finished):
    out, results = finished
    assert [m["name"] for m in results["methods"]] == ["bitfit", "lora", "adalora", "s2lora", "eva"]
    assert all(m["status"] == "done" for m in results["methods"])
    assert {"wer", "cer", "loss", "score"} <= set(results["zero_shot"]["speech:child"])
    s2lora = next(m for m in results["methods"] if m["name"] == "s2lora")
    assert len(s2lora["trials"][0]["ranks"]) == 64  # 48 attention, 16 feed-forward projections
    assert s2lora["cost"]["trainable_parameters"] == s2lora["rank"] * (768 + 2 * 1920 + 64)
    header, rows = comparison(results)
    assert rows[0][0] == "zero-shot"
    assert header[-1] == "child"
    assert json.loads((out / "results.json").read_text())["methods"][0]["trials"][0]["cost"]["flops"] is None


def test_adapters_transcribe_export_and_load_in_stock_tools(finished, task, examples, tmp_path):
    out, _ = finished
    audio = speech("child").split().test.head(4).audio
    folder = shutil.copytree(out / "adapters/s2lora", tmp_path / "alone")
    first = answers(load_trained(folder), [str(a) for a in audio[:2]], recordings=True)
    assert all(p["transcript"] for p in first)
    with pytest.raises(ValueError, match="give --audio"):
        answers(load_trained(folder), ["hello"], recordings=False)
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == MODEL
    adapted = load_adapter(folder)
    batch = task.collate(examples)
    with torch.no_grad():
        expected = adapted(**batch).logits
        export_plain(folder, tmp_path / "lora")
        stock = PeftModel.from_pretrained(load(MODEL), tmp_path / "lora").eval()
        torch.testing.assert_close(stock(**batch).logits, expected, atol=1e-3, rtol=1e-4)
        export_merged(folder, tmp_path / "merged")
        merged = load(str(tmp_path / "merged")).eval()
        torch.testing.assert_close(merged(**batch).logits, expected, atol=1e-3, rtol=1e-4)
    assert SpeechTask.of(str(tmp_path / "merged")).prompt == task.prompt
    for exported in ("merged", "lora"):
        again = answers(load_trained(tmp_path / exported), [str(a) for a in audio[:2]])
        assert [p["transcript"] for p in again] == [p["transcript"] for p in first]


def test_a_frozen_encoder_is_kept_during_training(task, examples, tmp_path):
    from rankwise.jobs.trial import Training, TrialResult, build, train

    model = shorten(load(MODEL))
    names = ["model.decoder.layers.0.fc1"]
    model = build(model, "lora", rank=2, targets=names, steps=4, task=task, data=iter(()))
    calls = []
    encoder_of(model).layers[0].register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    result = TrialResult(method="lora", learning_rate=1e-3, seed=0)
    train(
        model,
        examples,
        training=Training(steps=6, batch_size=2, max_length=1),
        learning_rate=1e-3,
        seed=0,
        task=task,
        folder=tmp_path,
        result=result,
    )
    assert sum(calls) == len(examples)  # six steps of two, but every recording is encoded once
    assert encoder_of(model).kept is None


def test_bad_recordings_end_the_job_or_are_counted(tmp_path):
    rows = []
    for i in range(30):
        soundfile.write(tmp_path / f"{i}.wav", 0.2 * np.sin(np.arange(8000) / (9 + i)), 16_000)
        rows.append(f"{i}.wav,Sentence number {i}.")
    (tmp_path / "manifest.csv").write_text("path,text\n" + "\n".join([*rows, "gone.wav,Hello.", "1.wav,!?"]))
    config = {"task": "asr", "data": str(tmp_path), "methods": ["bitfit"], "steps": 1, "eval_limit": 1}
    with pytest.raises(
        ValueError, match=r"row 32, gone.wav: no such file; row 33, 1.wav: the transcript '!\?' is empty"
    ):
        Job(AdaptConfig(**config), tmp_path / "out").run()
    assert not (tmp_path / "out").exists()
    job = Job(AdaptConfig(**config, skip_bad=True), tmp_path / "out")
    assert sum(len(e) for e in job.ready.examples.values()) > 10
    assert any("skipped 2 of 32 rows" in n for n in job.ready.notes)


def test_a_transcript_that_the_decoder_has_no_room_for_is_named_before_anything_is_trained(task, tmp_path):
    room = 448 - len(task.prompt)
    task.check("hello " * room)
    with pytest.raises(ValueError, match=f"has {room + 1} tokens; Whisper writes at most {room}"):
        task.check("hello " * (room + 1))
    soundfile.write(tmp_path / "a.wav", 0.2 * np.sin(np.arange(8000) / 9), 16_000)
    rows = [f"a.wav,Sentence number {i}." for i in range(40)]
    (tmp_path / "manifest.csv").write_text("path,text\n" + "\n".join([*rows, "a.wav," + "hello " * 500]))
    config = {"task": "asr", "data": str(tmp_path), "methods": ["bitfit"], "steps": 1, "eval_limit": 1}
    with pytest.raises(ValueError, match=r"row 42, a\.wav: the transcript has 500 tokens"):
        Job(AdaptConfig(**config), tmp_path / "out").run()
    assert not (tmp_path / "out").exists()
    job = Job(AdaptConfig(**config, skip_bad=True), tmp_path / "out")
    assert any("skipped 1 of 41 rows" in n for n in job.ready.inputs.notes)


def test_own_manifests_for_training_and_test(task, tmp_path):
    for name, n in (("train", 30), ("test", 3)):
        (tmp_path / name).mkdir()
        soundfile.write(tmp_path / name / "a.wav", 0.2 * np.sin(np.arange(8000) / n), 16_000)
        rows = [f"a.wav,Sentence number {i} of {name}." for i in range(n)]
        (tmp_path / name / "manifest.csv").write_text("path,text\n" + "\n".join(rows))
    config = AdaptConfig(task="asr", train=str(tmp_path / "train"), test=str(tmp_path / "test/manifest.csv"))
    inputs = read_rows(config)
    assert len(inputs.tests[str(tmp_path / "test/manifest.csv")]) == 3
    assert len(inputs.train) + len(inputs.validation) == 30
    before = inputs.contents["train"]
    soundfile.write(tmp_path / "train/a.wav", 0.3 * np.sin(np.arange(8000) / 9), 16_000)
    assert read_rows(config).contents["train"] != before  # recordings count by content
