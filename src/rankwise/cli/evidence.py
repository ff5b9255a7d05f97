"""The methods there are, and what they do on real data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from rankwise.cli.app import Json, Progress, app, console


@app.command()
def methods(
    family: Annotated[str | None, typer.Option(help="Only one family.")] = None,
    json_: Json = False,
) -> None:
    """List the 27 methods: what is ready, what is planned.

    Example: rankwise methods --family tuning
    """
    from rich.table import Table

    from rankwise.catalogue import CATALOGUE
    from rankwise.nearest import unknown

    families = {e.family for e in CATALOGUE}
    if family is not None and family not in families:
        raise unknown("family", family, families)
    rows = [e for e in CATALOGUE if family in (None, e.family)]
    if json_:
        print(json.dumps([e.as_dict() for e in rows], ensure_ascii=False))
        return
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    for name in ("method", "family", "status", "arXiv"):
        table.add_column(name, no_wrap=name != "method")
    for e in rows:
        table.add_row(e.name, e.family, e.status, e.arxiv, style=None if e.status == "ready" else "dim")
    console.print(table)


@app.command()
def bench(
    recipe: Annotated[str | None, typer.Argument(help="Recipe to run; see --list.")] = None,
    part: Annotated[str | None, typer.Option(help="Only one part of it, e.g. speech.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the recipes.")] = False,
    seeds: Annotated[int, typer.Option(help="Training runs a variant.")] = 5,
    out: Annotated[Path, typer.Option(help="Where runs and results are kept.")] = Path("runs/bench"),
    json_: Json = False,
) -> None:
    """Measure a paper's claims on real data, and print the verdicts.

    Example: rankwise bench eva --seeds 5
    """
    import importlib

    from rankwise.bench import RECIPES
    from rankwise.nearest import unknown
    from rankwise.report.tables import terminal

    if list_ or recipe is None:
        if json_:
            print(json.dumps({n: r._asdict() for n, r in RECIPES.items()}))
        else:
            rows = [[n, ", ".join(r.parts), r.about] for n, r in RECIPES.items()]
            console.print(terminal(["recipe", "parts", "what it measures"], rows))
        return
    if recipe not in RECIPES:
        raise unknown("recipe", recipe, RECIPES)
    parts = RECIPES[recipe].parts
    if part is not None and part not in parts:
        raise unknown(f"part of {recipe}", part, parts)
    for module in [parts[part]] if part else parts.values():
        with Progress(quiet=json_) as progress:
            evidence = importlib.import_module(f"rankwise.bench.{module}").run(
                out / module, seeds=seeds, on_event=progress.event
            )
        evidence.write(out / f"{module}.json")
        if json_:
            print((out / f"{module}.json").read_text())
        else:
            _print_evidence(evidence)
            console.print(f"results   {out}/{module}.json", highlight=False)


def _print_evidence(evidence) -> None:
    from rankwise.report.tables import terminal

    console.print(f"{evidence.title}\n{evidence.setting}")
    console.print(terminal(evidence.header, evidence.rows))
    for claim in evidence.claims:
        console.print("HELD    " if claim.held else "NOT HELD", style="green" if claim.held else "red", end=" ")
        console.print(f"{claim.text}\n         {claim.found}")
