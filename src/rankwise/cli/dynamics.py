"""Dynamics of learning: the group that the commands of this family join."""

from __future__ import annotations

import typer

from rankwise.cli.app import app

dynamics = typer.Typer(no_args_is_help=True, help="How and when models learn what.")
app.add_typer(dynamics, name="dynamics")
