"""Look at a model's spectra; make it smaller."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from rankwise.cli.app import Json, app, console, typed


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="minilm, smollm2, whisper-tiny.en, a folder, or a hub id.")],
    target: Annotated[str, typer.Option(help="auto, attention, mlp, or layer names.")] = "auto",
    outliers: Annotated[
        bool, typer.Option("--outliers", help="By block: outlier score, and how often OwLore draws it.")
    ] = False,
    data: Annotated[str | None, typer.Option(help="Texts to weigh outliers by, e.g. text:nyt.")] = None,
    threshold: Annotated[float, typer.Option(help="An outlier is so many times the mean.")] = 13.0,
    out: Annotated[Path | None, typer.Option(help="Folder for plots and report.html.")] = None,
    json_: Json = False,
) -> None:
    """Spectrum of every layer: effective and stable rank, heavy-tail index, outliers.

    Examples:

    * rankwise inspect minilm --out runs/spectra
    * rankwise inspect smollm2 --outliers --data text:nyt
    """
    if outliers:
        _inspect_outliers(model, data, threshold, out, json_)
        return
    from rich.progress import track

    from rankwise.models.spectra import HEADER, as_rows, layer_spectra
    from rankwise.report.tables import terminal

    quiet = json_ or not console.is_terminal
    spectra = layer_spectra(
        model,
        target=target,
        progress=lambda it, n: track(it, "spectra", n, console=console, transient=True, disable=quiet),
    )
    if json_:
        print(json.dumps(spectra))
    else:
        console.print(terminal(HEADER, as_rows(spectra)))
    if out is not None:
        from rankwise.report import plots
        from rankwise.report.page import write_figure

        write_figure(
            out,
            "spectra",
            lambda: plots.spectra(spectra),
            section="Maps",
            title=f"Spectra of {model}",
            subtitle=f"{len(spectra)} linear layers",
            command=f"rankwise inspect {model}",
            header=HEADER,
            rows=as_rows(spectra, full=True),
        )
        if not json_:
            console.print(f"report    {out}/report.html\nplot      {out}/spectra.png", highlight=False)


def _inspect_outliers(model: str, data: str | None, threshold: float, out: Path | None, json_: bool) -> None:
    from rankwise.models.spectra import block_outliers
    from rankwise.report.tables import terminal

    batches = None
    if data is not None:
        from rankwise import data as corpora
        from rankwise.jobs import tasks
        from rankwise.models import load_tokenizer

        task = tasks.TextTask(kind="causal-lm", tokenizer=load_tokenizer(model), max_length=128)
        rows = task.encode(corpora.load(data, task="causal-lm").split().train.head(32))
        batches = [{k: v for k, v in b.items() if k != "labels"} for b in tasks.batches(task, rows, 8)]
    with console.status("outliers and spectra") if console.is_terminal and not json_ else nullcontext():
        records = block_outliers(model, batches, threshold=threshold)
    header = ["block", "outliers", "draw", "tail"]
    rows = [
        [str(r["block"]), f"{r['outliers']:.4f}%", f"{100 * r['probability']:.1f}%", f"{r['hill_alpha']:.2f}"]
        for r in records
    ]
    if json_:
        print(json.dumps(records))
    else:
        console.print(terminal(header, rows))
    if out is not None:
        from rankwise.report import plots
        from rankwise.report.page import write_figure

        write_figure(
            out,
            "outliers",
            lambda: plots.outliers(records),
            section="Blocks",
            title=f"Outliers of {model}",
            subtitle=f"{len(records)} blocks, threshold {threshold:g}, {data or 'weights only'}",
            command=f"rankwise inspect {model} --outliers",
            header=header,
            rows=rows,
        )
        if not json_:
            console.print(f"report    {out}/report.html\nplot      {out}/outliers.png", highlight=False)


@app.command()
def compress(
    model: Annotated[str, typer.Option(help="smollm2, a folder, or a hub id.")],
    out: Annotated[Path, typer.Option(help="Folder to write (replaced as a whole).")],
    ratio: Annotated[float | None, typer.Option(help="Share of all directions to remove.")] = None,
    parameters: Annotated[float | None, typer.Option(help="Parameters left; below 1 a share.")] = None,
    bytes: Annotated[float | None, typer.Option(help="Bytes left; below 1 a share.")] = None,
    method: Annotated[str, typer.Option(help="welore, uniform or owl.")] = "welore",
    min_ratio: Annotated[float, typer.Option(help="Factorise what loses more than this share.")] = 0.5,
    target: Annotated[str, typer.Option(help="auto, attention, mlp, or layer names.")] = "auto",
    calibrate: Annotated[str | None, typer.Option(help="Texts to calibrate on, e.g. text:nyt.")] = None,
    data: Annotated[str, typer.Option(help="Texts to measure perplexity on.")] = "text:nyt",
    json_: Json = False,
) -> None:
    """Give every matrix the rank its spectrum asks for, and write a smaller model.

    Examples:

    * rankwise compress --model smollm2 --ratio 0.3 --out small
    * rankwise compress --model smollm2 --parameters 0.8 --calibrate text:nyt --out small
    """
    from rich.progress import track

    from rankwise.jobs.compress import compress_model
    from rankwise.report.page import write_compression
    from rankwise.report.tables import compressed, compression_summary, terminal

    quiet = json_ or not console.is_terminal
    done = compress_model(
        model,
        out,
        data=data,
        calibrate=calibrate,
        progress=lambda names, what: track(names, what, console=console, transient=True, disable=quiet),
        on_phase=lambda phase: None if quiet else console.print(phase, style="dim"),
        ratio=ratio,
        parameters=parameters,
        bytes=bytes,
        method=method,
        min_ratio=min_ratio,
        target=target,
    )
    write_compression(out, done, model, typed())
    if json_:
        print((out / "compression.json").read_text())
        return
    console.print(terminal(*compressed(done.plan)))
    console.print(terminal(*compression_summary(done)))
    if not any(c.low_rank for c in done.plan.components):
        console.print("* no matrix loses enough to be factorised: raise --ratio, or lower --min-ratio", style="yellow")
    console.print(f"\nmodel     {out}\nreport    {out}/report.html", highlight=False)
