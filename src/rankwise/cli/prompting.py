"""Choose examples and answers for a language model; compare corpora by the depth of their texts."""

from __future__ import annotations

import json
import warnings
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from rankwise.cli.app import Json, app, console, continues, typed

Model = Annotated[str, typer.Option("--model", help="smollm2, a folder, a hub id; with --server the name it serves.")]
Server = Annotated[str, typer.Option(help="Address of an OpenAI-compatible server, e.g. http://localhost:8000/v1.")]
Style = Annotated[str, typer.Option(help="chat (turns) or text (Question: … Answer: …).")]
KeyVariable = Annotated[
    str | None, typer.Option(help="With --server: environment variable with the key.", show_default="RANKWISE_API_KEY")
]
Timeout = Annotated[float | None, typer.Option(help="With --server: seconds a request may take.", show_default="120")]
Concurrency = Annotated[int | None, typer.Option(help="With --server: requests under way.", show_default="4")]
NewLimit = Annotated[
    bool, typer.Option("--max-completion-tokens", help="With --server: call the limit so, as OpenAI's newer models do.")
]
ExtraBody = Annotated[str, typer.Option(help="With --server: JSON for every request, e.g. '{\"top_k\": 20}'.")]


@app.command()
def select(
    pool: Annotated[Path, typer.Option(help="Examples: a table with question, answer and perhaps rationale.")],
    queries: Annotated[Path, typer.Option(help="A table with question; what else stands there is kept.")],
    out: Annotated[Path, typer.Option(help="JSON lines to write: question, prompt, examples, dropped.")],
    selector: Annotated[str, typer.Option(help="dq-lore, knn, bm25, depth, or random.")] = "dq-lore",
    examples: Annotated[int, typer.Option("--examples", "-k", min=1, help="Examples a prompt.")] = 8,
    candidates: Annotated[
        int | None, typer.Option(help="dq-lore: nearest that are re-ranked.", show_default="64")
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="dq-lore: directions kept.", show_default="a quarter of the candidates")
    ] = None,
    train_retriever: Annotated[
        bool, typer.Option("--train-retriever", help="dq-lore: train the retriever on the pool first.")
    ] = False,
    retriever: Annotated[
        str | None,
        typer.Option(
            help="dq-lore, knn, depth: encoder, a bundled name, a folder, or a hub id.", show_default="minilm"
        ),
    ] = None,
    order: Annotated[str, typer.Option(help="ascending (most similar last) or descending.")] = "ascending",
    style: Style = "text",
    instruction: Annotated[str, typer.Option(help="What stands before the examples.")] = "",
    context: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of prompt and answer.", show_default="what the model says it takes"),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Room for the answer.")] = 64,
    question_column: Annotated[str, typer.Option(help="What the questions' column is called.")] = "question",
    answer_column: Annotated[str, typer.Option(help="What the answers' column is called.")] = "answer",
    rationale_column: Annotated[str, typer.Option(help="What the rationales' column is called.")] = "rationale",
    model: Model = "smollm2",
    server: Server = "",
    key_variable: KeyVariable = None,
    timeout: Timeout = None,
    concurrency: Concurrency = None,
    max_completion_tokens: NewLimit = False,
    extra_body: ExtraBody = "",
    seed: Annotated[int | None, typer.Option(help="Of random examples and of training.", show_default="0")] = None,
    json_: Json = False,
) -> None:
    """Write the few-shot prompt of every query, with examples chosen for it.

    Examples:

    * rankwise select --pool train.jsonl --queries test.jsonl --out prompts.jsonl
    * rankwise select --pool train.csv --queries test.csv --selector bm25 -k 4 --out prompts.jsonl

    Tables are csv, tsv, JSON lines or lists, or parquet. What the language model says is kept beside --out, so that the
    same command continues after an interruption. A query too long for the model gets no prompt; the status is 2 then.
    """
    from rankwise.files import check_file, write_text
    from rankwise.jobs.early import check_selection
    from rankwise.prompting.examples import Columns, read_examples

    own = {"candidates": candidates, "rank": rank, "train": train_retriever, "retriever": retriever, "seed": seed}
    check_selection(selector, order=order, style=style, max_new_tokens=max_new_tokens, options=own)
    check_file(out, inputs=[pool, queries])
    columns = Columns(question=question_column, answer=answer_column, rationale=rationale_column)
    given, asked = read_examples(pool, columns=columns), read_examples(queries, answers=False, columns=columns)
    lm = _language_model(
        model, server, out, [pool, queries], context=context, key_variable=key_variable, timeout=timeout,
        concurrency=concurrency, max_completion_tokens=max_completion_tokens, extra_body=extra_body,
    )  # fmt: skip
    from rankwise.jobs.prompting import prompts_for

    with console.status("choosing examples") if console.is_terminal and not json_ else nullcontext():
        found = prompts_for(
            asked, given, lm, method=selector, k_examples=examples, order=order, style=style,
            instruction=instruction, max_new_tokens=max_new_tokens, **own,
        )  # fmt: skip
    write_text(out, _lines_of(found.rows))
    dropped = sum(len(row["dropped"]) for row in found.rows)
    if json_:
        counts = {"queries": len(asked), "pool": len(given), "selector": selector, "dropped": dropped, **found.counts}
        print(json.dumps({**counts, "failed": len(found.failed), "notes": found.notes}))
    else:
        for note in found.notes:
            console.print(f"note: {note}")
        console.print(f"{len(asked)} prompts of up to {examples} examples from {len(given)} by {selector}")
        if dropped:
            console.print(f"{dropped} examples did not fit into the context and were dropped")
        for name, n in found.counts.items():
            console.print(f"{name.replace('_', ' ')}: {n}")
        console.print(f"prompts   {out}")
    _told(found.failed, f"the other prompts are in {out}")


@app.command()
def answer(
    question: Annotated[str, typer.Option(help="One question, with its --choices.")] = "",
    choices: Annotated[list[str] | None, typer.Option(help="Its candidates; give the option once for each.")] = None,
    questions: Annotated[
        Path | None, typer.Option(help="JSON lines with question and choices, instead; what else stands there is kept.")
    ] = None,
    ranker: Annotated[
        str, typer.Option(help="equilibrium, er-g, g (generator), d (discriminator), mi (both), or sc.")
    ] = "equilibrium",
    samples: Annotated[
        int | None, typer.Option(help="Without choices: answers drawn as candidates.", show_default="8")
    ] = None,
    length: Annotated[str, typer.Option(help="A candidate's log-probability: sum, or mean per token.")] = "sum",
    style: Style = "chat",
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="YAML with what is asked, in words of your own: any of correct, incorrect, "
            "plain, judge (all name {question}, judge also {candidate}) and verdicts.",
        ),
    ] = None,
    model: Model = "smollm2",
    server: Server = "",
    key_variable: KeyVariable = None,
    timeout: Timeout = None,
    concurrency: Concurrency = None,
    max_completion_tokens: NewLimit = False,
    extra_body: ExtraBody = "",
    out: Annotated[Path | None, typer.Option(help="JSON lines to write: question, answer, order, scores.")] = None,
    json_: Json = False,
) -> None:
    """Choose among answers: the one on which the model's generating and judging sides agree.

    Examples:

    * rankwise answer --question "What is the capital of France?" --choices Paris --choices Rome

    * rankwise answer --questions quiz.jsonl --out answers.jsonl

    With --out what the language model says is kept beside it, so that the same command continues after an interruption.
    A question that cannot be answered gets an error in its row; the status is 2 then.
    """
    from rankwise.files import check_file, write_text
    from rankwise.jobs.early import check_answering

    check_answering(ranker, length=length, style=style, samples=8 if samples is None else samples)
    if (questions is None) == (not question):
        raise ValueError("give either --question (with --choices) or --questions FILE")
    if choices and questions is not None:
        raise ValueError("--choices belong to --question; in a file they stand beside each question")
    asked = _quiz(questions) if questions is not None else [(question, tuple(choices or ()), {})]
    if samples is not None and all(c for _, c, _ in asked):
        raise ValueError("--samples is for questions without choices, and there is none")
    inputs = [path for path in (questions, prompts) if path is not None]
    if out is not None:
        check_file(out, inputs=inputs)
    from rankwise.jobs.prompting import answers_for, read_prompts
    from rankwise.report.tables import answers, terminal

    own = read_prompts(prompts, style) if prompts is not None else None
    lm = _language_model(
        model, server, out, inputs, key_variable=key_variable, timeout=timeout, concurrency=concurrency,
        max_completion_tokens=max_completion_tokens, extra_body=extra_body,
    )  # fmt: skip

    with console.status("asking") if console.is_terminal and not json_ else nullcontext():
        drawn = 8 if samples is None else samples
        found = answers_for(asked, lm, method=ranker, samples=drawn, length=length, style=style, prompts=own)
    if out is not None:
        write_text(out, _lines_of(found.rows))
    if json_:
        print("".join(json.dumps(row, default=str) + "\n" for row in found.rows), end="")
    else:
        for r in found.ranked[:20]:
            console.print(terminal(*answers(r)))
            console.print(f"{ranker}: {r.best}\n")
        if len(found.ranked) > 20:
            console.print(f"… and {len(found.ranked) - 20} more")
        if out is not None:
            console.print(f"answers   {out}")
    _told(found.failed, f"the others are in {out}" if out is not None else "the others are answered")


def _quiz(path: Path) -> list[tuple[str, tuple[str, ...], dict[str, object]]]:
    from rankwise.prompting.examples import table_of

    out = []
    table = table_of(path)
    for number, row in table.rows:
        question, choices = row.pop("question", None), row.pop("choices", None) or []
        if not isinstance(question, str) or not question.strip() or not isinstance(choices, list):
            raise ValueError(f"{table.at(number)}: a question and, in a list, choices are needed (as in JSON lines)")
        out.append((question, tuple(map(str, choices)), dict(row)))
    if not out:
        raise ValueError(f"{path} has no questions: a JSON object with question and choices a line is needed")
    return out


def _lines_of(rows: list[dict]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)


def _told(failed: list[str], rest: str) -> None:
    """End with what could not be done, if anything."""
    if failed:
        more = f" and {len(failed) - 3} more" if len(failed) > 3 else ""
        raise ValueError(f"{'; '.join(failed[:3])}{more}; {rest}")


def _language_model(
    model: str, server: str, out: Path | None, inputs: list[Path], *, context: int | None = None, **asked: Any
):
    """The model, with a record beside ``out`` where there is one."""
    from rankwise.files import check_file
    from rankwise.prompting.language_model import Recorded
    from rankwise.reading import parse_json

    given = {k: v for k, v in asked.items() if v not in (None, False, "")}
    if given and not server:
        raise ValueError(f"--{next(iter(given)).replace('_', '-')} is for --server, which is not given")
    if "extra_body" in given:
        given["extra_body"] = parse_json(str(given["extra_body"]), "--extra-body")
    record = out.with_name(out.name + ".record") if out is not None else None
    if record is not None:
        check_file(record, inputs=inputs)
    if server:
        from rankwise.prompting.server_model import ServerModel

        lm = ServerModel(model, server, context=context, **given)
    else:
        from rankwise.prompting.transformers_model import TransformersModel

        lm = TransformersModel(model)
        lm.context = context or lm.context
    if record is None:
        return lm
    continues()
    return Recorded(lm, record)


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="Texts, one a line: depth is taken with respect to these.")],
    second: Annotated[Path, typer.Argument(help="Texts, one a line.")],
    distance: Annotated[str, typer.Option(help="cosine or chord.")] = "cosine",
    p_value: Annotated[
        str, typer.Option(help="permutation (exact), or ranksum (quick and cautious, for very many texts).")
    ] = "permutation",
    model: Annotated[str, typer.Option(help="Encoder: minilm, a folder, or a hub id.")] = "minilm",
    extremes: Annotated[int, typer.Option(min=0, help="Central and outlying texts to show of each.")] = 3,
    seed: Annotated[int, typer.Option(help="Of the permutations and the bootstrap.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for plot and report.html.")] = None,
    json_: Json = False,
) -> None:
    """Tell whether two sets of texts differ, and which texts are central or lie outside.

    Examples:

    * rankwise compare human.txt synthetic.txt
    * rankwise compare human.txt synthetic.txt --p-value ranksum --out runs/compare
    """
    from rankwise.files import check_output
    from rankwise.jobs.early import check_comparison

    check_comparison(distance=distance, p_value=p_value)
    if out is not None:
        check_output(out, made_by="compare", inputs=[first, second])
    texts = [_lines(p) for p in (first, second)]
    from rankwise.models.embedding import embed
    from rankwise.prompting.depth import depth_rank_test
    from rankwise.report.tables import corpora, extreme_texts, terminal

    encoder = partial(embed, model=model)
    with (
        console.status("comparing") if console.is_terminal and not json_ else nullcontext(),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always", UserWarning)
        by: Any = p_value  # one of those that `check_comparison` takes
        found = depth_rank_test(*texts, distance=distance, method=by, encoder=encoder, seed=seed)
    notes = sorted({str(w.message) for w in caught if issubclass(w.category, UserWarning)})
    names = [first.stem, second.stem] if first.stem != second.stem else [str(first), str(second)]
    table, q = corpora(found, names, texts), f"Q = {found.q:.3f} [{found.q_low:.3f}, {found.q_high:.3f}]"
    if json_:
        print(
            json.dumps(
                {
                    **{k: getattr(found, k) for k in ("q", "q_low", "q_high", "q_pooled", "statistic", "pvalue")},
                    "notes": notes,
                    "depths": {"first": found.depths_f.tolist(), "second": found.depths_g.tolist()},
                }
            )
        )
    else:
        console.print(terminal(*table))
        console.print(
            f"\n{q}: the chance that a text of {names[1]} lies deeper in {names[0]} than one of its own (½: no "
            "difference)\n"
            f"rank sum W = {found.statistic:.2f}, p = {found.pvalue:.3g} ({p_value}, one-sided)\n"
        )
        for note in notes:
            console.print(f"note: {note}\n", style="yellow")
        console.print(terminal(*extreme_texts(found, names, texts, extremes)))
    if out is not None:
        from rankwise.files import whole_folder
        from rankwise.report.page import write_figure
        from rankwise.report.plots.prompting import depths

        whole = extreme_texts(found, names, texts, extremes, width=None)
        with whole_folder(out, made_by="compare", inputs=[first, second]) as draft:
            write_figure(
                draft,
                "depths",
                lambda: depths(found.depths_f, found.depths_g, names),
                section="Depths",
                title=f"{names[0]} and {names[1]} compared",
                subtitle=f"{q}, p = {found.pvalue:.3g} ({p_value})",
                command=typed(),
                header=table[0],
                rows=table[1],
                caption="Depth with respect to the first: high is central. Q below ½: the second lies further out.",
                details="\n".join("  ".join(row) for row in whole[1]),
                details_title="Extreme texts",
            )
        if not json_:
            console.print(f"\nreport    {out}/report.html\nplot      {out}/depths.png")


def _lines(path: Path) -> list[str]:
    from rankwise.reading import read_text

    lines = [line.strip() for line in read_text(path).split("\n") if line.strip()]  # texts may hold U+2028 and the like
    if not lines:
        raise ValueError(f"{path} has no text: one a line is needed")
    return lines
