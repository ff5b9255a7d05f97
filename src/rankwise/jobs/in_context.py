"""A small transformer that begins to answer from its context: trained, measured, and its theory beside it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankwise.dynamics.in_context.sizes import check_task, plain
from rankwise.events import OnEvent
from rankwise.files import check_output, drafted, write_json
from rankwise.nearest import unknown

if TYPE_CHECKING:
    import pandas as pd

MADE_BY = "dynamics icl"
# of the task and of training; novel classes alone, so that there is nothing to remember
PRESETS: dict[str, dict[str, Any]] = {
    "small": {"classes": 256, "labels": 16, "dim": 31, "pairs": 4, "n_max": 8, "p_novel": 1.0, "steps": 20_000},
    "quick": {
        "classes": 128, "labels": 8, "dim": 15, "pairs": 4, "n_max": 6, "p_novel": 1.0,
        "batch_size": 64, "steps": 5_000, "every": 100, "eval_size": 500, "hidden": 64, "learning_rate": 0.03,
    },
    "paper": {"p_novel": 1.0, "steps": 150_000},
}  # fmt: skip
TASK: dict[str, Any] = {
    "classes": 1024, "labels": 32, "dim": 63, "pairs": 8, "burstiness": 1, "zipf": 0.0, "noise": 0.1, "p_burst": 1.0,
    "p_novel": 0.0, "no_repeats": False, "n_max": 32, "batch_size": 128,
}  # fmt: skip
TRAINING: dict[str, Any] = {"steps": 150_000, "every": 500, "eval_size": 1000, "hidden": 128, "learning_rate": 0.01}
LEARNED = 0.5  # accuracy on new classes from which on a seed counts as having learned from the context


@dataclass(frozen=True, kw_only=True)
class InContextReport:
    """What came of it.

    Attributes
    ----------
    frame : DataFrame
        As `rankwise.dynamics.InContextResult.frame`.
    theory : DataFrame or None
        ``step`` and ``loss`` of the phenomenological model, its time stretched so that both losses have fallen half of
        the way from ``log N`` at one time; ``None`` where the network's has not, or the theory's never does.
    task, training : dict
        All settings.
    seconds : float
        Of this call.
    notes : list of str
        What the user should know.
    """

    frame: pd.DataFrame
    theory: pd.DataFrame | None
    task: dict[str, Any]
    training: dict[str, Any]
    seconds: float
    notes: list[str]

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows for people: a row a seed."""
        from rankwise.dynamics import InContextResult, InContextTask

        result = InContextResult(
            frame=self.frame, task=InContextTask(**self.task), model=None
        )  # only its rows are read
        order, last = result.order(), _last(self.frame)
        header = ["seed", "loss", "new", "swapped", "known", *(f"{name} at" for name in ("CLA", "ILA1", "TILA2"))]
        rows = [
            [str(seed), f"{row.loss:.3f}", *(f"{100 * row[k]:.0f}%" for k in ("ic", "ic2", "iwl")),
             *(_step(order.loc[seed, k]) for k in ("cla", "ila1", "tila2"))]
            for seed, row in last.iterrows()
        ]  # fmt: skip
        return header, rows

    def told(self) -> str:
        """One line of what was set."""
        t = self.task
        return (
            f"K {t['classes']}, L {t['labels']}, N {t['pairs']}, B {t['burstiness']}, D {t['dim']}, ε {t['noise']:g}, "
            f"Zipf {t['zipf']:g}, bursty {t['p_burst']:.0%}, new classes {t['p_novel']:.0%}; "
            f"{self.training['steps']:,} steps of {t['batch_size']} sequences"
        )

    def by_chance(self) -> float:
        """Share of the sequences of ``iwl`` whose context holds the target's class."""
        from rankwise.dynamics import InContextTask

        p = InContextTask(**self.task).frequencies
        return float((p * (1 - (1 - p) ** self.task["pairs"])).sum())

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        theory = None if self.theory is None else self.theory.to_dict("list")
        told = {"task": self.task, "training": self.training, "seconds": self.seconds, "notes": self.notes}
        return told | {"rows": self.frame.to_dict("records"), "theory": theory}


def settings(preset: str, **changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Task and training of a preset with ``changes`` (``None``: the preset's), checked; a longer context gets room."""
    if preset not in PRESETS:
        raise unknown("preset", preset, PRESETS)
    given = plain(TASK | TRAINING | PRESETS[preset] | {k: v for k, v in changes.items() if v is not None})
    given["n_max"] = max(given["n_max"], given["pairs"])
    task, training = ({k: given[k] for k in names} for names in (TASK, TRAINING))
    check_task(task | {"seed": 0})
    if training["steps"] < 1:
        raise ValueError(f"steps={training['steps']}: at least 1")
    training["every"] = min(training["every"], training["steps"])
    return task, training


def check_in_context(out: Path, *, preset: str = "small", seeds: int = 6, seed: int = 0, **changes: Any) -> None:
    """Of `learn_in_context`, before anything heavy is imported."""
    settings(preset, **changes)
    for name, value, least in (("seeds", seeds, 1), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"{name}={value}: at least {least}")
    check_output(out, made_by=MADE_BY)


def learn_in_context(
    out: str | Path,
    *,
    preset: str = "small",
    seeds: int = 6,
    seed: int = 0,
    on_event: OnEvent | None = None,
    report: Callable[[Path, InContextReport], None] = lambda folder, done: None,
    **changes: Any,
) -> InContextReport:
    """Train seeds as one stack, and keep what they could do when; cut short, it goes on.

    Parameters
    ----------
    out : path
        Folder to write: ``results.json``, ``steps.csv``, ``run.safetensors`` (weights), and what ``report`` adds.
    preset : {"small", "quick", "paper"}
        Of task and training.
    seeds, seed : int
        How many, and the first.
    on_event : callable, optional
        Told steps and losses.
    report : callable
        Given the folder while it is a draft, and the result.
    **changes
        Fields of `rankwise.dynamics.InContextTask`, ``steps``, ``every``, ``eval_size``, ``hidden`` and
        ``learning_rate``, instead of the preset's.

    Raises
    ------
    ValueError
        A setting that cannot be, or a folder that holds something else.
    """
    out = Path(out)
    check_in_context(out, preset=preset, seeds=seeds, seed=seed, **changes)
    from rankwise.dynamics import InContextExperiment, InContextTask

    start = time.perf_counter()
    task, training = settings(preset, **changes)
    told = {"task": task, "training": training, "seeds": [seed, seeds]}
    with drafted(out, made_by=MADE_BY, told=told) as folder:
        experiment = InContextExperiment(InContextTask(**task), **training)
        run = experiment.run(range(seed, seed + seeds), keep=folder / "run.safetensors", on_event=on_event)
        done = InContextReport(
            frame=run.frame, theory=theory_beside(run.frame, pairs=task["pairs"], labels=task["labels"]), task=task,
            training=training, seconds=time.perf_counter() - start, notes=_notes(run.frame, task),
        )  # fmt: skip
        run.frame.to_csv(folder / "steps.csv", index=False)
        write_json(folder / "results.json", done.as_dict())
        report(folder, done)
    return done


def theory_beside(frame: pd.DataFrame, *, pairs: int, labels: int) -> pd.DataFrame | None:
    """The phenomenological loss over the network's mean loss, one factor of time fitted: `InContextReport.theory`."""
    import numpy as np
    import pandas as pd

    from rankwise.dynamics import PhenomenologicalModel

    if not pairs < labels:
        return None
    half, mean = math.log(pairs) / 2, frame.groupby("step").loss.mean()
    fallen = mean.index[mean < half]
    flow = PhenomenologicalModel(pairs=pairs, labels=labels).flow(np.linspace(0, 60 * labels, 3000))
    when = flow.time[flow.loss < half]
    if fallen.empty or when.empty:
        return None
    step = flow.time * (float(fallen[0]) / when.iloc[0])
    kept = step <= float(mean.index[-1])
    return pd.DataFrame({"step": step[kept], "loss": flow.loss[kept]}).reset_index(drop=True)


def _last(frame: pd.DataFrame) -> pd.DataFrame:
    """What each seed came to, by seed; a number that is none stays none."""
    return frame[frame.step == frame.step.max()].set_index("seed")


def _notes(frame: pd.DataFrame, task: dict[str, Any]) -> list[str]:
    last = _last(frame)
    lost = [str(seed) for seed in last.index[last.loss.isna()]]
    late = [str(seed) for seed in last.index[(last.ic < LEARNED) & last.loss.notna()]]
    notes = []
    if lost:
        notes.append(f"seed {', '.join(lost)}: the loss is not finite any more; a lower learning rate may help")
    if late:
        why = ", as is to be expected where L = N" if task["labels"] <= task["pairs"] else "; more steps may show more"
        notes.append(f"seed {', '.join(late)}: below {LEARNED:.0%} on new classes{why}")
    return notes


def _step(value: float) -> str:
    return "-" if value != value else f"{value:,.0f}"
