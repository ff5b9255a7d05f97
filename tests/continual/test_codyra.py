"""The learner: folding, taking out, going on after a kill, and what it refuses, on small models of every kind."""

import copy
import warnings

import numpy as np
import pytest
import torch
from peft import get_peft_model
from PIL import Image

from continual.test_objectives import Words
from rankwise.continual import CodyraLearner, Schedule
from rankwise.continual.learning.content import content_of_values
from rankwise.tuning import CodyraConfig
from small_models import bert, clip, gpt2, llama, vit

SHORT = Schedule(steps=12, batch_size=4, learning_rate=1e-2)


def pictures(seed=0, n=8):
    g = torch.Generator().manual_seed(seed)
    return [{"pixel_values": torch.randn(3, 32, 32, generator=g), "labels": i % 2} for i in range(n)]


def texts(seed=0, n=8, answers=False):
    g = torch.Generator().manual_seed(seed)
    rows = []
    for i in range(n):
        ids = torch.randint(0, 40, (6,), generator=g)
        labels = torch.where(torch.arange(6) > 3, ids, -100) if answers else i % 2
        rows.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
    return rows


def seeing():
    model = vit(layers=2)
    model.config.label2id = {str(i): i for i in range(5)}
    return model


KINDS = {
    "clip": (lambda: clip(layers=2), pictures, ("1", "2")),
    "sentences": (lambda: bert().bert, texts, ("1", "2")),
    "texts": (bert, texts, ()),
    "pictures": (seeing, pictures, ("1", "2")),
    "llama": (llama, lambda seed: texts(seed, answers=True), ()),
    "gpt2": (gpt2, lambda seed: texts(seed, answers=True), ()),
}


def learner_of(kind="texts", *, schedule=SHORT, seed=0, model=None, dtype=torch.float32, **options):
    made = (model or KINDS[kind][0]()).to(dtype)
    options = {"r": 3, "max_kappa": 0.1, "kappa_steps": 3, **options}
    return CodyraLearner(made, CodyraConfig(**options), tokenizer=Words(), schedule=schedule, seed=seed)


def state(model):
    return {n: p.detach().clone() for n, p in model.state_dict().items()}


def outputs(kind, learner):
    _, data, classes = KINDS[kind]
    batch = learner.collate(data(5))
    objective = learner.objective
    if kind in ("llama", "gpt2"):
        return learner.model(batch["input_ids"]).logits
    return objective.logits(learner.model.eval(), batch, classes)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_learns_two_tasks_and_ends_at_its_size(kind):
    _, data, classes = KINDS[kind]
    learner = learner_of(kind, schedule=Schedule(steps=12, batch_size=8, learning_rate=1e-2))
    before, first = state(learner.model), copy.deepcopy(learner.model)
    for i, name in enumerate(("one", "two")):
        other = tuple(str(int(c) + 2 * i) for c in classes) if kind != "pictures" else classes
        task = learner.learn(data(i), name=name, classes=other)
        assert min(task.losses) < task.losses[0]
    active = outputs(kind, learner)
    plain = learner.finish()
    torch.testing.assert_close(outputs(kind, learner), active, atol=1e-4, rtol=1e-4)  # the last one is folded in
    after = state(plain)
    assert {n: p.shape for n, p in after.items()} == {n: p.shape for n, p in before.items()}
    assert type(plain) is type(first)
    assert [type(m) for m in plain.modules()] == [type(m) for m in first.modules()]
    assert [p.requires_grad for p in plain.parameters()] == [p.requires_grad for p in first.parameters()]
    assert not plain.training
    for name in learner.history[0].factors:
        total = sum(
            (B @ A if after[f"{name}.weight"].shape == (len(B), A.shape[1]) and kind != "gpt2" else (B @ A).mT)
            for A, B in (task.factors[name] for task in learner.history)
        )
        change = after[f"{name}.weight"] - before[f"{name}.weight"]
        torch.testing.assert_close(change, total, atol=1e-5, rtol=1e-4)
    adapted = {f"{name}.weight" for name in learner.history[0].factors}
    assert all(torch.equal(after[n], before[n]) for n in before.keys() - adapted)
    assert 0 <= learner.accuracy(data(0), classes) <= 1


def test_a_task_is_learned():
    learner = learner_of(schedule=Schedule(steps=60, batch_size=8, learning_rate=2e-2), max_kappa=0.0)
    assert learner.accuracy(texts()) < 1
    learner.learn(texts(), name="one")
    assert learner.accuracy(texts()) == 1


def test_the_task_is_recorded_as_it_is():
    learner = learner_of("clip")
    task = learner.learn(pictures(), name="one", classes=["1", "2"])
    assert learner.rank_map() == {"one": task.ranks}
    for name, kept in task.ranks.items():
        A, B = task.factors[name]
        assert len(A) == B.shape[1] == kept.rank <= kept.of == 3
        assert kept.norm == pytest.approx((B @ A).norm().item(), rel=1e-4, abs=1e-7)
    assert task.norm == pytest.approx(
        sum((B @ A).square().sum().item() for A, B in task.factors.values()) ** 0.5, rel=1e-4
    )
    (drift,) = learner.drift()
    assert (drift.norm, drift.drift, drift.rank) == pytest.approx((task.norm, task.norm, task.rank), rel=1e-4)


def test_taking_out_a_task_leaves_the_others_and_all_out_is_the_first_model():
    learner = learner_of()
    before = state(learner.model)
    for i in range(3):
        learner.learn(texts(i), name=str(i))
    learner.forget("1")
    assert [t.name for t in learner.history] == ["0", "2"]
    name = next(iter(learner.history[0].factors))
    expected = before[f"{name}.weight"] + sum(B @ A for A, B in (t.factors[name] for t in learner.history))
    torch.testing.assert_close(learner.model.get_submodule(name).weight, expected)
    learner.forget("2")
    learner.forget("0")
    assert equal(state(learner.model), before)
    with pytest.raises(ValueError, match="unknown task '0'"):
        learner.forget("0")


def test_the_last_task_can_be_taken_out_while_it_is_active_and_learned_anew():
    learner = learner_of()
    before = state(learner.model)
    first = learner.learn(texts(), name="one")
    learner.forget("one")
    assert equal(state(learner.model), before)
    again = learner.learn(texts(), name="one")
    assert again.number == 1
    assert again.losses != first.losses  # other draws: it is another task


def test_half_precision_is_summed_in_float32_and_comes_back_bit_for_bit():
    learner = learner_of(dtype=torch.bfloat16, max_kappa=0.0)
    before = state(learner.model)
    for i in range(3):
        learner.learn(texts(i), name=str(i))
    learner.finish()
    for name in learner.history[0].factors:
        first = before[f"{name}.weight"].float()
        total = first + sum(B @ A for A, B in (t.factors[name] for t in learner.history))
        assert torch.equal(learner.model.get_submodule(name).weight, total.bfloat16())
    for i in range(3):
        learner.forget(str(i))
    assert equal(state(learner.model), before)


def test_one_seed_gives_one_model_and_another_another():
    models = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(models))
        learner = learner_of(seed=seed)
        learner.learn(texts(), name="one")
        models.append(state(learner.finish()))
    assert equal(models[0], models[1])
    assert not equal(models[0], models[2])


def test_all_gates_closed_is_said_and_changes_nothing():
    learner = learner_of(max_kappa=5.0)
    before = state(learner.model)
    with pytest.warns(UserWarning, match="every gate of 'one' is closed"):
        task = learner.learn(texts(), name="one")
    assert task.norm == task.rank == 0
    learner.finish()
    assert equal(state(learner.model), before)
    assert learner.drift()[0] == ("one", 0, 0, 0, 0)


def test_a_short_schedule_warns():
    with pytest.warns(UserWarning, match="12 steps leave 6 for 50 levels"):
        learner_of(kappa_steps=50).learn(texts(), name="one")


def test_classes_of_earlier_tasks_are_counted_once_and_come_back():
    seen = []

    learner = learner_of("clip")
    loss = learner.objective.loss

    class Objective:
        def loss(self, model, batch, classes, number):
            seen.append(number)
            return loss(model, batch, classes, number)

    learner.objective = Objective()
    for name, classes in (("a", ["1", "2"]), ("b", ["2", "3"]), ("c", ["1", "4"])):
        learner.learn(pictures(), name=name, classes=classes)
    assert list(dict.fromkeys(seen)) == [0, 1, 2]


# --- cut short


class Killed(BaseException):
    pass


def test_killed_within_a_task_and_between_tasks_it_ends_at_the_same_numbers(tmp_path):
    whole = learner_of()
    for i in range(2):
        whole.learn(texts(i), name=str(i))
    expected = state(whole.finish())
    cut = learner_of()
    cut.learn(texts(0), name="0")
    cut.save(tmp_path / "tasks")

    def kill(step, loss):
        if step == 8:
            raise Killed

    second = learner_of()
    second.resume(tmp_path / "tasks")
    between = state(second.model)
    with pytest.raises(Killed):
        second.learn(texts(1), name="1", checkpoint=tmp_path / "step", every=3, on_step=kill)
    assert equal(state(second.model), between)  # as before the task
    assert (tmp_path / "step").is_file()
    third, steps = learner_of(), []
    third.resume(tmp_path / "tasks")
    third.learn(texts(1), name="1", checkpoint=tmp_path / "step", every=3, on_step=lambda s, _: steps.append(s))
    assert steps[0] == 9
    assert not (tmp_path / "step").exists()
    assert equal(state(third.finish()), expected)
    assert [t.losses for t in third.history] == [t.losses for t in whole.history]
    assert third.rank_map() == whole.rank_map()
    assert third.drift() == whole.drift()


@pytest.mark.parametrize("change", ["data", "weights", "classes", "schedule"])
def test_a_checkpoint_of_something_else_is_not_gone_on_from(tmp_path, change):
    def kill(step, loss):
        if step == 8:
            raise Killed

    def one(altered, **options):
        model = bert()
        if altered == "weights":
            with torch.no_grad():
                model.bert.encoder.layer[0].output.dense.weight[0, 0] += 1
        schedule = Schedule(steps=13, batch_size=4, learning_rate=1e-2) if altered == "schedule" else SHORT
        data = texts(0)
        if altered == "data":
            data[7]["input_ids"][0] += 1
        learner = learner_of(model=model, schedule=schedule)
        name = "other" if altered == "classes" else "one"
        return learner.learn(data, name=name, checkpoint=tmp_path / "step", every=3, **options)

    with pytest.raises(Killed):
        one(None, on_step=kill)
    steps = []
    one(change, on_step=lambda s, _: steps.append(s))
    assert steps[0] == 0


def test_saved_tasks_are_put_into_the_model_that_they_began_with_alone(tmp_path):
    learner = learner_of()
    learner.learn(texts(), name="one")
    learner.save(tmp_path / "tasks")
    with torch.no_grad():
        other = bert()
        other.bert.encoder.layer[1].output.dense.weight[0, 0] += 1e-3
    with pytest.raises(ValueError, match="other weights"):
        learner_of(model=other).resume(tmp_path / "tasks")
    with pytest.raises(ValueError, match="no layer"):
        learner_of("gpt2").resume(tmp_path / "tasks")
    with pytest.raises(ValueError, match="has tasks"):
        learner.resume(tmp_path / "tasks")
    again = learner_of()
    again.resume(tmp_path / "tasks")
    again.forget("one")
    assert equal(state(again.model), state(bert()))


def test_factors_that_another_learner_wrote_or_that_are_damaged_are_not_kept_for_ones_own(tmp_path):
    for seed in (1, 2):
        learner = learner_of(seed=seed)
        learner.learn(texts(seed), name="one")
        learner.write_into(tmp_path)
        again = learner_of()
        again.resume(tmp_path)
        assert equal(state(again.finish()), state(learner.finish()))
    (tmp_path / "task-0.safetensors").write_bytes(b"damaged")
    learner.write_into(tmp_path)
    written = (tmp_path / "task-0.safetensors").stat().st_mtime_ns
    learner.write_into(tmp_path)
    assert (tmp_path / "task-0.safetensors").stat().st_mtime_ns == written  # what is there is kept


def test_a_folder_that_no_learner_wrote_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"tasks\.json is missing"):
        learner_of().resume(tmp_path)
    for text in ("{}", '{"tasks": [{}], "number": 1, "first": ""}', '{"tasks": 3, "number": 1, "first": ""}'):
        (tmp_path / "tasks.json").write_text(text)
        with pytest.raises((ValueError, OSError), match=r"tasks\.json|task-0"):
            learner_of().resume(tmp_path)


# --- refused


def test_what_cannot_be_learned_is_refused_and_leaves_the_model():
    learner = learner_of("clip")
    before = state(learner.model)
    for data, options, match in (
        ([], {"name": "a", "classes": ["1"]}, "'a' has no examples"),
        (pictures(), {"name": "a", "classes": ["1", "1"]}, "class '1' twice"),
        (pictures(), {"name": "a", "classes": ["1"]}, "1 classes and the label 1"),
    ):
        with pytest.raises(ValueError, match=match):
            learner.learn(data, **options)
    assert equal(state(learner.model), before)
    learner.learn(pictures(), name="a", classes=["1", "2"])
    with pytest.raises(ValueError, match="'a' is learned already"):
        learner.learn(pictures(), name="a", classes=["3", "4"])
    with pytest.raises(ValueError, match="no examples to judge by"):
        learner.accuracy([])


def test_models_and_configurations_that_could_not_be_undone_are_refused():
    with pytest.raises(ValueError, match="has adapters"):
        CodyraLearner(get_peft_model(bert(), CodyraConfig(r=2)))
    with pytest.raises(ValueError, match="modules_to_save"):
        CodyraLearner(bert(), CodyraConfig(modules_to_save=["classifier"]))


def test_a_loss_that_diverges_leaves_the_model():
    learner = learner_of(max_kappa=0.0)
    before = state(learner.model)
    learner.objective = type("", (), {"loss": lambda *_: learner.model.classifier.weight.sum() * float("nan")})()
    with pytest.raises(FloatingPointError):
        learner.learn(texts(), name="one")
    assert equal(state(learner.model), before)
    assert not learner.history


# --- the bound


def test_the_bound_on_forgetting_is_between_the_weights_before_and_after():
    learner = learner_of(max_kappa=0.0)
    learner.learn(texts(0), name="one")
    learner.finish()
    batch = learner.collate(texts(0))

    def loss():
        with torch.no_grad():
            return learner.objective.loss(learner.model, batch, (), 0).item()

    before = loss()
    learner.learn(texts(1), name="two")
    learner.finish()
    found, now = learner.forgetting_bound(texts(0), points=8), state(learner.model)
    assert found.forgetting == pytest.approx(loss() - before, abs=1e-5)
    assert found.forgetting <= found.bound
    assert found.norm == pytest.approx(learner.history[1].norm, rel=1e-4)
    assert equal(state(learner.model), now)


def test_nothing_is_warned_of_in_an_ordinary_run():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learner = learner_of()
        for i in range(2):
            learner.learn(texts(i), name=str(i))
        learner.finish()


# --- models and examples as people have them


class Seen(torch.nn.Module):
    """Statistics that run, and a weight to adapt."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.dropout, self.linear = torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.1), torch.nn.Linear(4, 2)

    def forward(self, x):
        return self.linear(self.dropout(self.norm(x)))


class Errors:
    """Cross-entropy and largest output of a plain module; says what was training."""

    def __init__(self):
        self.modes = set()

    def loss(self, model, batch, classes, seen):
        self.modes.add((model.norm.training, model.dropout.training))
        return torch.nn.functional.cross_entropy(model(batch["x"]), batch["labels"])

    def right(self, model, batch, classes, among):
        return model(batch["x"]).argmax(-1) == batch["labels"]


def test_running_statistics_stand_still_so_that_a_task_can_be_taken_out_whole(tmp_path):
    rows = [{"x": torch.randn(4, generator=torch.Generator().manual_seed(i)) + 3, "labels": i % 2} for i in range(8)]
    model, errors = Seen(), Errors()
    model.norm.eval()
    before = state(model)
    options = {"config": CodyraConfig(r=2, target_modules=["linear"]), "objective": errors, "schedule": SHORT}
    learner = CodyraLearner(model, **options)
    learner.learn(rows, name="one")
    after = state(learner.finish())
    assert errors.modes == {(False, True)}
    assert (model.norm.training, model.dropout.training) == (False, True)
    learner.save(tmp_path / "tasks")
    again = CodyraLearner(Seen(), **options)
    again.resume(tmp_path / "tasks")
    assert equal(state(again.finish()), after)
    learner.forget("one")
    assert equal(state(learner.finish()), before)
    assert not torch.equal(after["linear.weight"], before["linear.weight"])


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: [x], lambda x: {"a": x}, torch.tensor, Image.fromarray])
def test_examples_that_differ_in_one_number_alone_have_another_content(wrap):
    x = np.zeros((60, 60), np.uint8)
    y = x.copy()
    y[30, 30] = 1
    assert content_of_values({"x": wrap(x)}) == content_of_values({"x": wrap(x.copy())})
    assert content_of_values({"x": wrap(x)}) != content_of_values({"x": wrap(y)})
