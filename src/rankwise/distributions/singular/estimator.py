"""Likelihood for data near a low-dimensional set: perturb the data, fit a generative network, sample without noise.

    X̃ = X + σ̃ ε,   maximise Σ log p_{f,σ}(X̃_i),   Q̂ = law of f̂(Z)

Where data lie (nearly) on a set of dimension q < D, the likelihood is unbounded: σ̂ falls to zero and f̂ passes through
single points. Noise of a chosen level σ̃ keeps it bounded, and f̂, which carries no noise, still estimates the singular
law. Likelihoods at different σ̃ are of different data; the level is chosen by the sliced Wasserstein distance between
f̂(Z) and held-out rows. All levels train as one batched computation.

Source: Chae, Kim, Kim & Lin, "A Likelihood Approach to Nonparametric Estimation of a Singular Distribution Using Deep
Generative Models", JMLR 2023, arXiv 2105.04046; networks and bound: `networks`.

What people get wrong: reading ``score_samples`` as a density of the data. It is that of the perturbed data.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from rich.progress import track
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from rankwise.distributions.accepted import rows_of
from rankwise.distributions.seeds import seed_of
from rankwise.distributions.singular.networks import Ensemble, directions, sliced_wasserstein
from rankwise.files import whole_file
from rankwise.nearest import unknown
from rankwise.reading import parse_json, tensor_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["SingularGenerativeEstimator"]

Array = NDArray[np.float64]
NOISE_GRID = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
_CHECK = 10  # epochs between two looks at the distance to held-out rows
_DIRECTIONS, _DRAWS = 64, 2000  # of that distance


class DegenerateWarning(UserWarning):
    """The likelihood is unbounded: σ̂ is at its floor.

    Examples
    --------
    >>> import warnings
    >>> import numpy as np
    >>> from rankwise.distributions import SingularGenerativeEstimator
    >>> line = np.random.default_rng(0).normal(size=(100, 1)) * [[1.0, 2.0]]  # no noise at all
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     model = SingularGenerativeEstimator(1, noise=0.0, hidden=()).fit(line)
    >>> [w.category.__name__ for w in caught]
    ['DegenerateWarning']
    """


class GridEdgeWarning(UserWarning):
    """The level chosen is the grid's largest.

    Examples
    --------
    >>> import warnings
    >>> import numpy as np
    >>> from rankwise.distributions import SingularGenerativeEstimator
    >>> X = np.random.default_rng(0).normal(size=(100, 3))
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     model = SingularGenerativeEstimator(1, noise_grid=(0.0, 0.2), refresh=False, hidden=()).fit(X)
    >>> [w.category.__name__ for w in caught]
    ['GridEdgeWarning']
    """


class SingularGenerativeEstimator(BaseEstimator):
    """Deep generative model of a singular distribution, by maximum likelihood on perturbed data.

    Parameters
    ----------
    latent_dim : int
        q, below the number of columns.
    noise : "auto" or float
        σ̃ in X's units, or chosen from ``noise_grid``.
    noise_grid : sequence of float
        Levels as shares of the data's scale, the root of the mean variance of a column.
    objective : {"iwae", "vae"}
        The bound with ``draws`` draws, or with one.
    draws : int
        K.
    hidden : tuple of int
        Widths of f. Empty: f is linear, and the maximum is taken in closed form (probabilistic principal components),
        to which no option of the optimiser matters.
    refresh : bool
        Draw the perturbation anew every epoch, which regularises more (a linear f: its expectation); False: once, as in
        the paper's theory.
    anneal : bool
        Begin with a perturbation of the data's scale and lower it to σ̃ over the first half of the epochs.
    sigma_floor : float
        Least σ̂, as a share of the data's scale.
    lr, batch_size, epochs :
        Adam, with a learning rate that falls to zero along a cosine.
    patience : int
        Stop when no level came nearer to the held-out rows in so many epochs.
    validation : float
        Share of the rows held out.
    device : str, optional
        Where the networks are trained and used, such as ``"cuda"``; torch's default device by default.
    random_state : int or None
        Decides the rows held out, the perturbation, the start and the batches. Default 0; None draws anew.
    verbose : bool
        Show progress.

    Attributes
    ----------
    noise_ : float
        The level chosen, in X's units.
    sigma_ : float
        σ̂ of its fit.
    noise_path_ : DataFrame
        A row a level: ``noise`` and ``sigma`` in X's units, ``relative`` noise, sliced ``wasserstein`` distance to the
        held-out rows, ``epoch`` kept (0 in closed form), whether σ̂ is ``at_floor``.
    columns_ : ndarray of bool
        Columns that vary; the others are restored in samples.
    n_features_in_ : int
        Columns of the training rows.

    Notes
    -----
    CPU and GPU; float32 networks, input and output in float64. Columns are centred and divided by one scale, so that
    noise stays isotropic and fits do not depend on a rotation of the data.

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.distributions import SingularGenerativeEstimator
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(300, 1)) * [[1.0, 2.0]] + 0.1 * rng.normal(size=(300, 2))  # near a line of slope 2
    >>> model = SingularGenerativeEstimator(latent_dim=1, noise=0.1, hidden=()).fit(X)
    >>> points = model.sample(200, random_state=0)
    >>> slope, _ = np.polyfit(*points.T, 1)
    >>> points.shape, round(float(slope), 1)
    ((200, 2), 2.0)
    """

    def __init__(
        self,
        latent_dim: int = 1,
        *,
        noise: float | str = "auto",
        noise_grid: Sequence[float] = NOISE_GRID,
        objective: str = "iwae",
        draws: int = 16,
        hidden: tuple[int, ...] = (128, 128, 128),
        refresh: bool = True,
        anneal: bool = False,
        sigma_floor: float = 1e-3,
        lr: float = 1e-3,
        batch_size: int = 64,
        epochs: int = 300,
        patience: int = 150,
        validation: float = 0.2,
        device: str | None = None,
        random_state: int | None = 0,
        verbose: bool = False,
    ) -> None:
        self.latent_dim = latent_dim
        self.noise = noise
        self.noise_grid = noise_grid
        self.objective = objective
        self.draws = draws
        self.hidden = hidden
        self.refresh = refresh
        self.anneal = anneal
        self.sigma_floor = sigma_floor
        self.lr = lr
        self.batch_size = batch_size
        self.epochs = epochs
        self.patience = patience
        self.validation = validation
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: ArrayLike, y: object = None) -> SingularGenerativeEstimator:
        """Fit to ``(n, D)``.

        Raises
        ------
        ValueError
            NaN, latent_dim not below the number of columns that vary, fewer than ``latent_dim + 2`` training rows,
            negative noise, options out of range.

        Warns
        -----
        DegenerateWarning
            σ̂ of the level chosen is at its floor.
        GridEdgeWarning
            The level chosen is the largest of several.
        """
        data = rows_of(self, X, ensure_min_samples=2)
        self._check()
        self.mean_, variance = data.mean(0), data.var(0)
        self.columns_ = variance > 1e-24 * np.maximum(self.mean_**2, 1e-300)
        self.scale_ = float(np.sqrt(variance[self.columns_].mean())) if self.columns_.any() else 1.0
        D, held = int(self.columns_.sum()), max(int(self.validation * len(data)), 1)
        if self.latent_dim >= D:
            raise ValueError(
                f"latent_dim is {self.latent_dim}, and {D} of {data.shape[1]} feature(s) vary: a singular law needs a "
                "latent_dim below that"
            )
        if len(data) - held < self.latent_dim + 2:
            raise ValueError(
                f"{len(data)} samples leave {len(data) - held} for training; latent_dim {self.latent_dim} needs "
                f"at least {self.latent_dim + 2}"
            )
        if isinstance(self.noise, str):
            relative = np.asarray(self.noise_grid, dtype=float)
        else:
            relative = np.array([self.noise / self.scale_])
        self.seed_ = seed_of(self.random_state)
        g = torch.Generator().manual_seed(self.seed_)
        order = torch.randperm(len(data), generator=g, device="cpu")
        x = torch.as_tensor((data - self.mean_)[:, self.columns_] / self.scale_, dtype=torch.float32)[order]
        self._train(x[held:], x[:held], relative, g)
        best = int(self.noise_path_["wasserstein"].to_numpy().argmin())
        self.noise_, self.sigma_ = (float(self.noise_path_[c].iloc[best]) for c in ("noise", "sigma"))
        if self.noise_path_["at_floor"].iloc[best]:
            warnings.warn(
                f"sigma is at its floor {self.sigma_:.3g}: the likelihood is unbounded at noise {self.noise_:.3g}; "
                "a larger noise keeps it bounded",
                DegenerateWarning,
                stacklevel=2,
            )
        if len(relative) > 1 and best == relative.argmax():
            warnings.warn(
                f"the nearest level is the largest of noise_grid ({relative[best]:g} data scales); a larger one "
                "may be nearer",
                GridEdgeWarning,
                stacklevel=2,
            )
        return self

    def sample(
        self, n_samples: int = 1, *, noise: float | None = None, observed: bool = False, random_state: int = 0
    ) -> Array:
        """Points ``(n_samples, D)`` of the singular law, ``f̂(Z)``.

        Parameters
        ----------
        n_samples : int
            How many points. Default 1.
        noise : float, optional
            By the fit at the level of ``noise_path_`` nearest to this, instead of the chosen one.
        observed : bool
            Add the noise of the fitted law of X, ``(σ̂² - σ̃²)₊^{1/2} ε``.
        random_state : int
            Decides the draws. Default 0.
        """
        check_is_fitted(self)
        g, member = torch.Generator().manual_seed(random_state), self._member(noise)
        with torch.no_grad():
            f = self.net_.decoder(self._normal(g, 1, n_samples, self.latent_dim).expand(len(self.relative_), -1, -1))
            if observed:
                rest = (2 * self.net_.log_sigma).exp() - torch.as_tensor(self.relative_).to(f).square()
                f = f + rest.clamp(min=0).sqrt()[:, None, None] * self._normal(g, *f.shape[1:])
        out = np.tile(self.mean_, (n_samples, 1))
        out[:, self.columns_] += f[member].double().cpu().numpy() * self.scale_
        return out

    def score_samples(self, X: ArrayLike, *, draws: int = 512, quadrature: bool = False) -> Array:
        """Log-density ``(n,)`` at X of the law of the *perturbed* data, over the columns that vary.

        Parameters
        ----------
        X : array_like
            ``(n, D)``.
        draws : int
            K of the importance weighted estimate, at most the log-density in the mean.
        quadrature : bool
            By the trapezoidal rule instead (latent_dim 1 or 2).
        """
        check_is_fitted(self)
        given = rows_of(self, X, reset=False)
        x = torch.as_tensor((given - self.mean_)[:, self.columns_] / self.scale_).to(self._device())
        x, net = x.expand(len(self.relative_), -1, -1), deepcopy(self.net_).double()
        g, parts = torch.Generator().manual_seed(self.seed_), []
        shared = self._normal(g, 1, draws, 1, self.latent_dim).double()  # a row's score does not depend on the others
        with torch.no_grad():
            for rows in x.split(256, 1):
                every = shared.expand(len(x), -1, rows.shape[1], -1)
                parts.append(net.quadrature(rows) if quadrature else net.bound(rows, every))
        found = torch.cat(parts, 1)[self._member(None)].double().cpu().numpy()
        return found - x.shape[-1] * math.log(self.scale_)

    def score(self, X: ArrayLike, y: object = None) -> float:
        """Mean of `score_samples`."""
        return float(self.score_samples(X).mean())

    def plot_noise_path(self, ax: Axes | None = None) -> Axes:
        """Distance to the held-out rows and σ̂ against σ̃."""
        from matplotlib import pyplot as plt

        check_is_fitted(self)
        ax = plt.gca() if ax is None else ax
        path = self.noise_path_
        ax.plot(path["noise"], path["wasserstein"], marker="o", color="#0072b2")
        ax.axvline(self.noise_, color="#d55e00", lw=1, ls="--", label="chosen")
        ax.set_xscale(
            "symlog", linthresh=max(float(path["noise"][path["noise"] > 0].min()), 1e-12) if len(path) > 1 else 1
        )
        ax.set_xlabel("perturbation σ̃")
        ax.set_ylabel("sliced W1 to held-out rows", color="#0072b2")
        right = ax.twinx()
        right.plot(path["noise"], path["sigma"], marker=".", ls=":", color="#009e73")
        right.set_ylabel("fitted σ", color="#009e73")
        ax.legend(frameon=False)
        return ax

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, in one step."""
        from safetensors.torch import save_file

        check_is_fitted(self)
        path = Path(path)
        kept = {
            "parameters": self.get_params() | {"random_state": self.seed_},
            "noise_path": self.noise_path_.to_dict("list"),
            "noise": self.noise_,
            "sigma": self.sigma_,
            "scale": self.scale_,
        }
        tensors = {k: v.detach().cpu().contiguous() for k, v in self.net_.state_dict().items()}
        tensors |= {"mean": torch.as_tensor(self.mean_), "columns": torch.as_tensor(self.columns_)}
        with whole_file(path) as draft:
            save_file(tensors, draft, metadata={"rankwise": json.dumps(kept)})

    @classmethod
    def load(cls, path: str | Path) -> SingularGenerativeEstimator:
        """Read what `save` wrote.

        Raises
        ------
        ValueError
            Not such a file.
        """
        try:
            with tensor_file(Path(path)) as opened:
                kept = parse_json((opened.metadata() or {})["rankwise"], str(path))
                tensors = {k: opened.get_tensor(k) for k in opened.keys()}  # noqa: SIM118
            model = cls(**kept["parameters"])
            model.mean_, model.columns_ = tensors.pop("mean").double().numpy(), tensors.pop("columns").bool().numpy()
            model.noise_, model.sigma_, model.scale_ = (float(kept[k]) for k in ("noise", "sigma", "scale"))
            model.noise_path_ = pd.DataFrame(kept["noise_path"])
            model.relative_ = model.noise_path_["relative"].to_numpy(dtype=float)
            vars(model)["n_features_in_"] = len(model.mean_)  # scikit-learn sets it in `validate_data`
            model._check()
            model.seed_ = seed_of(model.random_state)
            if len(model.columns_) != len(model.mean_) or len(tensors) != 4 * (len(model.hidden) + 1) + 1:
                raise ValueError("its tensors are not those of its parameters")
            model.net_ = model._network(tensors)
        except (KeyError, TypeError, RuntimeError, AttributeError, ValueError) as error:
            raise ValueError(f"{path} holds no SingularGenerativeEstimator: {error}") from error
        return model

    def _check(self) -> None:
        if self.objective not in ("iwae", "vae"):
            raise unknown("objective", self.objective, ("iwae", "vae"))
        levels = self.noise_grid if isinstance(self.noise, str) else [self.noise]
        if isinstance(self.noise, str) and self.noise != "auto":
            raise unknown("noise", self.noise, ("auto", "a number"))
        if not len(levels) or min(levels) < 0 or not np.isfinite(levels).all():
            raise ValueError(f"noise levels are {list(levels)}; at least one, none below 0, all finite is accepted")
        for name, low in (("latent_dim", 1), ("draws", 1), ("batch_size", 1), ("epochs", 1), ("patience", 1)):
            if getattr(self, name) < low:
                raise ValueError(f"{name} is {getattr(self, name)}; {low} or more is accepted")
        if not 0 < self.validation < 1:
            raise ValueError(f"validation is {self.validation}; a share between 0 and 1 is accepted")
        if not 1e-5 <= self.sigma_floor < 1:  # below, float32 loses (x - f)² beside x
            raise ValueError(f"sigma_floor is {self.sigma_floor}; from 1e-5 to 1 (of the data's scale) is accepted")

    def _train(self, x: Tensor, held: Tensor, relative: Array, g: torch.Generator) -> None:
        """Fit all levels to scaled rows ``x``, keeping each at the epoch nearest to the rows ``held``."""
        device, self.relative_ = self._device(), relative
        net = self.net_ = self._network()
        x, held, n = x.to(device), held.to(device), len(x)
        levels = torch.as_tensor(relative, dtype=torch.float32, device=device)[:, None, None]
        axes = directions(x.shape[1], _DIRECTIONS, g).to(device)
        if not self.hidden:
            once = 0.0 if self.refresh else levels * self._normal(g, *x.shape)
            added = torch.as_tensor(relative, device=device).square() * float(self.refresh)
            net.solve((x + once).expand(len(levels), -1, -1), added, self.sigma_floor)
            self._recorded(self._distance(held, axes), np.zeros(len(levels), dtype=int))
            return
        rest = [p for p in net.parameters() if p is not net.log_sigma]
        groups = [{"params": rest}, {"params": [net.log_sigma], "lr": 5 * self.lr}]
        optimizer = torch.optim.Adam(groups, lr=self.lr, fused=True)
        steps = self.epochs * math.ceil(n / self.batch_size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        K = 1 if self.objective == "vae" else self.draws
        own = torch.Generator(device).manual_seed(self.seed_)
        best, epochs = np.full(len(levels), np.inf), np.zeros(len(levels), dtype=int)
        kept, noise = {k: v.clone() for k, v in net.state_dict().items()}, self._normal(g, *x.shape)
        for epoch in track(range(1, self.epochs + 1), "singular likelihood", disable=not self.verbose, transient=True):
            if self.refresh:
                noise = self._normal(g, *x.shape)
            now = levels
            if self.anneal and epoch < self.epochs / 2:
                now = levels.clamp(min=1e-3) ** (2 * epoch / self.epochs)
            perturbed = x + now * noise
            for rows in torch.randperm(n, generator=g, device="cpu").to(device).split(self.batch_size):
                draws = self._normal(g, 1, K, len(rows), self.latent_dim).expand(len(levels), -1, -1, -1)
                optimizer.zero_grad()
                net.loss(perturbed[:, rows], draws, own).backward()
                optimizer.step()
                schedule.step()
                with torch.no_grad():
                    net.log_sigma.clamp_(min=math.log(self.sigma_floor))
            if epoch % _CHECK == 0 or epoch == self.epochs:
                found = self._distance(held, axes)
                better = found < best
                best, epochs = np.where(better, found, best), np.where(better, epoch, epochs)
                for k, v in net.state_dict().items():
                    kept[k][better] = v[better]
                if epoch - epochs.max() >= self.patience:
                    break
        net.load_state_dict(kept)
        self._recorded(best, epochs)

    def _recorded(self, distances: Array, epochs: NDArray[np.int64]) -> None:
        sigma = self.net_.log_sigma.detach().double().exp().cpu().numpy()
        self.noise_path_ = pd.DataFrame({
            "noise": self.relative_ * self.scale_, "relative": self.relative_, "sigma": sigma * self.scale_,
            "wasserstein": distances * self.scale_, "epoch": epochs,
            "at_floor": sigma <= self.sigma_floor * (1 + 1e-4),
        })  # fmt: skip

    @torch.no_grad()
    def _distance(self, held: Tensor, axes: Tensor) -> Array:
        """Sliced W1 of every level's f̂(Z) to the rows held out, which are not perturbed."""
        g = torch.Generator().manual_seed(self.seed_)
        z = self._normal(g, 1, _DRAWS, self.latent_dim).expand(len(self.relative_), -1, -1)
        return sliced_wasserstein(self.net_.decoder(z), held, axes).double().cpu().numpy()

    def _network(self, tensors: dict[str, Tensor] | None = None) -> Ensemble:
        """Seeded, or of tensors that were kept: only what they hold is allocated."""
        shape = len(self.relative_), self.latent_dim, int(self.columns_.sum()), self.hidden
        if tensors is not None:
            with torch.device("meta"):
                net = Ensemble(*shape)
            net.load_state_dict(tensors, assign=True)
            return net.to(self._device())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed_)
            net = Ensemble(*shape)
        return net.to(self._device())

    def _normal(self, g: torch.Generator, *shape: int) -> Tensor:
        """Standard normal draws, the same on every device."""
        return torch.randn(*shape, generator=g, device="cpu").to(self._device())

    def _device(self) -> torch.device:
        return torch.device(self.device or torch.get_default_device())

    def _member(self, noise: float | None) -> int:
        path = self.noise_path_["noise"].to_numpy()
        return int(np.abs(path - (self.noise_ if noise is None else noise)).argmin())
