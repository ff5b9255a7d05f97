"""Models that go on learning."""

from __future__ import annotations

import typer

from rankwise.cli.app import app

continual = typer.Typer(no_args_is_help=True, help="Models that learn, adapt and forget, task after task.")
app.add_typer(continual, name="continual")
