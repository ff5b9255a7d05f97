"""Which examples go into a prompt: what the selectors share, and the ones that need no language model.

Every selector is fitted on a pool and asked for a question's examples; scikit-learn's conventions for parameters
(``get_params``, ``clone``). Fitted after LangChain is imported, they are example selectors of its prompt templates.
"""

from __future__ import annotations

import asyncio
import sys
import unicodedata
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import regex
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.neighbors import NearestNeighbors
from sklearn.utils.validation import check_is_fitted

from rankwise.nearest import unknown
from rankwise.prompting.depth import Encoder, TextDepth
from rankwise.prompting.examples import Example, as_example, as_row
from rankwise.prompting.names import ORDERS

__all__ = ["BM25Selector", "DepthSelector", "KNNSelector", "RandomSelector"]

Indices = NDArray[np.intp]
# scripts that put no space between words: their runs are cut into pairs of characters, as Lucene does
_RUNS = r"\p{Han}\p{Hiragana}\p{Katakana}ー\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_WORD = regex.compile(rf"([{_RUNS}]+)|[[\w\p{{M}}]--[{_RUNS}]]+", regex.VERSION1)


class Selector(BaseEstimator, ABC):
    """What all selectors do; a subclass ranks the pool in ``_rank``.

    Attributes
    ----------
    pool_ : list of Example
        The pool as fitted; of examples with the same question only the first can be selected.

    Warns
    -----
    UserWarning
        Fewer than ``k_examples`` can be selected, from a pool or for a question.

    Examples
    --------
    >>> from rankwise.prompting import RandomSelector
    >>> from rankwise.prompting.selectors import Selector
    >>> class First(Selector):
    ...     def __init__(self, k_examples=2, *, order="descending"):
    ...         self.k_examples, self.order = k_examples, order
    ...     def _rank(self, queries):
    ...         return [self._distinct] * len(queries)
    >>> pool = [{"question": f"{n} + {n}?", "answer": str(2 * n)} for n in range(1, 5)]
    >>> [example.answer for example in First().fit(pool).select("1 + 1?")]  # never the question itself
    ['4', '6']
    """

    k_examples: int
    order: str

    def fit(self, pool: Sequence[Example | dict], y: object = None) -> Selector:
        """Take the pool.

        Raises
        ------
        ValueError
            An empty pool, an example without question or answer, ``k_examples`` below 1 or an unknown ``order``.
        """
        if self.k_examples < 1:
            raise ValueError(f"k_examples={self.k_examples}; at least 1 is needed")
        if self.order not in ORDERS:
            raise unknown("order", self.order, ORDERS)
        if not len(pool):
            raise ValueError("the pool is empty: there are no examples to select from")
        self.pool_ = [as_example(e) for e in pool]
        self._places: dict[str, int] = {}
        for i, e in enumerate(self.pool_):
            self._places.setdefault(_plain(e.question), i)
        self._distinct = np.array(list(self._places.values()), np.intp)
        if self.k_examples > len(self._distinct):
            warnings.warn(
                f"k_examples={self.k_examples} of a pool of {len(self._distinct)} questions: all of it is selected",
                stacklevel=2,
            )
        self._prepare()
        _tell_langchain()
        return self

    def select(self, query: str) -> list[Example]:
        """Examples for a question, in the order in which they go into the prompt."""
        return self.select_batch([query])[0]

    def select_batch(self, queries: Sequence[str]) -> list[list[Example]]:
        """For many questions at a time. An example that asks the question itself is left out."""
        return [[self.pool_[i] for i in chosen] for chosen in self.select_indices(queries)]

    def select_indices(self, queries: Sequence[str]) -> list[Indices]:
        """Positions in the pool instead of examples."""
        check_is_fitted(self, "pool_")
        if isinstance(queries, str):
            raise ValueError("one question was given to a method for many: use select")
        chosen = [self._chosen(q, ranked) for q, ranked in zip(queries, self._rank(list(queries)), strict=True)]
        fewer = sum(len(c) < min(self.k_examples, len(self._distinct)) for c in chosen)
        if fewer:
            none = sum(not len(c) for c in chosen)
            warnings.warn(
                f"{fewer} of {len(chosen)} questions have fewer than {self.k_examples} examples, {none} none: the pool "
                "holds too little besides the question itself",
                stacklevel=2,
            )
        return [c[::-1] for c in chosen] if self.order == "ascending" else chosen

    def select_examples(self, input_variables: dict) -> list[dict]:
        """LangChain's: mappings for the question in ``input_variables["question"]``."""
        if "question" not in input_variables:
            raise ValueError(f"no question among {', '.join(map(str, input_variables)) or 'no variables'}")
        return [as_row(e) for e in self.select(str(input_variables["question"]))]

    def add_example(self, example: dict) -> None:
        """LangChain's: add to the pool."""
        self.fit([*getattr(self, "pool_", []), as_example(example)])

    async def aselect_examples(self, input_variables: dict) -> list[dict]:
        """LangChain's, in a thread."""
        return await asyncio.to_thread(self.select_examples, input_variables)

    async def aadd_example(self, example: dict) -> None:
        """LangChain's, in a thread."""
        await asyncio.to_thread(self.add_example, example)

    def _chosen(self, query: str, ranked: Iterable[int]) -> Indices:
        own = self._own(query)
        return np.array([i for i in ranked if i != own][: self.k_examples], np.intp)

    def _own(self, query: str) -> int:
        """Where the pool asks the query itself, or -1."""
        return self._places.get(_plain(query), -1)

    def _prepare(self) -> None:
        """Index the pool."""

    @abstractmethod
    def _rank(self, queries: list[str]) -> Iterable[Iterable[int]]:
        """For each query, positions of distinct questions from best to worst, ties by position: at least one more than
        there are examples to select, where the pool has them."""


class RandomSelector(Selector):
    """Examples drawn at random, anew for each question, the same for the same question and seed.

    Parameters
    ----------
    k_examples : int
        How many examples are selected.
    order : {"ascending", "descending"}
        Most similar last (next to the question), or first.
    seed : int
        Decides the draw, together with the question.

    Examples
    --------
    >>> from rankwise.prompting import RandomSelector
    >>> pool = [{"question": f"{n} + {n}?", "answer": str(2 * n)} for n in range(1, 9)]
    >>> selector = RandomSelector(k_examples=3, seed=1).fit(pool)
    >>> len(selector.select("9 + 9?")), selector.select("9 + 9?") == selector.select("9 + 9?")
    (3, True)
    """

    def __init__(self, k_examples: int = 8, *, order: str = "ascending", seed: int = 0) -> None:
        self.k_examples, self.order, self.seed = k_examples, order, seed

    def _rank(self, queries: list[str]) -> Iterable[Iterable[int]]:
        for query in queries:
            yield np.random.default_rng([self.seed, *query.encode()]).permutation(self._distinct)


class BM25Selector(Selector):
    """The examples whose questions share the most telling words (Robertson's BM25, by `bm25s`).

    Where a script puts no space between words (Chinese, Japanese, Thai …) pairs of neighbouring characters are words.

    Parameters
    ----------
    k_examples : int
        How many examples are selected.
    order : {"ascending", "descending"}
        Most similar last (next to the question), or first.
    field : {"question", "solution"}
        Which part of an example is compared with the question.

    Examples
    --------
    >>> from rankwise.prompting import BM25Selector, few_shot
    >>> known = {"Capital of Norway?": "Oslo", "Capital of Chile?": "Santiago", "Longest river of Chile?": "Loa"}
    >>> pool = [{"question": question, "answer": answer} for question, answer in known.items()]
    >>> examples = BM25Selector(k_examples=2).fit(pool).select("What is the longest river of Peru?")
    >>> [example.answer for example in examples][-1]  # the nearest comes last, next to the question
    'Loa'
    >>> len(few_shot("What is the longest river of Peru?", examples).prompt)
    5
    """

    def __init__(self, k_examples: int = 8, *, order: str = "ascending", field: str = "question") -> None:
        self.k_examples, self.order, self.field = k_examples, order, field

    def _prepare(self) -> None:
        if self.field not in ("question", "solution"):
            raise unknown("field", self.field, ("question", "solution"))
        self._index = bm25_index([getattr(self.pool_[i], self.field) for i in self._distinct])

    def _rank(self, queries: list[str]) -> Iterable[Iterable[int]]:
        scores = [bm25_scores(self._index, query) for query in queries]
        strange = sum(not s.any() for s in scores)
        if strange:
            warnings.warn(
                f"{strange} of {len(queries)} questions share no word with the pool: their examples are its first ones",
                stacklevel=3,
            )
        return [self._distinct[np.argsort(-s, kind="stable")] for s in scores]


class KNNSelector(Selector):
    """The examples whose questions lie nearest in an encoder's space (cosine).

    Parameters
    ----------
    k_examples : int
        How many examples are selected.
    order : {"ascending", "descending"}
        Most similar last (next to the question), or first.
    encoder : callable, optional
        Texts to ``(n, d)``; the bundled MiniLM by default.

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.prompting import KNNSelector
    >>> pool = [{"question": q, "answer": a} for q, a in (("Capital of Norway?", "Oslo"), ("Why?", "Because."))]
    >>> selector = KNNSelector(k_examples=1, encoder=lambda texts: np.array([[len(text), 9.0] for text in texts]))
    >>> selector.fit(pool).select("Who?")[0].answer  # by length here; by MiniLM without an encoder
    'Because.'
    """

    def __init__(self, k_examples: int = 8, *, order: str = "ascending", encoder: Encoder | None = None) -> None:
        self.k_examples, self.order, self.encoder = k_examples, order, encoder

    def _prepare(self) -> None:
        self._index = NearestNeighbors(metric="cosine", algorithm="brute")
        self._index.fit(embedded([self.pool_[i].question for i in self._distinct], self.encoder))

    def _rank(self, queries: list[str]) -> Iterable[Iterable[int]]:
        if not queries:
            return []
        k = min(self.k_examples + 1, len(self._distinct))
        return self._distinct[self._index.kneighbors(embedded(queries, self.encoder), k, return_distance=False)]


class DepthSelector(Selector):
    """The deepest examples of the pool, the same for every question (see `TextDepth`).

    Parameters
    ----------
    k_examples : int
        How many examples are selected.
    order : {"ascending", "descending"}
        Deepest last (next to the question), or first.
    balanced : bool
        Whether answers take turns, each with depths within its own examples.
    shallowest : bool
        Whether the most outlying examples are taken instead, as a control.
    distance, encoder
        How texts are compared and embedded, see `TextDepth`.

    Attributes
    ----------
    depths_ : ndarray
        ``(n,)`` of the pool; within each answer's examples where ``balanced``.

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.prompting import DepthSelector
    >>> pool = [{"question": "q" * n, "answer": str(n)} for n in (1, 8, 9, 10)]
    >>> selector = DepthSelector(k_examples=1, encoder=lambda texts: np.array([[len(text), 9.0] for text in texts]))
    >>> selector.fit(pool).select("whatever is asked")[0].answer
    '8'
    """

    def __init__(
        self,
        k_examples: int = 8,
        *,
        order: str = "ascending",
        balanced: bool = False,
        shallowest: bool = False,
        distance: str = "cosine",
        encoder: Encoder | None = None,
    ) -> None:
        self.k_examples, self.order, self.balanced, self.shallowest = k_examples, order, balanced, shallowest
        self.distance, self.encoder = distance, encoder

    def _prepare(self) -> None:
        X = embedded([e.question for e in self.pool_], self.encoder)
        kinds = np.array([e.answer if self.balanced else "" for e in self.pool_])
        self.depths_ = np.full(len(X), 2.0)  # of an answer with one example: nothing lies further in
        turn = np.zeros(len(X), np.intp)
        sign = 1 if self.shallowest else -1
        for kind in np.unique(kinds):
            rows = np.flatnonzero(kinds == kind)
            if len(rows) > 1:
                self.depths_[rows] = TextDepth(self.distance).fit(X[rows]).depths_
            own = np.intersect1d(rows, self._distinct)
            turn[own[np.argsort(sign * self.depths_[own], kind="stable")]] = np.arange(len(own))
        d = self._distinct
        self._ranking = d[np.lexsort((d, sign * self.depths_[d], turn[d]))]

    def _rank(self, queries: list[str]) -> Iterable[Iterable[int]]:
        return [self._ranking] * len(queries)


def _tell_langchain() -> None:
    """Let LangChain's templates, if they are loaded, take every selector for one of its own."""
    base = getattr(sys.modules.get("langchain_core.example_selectors.base"), "BaseExampleSelector", None)
    if base is not None:
        base.register(Selector)


def embedded(texts: list[str], encoder: Encoder | None) -> NDArray:
    """``(n, d)``, float32 or float64; an encoder's output is checked.

    Raises
    ------
    ValueError
        NaN or Inf in it, zero vectors, or another number of rows than texts.
    """
    if encoder is None:
        from rankwise.models.embedding import embed as encoder
    X = np.asarray(encoder(texts))
    X = X if X.dtype in (np.float32, np.float64) else X.astype(np.float64)
    if X.ndim != 2 or len(X) != len(texts):
        raise ValueError(f"the encoder gave {X.shape} for {len(texts)} texts; one row a text is needed")
    bad = np.flatnonzero(~np.isfinite(X).all(1))
    if len(bad):
        raise ValueError(f"the encoder gave NaN or Inf for text {bad[0]}: {texts[bad[0]][:80]!r}")
    bad = np.flatnonzero(~X.any(1))
    if len(bad):
        near = "which lies near nothing"
        raise ValueError(f"the encoder gave a zero vector, {near}, for text {bad[0]}: {texts[bad[0]][:80]!r}")
    return X


def bm25_index(texts: Sequence[str]):
    """An index of `bm25s` over words without regard to case."""
    import bm25s

    index = bm25s.BM25()
    index.index(_words(texts), show_progress=False)
    return index


def bm25_scores(index, query: str) -> NDArray:
    """``(n,)`` BM25 scores of the indexed texts; 0 where no word is known."""
    words = [w for w in _words([query])[0] if w and w in index.vocab_dict]
    return index.get_scores(words) if words else np.zeros(int(index.scores["num_docs"]))


def _words(texts: Sequence[str]) -> list[list[str]]:
    return [list(_words_of(t)) or [""] for t in texts]


def _words_of(text: str) -> Iterator[str]:
    for found in _WORD.finditer(unicodedata.normalize("NFKC", text).casefold()):
        word = found.group()
        if found.group(1) and len(word) > 1:
            yield from (word[i : i + 2] for i in range(len(word) - 1))
        else:
            yield word


def _plain(question: str) -> str:
    return " ".join(question.casefold().split())
