"""VideoICL: a few examples at a time, until the model is sure.

The pool's items are ranked by their likeness to the query, and the best ``rounds · shots`` kept. Round t = 1, 2, …
shows items ``(t - 1) shots + 1 … t · shots`` and the query, and takes the answer's confidence,

    min-max    c = min_j max_w p(w | x, a_<j)        (over the answer's tokens j)

If ``c > threshold`` the answer stands; else the next round; after the last one the most confident answer is returned.
With features of the media V and of the question T an item's likeness is ``α cos(V, V_i) + (1 - α) cos(T, T_i)``.

Nothing here knows of video: a query is a list of chat messages' content, of whatever modality the model reads.

Source: Kim, Park, Lee, Yeo & Hwang, "VideoICL", CVPR 2025, arXiv 2412.02186.

What people get wrong: the released script shows the same first examples in every round, and counts the token that ends
the answer as part of it. Both are mended here; ``include_special=True`` gives the second as released. The script shows
a round's most alike item first (``order="descending"``); here it comes last, next to the query. Its frames have at most
224² pixels in examples and 384² in the query, 16 and 32 of them, one a second, as `VideoModel` has by default.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rankwise.nearest import unknown
from rankwise.prompting.depth import unit_rows
from rankwise.prompting.language_model import Generation, Message, Sampling, TextGenerator
from rankwise.prompting.names import ORDERS
from rankwise.prompting.selectors import embedded

__all__ = ["Answer", "Item", "IterativeICL", "SimilarityIndex"]

CONFIDENCES = ("min-max", "mean", "product", "margin")
Features = Callable[[list], ArrayLike]


@dataclass(frozen=True, kw_only=True)
class Item:
    """A question about something, and its answer.

    Attributes
    ----------
    question : str
        What is asked about the media.
    answer : str
        Its answer; empty for a query.
    media : object
        What a chat message's content holds beside the text, e.g. ``{"type": "video", "path": …}``; None for text alone.

    Examples
    --------
    >>> from rankwise.prompting import Item
    >>> query = Item(question="What happens?", media={"type": "video", "path": "clip.mp4"})
    >>> query.media["path"], query.answer
    ('clip.mp4', '')
    """

    question: str
    answer: str = ""
    media: object = None


@dataclass(frozen=True, kw_only=True)
class Round:
    """One try: which items were shown, what was asked and what came back; tokens read and written.

    Examples
    --------
    >>> import numpy as np
    >>> from types import SimpleNamespace
    >>> from rankwise.prompting import Generation, Item, IterativeICL, SimilarityIndex
    >>> sure = Generation(text="Lima", tokens=("Lima",), logprobs=(-0.1,), top_logprobs=(-0.1,), special=(False,),
    ...                   prompt_tokens=9)
    >>> model = SimpleNamespace(name="toy", context=None, generate=lambda prompts, sampling: [sure] * len(prompts))
    >>> capitals = {"Capital of Norway?": "Oslo", "Capital of Chile?": "Santiago"}
    >>> pool = [Item(question=question, answer=capital) for question, capital in capitals.items()]
    >>> index = SimilarityIndex(text=lambda texts: np.array([[len(text), 1.0] for text in texts])).fit(pool)
    >>> (only,) = IterativeICL(model, index, shots=1, rounds=2).answer(Item(question="Capital of Peru?")).trace
    >>> only.shown, only.text, round(only.confidence, 2), only.tokens
    ((1,), 'Lima', 0.9, 10)
    """

    shown: tuple[int, ...]
    prompt: list[Message]
    text: str
    confidence: float
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the model ended with.

    Attributes
    ----------
    text : str
        The answer that was kept.
    confidence : float
        0 to 1 (``margin``: of probabilities).
    rounds : int
        How often the model was asked.
    examples : tuple of int
        Positions of the items that were shown with the answer that was kept.
    trace : tuple of Round
        Every try, in order.
    tokens : int
        Tokens read and written, in all rounds together.

    Examples
    --------
    >>> import numpy as np
    >>> from types import SimpleNamespace
    >>> from rankwise.prompting import Generation, Item, IterativeICL, SimilarityIndex
    >>> unsure = Generation(text="Lima", tokens=("Lima",), logprobs=(-2.0,), top_logprobs=(-1.5,), special=(False,),
    ...                     prompt_tokens=9)
    >>> model = SimpleNamespace(name="toy", context=None, generate=lambda prompts, sampling: [unsure] * len(prompts))
    >>> capitals = {"Capital of Norway?": "Oslo", "Capital of Chile?": "Santiago"}
    >>> pool = [Item(question=question, answer=capital) for question, capital in capitals.items()]
    >>> index = SimilarityIndex(text=lambda texts: np.array([[len(text), 1.0] for text in texts])).fit(pool)
    >>> answer = IterativeICL(model, index, shots=1, rounds=2).answer(Item(question="Capital of Peru?"))
    >>> answer.text, answer.rounds, round(answer.confidence, 2)  # all examples were shown, one after the other
    ('Lima', 2, 0.22)
    """

    text: str
    confidence: float
    rounds: int
    examples: tuple[int, ...]
    trace: tuple[Round, ...]
    tokens: int


class SimilarityIndex:
    """Items by likeness.

    Parameters
    ----------
    text : callable, optional
        Questions to ``(n, d)``; the bundled MiniLM by default. Not called where ``alpha`` is 1.
    media : callable, optional
        Media to ``(n, d)``; without it the questions alone decide.
    alpha : float
        α, the share of the media in an item's likeness, in [0, 1].

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.prompting import Item, SimilarityIndex
    >>> pool = [Item(question="Capital of Norway?", answer="Oslo"), Item(question="Why?", answer="Because.")]
    >>> index = SimilarityIndex(text=lambda texts: np.array([[len(text), 9.0] for text in texts])).fit(pool)
    >>> index.rank([Item(question="Who?"), Item(question="Capital of Peru?")]).tolist()
    [[1, 0], [0, 1]]
    """

    def __init__(self, text: Features | None = None, media: Features | None = None, *, alpha: float = 0.5) -> None:
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha={alpha} is outside [0, 1]")
        self.text, self.media, self.alpha = text, media, alpha if media is not None else 0.0

    def fit(self, items: Sequence[Item]) -> SimilarityIndex:
        """Take the pool; its features are computed once."""
        if not len(items):
            raise ValueError("the pool is empty: there are no examples to show")
        self.items = list(items)
        self._features = self._of(self.items)
        return self

    def rank(self, queries: Sequence[Item], k: int | None = None) -> NDArray[np.intp]:
        """``(m, k)`` positions, most alike first, ties by position; all of them by default."""
        likeness = sum(
            share * (mine @ pool.T)
            for (share, mine), (_, pool) in zip(self._of(list(queries)), self._features, strict=True)
        )
        # rounded, so that ties are ties however many queries are multiplied together
        return np.argsort(-np.round(np.asarray(likeness), 9), axis=1, kind="stable")[:, :k]

    def _of(self, items: list[Item]) -> list[tuple[float, NDArray]]:
        parts: list[tuple[float, NDArray]] = []
        if self.alpha > 0 and self.media is not None:
            media = [i.media for i in items]
            parts.append((self.alpha, unit_rows(_features(self.media(media), len(media)), "the media's features")))
        if self.alpha < 1:
            questions = embedded([i.question for i in items], self.text).astype(float)
            parts.append((1 - self.alpha, unit_rows(questions, "the questions' features")))
        return parts


class IterativeICL:
    """The loop.

    Parameters
    ----------
    model : TextGenerator
        Of whatever modality the items have, e.g. `VideoModel`.
    index : SimilarityIndex
        The pool, fitted.
    shots : int
        How many items a round shows.
    rounds : int
        How many rounds there are at most.
    threshold : float
        In [0, 1]: above it an answer stands. Tune it on validation data: models differ in how sure they are.
    confidence : {"min-max", "mean", "product", "margin"} or callable
        Least of the likeliest tokens' probabilities; geometric mean, or product, of the chosen ones; the first token's
        lead; or a function of a `Generation`.
    max_new_tokens : int
        Tokens of an answer at most.
    instruction : str
        The system turn; empty for none.
    include_special : bool
        Whether the end of text counts among the answer's tokens, as in the released code.
    order : {"ascending", "descending"}
        A round's most alike item last, next to the query; or first, as the released code has it.

    Raises
    ------
    ValueError
        Numbers out of range, an unknown confidence or order, an index that is not fitted.

    Warns
    -----
    UserWarning
        More rounds than the pool has items for; queries whose only like is themselves, which are asked without one.

    Examples
    --------
    >>> import numpy as np
    >>> from types import SimpleNamespace
    >>> from rankwise.prompting import Generation, Item, IterativeICL, SimilarityIndex
    >>> sure = Generation(text="Lima", tokens=("Lima",), logprobs=(-0.1,), top_logprobs=(-0.1,), special=(False,),
    ...                   prompt_tokens=9)
    >>> # a stand-in for TransformersModel, ServerModel or VideoModel
    >>> model = SimpleNamespace(name="toy", context=None, generate=lambda prompts, sampling: [sure] * len(prompts))
    >>> capitals = {"Capital of Norway?": "Oslo", "Capital of Chile?": "Santiago"}
    >>> pool = [Item(question=question, answer=capital) for question, capital in capitals.items()]
    >>> index = SimilarityIndex(text=lambda texts: np.array([[len(text), 1.0] for text in texts])).fit(pool)
    >>> answer = IterativeICL(model, index, shots=1, rounds=2, threshold=0.8).answer(Item(question="Capital of Peru?"))
    >>> answer.text, answer.rounds, answer.examples
    ('Lima', 1, (1,))
    """

    def __init__(
        self,
        model: TextGenerator,
        index: SimilarityIndex,
        *,
        shots: int = 2,
        rounds: int = 4,
        threshold: float = 0.5,
        confidence: str | Callable[[Generation], float] = "min-max",
        max_new_tokens: int = 20,
        instruction: str = "",
        include_special: bool = False,
        order: str = "ascending",
    ) -> None:
        if not hasattr(index, "items"):
            raise ValueError("the index has no items yet: fit it on the pool first")
        if order not in ORDERS:
            raise unknown("order", order, ORDERS)
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold={threshold} is outside [0, 1]")
        if shots < 1 or rounds < 1:
            raise ValueError(f"shots={shots} and rounds={rounds}; both at least 1")
        if isinstance(confidence, str) and confidence not in CONFIDENCES:
            raise unknown("confidence", confidence, CONFIDENCES)
        available = -(-len(index.items) // shots)
        if rounds > available:
            warnings.warn(f"rounds={rounds} of {shots} shots need more than {len(index.items)} items", stacklevel=2)
        self.model, self.index, self.shots, self.rounds = model, index, shots, min(rounds, available)
        self.threshold, self.confidence, self.instruction = threshold, confidence, instruction
        self.sampling, self.include_special = Sampling(max_new_tokens=max_new_tokens), include_special
        self.order = order

    def answer(self, query: Item) -> Answer:
        """For one query."""
        return self.answer_batch([query])[0]

    def answer_batch(self, queries: Sequence[Item]) -> list[Answer]:
        """For many: in every round all that are still undecided go to the model together. An item that is the query
        itself is not shown."""
        if isinstance(queries, Item):
            raise ValueError("one query was given to a method for many: use answer")
        if not queries:
            return []
        ranked = [self._shown(q, row) for q, row in zip(queries, self.index.rank(queries), strict=True)]
        if alone := sum(not r for r in ranked):
            warnings.warn(f"{alone} queries are asked without an item: the pool holds nothing else", stacklevel=2)
        traces: list[list[Round]] = [[] for _ in queries]
        open_ = list(range(len(queries)))
        for t in range(self.rounds):
            shown = {i: ranked[i][t * self.shots : (t + 1) * self.shots] for i in open_ if ranked[i] or not t}
            open_ = [i for i in shown if shown[i] or not t]
            prompts = {i: self.prompt(queries[i], shown[i]) for i in open_}
            for i, found in zip(open_, self.model.generate([prompts[i] for i in open_], self.sampling), strict=True):
                sure = self.sureness(found)
                tokens = found.prompt_tokens + len(found.tokens)
                text = found.text.strip()
                traces[i].append(Round(shown=shown[i], prompt=prompts[i], text=text, confidence=sure, tokens=tokens))
            open_ = [i for i in open_ if not traces[i][-1].confidence > self.threshold]
            if not open_:
                break
        return [self._ended(trace) for trace in traces]

    def prompt(self, query: Item, shown: Sequence[int]) -> list[Message]:
        """Chat turns of the items shown, in their order, and of the query."""
        turns: list[Message] = [{"role": "system", "content": self.instruction}] if self.instruction else []
        for i in reversed(shown) if self.order == "ascending" else shown:
            item = self.index.items[i]
            turns.append({"role": "user", "content": _content(item)})
            turns.append({"role": "assistant", "content": item.answer})
        turns.append({"role": "user", "content": _content(query)})
        return turns

    def _shown(self, query: Item, row: NDArray) -> tuple[int, ...]:
        def same(item: Item) -> bool:
            return item.question == query.question and item.media == query.media

        return tuple(int(j) for j in row if not same(self.index.items[j]))[: self.shots * self.rounds]

    def sureness(self, found: Generation) -> float:
        """The answer's confidence; 0 of an empty one, or where it is not a number."""
        if callable(self.confidence):
            value = float(self.confidence(found))
        else:
            value = confidence(found, self.confidence, include_special=self.include_special)
        return value if math.isfinite(value) else 0.0

    @staticmethod
    def _ended(trace: list[Round]) -> Answer:
        best = max(trace, key=lambda r: r.confidence)  # the first of equals
        return Answer(
            text=best.text,
            confidence=best.confidence,
            rounds=len(trace),
            examples=best.shown,
            trace=tuple(trace),
            tokens=sum(r.tokens for r in trace),
        )


def confidence(found: Generation, kind: str = "min-max", *, include_special: bool = False) -> float:
    """How sure the model was of a generation, in [0, 1]; 0 where nothing was written.

    ``margin`` is the first token's probability less what the others have together, at least 0.
    """
    kept = [j for j in range(len(found.tokens)) if include_special or not found.special[j]]
    if not kept:
        return 0.0
    if kind == "min-max":
        return math.exp(min(found.top_logprobs[j] for j in kept))
    total = math.fsum(found.logprobs[j] for j in kept)
    if kind == "mean":
        return math.exp(total / len(kept))
    if kind == "product":
        return math.exp(total)
    if kind == "margin":
        return max(0.0, 2 * math.exp(found.logprobs[kept[0]]) - 1)
    raise unknown("confidence", kind, CONFIDENCES)


def _content(item: Item) -> object:
    if item.media is None:
        return item.question
    return [item.media, {"type": "text", "text": item.question}]


def _features(X: ArrayLike, n: int) -> NDArray:
    X = np.asarray(X, float)
    if X.ndim != 2 or len(X) != n:
        raise ValueError(f"the features of {n} media are {X.shape}; one row each is needed")
    if not np.isfinite(X).all():
        raise ValueError("features of the media have NaN or Inf")
    return X
