import math
from pathlib import Path

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, get_peft_model

from rankwise.files import write_json
from rankwise.jobs.methods import METHODS, Projection
from rankwise.jobs.tasks import TextTask
from rankwise.jobs.trial import Training, TrialResult, last_checkpoint, ordered, rank_map, train
from rankwise.models import load_tokenizer
from rankwise.tuning import S2LoraConfig
from small_models import bert, llama, randomise

STEPS = 10
CLASSIFY = TextTask(kind="classification", tokenizer=load_tokenizer("minilm"), max_length=12)
CONTINUE = TextTask(kind="causal-lm", tokenizer=load_tokenizer("minilm"), max_length=12)


def examples(n=40, seed=0):
    g = torch.Generator().manual_seed(seed)
    rows = []
    for i in range(n):
        length = int(torch.randint(3, 12, (1,), generator=g))
        rows.append({"input_ids": torch.randint(1, 50, (length,), generator=g).tolist(), "label": i % 2})
    return rows


def run(config, folder, *, stop_at=None, seed=0, **training):
    """Train a small model; ``stop_at`` ends it there as a kill would, right after that step's checkpoint."""
    torch.manual_seed(seed)
    model = get_peft_model(bert(), config)
    result = TrialResult(method="x", learning_rate=1e-2, seed=seed)

    def on_step(step, steps, loss):
        if stop_at is not None and step > stop_at:
            raise KeyboardInterrupt

    settings = Training(steps=STEPS, batch_size=4, max_length=12, checkpoint_steps=2, **training)
    train(
        model,
        examples(),
        training=settings,
        learning_rate=1e-2,
        seed=seed,
        task=CLASSIFY,
        folder=folder,
        result=result,
        on_step=on_step,
        validation=examples(12, seed=9),
    )
    return model, result


CONFIGS = {
    "lora": lambda: LoraConfig(r=2, target_modules=["query", "value"], task_type="SEQ_CLS"),
    "s2lora": lambda: S2LoraConfig(r=2, target_modules=["query", "value"], sparsity=0.1, task_type="SEQ_CLS"),
    "adalora": lambda: AdaLoraConfig(
        init_r=3,
        target_r=1,
        tinit=1,
        tfinal=3,
        deltaT=1,
        total_step=STEPS,
        target_modules=["query", "value"],
        task_type="SEQ_CLS",
    ),
}


@pytest.mark.parametrize("name", list(CONFIGS))
@pytest.mark.parametrize("stop_at", [3, 8])
def test_a_stopped_run_resumes_to_the_numbers_of_an_unbroken_one(name, stop_at, tmp_path):
    whole, expected = run(CONFIGS[name](), tmp_path / "whole", validation_points=5)
    with pytest.raises(KeyboardInterrupt):
        run(CONFIGS[name](), tmp_path / "broken", stop_at=stop_at, validation_points=5)
    assert last_checkpoint(tmp_path / "broken/checkpoints")
    resumed, result = run(CONFIGS[name](), tmp_path / "broken", validation_points=5)
    assert result.loss_curve == expected.loss_curve
    assert result.validation_curve == expected.validation_curve
    for (n, a), (_, b) in zip(whole.named_parameters(), resumed.named_parameters(), strict=True):
        assert torch.equal(a, b), n


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_pickle_that_was_put_into_a_checkpoint_never_runs(name, tmp_path):
    class Planted:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    with pytest.raises(KeyboardInterrupt):
        run(CONFIGS["lora"](), tmp_path / "broken", stop_at=3)
    checkpoint = Path(str(last_checkpoint(tmp_path / "broken/checkpoints")))
    assert (checkpoint / name).is_file()
    torch.save(Planted(), checkpoint / name)
    with pytest.raises(ValueError, match=rf"{checkpoint.name}.* cannot be read"):
        run(CONFIGS["lora"](), tmp_path / "broken")
    assert not (tmp_path / "ran").exists()


def whole_model(name, folder, *, stop_at=None):
    """Train every parameter of a small decoder by a method's own optimiser."""
    torch.manual_seed(0)
    model, result = llama(), TrialResult(method=name, learning_rate=1e-2, seed=0)

    def on_step(step, steps, loss):
        if stop_at is not None and step > stop_at:
            raise KeyboardInterrupt

    projection = Projection(rank=4, update_gap=3, active=1, interval=4)
    train(
        model,
        [{"input_ids": e["input_ids"]} for e in examples()],
        training=Training(steps=STEPS, batch_size=4, max_length=12, checkpoint_steps=2, projection=projection),
        learning_rate=1e-2,
        seed=0,
        task=CONTINUE,
        folder=folder,
        result=result,
        on_step=on_step,
        optimizer=METHODS[name].optimizer,
    )
    return model, result


@pytest.mark.parametrize("name", ["owlore", "lisa", "galore"])
@pytest.mark.parametrize("stop_at", [3, 6, 8])
def test_training_all_parameters_resumes_within_and_at_an_interval(name, stop_at, tmp_path):
    whole, expected = whole_model(name, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        whole_model(name, tmp_path / "broken", stop_at=stop_at)
    resumed, result = whole_model(name, tmp_path / "broken")
    assert result.loss_curve == expected.loss_curve
    assert all(p.requires_grad for p in resumed.parameters())
    for (n, a), (_, b) in zip(whole.named_parameters(), resumed.named_parameters(), strict=True):
        assert torch.equal(a, b), n


def test_half_written_checkpoints_are_never_read(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(CONFIGS["lora"](), tmp_path, stop_at=5)
    newest = last_checkpoint(tmp_path / "checkpoints")
    assert newest.endswith("checkpoint-4")
    (tmp_path / "checkpoints/checkpoint-6").mkdir()
    (tmp_path / "checkpoints/checkpoint-6/trainable.safetensors").write_bytes(b"half")
    assert last_checkpoint(tmp_path / "checkpoints") == newest
    assert not (tmp_path / "checkpoints/checkpoint-6").exists()


def test_adalora_moves_its_budget_during_training(tmp_path):
    model, _ = run(CONFIGS["adalora"](), tmp_path)
    ranks, mass = rank_map(model)
    assert sum(ranks.values()) == 4  # target_r = 1 for each of four layers
    assert set(ranks) == set(mass)


def test_the_order_of_examples_depends_on_the_seed_alone_and_covers_every_pass():
    rows = examples(40)
    one, two = (ordered(rows, task=CLASSIFY, steps=20, batch_size=4, seed=3) for _ in "ab")
    assert one == two != ordered(rows, task=CLASSIFY, steps=20, batch_size=4, seed=4)
    assert len(one) == 80
    seen = [id(r) for r in one]
    assert all(seen.count(id(r)) == 2 for r in rows)
    spans = [
        max(len(r["input_ids"]) for r in one[i : i + 4]) - min(len(r["input_ids"]) for r in one[i : i + 4])
        for i in range(0, 80, 4)
    ]
    assert sum(spans) / len(spans) < 2.5  # batches of similar length; 8 apart at most


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    model = get_peft_model(bert(), LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS"))
    with torch.no_grad():
        model.base_model.model.bert.encoder.layer[0].output.dense.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="the loss is nan at step 1"):
        train(
            model,
            examples(),
            training=Training(steps=4, batch_size=4, max_length=12),
            learning_rate=1e-3,
            seed=0,
            task=CLASSIFY,
            folder=tmp_path,
            result=TrialResult(method="x", learning_rate=1e-3, seed=0),
        )


def test_scores_agree_with_scikit_learn():
    from sklearn.metrics import accuracy_score, f1_score, log_loss

    model, rows = randomise(get_peft_model(bert(), LoraConfig(r=2, target_modules=["query"]))).eval(), examples(30)
    scores = CLASSIFY.evaluate(model, rows)
    probability = []
    for row in rows:
        logits = model(**{k: v for k, v in CLASSIFY.collate([row]).items() if k != "labels"}).logits
        probability.append(logits.softmax(-1)[0].tolist())
    truth, guess = [r["label"] for r in rows], [int(p[1] > p[0]) for p in probability]
    assert scores["accuracy"] == pytest.approx(accuracy_score(truth, guess))
    assert scores["macro_f1"] == pytest.approx(f1_score(truth, guess, average="macro"), abs=1e-6)
    assert scores["loss"] == pytest.approx(log_loss(truth, [p[1] for p in probability]), rel=1e-4)


def test_perplexity_counts_every_predicted_token_once():
    model, rows = llama(), [{"input_ids": [1, 2, 3, 4]}, {"input_ids": [5, 6]}]
    losses = [float(model(**CONTINUE.collate([r])).loss.detach()) * (len(r["input_ids"]) - 1) for r in rows]
    scores = CONTINUE.evaluate(model, rows)
    assert scores["loss"] == pytest.approx(sum(losses) / 4, rel=1e-5)
    assert scores["perplexity"] == pytest.approx(math.exp(sum(losses) / 4), rel=1e-5)


def test_a_result_survives_its_json(tmp_path):
    result = TrialResult(
        method="lora",
        learning_rate=1e-3,
        seed=1,
        scores={"a": {"score": 0.5}},
        loss_curve=[(1, 0.5), (2, float("nan"))],
    )
    write_json(tmp_path / "result.json", result.as_dict())
    assert repr(TrialResult.read(tmp_path / "result.json")) == repr(result)  # a NaN is not itself


@pytest.mark.parametrize(
    ("entries", "place"),
    [({"loss_curve": [["a", "b"]]}, "loss_curve.0.0"), ({"status": "fine"}, "status"), ({"cost": 3}, "cost")],
)
def test_a_result_of_another_form_is_refused_with_its_place(entries, place, tmp_path):
    result = TrialResult(method="lora", learning_rate=1e-3, seed=1)
    write_json(tmp_path / "result.json", result.as_dict() | entries)
    with pytest.raises(ValueError, match=rf"result\.json: {place}"):
        TrialResult.read(tmp_path / "result.json")
