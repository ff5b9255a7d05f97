"""How rich or lazy a training was."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from rankwise.cli.app import Json, console, print_json
from rankwise.cli.dynamics import dynamics

SHOWN = 10  # weights


@dynamics.command()
def laziness(
    before: Annotated[str, typer.Option(help="The model before: a bundled name, a folder, or a hub id.")],
    after: Annotated[str, typer.Option(help="The same model after training.")],
    data: Annotated[str, typer.Option(help="Texts (a file with a column text, or bundled ones), or pictures for image "
                                      "classifiers.")],
    target: Annotated[str | None, typer.Option(help="Regular expression of the weights that count.",
                                               show_default="linear layers in the blocks")] = None,
    limit: Annotated[int, typer.Option(help="Most texts or pictures.")] = 64,
    rows: Annotated[int, typer.Option(help="Those of them that enter the tangent kernel, the first ones.")] = 16,
    max_length: Annotated[int, typer.Option(help="Tokens of a text.")] = 64,
    center: Annotated[bool, typer.Option("--center", help="Centre the kernels.")] = False,
    seed: Annotated[int, typer.Option(help="Of the directions in which an encoder's embedding is looked at.")] = 0,
    out: Annotated[Path | None, typer.Option(help="A csv, tsv, jsonl, json or parquet file to write: a row a weight.")]
    = None,
    json_: Json = False,
) -> None:  # fmt: skip
    """Tell how far training moved a model: its weights, its representations, its tangent kernel.

    Alignments of 1 are lazy learning, where features stayed what they were; the lower, the richer.

    Examples:

    * rankwise dynamics laziness --before minilm --after tuned --data reviews.csv
    * rankwise dynamics laziness --before base --after tuned --data text:nyt --out moved.csv
    """
    from rankwise.jobs.early import check_laziness

    check_laziness(before, after, data, out=out, limit=limit, rows=rows, max_length=max_length, seed=seed)
    from rankwise.jobs.rich_lazy import compare_checkpoints
    from rankwise.report.tables import terminal

    quiet = json_ or not console.is_terminal
    done = compare_checkpoints(
        before, after, data, out=out, target=target, limit=limit, rows=rows, max_length=max_length, center=center,
        seed=seed, waiting=lambda what: nullcontext() if quiet else console.status(what),
    )  # fmt: skip
    if json_:
        print_json(done.as_dict())
        return
    console.print(terminal(*done.table()))
    header = ["weight", "relative change", "directions"]  # short, so that names are printed whole
    cells = [
        [w["weight"], *("-" if w[k] is None else f"{w[k]:.4g}" for k in ("relative_change", "effective_rank"))]
        for w in done.weights[:SHOWN]
    ]
    console.print(terminal(header, cells))
    more = f"; the {SHOWN} most moved of {len(done.weights)} weights" if len(done.weights) > SHOWN else ""
    console.print(f"\n{done.inputs} inputs, {done.rows} in the tangent kernel of the {done.outputs}{more}")
    console.print("directions: how many the change of a weight has, by its participation ratio")
    if out is not None:
        console.print(f"table     {out}", soft_wrap=True, highlight=False)
