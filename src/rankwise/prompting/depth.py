"""Statistical depth of text embeddings: which texts are central to a corpus, which lie outside, and do two differ.

For embeddings F = {f_1 … f_n} and a bounded distance δ,

    D(x, F) = sup δ - E_{H∼F} δ(x, H)                      high is central, in [0, 2]
    cosine   δ(a, b) = 1 - a·b / (‖a‖‖b‖)                   chord   δ(a, b) = sqrt(2 (1 - a·b / (‖a‖‖b‖)))

and a member f_i is measured against the others alone (the mean over n - 1). With unit rows u_i and s = Σ u_j the cosine
depth is ``2 - (n - u_i·s) / (n - 1)``: O(n d), no matrix of distances.

    Q(F, G) = P[D(X, F) ≤ D(Y, F)],  X ∼ F, Y ∼ G            (Liu & Singh, 1993); below ½: G lies further out

Whether F's depths exceed G's is asked by Wilcoxon's rank sum W. F's own depths share their pairs, ``δ(f_i, f_j)`` being
part of both, so that W varies more than it would over independent numbers: where pairs decide alone, by

    (2 / n + 1 / m) / (1 / n + 1 / m)        n texts in F, m in G

and at 5% up to 9.5% of equal corpora would be called different. Relabelled, all texts' depths are taken anew, which
needs no such correction.

Source: Seegmiller & Preum, "Statistical Depth for Ranking and Characterizing Transformer-Based Text Embeddings", EMNLP
2023, arXiv 2310.15010.

What people get wrong: the released code takes ``|F| = |G|`` for "G is F" and then measures each f_i against G, and its
p-value is that of independent depths. Depths are relative to a corpus: those with respect to different F do not
compare. A text of both corpora lies deeper in F than it should, since it is compared with itself.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_array, check_is_fitted

from rankwise.nearest import unknown
from rankwise.prompting.names import DISTANCES, P_VALUES

__all__ = ["DepthTest", "TextDepth", "depth_rank_test", "pooled_quality", "quality"]

Array = NDArray[np.float64]
Encoder = Callable[[list[str]], ArrayLike]
ALTERNATIVES = ("greater", "less", "two-sided")
_BLOCK = 1 << 23  # entries of a block of dot products: 64 MB in float64
_TIES = 12  # decimals in which depths agree where they are equal but for rounding


class TextDepth(BaseEstimator):
    """Depth of texts or embeddings with respect to a corpus; scikit-learn's outlier convention: high is inside.

    Parameters
    ----------
    distance : {"cosine", "chord"}
        The distance δ of two embeddings, see the module.
    encoder : callable, optional
        Texts to ``(n, d)``; the bundled MiniLM by default. Not used for arrays.

    Attributes
    ----------
    depths_ : ndarray
        ``(n,)``, of the corpus's own members, each against the others.
    units_ : ndarray
        ``(n, d)``, the corpus's embeddings at length 1, in the dtype given (float32 or float64).
    n_features_in_ : int
        The number d of an embedding's dimensions.

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.prompting import TextDepth
    >>> X = np.array([[1.0, 0.1], [1.0, 0.0], [1.0, -0.1], [-1.0, 0.2]])  # embeddings; lists of texts are embedded
    >>> int(TextDepth().fit(X).rank()[-1])  # the position of the one that lies furthest out
    3
    """

    def __init__(self, distance: str = "cosine", encoder: Encoder | None = None) -> None:
        self.distance = distance
        self.encoder = encoder

    def fit(self, X: Sequence[str] | ArrayLike, y: object = None) -> TextDepth:
        """Take the corpus.

        Raises
        ------
        ValueError
            Fewer than two rows, zero vectors (their rows), NaN or Inf, an unknown distance.
        """
        if self.distance not in DISTANCES:
            raise unknown("distance", self.distance, DISTANCES)
        self.units_ = unit_rows(self._embedded(X), "the corpus")
        if len(self.units_) < 2:
            raise ValueError("the corpus has one text: depth is relative to others, at least two are needed")
        self.n_features_in_ = self.units_.shape[1]
        self._sum = self.units_.sum(0, dtype=np.float64)
        n = len(self.units_)
        self.depths_ = 2 - self._total(self.units_) / (n - 1)
        return self

    def score_samples(self, X: Sequence[str] | ArrayLike) -> Array:
        """``D(x, F)``, ``(m,)``, each against the whole corpus."""
        check_is_fitted(self)
        units = unit_rows(self._embedded(X), "X")
        if units.shape[1] != self.n_features_in_:
            raise ValueError(f"X has {units.shape[1]} dimensions, the corpus {self.n_features_in_}")
        return 2 - self._total(units) / len(self.units_)

    def rank(self, X: Sequence[str] | ArrayLike | None = None) -> NDArray[np.int64]:
        """Positions from the deepest to the most outlying; of the corpus itself where X is not given."""
        depths = self.depths_ if X is None else self.score_samples(X)
        return np.argsort(-depths, kind="stable")

    def _total(self, units: Array) -> Array:
        """``Σ_j δ(x, f_j)``, float64."""
        if self.distance == "cosine":
            return len(self.units_) - units.astype(np.float64, copy=False) @ self._sum
        return np.concatenate([d.sum(1, dtype=np.float64) for _, d in _chords(units, self.units_)])

    def _embedded(self, X: Sequence[str] | ArrayLike) -> NDArray:
        if isinstance(X, str):
            raise ValueError("one text was given; a list of texts or an array of embeddings is needed")
        if (texts := _texts(X)) is not None:
            encoder = self.encoder
            if encoder is None:
                from rankwise.models.embedding import embed as encoder
            X = encoder(texts)
        dtypes: Any = [np.float64, np.float32]  # scikit-learn documents a list; its default alone is typed
        return check_array(X, dtype=dtypes)


@dataclass(frozen=True, kw_only=True)
class DepthTest:
    """Whether G differs from F, by depths with respect to F.

    Attributes
    ----------
    q : float
        ``P[D(X, F) ≤ D(Y, F)]``, ties ½; ½ where nothing differs.
    q_low, q_high : float
        The 95% bootstrap interval of q; NaN without resamples.
    q_pooled : float
        The released code's version: ranks among F and G together, strictly below.
    statistic : float
        The rank sum of F's depths, standardised as for independent numbers.
    pvalue : float
        The p-value of the alternative, by the method asked for.
    shared : int
        Texts of G that are in F as well: they are compared with themselves, which no p-value allows for.
    depths_f, depths_g : ndarray
        Depths in F of its own texts, ``(n,)``, and of G's, ``(m,)``.

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.prompting import depth_rank_test
    >>> rng = np.random.default_rng(0)
    >>> F, G = rng.normal(size=(20, 8)) + 3, rng.normal(size=(20, 8))
    >>> found = depth_rank_test(F, G, permutations=99, bootstrap=50)
    >>> found.q < 0.1, found.pvalue, found.shared  # the texts of G lie further out
    (True, 0.01, 0)
    """

    q: float
    q_low: float
    q_high: float
    q_pooled: float
    statistic: float
    pvalue: float
    shared: int
    depths_f: Array
    depths_g: Array


def depth_rank_test(
    F: Sequence[str] | ArrayLike,
    G: Sequence[str] | ArrayLike,
    *,
    distance: str = "cosine",
    method: Literal["permutation", "ranksum"] = "permutation",
    alternative: Literal["greater", "less", "two-sided"] = "greater",
    permutations: int = 9_999,
    bootstrap: int = 999,
    encoder: Encoder | None = None,
    seed: int = 0,
) -> DepthTest:
    """Test whether the texts of G lie as deep in F as F's own.

    Parameters
    ----------
    F, G : sequence of str, or array ``(n, d)`` and ``(m, d)``
        The corpus that depths are relative to, and the one that is compared with it.
    distance : {"cosine", "chord"}
        The distance of two embeddings, see `TextDepth`.
    method : {"permutation", "ranksum"}
        The rank sum under random relabelling of the pooled embeddings (of all relabellings, where there are no more
        than ``permutations``); or by the normal distribution with the most that F's shared pairs can add to its
        variance, and no less than one over the number of relabellings: quick for corpora of any size, and cautious.
    alternative : {"greater", "less", "two-sided"}
        How F's depths differ from G's where the corpora do.
    permutations, bootstrap : int
        Relabellings, and resamples for the interval of q (0: none).
    encoder : callable, optional
        What embeds texts, see `TextDepth`.
    seed : int
        Decides the relabellings and the resamples.

    Raises
    ------
    ValueError
        As `TextDepth`; an unknown method or alternative, no relabelling.

    Warns
    -----
    UserWarning
        Texts of G are in F as well.

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.prompting import depth_rank_test
    >>> rng = np.random.default_rng(1)
    >>> one, other = rng.normal(size=(20, 8)) + 3, rng.normal(size=(20, 8)) + 3  # one distribution
    >>> depth_rank_test(one, other, permutations=99, bootstrap=0).pvalue > 0.05
    True
    """
    if method not in P_VALUES:
        raise unknown("method", method, P_VALUES)
    if alternative not in ALTERNATIVES:
        raise unknown("alternative", alternative, ALTERNATIVES)
    if permutations < 1 or bootstrap < 0:
        raise ValueError(f"permutations={permutations}, bootstrap={bootstrap}; at least 1 and 0 are needed")
    depth = TextDepth(distance, encoder).fit(F)
    other = unit_rows(depth._embedded(G), "G")
    f, g = depth.depths_, depth.score_samples(other)
    shared = _in_both(F, G, depth.units_, other)
    if shared:
        warnings.warn(
            f"{shared} of {len(g)} texts are in the other corpus as well and are compared with themselves there: "
            "depths, Q and p are not those of separate corpora",
            stacklevel=2,
        )
    statistic = float(stats.ranksums(f.round(_TIES), g.round(_TIES)).statistic)
    rng = np.random.default_rng(seed)
    if method == "ranksum":
        pvalue = _cautious(statistic, len(f), len(g), alternative)
    else:
        pvalue = _relabelled(np.concatenate([depth.units_, other]), len(f), distance, alternative, permutations, rng)
    drawn_q = [quality(rng.choice(f, len(f)), rng.choice(g, len(g))) for _ in range(bootstrap)] or [np.nan]
    low, high = np.quantile(drawn_q, [0.025, 0.975])
    return DepthTest(
        q=quality(f, g),
        q_low=float(low),
        q_high=float(high),
        q_pooled=pooled_quality(f, g),
        statistic=statistic,
        pvalue=pvalue,
        shared=shared,
        depths_f=f,
        depths_g=g,
    )


def quality(f: ArrayLike, g: ArrayLike) -> float:
    """Q: the share of pairs with ``f ≤ g``, ties counting half.

    Examples
    --------
    >>> from rankwise.prompting import quality
    >>> quality([1.0, 2.0], [2.0, 3.0])  # 3 of 4 pairs, and a tie
    0.875
    """
    f, g = np.sort(np.asarray(f)), np.asarray(g)
    return float((np.searchsorted(f, g, "left") + np.searchsorted(f, g, "right")).mean() / (2 * len(f)))


def pooled_quality(f: ArrayLike, g: ArrayLike) -> float:
    """The released code's Q: over g, the share of all depths whose mid-rank lies strictly below g's.

    Examples
    --------
    >>> from rankwise.prompting import pooled_quality
    >>> pooled_quality([1.0, 2.0], [3.0, 4.0])
    0.625
    """
    f, g = np.asarray(f), np.asarray(g)
    everything = np.sort(np.concatenate([f, g]))
    return float(np.searchsorted(everything, g, "left").mean() / len(everything))


def _cautious(statistic: float, n: int, m: int, alternative: str) -> float:
    """The normal p-value with as much variance as F's shared pairs can add, no less than any relabelling could give."""
    z = statistic / math.sqrt((2 / n + 1 / m) / (1 / n + 1 / m))
    tail = {"greater": stats.norm.sf(z), "less": stats.norm.cdf(z), "two-sided": 2 * stats.norm.sf(abs(z))}[alternative]
    return float(max(tail, 1 / math.comb(n + m, n)))


def _relabelled(
    pooled: Array, n: int, distance: str, alternative: str, permutations: int, rng: np.random.Generator
) -> float:
    """The share of relabellings whose rank sum lies as far as that of the labels given, which counts as one."""
    every = math.comb(len(pooled), n) <= permutations
    labels = _every_label(len(pooled), n) if every else _drawn_labels(len(pooled), n, permutations, rng)
    observed = _rank_sums(pooled, (np.arange(len(pooled)) < n)[None].astype(float), distance)[0]
    found = np.concatenate([_rank_sums(pooled, block, distance) for block in labels])
    as_far = {
        "greater": found >= observed,
        "less": found <= observed,
        "two-sided": np.abs(found) >= abs(observed),
    }[alternative]
    return float(as_far.mean()) if every else float((1 + as_far.sum()) / (1 + len(found)))


def _drawn_labels(N: int, n: int, permutations: int, rng: np.random.Generator) -> Iterator[Array]:
    """Blocks ``(…, N)`` of labels: 1 for F."""
    step = max(1, _BLOCK // N)
    for a in range(0, permutations, step):
        rows = min(step, permutations - a)
        yield rng.permuted(np.tile((np.arange(N) < n).astype(float), (rows, 1)), axis=1)


def _every_label(N: int, n: int) -> Iterator[Array]:
    all_ = combinations(range(N), n)
    while chosen := list(islice(all_, max(1, _BLOCK // N))):
        labels = np.zeros((len(chosen), N))
        np.put_along_axis(labels, np.array(chosen), 1.0, 1)
        yield labels


def _rank_sums(pooled: Array, labels: Array, distance: str) -> Array:
    """``(P,)`` rank sums of F's depths, less what is expected, for P labellings ``(P, N)`` of the same N texts."""
    n, N = labels[0].sum(), labels.shape[1]
    if distance == "cosine":
        U = pooled.astype(np.float64, copy=False)
        total = n - (labels @ U) @ U.T
    else:
        total = np.concatenate([labels @ d.T.astype(np.float64) for _, d in _chords(pooled, pooled)], 1)
    depth = (2 - total / (n - labels)).round(_TIES)  # a text of F is measured against the n - 1 others
    order = depth.argsort(axis=1)
    sums = np.take_along_axis(labels, order, 1) @ np.arange(1, N + 1)
    tied = (np.diff(np.take_along_axis(depth, order, 1), axis=1) == 0).any(1)
    if tied.any():  # equal depths have the mean of their ranks
        sums[tied] = (stats.rankdata(depth[tied], axis=1) * labels[tied]).sum(1)
    return sums - n * (N + 1) / 2


def _chords(units: Array, others: Array) -> Iterator[tuple[int, Array]]:
    """Blocks of rows of the matrix of chord distances, and where they begin; to itself a text's is zero."""
    step = max(1, _BLOCK // len(others))
    near = 10 * float(np.finfo(others.dtype).eps)  # duplicates, but for rounding
    for a in range(0, len(units), step):
        gap = units[a : a + step] @ others.T
        np.subtract(1, gap, out=gap)
        if units is others:  # zero, not the root of a rounding error
            gap[np.arange(len(gap)), np.arange(a, a + len(gap))] = 0
        gap[gap < near] = 0
        yield a, np.sqrt(np.multiply(gap, 2, out=gap), out=gap)


def _in_both(F: object, G: object, units: Array, others: Array) -> int:
    """How many of G are in F too: as texts where texts are given, else as embeddings."""
    known, asked = _texts(F), _texts(G)
    if known is None or asked is None:
        known, asked = ([row.tobytes() for row in rows] for rows in (units, others))
    return sum(map(set(known).__contains__, asked))


def _texts(X: object) -> list[str] | None:
    """The texts, where it is texts that are given, and not embeddings."""
    return list(X) if isinstance(X, Sequence) and len(X) and isinstance(X[0], str) else None


def unit_rows(X: NDArray, name: str) -> NDArray:
    """Rows at length 1.

    Raises
    ------
    ValueError
        Zero vectors, which have no direction: which rows of ``name``.
    """
    lengths = np.linalg.norm(X, axis=1, keepdims=True)
    zero = np.flatnonzero(lengths[:, 0] == 0)
    if len(zero):
        rows = ", ".join(map(str, zero[:5])) + (" …" if len(zero) > 5 else "")
        raise ValueError(f"{name} has zero vectors, which have no direction: rows {rows}")
    return X / lengths
