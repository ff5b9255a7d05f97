"""Merge models."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from rankwise.cli.app import Json, app, console, continues
from rankwise.reading import printable

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


@app.command()
def merge(
    config: Annotated[Path, typer.Argument(help="YAML file in mergekit's conventions.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write (appears when it is whole).")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only check, and show tensors and cost.")] = False,
    shard_size: Annotated[str, typer.Option(help="The most bytes a file, e.g. 500MB.")] = "5GB",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Tensors merged at once; a thread each, at most 8.")
    ] = None,
    json_: Json = False,
) -> None:
    """Merge fine-tuned models into one: TIES, DARE, SLERP, TSVM, R-TSVM and others.

    Reads a few tensors of all models at a time; a killed merge continues.

    Examples:

    * rankwise merge examples/merge.yaml --out merged
    * rankwise merge recipe.yaml --dry-run
    """
    from rankwise.files import check_output
    from rankwise.reading import read_yaml

    if out is None and not dry_run:
        raise ValueError("no folder to write: give --out, or --dry-run to look only")
    size = _size(shard_size)
    read_yaml(config)  # what is no YAML is said before torch is imported
    if out is not None:
        check_output(out, made_by="merge", inputs=[config])
    from rankwise.merging import merge_checkpoints, prepare
    from rankwise.merging.engine import config as configuration
    from rankwise.merging.engine.companions import report
    from rankwise.report.tables import merge_summary, merge_tensors, terminal

    if dry_run:
        read = configuration.read(config)
        if out is not None:
            check_output(out, made_by="merge", inputs=[config, *read.references])
        ready = prepare(read)
    else:
        assert out is not None
        continues()
        with _Bar(quiet=json_) as bar:
            ready = merge_checkpoints(config, out, shard_size=size, workers=workers, progress=bar.update)
    if json_:
        print(json.dumps(report(ready, workers)))
        return
    if dry_run:
        console.print(terminal(*merge_tensors(ready)))
    console.print(terminal(*merge_summary(ready, workers)))
    for note in ready.notes:
        console.print(f"* {printable(note)}", style="yellow", markup=False)
    if not dry_run:
        written = f"\nmodel     {out}\nrecipe    {out}/merge.yaml\nreport    {out}/merge.json"
        console.print(written, highlight=False, markup=False)


def _size(text: str) -> int:
    match = re.fullmatch(r"\s*([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*(B|KB|MB|GB)\s*", text.upper())
    if not match or float(match[1]) <= 0:
        raise ValueError(f"shard size '{text}' is not understood; write 5GB or 500MB")
    return int(float(match[1]) * _UNITS[match[2]])


class _Bar:
    """Bytes written, on a terminal."""

    def __init__(self, *, quiet: bool) -> None:
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            DownloadColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=quiet or not console.is_terminal,
            transient=True,
        )
        self.task = self.bar.add_task("merging", total=None)

    def __enter__(self) -> _Bar:
        self.bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.bar.stop()

    def update(self, name: str, done: int, total: int) -> None:
        self.bar.update(self.task, description=printable(name)[-30:].rjust(30), completed=done, total=total)
