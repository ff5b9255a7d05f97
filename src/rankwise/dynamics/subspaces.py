"""Clusters that are subspaces: what a diffusion model learns of data of low rank, as an estimator.

    x = U_k a + e,   a ~ N(0, Λ_k) of dimension d_k,   e ~ N(0, σ² I),   k ~ π,   U_k: (D, d_k) orthonormal

is a mixture of low-rank Gaussians. Its optimal denoiser (`rankwise.dynamics.MoLRGDenoiser`) projects onto the U_k,
weighted by how much of the noisy row each holds. So training it is to find subspaces: for one of them exactly principal
components, whatever the noise schedule; for several, once the weights are replaced by a hard choice on clean rows,

    maximise Σ_k Σ_{i∈C_k} ‖U_kᵀ x_i‖²,   C_k: the rows of which U_k holds the most,

over bases that are orthonormal together. From N_k ≥ d_k rows a subspace can be told at all; from fewer, the objective
has flat directions, along which every choice is as good.

`SubspaceClustering` solves that (``k-subspaces``), or fits the mixture itself with its noise (``em``), which can also
say how many subspaces there are and how many dimensions each has (``"auto"``).

Source: Wang, Zhang, Zhang, Chen, Ma & Qu, "Diffusion Models Learn Low-Dimensional Distributions via Subspace
Clustering", arXiv 2409.02426. Its authors' parametrised denoiser is not released; nothing here follows code of theirs.

What people get wrong: subspaces through the origin. Pictures have a mean; ``affine=True`` gives each cluster its own
(not in the paper). And one start: the objective has many local optima, so that ``restarts_`` tells how often the best
was found.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.exceptions import NotFittedError
from sklearn.utils import check_random_state
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from rankwise.dynamics.low_rank.alternation import k_subspaces, residuals
from rankwise.dynamics.low_rank.mixture import Mixture, least_noise
from rankwise.dynamics.low_rank.selection import Choice, selected
from rankwise.nearest import unknown
from rankwise.spectral import singular_values

__all__ = ["IdentifiabilityWarning", "SubspaceClustering"]

METHODS = ("em", "k-subspaces")
SIZES = (1e-100, 1e100)  # of the largest entry: squares of smaller and larger ones leave float64
Array = NDArray[np.float64]
_validated: Any = validate_data  # scikit-learn's own types are those of its defaults


class IdentifiabilityWarning(UserWarning):
    """Subspaces that the rows do not determine.

    Examples
    --------
    >>> import warnings
    >>> import numpy as np
    >>> from rankwise.dynamics import SubspaceClustering
    >>> X = np.random.default_rng(0).normal(size=(3, 8))  # three rows cannot tell a subspace of five dimensions
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     model = SubspaceClustering(1, 5, method="k-subspaces").fit(X)
    >>> [w.category.__name__ for w in caught]
    ['IdentifiabilityWarning']
    """


class SubspaceClustering(ClusterMixin, BaseEstimator):
    """Clusters that are low-dimensional subspaces.

    Parameters
    ----------
    n_clusters : int or "auto"
        K. ``"auto"`` (``em``): from 1 up to ``max_clusters``, by the Bayesian information criterion.
    dim : int, sequence of int or "auto"
        d, or one a cluster, each below the number of columns. ``"auto"`` (``em``): one a cluster, by the same
        criterion; 0 where a cluster has no direction of its own.
    method : {"em", "k-subspaces"}
        The mixture with noise by expectation-maximisation, started from K-subspaces; or K-subspaces alone, to which a
        row belongs whole.
    affine : bool
        Subspaces go through the means of their rows instead of the origin.
    orthogonal : bool
        For ``k-subspaces``: bases are orthonormal all together, as the theory has it; Σ d_k is at most the number of
        columns.
    max_clusters : int
        Where ``"auto"`` ends.
    n_init : int
        Starts of K-subspaces, which go on as one computation.
    max_iter, tol :
        Most steps; least gain of a step: of the mean log-likelihood (``em``), of the share of ‖X‖² (``k-subspaces``).
    random_state : int, RandomState or None
        Of the starts. Default 0; None draws anew.

    Attributes
    ----------
    labels_ : ndarray of int
        ``(n,)``.
    subspaces_ : list of ndarray
        ``(D, d_k)``, orthonormal columns, the direction of largest variance first.
    means_ : ndarray
        ``(K, D)``; zero unless ``affine``.
    dims_ : ndarray of int
        d_k.
    n_clusters_ : int
        K.
    spectra_ : list of ndarray
        Variances of each cluster's rows along its principal directions, all that there are.
    path_ : list of float
        After each step, mean log-likelihood (``em``), or the sum of squared distances (``k-subspaces``).
    n_iter_ : int
        Steps of the fit that was kept.
    restarts_ : list of float
        The sum of squared distances where each start ended, ascending, before the best one went on to full
        precision; empty for one cluster by ``em``.
    mixture_ : object
        ``em``: its weights, variances and noise, as torch tensors.
    choices_ : list of dict
        What ``"auto"`` compared: ``n_clusters``, ``dims``, ``bic``.
    n_features_in_ : int
        Columns of the training rows.

    Notes
    -----
    Rows are taken as float64, on the CPU.

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.dynamics import SubspaceClustering
    >>> rng = np.random.default_rng(0)
    >>> plane, line = np.linalg.qr(rng.normal(size=(10, 2)))[0], np.linalg.qr(rng.normal(size=(10, 1)))[0]
    >>> X = np.vstack([rng.normal(size=(80, 2)) @ plane.T, rng.normal(size=(40, 1)) @ line.T])
    >>> X += 0.01 * rng.normal(size=X.shape)
    >>> model = SubspaceClustering("auto", "auto").fit(X)
    >>> model.n_clusters_, sorted(model.dims_.tolist())
    (2, [1, 2])
    """

    def __init__(
        self,
        n_clusters: int | str = 2,
        dim: int | Sequence[int] | str = 1,
        *,
        method: str = "em",
        affine: bool = False,
        orthogonal: bool = False,
        max_clusters: int = 10,
        n_init: int = 10,
        max_iter: int = 200,
        tol: float = 1e-6,
        random_state: int | np.random.RandomState | None = 0,
    ) -> None:
        self.n_clusters = n_clusters
        self.dim = dim
        self.method = method
        self.affine = affine
        self.orthogonal = orthogonal
        self.max_clusters = max_clusters
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: object = None) -> SubspaceClustering:
        """Fit to rows ``(n, D)``.

        Raises
        ------
        ValueError
            NaN, entries of which none exceeds 1e-100 or one 1e100, fewer rows or different rows than clusters, a
            dimension that is not below D, options out of range or that the method does not have.

        Warns
        -----
        IdentifiabilityWarning
            A cluster of fewer rows than dimensions; subspaces that cannot be independent, since Σ d_k exceeds D;
            ``"auto"`` where rows lie within subspaces without noise (columns that are constant or follow from others
            do that to real tables): likelihoods, and what they choose, then mean little.
        """
        data = torch.tensor(_validated(self, X, dtype=np.float64))
        self._check()
        dims = self._dims(data)
        generator = torch.Generator().manual_seed(int(check_random_state(self.random_state).randint(2**31 - 1)))
        self.choices_: list[dict[str, Any]] = []
        if self.method == "em":
            labels, bases, means = self._mixture(data, dims, generator)
        else:
            assert dims is not None
            found = k_subspaces(
                data, dims, affine=self.affine, orthogonal=self.orthogonal, restarts=self.n_init,
                max_iter=self.max_iter, tol=self.tol, generator=generator,
            )  # fmt: skip
            labels, bases, means = found.labels, found.bases, found.means
            vars(self).pop("mixture_", None)  # of an earlier fit by the other method
            self.path_, self.restarts_ = found.path, found.restarts
        self.labels_ = labels.numpy().astype(np.int64)
        self.means_, self.dims_ = means.numpy(), np.array([U.shape[1] for U in bases])
        self.n_clusters_, self.n_iter_ = len(bases), len(self.path_)
        self._record(data, labels, bases, means)
        return self

    def predict(self, X: ArrayLike) -> NDArray[np.int64]:
        """The cluster of each row: the most probable (``em``), or the nearest subspace."""
        data = self._rows(X)
        scores = self.mixture_.log_joint(data) if hasattr(self, "mixture_") else -self._residuals(data)
        return scores.argmax(1).numpy().astype(np.int64)

    @available_if(lambda self: self.method == "em")
    def predict_proba(self, X: ArrayLike) -> Array:
        """Probabilities ``(n, K)`` of the clusters; for ``em``."""
        data = self._rows(X)
        if not hasattr(self, "mixture_"):
            raise NotFittedError("fitted by method='k-subspaces', which has no probabilities: fit again by 'em'")
        return self.mixture_.log_joint(data).softmax(1).numpy()

    def score_samples(self, X: ArrayLike) -> Array:
        """Log-likelihood of each row (``em``), or the squared distance to its nearest subspace with a minus."""
        data = self._rows(X)
        if hasattr(self, "mixture_"):
            return self.mixture_.log_joint(data).logsumexp(1).numpy()
        return -self._residuals(data).amin(1).numpy()

    def score(self, X: ArrayLike, y: object = None) -> float:
        """Mean of `score_samples`: the higher, the better."""
        return float(self.score_samples(X).mean())

    def _mixture(
        self, X: Tensor, dims: list[int] | None, generator: torch.Generator
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        K = self.n_clusters
        numbers = range(1, min(self.max_clusters, len(X)) + 1) if isinstance(K, str) else [K]
        asked = [None if dims is None else dims * k if isinstance(K, str) else dims for k in numbers]
        choices: list[Choice] = selected(
            X, list(zip(numbers, asked, strict=True)), affine=self.affine, restarts=self.n_init, max_iter=self.max_iter,
            tol=self.tol, generator=generator,
        )  # fmt: skip
        best = min(choices, key=lambda c: c.bic)
        if isinstance(K, str) or dims is None:
            self.choices_ = [{"n_clusters": len(c.model.bases), "dims": c.model.dims, "bic": c.bic} for c in choices]
        self.mixture_: Mixture = best.model
        self.path_, self.restarts_ = best.model.path, best.restarts
        return best.model.log_joint(X).argmax(1), best.model.bases, best.model.means

    def _record(self, X: Tensor, labels: Tensor, bases: list[Tensor], means: Tensor) -> None:
        """Bases in the order of variance, the spectra, and what is to be warned of."""
        self.subspaces_, self.spectra_, counts = [], [], torch.bincount(labels, minlength=len(bases)).tolist()
        for k, U in enumerate(bases):
            rows = X[labels == k] - means[k]
            order = (rows @ U).square().sum(0).argsort(descending=True)
            self.subspaces_.append(U[:, order].numpy())
            some = len(rows) > 0
            self.spectra_.append((singular_values(rows).square() / len(rows)).numpy() if some else np.zeros(0))
        if few := [k for k, U in enumerate(bases) if counts[k] < U.shape[1]]:
            warnings.warn(
                f"cluster {few[0]} has {counts[few[0]]} rows and dimension {bases[few[0]].shape[1]}: its subspace is "
                "not identifiable; lower dim or n_clusters, or give more rows",
                IdentifiabilityWarning,
                stacklevel=3,
            )
        if self.choices_ and self.mixture_.noise <= least_noise(X, affine=self.affine):
            warnings.warn(
                "rows lie within the subspaces without noise: likelihoods, and what they chose, mean little; leave out "
                "columns that are constant or follow from others, or rows that repeat, or give dim",
                IdentifiabilityWarning,
                stacklevel=3,
            )
        if (total := int(self.dims_.sum())) > X.shape[1] and len(bases) > 1:
            warnings.warn(
                f"dimensions of {total} in all exceed the {X.shape[1]} columns: the subspaces cannot be independent",
                IdentifiabilityWarning,
                stacklevel=3,
            )

    def _rows(self, X: ArrayLike) -> Tensor:
        check_is_fitted(self)
        return torch.tensor(_validated(self, X, dtype=np.float64, reset=False))

    def _residuals(self, X: Tensor) -> Tensor:
        width = max(1, *(U.shape[1] for U in self.subspaces_))
        padded = [np.pad(U, ((0, 0), (0, width - U.shape[1]))) for U in self.subspaces_]
        return residuals(X, torch.from_numpy(np.stack(padded))[None], torch.from_numpy(self.means_)[None])[0]

    def _check(self) -> None:
        if self.method not in METHODS:
            raise unknown("method", str(self.method), METHODS)
        for name in ("n_clusters", "dim"):
            value = getattr(self, name)
            if isinstance(value, str):
                if value != "auto":
                    raise unknown(name, value, ("auto", "a number"))
                if self.method != "em":
                    raise ValueError(f"{name}='auto' compares likelihoods: method='em' is needed, got '{self.method}'")
        if self.orthogonal and (self.method == "em" or self.affine):
            raise ValueError(
                "orthogonal=True is for method='k-subspaces' with affine=False: the mixture's subspaces are free, and "
                "orthogonal ones go through the origin"
            )
        numbers = [("n_clusters", self.n_clusters)] if not isinstance(self.n_clusters, str) else []
        for name, value in [*numbers, *((n, getattr(self, n)) for n in ("max_clusters", "n_init", "max_iter"))]:
            if not isinstance(value, Integral) or isinstance(value, bool) or int(value) < 1:
                raise ValueError(f"{name} is {value!r}; a whole number of at least 1 is accepted")
        if not isinstance(self.tol, Real) or not 0 <= float(self.tol) < np.inf:
            raise ValueError(f"tol is {self.tol!r}; a finite number of at least 0 is accepted")

    def _dims(self, X: Tensor) -> list[int] | None:
        """The dimensions asked for, one a cluster (one alone for an open number of clusters); None for "auto"."""
        n, D = X.shape
        K = 1 if isinstance(self.n_clusters, str) else int(self.n_clusters)
        if n < K or n < 2:
            raise ValueError(f"n_samples={n} rows for {K} clusters: at least as many rows, and 2, are needed")
        if not bool((X[0] != X if self.affine else X).any()):
            raise ValueError(f"all rows are {'equal' if self.affine else 'zero'}: they have no direction")
        if not SIZES[0] < (size := float(X.abs().max())) < SIZES[1]:
            raise ValueError(f"the largest entry is {size:.3g}; {SIZES[0]:g} to {SIZES[1]:g} is accepted: rescale X")
        if K > 1 and (different := len(np.unique(X.numpy(), axis=0))) < K:
            raise ValueError(f"X has {different} different rows for {K} clusters; lower n_clusters")
        if isinstance(self.dim, str):
            if D < 2:
                raise ValueError(f"n_features={D}: a subspace needs at least 2 columns to lie in")
            return None
        single = not isinstance(self.dim, Sequence | np.ndarray)
        given: list[Any] = [self.dim] * K if single else list(self.dim)  # pyright: ignore[reportArgumentType]  (a sequence)
        if len(given) != K or (isinstance(self.n_clusters, str) and not single):
            raise ValueError(
                f"dim has {len(given)} entries for n_clusters={self.n_clusters!r}: one a cluster is needed"
            )
        for d in given:
            if not isinstance(d, Integral) or isinstance(d, bool) or not 1 <= int(d) < D:
                raise ValueError(f"dim={d!r} with n_features={D}: a whole number from 1 to {D - 1} is accepted")
        dims = [int(d) for d in given]
        if self.orthogonal and sum(dims) > D:
            raise ValueError(
                f"{K} orthogonal subspaces of dimensions {dims} need {sum(dims)} columns, X has {D}: lower dim or "
                "n_clusters, or leave orthogonal out"
            )
        return dims
