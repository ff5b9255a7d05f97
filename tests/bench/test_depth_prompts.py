"""The recipe of prompts by depth: pools that share nothing, labels in turns, and claims that each can fail."""

import numpy as np
import pytest

from rankwise.bench.prompting import depth_prompts as recipe
from rankwise.bench.shared.frozen import Difference
from rankwise.prompting.examples import Example


@pytest.mark.parametrize("task", recipe.TASKS)
def test_pools_have_no_sentence_in_common_and_all_labels(task):
    sizes = {"train": recipe.POOL, "test": recipe.QUERIES}
    every = {split: recipe._sentences(task, split, n, 20) for split, n in sizes.items()}
    for split, shares in every.items():
        assert [len(share) for share in shares] == [sizes[split]] * 20
        questions = [e.question for share in shares for e in share]
        assert len(questions) == len(set(questions))
        assert all({e.answer for e in share} == set(recipe.TASKS[task][0]) for share in shares)
    train, test = ({e.question for share in shares for e in share} for shares in every.values())
    assert not train & test


def test_labels_take_turns_in_every_prompt_and_examples_are_of_the_pool(monkeypatch):
    rng = np.random.default_rng(0)
    monkeypatch.setattr(recipe, "embed", lambda texts: rng.normal(size=(len(texts), 6)))
    labels = ("a", "b", "c", "d")
    pool = [Example(question=f"q{i}", answer=labels[i % 4]) for i in range(40)]
    prompts = recipe.prompts_of(pool, labels, 0)
    assert len(prompts) == len(recipe.ARMS)
    assert prompts[0] == []
    for shots in prompts[1:]:
        assert len(shots) == len({e.question for e in shots}) == recipe.K
        assert {e.answer for e in shots[:4]} == {e.answer for e in shots[4:]} == set(labels)
        assert {e.question for e in shots} <= {e.question for e in pool}
    assert prompts[-1] != prompts[-2]


def run(deep=-0.5, shallow=-0.7, random=-0.6, none=-0.8, right=True):
    means = {recipe.DEEP: deep, recipe.SHALLOW: shallow, recipe.NONE: none}
    gold = [0, 1, 0, 1]

    def table(arm):
        p = np.exp(means.get(arm, random))
        rows = [[p, 1 - p] if g == 0 else [1 - p, p] for g in gold]
        return np.log(rows if right else [r[::-1] for r in rows]).tolist()

    return {"gold": gold, "logp": {arm: table(arm) for arm in recipe.ARMS}}


def test_scores_are_of_the_right_label():
    assert recipe.of_right(run(deep=-0.3), recipe.DEEP) == pytest.approx(-0.3)
    assert recipe.accuracy(run(deep=-0.3), recipe.DEEP) == 1
    assert recipe.accuracy(run(deep=-0.9), recipe.DEEP) == 0


def held(**changes):
    runs = {f"{task} {s}": run(**changes) for task in recipe.TASKS for s in range(20)}
    return [c.held for c in recipe.judge(runs, seeds=20).claims]


def test_claims_follow_the_pools():
    assert held() == [True] * 4
    assert held(deep=-0.65) == [False, True, True, True]
    assert held(deep=-0.75) == [False, False, True, True]
    assert held(shallow=-0.55) == [True, True, False, True]
    assert held(random=-0.75, shallow=-0.9) == [True, True, True, False]  # likelier wrong than right


def test_one_task_that_fails_is_enough():
    def gap(low, high):
        return Difference(mean=(low + high) / 2, low=low, high=high, error=0.1)

    good, bad = [("a", gap(0.1, 0.2))], [("b", gap(-0.1, 0.2))]
    assert [c.held for c in recipe._claims(good, good, bad, good)] == [True, True, True, True]
    assert [c.held for c in recipe._claims([*good, *bad], good, bad, good)] == [False, True, True, True]
    assert [c.held for c in recipe._claims(good, good, [*bad, *good], [*good, *bad])] == [True, True, False, False]


def test_rows_stand_against_random_examples():
    rows = recipe.judge({f"{t} {s}": run() for t in recipe.TASKS for s in range(2)}, seeds=2).rows
    assert [row[1] for row in rows[:4]] == ["no examples", "deepest", "random", "shallowest"]
    assert rows[1][4].startswith("+0.1 [+0.1, +0.1]")
