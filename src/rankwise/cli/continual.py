"""Models that go on learning."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rankwise.cli.app import Json, app, console, continues, errors, typed

if TYPE_CHECKING:
    from rankwise.jobs.learning.job import Learned

continual = typer.Typer(no_args_is_help=True, help="Models that learn, adapt and forget, task after task.")
app.add_typer(continual, name="continual")


@continual.command()
def learn(
    tasks: Annotated[Path, typer.Argument(help="YAML file with the model and its tasks in order.")],
    out: Annotated[Path, typer.Option(help="Folder to write (appears when it is whole).")],
    data: Annotated[
        Path | None, typer.Option(help="Folder with CIFAR-10, for tasks that read it.", show_default="the hub's")
    ] = None,
    json_: Json = False,
) -> None:
    """Learn task after task into one model of the original size (CoDyRA), without data of earlier tasks.

    Ranks are chosen while each task is learned. The folder holds the model, what each task changed (so that one can be
    taken out), accuracies after every task, and the rank of every weight and task.

    Examples:

    * rankwise continual learn tasks.yaml --out runs/stream
    * rankwise continual learn tasks.yaml --data cifar10 --out runs/stream
    """
    from rankwise.jobs.learning.config import check_stream

    check_stream(tasks, out, data)
    continues()
    from rankwise.cli.app import Progress
    from rankwise.jobs.learning.job import learn_stream
    from rankwise.report.tables import streamed, terminal

    with Progress(quiet=json_) as progress:
        done = learn_stream(tasks, out, data=data, on_event=progress.event, report=_write)
    if json_:
        print((out / "results.json").read_text(encoding="utf-8"))
        return
    for note in done.notes:
        errors.print(f"note: {note}", style="yellow", soft_wrap=True)
    console.print(terminal(*streamed(done)))
    console.print(f"\n{_scores(done)}")
    console.print(
        f"\nmodel     {out}/model\nreport    {out}/report.html\ntables    {out}/accuracy.csv, {out}/ranks.csv"
    )


def _scores(done: Learned) -> str:
    def shown(value: float) -> str:
        return "-" if value != value else f"{100 * value:.1f} %"

    drift = done.drift[-1]["drift"] if done.drift else 0.0
    return f"{', '.join(f'{name} {shown(value)}' for name, value in done.scores.items())}; drift {drift:.3g}"


def _write(folder: Path, done: Learned) -> None:
    """The page and its plots."""
    import yaml

    from rankwise.report.page import render
    from rankwise.report.plots.continual import accuracy_matrices, drifts
    from rankwise.report.plots.shared import heat_maps, save
    from rankwise.report.tables import streamed

    header, rows = streamed(done)
    table = {"accuracy": [done.before, *done.table]}
    ranks = {name: {k: float(v) for k, v in kept.items()} for name, kept in done.ranks.items()}
    figures = {
        "accuracy": lambda: accuracy_matrices(table, done.tasks, first="nothing"),
        "drift": lambda: drifts({"drift": [d["drift"] for d in done.drift]}, done.tasks),
        "ranks": lambda: heat_maps(ranks, label="rank"),
    }
    for name, figure in figures.items():
        save(figure(), folder / f"{name}.png")
    render(
        folder / "report.html",
        title=f"{len(done.tasks)} tasks in a row",
        subtitle=f"{done.config.model}, {done.config.steps} steps a task; {_scores(done)}",
        command=typed(),
        header=header,
        rows=rows,
        caption="Accuracy in per cent on each task's test examples, among the classes of all tasks; rank: mean over "
        "weights of the directions kept; size: of what the task changed; drift: distance from the first weights.",
        notes=done.notes,
        sections=[(name.capitalize(), [(name, figure())]) for name, figure in figures.items()],
        details=yaml.safe_dump(done.config.model_dump(), sort_keys=False),
    )
