"""How a model comes to learn from its context."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rankwise.cli.app import Json, console, continues, errors, typed
from rankwise.cli.dynamics import dynamics

if TYPE_CHECKING:
    from rankwise.jobs.in_context import InContextReport


@dynamics.command()
def icl(
    out: Annotated[Path, typer.Option(help="Folder to write (appears when it is whole).")],
    preset: Annotated[str, typer.Option(help="small (minutes), quick (a try), or paper (the published size: days).")]
    = "small",
    class_count: Annotated[int | None, typer.Option(help="How many there are, a multiple of labels.")] = None,
    labels: Annotated[int | None, typer.Option(help="How many there are.")] = None,
    pairs: Annotated[int | None, typer.Option(help="Items with labels in the context.")] = None,
    burstiness: Annotated[int | None, typer.Option(help="How often a class stands in a context.",
                                                   show_default="1")] = None,
    zipf: Annotated[float | None, typer.Option(help="Exponent of the classes' frequencies.", show_default="0")] = None,
    noise: Annotated[float | None, typer.Option(help="Of items around their class.", show_default="0.1")] = None,
    p_burst: Annotated[float | None, typer.Option(help="Share of bursty sequences.", show_default="1")] = None,
    p_novel: Annotated[float | None, typer.Option(help="Share of sequences of new classes.", show_default="1")] = None,
    steps: Annotated[int | None, typer.Option(help="Of training.")] = None,
    seeds: Annotated[int, typer.Option(help="How many networks, trained as one stack.")] = 6,
    seed: Annotated[int, typer.Option(help="The first of them.")] = 0,
    json_: Json = False,
) -> None:  # fmt: skip
    """Train small transformers to label an item, and watch learning from the context begin.

    The page shows the loss with its theory, accuracy on new classes, on swapped labels and on known classes, drawn
    apart from the context, and the measures of an induction head in order. Cut short, the same command goes on.

    Examples:

    * rankwise dynamics icl --out runs/icl
    * rankwise dynamics icl --preset quick --seeds 2 --out runs/try
    * rankwise dynamics icl --p-novel 0 --class-count 64 --zipf 1 --out runs/both
    """
    from rankwise.jobs.in_context import check_in_context

    settings = {
        "preset": preset, "classes": class_count, "labels": labels, "pairs": pairs, "burstiness": burstiness,
        "zipf": zipf, "noise": noise, "p_burst": p_burst, "p_novel": p_novel, "steps": steps, "seeds": seeds,
        "seed": seed,
    }  # fmt: skip
    check_in_context(out, **settings)
    continues()
    from rankwise.cli.app import Progress
    from rankwise.jobs.in_context import learn_in_context
    from rankwise.report.tables import terminal

    with Progress(quiet=json_) as progress:
        done = learn_in_context(out, on_event=progress.event, report=_write, **settings)
    if json_:
        print((out / "results.json").read_text(encoding="utf-8"))
        return
    for note in done.notes:
        errors.print(f"note: {note}", style="yellow", soft_wrap=True)
    console.print(terminal(*done.table()))
    console.print(f"\nreport    {out}/report.html\ntable     {out}/steps.csv", soft_wrap=True, highlight=False)


def _write(folder: Path, done: InContextReport) -> None:
    """The page and its plot."""
    from rankwise.report.page import write_figure
    from rankwise.report.plots.dynamics import learning_from_context

    header, rows = done.table()
    pairs, labels = done.task["pairs"], done.task["labels"]
    write_figure(
        folder,
        "learning",
        lambda: learning_from_context(done.frame, pairs=pairs, labels=labels, theory=done.theory),
        section="Loss, accuracy, and what attention does",
        title="Learning from the context",
        subtitle=done.told(),
        command=typed(),
        header=header,
        rows=rows,
        caption="new: accuracy on classes that training never had; swapped: where the context gives known classes "
        f"other labels; known: on known classes, drawn apart from the context, which holds {done.by_chance():.0%} of "
        "them by chance. CLA, ILA1, TILA2: the step at which the share "
        "of predictions within the context's labels, attention to the token before, and attention to the matching "
        "label have come half of their way.",
        notes=done.notes,
    )
