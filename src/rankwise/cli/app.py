"""What the commands share: the application, its consoles, progress bars, configuration files."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from rankwise.reading import printable

_continues = False


class Plain(Console):
    """A console that prints text as it is: names and texts out of data are never markup, emoji or control codes."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """The text without control characters; also for the cells of tables."""
        return super().render_str(printable(text), **options)


class Commands(TyperGroup):
    """All commands; an interrupt is one true line and status 130."""

    def invoke(self, ctx: Any) -> Any:
        """Run what was asked."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            kept = f"; {stop}" if str(stop) else ""
            errors.print(f"interrupted{kept}{when_cut_short()}", style="yellow")
            raise typer.Exit(130) from None


def continues() -> None:
    """Promise that the running command, cut short from here on, goes on when it is given again."""
    global _continues
    _continues = True


def when_cut_short() -> str:
    """The end of a sentence about an interrupt or a full disk: what the same command will do, where it was promised."""
    return "; the same command continues" if _continues else ""


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Spend parameters, memory, compute and examples where the **rank** is.",
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        from rankwise import __version__

        print(f"rankwise {__version__}")
        raise typer.Exit


@app.callback()
def _shared(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which version this is.")
    ] = False,
) -> None:
    pass


console = Plain()
errors = Plain(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Jobs = Annotated[int, typer.Option(help="Runs at once, each in a process of its own; -1: one a core.")]
Scheduler = Annotated[
    str | None, typer.Option(help="Address of a Dask scheduler for the runs instead, e.g. tcp://host:8786.")
]


MOST_DRAWS = 1_000_000  # of a bootstrap

RowsOut = Annotated[
    Path | None, typer.Option(help="A csv, tsv, jsonl, json or parquet file to write; the terminal otherwise.")
]


def check_rows_out(out: Path | None, *, run: Path, data: Path) -> None:
    """Before the work: whether a table can be written there, over nothing that is read."""
    from rankwise.data.tables import kind_of
    from rankwise.files import check_file

    if out is not None:
        kind_of(out)
        check_file(out, inputs=[data, *run.rglob("*")])


def print_json(value: object) -> None:
    """One line; JSON has no NaN and no infinity: null."""
    from rankwise.files import finite

    print(json.dumps(finite(value), ensure_ascii=False, allow_nan=False))


def typed() -> str:
    """The command as it was given, for reports."""
    return "rankwise " + " ".join(map(shlex.quote, sys.argv[1:]))


def names(text: str) -> list[str]:
    """A comma-separated list."""
    return [part.strip() for part in text.split(",") if part.strip()]


def numbers(text: str, option: str) -> list[float]:
    """A comma-separated list of numbers."""
    try:
        return [float(part) for part in names(text)]
    except ValueError as error:
        raise ValueError(f"{option} '{text}' is no list of numbers; write them as in 0.1,0.5") from error


class Progress:
    """Live bars on a terminal; a line a finished run elsewhere."""

    def __init__(self, *, quiet: bool) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        self.quiet = quiet or int(os.environ.get("RANK", "0")) > 0
        self.live = console.is_terminal and not self.quiet
        self.bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not self.live,
            transient=True,
        )
        self.runs = self.bars.add_task("training runs", total=None)
        self.step = self.bars.add_task("…", total=None)

    def __enter__(self) -> Progress:
        self.bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.bars.stop()

    def total(self, job) -> None:
        from rankwise.jobs.methods import method

        c = job.config
        runs = sum(len(c.learning_rates.get(m, method(m).grid(c.task))) + c.seeds - 1 for m in c.all_methods)
        self.bars.update(self.runs, total=runs)

    def event(self, trial: str, phase: str, step: int, steps: int, loss: float) -> None:
        text = printable(f"{trial} {'' if phase == 'train' else phase}" + (f" loss {loss:.3f}" if loss == loss else ""))
        self.bars.update(self.step, description=text[:44].ljust(44), completed=step, total=steps)
        if phase in ("done", "diverged"):
            self.bars.advance(self.runs)
            if not self.live and not self.quiet:
                console.print(f"{trial}: {phase}", highlight=False)
