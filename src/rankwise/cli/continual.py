"""Models that go on learning."""

from __future__ import annotations

import json
import sys
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


@continual.command()
def adapt(
    images: Annotated[str, typer.Option(help="A folder of pictures, or - for names of files on standard input.")],
    out: Annotated[Path, typer.Option(help="csv, tsv, jsonl, json or parquet file to write: a row a picture.")],
    model: Annotated[str, typer.Option(help="An image classifier: a bundled name, a folder, or a hub id.")]
    = "vit-cifar10",
    method: Annotated[str, typer.Option(help="vida, tent or cotta.")] = "vida",
    preset: Annotated[str, typer.Option(help="Published: cifar10c, cifar100c (vida), imagenetc; or ours, for small "
                                        "models and short streams.")] = "cifar10c",
    batch_size: Annotated[int, typer.Option(help="Pictures a step.")] = 40,
    classes: Annotated[bool, typer.Option("--classes", help="Folders are the model's classes: the order is drawn, and "
                                          "the error told.")] = False,
    state: Annotated[Path | None, typer.Option(help="Folder of what is learned: read if there, written at the end.")]
    = None,
    seed: Annotated[int, typer.Option(help="Of all draws.")] = 0,
    json_: Json = False,
) -> None:  # fmt: skip
    """Predict pictures with a classifier that adapts to them on the way, without labels.

    Examples:

    * rankwise continual adapt --model vit-cifar10 --images photos --out predictions.csv
    * ls new/*.png | rankwise continual adapt --images - --state learned --out monday.csv
    """
    from rankwise.jobs.early import check_stream

    check_stream(images, out, model=model, method=method, preset=preset, batch_size=batch_size, state=state, seed=seed)
    from rich.progress import track

    from rankwise.jobs.stream import adapt_to_pictures
    from rankwise.report.tables import terminal

    quiet = json_ or not console.is_terminal
    done = adapt_to_pictures(
        images, model=model, out=out, method=method, preset=preset, batch_size=batch_size, classes=classes,
        state=state, seed=seed, listed=sys.stdin if images == "-" else (),
        each=lambda items, what: track(items, what, console=console, transient=True, disable=quiet),
    )  # fmt: skip
    if json_:
        print(json.dumps(done.as_dict(), ensure_ascii=False))
        return
    console.print(terminal(*done.table()))
    for note in done.notes:
        console.print(f"* {note}", style="dim")
    if done.skipped:
        console.print(f"* {done.skipped} batches taught nothing: not finite", style="yellow")
    told = "" if state is None else f"\nstate     {state}"
    console.print(f"table     {out}{told}", highlight=False)
