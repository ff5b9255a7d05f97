import json

import pytest
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from rankwise.jobs.adapt import AdaptConfig, Job, spread
from rankwise.models import resolve

TINY = {"steps": 3, "batch_size": 4, "max_length": 16, "train_limit": 64, "eval_limit": 24, "dropout": 0.0}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "first"
    config = AdaptConfig(
        **TINY,
        methods=["bitfit", "lora", "adalora", "s2lora", "eva"],
        eval=["sentiment:tweets"],
        seeds=2,
        learning_rates={m: [1e-3] for m in ("head", "bitfit", "lora", "adalora", "s2lora", "eva")},
    )
    return out, config, Job(config, out).run()


def test_every_method_stays_within_the_budget_and_is_scored_everywhere(finished):
    _, _, results = finished
    assert [m["name"] for m in results["methods"]] == ["head", "bitfit", "lora", "adalora", "s2lora", "eva"]
    for m in results["methods"]:
        assert m["status"] == "done"
        assert m["cost"]["trainable_parameters"] <= results["budget"] or m["name"] == "eva"
        assert m["cost"]["head_parameters"] == 770
        assert set(m["scores"]) == {"validation", "sentiment:movies", "sentiment:tweets"}
        assert all(s["n"] == 2 for s in m["scores"].values())
        assert m["cost"]["adapter_bytes"] > 0
    lora, eva = (next(m for m in results["methods"] if m["name"] == n) for n in ("lora", "eva"))
    assert sum(eva["trials"][0]["ranks"].values()) == sum(lora["trials"][0]["ranks"].values())


def test_a_finished_job_is_read_back_unchanged(finished):
    out, config, results = finished
    times = {p: p.stat().st_mtime_ns for p in out.rglob("result.json")}
    again = Job(config, out).run()
    assert json.dumps(again["methods"]) == json.dumps(results["methods"])
    assert {p: p.stat().st_mtime_ns for p in out.rglob("result.json")} == times


@pytest.mark.parametrize("method", ["lora", "eva", "adalora", "s2lora", "bitfit"])
def test_published_adapters_load_with_from_pretrained_and_score_as_the_first_seed_did(finished, method):
    out, config, results = finished
    base = AutoModelForSequenceClassification.from_pretrained(resolve("minilm"))
    model = PeftModel.from_pretrained(base, out / "adapters" / method).eval()
    trial = next(m for m in results["methods"] if m["name"] == method)["trials"][0]
    job = Job(config, out)
    found = job.task.evaluate(model, job.examples["sentiment:tweets"])
    assert found == pytest.approx(trial["scores"]["sentiment:tweets"], abs=1e-5)


def test_another_configuration_may_not_use_the_folder(finished):
    out, config, _ = finished
    with pytest.raises(ValueError, match=r"belongs to another configuration \(budget, steps differ\)"):
        Job(config.model_copy(update={"budget": "1%", "steps": 4}), out).run()


def test_a_diverging_method_is_reported_and_the_others_go_on(tmp_path):
    config = AdaptConfig(
        **TINY, methods=["lora", "bitfit"], baseline=False, learning_rates={"lora": [float("1e38")], "bitfit": [1e-3]}
    )
    lora, bitfit = Job(config, tmp_path / "out").run()["methods"]
    assert lora["status"] == "diverged"
    assert "the loss is nan" in lora["message"] or "the loss is inf" in lora["message"]
    assert bitfit["status"] == "done"


def test_regression_and_full_reference(tmp_path):
    config = AdaptConfig(
        **TINY,
        task="regression",
        methods=["s2lora"],
        reference="full",
        learning_rates={"full": [1e-5], "s2lora": [1e-3]},
    )
    results = Job(config, tmp_path / "out").run()
    full = results["methods"][-1]
    assert full["name"] == "full"
    assert full["cost"]["trainable_parameters"] == 22_713_216
    found = [t["scores"]["sentiment:movies"]["score"] for t in full["trials"]]
    assert full["scores"]["sentiment:movies"]["mean"] == pytest.approx(sum(found) / len(found))
    assert not list((tmp_path / "out").rglob("full*/adapter"))  # whole models are scored, not kept


def test_causal_language_model_on_a_user_file(tmp_path):
    data = tmp_path / "text.csv"
    data.write_text(
        "text\n" + "".join(f'"The {w} sat on the mat number {i}."\n' for i in range(40) for w in ("cat", "dog"))
    )
    config = AdaptConfig(
        **{**TINY, "steps": 2, "eval_limit": 4},
        model="smollm2",
        data=str(data),
        task="causal-lm",
        methods=["lora"],
        budget="0.5%",
        target="q_proj,v_proj",
        learning_rates={"lora": [1e-3]},
    )
    results = Job(config, tmp_path / "out").run()
    zero, lora = results["zero_shot"][str(data)], results["methods"][0]
    assert lora["scores"][str(data)]["mean"] > zero["score"]  # two steps on such text already help


def test_bad_input_leaves_no_folder(tmp_path):
    for options, match in (
        ({"methods": ["lora"], "budget": "0.01%"}, "at rank 1"),
        ({"model": "minilmm"}, "did you mean minilm"),
        ({"data": "sentiment:movy"}, "did you mean movies"),
        ({"target": "qury"}, "query"),
    ):
        with pytest.raises(ValueError, match=match):
            Job(AdaptConfig(**TINY, **options), tmp_path / "out").run()
        assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="did you mean lora"):
        AdaptConfig(methods=["lor"])


def test_spread_of_one_value_has_no_deviation():
    assert spread([0.5]) == {"mean": 0.5, "std": 0.0, "min": 0.5, "max": 0.5, "n": 1}


def test_text_to_label_runs_from_data_to_scores(tmp_path):
    config = AdaptConfig(
        **TINY | {"steps": 1, "batch_size": 2, "train_limit": 4, "eval_limit": 4},
        task="text-to-label",
        model="smollm2",
        methods=["lora"],
        seeds=1,
        baseline=False,
        learning_rates={"lora": [1e-3]},
    )
    (lora,) = Job(config, tmp_path / "run").run()["methods"]
    assert lora["status"] == "done"
    # four texts are judged, each right or wrong
    assert lora["scores"]["sentiment:movies"]["mean"] in (0, 0.25, 0.5, 0.75, 1)
