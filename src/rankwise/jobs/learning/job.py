"""Learning a stream: an accuracy matrix, the rank of every weight and task, and one model of the original size."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwise.events import OnEvent, environment
from rankwise.files import drafted, write_json, write_text
from rankwise.jobs.learning.config import MADE_BY, StreamConfig, check_stream

MATRIX = "accuracy.json"


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What came of a stream.

    Attributes
    ----------
    config : StreamConfig
    tasks : list of str
        In the order of learning.
    before : list of float
        Accuracy on each task's test examples before anything is learned.
    table : list of list of float
        The same after each task, a row a task.
    scores : dict of float
        Transfer, average, last, forgetting.
    ranks : dict
        Open gates by task and layer.
    drift : list of dict
        Of each task: mean rank, ``‖ΔW‖``, its bound, ``‖W - W_0‖``.
    notes : list of str
    environment : dict
    """

    config: StreamConfig
    tasks: list[str]
    before: list[float]
    table: list[list[float]]
    scores: dict[str, float]
    ranks: dict[str, dict[str, int]]
    drift: list[dict[str, Any]]
    notes: list[str]
    environment: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {**vars(self), "config": self.config.model_dump()}


def learn_stream(
    path: Path,
    out: Path,
    *,
    data: Path | None = None,
    checkpoint_steps: int = 50,
    on_event: OnEvent | None = None,
    report: Callable[[Path, Learned], None] | None = None,
) -> Learned:
    """Learn the tasks of a YAML file in a row.

    A run that was cut short, between tasks or within one, goes on where it was and ends at the same numbers.

    Parameters
    ----------
    path : Path
        The file, see `rankwise.jobs.learning.config.StreamConfig`.
    out : Path
        Folder, made when all is learned: ``model`` (for transformers), ``tasks`` (their factors, by which
        `rankwise.continual.CodyraLearner.resume` and ``forget`` take one out), ``results.json``, ``accuracy.csv``,
        ``ranks.csv``.
    data : Path, optional
        Folder with CIFAR-10, for tasks that read it.
    checkpoint_steps : int
        Steps between checkpoints within a task.
    report : callable
        Writes further files into the folder.

    Raises
    ------
    ValueError
        As `check_stream`; data that cannot be read, or does not fit the model, by task.
    """
    config = check_stream(path, out, data)
    from rankwise.jobs.learning.tasks import collate_of, learner_of, tasks_of
    from rankwise.models import model_fingerprint

    held = learner_of(config.model)
    tasks = tasks_of(config, held, data)
    told = {
        "config": config.model_dump(),
        "data": [t.fingerprint for t in tasks],
        "model": model_fingerprint(config.model),
    }
    with drafted(out, made_by=MADE_BY, told=told, inputs=[path, config.model]) as draft:
        learner = _learner(config, held, collate_of(held))
        names = [*dict.fromkeys(c for t in tasks for c in t.classes)]
        if (draft / "tasks" / "tasks.json").is_file():
            learner.resume(draft / "tasks")
        rows = _rows(draft / MATRIX)

        def measure() -> None:
            rows.append([learner.accuracy(t.test, t.classes, among=names) for t in tasks])
            write_json(draft / MATRIX, {"rows": rows})

        if not rows:
            measure()
        for i, task in enumerate(tasks):
            if len(learner.history) <= i:
                told_steps = _telling(on_event, task.name, config.steps)
                learner.learn(task.train, name=task.name, classes=task.classes, checkpoint=draft / "step.safetensors",
                              every=checkpoint_steps, on_step=told_steps)  # fmt: skip
                learner.finish()  # measured as it will be kept
                (draft / "tasks").mkdir(exist_ok=True)
                learner.write_into(draft / "tasks")
            if len(rows) <= i + 1:
                measure()
                if on_event is not None:
                    on_event(task.name, "done", config.steps, config.steps, float("nan"))
        done = _learned(config, learner, rows, held.notes + [n for t in tasks for n in t.notes])
        learner.finish().save_pretrained(draft / "model")
        for part in (held.tokenizer, held.processor):
            if part is not None:
                part.save_pretrained(draft / "model")
        (draft / MATRIX).unlink()
        _write(draft, done)
        if report is not None:
            report(draft, done)
    return done


def _learner(config: StreamConfig, held: Any, collate: Any) -> Any:
    from rankwise.continual import CodyraLearner, Schedule, objective_for
    from rankwise.models import target_modules
    from rankwise.tuning import CodyraConfig

    adapter = CodyraConfig(
        r=config.r, max_kappa=config.max_kappa, dense_share=config.dense_share, freeze_zero=config.freeze_zero,
        released=config.released,
        target_modules=None if config.target == "auto" else target_modules(held.model, config.target),
    )  # fmt: skip
    options = {} if config.template is None else {"template": config.template}
    if options and held.kind not in ("zero-shot-image", "base"):
        raise ValueError(f"{held.name} learns without captions: leave template out")
    return CodyraLearner(
        held.model, adapter, objective=objective_for(held.model, held.tokenizer, **options), collate=collate,
        schedule=Schedule(
            steps=config.steps, batch_size=config.batch_size, learning_rate=config.learning_rate,
            precision=config.precision,
        ),
        seed=config.seed,
    )  # fmt: skip


def _rows(path: Path) -> list[list[float]]:
    from rankwise.reading import read_json

    return read_json(path)["rows"] if path.is_file() else []


def _telling(on_event: OnEvent | None, name: str, steps: int) -> Callable[[int, float], None]:
    def told(step: int, loss: float) -> None:
        if on_event is not None:
            on_event(name, "train", step + 1, steps, loss)

    return told


def _learned(config: StreamConfig, learner: Any, rows: list[list[float]], notes: list[str]) -> Learned:
    from rankwise.continual import stream_scores
    from rankwise.tuning.codyra import schedule_note

    notes = [schedule_note(config.steps, learner.config), *notes]
    closed = [t.name for t in learner.history if not t.rank]
    notes += [f"{name}: every gate is closed, so that nothing was learned: lower max_kappa" for name in closed]
    return Learned(
        config=config,
        tasks=[t.name for t in config.tasks],
        before=rows[0],
        table=rows[1:],
        scores=stream_scores(rows[1:])._asdict(),
        ranks={task: {n: kept.rank for n, kept in ranks.items()} for task, ranks in learner.rank_map().items()},
        drift=[d._asdict() for d in learner.drift()],
        notes=[*dict.fromkeys(filter(None, notes))],
        environment=environment("fp32", 1),
    )


def _write(folder: Path, done: Learned) -> None:
    write_json(folder / "results.json", done.as_json())
    matrix = [["after", *done.tasks], ["nothing", *done.before]]
    matrix += [[name, *row] for name, row in zip(done.tasks, done.table, strict=True)]
    layers = list(next(iter(done.ranks.values())))
    ranks = [["layer", *done.ranks], *[[n, *(done.ranks[t][n] for t in done.ranks)] for n in layers]]
    for name, table in (("accuracy", matrix), ("ranks", ranks)):
        stream = io.StringIO()
        csv.writer(stream, lineterminator="\n").writerows(table)
        write_text(folder / f"{name}.csv", stream.getvalue())
