"""Look at a model's spectra; make it smaller."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rankwise.cli.app import Json, app, console, names, numbers, typed

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="minilm, smollm2, whisper-tiny.en, a folder, or a hub id.")],
    target: Annotated[
        str | None, typer.Option(help="auto, attention, mlp, or layer names.", show_default="auto")
    ] = None,
    outliers: Annotated[
        bool, typer.Option("--outliers", help="By block: outlier score, and how often OwLore draws it.")
    ] = False,
    data: Annotated[
        str | None, typer.Option(help="Texts to weigh outliers by, e.g. text:nyt: 32 of up to 128 tokens.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="An outlier is so many times the mean.", show_default="13")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for plots and report.html (replaced as a whole).")] = None,
    json_: Json = False,
) -> None:
    """Spectrum of every layer: effective and stable rank, heavy-tail index, outliers.

    Examples:

    * rankwise inspect minilm --out runs/spectra
    * rankwise inspect smollm2 --outliers --data text:nyt
    """
    from rankwise.files import check_output

    if outliers and target is not None:
        raise ValueError("--target chooses layers of the table of spectra; --outliers is by block")
    if not outliers and (data is not None or threshold is not None):
        raise ValueError("--data and --threshold are of --outliers: add it")
    if out is not None:
        check_output(out, made_by="inspect", inputs=[model])
    if outliers:
        _inspect_outliers(model, data, 13.0 if threshold is None else threshold, out, json_)
        return
    from rich.progress import track

    from rankwise.models.spectra import HEADER, as_rows, layer_spectra

    quiet = json_ or not console.is_terminal
    spectra = layer_spectra(
        model,
        target=target or "auto",
        progress=lambda it, n: track(it, "spectra", n, console=console, transient=True, disable=quiet),
    )
    _show(spectra, HEADER, as_rows(spectra), json_)
    if out is not None:
        from rankwise.report.plots import compression as plots

        page = {
            "section": "Maps",
            "title": f"Spectra of {model}",
            "subtitle": f"{len(spectra)} layers",
            "header": HEADER,
            "rows": as_rows(spectra, full=True),
        }
        _draw(out, "spectra", lambda: plots.spectra(spectra), page, json_)


def _inspect_outliers(model: str, data: str | None, threshold: float, out: Path | None, json_: bool) -> None:
    from rankwise.models.spectra import block_outliers

    batches = None
    if data is not None:
        from rankwise.jobs.compress import encoded, inputs, texts_of
        from rankwise.jobs.tasks import TextTask
        from rankwise.models import load_tokenizer

        texts, _ = texts_of(data)
        task = TextTask(kind="causal-lm", tokenizer=load_tokenizer(model), max_length=128)
        batches = inputs(task, encoded(task, texts.head(32), "to weigh outliers by"))
    with console.status("outliers and spectra") if console.is_terminal and not json_ else nullcontext():
        records = block_outliers(model, batches, threshold=threshold)
    header = ["block", "outliers", "draw", "tail"]
    rows = [
        [str(r["block"]), f"{r['outliers']:.4f}%", f"{100 * r['probability']:.1f}%", f"{r['hill_alpha']:.2f}"]
        for r in records
    ]
    _show(records, header, rows, json_)
    if out is not None:
        from rankwise.report.plots import optim as plots

        page = {
            "section": "Blocks",
            "title": f"Outliers of {model}",
            "subtitle": f"{len(records)} blocks, threshold {threshold:g}, {data or 'weights only'}",
            "header": header,
            "rows": rows,
        }
        _draw(out, "outliers", lambda: plots.outliers(records), page, json_)


def _show(records: list[dict], header: list[str], rows: list[list[str]], json_: bool) -> None:
    from rankwise.report.tables import terminal

    if json_:
        print(json.dumps(records))
    else:
        console.print(terminal(header, rows))


def _draw(out: Path, name: str, figure: Callable[[], Figure], page: dict[str, Any], json_: bool) -> None:
    from rankwise.files import whole_folder
    from rankwise.report.page import write_figure

    with whole_folder(out, made_by="inspect") as draft:
        write_figure(draft, name, figure, command=typed(), **page)
    if not json_:
        console.print(f"report    {out}/report.html\nplot      {out}/{name}.png", highlight=False)


@app.command()
def compress(
    model: Annotated[str, typer.Option(help="smollm2, a folder, or a hub id.")],
    out: Annotated[Path, typer.Option(help="Folder to write (replaced as a whole).")],
    ratio: Annotated[float | None, typer.Option(help="Share of all directions to remove.")] = None,
    parameters: Annotated[float | None, typer.Option(help="Parameters left; below 1 a share.")] = None,
    bytes: Annotated[float | None, typer.Option(help="Bytes left, in the dtype written; below 1 a share.")] = None,
    allocation: Annotated[
        str, typer.Option(help="What deals the ranks: energy, top, welore (as in the paper), uniform or owl.")
    ] = "energy",
    min_ratio: Annotated[float, typer.Option(help="Factorise what loses more than this share.")] = 0.5,
    multiple_of: Annotated[int, typer.Option(help="Round ranks up to multiples of this, e.g. 8.")] = 1,
    target: Annotated[str, typer.Option(help="auto, attention, mlp, or layer names.")] = "auto",
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16.", show_default="the checkpoint's")
    ] = None,
    calibrate: Annotated[str | None, typer.Option(help="Texts to calibrate on, e.g. text:nyt.")] = None,
    calibrate_limit: Annotated[int | None, typer.Option(help="Most texts to calibrate on.", show_default="128")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the texts drawn to calibrate on.", show_default="0")] = None,
    data: Annotated[str | None, typer.Option(help="Texts to measure perplexity on.", show_default="text:nyt")] = None,
    measure: Annotated[bool, typer.Option(help="Measure perplexity and speed before and after.")] = True,
    max_length: Annotated[int | None, typer.Option(help="Tokens of a text.", show_default="128")] = None,
    json_: Json = False,
) -> None:
    """Give every matrix the rank its spectrum asks for, and write a smaller model.

    Examples:

    * rankwise compress --model smollm2 --parameters 0.9 --calibrate text:nyt --out small
    * rankwise compress --model smollm2 --ratio 0.3 --allocation welore --no-measure --out small
    """
    from rich.progress import track

    from rankwise.jobs.early import check_compression

    if calibrate is None and (calibrate_limit is not None or seed is not None):
        raise ValueError("--calibrate-limit and --seed are of --calibrate: name the texts")
    if not measure and (data is not None or (max_length is not None and calibrate is None)):
        raise ValueError("--no-measure reads no texts: leave out --data and --max-length, or measure")
    given = {"calibrate_limit": calibrate_limit, "seed": seed, "max_length": max_length}
    given = {k: v for k, v in given.items() if v is not None}
    options = {"ratio": ratio, "parameters": parameters, "bytes": bytes, "method": allocation, "min_ratio": min_ratio}
    options |= {"multiple_of": multiple_of}
    check_compression(model, out, dtype=dtype, **given, **options)
    from rankwise.jobs.compress import Compression, compress_model
    from rankwise.report.page import write_compression
    from rankwise.report.tables import compressed, compression_summary, terminal

    quiet = json_ or not console.is_terminal
    command = typed()

    def report(folder: Path, done: Compression) -> None:
        write_compression(folder, done, model, command)

    done = compress_model(
        model,
        out,
        data=(data or "text:nyt") if measure else None,
        calibrate=calibrate,
        dtype=dtype,
        target=target,
        progress=lambda names, what: track(names, what, console=console, transient=True, disable=quiet),
        on_phase=lambda phase: None if quiet else console.print(phase, style="dim"),
        report=report,
        **given,
        **options,
    )
    if json_:
        print((out / "compression.json").read_text(encoding="utf-8"))
        return
    console.print(terminal(*compressed(done.plan)))
    console.print(terminal(*compression_summary(done)))
    for line in done.told():
        console.print(line, style="dim")
    if done.plan.note:
        said = done.plan.note.replace("min_ratio=", "--min-ratio ").replace("multiple_of=", "--multiple-of ")
        console.print(f"* {said}", style="yellow")
    if not any(c.low_rank for c in done.plan.components):
        lower = "--min-ratio" if multiple_of == 1 else "--min-ratio or --multiple-of"
        console.print(f"* no matrix loses enough to be factorised: raise --ratio, or lower {lower}", style="yellow")
    console.print(f"\nmodel     {out}\nreport    {out}/report.html", highlight=False)


@app.command()
def tokens(
    path: Annotated[Path, typer.Argument(help="A picture, or a folder of them.")],
    out: Annotated[Path, typer.Option(help="Folder for pictures, report.html and tokens.json (replaced as a whole).")],
    model: Annotated[
        str, typer.Option(help="An image classifier or a CLIP: a bundled name, a folder, or a hub id.")
    ] = "vit-cifar10",
    flops: Annotated[float, typer.Option(help="Share of the model's cost that is left.")] = 0.65,
    captions: Annotated[
        str | None, typer.Option(help="What a CLIP chooses from, e.g. 'a photo of a cat,a photo of a dog'.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Of a folder that has several, e.g. test.")] = None,
    limit: Annotated[int, typer.Option(help="Most pictures, chosen by their content.")] = 8,
    json_: Json = False,
) -> None:
    """Which patches of a picture a model needs: kept tokens layer by layer, predictions before and after.

    Examples:

    * rankwise tokens dog.png --out kept
    * rankwise tokens photos --model owner/clip --captions 'a cat,a dog' --flops 0.5 --out kept
    """
    from rankwise.jobs.early import check_tokens

    check_tokens(path, out, model=model, flops=flops, limit=limit)
    from rankwise.jobs.tokens import HEADER, prune_pictures
    from rankwise.report.page import write_tokens
    from rankwise.report.tables import terminal

    command = typed()
    done = prune_pictures(
        path,
        out,
        model=model,
        flops=flops,
        captions=[] if captions is None else names(captions),
        split=split,
        limit=limit,
        report=lambda folder, found: write_tokens(folder, found, command),
    )
    if json_:
        print(json.dumps(done.as_dict(), ensure_ascii=False))
        return
    console.print(terminal(HEADER, done.rows()))
    for note in done.notes:
        console.print(f"* {note}", style="dim")
    console.print(
        f"{done.share:.0%} of the cost; the same said of {done.agreement:.0%} of pictures\n\n"
        f"report    {out}/report.html\npictures  {out}/*.png",
        highlight=False,
    )


@app.command()
def cache(
    model: Annotated[str, typer.Option(help="smollm2, a folder, or a hub id.")],
    texts: Annotated[str, typer.Option(help="Long texts: a file, or whole papers.")] = "text:papers",
    ratios: Annotated[str, typer.Option(help="Shares of key channels to drop.")] = "0,0.2,0.4,0.6",
    tokens: Annotated[int, typer.Option(help="Tokens of a prompt, whose cache is thinned.")] = 2048,
    continued: Annotated[int, typer.Option(help="Tokens that are read after it.")] = 64,
    limit: Annotated[int, typer.Option(help="Most texts, the first that are long enough.")] = 4,
    keep_tokens: Annotated[int | None, typer.Option(help="Tokens that SnapKV keeps.", show_default="all")] = None,
    bits: Annotated[
        int | None, typer.Option(help="Of a number in the thin part: 8 or 4.", show_default="as is")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for cache.json, a plot and a page (replaced).")] = None,
    json_: Json = False,
) -> None:
    """What a thinner key cache (ThinK) saves and costs: bytes, perplexity, next tokens, speed.

    Examples:

    * rankwise cache --model smollm2 --ratios 0,0.2,0.4,0.6 --out runs/cache
    * rankwise cache --model smollm2 --texts papers.jsonl --tokens 1024 --bits 8
    """
    from rankwise.jobs.early import check_caches

    options = {"tokens": tokens, "continued": continued, "limit": limit, "budget": keep_tokens, "bits": bits}
    shares = numbers(ratios, "--ratios")
    check_caches(model, out, ratios=shares, texts=texts, **options)
    from rich.progress import track

    from rankwise.jobs.cache import measure_caches
    from rankwise.report.page import write_caches
    from rankwise.report.tables import caches, terminal

    quiet, command = json_ or not console.is_terminal, typed()
    done = measure_caches(
        model,
        texts,
        out=out,
        ratios=shares,
        each=lambda items, what: track(items, what, console=console, transient=True, disable=quiet),
        report=lambda folder, found: write_caches(folder, found, command),
        **options,
    )
    if json_:
        print(json.dumps(done.as_dict()))
        return
    console.print(terminal(*caches(done)))
    console.print(f"* {done.told()}", style="dim")
    if out is not None:
        console.print(f"report    {out}/report.html\nplot      {out}/cache.png", highlight=False)
