"""Few-shot prompts for a file of queries, by any selector; answers to a file of questions."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from rankwise.jobs.early import check_answering, check_selection
from rankwise.models.embedding import TextEncoder
from rankwise.nearest import unknown
from rankwise.prompting.answers import (
    AnswerPrompts,
    Choices,
    RankedAnswers,
    Unanswerable,
    fits,
    propose_answers,
    rank_answers,
)
from rankwise.prompting.dq_lore import DQLoReSelector, scored_pairs, train_retriever
from rankwise.prompting.examples import Example, TooLong, as_row, few_shot
from rankwise.prompting.language_model import LanguageModel
from rankwise.prompting.selectors import BM25Selector, DepthSelector, KNNSelector, RandomSelector, Selector
from rankwise.reading import read_yaml


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """What goes into the file, a mapping a query, what should be known of it, and what could not be done."""

    rows: list[dict]
    counts: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What goes into the file, a mapping a question; the answered questions; what could not be done."""

    rows: list[dict]
    ranked: list[RankedAnswers]
    failed: list[str]


def prompts_for(
    queries: Sequence[Example],
    pool: Sequence[Example],
    model: LanguageModel,
    *,
    method: str = "dq-lore",
    k_examples: int = 8,
    order: str = "ascending",
    style: str = "text",
    instruction: str = "",
    max_new_tokens: int = 64,
    **options: object,
) -> Prompts:
    """Select examples for every query and build prompts that fit into the model's context.

    Parameters are those of the selectors, `train_retriever` and `few_shot`; ``options``, where they are not None or
    False, are those of the method: ``candidates``, ``rank``, ``train``, ``retriever``, ``seed``. A query that does not
    fit gets no prompt, and an ``error``.

    Raises
    ------
    ValueError
        An unknown method, an option that the method has not, or what the selector refuses.
    """
    chosen = check_selection(method, order=order, style=style, max_new_tokens=max_new_tokens, options=options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        selector = _selector(method, pool, model, chosen, k_examples, order, style, max_new_tokens)
        examples = selector.fit(pool).select_batch([q.question for q in queries])
    rows, failed = [], []
    for number, (query, shots) in enumerate(zip(queries, examples, strict=True), 1):
        row = {k: v for k, v in as_row(query).items() if v != ""}
        try:
            built = few_shot(
                query.question, shots, model=model, max_new_tokens=max_new_tokens, instruction=instruction,
                style=style, least_similar_first=order == "ascending",
            )  # fmt: skip
            used, dropped = ([as_row(e) for e in part] for part in (built.examples, built.dropped))
            rows.append(joined(row, {"prompt": built.prompt, "examples": used, "dropped": dropped}))
        except TooLong as error:
            failed.append(f"query {number}: {error}")
            rows.append(joined(row, {"prompt": None, "examples": [], "dropped": [], "error": str(error)}))
    counts = {"asked_alone": selector.fallbacks_} if isinstance(selector, DQLoReSelector) else {}
    return Prompts(rows=rows, counts=counts, notes=sorted({str(w.message) for w in caught}), failed=failed)


def answers_for(
    questions: Sequence[tuple[str, tuple[str, ...], Mapping[str, object]]],
    model: LanguageModel,
    *,
    method: str = "equilibrium",
    samples: int = 8,
    length: str = "sum",
    style: str = "chat",
    prompts: AnswerPrompts | None = None,
) -> Answered:
    """Choose an answer to every question: text, candidates (none: some are drawn), and what else is known of it.

    A question that does not fit, or to which the model writes nothing, gets no answer, and an ``error``.

    Raises
    ------
    ValueError
        An unknown method, length or style, or what a question or its candidates are refused for.
    """
    check_answering(method, length=length, style=style, samples=samples)
    given = [Choices(question=q, candidates=c) if c else None for q, c, _ in questions]
    complete: dict[int, Choices] = {}
    errors: dict[int, str] = {}
    for i, (question, _, _) in enumerate(questions):
        asked = given[i]
        try:
            if asked is None:
                proposed = propose_answers(model, question, samples=samples, style=style, prompts=prompts)
                asked = Choices(question=question, candidates=proposed)
            if not fits(model, asked, style=style, prompts=prompts):
                raise Unanswerable(f"{question[:60]!r} and its candidates do not fit into {model.context} tokens")
            complete[i] = asked
        except Unanswerable as error:
            errors[i] = str(error)
    found: dict[int, RankedAnswers] = {}
    if complete:
        told = {"method": method, "length": length, "style": style, "prompts": prompts}
        ranked = rank_answers(model, list(complete.values()), **told)
        found = dict(zip(complete, ranked, strict=True))
    rows = []
    for i, (question, _, more) in enumerate(questions):
        row: dict[str, object] = {"answer": None, "error": errors.get(i)}
        if r := found.get(i):
            row = {"answer": r.best, "order": r.order, "scores": r.scores}
        rows.append(joined({"question": question, **more}, row))
    failed = [f"question {i + 1}: {error}" for i, error in errors.items()]
    return Answered(rows=rows, ranked=list(found.values()), failed=failed)


def read_prompts(path: Path, style: str) -> AnswerPrompts:
    """What is asked, from a YAML file with any of correct, incorrect, plain, judge and verdicts; the rest is as usual.

    Raises
    ------
    ValueError
        Another key, or a prompt that does not name what it is about.
    """
    given = read_yaml(path)
    parts = [f.name for f in fields(AnswerPrompts)]
    if not isinstance(given, dict) or not given:
        raise ValueError(f"{path}: a mapping with any of {', '.join(parts)} is needed")
    if strange := next((key for key in given if key not in parts), None):
        raise unknown(f"part of {path}", str(strange), parts)
    try:
        return replace(AnswerPrompts.usual(style), **given)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def joined(given: Mapping[str, object], found: Mapping[str, object]) -> dict[str, object]:
    """One row: what was given, and what was found; a given key of the same name is kept as ``given_…``."""
    return {f"given_{k}" if k in found else k: v for k, v in given.items()} | dict(found)


def _selector(
    method: str,
    pool: Sequence[Example],
    model: LanguageModel,
    chosen: Mapping,
    k_examples: int,
    order: str,
    style: str,
    max_new_tokens: int,
) -> Selector:
    common = {"k_examples": k_examples, "order": order}
    retriever = chosen.get("retriever", "minilm")
    if method == "bm25":
        return BM25Selector(**common)
    if method == "random":
        return RandomSelector(seed=chosen.get("seed", 0), **common)
    if method != "dq-lore":
        return {"knn": KNNSelector, "depth": DepthSelector}[method](encoder=TextEncoder(retriever), **common)
    if chosen.get("train"):
        encoder = train_retriever(pool, scored_pairs(pool, model), encoder=retriever, seed=chosen.get("seed", 0))
    else:
        encoder = TextEncoder(retriever)
    own = {k: chosen[k] for k in ("candidates", "rank") if k in chosen}
    return DQLoReSelector(model, encoder, style=style, max_new_tokens=max_new_tokens, **own, **common)
