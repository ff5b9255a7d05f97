"""Rows of a table as clusters that are subspaces."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rankwise.cli.app import Json, console, errors, names, print_json, typed
from rankwise.cli.dynamics import dynamics

if TYPE_CHECKING:
    from rankwise.jobs.subspaces import Clustered


@dynamics.command()
def subspaces(
    data: Annotated[Path, typer.Argument(help="A csv, tsv, jsonl, json or parquet file of numbers.")],
    out: Annotated[Path, typer.Option(help="Folder to write (appears when it is whole).")],
    k: Annotated[str, typer.Option(help="How many clusters, or auto.")] = "auto",
    dim: Annotated[str, typer.Option(help="Dimension of all clusters, one each (e.g. 3,5), or auto.")] = "auto",
    method: Annotated[str, typer.Option(help="em, a mixture with noise, or k-subspaces (needs k and dim).")] = "em",
    through_origin: Annotated[bool, typer.Option(help="Subspaces go through the origin, not through the means of "
                                                      "their rows.")] = False,
    standardise: Annotated[bool, typer.Option(help="Divide each column by its deviation first.")] = False,
    leave_out: Annotated[str, typer.Option(help="Columns that are not used, e.g. id,name.")] = "",
    known: Annotated[str | None, typer.Option(help="A column of classes, which only judges the clusters.")] = None,
    max_clusters: Annotated[int | None, typer.Option(min=1, help="Most clusters that auto tries; 10 by "
                                                                 "default.")] = None,
    starts: Annotated[int, typer.Option(min=1, help="From how many places the clusters start.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Of the starts.")] = 0,
    json_: Json = False,
) -> None:  # fmt: skip
    """Find clusters that are low-dimensional subspaces: which rows, how many, of which dimension.

    Writes each row's cluster and its distance, the subspaces, their spectra as a plot, and a page.

    Examples:

    * rankwise dynamics subspaces data.csv --out clusters
    * rankwise dynamics subspaces digits.csv --k 10 --dim 8 --known digit --out clusters
    """
    from rankwise.jobs.early import check_subspaces

    clusters, dims = _whole(k, "--k"), _whole(dim, "--dim")
    if clusters is not None and len(clusters) != 1:
        raise ValueError(f"--k '{k}': one number, or auto")
    count = None if clusters is None else clusters[0]
    check_subspaces(
        data, out, k=count, dim=dims, method=method, max_clusters=max_clusters, n_init=starts, seed=seed,
        leave_out=names(leave_out), known=known,
    )  # fmt: skip
    from rankwise.jobs.subspaces import cluster_table
    from rankwise.report.tables import terminal

    with console.status("clustering") if console.is_terminal and not json_ else nullcontext():
        found = cluster_table(
            data, out, k=count, dim=dims, method=method, through_origin=through_origin, standardise=standardise,
            leave_out=names(leave_out), known=known, max_clusters=max_clusters, n_init=starts, seed=seed, page=_write,
        )  # fmt: skip
    if json_:
        print_json(found.as_json())
        return
    for note in found.notes:
        errors.print(f"note: {note}", style="yellow", soft_wrap=True)
    console.print(terminal(*found.table()))
    if found.agreement:
        console.print(_agreement(found))
    console.print(
        f"\nlabels    {out}/labels.csv\nreport    {out}/report.html\nplot      {out}/spectra.png", soft_wrap=True
    )


def _whole(text: str, option: str) -> list[int] | None:
    """Whole numbers, or None for auto."""
    if text == "auto":
        return None
    try:
        return [int(part) for part in names(text)]
    except ValueError as error:
        raise ValueError(f"{option} '{text}': whole numbers, or auto, are accepted") from error


def _agreement(found: Clustered) -> str:
    return (
        f"known classes: adjusted Rand index {found.agreement['adjusted_rand']:.3f}, accuracy "
        f"{found.agreement['accuracy']:.1%} (clusters matched to classes)"
    )


def _write(found: Clustered, out: Path) -> None:
    """The plot and the page."""
    from rankwise.report.page import write_figure
    from rankwise.report.plots.dynamics import cluster_spectra

    header, rows = found.table()
    model = found.model
    write_figure(
        out, "spectra", lambda: cluster_spectra(model.spectra_, model.dims_.tolist(), found.sizes),
        section="Variance of each cluster's rows along its principal directions",
        title="Clusters that are subspaces",
        subtitle=f"{sum(found.sizes):,} rows of {len(found.columns)} columns in {model.n_clusters_} clusters, method "
        f"{model.method}",
        command=typed(), header=header, rows=rows,
        caption="variance inside: share of a cluster's variance that lies in its subspace",
        notes=[*found.notes, *([_agreement(found)] if found.agreement else []), *_chosen(found)],
    )  # fmt: skip


def _chosen(found: Clustered) -> list[str]:
    return [
        f"{c['n_clusters']} clusters of dimensions {', '.join(map(str, c['dims']))}: BIC {c['bic']:,.0f} (low is good)"
        for c in found.model.choices_
    ]
