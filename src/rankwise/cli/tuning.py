"""Adapt a model, export and use what was adapted."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from rankwise.cli.app import Jobs, Json, Progress, Scheduler, app, console, continues, names, numbers, typed
from rankwise.jobs.adapt.config import DEFAULTS, AdaptConfig
from rankwise.reading import read_yaml


def _with_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for every key of `AdaptConfig`, in the place of its ``given``."""
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            parameters[1:1] = [_option(name) for name in AdaptConfig.model_fields if name != "learning_rates"]
        else:
            parameters.append(parameter)
    command.__signature__ = inspect.Signature(parameters)
    return command


def _option(name: str) -> inspect.Parameter:
    """An option whose help and default are the field's; not given, it leaves a configuration file's value alone."""
    field, flag = AdaptConfig.model_fields[name], "--" + name.replace("_", "-")
    kinds = (field.annotation, *get_args(field.annotation))
    kind = next((k for k in (bool, int, float) if k in kinds), str)
    flags = f"{flag}/--no-{flag[2:]}" if kind is bool else flag
    about = field.description or ""
    described = typer.Option(
        flags, help=f"{about[:1].upper()}{about[1:]}.", show_default=_shown(name, field.default) or False
    )
    return inspect.Parameter(
        name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=Annotated[kind | None, described]
    )


def _shown(name: str, default: Any) -> str:
    """A default as it is typed; where a task has its own, that too."""
    own = {task: d[name] for task, d in DEFAULTS.items() if d.get(name, default) != default}
    parts = [_typed(default), *(f"{task}: {_typed(value)}" for task, value in own.items())]
    return "; ".join(p for p in parts if p)


def _typed(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None else str(value).lower() if isinstance(value, bool) else repr(value).strip("'")


@app.command()
@_with_options
def adapt(
    config: Annotated[Path | None, typer.Argument(help="YAML file with these options as keys.")] = None,
    learning_rates: Annotated[
        str | None, typer.Option(help="Grid for all methods, e.g. 1e-4,3e-4; each method has its own.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder.")] = None,
    jobs: Jobs = 1,
    scheduler: Scheduler = None,
    json_: Json = False,
    **given: Any,
) -> None:
    """Adapt a pretrained model by several methods under one budget, side by side.

    A killed run continues when the same command is given again.

    Examples:

    * rankwise adapt --data sentiment:movies --methods lora,s2lora --budget 0.5% --out runs/a
    * rankwise adapt --train a.csv --test b.csv --out runs/b
    * rankwise adapt --task asr --data recordings/manifest.csv --out runs/speech
    * rankwise adapt --task causal-lm --data notes.jsonl --optimizer owlore --out runs/whole
    """
    settings, folder = _settings(config, given, learning_rates, out)
    continues()
    from rankwise.jobs.adapt.inputs import check_early

    inputs = check_early(settings, folder)  # before torch and PEFT are imported, which takes long
    from rankwise.jobs.adapt.job import Job
    from rankwise.parallel import spread_over
    from rankwise.report.page import write_run

    with Progress(quiet=json_) as progress, spread_over(jobs=jobs, scheduler=scheduler):
        job = Job(settings, folder, inputs=inputs, on_event=progress.event)
        progress.total(job)
        results = job.run()
    if job.process.is_main_process:
        write_run(folder, results, typed())
        _show(results, folder, json_=json_)
    if not any(m["trials"] for m in results["methods"] if m["name"] in settings.asked):
        raise ValueError("every method diverged; lower the learning rates")


def _settings(
    config: Path | None, given: dict[str, Any], learning_rates: str | None, out: Path | None
) -> tuple[AdaptConfig, Path]:
    """The file's keys, options before them, and the run folder."""
    from rankwise.jobs.methods import METHODS

    loaded = read_yaml(config) if config else {}
    if not isinstance(loaded, dict):
        raise ValueError(f"{config}: a mapping of options is needed")
    named = {k: v for k, v in given.items() if v is not None}
    for key in ("methods", "eval"):
        if key in named:
            named[key] = names(named[key])
    if learning_rates:
        named["learning_rates"] = dict.fromkeys(METHODS, numbers(learning_rates, "--learning-rates"))
    folder = out or (Path(str(loaded["out"])) if loaded.get("out") else None)
    if folder is None:
        raise ValueError("no run folder: give --out, or 'out' in the configuration file")
    return AdaptConfig(**{**{str(k): v for k, v in loaded.items() if k != "out"}, **named}), folder


def _show(results: dict, folder: Path, *, json_: bool) -> None:
    from rankwise.report.tables import comparison, terminal

    if json_:
        methods = [{k: m.get(k) for k in ("name", "status", "scores", "cost")} for m in results["methods"]]
        print(json.dumps({"out": str(folder), "methods": methods}))
        return
    console.print(terminal(*comparison(results)))
    for note in [*results["notes"], *[m["message"] for m in results["methods"] if m["message"]]]:
        console.print(f"* {note}", style="yellow")
    for what, where in (("report", "report.html"), ("results", "results.json"), ("adapters", "adapters/")):
        console.print(f"{what:9} {folder}/{where}", soft_wrap=True)


@app.command()
def export(
    adapter: Annotated[Path, typer.Argument(help="Adapter folder, e.g. runs/first/adapters/s2lora.")],
    out: Annotated[Path, typer.Option(help="Folder to write (appears when it is whole).")],
    to: Annotated[
        str, typer.Option(help="lora: plain LoRA; merged: the whole model; dense: a compressed model's.")
    ] = "lora",
    pad: Annotated[
        bool | None,
        typer.Option(help="One rank for all layers (8, 16, …), which every reader scales alike; the default."),
    ] = None,
    max_rank: Annotated[int | None, typer.Option(help="Truncate by SVD; the error is printed.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Of a merged model: float32 (as it was scored) if unset, bfloat16, float16.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Base model, where the adapter's own is not here.")] = None,
    json_: Json = False,
) -> None:
    """Turn an adapter into plain LoRA or a merged model that stock tools load.

    Classes and tokenizer go with it.

    Examples:

    * rankwise export runs/first/adapters/s2lora --out plain-lora
    * rankwise export runs/first/adapters/s2lora --to merged --out merged
    """
    from rankwise.nearest import unknown

    if to not in ("lora", "merged", "dense"):
        raise unknown("export format", to, ("lora", "merged", "dense"))
    if to != "lora" and (pad is not None or max_rank is not None):
        raise ValueError(f"--pad and --max-rank are for --to lora, not {to}")
    if to != "merged" and dtype is not None:
        raise ValueError(f"--dtype is for --to merged, not {to}")
    if to == "dense" and model is not None:
        raise ValueError("--model is the base model of an adapter; a compressed model has none")
    if not adapter.is_dir():
        raise ValueError(f"{adapter} holds no adapter_config.json: no such folder")
    from rankwise.jobs.adapt.adapters import check_export

    check_export(adapter, out, to=to, model=model)  # before torch and PEFT are imported, which takes long
    from rankwise.jobs import serving

    if to == "lora":
        written = serving.export_plain(adapter, out, model=model, pad=pad is not False, max_rank=max_rank)
        done = {"layers": len(written.ranks), "ranks": written.ranks, "error": written.error}
    else:
        done = {}
        if to == "merged":
            serving.export_merged(adapter, out, model=model, dtype=dtype or "float32")
        else:
            serving.export_dense(adapter, out)
    if json_:
        print(json.dumps({"out": str(out), "format": to, **done}))
        return
    words = {"lora": "plain LoRA", "merged": "merged model", "dense": "dense model"}[to]
    ranks = sorted(done["ranks"].values()) if to == "lora" else []
    console.print(f"{out}: {words}" + (f", {len(ranks)} layers, ranks {ranks[0]} to {ranks[-1]}" if ranks else ""))
    if max_rank is not None:
        console.print(f"largest relative error of truncation: {done['error']:.3g}")


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="Run folder, or the folder of an adapter.")],
    adapter: Annotated[str | None, typer.Option(help="Whose adapter, e.g. eva, where a run has several.")] = None,
    text: Annotated[list[str] | None, typer.Option(help="Text; repeat for several.")] = None,
    audio: Annotated[list[Path] | None, typer.Option(help="Recording; repeat for several.")] = None,
    data: Annotated[Path | None, typer.Option(help="A csv, tsv, jsonl, json or parquet file of them.")] = None,
    column: Annotated[str | None, typer.Option(help="Its column of texts (recordings); as in training.")] = None,
    out: Annotated[Path | None, typer.Option(help="File for the rows of --data with what is predicted.")] = None,
    model: Annotated[str | None, typer.Option(help="Base model, where the adapter's own is not here.")] = None,
    attention: Annotated[
        Path | None, typer.Option(help="Draw where LAMA's heads look: a PNG a text in this folder.")
    ] = None,
    json_: Json = False,
) -> None:
    """Classify (or continue) texts, or transcribe recordings, with an adapter's folder alone.

    Examples:

    * rankwise predict runs/first --adapter eva --text "A quiet triumph."
    * rankwise predict runs/first/adapters/eva --data new.csv --out labelled.csv
    * rankwise predict runs/speech --adapter s2lora --audio hello.wav
    """
    if data is None and (out or column):
        raise ValueError("--out and --column belong to --data, a file of texts")
    if attention is not None and (audio or data):
        raise ValueError("--attention draws texts: give --text")
    if not run.is_dir():
        raise ValueError(f"{run} is not a run, nor an adapter: no such folder")
    texts = _texts(text, audio, data)
    from rankwise.data.tables import write_rows
    from rankwise.files import check_output
    from rankwise.jobs import predictions
    from rankwise.jobs.adapt.adapters import adapter_folder, check_base

    folder = adapter_folder(run, adapter)
    if out is not None:
        predictions.check_out(out, data=data)
    if attention is not None:
        check_output(attention, made_by="predict", inputs=[run])
    rows, asked = predictions.read(folder, data, column=column) if data else ([], texts or audio or [])
    check_base(folder, model)
    from rankwise.jobs import serving

    trained = serving.load_trained(folder, model=model)
    track = _tracked("recordings" if audio else "texts", quiet=json_)
    found = serving.answers(trained, [str(a) for a in asked], recordings=bool(audio), progress=track)
    if attention is not None:
        _draw(serving.attention_maps(trained, texts), attention, run)
    if data is not None:
        found = predictions.joined(rows, found)
    else:
        found = [{"audio" if audio else "text": str(a), **answer} for a, answer in zip(asked, found, strict=True)]
    if out is not None:
        write_rows(out, found)
    if json_:
        print(json.dumps({"out": str(out), "rows": len(found)} if out else found))
    elif out is not None:
        console.print(f"{out}: {len(found)} rows, {', '.join(list(found[0])[len(rows[0]) :])} added", soft_wrap=True)
    else:
        for text_, answer in zip(asked, found, strict=True):
            console.print(_line(str(text_), answer), soft_wrap=True)


def _texts(text: list[str] | None, audio: list[Path] | None, data: Path | None) -> list[str]:
    """Texts of the command line or of standard input; none where a file or recordings are given."""
    given = [name for name, value in (("--text", text), ("--audio", audio), ("--data", data)) if value]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)}: give one of them")
    if given:
        return text or []
    lines = [] if sys.stdin.isatty() else [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not lines:
        raise ValueError("nothing to predict: give --text, --audio or --data, or lines of text on standard input")
    return lines


def _draw(maps: Iterable[tuple[list[str], Any, str]], folder: Path, run: Path) -> None:
    from rankwise.files import whole_folder
    from rankwise.report.plots.compression import attention
    from rankwise.report.plots.shared import save

    with whole_folder(folder, made_by="predict", inputs=[run]) as draft:
        for i, (tokens, weights, title) in enumerate(maps, 1):
            save(attention(tokens, weights, title=title), draft / f"attention-{i}.png")


def _tracked(what: str, *, quiet: bool) -> Callable[[Any, int], Any]:
    from rich.progress import track

    hidden = quiet or not console.is_terminal
    return lambda parts, n: track(parts, what, n, console=console, transient=True, disable=hidden)


def _line(asked: str, answer: dict[str, Any]) -> str:
    said = {k.removeprefix("predicted_"): v for k, v in answer.items()}
    if "probability" in said:
        return f"{said['label']}  {said['probability']:.3f}  {asked}"
    return str(next(said[k] for k in ("value", "continuation", "transcript") if k in said))
