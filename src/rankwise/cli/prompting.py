"""Choose examples and answers for a language model; compare corpora by the depth of their texts."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from rankwise.cli.app import Json, app, console, typed

Model = Annotated[str, typer.Option("--model", help="smollm2, a folder, a hub id; with --server the name it serves.")]
Server = Annotated[str, typer.Option(help="Address of an OpenAI-compatible server, e.g. http://localhost:8000/v1.")]
Style = Annotated[str, typer.Option(help="chat (turns) or text (Question: … Answer: …).")]


@app.command()
def select(
    pool: Annotated[Path, typer.Option(help="Examples: JSON lines with question, answer and perhaps rationale.")],
    queries: Annotated[Path, typer.Option(help="JSON lines with question.")],
    out: Annotated[Path, typer.Option(help="JSON lines to write: question, prompt, examples, dropped.")],
    method: Annotated[str, typer.Option(help="dq-lore, knn, bm25, depth, or random.")] = "dq-lore",
    k: Annotated[int, typer.Option("-k", help="Examples a prompt.")] = 8,
    candidates: Annotated[int, typer.Option(help="dq-lore: nearest examples that are re-ranked.")] = 64,
    rank: Annotated[int, typer.Option(help="dq-lore: directions kept, below --candidates.")] = 16,
    train: Annotated[bool, typer.Option("--train", help="dq-lore: train the retriever on the pool first.")] = False,
    retriever: Annotated[str, typer.Option(help="Encoder: minilm, a folder, or a hub id.")] = "minilm",
    order: Annotated[str, typer.Option(help="ascending (most similar last) or descending.")] = "ascending",
    style: Style = "text",
    instruction: Annotated[str, typer.Option(help="What stands before the examples.")] = "",
    context: Annotated[int, typer.Option(help="Tokens of prompt and answer; 0: what the model says it takes.")] = 0,
    max_new_tokens: Annotated[int, typer.Option(help="Room for the answer.")] = 64,
    model: Model = "smollm2",
    server: Server = "",
    seed: Annotated[int, typer.Option(help="Of random examples and of training.")] = 0,
    json_: Json = False,
) -> None:
    """Write the few-shot prompt of every query, with examples chosen for it.

    Example: rankwise select --pool train.jsonl --queries test.jsonl --method dq-lore --out prompts.jsonl

    What the language model says is kept beside --out, so that the same command continues after an interruption.
    """
    from rankwise.files import write_text
    from rankwise.jobs.prompting import prompts_for
    from rankwise.prompting.examples import read_examples

    given, asked = read_examples(pool), read_examples(queries, answers=False)
    lm = _language_model(model, server, out.with_name(out.name + ".record"), context or None)
    with console.status("choosing examples") if console.is_terminal and not json_ else nullcontext():
        found = prompts_for(
            [q.question for q in asked], given, lm, method=method, k_examples=k, candidates=candidates, rank=rank,
            train=train, retriever=retriever, order=order, style=style, instruction=instruction,
            max_new_tokens=max_new_tokens, seed=seed,
        )  # fmt: skip
    write_text(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found.rows))
    dropped = sum(len(row["dropped"]) for row in found.rows)
    summary = {"queries": len(asked), "pool": len(given), "method": method, "dropped": dropped, **found.counts}
    if json_:
        print(json.dumps(summary))
        return
    for note in found.notes:
        console.print(f"note: {note}", highlight=False)
    console.print(f"{len(asked)} prompts of up to {k} examples from {len(given)} by {method}", highlight=False)
    if dropped:
        console.print(f"{dropped} examples did not fit into the context and were dropped", highlight=False)
    for name, n in found.counts.items():
        console.print(f"{name.replace('_', ' ')}: {n}", highlight=False)
    console.print(f"prompts   {out}", highlight=False)


@app.command()
def answer(
    question: Annotated[str, typer.Option(help="One question …")] = "",
    choices: Annotated[
        list[str] | None, typer.Option(help="… and its candidates: give the option once for each.")
    ] = None,
    questions: Annotated[Path | None, typer.Option(help="Or JSON lines with question and choices.")] = None,
    method: Annotated[
        str, typer.Option(help="equilibrium, er-g, g (generator), d (discriminator), mi (both), or sc.")
    ] = "equilibrium",
    samples: Annotated[int, typer.Option(help="Without choices: answers to draw as candidates.")] = 8,
    length: Annotated[str, typer.Option(help="A candidate's log-probability: sum, or mean per token.")] = "sum",
    style: Style = "chat",
    model: Model = "smollm2",
    server: Server = "",
    out: Annotated[Path | None, typer.Option(help="JSON lines to write: question, answer, scores.")] = None,
    json_: Json = False,
) -> None:
    """Choose among answers: the one on which the model's generating and judging sides agree.

    Examples:

    * rankwise answer --question "What is the capital of France?" --choices Paris --choices Rome

    * rankwise answer --questions quiz.jsonl --out answers.jsonl
    """
    from rankwise.files import write_text
    from rankwise.prompting.answers import Choices, propose_answers, rank_answers
    from rankwise.report.tables import answers, terminal

    if (questions is None) == (not question):
        raise ValueError("give either --question (with --choices) or --questions FILE")
    asked = _quiz(questions) if questions is not None else [(question, tuple(choices or ()))]
    record = out.with_name(out.name + ".record") if out is not None else None
    lm = _language_model(model, server, record, None)
    with console.status("asking") if console.is_terminal and not json_ else nullcontext():
        complete = [
            Choices(question=q, candidates=c or propose_answers(lm, q, samples=samples, style=style)) for q, c in asked
        ]
        found = rank_answers(lm, complete, method=method, length=length, style=style)
    rows = [{"question": r.question, "answer": r.best, "order": r.order, "scores": r.scores} for r in found]
    if out is not None:
        write_text(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    if json_:
        for row in rows:
            print(json.dumps(row, ensure_ascii=False))
        return
    for r in found[:20]:
        console.print(terminal(*answers(r)))
        console.print(f"{method}: {r.best}\n", highlight=False, markup=False)
    if len(found) > 20:
        console.print(f"… and {len(found) - 20} more", highlight=False)
    if out is not None:
        console.print(f"answers   {out}", highlight=False)


def _quiz(path: Path) -> list[tuple[str, tuple[str, ...]]]:
    from rankwise.reading import json_lines

    out = []
    for number, row in json_lines(path):
        question, choices = row.get("question"), row.get("choices") or []
        if not isinstance(question, str) or not isinstance(choices, list):
            raise ValueError(f"{path}, line {number}: a question and, in a list, choices are needed")
        out.append((question, tuple(map(str, choices))))
    if not out:
        raise ValueError(f"{path} has no questions: a JSON object with question and choices a line is needed")
    return out


def _language_model(model: str, server: str, record: Path | None, context: int | None):
    from rankwise.prompting.language_model import Recorded

    if server:
        from rankwise.prompting.server_model import ServerModel

        lm = ServerModel(model, server, context=context)
    else:
        from rankwise.prompting.transformers_model import TransformersModel

        lm = TransformersModel(model)
        lm.context = context or lm.context
    return Recorded(lm, record) if record is not None else lm


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
