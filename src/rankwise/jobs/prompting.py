"""Few-shot prompts for a file of queries, by any selector."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

from rankwise.models.embedding import TextEncoder
from rankwise.nearest import unknown
from rankwise.prompting.dq_lore import DQLoReSelector, scored_pairs, train_retriever
from rankwise.prompting.examples import Example, as_row, few_shot
from rankwise.prompting.language_model import LanguageModel
from rankwise.prompting.selectors import BM25Selector, DepthSelector, KNNSelector, RandomSelector, Selector

METHODS = ("dq-lore", "knn", "bm25", "depth", "random")


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """What goes into the file, a mapping a query, and what should be known of it."""

    rows: list[dict]
    counts: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def prompts_for(
    questions: Sequence[str],
    pool: Sequence[Example],
    model: LanguageModel,
    *,
    method: str = "dq-lore",
    k_examples: int = 8,
    candidates: int = 64,
    rank: int = 16,
    train: bool = False,
    retriever: str = "minilm",
    order: str = "ascending",
    style: str = "text",
    instruction: str = "",
    max_new_tokens: int = 64,
    seed: int = 0,
) -> Prompts:
    """Select examples for every question and build prompts that fit into the model's context.

    Parameters are those of the selectors, `train_retriever` and `few_shot`.

    Raises
    ------
    ValueError
        An unknown method, or what the selector refuses.
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        common = {"k_examples": k_examples, "order": order}
        if method == "dq-lore":
            selector: Selector = _dq_lore(
                pool, model, train, retriever, seed, candidates=candidates, rank=rank, style=style,
                max_new_tokens=max_new_tokens, **common,
            )  # fmt: skip
        elif method == "bm25":
            selector = BM25Selector(**common)
        elif method == "random":
            selector = RandomSelector(seed=seed, **common)
        else:
            selector = {"knn": KNNSelector, "depth": DepthSelector}[method](encoder=TextEncoder(retriever), **common)
        chosen = selector.fit(pool).select_batch(questions)
    rows = []
    for question, examples in zip(questions, chosen, strict=True):
        built = few_shot(
            question, examples, model=model, max_new_tokens=max_new_tokens, instruction=instruction, style=style,
            least_similar_first=order == "ascending",
        )  # fmt: skip
        used, dropped = ([as_row(e) for e in part] for part in (built.examples, built.dropped))
        rows.append({"question": question, "prompt": built.prompt, "examples": used, "dropped": dropped})
    counts = {}
    if isinstance(selector, DQLoReSelector):
        counts["asked_alone"] = selector.fallbacks_
    return Prompts(rows=rows, counts=counts, notes=sorted({str(w.message) for w in caught}))


def _dq_lore(
    pool: Sequence[Example], model: LanguageModel, train: bool, retriever: str, seed: int, **options
) -> DQLoReSelector:
    if train:
        encoder = train_retriever(pool, scored_pairs(pool, model), encoder=retriever, seed=seed)
    else:
        encoder = TextEncoder(retriever)
    return DQLoReSelector(model, encoder, **options)
