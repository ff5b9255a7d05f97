"""Models that forget on request."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rankwise.cli.app import Json, RowsOut, check_rows_out, console, continues, errors, print_json
from rankwise.cli.continual import continual

if TYPE_CHECKING:
    from rankwise.jobs.unlearning import Forgotten

State = Annotated[Path, typer.Argument(help="Folder of forgotten requests.")]
Name = Annotated[str, typer.Option(help="Of the request, by which it can be taken back.")]


@continual.command()
def forget(
    data: Annotated[Path, typer.Option(help="Rows with question and answer (or prompt and completion), perhaps "
                                       "choices.")],
    name: Name,
    out: Annotated[Path, typer.Option(help="Folder of forgotten requests, new or with earlier ones.")],
    model: Annotated[str | None, typer.Option(help="smollm2, a folder, a hub id; of earlier requests theirs.")] = None,
    retained: Annotated[Path | None, typer.Option(help="Rows that should stay known: measured before and after.")]
    = None,
    utility: Annotated[Path | None, typer.Option(help="Rows of general use, measured too; twenty facts by default.")]
    = None,
    answers: Annotated[str | None, typer.Option(help="Learned instead: refusal, random, or released (random, perhaps "
                                                "the true one).", show_default="refusal")] = None,
    shared: Annotated[bool, typer.Option("--shared", help="One adapter for all requests, as released.")] = False,
    router: Annotated[str | None, typer.Option(help="soft, hard, released, released-tofu or off.",
                                               show_default="soft")] = None,
    score: Annotated[str | None, typer.Option(help="Of the detectors: standardised or released.",
                                              show_default="standardised")] = None,
    encoder: Annotated[str | None, typer.Option(help="Of the detectors: minilm, a folder, a hub id.",
                                                show_default="minilm")] = None,
    encoder_steps: Annotated[int | None, typer.Option(min=0, help="Of tuning the encoder on the request.",
                                                      show_default="0")] = None,
    block_rank: Annotated[int | None, typer.Option(help="By default up to 8, so that a request is at most 1 % of "
                                             "the model.")] = None,
    style: Annotated[str | None, typer.Option(help="chat (turns) or text (as it stands).", show_default="chat")] = None,
    steps: Annotated[int | None, typer.Option(help="Of training.", show_default="100")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows a step.", show_default="16")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="At the start.", show_default="0.001")] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens of a question and its answer.",
                                                   show_default="256")] = None,
    keep_texts: Annotated[bool, typer.Option("--keep-texts", help="Keep the forgotten texts, to measure them after "
                                             "later requests.")] = False,
    seed: Annotated[int | None, typer.Option(help="Of all draws.", show_default="0")] = None,
    json_: Json = False,
) -> None:  # fmt: skip
    """Make a language model forget what a file asks about, without its other data (O3).

    One small block a request, which a detector of the request's own kind of texts switches on; any other question gets
    the plain model. Cut short, the same command goes on. The folder logs what was asked when, of which data by hash,
    and what came of it; it holds the texts only with --keep-texts.

    Examples:

    * rankwise continual forget --model smollm2 --data request.jsonl --name req-1 --out state
    * rankwise continual forget --data second.jsonl --name req-2 --retained rest.jsonl --out state
    """
    from rankwise.jobs.early import check_forgetting

    options: dict[str, Any] = {
        "answers": answers, "adapter": "shared" if shared else None, "router": router, "score": score,
        "encoder_steps": encoder_steps, "rank": block_rank, "style": style, "steps": steps, "batch_size": batch_size,
        "learning_rate": learning_rate, "max_length": max_length, "keep_texts": keep_texts or None, "seed": seed,
    }  # fmt: skip
    given: list[tuple[str, Path | None]] = [("retained", retained), ("utility", utility)]
    measured = {what: path for what, path in given if path is not None}
    check_forgetting(data, out, name=name, model=model, measured=measured, **options)
    continues()
    from rankwise.cli.app import Progress
    from rankwise.jobs.unlearning import forget_file

    with Progress(quiet=json_) as progress:
        done = forget_file(
            data, out, name=name, model=model, measured=measured, encoder=encoder, **options,
            on_step=lambda step, of, loss: progress.event(name, "train", step, of, loss),
        )  # fmt: skip
    _print(done, out, json_)


@continual.command()
def relearn(state: State, name: Name, json_: Json = False) -> None:
    """Take a request back: the model answers as if it had never been.

    Examples:

    * rankwise continual relearn state --name req-1
    * rankwise continual relearn state --name req-1 --json
    """
    from rankwise.jobs.early import check_requests

    check_requests(state)
    from rankwise.jobs.unlearning import relearn_request

    _print(relearn_request(state, name=name), state, json_)


@continual.command("ask")
def ask_(
    state: State,
    text: Annotated[list[str] | None, typer.Option(help="A question; give the option once for each.")] = None,
    data: Annotated[Path | None, typer.Option(help="Rows with question or prompt, instead.")] = None,
    model: Annotated[str | None, typer.Option(help="Where the model is, if it was moved.")] = None,
    encoder: Annotated[str | None, typer.Option(help="Where the detectors' encoder is, if it was moved.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens of an answer at most.")] = 64,
    out: RowsOut = None,
    json_: Json = False,
) -> None:
    """Ask the model that has forgotten; says by which request a question was known, if by any.

    Examples:

    * rankwise continual ask state --text "Who wrote the letter?"
    * rankwise continual ask state --data questions.jsonl --out answers.jsonl
    """
    from rankwise.jobs.early import check_asking

    texts = text or []
    check_asking(state, texts=texts, data=data, model=model, max_new_tokens=max_new_tokens)
    check_rows_out(out, run=state, data=data or state / "o3.json")
    from rankwise.data.tables import write_rows
    from rankwise.jobs.unlearning import ask
    from rankwise.report.tables import terminal

    with console.status("answering") if console.is_terminal and not json_ else nullcontext():
        said = ask(state, texts=texts, data=data, model=model, encoder=encoder, max_new_tokens=max_new_tokens)
    if out is not None:
        write_rows(out, said)
    if json_:
        print_json(said)
    elif out is None:
        cells = [[r["question"], r["answer"], r["request"] or "", f"{r['weight']:.2f}"] for r in said]
        console.print(terminal(["question", "answer", "known by", "weight"], cells))
    else:
        console.print(f"answers   {out}")


def _print(done: Forgotten, out: Path, json_: bool) -> None:
    if json_:
        print_json(done.as_dict())
        return
    from rankwise.report.tables import terminal

    for note in done.notes:
        errors.print(f"note: {note}", style="yellow", soft_wrap=True)
    header, rows = done.table()
    if rows:
        console.print(terminal(header, rows))
        told = f"{done.entry['rows']} rows; {100 * done.entry['share']:.2f} % of the model"
        console.print(f"\n{told}; told from general texts with AUROC {done.entry['separation']:.3f}")
    console.print(f"forgotten {', '.join(done.requests) or 'nothing'}\nstate     {out}\nlog       {out}/log.json")
