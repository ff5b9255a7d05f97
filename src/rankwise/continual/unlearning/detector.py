"""One request's detector: how like the request's own texts a text is, from its states in every layer of an encoder.

Of layer l, fitted on the request's texts h_i alone:

    M_l(h) = (h - μ)ᵀ Σ⁻¹ (h - μ),   Σ⁻¹ = Σ_j v_j v_jᵀ / λ_j + ρ (I - Σ_j v_j v_jᵀ)      Ledoit–Wolf's shrinkage
    z_l(h) = 0.1 [½ M_l(h)] + 0.9 [-max_i cos(h, h_i)],   [·] standardised       u_l = 1 - z_l / 10
    g(h) = w · u(h),   w = Σ_i α_i u(h_i)                                 the linear one-class SVM over all layers

What is standardised, and what trains the SVM, are values of texts that did not fit Σ (five folds): of its own texts a
covariance in more dimensions than texts says too little. The released score is one number, ``-1000 max cos - ½ M``,
with the unshrunk pseudo-inverse, of texts that did fit it. Its two terms pull against each other, so that it needs a
router that switches off on both sides.

Kept are arrays: of a layer the mean, at most 64 directions and those of 128 texts, rounded to half precision; three
numbers of the calibration; the SVM's weights. They are not the texts, but whoever has them and the encoder can tell
whether a text was among them.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from rankwise.continual.unlearning.router import Array, Calibration
from rankwise.spectral import truncated_svd

Score = Literal["standardised", "released"]
MOST = 64  # directions of a covariance, a layer
BANK = 128  # texts whose direction is kept
SHARES = np.array([0.1, 0.9])  # of ½ M and of the cosine
FOLDS = 5
FAR = 10.0  # standard deviations from the mean at which u is 0
COSINE = 1000.0  # c of the released score
LEAST = 10  # texts


@dataclass(frozen=True, kw_only=True)
class LayerStatistics:
    """What a detector holds of every layer.

    Attributes
    ----------
    mean : array, ``(layers, d)``
    basis : array, ``(layers, k, d)``
        Orthonormal directions ``v_j``.
    inverse : array, ``(layers, k)``
        ``1/λ_j``, 0 for a direction without spread.
    rest : array, ``(layers,)``
        ``ρ``, the inverse variance of all other directions.
    bank : array, ``(layers, m, d)``
        Texts' states at length 1.

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.continual.unlearning.detector import statistics
    >>> states = np.random.default_rng(0).normal(size=(100, 2, 8))  # texts, layers, width
    >>> known = statistics(states)
    >>> known.mahalanobis(states).mean(0).round(), known.cosine(states).shape
    (array([8., 8.]), (100, 2))
    """

    mean: NDArray
    basis: NDArray
    inverse: NDArray
    rest: NDArray
    bank: NDArray

    def mahalanobis(self, h: NDArray) -> Array:
        """``M``: ``(n, layers)`` of states ``(n, layers, d)``."""
        c = (h - self.mean).swapaxes(0, 1).astype(np.float64)  # (layers, n, d)
        along = (c @ self.basis.astype(np.float64).swapaxes(1, 2)) ** 2
        beyond = np.maximum((c**2).sum(2) - along.sum(2), 0)
        return ((along * self.inverse[:, None]).sum(2) + self.rest[:, None] * beyond).T

    def cosine(self, h: NDArray) -> Array:
        """``max_i cos(h, h_i)``: ``(n, layers)``."""
        unit = _unit(h.swapaxes(0, 1).astype(np.float64))
        return (unit @ self.bank.astype(np.float64).swapaxes(1, 2)).max(2).T


def statistics(h: NDArray, *, shrunk: bool = True, rows: NDArray | None = None) -> LayerStatistics:
    """Of states ``(n, layers, d)``; ``rows`` are those whose directions are kept, all by default."""
    from sklearn.covariance import ledoit_wolf_shrinkage

    mean, basis, inverse, rest = [], [], [], []
    for layer in h.swapaxes(0, 1).astype(np.float64):
        mu, d = layer.mean(0), layer.shape[1]
        _, s, V, _ = (t.numpy() for t in truncated_svd(torch.from_numpy(layer - mu), min(layer.shape), method="full"))
        k = min(MOST, len(layer) - 1, d) if shrunk else min(len(layer) - 1, d)
        variance = s**2 / len(layer)
        shrink = float(ledoit_wolf_shrinkage(layer)) if shrunk else 0.0
        floor = shrink * variance.sum() / d  # what shrinking adds in every direction
        kept = (1 - shrink) * variance[:k] + floor
        left = (1 - shrink) * variance[k:].sum() + floor * (d - k)  # variance beyond the k directions
        solid = kept > 1e-12 * max(kept.max(), 1e-300)
        mean.append(mu)
        basis.append(V[:k])
        inverse.append(np.where(solid, 1 / np.where(solid, kept, 1), 0))
        rest.append((d - k) / left if shrunk and d > k and left > 0 else 0.0)
    own = h if rows is None else h[rows]
    half = (np.float16, np.float16, np.float32, np.float32, np.float16) if shrunk else (np.float32,) * 5
    parts = (np.stack(mean), np.stack(basis), np.stack(inverse), np.array(rest), _unit(own.swapaxes(0, 1)))
    names = [f.name for f in fields(LayerStatistics)]
    return LayerStatistics(**{n: np.asarray(p, t) for n, p, t in zip(names, parts, half, strict=True)})


@dataclass(frozen=True, kw_only=True)
class OneClass:
    """A linear one-class SVM as arrays.

    Attributes
    ----------
    weights : array, ``(layers,)``
    offset : float
        Score at the boundary: ``decision_function = score - offset``.

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.continual.unlearning.detector import OneClass
    >>> svm = OneClass.fit(np.random.default_rng(0).normal(1, 0.1, size=(100, 3)), nu=0.1)
    >>> bool(svm.score(np.ones((1, 3))) > svm.offset), bool(svm.score(np.zeros((1, 3))) > svm.offset)
    (True, False)
    """

    weights: Array
    offset: float

    @classmethod
    def fit(cls, u: Array, nu: float) -> OneClass:
        """On vectors ``(n, layers)``, of which about a share ``nu`` ends up outside."""
        from sklearn.svm import OneClassSVM

        svm = OneClassSVM(kernel="linear", nu=nu).fit(u)
        weights = np.asarray(svm.coef_, np.float64)[0]
        return cls(weights=weights, offset=float(svm.offset_[0]))

    def score(self, u: Array) -> Array:
        """As scikit-learn's ``score_samples``."""
        return u @ self.weights


@dataclass(frozen=True, kw_only=True)
class Detector:
    """How like one request a text is.

    Attributes
    ----------
    statistics : LayerStatistics
    centre, scale : array, ``(2, layers)``
        Mean and standard deviation of ½ M and of -max cos.
    svm : OneClass
    calibration : Calibration
    score : {"standardised", "released"}

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.continual.unlearning.detector import Detector
    >>> rng = np.random.default_rng(0)
    >>> detector = Detector.fit(rng.normal(size=(60, 2, 8)))  # texts, layers, width
    >>> far = detector.scores(rng.normal(5, 1, size=(3, 2, 8)))
    >>> detector.calibration.likeness(far).round(6).tolist()
    [0.0, 0.0, 0.0]
    """

    statistics: LayerStatistics
    centre: Array
    scale: Array
    svm: OneClass
    calibration: Calibration
    score: Score

    @classmethod
    def fit(cls, h: NDArray, *, score: Score = "standardised", nu: float = 0.1, seed: int = 0) -> Detector:
        """On a request's own states ``(n, layers, d)``: four fifths fit, the others calibrate.

        Raises
        ------
        ValueError
            Fewer than ten texts, or texts that are all alike.
        """
        if importlib.util.find_spec("sklearn") is None:
            raise ImportError("detectors are fitted by scikit-learn: pip install scikit-learn")
        if len(h) < LEAST:
            raise ValueError(f"a detector needs at least {LEAST} examples, and the request has {len(h)}")
        if np.ptp(h, axis=0).max() == 0:
            raise ValueError("the examples of the request are all the same: nothing tells what else is like them")
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(h))
        fitted, held = h[order[: len(h) * 4 // 5]], h[order[len(h) * 4 // 5 :]]
        ours = score == "standardised"
        rows = np.sort(rng.permutation(len(fitted))[:BANK]) if ours else None
        known = statistics(fitted, shrunk=ours, rows=rows)
        terms = _terms(known, fitted) if not ours else _cross_fitted(fitted)
        centre, scale = terms.mean(1), np.maximum(terms.std(1), 1e-9)
        svm = OneClass.fit(_vectors(terms, centre, scale, score), nu)
        a = svm.score(_vectors(terms, centre, scale, score))
        b = svm.score(_vectors(_terms(known, held), centre, scale, score))
        spread = np.concatenate([a - a.mean(), b - b.mean()]).std() if ours else b.std()
        calibration = Calibration(float(a.mean()), float(b.mean()), max(float(spread), 1e-9))
        return cls(statistics=known, centre=centre, scale=scale, svm=svm, calibration=calibration, score=score)

    def scores(self, h: NDArray) -> Array:
        """``g``: ``(n,)`` of states ``(n, layers, d)``."""
        return self.svm.score(_vectors(_terms(self.statistics, h), self.centre, self.scale, self.score))

    def arrays(self) -> dict[str, NDArray]:
        """All that it is, by name."""
        c = self.calibration
        numbers = np.array([self.svm.offset, c.fitted, c.held_out, c.std])
        layers = {f.name: getattr(self.statistics, f.name) for f in fields(LayerStatistics)}
        return layers | {"centre": self.centre, "scale": self.scale, "svm": self.svm.weights, "numbers": numbers}

    @classmethod
    def of(cls, arrays: dict[str, NDArray], score: Score) -> Detector:
        """From `arrays`.

        Raises
        ------
        ValueError
            Arrays that are missing, are not finite, or do not fit together.
        """
        names = [*(f.name for f in fields(LayerStatistics)), "centre", "scale", "svm", "numbers"]
        if lost := [n for n in names if n not in arrays]:
            raise ValueError(f"{lost[0]} is missing")
        if strange := [n for n in names if not np.isfinite(arrays[n]).all()]:
            raise ValueError(f"{strange[0]} is not finite")
        basis, bank = arrays["basis"], arrays["bank"]
        if basis.ndim != 3 or bank.ndim != 3 or 0 in (*basis.shape, *bank.shape):
            raise ValueError(f"basis and bank are {basis.shape} and {bank.shape}: (layers, rows, width) is needed")
        layers, k, d = basis.shape
        shapes = {"mean": (layers, d), "inverse": (layers, k), "rest": (layers,), "bank": (layers, bank.shape[1], d),
                  "centre": (2, layers), "scale": (2, layers), "svm": (layers,), "numbers": (4,)}  # fmt: skip
        for name, shape in shapes.items():
            if arrays[name].shape != shape:
                raise ValueError(f"{name} is {arrays[name].shape}, and {shape} is needed")
        if not (arrays["scale"] > 0).all():
            raise ValueError("scale must be above 0")
        offset, *numbers = (float(x) for x in arrays["numbers"])
        return cls(
            statistics=LayerStatistics(**{f.name: arrays[f.name] for f in fields(LayerStatistics)}),
            centre=arrays["centre"], scale=arrays["scale"], score=score, calibration=Calibration(*numbers),
            svm=OneClass(weights=arrays["svm"], offset=offset),
        )  # fmt: skip

    def bytes(self) -> int:
        """Of all arrays."""
        return sum(a.nbytes for a in self.arrays().values())


def most_bytes(layers: int, width: int) -> int:
    """Of a detector of the standardised score at most."""
    return layers * ((MOST + BANK) * width * 2 + 4 * width + 4 * MOST + 4 + 8 * 5) + 8 * 4


def _terms(known: LayerStatistics, h: NDArray) -> Array:
    """½ M and -max cos: ``(2, n, layers)``."""
    return np.stack([known.mahalanobis(h) / 2, -known.cosine(h)])


def _cross_fitted(h: NDArray) -> Array:
    """The same of texts by what the others say."""
    out, fold = np.zeros((2, *h.shape[:2])), np.arange(len(h)) % min(FOLDS, len(h))
    for k in range(fold.max() + 1):
        out[:, fold == k] = _terms(statistics(h[fold != k]), h[fold == k])
    return out


def _vectors(terms: Array, centre: Array, scale: Array, score: Score) -> Array:
    if score == "released":
        return COSINE * terms[1] - terms[0]
    return 1 - np.tensordot(SHARES, (terms - centre[:, None]) / scale[:, None], 1) / FAR


def _unit(h: NDArray) -> NDArray:
    return h / np.maximum(np.linalg.norm(h, axis=-1, keepdims=True), 1e-12)
