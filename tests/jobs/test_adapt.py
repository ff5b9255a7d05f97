import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from command import ENV
from jobs_fixtures import METHODS, config, table
from rankwise.files import claimed
from rankwise.jobs import tasks
from rankwise.jobs.adapt import AdaptConfig, Job, spread
from rankwise.jobs.adapt import job as module
from rankwise.jobs.adapt.inputs import VERSION
from rankwise.jobs.adapt.preparation import read_rows
from rankwise.jobs.items import metrics
from rankwise.parallel import spread_over
from small_models import bert, llama, saved

MAIN = {"is_main_process": True, "process_index": 0, "num_processes": 1, "wait_for_everyone": lambda: None}


def test_every_method_stays_within_the_budget_and_is_scored_everywhere(finished, place):
    _, settings, results = finished
    assert [m["name"] for m in results["methods"]] == ["head", *METHODS]
    for m in results["methods"]:
        assert m["status"] == "done"
        assert m["cost"]["trainable_parameters"] <= results["budget"] or m["name"] == "eva"
        assert m["cost"]["head_parameters"] == 34
        assert set(m["scores"]) == {"validation", settings.data, str(place / "more.csv")}
        assert all(s["n"] == 2 for s in m["scores"].values())
        assert m["cost"]["adapter_bytes"] > 0
    lora, eva = (next(m for m in results["methods"] if m["name"] == n) for n in ("lora", "eva"))
    assert sum(eva["trials"][0]["ranks"].values()) == sum(lora["trials"][0]["ranks"].values())
    assert results["examples"][str(place / "more.csv")] == 9  # all its rows
    assert results["splits"]["train"]["from"] == settings.data


def test_a_finished_job_is_read_back_unchanged(finished):
    out, settings, results = finished
    times = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file() and p.parent != out}
    again = Job(settings, out).run()
    assert json.dumps(again["methods"]) == json.dumps(results["methods"])
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file() and p.parent != out} == times


@pytest.mark.parametrize("method", METHODS)
def test_published_adapters_load_with_from_pretrained_and_score_as_the_first_seed_did(finished, method, place):
    out, settings, results = finished
    base = AutoModelForSequenceClassification.from_pretrained(place / "bert")
    model = PeftModel.from_pretrained(base, out / "adapters" / method).eval()
    trial = next(m for m in results["methods"] if m["name"] == method)["trials"][0]
    job, more = Job(settings, out), str(place / "more.csv")
    assert job.ready.task.evaluate(model, job.ready.examples[more]) == pytest.approx(trial["scores"][more], abs=1e-5)


@pytest.mark.parametrize("kind", ["classification", "causal-lm"])
def test_what_every_test_item_got_is_kept_and_the_scores_are_its_metrics(finished, place, tmp_path, kind):
    out, settings, results = finished
    if kind == "causal-lm":
        settings = config(place, task=kind, model=str(place / "llama"), methods=["lora"], steps=1, eval_limit=4)
        out, results = tmp_path / "run", Job(settings, tmp_path / "run").run()
    job = Job(settings, out)
    for trial in (t for m in results["methods"] for t in m["trials"]):
        kept = job.items(trial)
        assert {n: metrics(items) for n, items in kept.items()} == {n: trial["scores"][n] for n in job.ready.tests}
        assert {len(c) for items in kept.values() for c in items.values()} == {*map(results["examples"].get, kept)}
    if kind == "causal-lm":
        assert {n: metrics(items) for n, items in job.items().items()} == results["zero_shot"]


def test_a_trial_of_which_no_items_were_kept_is_read_back_and_said_by_name_where_they_are_asked_for(place, tmp_path):
    settings = config(place, methods=["bitfit"], baseline=False, steps=1, eval_limit=4)
    trial = Job(settings, tmp_path).run()["methods"][0]["trials"][0]
    (folder,) = (tmp_path / "trials").glob(f"bitfit-lr{trial['learning_rate']}*")
    (folder / "items.json").unlink()
    job = Job(settings, tmp_path)
    assert job.run()["methods"][0]["trials"][0]["scores"] == trial["scores"]
    with pytest.raises(ValueError, match=f"{folder.name}/result.json: what each item of .* delete that file"):
        job.items(trial)
    (folder / "result.json").unlink()
    assert job.run()["methods"][0]["trials"][0]["scores"] == trial["scores"]
    kept = job.items(trial)
    told = json.loads((folder / "result.json").read_text())
    del told["scores"][job.ready.tests[-1]]  # as by a kill between two corpora
    (folder / "result.json").write_text(json.dumps(told))
    assert job.run()["methods"][0]["trials"][0]["scores"] == trial["scores"]
    assert job.items(trial) == kept


# nothing stale is read back


@pytest.fixture
def again(finished, tmp_path):
    """A copy of the finished run, with its data and model in a place of their own."""
    out, settings, _ = finished
    copy = shutil.copytree(out, tmp_path / "run")
    return copy, settings


def test_another_configuration_may_not_use_the_folder(again):
    out, settings = again
    with pytest.raises(ValueError, match=r"belongs to other settings or data \(budget, steps differ\)"):
        Job(settings.model_copy(update={"budget": "21%", "steps": 4}), out).run()


@pytest.mark.parametrize("changed", ["data.csv", "more.csv", "bert/model.safetensors", "bert/tokenizer.json"])
def test_a_run_is_refused_when_what_it_read_has_changed(again, place, changed):
    out, settings = again
    path = place / changed
    before = path.read_bytes()
    try:
        if path.suffix == ".csv":
            table(path, 120 if changed == "data.csv" else 9, flipped=[3])
        elif path.suffix == ".json":
            path.write_text(path.read_text().replace('"great"', '"grand"'))
        else:
            model = bert()
            model.classifier.bias.data += 1
            model.save_pretrained(place / "bert")
        with pytest.raises(ValueError, match=r"belongs to other settings or data \(content of .* differ\)"):
            Job(settings, out).run()
    finally:
        path.write_bytes(before)
    assert Job(settings, out).run()["methods"]


def test_a_run_is_refused_when_what_decides_its_results_has_changed(again, monkeypatch):
    out, settings = again
    monkeypatch.setattr("rankwise.jobs.adapt.inputs.VERSION", VERSION + 1)
    with pytest.raises(ValueError, match=r"\(version differ\)"):
        Job(settings, out).run()
    monkeypatch.undo()
    monkeypatch.setattr("rankwise.jobs.adapt.inputs.version", lambda package: "9.9" if package == "peft" else "1")
    with pytest.raises(ValueError, match=r"\(versions differ\)"):
        Job(settings, out).run()
    monkeypatch.undo()
    job = Job(settings, out)
    job.precision = "fp32" if job.precision == "bf16" else "bf16"  # as on another device, where auto is that
    with pytest.raises(ValueError, match=r"\(precision used differ\)"):
        job.run()


def test_a_second_job_on_the_same_folder_is_refused(again):
    out, settings = again
    told = json.loads((out / ".rankwise.json").read_text())["told"]
    with claimed(out, made_by="adapt", told=told), pytest.raises(ValueError, match="another command is writing"):
        Job(settings, out).run()


LAUNCHED = """
import json, sys
from pathlib import Path
from types import SimpleNamespace

from rankwise import files
from rankwise.jobs.adapt import AdaptConfig, Job, job as module

claims = []
claim = module.claimed
module.claimed = lambda *a, **k: claims.append(1) or claim(*a, **k)
job = Job(AdaptConfig(**json.loads(sys.argv[1])), Path(sys.argv[2]))
try:
    with job._claimed():
        said = "held"
except ValueError as error:
    said = str(error)
Path(f"{sys.argv[2]}-{job.process.process_index}").write_text(json.dumps([len(claims), said]))
job.process.wait_for_everyone()  # one that leaves early breaks the other's connection
job.process.destroy_process_group()
"""


def test_of_several_processes_the_main_one_claims_the_folder_and_all_learn_of_a_refusal(place, tmp_path):
    (tmp_path / "launched.py").write_text(LAUNCHED)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    for steps, expected in ((3, "held"), (4, "belongs to other settings or data (steps differ)")):
        settings = config(place, steps=steps).model_dump_json()
        done = subprocess.run(
            [*launch, tmp_path / "launched.py", settings, tmp_path / "run"], capture_output=True, text=True, env=ENV
        )
        assert done.returncode == 0, done.stderr
        found = [json.loads((tmp_path / f"run-{i}").read_text()) for i in range(2)]
        assert [n for n, _ in found] == [1, 0]
        assert all(expected in said for _, said in found)


@pytest.mark.parametrize("task", ["causal-lm", "regression"])
def test_losses_of_two_processes_are_those_of_one(place, tmp_path, task):
    """Per token over both where tokens are predicted, per row elsewhere."""
    data = tmp_path / "rated.csv"
    data.write_text("text,label\n" + "".join(f"great film number {'1 ' * (i % 9)},{i / 7:.2f}\n" for i in range(90)))
    model = str(place / ("llama" if task == "causal-lm" else "bert"))
    settings = config(place, task=task, model=model, data=str(data), methods=["lora"], baseline=False)
    code = (
        "import json, sys\nfrom pathlib import Path\nfrom rankwise.jobs.adapt import AdaptConfig, Job\n"
        "Job(AdaptConfig(**json.loads(sys.argv[1])), Path(sys.argv[2])).run()"
    )
    (tmp_path / "launched.py").write_text(code)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", tmp_path / "launched.py"]
    done = subprocess.run(
        [*launch, settings.model_dump_json(), tmp_path / "two"], capture_output=True, text=True, env=ENV
    )
    assert done.returncode == 0, done.stderr
    two = json.loads((tmp_path / "two/results.json").read_text())
    assert two["environment"]["processes"] == 2
    one = Job(settings, tmp_path / "one").run()
    curves = [[loss for _, loss in r["methods"][0]["trials"][0]["loss_curve"]] for r in (one, two)]
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


def test_learning_rates_that_agree_to_six_digits_are_two_trials(place, tmp_path):
    rates = {"lora": [0.001234567, 0.001234568]}
    job = Job(config(place, methods=["lora"], learning_rates=rates, baseline=False, steps=1), tmp_path / "run")
    folders = {job.trial_folder("lora", lr, 0) for lr in rates["lora"]}
    assert len(folders) == 2
    assert {p for p in folders if (job.run() and p.is_dir())} == folders


def test_an_interrupted_job_goes_on_with_the_numbers_of_an_unbroken_one(place, tmp_path):
    def event(trial, phase, step, *_):
        if (trial, phase, step) == ("lora lr=0.001 seed=1", "train", 5):
            raise KeyboardInterrupt

    settings = config(place, methods=["lora"], baseline=False, seeds=2, steps=8, checkpoint_steps=2)
    with pytest.raises(KeyboardInterrupt):
        Job(settings, tmp_path / "broken", on_event=event).run()
    assert list((tmp_path / "broken").rglob("checkpoint-4/complete"))
    resumed, whole = (Job(settings, tmp_path / name).run()["methods"][0] for name in ("broken", "whole"))
    assert [t["scores"] for t in resumed["trials"]] == [t["scores"] for t in whole["trials"]]
    curves = [[[list(point) for point in t["loss_curve"]] for t in run["trials"]] for run in (resumed, whole)]
    assert curves[0] == curves[1]


# samples


def test_activations_are_drawn_from_all_rows_and_not_from_the_first(place, tmp_path, monkeypatch):
    """Rows sorted by class: the first 512 would be of one class."""
    n, seen = 1300, []
    rows = [f"{'awful' if i < n // 2 else 'great'} film {i},{'neg' if i < n // 2 else 'pos'}\n" for i in range(n)]
    (tmp_path / "sorted.csv").write_text("text,label\n" + "".join(rows))

    def build(model, name, *, data, **rest):
        seen.append([batch["labels"] for batch, _ in zip(data, range(16), strict=False)])
        raise FloatingPointError("enough")

    monkeypatch.setattr(module, "build", build)
    settings = config(place, data=str(tmp_path / "sorted.csv"), methods=["eva"], baseline=False)
    job = Job(settings, tmp_path / "run")
    for seed in (0, 0, 1):
        job.trial("eva", 1e-3 + len(seen), seed)
    first, same, other = (torch.cat(labels) for labels in seen)
    assert len(first) == 512
    assert 0.4 < first.float().mean() < 0.6
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_a_sample_is_random_and_decided_by_its_seed():
    rows = [{"i": i} for i in range(1000)]
    one = [e["i"] for e in tasks.sample(rows, 100, seed=0)]
    assert one == [e["i"] for e in tasks.sample(rows, 100, seed=0)]
    assert one != [e["i"] for e in tasks.sample(rows, 100, seed=1)]
    assert len(set(one)) == 100
    assert 300 < sum(one) / 100 < 700
    assert sorted(e["i"] for e in tasks.sample(rows, 2000, seed=0)) == list(range(1000))


def test_the_untrained_model_is_scored_in_the_precision_of_the_methods(place, tmp_path, monkeypatch):
    used, items = [], tasks.TextTask.items

    def watched(self, model, examples, *, bf16=False):
        used.append((isinstance(model, PeftModel), bf16))
        return items(self, model, examples, bf16=bf16)

    monkeypatch.setattr(tasks.TextTask, "items", watched)
    settings = config(
        place, task="causal-lm", model=str(place / "llama"), methods=["lora"], precision="bf16", steps=1, eval_limit=4
    )
    told = []
    Job(settings, tmp_path / "run", on_event=lambda *event: told.append(event[:4])).run()
    assert used[0] == (False, True)
    assert told[0][0::2] == ("zero-shot", 0)  # it was trained for no step
    assert {bf16 for _, bf16 in used} == {True}


# kinds of jobs


def test_a_diverging_method_is_reported_and_the_others_go_on(place, tmp_path):
    rates = {"lora": [1e30], "bitfit": [1e-3]}
    settings = config(place, methods=["lora", "bitfit"], baseline=False, learning_rates=rates)
    lora, bitfit = Job(settings, tmp_path / "out").run()["methods"]
    assert lora["status"] == "diverged"
    assert "is nan" in lora["message"] or "is inf" in lora["message"] or "not finite" in lora["message"]
    assert bitfit["status"] == "done"


def test_regression_and_full_reference(place, tmp_path):
    data = tmp_path / "rated.csv"
    data.write_text("text,label\n" + "".join(f"film {i},{i / 7:.2f}\n" for i in range(90)))
    settings = config(place, data=str(data), task="regression", methods=["s2lora"], reference="full")
    results = Job(settings, tmp_path / "out").run()
    full = results["methods"][-1]
    assert full["name"] == "full"
    assert full["cost"]["trainable_parameters"] == bert().bert.num_parameters()
    found = [t["scores"][str(data)]["score"] for t in full["trials"]]
    assert full["scores"][str(data)]["mean"] == pytest.approx(sum(found) / len(found))
    assert not list((tmp_path / "out").rglob("full*/adapter"))  # whole models are scored, not kept
    assert (tmp_path / "out/adapters/full/model.safetensors").is_file()


def test_texts_that_are_cut_or_too_short_are_counted(place, tmp_path):
    rows = [*["great film number a"] * 2, "good", *[f"great film number {'1 ' * i}" for i in range(60)]]
    (tmp_path / "notes.csv").write_text("text,group\n" + "".join(f"{t},{i}\n" for i, t in enumerate(rows)))
    settings = config(
        place, task="causal-lm", data=str(tmp_path / "notes.csv"), model=str(place / "llama"), methods=["lora"]
    )
    job = Job(settings, tmp_path / "run")
    told = sum(len(e) for e in job.ready.examples.values())
    assert told == len(rows) - 1
    cut = [
        int(n.split(": ")[1].split(" of ")[0])
        for n in job.ready.notes
        if n.endswith("texts are longer than 12 tokens: cut")
    ]
    assert sum(cut) == sum(3 + i > 12 for i in range(60))
    assert sum("have one token only and are left out" in n for n in job.ready.notes) == 1


def test_chats_are_trained_on_in_the_models_template(place, tmp_path):
    chats = [[{"role": "user", "content": f"film {i}"}, {"role": "assistant", "content": "great"}] for i in range(40)]
    (tmp_path / "chats.jsonl").write_text("\n".join(json.dumps({"messages": c}) for c in chats))
    settings = config(
        place, task="causal-lm", data=str(tmp_path / "chats.jsonl"), model=str(place / "llama"), methods=["lora"]
    )
    job = Job(settings, tmp_path / "run")
    texts = {t for part in job.ready.inputs.parts.values() for t in part.texts}
    assert texts == {f"user : film {i} assistant : great" for i in range(40)}
    assert job.ready.about("lora").chat
    no_template = saved(llama(), tmp_path / "plain")
    (no_template / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match=r"chats\.jsonl, line 1: column 'messages': .*plain has no chat template"):
        read_rows(settings.model_copy(update={"model": str(no_template)}))


def test_text_to_label_runs_from_data_to_scores(place, tmp_path):
    data = tmp_path / "polar.csv"
    data.write_text("text,label\n" + "".join(f"film {i},{('negative', 'positive')[i % 2]}\n" for i in range(60)))
    settings = config(
        place,
        task="text-to-label",
        model=str(place / "llama"),
        data=str(data),
        methods=["lora"],
        label_prompt=" label :",
    )
    results = Job(settings, tmp_path / "run").run()
    (lora,) = results["methods"]
    hits = lora["trials"][0]["scores"][str(data)]["accuracy"] * results["examples"][str(data)]
    assert hits == pytest.approx(round(hits))
    assert results["zero_shot"][str(data)]["loss"] > 0


def test_causal_language_model_on_a_user_file(tmp_path):
    data = tmp_path / "text.csv"
    data.write_text(
        "text\n" + "".join(f'"The {w} sat on the mat number {i}."\n' for i in range(40) for w in ("cat", "dog"))
    )
    settings = AdaptConfig(
        steps=2,
        batch_size=4,
        max_length=16,
        train_limit=64,
        eval_limit=4,
        dropout=0.0,
        model="smollm2",
        data=str(data),
        task="causal-lm",
        methods=["lora"],
        budget="0.5%",
        target="q_proj,v_proj",
        learning_rates={"lora": [1e-3]},
    )
    results = Job(settings, tmp_path / "out").run()
    zero, lora = results["zero_shot"][str(data)], results["methods"][0]
    assert lora["scores"][str(data)]["mean"] > zero["score"]  # two steps on such text already help


def test_models_train_and_are_tested_on_the_device_of_this_process(place, tmp_path, monkeypatch):
    """One left on the CPU beside a GPU is tested there, slowly, and its weights count as training's memory."""
    seen = []

    def noting(task, model, rows, **_):
        seen.append(next(model.parameters()).device.type)
        return {"nll": [1.0] * len(rows), "tokens": [1] * len(rows)}

    def diverging(model, *_, **__):
        noting(None, model, [])
        raise FloatingPointError

    settings = config(place, task="causal-lm", model=str(place / "llama"), methods=["lora"], steps=1, eval_limit=4)
    job = Job(settings, tmp_path / "run")
    (trained,) = job._trained([("lora", 1e-3, 0)])
    monkeypatch.setattr(job, "process", SimpleNamespace(**MAIN, device=torch.device("meta")))
    monkeypatch.setattr(tasks.TextTask, "items", noting)
    monkeypatch.setattr(module, "train", diverging)
    job.tested(trained)
    job._zero_shot()
    assert job.trial("lora", 1e-3, 1).status == "diverged"
    assert {*seen} == {"meta"}


def test_settings_of_projected_steps_reach_the_optimiser(place, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(module, "train", lambda *a, training, **k: told.append(training.projection) or 1 / 0)
    options = {"projection_rank": 3, "update_gap": 7, "scale": 2.5, "rest": 0.5, "active_layers": 1, "interval": 9}
    job = Job(config(place, methods=["owlore"], baseline=False, **options), tmp_path / "run")
    with pytest.raises(ZeroDivisionError):
        job.trial("owlore", 1e-3, 0)
    (p,) = told
    assert (p.rank, p.update_gap, p.scale, p.rest, p.active, p.interval) == (3, 7, 2.5, 0.5, 1, 9)


def test_bad_input_leaves_no_folder(place, tmp_path):
    for options, match in (
        ({"methods": ["lora"], "budget": "1"}, "at rank 1"),
        ({"model": "minilmm"}, "did you mean minilm"),
        ({"data": "sentiment:movy"}, "did you mean movies"),
        ({"target": "qury"}, "query"),
    ):
        with pytest.raises(ValueError, match=match):
            Job(config(place, **options), tmp_path / "out").run()
        assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="did you mean lora"):
        AdaptConfig(methods=["lor"])


def test_spread_of_one_value_has_no_deviation():
    assert spread([0.5]) == {"mean": 0.5, "std": 0.0, "min": 0.5, "max": 0.5, "n": 1}


def test_trials_in_other_processes_give_the_same_numbers(place, tmp_path):
    settings = config(place, methods=["lora", "adalora"], seeds=2, baseline=False, steps=2)
    told = []
    one = Job(settings, tmp_path / "one").run()
    with spread_over(jobs=2):
        many = Job(settings, tmp_path / "many", on_event=lambda *event: told.append(event)).run()
    for a, b in zip(one["methods"], many["methods"], strict=True):
        assert a["scores"] == b["scores"]
        assert a["grid"] == b["grid"]
        assert [t["loss_curve"] for t in a["trials"]] == [t["loss_curve"] for t in b["trials"]]
    assert len({e[0] for e in told if e[1] == "done"}) == len(list((tmp_path / "many" / "trials").iterdir()))


def test_several_processes_that_train_together_are_not_spread(place, tmp_path):
    job = Job(config(place, methods=["lora"], baseline=False), tmp_path / "run")
    job.process = SimpleNamespace(num_processes=2)
    with spread_over(jobs=2), pytest.raises(ValueError, match="--jobs and --scheduler are of one process"):
        job.run()
    assert not (tmp_path / "run").exists()
