"""Prediction intervals for a table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rankwise.cli.app import (
    Jobs,
    Json,
    RowsOut,
    Scheduler,
    app,
    check_rows_out,
    console,
    continues,
    errors,
    names,
    numbers,
    print_json,
    typed,
)

quantile = typer.Typer(no_args_is_help=True, help="Prediction intervals for a table, by aggregated quantile models.")
app.add_typer(quantile, name="quantile")


@quantile.command()
def fit(
    data: Annotated[Path, typer.Argument(help="A csv, tsv, jsonl, json or parquet file.")],
    response: Annotated[str, typer.Option(help="The column to predict.")],
    out: Annotated[Path, typer.Option(help="Folder to write (appears when it is whole).")],
    levels: Annotated[str | None, typer.Option(help="Quantiles, e.g. 0.05,0.5,0.95.")] = None,
    models: Annotated[str, typer.Option(help="Base models, from linear, boosting, forest, extra-trees, gaussian, "
                                        "network.")] = "linear,boosting,forest,gaussian",
    weights: Annotated[str, typer.Option(help="global or local, with -coarse, -medium or -fine.")] = "local-medium",
    conformal: Annotated[str, typer.Option(help="Calibrate on a fifth of the rows (cqr), on all, by six times the "
                                           "fits (cv+), or not (none).")] = "cqr",
    leave_out: Annotated[str, typer.Option(help="Columns that are not used, e.g. id,name.")] = "",
    test_share: Annotated[float, typer.Option(help="Share of the rows that only judge.")] = 0.2,
    seed: Annotated[int, typer.Option(min=0, help="Of the split, the fits and the folds.")] = 0,
    jobs: Jobs = 1,
    scheduler: Scheduler = None,
    json_: Json = False,
) -> None:  # fmt: skip
    """Fit base models and their weights; judge on held-out rows; write model, table and fan plot.

    Numbers may have decimal points or commas, dates any form; a column of names is left out. Cut short, the same
    command continues.

    Examples:

    * rankwise quantile fit houses.csv --response price --out houses
    * rankwise quantile fit houses.csv --response price --levels 0.05,0.5,0.95 --conformal cv+ --out houses
    """
    from rankwise.jobs.early import check_fit

    check_fit(data, out, models=names(models), test_share=test_share)
    continues()
    from rankwise.jobs.quantile import LEVELS, fit_table
    from rankwise.parallel import spread_over

    with spread_over(jobs=jobs, scheduler=scheduler):
        fitted = fit_table(
            data, response, out, quantiles=numbers(levels, "--levels") if levels else LEVELS, models=names(models),
            weights=weights,
            conformal=None if conformal == "none" else conformal, leave_out=names(leave_out), test_share=test_share,
            seed=seed, verbose=console.is_terminal and not json_, page=_write,
        )  # fmt: skip
    _show(fitted, json_=json_)
    if not json_:
        console.print(f"\nmodel     {out}/model\nreport    {out}/report.html\nplot      {out}/fan.png")


@quantile.command()
def predict(
    run: Annotated[Path, typer.Argument(help="A folder written by `rankwise quantile fit`.")],
    data: Annotated[Path, typer.Argument(help="Rows to predict, with the same columns.")],
    out: RowsOut = None,
    json_: Json = False,
) -> None:
    """Quantiles of new rows, a column a level.

    Examples:

    * rankwise quantile predict houses new.csv
    * rankwise quantile predict houses new.csv --out intervals.csv
    """
    from rankwise.data.tables import write_rows
    from rankwise.jobs.early import check_fitted

    check_rows_out(out, run=run, data=data)
    check_fitted(run)
    from rankwise.jobs.quantile import load_fit, predict_table
    from rankwise.report.tables import terminal

    found = predict_table(load_fit(run), data)
    _note(found.attrs["notes"])
    if out is not None:
        write_rows(out, found.to_dict("records"))
    if json_:
        print_json(found.to_dict("records"))
    elif out is not None:
        console.print(f"{len(found)} rows   {out}")
    else:
        shown = [[str(i), *(f"{v:.4g}" for v in row)] for i, row in enumerate(found.head(20).to_numpy(), 1)]
        console.print(terminal(["row", *found.columns], shown))
        if len(found) > 20:
            console.print(f"and {len(found) - 20} more; --out FILE keeps all")


@quantile.command()
def report(
    run: Annotated[Path, typer.Argument(help="A folder written by `rankwise quantile fit`.")],
    data: Annotated[Path | None, typer.Option(help="Judge on this file instead; it must hold the response.")] = None,
    json_: Json = False,
) -> None:
    """How good the intervals are: scores against every base model, coverage, widths.

    Examples:

    * rankwise quantile report houses
    * rankwise quantile report houses --data later.csv
    """
    from rankwise.jobs.early import check_fitted

    check_fitted(run)
    from rankwise.jobs.quantile import judge_table, load_fit

    fitted = load_fit(run)
    _show(fitted if data is None else judge_table(fitted, data), json_=json_)


def _write(fitted, out: Path) -> None:
    """The fan plot and the page."""
    from rankwise.report.page import write_figure
    from rankwise.report.plots.distributions import quantile_fan
    from rankwise.report.tables import quantile_scores

    header, rows = quantile_scores(fitted.about)
    write_figure(
        out,
        "fan",
        lambda: quantile_fan(
            fitted.observed, fitted.quantiles, list(fitted.model.quantiles), unit=fitted.about["target"]
        ),
        section="Predicted quantiles of the test rows",
        title=f"Prediction intervals of {fitted.about['target']}",
        subtitle=f"{fitted.about['rows']} rows fitted, {fitted.about['test_rows']} rows judged",
        command=typed(),
        header=header,
        rows=rows,
        caption="weighted interval score: twice the mean pinball loss; CRPS: its integral over all levels; both in the "
        "target's units, low is good. All forecasts are in order; calibrated is what predict gives, the others are "
        "before calibration",
        notes=[*fitted.about["notes"], *(
            f"{100 * row['nominal']:.0f}% intervals: cover {100 * row['coverage']:.1f}%, mean width {row['width']:.4g}"
            for row in fitted.about["intervals"]
        )],
    )  # fmt: skip


def _show(fitted, *, json_: bool) -> None:
    from rankwise.report.tables import quantile_intervals, quantile_scores, terminal

    _note(fitted.about["notes"])
    if json_:
        print_json(fitted.about)
        return
    console.print(terminal(*quantile_scores(fitted.about)))
    console.print(terminal(*quantile_intervals(fitted.about)))


def _note(notes: list[str]) -> None:
    for note in notes:
        errors.print(f"note: {note}", style="yellow", soft_wrap=True)
