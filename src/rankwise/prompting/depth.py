"""Statistical depth of text embeddings: which texts are central to a corpus, which lie outside, and do two differ.

For embeddings F = {f_1 … f_n} and a bounded distance δ,

    D(x, F) = sup δ - E_{H∼F} δ(x, H)                      high is central, in [0, 2]
    cosine   δ(a, b) = 1 - a·b / (‖a‖‖b‖)                   chord   δ(a, b) = sqrt(2 (1 - a·b / (‖a‖‖b‖)))

and a member f_i is measured against the others alone (the mean over n - 1). With unit rows u_i and s = Σ u_j the cosine
depth is ``2 - (n - u_i·s) / (n - 1)``: O(n d), no matrix of distances.

    Q(F, G) = P[D(X, F) ≤ D(Y, F)],  X ∼ F, Y ∼ G            (Liu & Singh, 1993); below ½: G lies further out

Source: Seegmiller & Preum, "Statistical Depth for Ranking and Characterizing Transformer-Based Text Embeddings", EMNLP
2023, arXiv 2310.15010.

What people get wrong: the released code takes ``|F| = |G|`` for "G is F" and then measures each f_i against G. Depths
are relative to a corpus: those with respect to different F do not compare.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_array, check_is_fitted

from rankwise.nearest import unknown

Array = NDArray[np.float64]
Encoder = Callable[[list[str]], ArrayLike]
DISTANCES = ("cosine", "chord")
_BLOCK = 1 << 23  # entries of a block of dot products: 64 MB in float64


class TextDepth(BaseEstimator):
    """Depth of texts or embeddings with respect to a corpus; scikit-learn's outlier convention: high is inside.

    Parameters
    ----------
    distance : {"cosine", "chord"}
    encoder : callable, optional
        Texts to ``(n, d)``; the bundled MiniLM by default. Not used for arrays.

    Attributes
    ----------
    depths_ : ndarray
        ``(n,)``, of the corpus's own members, each against the others.
    units_ : ndarray
        ``(n, d)``, the corpus's embeddings at length 1, in the dtype given (float32 or float64).
    n_features_in_ : int
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
        self.units_ = _units(self._embedded(X), "the corpus")
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
        units = _units(self._embedded(X), "X")
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
        step, out = max(1, _BLOCK // len(self.units_)), np.empty(len(units))
        own, near = units is self.units_, 10 * float(np.finfo(self.units_.dtype).eps)  # duplicates, but for rounding
        for a in range(0, len(units), step):
            gap = units[a : a + step] @ self.units_.T
            np.subtract(1, gap, out=gap)
            if own:  # a text's distance to itself is zero, not the root of a rounding error
                gap[np.arange(len(gap)), np.arange(a, a + len(gap))] = 0
            gap[gap < near] = 0
            np.sqrt(np.multiply(gap, 2, out=gap), out=gap)
            out[a : a + step] = gap.sum(1, dtype=np.float64)
        return out

    def _embedded(self, X: Sequence[str] | ArrayLike) -> NDArray:
        if isinstance(X, str):
            raise ValueError("one text was given; a list of texts or an array of embeddings is needed")
        if isinstance(X, Sequence) and len(X) and isinstance(X[0], str):
            encoder = self.encoder
            if encoder is None:
                from rankwise.models.embedding import embed as encoder
            X = encoder(list(X))  # type: ignore[arg-type]
        return check_array(X, dtype=[np.float64, np.float32])  # type: ignore[arg-type]  (a list of dtypes is documented)


@dataclass(frozen=True, kw_only=True)
class DepthTest:
    """Whether G differs from F, by depths with respect to F.

    Attributes
    ----------
    q : float
        ``P[D(X, F) ≤ D(Y, F)]``, ties ½; ½ where nothing differs.
    q_low, q_high : float
        95% bootstrap interval of q.
    q_pooled : float
        The released code's version: ranks among F and G together, strictly below.
    statistic, pvalue : float
        Of the test that F is deeper.
    depths_f, depths_g : ndarray
    """

    q: float
    q_low: float
    q_high: float
    q_pooled: float
    statistic: float
    pvalue: float
    depths_f: Array
    depths_g: Array


def depth_rank_test(
    F: Sequence[str] | ArrayLike,
    G: Sequence[str] | ArrayLike,
    *,
    distance: str = "cosine",
    method: Literal["ranksum", "permutation"] = "ranksum",
    alternative: Literal["greater", "less", "two-sided"] = "greater",
    permutations: int = 9_999,
    bootstrap: int = 999,
    encoder: Encoder | None = None,
    seed: int = 0,
) -> DepthTest:
    """Do the texts of G lie as deep in F as F's own?

    Parameters
    ----------
    F, G : sequence of str, or array ``(n, d)`` and ``(m, d)``
    distance : {"cosine", "chord"}
    method : {"ranksum", "permutation"}
        Wilcoxon's rank sum of the depths, or the same statistic under random relabelling of the pooled embeddings with
        depths taken anew, which also accounts for F's depths leaving one out.
    alternative : {"greater", "less", "two-sided"}
        Of F's depths.
    permutations, bootstrap : int
    encoder : callable, optional
    seed : int

    Raises
    ------
    ValueError
        As `TextDepth`; an unknown method.
    """
    if method not in ("ranksum", "permutation"):
        raise unknown("method", method, ("ranksum", "permutation"))
    depth = TextDepth(distance, encoder).fit(F)
    f, g = depth.depths_, depth.score_samples(G)
    test = stats.ranksums(f, g, alternative=alternative)
    statistic, pvalue = float(test.statistic), float(test.pvalue)
    rng = np.random.default_rng(seed)
    if method == "permutation":
        pooled = np.concatenate([depth.units_, _units(depth._embedded(G), "G")])
        drawn = np.array([_relabelled(pooled, len(f), distance, rng) for _ in range(permutations)])
        as_far = {
            "greater": drawn >= statistic,
            "less": drawn <= statistic,
            "two-sided": np.abs(drawn) >= abs(statistic),
        }[alternative]
        pvalue = float((1 + as_far.sum()) / (1 + permutations))
    drawn_q = [quality(rng.choice(f, len(f)), rng.choice(g, len(g))) for _ in range(bootstrap)] or [np.nan]
    low, high = np.quantile(drawn_q, [0.025, 0.975])
    return DepthTest(
        q=quality(f, g),
        q_low=float(low),
        q_high=float(high),
        q_pooled=pooled_quality(f, g),
        statistic=statistic,
        pvalue=pvalue,
        depths_f=f,
        depths_g=g,
    )


def quality(f: ArrayLike, g: ArrayLike) -> float:
    """Q: the share of pairs with ``f ≤ g``, ties counting half."""
    f, g = np.sort(np.asarray(f)), np.asarray(g)
    return float((np.searchsorted(f, g, "left") + np.searchsorted(f, g, "right")).mean() / (2 * len(f)))


def pooled_quality(f: ArrayLike, g: ArrayLike) -> float:
    """The released code's Q: over g, the share of all depths whose mid-rank lies strictly below g's."""
    f, g = np.asarray(f), np.asarray(g)
    everything = np.sort(np.concatenate([f, g]))
    return float(np.searchsorted(everything, g, "left").mean() / len(everything))


def _relabelled(pooled: Array, n: int, distance: str, rng: np.random.Generator) -> float:
    order = rng.permutation(len(pooled))
    depth = TextDepth(distance).fit(pooled[order[:n]])
    return float(stats.ranksums(depth.depths_, depth.score_samples(pooled[order[n:]])).statistic)


def _units(X: NDArray, name: str) -> NDArray:
    lengths = np.linalg.norm(X, axis=1, keepdims=True)
    zero = np.flatnonzero(lengths[:, 0] == 0)
    if len(zero):
        rows = ", ".join(map(str, zero[:5])) + (" …" if len(zero) > 5 else "")
        raise ValueError(f"{name} has zero vectors, which have no direction: rows {rows}")
    return X / lengths
