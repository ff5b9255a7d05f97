"""The methods there are, and what they do on real data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from rankwise.cli.app import Jobs, Json, Progress, Scheduler, app, console
from rankwise.reading import printable, read_json

if TYPE_CHECKING:
    from rich.table import Table

    from rankwise.bench import Located, Recipe
    from rankwise.bench.shared.evidence import Evidence

RUNS = Path("runs/bench")


@app.command()
def methods(
    family: Annotated[str | None, typer.Option(help="Only one family.")] = None,
    json_: Json = False,
) -> None:
    """List the methods: what is ready, what is planned.

    Examples:

    * rankwise methods

    * rankwise methods --family tuning --json
    """
    from rich.table import Table

    from rankwise.catalogue import CATALOGUE, FAMILIES
    from rankwise.nearest import unknown

    if family is not None and family not in FAMILIES:
        raise unknown("family", family, FAMILIES)
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
    recipe: Annotated[str | None, typer.Argument(help="Recipe to run.")] = None,
    part: Annotated[str | None, typer.Option(help="Only one part of it, e.g. speech.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Training runs a variant; the recipe's own number.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of data that cannot be fetched, for recipes that read "
                                              "some.")] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="A try of under a minute; its verdicts mean nothing.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="List the recipes.")] = False,
    rescore: Annotated[Path | None, typer.Option(metavar="FILE", help="Judge the runs in a file that the recipe kept "
                                                 "(rows.jsonl.gz) once more; nothing is measured. Those of speed "
                                                 "keep none: times have no items.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for runs and results; finished runs are kept.")] = RUNS,
    jobs: Jobs = 1,
    scheduler: Scheduler = None,
    json_: Json = False,
) -> None:  # fmt: skip
    """Measure a paper's claims on real data, and print the verdicts.

    Examples:

    * rankwise bench --list

    * rankwise bench eva --seeds 5

    * rankwise bench dq-lore --rescore runs/bench/prompting/dq_lore/rows.jsonl.gz
    """
    from rankwise.bench import recipes
    from rankwise.nearest import unknown

    found = recipes()
    if recipe is None and not list_:
        raise ValueError("no recipe: name one, or --list shows them")
    if list_ or recipe is None:
        _list([located.recipe for parts in found.values() for located in parts.values()], json_)
        return
    if recipe not in found:
        raise unknown("recipe", recipe, found)
    if part is not None and part not in found[recipe]:
        raise unknown(f"part of {recipe}", part, found[recipe])
    chosen = [found[recipe][part]] if part else list(found[recipe].values())
    if rescore is not None:
        given = {"seeds": seeds, "data": data, "smoke": smoke, "jobs": jobs != 1, "scheduler": scheduler}
        if idle := [f"--{name}" for name, value in {**given, "out": out != RUNS}.items() if value]:
            raise ValueError(f"--rescore measures nothing: leave out {' and '.join(idle)}")
        _rescored(chosen, rescore, json_)
        return
    for located in chosen:
        located.check(seeds, spread=jobs != 1 or scheduler is not None, data=data)
    if smoke and (jobs != 1 or scheduler is not None):
        raise ValueError("--smoke is of one process: leave out --jobs and --scheduler")
    from rankwise.parallel import spread_over

    measured = []
    for located in chosen:
        folder = out / ("smoke" if smoke else "") / located.place
        with Progress(quiet=json_) as progress, spread_over(jobs=jobs, scheduler=scheduler):
            evidence = located.run(folder, seeds=seeds, smoke=smoke, data=data, on_event=progress.event)
        measured.append(read_json(folder / "evidence.json"))
        if not json_:
            _print_evidence(evidence)
            console.print(f"took      {evidence.seconds / 60:.1f} min in all (calls: {evidence.calls})")
            console.print(f"results   {folder}/evidence.json\n", soft_wrap=True)
    if json_:
        print(json.dumps(measured, ensure_ascii=False))


def _list(parts: Sequence[Recipe], json_: bool) -> None:
    from rankwise.report.tables import terminal

    if json_:
        print(json.dumps([{"recipe": r.name, "part": r.part, "about": r.about} for r in parts], ensure_ascii=False))
    else:
        console.print(terminal(["recipe", "part", "what it measures"], [[r.name, r.part, r.about] for r in parts]))


def _rescored(parts: Sequence[Located], path: Path, json_: bool) -> None:
    """Claims of a file's runs beside those that it records."""
    from rankwise.bench.shared.measured import recorded, rows_of

    rows = rows_of(path)
    located = next((p for p in parts if p.module == rows.told["recipe"]), parts[0])
    evidence = located.rescored(rows)
    found = recorded(evidence)
    same = found == rows.claims
    if json_:
        told = {"recipe": located.recipe.name, "part": located.recipe.part, "same": same}
        print(json.dumps({**told, "claims": found, "recorded": rows.claims}, ensure_ascii=False))
        return
    _print_evidence(evidence)
    if same:
        console.print(f"\nrescored  all {len(found)} claims as recorded in {path}", soft_wrap=True)
        return
    differ = [c for c in rows.claims if c not in found]
    console.print(f"\nrescored  other than recorded in {path}:", style="red", soft_wrap=True)
    for claim in differ:
        console.print(Text(printable(f"          {claim['verdict']}: {claim['text']} ({claim['found']})")))


def _print_evidence(evidence: Evidence) -> None:
    from rich.table import Table

    from rankwise.bench.shared.evidence import verdicts

    console.print(evidence.title, style="bold")
    console.print(f"{evidence.setting}\n")
    if (table := _whole_words(evidence.header, evidence.rows)) is not None:
        console.print(table)
    else:
        for row in evidence.rows:
            cells = Table.grid(padding=(0, 2, 0, 0))
            for i, (name, cell) in enumerate(zip(evidence.header, row, strict=True)):
                cells.add_row(name, cell, style=None if i else "bold")
            console.print(cells)
    claims = Table.grid(padding=(0, 1, 0, 0))
    claims.add_column(no_wrap=True)
    colours = {"held": "green", "not held": "red", "cannot tell": "yellow"}
    for claim, verdict in zip(evidence.claims, verdicts(evidence.claims), strict=True):
        told = f"{claim.text}\n{claim.found}" + (
            f"\n{claim.paper} in the paper, in another setting" if claim.paper else ""
        )
        claims.add_row(Text(verdict.upper(), colours[verdict]), Text(printable(told)))
    console.print()
    console.print(claims)


def _whole_words(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table | None:
    """A table whose columns are as wide as their longest word at least, if the console holds it."""
    from rich.cells import cell_len

    from rankwise.report.tables import terminal

    table, columns = terminal(header, rows), list(zip(header, *rows, strict=True))
    least = [max(cell_len(word) for cell in cells for word in (cell.split() or [""])) for cells in columns]
    left = console.width - sum(least) - len(least) + 1
    for column, cells, width in zip(table.columns, columns, least, strict=True):
        more = max(0, min(left, max(map(cell_len, cells)) - width))
        column.width, left = width + more, left - more
    return table if left >= 0 else None
