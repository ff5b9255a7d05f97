"""The ``rankwise`` command."""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    help="Spend parameters, memory, compute and examples where the **rank** is.",
    pretty_exceptions_enable=False,
)
console = Console()
errors = Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def run() -> None:
    """Entry point: exit status 0 when what was asked was done, 2 with one clear line when the input was wrong."""
    for category in (UserWarning, FutureWarning, RuntimeWarning):
        warnings.filterwarnings("ignore", category=category)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of kernels that nothing here uses
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        app()
    except KeyboardInterrupt:
        errors.print("interrupted; the same command continues", style="yellow")
        sys.exit(130)
    except Exception as error:
        if os.environ.get("RANKWISE_TRACEBACK") or not isinstance(
            error, ValueError | OSError | ImportError | TypeError
        ):
            raise
        errors.print(f"error: {_explained(error)}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)


def _explained(error: Exception) -> str:
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        return "; ".join(
            f"{'.'.join(map(str, e['loc']))}: {e['msg'].removeprefix('Value error, ')}" for e in error.errors()
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" while writing {error.filename}" if error.filename else ""
        return f"no space left on disk{where}; free some and run the same command again, it continues"
    if isinstance(error, PermissionError):
        return f"no permission to write {error.filename}"
    return str(error)


@app.command()
def adapt(
    config: Annotated[Path | None, typer.Argument(help="YAML file with these options as keys.")] = None,
    model: Annotated[str | None, typer.Option(help="minilm, smollm2, whisper-tiny.en, a folder, or a hub id.")] = None,
    data: Annotated[
        str | None, typer.Option(help="sentiment:DOMAIN, speech:DOMAIN, a csv, tsv, jsonl or parquet file.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="classification, regression, causal-lm, text-to-label or asr.")
    ] = None,
    methods: Annotated[str | None, typer.Option(help="Comma-separated, e.g. lora,s2lora,eva.")] = None,
    budget: Annotated[str | None, typer.Option(help="Trainable parameters: 0.5%, 100k or 400KB.")] = None,
    target: Annotated[str | None, typer.Option(help="auto, attention, mlp, or layer names.")] = None,
    eval: Annotated[str | None, typer.Option(help="Comma-separated corpora to test on as well.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Training runs a method.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples a step, over all processes.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens an example.")] = None,
    train_limit: Annotated[int | None, typer.Option(help="Most training examples.")] = None,
    eval_limit: Annotated[int | None, typer.Option(help="Most examples scored a corpus.")] = None,
    dropout: Annotated[float | None, typer.Option(help="Dropout of the pretrained model.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32 or bf16.")] = None,
    reference: Annotated[str | None, typer.Option(help="full: also fine-tune everything.")] = None,
    optimizer: Annotated[
        str | None, typer.Option(help="Fine-tune everything by adamw, galore, owlore or lisa.")
    ] = None,
    projection_rank: Annotated[int | None, typer.Option(help="Rank of projected gradients.")] = None,
    update_gap: Annotated[int | None, typer.Option(help="Steps between bases (galore, owlore).")] = None,
    active_layers: Annotated[int | None, typer.Option(help="Blocks that train at a time.")] = None,
    interval: Annotated[int | None, typer.Option(help="Steps between draws of blocks.")] = None,
    question: Annotated[str | None, typer.Option(help="Between text and label (text-to-label).")] = None,
    text_column: Annotated[str | None, typer.Option(help="Text column of a data file.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Label column of a data file.")] = None,
    audio_column: Annotated[str | None, typer.Option(help="Audio column of a manifest (asr).")] = None,
    language: Annotated[str | None, typer.Option(help="Language, for a multilingual Whisper.")] = None,
    skip_bad: Annotated[bool | None, typer.Option("--skip-bad", help="Skip and count bad recordings.")] = None,
    silence_stride: Annotated[int | None, typer.Option(help="Share of silence to encode; 1: all.")] = None,
    checkpoint_steps: Annotated[int | None, typer.Option(help="Steps between checkpoints.")] = None,
    learning_rate: Annotated[list[float] | None, typer.Option(help="Grid for all methods; repeat.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder.")] = None,
    json_: Json = False,
) -> None:
    """Adapt a pretrained model by several methods under one budget, side by side.

    A killed run continues when the same command is given again.

    Examples:
    rankwise adapt --data sentiment:movies --methods lora,s2lora --budget 0.5% --out runs/a
    rankwise adapt --task asr --data recordings/manifest.csv --out runs/speech
    rankwise adapt --task causal-lm --data notes.jsonl --optimizer owlore --out runs/whole
    """
    import yaml

    given = {k: v for k, v in locals().items() if k not in ("config", "out", "json_", "yaml") and v is not None}
    for key in ("methods", "eval"):
        if key in given:
            given[key] = [part.strip() for part in given[key].split(",") if part.strip()]
    loaded = _yaml(config, yaml) if config else {}
    folder = out or (Path(loaded["out"]) if "out" in loaded else None)
    if folder is None:
        raise ValueError("no run folder: give --out, or 'out' in the configuration file")
    rates = given.pop("learning_rate", None)
    from rankwise.jobs.adapt import AdaptConfig, Job
    from rankwise.jobs.methods import METHODS
    from rankwise.report.page import write_run
    from rankwise.report.tables import comparison, terminal

    if rates:
        given["learning_rates"] = dict.fromkeys(METHODS, rates)
    settings = AdaptConfig(**{**{k: v for k, v in loaded.items() if k != "out"}, **given})
    with _Progress(quiet=json_) as progress:
        job = Job(settings, folder, on_event=progress.event)
        progress.total(job)
        results = job.run()
    if not job.process.is_main_process:
        return
    write_run(folder, results, "rankwise " + " ".join(_shell(a) for a in sys.argv[1:]))
    if json_:
        print(
            json.dumps(
                {
                    "out": str(folder),
                    "methods": [
                        {k: m.get(k) for k in ("name", "status", "scores", "cost")} for m in results["methods"]
                    ],
                }
            )
        )
        return
    console.print(terminal(*comparison(results)))
    for note in [*results["notes"], *[m["message"] for m in results["methods"] if m["message"]]]:
        console.print(f"* {note}", style="yellow", markup=False)
    console.print(
        f"\nreport    {folder}/report.html\nresults   {folder}/results.json\nadapters  {folder}/adapters/",
        highlight=False,
    )
    if all(not m["trials"] for m in results["methods"]):
        raise ValueError("every method diverged; lower the learning rates")


def _yaml(path: Path, yaml) -> dict:
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"no such configuration file: {path}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{path}: a mapping of options is needed")
    return loaded


def _shell(word: str) -> str:
    import shlex

    return shlex.quote(word)


class _Progress:
    """Live bars on a terminal; a line a finished run elsewhere."""

    def __init__(self, *, quiet: bool) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self.quiet = quiet or int(os.environ.get("RANK", "0")) > 0
        self.live = console.is_terminal and not self.quiet
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not self.live,
            transient=True,
        )
        self.runs = self.bars.add_task("training runs", total=None)
        self.step = self.bars.add_task("…", total=None)

    def __enter__(self) -> _Progress:
        self.bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.bars.stop()

    def total(self, job) -> None:
        from rankwise.jobs.methods import method

        c = job.config
        runs = sum(len(c.learning_rates.get(m, method(m).grid(c.task))) + c.seeds - 1 for m in c.all_methods)
        self.bars.update(self.runs, total=runs)

    def event(self, trial: str, phase: str, step: int, steps: int, loss: float) -> None:
        text = f"{trial} {'' if phase == 'train' else phase}" + (f" loss {loss:.3f}" if loss == loss else "")
        self.bars.update(self.step, description=text[:44].ljust(44), completed=step, total=steps)
        if phase in ("done", "diverged"):
            self.bars.advance(self.runs)
            if not self.live and not self.quiet:
                console.print(f"{trial}: {phase}", highlight=False)


@app.command()
def methods(
    family: Annotated[str | None, typer.Option(help="Only one family.")] = None,
    json_: Json = False,
) -> None:
    """List the 27 methods: what is ready, what is planned.

    Example: rankwise methods --family tuning
    """
    from rich.table import Table

    from rankwise.catalogue import CATALOGUE
    from rankwise.nearest import unknown

    families = {e.family for e in CATALOGUE}
    if family is not None and family not in families:
        raise unknown("family", family, families)
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
    rankwise inspect minilm --out runs/spectra
    rankwise inspect smollm2 --outliers --data text:nyt
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
        from rankwise.report.page import render

        plots.save(plots.spectra(spectra), out / "spectra.png")
        render(
            out / "report.html",
            title=f"Spectra of {model}",
            subtitle=f"{len(spectra)} linear layers",
            command=f"rankwise inspect {model}",
            header=HEADER,
            rows=as_rows(spectra, full=True),
            sections=[("Maps", [("spectra", plots.spectra(spectra))])],
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
        from rankwise.report.page import render

        plots.save(plots.outliers(records), out / "outliers.png")
        render(
            out / "report.html",
            title=f"Outliers of {model}",
            subtitle=f"{len(records)} blocks, threshold {threshold:g}, {data or 'weights only'}",
            command=f"rankwise inspect {model} --outliers",
            header=header,
            rows=rows,
            sections=[("Blocks", [("outliers", plots.outliers(records))])],
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
    rankwise compress --model smollm2 --ratio 0.3 --out small
    rankwise compress --model smollm2 --parameters 0.8 --calibrate text:nyt --out small
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
    write_compression(out, done, model, "rankwise " + " ".join(_shell(a) for a in sys.argv[1:]))
    if json_:
        print((out / "compression.json").read_text())
        return
    console.print(terminal(*compressed(done.plan)))
    console.print(terminal(*compression_summary(done)))
    if not any(c.low_rank for c in done.plan.components):
        console.print("* no matrix loses enough to be factorised: raise --ratio, or lower --min-ratio", style="yellow")
    console.print(f"\nmodel     {out}\nreport    {out}/report.html", highlight=False)


@app.command()
def export(
    adapter: Annotated[Path, typer.Argument(help="Adapter folder, e.g. runs/first/adapters/s2lora.")],
    out: Annotated[Path, typer.Option(help="Folder to write (replaced as a whole).")],
    to: Annotated[
        str, typer.Option(help="lora: plain LoRA; merged: the whole model; dense: a compressed model's.")
    ] = "lora",
    pad: Annotated[bool, typer.Option(help="One rank for all layers (8, 16, …), for serving.")] = False,
    max_rank: Annotated[int | None, typer.Option(help="Truncate by SVD; the error is printed.")] = None,
    model: Annotated[str | None, typer.Option(help="Base model, where the adapter's own is not here.")] = None,
    json_: Json = False,
) -> None:
    """Turn an adapter into plain LoRA or a merged model that stock tools load.

    Example: rankwise export runs/first/adapters/s2lora --to lora --out exported
    """
    from rankwise.jobs.serving import export_dense, export_merged, load_adapter
    from rankwise.nearest import unknown

    if to not in ("lora", "merged", "dense"):
        raise unknown("export format", to, ("lora", "merged", "dense"))
    if to == "dense":
        export_dense(adapter, out)
        print(json.dumps({"out": str(out), "format": "dense"}) if json_ else f"{out}: dense model")
        return
    adapted = load_adapter(adapter, model=model)
    if to == "merged":
        export_merged(adapted, out)
        done = {"out": str(out), "format": "merged"}
    else:
        from rankwise.tuning.export import export_lora

        written = export_lora(adapted, out, pad=pad, max_rank=max_rank)
        done = {
            "out": str(out),
            "format": "lora",
            "layers": len(written.ranks),
            "ranks": written.ranks,
            "error": written.error,
        }
    if json_:
        print(json.dumps(done))
    elif to == "lora":
        ranks = sorted(written.ranks.values())
        console.print(f"{out}: plain LoRA, {done['layers']} layers, ranks {ranks[0]} to {ranks[-1]}", highlight=False)
        if max_rank is not None:
            console.print(f"largest relative error of truncation: {done['error']:.3g}", highlight=False)
    else:
        console.print(f"{out}: merged model", highlight=False)


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    method: Annotated[str, typer.Option(help="Whose adapter.")],
    text: Annotated[list[str] | None, typer.Option(help="Text; repeat for several.")] = None,
    audio: Annotated[list[Path] | None, typer.Option(help="Recording; repeat for several.")] = None,
    attention: Annotated[
        Path | None, typer.Option(help="Draw where LAMA's heads look: a PNG a text in this folder.")
    ] = None,
    json_: Json = False,
) -> None:
    """Classify (or continue) texts, or transcribe recordings, with a run's adapter.

    Examples:
    rankwise predict runs/first --method eva --text "A quiet triumph."
    rankwise predict runs/speech --method s2lora --audio hello.wav
    """
    from rankwise.jobs.serving import predict_audio, predict_texts

    texts = text or [] if audio else text or [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not texts and not audio:
        raise ValueError("nothing to predict: give --text or --audio, or lines of text on standard input")
    predictions = [
        *(predict_texts(run, method, texts) if texts else []),
        *(predict_audio(run, method, audio) if audio else []),
    ]
    if attention is not None:
        from rankwise.jobs.serving import attention_maps
        from rankwise.report import plots

        for i, (tokens, weights, title) in enumerate(attention_maps(run, method, texts), 1):
            plots.save(plots.attention(tokens, weights, title=title), attention / f"attention-{i}.png")
    if json_:
        print(json.dumps(predictions, ensure_ascii=False))
        return
    for p in predictions:
        if "label" in p:
            console.print(f"{p['label']}  {p['probability']:.3f}  {p['text']}", markup=False, highlight=False)
        else:
            shown = next(p[k] for k in ("value", "continuation", "transcript") if k in p)
            console.print(shown, markup=False, highlight=False)


@app.command()
def bench(
    recipe: Annotated[str | None, typer.Argument(help="Recipe to run; see --list.")] = None,
    part: Annotated[str | None, typer.Option(help="Only one part of it, e.g. speech.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the recipes.")] = False,
    seeds: Annotated[int, typer.Option(help="Training runs a variant.")] = 5,
    out: Annotated[Path, typer.Option(help="Where runs and results are kept.")] = Path("runs/bench"),
    json_: Json = False,
) -> None:
    """Measure a paper's claims on real data, and print the verdicts.

    Example: rankwise bench eva --seeds 5
    """
    import importlib

    from rankwise.bench import RECIPES
    from rankwise.nearest import unknown
    from rankwise.report.tables import terminal

    if list_ or recipe is None:
        if json_:
            print(json.dumps({n: r._asdict() for n, r in RECIPES.items()}))
        else:
            rows = [[n, ", ".join(r.parts), r.about] for n, r in RECIPES.items()]
            console.print(terminal(["recipe", "parts", "what it measures"], rows))
        return
    if recipe not in RECIPES:
        raise unknown("recipe", recipe, RECIPES)
    parts = RECIPES[recipe].parts
    if part is not None and part not in parts:
        raise unknown(f"part of {recipe}", part, parts)
    for module in [parts[part]] if part else parts.values():
        with _Progress(quiet=json_) as progress:
            evidence = importlib.import_module(f"rankwise.bench.{module}").run(
                out / module, seeds=seeds, on_event=progress.event
            )
        evidence.write(out / f"{module}.json")
        if json_:
            print((out / f"{module}.json").read_text())
        else:
            _print_evidence(evidence)
            console.print(f"results   {out}/{module}.json", highlight=False)


def _print_evidence(evidence) -> None:
    from rankwise.report.tables import terminal

    console.print(f"{evidence.title}\n{evidence.setting}", markup=False, highlight=False)
    console.print(terminal(evidence.header, evidence.rows))
    for claim in evidence.claims:
        verdict = "[green]HELD[/green]    " if claim.held else "[red]NOT HELD[/red]"
        console.print(f"{verdict} {claim.text}\n         {claim.found}", highlight=False)
