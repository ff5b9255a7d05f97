"""Whether summaries follow their readers."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rankwise.cli.app import MOST_DRAWS, Json, app, console, errors, names, print_json, typed

if TYPE_CHECKING:
    from rankwise.jobs.personalisation import Judged

SHOWN = 20  # documents of each end of each system's scores on the page


@app.command()
def perseval(
    data: Annotated[Path, typer.Argument(help="JSON lines (a document each) or a table with columns doc_id, uid, user "
                                         "and one a system.")],
    systems: Annotated[str, typer.Option(help="Systems to judge, e.g. T5,BRIO; all by default.")] = "",
    distance: Annotated[str, typer.Option(help="jsd, rouge-l, bleu or embedding.")] = "jsd",
    stopwords: Annotated[str | None, typer.Option(help="Of jsd: english (the default), none, or a file of words.")]
    = None,
    model: Annotated[str | None, typer.Option(help="Of embedding: minilm (the default), a folder, or a hub id.")]
    = None,
    simplified: Annotated[bool, typer.Option("--simplified", help="Do not weigh by distances to documents: their text "
                                             "is not needed.")] = False,
    acp: Annotated[str, typer.Option(help="Penalty of unequal service: relative (as published) or absolute.")]
    = "relative",
    alpha: Annotated[float, typer.Option(help="Where the discount for inaccuracy starts, a power of ten.")] = 3.0,
    beta: Annotated[float, typer.Option(help="How steep that discount is, a power of ten.")] = 1.0,
    gamma: Annotated[float, typer.Option(help="Where both penalties start, a power of ten.")] = 4.0,
    resamples: Annotated[int, typer.Option(min=1, max=MOST_DRAWS, help="Draws of documents for the intervals.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of all draws.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for report.html, plots, and tables by document and reader.")]
    = None,
    json_: Json = False,
) -> None:  # fmt: skip
    """Rank summarisers by how their summaries follow readers, with intervals, and say why, document by document.

    The file holds what each reader wrote himself (user) and what each system gave him.

    Examples:

    * rankwise perseval summaries.jsonl --out runs/readers
    * rankwise perseval headlines.csv --simplified --systems T5,BRIO
    """
    from rankwise.jobs.early import check_personalisation

    options: dict[str, Any] = {"alpha": alpha, "beta": beta, "gamma": gamma, "acp": acp, "resamples": resamples}
    check_personalisation(data, out, distance=distance, stopwords=stopwords, model=model, **options)
    from rankwise.jobs.personalisation import judge_file
    from rankwise.report.tables import personalised, terminal

    with console.status("judging") if console.is_terminal and not json_ else nullcontext():
        judged = judge_file(
            data, systems=names(systems), distance=distance, stopwords=stopwords, model=model, simplified=simplified,
            seed=seed, out=out, page=_write, **options,
        )  # fmt: skip
    if json_:
        print_json(judged.as_json())
        return
    for note in judged.board.notes:
        errors.print(f"note: {note}", style="yellow", soft_wrap=True)
    console.print(terminal(*personalised(judged.board)))
    console.print(f"\n{_setting(judged)}")
    if out is not None:
        console.print(f"\nreport    {out}/report.html\ntables    {out}/documents.csv, {out}/readers.csv")


def _setting(judged: Judged) -> str:
    drawn = [s for s in judged.board.stability if s.share == 0.4 and (s.by == "pairs" or judged.documents > 1)]
    kept = ", ".join(f"{s.kendall:.2f} by {100 * s.share:.0f}% of the {s.by}" for s in drawn)
    judged_by = f"{judged.documents:,} documents, {judged.readers:,} summaries a system, distance {judged.distance}"
    return f"{judged_by}; Kendall's τ with this order: {kept}"


def _write(judged: Judged, out: Path) -> None:
    """The page and the plots."""
    from rankwise.report.page import render
    from rankwise.report.plots.ranking import personalisation, stability
    from rankwise.report.plots.shared import save
    from rankwise.report.tables import personalised

    board = judged.board
    reports = {name: board.reports[name] for name in board.systems}
    scores = {name: (r.score, r.low, r.high) for name, r in reports.items()}
    by = {
        what: (
            [s.share for s in board.stability if s.by == what],
            [s.kendall for s in board.stability if s.by == what],
            {name: [s.scores[name] for s in board.stability if s.by == what] for name in board.systems},
        )
        for what in ("documents", "pairs")
    }
    figures = {
        "leaderboard": lambda: personalisation(scores, {name: r.distance for name, r in reports.items()}),
        "stability": lambda: stability(by),
    }
    for name, figure in figures.items():
        save(figure(), out / f"{name}.png")
    header, rows = personalised(board)
    render(
        out / "report.html",
        title="Summaries that follow their readers",
        subtitle=_setting(judged),
        command=typed(),
        header=header,
        rows=rows,
        caption="PerSEval: high follows readers and is accurate, with a 95% interval over documents; EGISES: how far "
        "summaries are from differing as readers do, low is good, accuracy unseen; distance: to what the reader wrote, "
        "low is good; by accuracy: the rank by that distance alone; Borda: points of both orders.",
        notes=board.notes,
        sections=[
            ("Scores", [("PerSEval and distance by system", figures["leaderboard"]())]),
            ("How stable the order is", [("stability by share", figures["stability"]())]),
        ],
        details=_why(judged),
        details_title="Why: the documents of highest and lowest score of each system",
    )


def _why(judged: Judged) -> str:
    lines, rows = [], judged.document_rows()
    for name in judged.board.systems:
        own = sorted((r for r in rows if r["system"] == name), key=lambda r: -r["perseval"])
        shown = own if len(own) <= 2 * SHOWN else [*own[:SHOWN], None, *own[-SHOWN:]]
        lines.append(name)
        lines += [
            "  …" if r is None else f"  {r['perseval']:.3f}  {r['document']} ({r['users']:.0f} readers): {r['reason']}"
            for r in shown
        ]
    return "\n".join(lines)
