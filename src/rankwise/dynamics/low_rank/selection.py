"""How many subspaces, and of how many dimensions: mixtures compared by the Bayesian information criterion.

    BIC = -2 log L + p log n,   p = Σ_k (D d_k - d_k (d_k - 1) / 2 [+ D]) + K

Each number of clusters starts expectation-maximisation from K-subspaces; where dimensions are open, from those of
1, 2, 4, … dimensions, and each step of it lets every cluster take the dimension that pays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rankwise.dynamics.low_rank.alternation import k_subspaces
from rankwise.dynamics.low_rank.mixture import Mixture, expectation_maximisation, information

PATIENCE = 2  # numbers of clusters without a gain, after which no more are tried
MOST = 64  # dimensions of a cluster that are tried


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The best mixture of one number of clusters.

    Attributes
    ----------
    model : Mixture
        With its dimensions.
    bic : float
        Its criterion: low is good.
    restarts : list of float
        Where the starts of K-subspaces ended, see `Alternation`; empty for one cluster.

    Examples
    --------
    >>> import torch
    >>> from rankwise.dynamics import low_rank_mixture
    >>> from rankwise.dynamics.low_rank.selection import selected
    >>> X = low_rank_mixture(10, 2, n_clusters=2, samples=60, noise=0.1).X
    >>> told = {"affine": False, "restarts": 5, "max_iter": 100, "tol": 1e-6}
    >>> choices = selected(X, [(1, None), (2, None)], **told, generator=torch.Generator().manual_seed(0))
    >>> [c.model.dims for c in choices], choices[1].bic < choices[0].bic
    ([[4], [2, 2]], True)
    """

    model: Mixture
    bic: float
    restarts: list[float]


def selected(
    X: Tensor, asked: Sequence[tuple[int, Sequence[int] | None]], *, affine: bool, restarts: int, max_iter: int,
    tol: float, generator: torch.Generator,
) -> list[Choice]:  # fmt: skip
    """A mixture for each number of clusters and its dimensions (None: open), until more clusters do not gain."""
    found: list[Choice] = []
    for K, dims in asked:
        fits = [
            _fitted(
                X, K, dims, begin, affine=affine, restarts=restarts, max_iter=max_iter, tol=tol, generator=generator
            )
            for begin in ([list(dims)] if dims is not None else _beginnings(K, *X.shape))
        ]
        found.append(min(fits, key=lambda c: c.bic))
        best = min(range(len(found)), key=lambda i: found[i].bic)
        if len(found) - 1 - best >= PATIENCE:
            break
    return found


def _beginnings(K: int, n: int, D: int) -> list[list[int]]:
    """Dimensions that K-subspaces starts from: powers of two with two rows each; for one cluster any will do."""
    powers = [2**j for j in range(7) if 2**j < D and 2 ** (j + 1) * K <= n] or [1]
    return [[d] * K for d in (powers if K > 1 else powers[:1])]


def _fitted(
    X: Tensor, K: int, dims: Sequence[int] | None, begin: list[int], *, affine: bool, restarts: int, max_iter: int,
    tol: float, generator: torch.Generator,
) -> Choice:  # fmt: skip
    n, D = X.shape
    ended: list[float] = []
    shares = X.new_ones(n, 1)
    if K > 1:
        start = k_subspaces(X, begin, affine=affine, restarts=restarts, generator=generator)
        shares, ended = torch.nn.functional.one_hot(start.labels, K).to(X), start.restarts
    most = min(D - 1, MOST, max(n - 1, 1))
    model = expectation_maximisation(X, shares, dims, affine=affine, max_iter=max_iter, tol=tol, most=most)
    return Choice(model=model, bic=information(model, n, affine=affine), restarts=ended)
