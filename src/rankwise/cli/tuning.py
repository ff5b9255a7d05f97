"""Adapt a model, export and use what was adapted."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from rankwise.cli.app import Json, Progress, app, console, continues, typed
from rankwise.reading import read_yaml


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

    * rankwise adapt --data sentiment:movies --methods lora,s2lora --budget 0.5% --out runs/a
    * rankwise adapt --task asr --data recordings/manifest.csv --out runs/speech
    * rankwise adapt --task causal-lm --data notes.jsonl --optimizer owlore --out runs/whole
    """
    given = {k: v for k, v in locals().items() if k not in ("config", "out", "json_") and v is not None}
    for key in ("methods", "eval"):
        if key in given:
            given[key] = [part.strip() for part in given[key].split(",") if part.strip()]
    loaded = read_yaml(config) if config else {}
    if not isinstance(loaded, dict):
        raise ValueError(f"{config}: a mapping of options is needed")
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
    with Progress(quiet=json_) as progress:
        job = Job(settings, folder, on_event=progress.event)
        progress.total(job)
        continues()
        results = job.run()
    if not job.process.is_main_process:
        return
    write_run(folder, results, typed())
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

    * rankwise predict runs/first --method eva --text "A quiet triumph."
    * rankwise predict runs/speech --method s2lora --audio hello.wav
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
