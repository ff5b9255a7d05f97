"""Learning from the context: does it begin suddenly, with an induction head, and do the data decide whether it does.

Two worlds, both smaller than published: one for the dynamics (new classes alone, so that nothing can be remembered),
one for what the data decide. Every condition is a stack of seeds trained as one. Interventions: a first layer that
starts by looking one token back, or that is frozen as it was drawn; labels all in the context (L = N); the head of two
numbers instead of the network. Controls: without copies in the first layer nothing is learned from the context, and
few steady classes are remembered.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rankwise.bench import Recipe
from rankwise.bench.shared.evidence import CERTAIN, Claim, Evidence, paired, plus_minus
from rankwise.bench.shared.measured import Runs
from rankwise.dynamics import InContextExperiment, InContextResult, InContextTask
from rankwise.events import OnEvent, counting, environment
from rankwise.jobs.in_context import theory_beside
from rankwise.parallel import fan_out

RECIPE = Recipe(
    name="icl",
    part="dynamics",
    about="in-context learning: abrupt start, order of measures, interventions, what the data decide",
    spreads=True,
    smoke={"seeds": 2, "STEPS": 20, "CURVE_STEPS": 20, "HEAD_STEPS": 20, "EVERY": 10, "SIZE": 50},
    remark="Smaller than published (there N 8, L 32, D 63, 150,000 steps of one run each): N 4, L 16, D 31 for the "
    "dynamics, N 4 or 8, L 8, D 15 and a rate of 0.03 for what the data decide. The theory's time is stretched to the "
    "network's, one number fitted.",
)

Found = dict[str, InContextResult]  # by condition
Array = NDArray[np.float64]
STEPS, CURVE_STEPS, HEAD_STEPS = 20_000, 12_000, 6_000
EVERY, SIZE = 250, 1000  # steps between measurements, and sequences of each
DIGITS = 5
MAIN = {"classes": 256, "labels": 16, "dim": 31, "pairs": 4, "n_max": 8, "p_novel": 1.0}
DATA = {"classes": 1024, "labels": 8, "dim": 15, "pairs": 4, "n_max": 10, "batch_size": 64}  # p_novel 0
TRAINED = {"learning_rate": 0.03, "hidden": 64}  # with DATA
LONG = {"pairs": 8, "p_novel": 1.0}
HIGH = 8.0  # β₁ where the first layer starts by looking one token back
CLASSES, BURSTS, NOISES, ZIPFS = (16, 64, 256, 1024), (1, 2, 4), (0.0, 0.1, 1.0), (0.0, 1.0, 2.0)
NAMES = {
    "main": "the network", "high": "β₁ starts high", "frozen": "first layer frozen as drawn",
    "without": "first layer copies nothing", "two": "two numbers", "three": "three numbers", "all": "L = N = 8",
    "some": "L 16, N = 8", "mixed": "half bursty, half new",
}  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """A condition: its task, its training, which seeds, and where its state is kept."""

    task: dict[str, Any]
    training: dict[str, Any]
    seeds: int
    keep: Path


def measure(out: Path, *, seeds: int = 6, on_event: OnEvent | None = None) -> Runs:
    """Train every condition, ``seeds`` at once (what is there is read back): by step what each seed could do."""
    note = on_event or (lambda *_: None)
    asked = {name: Asked(*c, seeds, out / f"{name}.safetensors") for name, c in conditions().items()}
    note("conditions", "train", 0, len(asked), float("nan"))
    frames = fan_out(_trained, list(asked.values()), on_done=counting(note, "conditions", len(asked)))
    note("conditions", "done", 1, 1, float("nan"))
    return {name: columns(frame, whole=name == "main") for name, frame in zip(asked, frames, strict=True)}


def judge(found: Runs, *, seeds: int) -> Evidence:
    """What every condition came to, and when."""
    tasks = {name: InContextTask(**task) for name, (task, _) in conditions().items()}
    results = {name: InContextResult(frame=framed(found[name]), task=task) for name, task in tasks.items()}
    theory = theory_beside(results["main"].frame, pairs=MAIN["pairs"], labels=MAIN["labels"])
    return Evidence(
        recipe="icl",
        title="Learning from the context: how it begins, and what the data decide",
        command=f"rankwise bench icl --seeds {seeds}",
        setting=f"{seeds} seeds a condition, each a stack; dynamics: N 4, L 16, D 31, {STEPS:,} steps of 128 sequences "
        f"of new classes, rate 0.01; data: N 4 (N 8 for B and for L = N), L 8, D 15, {CURVE_STEPS:,} steps of 64, rate "
        f"0.03 (half bursty, half new: {3 * CURVE_STEPS:,}); heads of two and three numbers: {HEAD_STEPS:,} steps, "
        f"rate 0.05; accuracy on {SIZE:,} sequences, mean ± standard deviation over seeds at the end",
        header=["condition", "loss", "new classes (%)", "swapped labels (%)", "known classes (%)", "half on new, step"],
        rows=[_row(name, result) for name, result in results.items()],
        claims=_claims(results, theory),
        environment=environment("fp32", 1),
        extra={
            "main": results["main"].frame.to_dict("list"),
            "theory": None if theory is None else theory.to_dict("list"),
            "final": {n: {k: r.final(k).tolist() for k in ("ic", "ic2", "iwl")} for n, r in results.items()},
        },
    )


def columns(frame: pd.DataFrame, *, whole: bool) -> dict[str, list[Any]]:
    """Those that are judged (of the main condition all), to five digits but for seeds and steps."""
    names = list(frame) if whole else ["seed", "step", "loss", "ic", "ic2", "iwl"]
    short = {name: [float(f"{v:.{DIGITS}g}") for v in frame[name]] for name in names}
    return short | {name: frame[name].tolist() for name in ("seed", "step")}


def framed(kept: Mapping[str, Sequence[float | None]]) -> pd.DataFrame:
    """A frame of kept columns."""
    return pd.DataFrame(kept, dtype=float).astype({"seed": int, "step": int})


def conditions() -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Task and training of every condition, by name."""
    measured = {"every": EVERY, "eval_size": SIZE}
    main, data = measured | {"steps": STEPS}, measured | TRAINED | {"steps": CURVE_STEPS}
    heads = {
        name: (MAIN, measured | {"model": f"{name} numbers", "steps": HEAD_STEPS, "learning_rate": 0.05})
        for name in ("two", "three")
    }
    return {
        "main": (MAIN, main),
        "high": (MAIN, main | {"beta1": HIGH}),
        "frozen": (MAIN, main | {"freeze": ["first"]}),
        "without": (MAIN, main | {"ablate": ["v1"]}),
        **heads,
        "all": (DATA | LONG, data),
        "some": (DATA | LONG | {"labels": 16}, data),
        "mixed": (DATA | {"p_burst": 0.5, "p_novel": 0.5, "classes": 32}, data | {"steps": 3 * CURVE_STEPS}),
        **{f"K {k}": (DATA | {"classes": k}, data) for k in CLASSES},
        **{f"B {b}": (DATA | {"pairs": 8, "burstiness": b, "classes": 256}, data) for b in BURSTS},
        **{f"ε {e:g}": (DATA | {"noise": e, "classes": 256}, data) for e in NOISES},
        **{f"α {a:g}": (DATA | {"zipf": a}, data) for a in ZIPFS},
    }


def _trained(asked: Asked) -> pd.DataFrame:
    experiment = InContextExperiment(InContextTask(**asked.task), **asked.training)
    return experiment.run(asked.seeds, keep=asked.keep).frame


def _row(name: str, result: InContextResult) -> list[str]:
    half = result.crossing("ic", 0.5)
    accuracies = [_spread(result.final(k)) for k in ("ic", "ic2", "iwl")]
    return [
        NAMES.get(name, name),
        _spread(result.final("loss"), scale=1, digits=2),
        *accuracies,
        _spread(half, scale=1, digits=0),
    ]


def _claims(found: Found, theory: pd.DataFrame | None) -> list[Claim]:
    return [*_beginning(found), *_by_data(found), *_theory_and_controls(found, theory)]


def _last(found: Found, name: str, column: str) -> Array:
    """What every seed of a condition came to."""
    return found[name].final(column).to_numpy(dtype=float)


def _beginning(found: Found) -> list[Claim]:
    main, order = found["main"], found["main"].order()
    begins, ends = main.crossing("ic", 0.4), main.crossing("ic", 0.8)
    share = ((ends - begins) / begins).to_numpy()
    apart = ((order.ila1 - order.tila2).abs() / order.ic).to_numpy()
    sooner = (found["high"].crossing("ic", 0.5) / main.crossing("ic", 0.5)).to_numpy()
    ic, ic2, iwl = (_last(found, "main", k) for k in ("ic", "ic2", "iwl"))
    *heads, few, many = (_last(found, name, "ic") for name in ("two", "three", "all", "some"))
    return [
        Claim(
            text="every seed learns new classes from the context (90%), also with swapped labels; none are remembered "
            "(below 20%)",
            held=bool(min(ic.min(), ic2.min()) > 0.9 and iwl.max() < 0.2),
            found=f"{_spread(ic)}, {_spread(ic2)}, {_spread(iwl)}%",
        ),
        Claim(
            text="abruptly: from 40 to 80% takes every seed less than half of the steps before",
            held=bool((share < 0.5).all()),
            found=f"{_spread(share)}% of {_spread(begins, scale=1, digits=0)} steps",
        ),
        Claim(
            text="in order: first the context's labels (CLA), then previous token and match together (half of the way "
            "within a quarter of the time)",
            held=bool(((order.cla < order[["ila1", "tila2"]].min(axis=1)) & (apart < 0.25)).all()),
            found=", ".join(f"{k.upper()} {_spread(order[k], 1, 0)}" for k in ("cla", "ila1", "tila2"))
            + f" steps, apart by {_spread(apart)}%",
        ),
        Claim(
            text="a first layer that starts by looking one token back needs at most half of the steps",
            held=bool((sooner <= 0.5).all()),
            found=f"{_spread(sooner)}% of the steps to 50%",
        ),
        Claim(
            text="an induction head of two numbers is enough, β₂ is not needed: both learn (80%) in most seeds",
            held=bool(all((v > 0.8).mean() > 0.5 for v in heads)),
            found=f"two: {_spread(heads[0])}, three: {_spread(heads[1])}%",
        ),
        Claim(
            text="where the context holds all labels (L = N = 8) no seed begins, with L = 16 all do (50%)",
            paper="none of six seeds at L = N = 8, some at 4 and 2; all where L > N",
            held=bool((few < 0.5).all() and (many > 0.5).all()),
            found=f"{_spread(few)} against {_spread(many)}%",
        ),
    ]


def _by_data(found: Found) -> list[Claim]:
    def curve(kind: str, values: tuple[float, ...], column: str) -> Array:
        return np.array([_last(found, f"{kind} {v:g}", column).mean() for v in values])

    def told(kind: str, values: tuple[float, ...], *seen: Array) -> str:
        shares = "; ".join(", ".join(f"{100 * v:.0f}" for v in part) for part in seen)
        return f"{shares}% at {kind} {', '.join(f'{v:g}' for v in values)}"

    ic_k, iwl_k = curve("K", CLASSES, "ic"), curve("K", CLASSES, "iwl")
    ic_b, ic_e = curve("B", BURSTS, "ic"), curve("ε", NOISES, "ic")
    worse = [np.minimum(*(_last(found, f"α {a:g}", k) for k in ("ic", "iwl"))) for a in ZIPFS]
    fewer = paired(*(_last(found, f"K {k}", "iwl") for k in (CLASSES[0], CLASSES[-1])))
    bursty = paired(*(_last(found, f"B {b:g}", "ic") for b in (BURSTS[-1], BURSTS[0])))
    noisy = [paired(_last(found, f"ε {e:g}", "ic"), _last(found, f"ε {NOISES[0]:g}", "ic")) for e in NOISES[1:]]
    peak = [paired(worse[1], end) for end in (worse[0], worse[2])]
    ic, iwl = (_last(found, "mixed", k) for k in ("ic", "iwl"))
    lost = found["mixed"].frame.groupby("seed").ic.max().to_numpy() - ic
    return [
        Claim(
            text="more classes: more from the context (by 50 points), less from the weights (p ≤ 0.05)",
            held=bool(ic_k[-1] - ic_k[0] > 0.5) and fewer.clear(),
            found="new; known: " + told("K", CLASSES, ic_k, iwl_k) + f"; known fewer by {fewer}",
        ),
        Claim(
            text="more burstiness: more from the context (by 10 points, p ≤ 0.05)",
            held=bursty.mean > 0.1 and bursty.clear(),
            found="; ".join([told("B", BURSTS, ic_b), str(bursty)]),
        ),
        Claim(
            text="noisier items: more from the context, at one of two levels (by 10 points, p ≤ 0.025)",
            held=any(p.mean > 0.1 and p.clear(CERTAIN / len(noisy)) for p in noisy),
            found="; ".join([told("ε", NOISES, ic_e), *map(str, noisy)]),
        ),
        Claim(
            text="at Zipf's α = 1 both are learned better than at either end (the worse of both, p ≤ 0.05)",
            held=all(p.clear() for p in peak),
            found=told("α", ZIPFS, np.array([v.mean() for v in worse])) + "; " + "; ".join(map(str, peak)),
        ),
        Claim(
            text="where both pay, both are learned (70%) and kept (5 points): it is not transient",
            held=bool(min(ic.mean(), iwl.mean()) > 0.7 and (lost < 0.05).all()),
            found=f"new {_spread(ic)}, known {_spread(iwl)}%, {_spread(lost)} points below the best",
        ),
    ]


def _theory_and_controls(found: Found, theory: pd.DataFrame | None) -> list[Claim]:
    gap = math.inf if theory is None else _gap(found["main"], theory)
    step = _gap_of_a_step(found["main"])
    without = _last(found, "without", "ic")
    known, swapped = (_last(found, f"K {CLASSES[0]}", k) for k in ("iwl", "ic2"))
    return [
        Claim(
            text="the phenomenological loss, its time stretched, is within a tenth of log L of the network's, and "
            "nearer than one step down at the best moment",
            held=bool(gap < min(0.1, step)),
            found="it never falls" if math.isinf(gap) else f"{100 * gap:.1f}% of log L; a step {100 * step:.1f}%",
        ),
        Claim(
            text="control: where the first layer copies nothing no seed comes to 50%",
            control=True,
            held=bool((without < 0.5).all()),
            found=f"{_spread(without)}%",
        ),
        Claim(
            text="control: few classes are remembered (90%), and swapped labels then answered wrongly (below 10%)",
            control=True,
            held=bool(known.mean() > 0.9 and swapped.mean() < 0.1),
            found=f"known {_spread(known)}, swapped {_spread(swapped)}%",
        ),
    ]


def _gap(main: InContextResult, theory: pd.DataFrame) -> float:
    """Mean distance of the theory's loss from the seeds' mean, in units of log L."""
    mean = main.frame.groupby("step").loss.mean()
    beside = np.interp(mean.index.to_numpy(float), theory.step, theory.loss)
    return float(np.abs(beside - mean.to_numpy()).mean() / math.log(main.task.labels))


def _gap_of_a_step(main: InContextResult) -> float:
    """The same of the best step function from the first loss to the last."""
    loss = main.frame.groupby("step").loss.mean().to_numpy()
    steps = np.where(np.tri(len(loss), dtype=bool), loss[0], loss[-1])  # row i: down after measurement i
    return float(np.abs(steps - loss).mean(1).min() / math.log(main.task.labels))


def _spread(values: Any, scale: float = 100, digits: int = 1) -> str:
    """``mean±standard deviation`` of those that are numbers, and how many are none."""
    v = np.asarray(values, dtype=float)
    there = v[np.isfinite(v)]
    none = f" ({len(v) - len(there)} never)" if len(there) < len(v) else ""
    return (plus_minus(there, scale=scale, digits=digits) if len(there) else "-") + none
