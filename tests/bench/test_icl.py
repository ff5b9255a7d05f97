"""What the recipe of in-context learning concludes: every claim by its own comparison, and controls that can fail."""

import math

import numpy as np
import pandas as pd
import pytest

from rankwise.bench.dynamics import icl as recipe
from rankwise.bench.shared.measured import plain
from rankwise.dynamics import InContextExperiment, InContextResult, InContextTask

STEPS = np.arange(0, 1001, 50)


def curve(at, first, last, width=40):
    """A rise (or fall) around a step."""
    return first + (last - first) / (1 + np.exp(-(STEPS - at) / width))


def learned(at=500, ic=0.98, ic2=0.97, iwl=0.1, cla=200, ila1=490, tila2=500, width=40):
    rows = []
    for seed in range(6):
        rows.append(pd.DataFrame({
            "seed": seed, "step": STEPS, "loss": curve(at, math.log(4), 0.05, width), "accuracy": curve(at, 0.1, ic),
            "ic": curve(at, 0.06, ic + seed / 1e4, width), "ic2": curve(at, 0.06, ic2), "iwl": curve(at, 0.06, iwl),
            "cla": curve(cla, 0.2, 1.0), "ila1": curve(ila1, 0.2, 0.9), "tila2": curve(tila2, 0.1, 0.9),
            "tla2": curve(cla, 0.4, 0.9), "strength": curve(at, 0.0, 0.8),
        }))  # fmt: skip
    return pd.concat(rows, ignore_index=True)


def found(**changed):
    """Every condition as the paper has it; ``changed`` by name, spaces and dots as underscores."""
    learns, not_, both = {}, {"ic": 0.1, "ic2": 0.1}, {"iwl": 0.9}
    worlds = {
        "main": learns, "high": {"at": 200}, "frozen": not_, "without": not_, "two": learns, "three": learns,
        "all": not_, "some": learns, "mixed": both,
        "K 16": {"ic": 0.1, "ic2": 0.0, "iwl": 0.99}, "K 64": {"ic": 0.3, "iwl": 0.9},
        "K 256": {"ic": 0.7, "iwl": 0.5}, "K 1024": learns, "B 1": {"ic": 0.5}, "B 2": {"ic": 0.7}, "B 4": {"ic": 0.9},
        "ε 0": {"ic": 0.3}, "ε 0.1": {"ic": 0.7}, "ε 1": {"ic": 0.6}, "α 0": {}, "α 1": both,
        "α 2": {"ic": 0.1, "iwl": 0.95},
    }  # fmt: skip
    task = InContextTask(**recipe.MAIN)
    worlds |= {name.replace("_", " "): options for name, options in changed.items()}
    return {name: InContextResult(frame=learned(**options), task=task) for name, options in worlds.items()}


def theory(shift=0.0):
    return pd.DataFrame({"step": STEPS, "loss": curve(500, math.log(4), 0.05) + shift})


@pytest.mark.parametrize(
    ("changed", "shift", "fails"),
    [
        ({}, 0.0, []),
        ({"main": {"ic2": 0.8}}, 0.0, [0]),
        ({"main": {"iwl": 0.4}}, 0.0, [0]),
        ({"main": {"width": 150}}, 0.05, [1]),
        ({"main": {"cla": 600}}, 0.0, [2]),
        ({"main": {"ila1": 300}}, 0.0, [2]),
        ({"high": {"at": 400}}, 0.0, [3]),
        ({"two": {"ic": 0.5}}, 0.0, [4]),
        ({"three": {"ic": 0.5}}, 0.0, [4]),
        ({"all": {"ic": 0.6}}, 0.0, [5]),
        ({"some": {"ic": 0.4}}, 0.0, [5]),
        ({"K_1024": {"ic": 0.5}}, 0.0, [6]),
        ({"K_1024": {"iwl": 1.0}}, 0.0, [6]),
        ({"B_4": {"ic": 0.55}}, 0.0, [7]),
        ({"ε_0": {"ic": 0.65}}, 0.0, [8]),
        ({"α_1": {"iwl": 0.05}}, 0.0, [9]),
        ({"mixed": {"iwl": 0.5}}, 0.0, [10]),
        ({"mixed": {"ic": 0.5, "iwl": 0.9}}, 0.0, [10]),
        ({}, 0.5, [11]),
        ({"without": {"ic": 0.6}}, 0.0, [12]),
        ({"K_16": {"ic": 0.1, "ic2": 0.2, "iwl": 0.99}}, 0.0, [13]),
        ({"K_16": {"ic": 0.1, "ic2": 0.0, "iwl": 0.8}}, 0.0, [13]),
    ],
)
def test_each_claim_fails_by_its_own_comparison(changed, shift, fails):
    claims = recipe._claims(found(**changed), theory(shift))
    assert [c.control for c in claims] == [False] * 12 + [True] * 2
    assert [i for i, c in enumerate(claims) if not c.held] == fails


def test_what_is_not_kept_is_told():
    given = found()
    frame = given["mixed"].frame
    frame.loc[frame.step == 1000, "ic"] = 0.8
    assert [i for i, c in enumerate(recipe._claims(given, theory())) if not c.held] == [10]


def test_where_nobody_learns_nothing_holds_by_chance_and_every_number_is_told():
    given = {name: InContextResult(frame=learned(ic=0.1, ic2=0.1), task=r.task) for name, r in found().items()}
    claims = recipe._claims(given, None)
    assert not any(c.held for c in claims[:4])
    assert "(6 never)" in claims[3].found
    assert claims[11].found == "it never falls"
    assert recipe._row("main", given["main"])[-1] == "- (6 never)"


def test_every_condition_can_be_and_is_judged():
    conditions = recipe.conditions()
    assert set(conditions) == set(found())
    for task, training in conditions.values():
        InContextExperiment(InContextTask(**task), **training)
    row = recipe._row("ε 0", found()["ε 0"])
    assert len(row) == 6
    assert row[0] == "ε 0"


def test_the_distance_of_the_theory_is_in_units_of_log_L():
    assert recipe._gap(found()["main"], theory(math.log(16) / 5)) == pytest.approx(0.2)


def test_what_the_loops_draw_is_what_the_task_draws():
    from rankwise.bench.speed.in_context import drawn_in_loops

    task = InContextTask(classes=128, labels=8, dim=15, pairs=4, burstiness=2, n_max=6, p_novel=1.0)
    embeddings = task.sampler(0).embeddings[0].numpy().astype(float)
    inputs, target = drawn_in_loops(task, np.random.default_rng(0), embeddings, 600)
    ours = task.sampler(0).draw(600).of(0)
    place, content = inputs[..., :13], inputs[..., 13:]
    np.testing.assert_array_equal(place.sum((0, 2)), ours.inputs[..., :13].sum((0, 2)))
    assert sorted(place[:, 0].argmax(-1).unique().tolist()) == [0, 1, 2, 3, 4]
    assert float(content.square().sum(-1).mean()) == pytest.approx(
        float(ours.inputs[..., 13:].square().sum(-1).mean()), abs=0.05
    )
    near = (content[:, ::2][:, :-1] - content[:, -1:]).square().sum(-1) < 0.2
    labels = content[:, 1::2].numpy() @ np.linalg.pinv(embeddings)
    assert float((near.sum(-1) >= 2).float().mean()) > 0.97
    matched = labels.argmax(-1)[np.arange(600), near.float().argmax(-1).numpy()]
    assert (matched == target.numpy()).mean() > 0.97


def test_claims_are_judged_by_what_is_kept_of_the_frames():
    given = found()
    kept = plain({name: recipe.columns(r.frame, whole=name == "main") for name, r in given.items()})
    claims = recipe._claims({n: InContextResult(frame=recipe.framed(kept[n]), task=r.task) for n, r in given.items()},
                            theory())  # fmt: skip
    assert all(c.held for c in claims)
    given["two"].frame.loc[3, "loss"] = math.nan
    again = recipe.framed(plain(recipe.columns(given["two"].frame, whole=False)))
    assert again.loss.isna().tolist().index(True) == 3
    assert (again.seed.dtype, again.step.dtype) == (int, int)
    far = given["two"].frame.assign(step=123_456, loss=0.1234567)
    assert {v for k in ("step", "loss") for v in recipe.columns(far, whole=False)[k]} == {123_456, 0.12346}


def test_a_step_is_as_far_from_a_curve_as_the_best_of_all_steps():
    loss = np.array([1.0, 0.9, 0.2, 0.0])
    frame = pd.DataFrame({"seed": 0, "step": [0, 1, 2, 3], "loss": loss})
    main = InContextResult(frame=frame, task=InContextTask(**recipe.MAIN))
    nearest = min(np.abs(np.r_[np.ones(k), np.zeros(4 - k)] - loss).mean() for k in range(1, 5))
    assert recipe._gap_of_a_step(main) == pytest.approx(nearest / math.log(16))
