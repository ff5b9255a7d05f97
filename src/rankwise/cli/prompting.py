"""Compare corpora by the depth of their texts."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from rankwise.cli.app import Json, app, console, typed


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="Texts, one a line: depth is taken with respect to these.")],
    second: Annotated[Path, typer.Argument(help="Texts, one a line.")],
    distance: Annotated[str, typer.Option(help="cosine or chord.")] = "cosine",
    method: Annotated[str, typer.Option(help="ranksum, or permutation (slower, exact).")] = "ranksum",
    model: Annotated[str, typer.Option(help="Encoder: minilm, a folder, or a hub id.")] = "minilm",
    extremes: Annotated[int, typer.Option(help="Central and outlying texts to show of each.")] = 3,
    seed: Annotated[int, typer.Option(help="Of the permutations and the bootstrap.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for plot and report.html.")] = None,
    json_: Json = False,
) -> None:
    """Do two sets of texts differ, and which texts are central or lie outside?

    Example: rankwise compare human.txt synthetic.txt --out runs/compare
    """
    from rankwise.models.embedding import embed
    from rankwise.prompting.depth import depth_rank_test
    from rankwise.report.tables import corpora, extreme_texts, terminal

    texts = [_lines(p) for p in (first, second)]
    with console.status("embedding") if console.is_terminal and not json_ else nullcontext():
        F, G = (embed(t, model=model) for t in texts)
        found = depth_rank_test(F, G, distance=distance, method=method, seed=seed)  # type: ignore[arg-type]
    names = [first.stem, second.stem] if first.stem != second.stem else [str(first), str(second)]
    table = corpora(found, names, texts)
    if json_:
        print(
            json.dumps(
                {
                    **{k: getattr(found, k) for k in ("q", "q_low", "q_high", "q_pooled", "statistic", "pvalue")},
                    "depths": {"first": found.depths_f.tolist(), "second": found.depths_g.tolist()},
                }
            )
        )
    else:
        console.print(terminal(*table))
        console.print(
            f"\nQ = {found.q:.3f} [{found.q_low:.3f}, {found.q_high:.3f}]: the chance that a text of {names[1]} lies "
            f"deeper in {names[0]} than one of its own (½: no difference)\n"
            f"rank sum W = {found.statistic:.2f}, p = {found.pvalue:.3g} ({method}, one-sided)\n",
            highlight=False,
        )
        console.print(terminal(*extreme_texts(found, names, texts, extremes)))
    if out is not None:
        from rankwise.report import plots
        from rankwise.report.page import write_figure

        write_figure(
            out,
            "depths",
            lambda: plots.depths(found.depths_f, found.depths_g, names),
            section="Depths",
            title=f"{names[0]} and {names[1]} compared",
            subtitle=f"Q = {found.q:.3f} [{found.q_low:.3f}, {found.q_high:.3f}], p = {found.pvalue:.3g} ({method})",
            command=typed(),
            header=table[0],
            rows=table[1],
            caption="Depth with respect to the first: high is central. Q below ½: the second lies further out.",
            details="\n".join("  ".join(row) for row in extreme_texts(found, names, texts, extremes, width=None)[1]),
            details_title="Extreme texts",
        )
        if not json_:
            console.print(f"\nreport    {out}/report.html\nplot      {out}/depths.png", highlight=False)


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ValueError(f"no such file: {path}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{path} has no text: one a line is needed")
    return lines
