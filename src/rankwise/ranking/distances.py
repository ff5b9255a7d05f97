"""How far two texts are: numbers in [0, 1] for many pairs at once, 0 for equal ones.

A distance takes two equally long lists, references and texts judged by them, and gives one number a pair:

* `jsd`: the Jensen-Shannon divergence (base 2) of the distributions of words, PerSEval's own;
* `rouge_l`: 1 - F1 of the longest common subsequence; `bleu`: 1 - BLEU of a sentence, smoothed;
* `embedding`: 1 - cosine of sentence embeddings, negative cosines counted as 0;
* any function of yours of two lists, e.g. ``lambda a, b: list(map(judged, a, b))``.

What people get wrong: a distance decides the scores. Published system rankings by ROUGE-L hardly agree with people's.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array

from rankwise.nearest import unknown
from rankwise.ranking.words import content_words, plain_words

__all__ = ["DISTANCES", "Distance", "bleu", "embedding", "jsd", "rouge_l"]

Array = NDArray[np.float64]
Words = Callable[[str], list[str]]
DISTANCES = ("jsd", "rouge-l", "bleu", "embedding")
CHUNK = 50_000  # pairs at once: of texts of 300 different words some 200 MB


@dataclass(frozen=True, kw_only=True)
class Distance:
    """A distance of texts.

    Parameters
    ----------
    name : str
        For reports.
    of : callable
        Two lists of k texts, the references first, to k numbers in [0, 1].
    symmetric : bool
        Whether the order of a pair does not matter, and a text's distance to itself is 0: half of the work is saved.
    warning : str
        What to know before its numbers are believed; said once a call.

    Examples
    --------
    >>> from rankwise.ranking import jsd
    >>> jsd().of(["a legal fight", "a legal fight"], ["the fight", "rain"]).round(4).tolist()
    [0.3113, 1.0]
    """

    name: str
    of: Callable[[Sequence[str], Sequence[str]], ArrayLike]
    symmetric: bool = False
    warning: str = ""


def jsd(*, words: Words = content_words) -> Distance:
    """Jensen-Shannon divergence, to base 2, of the words' relative frequencies.

    A text without words is at distance 1 from all but itself.

    Parameters
    ----------
    words : callable
        A text to its words.
    """

    def of(left: Sequence[str], right: Sequence[str]) -> Array:
        counts, (i, j) = _counted(left, right, words)
        size, width = counts.sum(axis=1), int(counts.indices.max(initial=0)) + 1
        share = counts.data / np.repeat(size, np.diff(counts.indptr))
        shares = csr_array((share, counts.indices, counts.indptr), counts.shape)
        (p, at), (q, other) = (_entries(shares[rows], width) for rows in (i, j))
        # a word that one text has alone adds half its share; what both have is all there is to compute
        place = np.minimum(np.searchsorted(other, at), max(len(other) - 1, 0))
        both = other[place] == at if len(other) else np.zeros(len(at), bool)
        a, b = p[both], q[place[both]]
        gained = np.bincount(at[both] // width, _xlogx(a + b) - _xlogx(a) - _xlogx(b), len(i))
        return np.where((size[i] == 0) & (size[j] == 0), _differ(left, right), np.clip(1 - gained / 2, 0, 1))

    return Distance(name="jsd", of=of, symmetric=True)


def rouge_l(*, words: Words = plain_words) -> Distance:
    """1 - F1 of the longest common subsequence of words (Lin, ROUGE, 2004), by bits of whole numbers (Hyyrö, 2004)."""

    def of(left: Sequence[str], right: Sequence[str]) -> Array:
        split = {text: words(text) for text in {*left, *right}}
        places = {text: _places(split[text]) for text in set(left)}
        pairs = list(zip(left, right, strict=True))
        common = np.array([_common(places[a], len(split[a]), split[b]) for a, b in pairs], dtype=float)
        total = np.array([len(split[a]) + len(split[b]) for a, b in pairs], dtype=float)
        return np.where(total > 0, 1 - 2 * common / np.maximum(total, 1), _differ(left, right))

    said = "system rankings by ROUGE-L were found to agree with people's hardly at all (Pearson .04, Spearman .18, "
    return Distance(
        name="rouge-l", of=of, symmetric=True, warning=f"{said}Kendall .07 over ten systems; JSD: .54, .70, .51)"
    )


def bleu(*, words: Words = plain_words, order: int = 4) -> Distance:
    """1 - BLEU of a sentence against one reference: exponential smoothing, and only orders that the text has.

    Parameters
    ----------
    order : int
        The longest n-grams that count.

    Raises
    ------
    ValueError
        An order below 1.
    """
    if order < 1:
        raise ValueError(f"order={order}; at least 1 is needed")

    def of(left: Sequence[str], right: Sequence[str]) -> Array:
        reference, length = (np.array([len(words(t)) for t in texts], dtype=float) for texts in (left, right))
        k = len(length)
        logs, orders, matched, halvings = np.zeros(k), np.zeros(k), np.zeros(k, bool), np.zeros(k)
        for n in range(1, order + 1):
            counts, (i, j) = _counted(left, right, lambda text, n=n: _grams(words(text), n))
            found = np.asarray(counts[i].minimum(counts[j]).sum(axis=1), dtype=float)
            there, total = length >= n, np.maximum(length - n + 1, 1)
            halvings += there & (found == 0)
            precision = np.where(found > 0, found, 0.5**halvings) / total
            logs, orders, matched = logs + np.where(there, np.log(precision), 0), orders + there, matched | (found > 0)
        brevity = np.minimum(1 - reference / np.maximum(length, 1), 0)
        score = np.where(matched, np.exp(brevity + logs / np.maximum(orders, 1)), 0.0)
        return np.where((reference == 0) & (length == 0), _differ(left, right), np.clip(1 - score, 0, 1))

    said = "system rankings by BLEU were found to agree with people's little (Pearson .13, Spearman .35, Kendall .29 "
    return Distance(name="bleu", of=of, warning=f"{said}over ten systems; JSD: .54, .70, .51)")


def embedding(encoder: str | Callable[[Sequence[str]], ArrayLike] = "minilm") -> Distance:
    """1 - cosine of sentence embeddings; a negative cosine counts as 0.

    Parameters
    ----------
    encoder : str or callable
        ``minilm``, a folder or a hub id; or a function from a list of texts to vectors ``(n, d)``.
    """

    def of(left: Sequence[str], right: Sequence[str]) -> Array:
        place, (i, j) = _placed(left, right)
        vectors = np.asarray(_encoded(encoder, list(place)), dtype=float)
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return np.clip(1 - np.einsum("kd,kd->k", vectors[i], vectors[j]), 0, 1)

    name = f"embedding ({encoder})" if isinstance(encoder, str) else "embedding"
    return Distance(name=name, of=of, symmetric=True)


def as_distance(given: str | Distance | Callable[[Sequence[str], Sequence[str]], ArrayLike]) -> Distance:
    """A distance by its name, or a function of two lists.

    Raises
    ------
    ValueError
        Another name, or no function.
    """
    if isinstance(given, Distance):
        return given
    if callable(given):
        return Distance(name=getattr(given, "__name__", type(given).__name__), of=given)
    made = {"jsd": jsd, "rouge-l": rouge_l, "bleu": bleu, "embedding": embedding}
    if given not in made:
        raise unknown("distance", str(given), DISTANCES)
    return made[given]()


def of_pairs(distance: Distance, texts: list[str], left: NDArray, right: NDArray) -> Array:
    """Distances ``(k,)`` of pairs that are given by places in ``texts``; every different pair is computed once.

    Raises
    ------
    ValueError
        A function that does not give one number a pair.
    """
    if distance.symmetric:
        left, right = np.minimum(left, right), np.maximum(left, right)
    unique, inverse = np.unique(left.astype(np.int64) * len(texts) + right, return_inverse=True)
    i, j = np.divmod(unique, max(len(texts), 1))
    asked = np.flatnonzero(i != j) if distance.symmetric else np.arange(len(unique))
    found = np.zeros(len(unique))
    for start in range(0, len(asked), CHUNK):
        at = asked[start : start + CHUNK]
        found[at] = _numbers(distance, [texts[a] for a in i[at].tolist()], [texts[b] for b in j[at].tolist()])
    return found[inverse.ravel()]


def _numbers(distance: Distance, left: list[str], right: list[str]) -> Array:
    given = distance.of(left, right)
    try:
        numbers = np.asarray(given, dtype=float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"distance {distance.name} gives {type(given).__name__}, no list of numbers") from error
    if numbers.shape != (len(left),):
        raise ValueError(
            f"distance {distance.name} gives {numbers.shape or 'one number'} for {len(left)} pairs; it is called with "
            "two lists of texts and has to give a number a pair, e.g. lambda a, b: list(map(of_two_texts, a, b))"
        )
    return numbers


def _placed(left: Sequence[str], right: Sequence[str]) -> tuple[dict[str, int], tuple[NDArray, NDArray]]:
    """Different texts and their places, and the places of both sides of the pairs."""
    place = {text: i for i, text in enumerate(dict.fromkeys([*left, *right]))}
    return place, (np.array([place[t] for t in left], int), np.array([place[t] for t in right], int))


def _counted(
    left: Sequence[str], right: Sequence[str], items: Callable[[str], Iterable[Hashable]]
) -> tuple[csr_array, tuple[NDArray, NDArray]]:
    """Counts ``(different texts, items)``, and the rows of both sides of the pairs."""
    place, pairs = _placed(left, right)
    column: dict[Hashable, int] = {}
    found = [[column.setdefault(item, len(column)) for item in items(text)] for text in place]
    ends = np.cumsum([0, *map(len, found)])
    indices = np.fromiter(chain.from_iterable(found), np.int64, int(ends[-1]))
    matrix = csr_array((np.ones(len(indices)), indices, ends), (len(found), max(len(column), 1)))
    matrix.sum_duplicates()
    return matrix, pairs


def _entries(matrix: csr_array, width: int) -> tuple[Array, NDArray[np.int64]]:
    """What is not 0, and its places row by row."""
    rows = np.repeat(np.arange(len(matrix.indptr) - 1, dtype=np.int64), np.diff(matrix.indptr))
    return np.asarray(matrix.data, dtype=float), rows * width + matrix.indices


def _grams(words: list[str], n: int) -> Iterable[tuple[str, ...]]:
    return zip(*(islice(words, i, None) for i in range(n)), strict=False)


def _places(words: list[str]) -> dict[str, int]:
    """Of every word the places where it stands, as bits."""
    found: dict[str, int] = {}
    for i, word in enumerate(words):
        found[word] = found.get(word, 0) | 1 << i
    return found


def _common(places: dict[str, int], length: int, words: list[str]) -> int:
    """Length of the longest common subsequence: zeros of a row of the table, kept as one number."""
    row = full = (1 << length) - 1
    for word in words:
        hit = row & places.get(word, 0)
        row = ((row + hit) | (row - hit)) & full
    return length - row.bit_count()


def _differ(left: Sequence[str], right: Sequence[str]) -> Array:
    """Of texts without words, such as emoji: 0 for equal ones, else 1."""
    return np.array([a != b for a, b in zip(left, right, strict=True)], dtype=float)


def _xlogx(x: Array) -> Array:
    return x * np.log2(x)


def _encoded(encoder: str | Callable[[Sequence[str]], ArrayLike], texts: list[str]) -> ArrayLike:
    if callable(encoder):
        return encoder(texts)
    from rankwise.models.embedding import embed

    return embed(texts, model=encoder)
