"""Streaming SVD: principal components of rows that arrive in batches and never fit in memory together.

Centred data matrix ``X - 1μᵀ = U diag(S) V`` with rows ``x: (d,)``. Two engines:

* ``exact`` (``d <= 4096``): accumulates the second moment ``Σ (x - s)(x - s)ᵀ`` about a shift ``s`` (the first batch's
  mean, so that centring later does not cancel digits), products in float32, sums in float64; one eigendecomposition
  when asked. The result does not depend on how the rows were cut into batches.
* ``incremental`` (wider): keeps the leading ``2k + 8`` components and folds every batch into them (Brand, 2006; Ross
  et al., 2008, for the moving mean). Memory ``O(k d)``.

Both merge: ``a.merge(b)`` is what one object would hold had it seen both streams.

What people get wrong: the total variance must come from all of the data, not from the components kept, or explained
variance ratios of layers with different tails cannot be compared.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from rankwise.spectral.accepted import exact_products, ordinary, real
from rankwise.spectral.svd import truncated_eigh, truncated_svd
from rankwise.spectral.symmetric import gram

EXACT_LIMIT = 4096
_CHUNK = 4096


class StreamingSVD:
    """Incremental SVD of a stream of rows.

    Parameters
    ----------
    n_components : int
        How many components ``k`` will be asked for; at least 1.
    center : bool
        Subtract the mean (principal components) or not (uncentred second moment, whose first direction is the mean).
    engine : {"auto", "exact", "incremental"}
        ``auto`` is ``exact`` up to 4096 features.
    forget : float
        In (0, 1]: weight of what was seen before at every new batch. 1 forgets nothing.

    Attributes
    ----------
    n_samples : float
        How many rows were seen (weighted by ``forget``).
    mean : Tensor
        The mean of the rows, ``(d,)`` float64.

    Examples
    --------
    >>> import torch
    >>> from rankwise.spectral import StreamingSVD
    >>> X = torch.randn(1000, 8)
    >>> stream = StreamingSVD(n_components=3)
    >>> for batch in X.split(100):  # a DataLoader's batches, or a layer's inputs
    ...     _ = stream.partial_fit(batch)
    >>> S, V = stream.components()
    >>> V.shape, torch.allclose(S, torch.linalg.svdvals((X - X.mean(0)).double())[:3], rtol=1e-4)
    (torch.Size([3, 8]), True)
    """

    def __init__(
        self,
        n_components: int,
        *,
        center: bool = True,
        engine: Literal["auto", "exact", "incremental"] = "auto",
        forget: float = 1.0,
    ) -> None:
        if n_components < 1:
            raise ValueError(f"n_components={n_components}; at least 1 is needed")
        if not 0 < forget <= 1:
            raise ValueError(f"forget={forget} is outside (0, 1]; 1 forgets nothing")
        if engine not in ("auto", "exact", "incremental"):
            raise ValueError(f"engine={engine!r}; one of 'auto', 'exact', 'incremental' is accepted")
        self.n_components, self.center, self.engine, self.forget = n_components, center, engine, forget
        self.n_samples = 0.0
        self.energy = 0.0
        # what each engine holds; empty until the first batch gives a width
        self.shift = self.total = self.moment = self.factor = torch.empty(0, dtype=torch.float64)
        self._waiting: list[Tensor] = []
        self._solved: tuple[Tensor, Tensor] | None = None
        self._start_from: Tensor | None = None

    @property
    def n_features(self) -> int:
        """Width ``d`` of the rows; 0 before the first batch."""
        return self.shift.shape[0]

    def partial_fit(self, X: Tensor) -> StreamingSVD:
        """Fold in rows ``X: (n, d)`` (float32, bfloat16 or float64; any device). Returns self."""
        if X.dim() != 2:
            raise ValueError(f"rows of shape (n, d) are needed, got {tuple(X.shape)}")
        if len(X) == 0:
            return self
        self._solved = None
        X = real(X, "StreamingSVD")
        if self.n_features == 0:
            self._start(X)
        if X.shape[1] != self.n_features:
            raise ValueError(f"rows of width {X.shape[1]} cannot join a stream of width {self.n_features}")
        if self.forget < 1:
            self._flush()
            self._scale(self.forget)
        for rows in X.split(_CHUNK):
            self._add(rows)
        return self

    def merge(self, other: StreamingSVD) -> StreamingSVD:
        """Fold in another stream of the same width and settings, e.g. of another process. Returns self."""
        if other.n_features == 0:
            return self
        if self.n_features == 0:
            self.__dict__.update(other.state())
            return self
        self._flush()
        other._flush()
        self._solved = None
        if (self.n_features, self.engine, self.center) != (other.n_features, other.engine, other.center):
            raise ValueError("only streams of equal width, engine and centring can be merged")
        delta = other.shift - self.shift
        n, m = self.n_samples, other.n_samples
        if self.engine == "exact":
            # re-express the other's sums about this stream's shift
            cross = torch.outer(other.total, delta)
            self.moment += other.moment + cross + cross.T + m * torch.outer(delta, delta)
        else:
            gap = (self.mean - other.mean).float() * (n * m / (n + m)) ** 0.5
            rows = [self.factor, other.factor, *([gap[None]] if self.center else [])]
            self.energy += other.energy + (float(gap.double().square().sum()) if self.center else 0.0)
            self.factor = self._truncate(torch.cat(rows))
        self.total = self.total + other.total + m * delta
        self.n_samples = n + m
        return self

    def state(self) -> dict:
        """Everything the stream holds, tensors cloned; ``stream.__dict__.update(state)`` restores it."""
        self._flush()
        return {k: v.clone() if isinstance(v, Tensor) else v for k, v in self.__dict__.items() if not k.startswith("_")}

    def all_reduce(self) -> StreamingSVD:
        """Merge the streams of all ``torch.distributed`` processes, so that each holds the whole. Returns self."""
        import torch.distributed as dist

        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return self
        states: list[dict] = [{} for _ in range(dist.get_world_size())]
        device = self.total.device
        dist.all_gather_object(states, {k: v.cpu() if isinstance(v, Tensor) else v for k, v in self.state().items()})
        merged = StreamingSVD(self.n_components)
        merged.__dict__.update(states[0])
        for state in states[1:]:  # in rank order: every process computes the same bits
            other = StreamingSVD(self.n_components)
            other.__dict__.update(state)
            merged.merge(other)
        self.__dict__.update({k: v.to(device) if isinstance(v, Tensor) else v for k, v in merged.__dict__.items()})
        return self

    @property
    def mean(self) -> Tensor:
        """Mean of the rows, ``(d,)`` float64."""
        self._need_rows()
        self._flush()
        return self.shift + self.total / self.n_samples

    @property
    def total_variance(self) -> float:
        """Sum of squares of all rows about the mean (about zero when ``center=False``)."""
        self._need_rows()
        if self.engine == "incremental":
            return max(self.energy, 0.0)
        self._flush()
        about_mean = float(self.total.square().sum()) / self.n_samples if self.center else 0.0
        return float(self.moment.diagonal().sum()) - about_mean

    def components(self, n_components: int | None = None) -> tuple[Tensor, Tensor]:
        """Singular values ``(k,)`` float64, descending, and components ``(k, d)`` float32, orthonormal rows.

        Raises
        ------
        ValueError
            No rows yet, or more components than rows or features.
        """
        self._need_rows()
        if not math.isfinite(self.total_variance):
            raise ValueError("the rows have NaN or Inf entries")
        k = n_components or self.n_components
        most = min(self.n_features, max(int(self.n_samples), 1))
        if k > most:
            raise ValueError(
                f"{k} components need at least {k} rows and features; there are {int(self.n_samples)} rows of width "
                f"{self.n_features}"
            )
        if self.engine == "exact":
            C = self.covariance()
            if self._solved is None or len(self._solved[0]) < k:
                values, vectors = truncated_eigh(C, k, start=self._start_from)
                self._solved, self._start_from = (values.sqrt(), vectors.float()), vectors
            return self._solved[0][:k], self._solved[1][:k]
        if k > len(self.factor):
            raise ValueError(f"{k} components asked for, the incremental engine kept {len(self.factor)}")
        S = self.factor.double().norm(dim=1)
        return S[:k], torch.nn.functional.normalize(self.factor[:k], dim=1)

    def explained_variance_ratio(self, n_components: int | None = None) -> Tensor:
        """``σ_j² / total variance`` of the leading components, ``(k,)`` float64."""
        S, _ = self.components(n_components)
        return S.square() / max(self.total_variance, torch.finfo(torch.float64).tiny)

    @exact_products
    def captured(self, V: Tensor) -> float:
        """Energy ``tr(V C Vᵀ)`` of the rows seen inside the span of the orthonormal rows of ``V: (k, d)``."""
        if self.engine == "exact":
            self._flush()
            V = V.double()
            about_mean = float((V @ self.total).square().sum()) / self.n_samples if self.center else 0.0
            return float((V @ self.moment * V).sum()) - about_mean
        return float((self.factor @ V.to(self.factor.dtype).mT).double().square().sum())

    def _need_rows(self) -> None:
        if self.n_features == 0:
            raise ValueError("no rows yet: call partial_fit first")

    def _start(self, X: Tensor) -> None:
        d = X.shape[1]
        if self.engine == "auto":
            self.engine = "exact" if d <= EXACT_LIMIT else "incremental"
        self.shift = X.double().mean(0) if self.center else torch.zeros(d, dtype=torch.float64, device=X.device)
        self.total = torch.zeros_like(self.shift)
        if self.engine == "exact":
            self.moment = torch.zeros(d, d, dtype=torch.float64, device=X.device)
        else:
            self.factor = X.new_zeros(0, d)

    def _scale(self, weight: float) -> None:
        self.n_samples *= weight
        self.total *= weight
        if self.engine == "exact":
            self.moment *= weight
        else:
            self.energy *= weight
            self.factor = self.factor * weight**0.5

    def _add(self, rows: Tensor) -> None:
        if self.engine == "exact":
            # a float64 update of (d, d) costs as much as the product of d rows: wait for that many
            self._waiting.append(rows - self.shift.to(rows.dtype) if self.center else rows.clone())
            self.n_samples += len(rows)
            if sum(map(len, self._waiting)) >= min(max(self.n_features, 256), _CHUNK):
                self._flush()
            return
        n, b = self.n_samples, len(rows)
        parts = [self.factor]
        if self.center:
            batch_mean = rows.double().mean(0)
            if n:  # the step of the mean is one more row of the centred matrix
                gap = (self.mean - batch_mean) * (n * b / (n + b)) ** 0.5
                parts.append(gap.to(rows.dtype)[None])
            self.total += (batch_mean - self.shift) * b
            rows = rows - batch_mean.to(rows.dtype)
        else:
            self.total += rows.double().sum(0)
        parts.append(rows)
        self.energy += sum(float(p.double().square().sum()) for p in parts[1:])
        self.n_samples = n + b
        self.factor = self._truncate(torch.cat(parts))

    def _flush(self) -> None:
        if self._waiting:
            rows = torch.cat(self._waiting)
            self._waiting.clear()
            rows = rows if ordinary(rows) else rows.double()
            self.moment += gram(rows)
            self.total += rows.double().sum(0)

    def _truncate(self, stacked: Tensor) -> Tensor:
        kept = min(2 * self.n_components + 8, *stacked.shape)
        svd = truncated_svd(stacked, kept, method="gram" if stacked.dtype == torch.float32 else "full")
        return svd.S[:, None] * svd.Vh

    def covariance(self) -> Tensor:
        """``Σ (x - μ)(x - μ)ᵀ`` (or ``Σ x xᵀ`` when ``center=False``), ``(d, d)`` float64; ``exact`` engine only."""
        self._need_rows()
        self._flush()
        if not self.center:
            return self.moment
        return self.moment - torch.outer(self.total, self.total) / self.n_samples
