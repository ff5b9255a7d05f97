"""What the commands share: the application, its consoles, progress bars, configuration files."""

from __future__ import annotations

import os
import shlex
import sys
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    help="Spend parameters, memory, compute and examples where the **rank** is.",
    pretty_exceptions_enable=False,
)
console = Console()
errors = Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def typed() -> str:
    """The command as it was given, for reports."""
    return "rankwise " + " ".join(map(shlex.quote, sys.argv[1:]))


class Progress:
    """Live bars on a terminal; a line a finished run elsewhere."""

    def __init__(self, *, quiet: bool) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        self.quiet = quiet or int(os.environ.get("RANK", "0")) > 0
        self.live = console.is_terminal and not self.quiet
        self.bars = Bars(
            TextColumn("{task.description}"),
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
        text = f"{trial} {'' if phase == 'train' else phase}" + (f" loss {loss:.3f}" if loss == loss else "")
        self.bars.update(self.step, description=text[:44].ljust(44), completed=step, total=steps)
        if phase in ("done", "diverged"):
            self.bars.advance(self.runs)
            if not self.live and not self.quiet:
                console.print(f"{trial}: {phase}", highlight=False)
