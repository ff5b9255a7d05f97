"""Rankers from click logs."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rankwise.cli.app import MOST_DRAWS, Json, RowsOut, app, check_rows_out, console, errors, numbers, print_json, typed

if TYPE_CHECKING:
    from rankwise.jobs.clicks import Learned

rank = typer.Typer(no_args_is_help=True, help="Rankers from click logs, by dual learning.")
app.add_typer(rank, name="rank")


@rank.command()
def fit(
    log: Annotated[Path, typer.Argument(help="A table with columns query, doc, position, click, perhaps session or "
                                        "timestamp, and features.")],
    out: Annotated[Path, typer.Option(help="Folder to write (appears when it is whole).")],
    features: Annotated[Path | None, typer.Option(help="svmlight lines with qid and the documents' names, or a folder "
                                                  "of ULTRA's; all other columns of the log by default.")] = None,
    network: Annotated[str, typer.Option(help="dnn or linear.")] = "dnn",
    hidden: Annotated[str | None, typer.Option(help="Units of each hidden layer of dnn; 64,32 by default.")] = None,
    list_size: Annotated[int, typer.Option(min=2, help="Positions that are learned from.")] = 10,
    steps: Annotated[int, typer.Option(min=1, help="Of training, 256 lists each.")] = 1000,
    learning_rate: Annotated[float | None, typer.Option(help="Of the ranker; 0.002 for dnn and 0.01 for linear by "
                                                        "default.")] = None,
    max_weight: Annotated[float, typer.Option(help="Larger weights of clicks are cut to it.")] = 100.0,
    held_out: Annotated[float, typer.Option(help="Share of the queries that only judge.")] = 0.2,
    resamples: Annotated[int, typer.Option(min=1, max=MOST_DRAWS, help="Draws of queries for the intervals.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of the split, the fits and the draws.")] = 0,
    json_: Json = False,
) -> None:  # fmt: skip
    """Learn a ranker and the propensity of each position from clicks, and say what debiasing changed.

    Two fits with and two without debiasing: a change of the ranking counts when it is larger than that between seeds.

    Examples:

    * rankwise rank fit clicks.csv --features docs.svm --out ranker
    * rankwise rank fit clicks.parquet --network linear --out ranker
    """
    from rankwise.jobs.early import check_ranking

    units = None if hidden is None else numbers(hidden, "--hidden")
    check_ranking(log, features, out, ranker=network, hidden=units, held_out=held_out, steps=steps, list_size=list_size,
                  learning_rate=learning_rate, max_weight=max_weight)  # fmt: skip
    from rankwise.jobs.clicks import fit_log
    from rankwise.report.tables import terminal

    with console.status("fitting") if console.is_terminal and not json_ else nullcontext():
        learned = fit_log(
            log, out, features=features, ranker=network, hidden=tuple(map(int, units)) if units else None,
            list_size=list_size, steps=steps, learning_rate=learning_rate, max_weight=max_weight, held_out=held_out,
            resamples=resamples, seed=seed, page=_write,
        )  # fmt: skip
    if json_:
        print_json(learned.as_json())
        return
    for note in learned.notes:
        errors.print(f"note: {note}", style="yellow", soft_wrap=True)
    console.print(terminal(*_curve(learned)))
    console.print(terminal(*_likelihood(learned)))
    console.print(f"\n{learned.verdict}\n\nranker    {out}\nreport    {out}/report.html", soft_wrap=True)


@rank.command()
def score(
    run: Annotated[Path, typer.Argument(help="A folder written by `rankwise rank fit`.")],
    documents: Annotated[Path, typer.Argument(help="svmlight lines with qid, or a folder of ULTRA's.")],
    out: RowsOut = None,
    json_: Json = False,
) -> None:
    """Scores of documents: the higher, the earlier.

    Examples:

    * rankwise rank score ranker docs.svm
    * rankwise rank score ranker docs.svm --out scores.csv
    """
    from rankwise.data.tables import write_rows
    from rankwise.jobs.early import check_documents, check_ranking_run

    check_rows_out(out, run=run, data=documents)
    check_ranking_run(run)
    check_documents(documents)
    from rankwise.jobs.clicks import score_documents
    from rankwise.report.tables import terminal

    rows = score_documents(run, documents)
    if out is not None:
        write_rows(out, rows)
    if json_:
        print_json(rows)
    elif out is None:
        console.print(terminal(["query", "doc", "score"], [[r["query"], r["doc"], f"{r['score']:.4f}"] for r in rows]))
    else:
        console.print(f"{len(rows):,} documents\nscores    {out}")


@rank.command()
def evaluate(
    scores: Annotated[Path, typer.Argument(help="A table with columns query, doc, score, or lines 'query Q0 doc rank "
                                           "score tag'.")],
    qrels: Annotated[Path, typer.Argument(help="Grades: lines 'query 0 doc grade', a table with columns query, doc, "
                                          "grade, svmlight lines with qid, or a folder of ULTRA's.")],
    resamples: Annotated[int, typer.Option(min=1, max=MOST_DRAWS, help="Draws of queries for the intervals.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
    json_: Json = False,
) -> None:  # fmt: skip
    """nDCG, ERR and MRR of a ranking against grades, with intervals over queries.

    Queries without a relevant document are left out of the means, and count 0 in the last column.

    Examples:

    * rankwise rank evaluate scores.csv qrels.txt
    * rankwise rank evaluate scores.csv docs.svm --json
    """
    from rankwise.jobs.early import check_evaluation

    check_evaluation(scores, qrels)
    from rankwise.jobs.clicks import evaluate_scores
    from rankwise.report.tables import terminal

    report = evaluate_scores(scores, qrels)
    rows = report.rows(resamples=resamples, seed=seed)
    if json_:
        print_json({"queries": report.queries, "empty": report.empty, "metrics": rows})
        return
    header = ["metric", "mean", "95% interval", "with empty queries as 0"]
    cells = [[r["metric"], *_interval(r["mean"], r["low"], r["high"], 4), f"{r['mean_empty_zero']:.4f}"] for r in rows]
    console.print(terminal(header, cells))
    console.print(f"\n{report.queries:,} queries, {report.empty:,} without a relevant document")


def _curve(learned: Learned) -> tuple[list[str], list[list[str]]]:
    c = learned.curve
    return ["position", "propensity", "95% interval"], [
        [str(k), *_interval(p, low, high, 3)]
        for k, (p, low, high) in enumerate(zip(c.propensity, c.low, c.high, strict=True), 1)
    ]


def _interval(value: float, low: float, high: float, digits: int) -> list[str]:
    """Two cells; - where there is none."""
    said = f"{value:.{digits}f}", f"{low:.{digits}f} to {high:.{digits}f}"
    return [text if number == number else "-" for text, number in zip(said, (value, low), strict=True)]


def _likelihood(learned: Learned) -> tuple[list[str], list[list[str]]]:
    return ["held-out clicks by", "log-likelihood of a click's place", "95% interval"], [
        [name, *_interval(*found, 4)] for name, found in learned.likelihood.items()
    ]


def _write(learned: Learned, out: Path) -> None:
    """The page and the plot."""
    from rankwise.report.page import render
    from rankwise.report.plots.clicks import propensities
    from rankwise.report.plots.shared import save

    c = learned.curve

    def figure():
        return propensities({"propensity": c.propensity}, low=c.low, high=c.high)

    save(figure(), out / "propensity.png")
    header, rows = _likelihood(learned)
    render(
        out / "report.html", title="A ranker from clicks", subtitle=learned.verdict, command=typed(), header=header,
        rows=rows, caption="Mean log-probability of where a held-out click fell, by query; high is good.",
        notes=learned.notes, sections=[("Propensity by position", [("propensity by position", figure())])],
        details="\n".join(f"{k}: {v:,}" for k, v in learned.counts.items()), details_title="The log",
    )  # fmt: skip
