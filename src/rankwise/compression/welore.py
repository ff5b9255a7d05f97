"""WeLore: give every matrix the rank its own spectrum asks for, and afterwards train only what became low-rank.

For each linear layer of a block, with singular values ``σ_1 ≥ … ≥ σ_n``, n = min(out, in), of the float32 weight:

    σ̃_j = (σ_j - σ_n) / (σ_1 - σ_n),      kept_m(k) = #{σ̃_mj ≥ k}           one threshold k for all matrices
    ERR(k) = Σ_m (n_m - kept_m) / Σ_m n_m                                   effective rank reduction

ERR is a step function of k: sorting all σ̃ once gives the k of any target exactly. A matrix that loses more than
``min_ratio`` of its directions is a low-rank component (LRC) and becomes two linears, ``W ≈ U_k diag(σ) V_kᵀ``,
``B = U √σ (out, k)``, ``A = √σ Vᵀ (k, in)``; the others (N-LRC) stay dense.

With calibration data the spectra and factors are those of ``W L``, ``L Lᵀ = Σ x xᵀ`` over the layer's inputs, so that
the error minimised is that of the outputs, ``‖(W - W') X‖_F`` (Wang et al., "SVD-LLM", arXiv 2403.07378). That is an
extension: WeLore itself needs no data.

Source: Jaiswal et al., "From GaLore to WeLore: How Low-Rank Weights Non-uniformly Emerge from Low-Rank Gradients",
arXiv 2407.11239. The reference drops biases and factorises even where that costs memory; here biases stay, and
``only_if_smaller`` leaves such matrices dense.

What people get wrong: ERR is not memory. A square matrix saves nothing until half of its directions are gone
(k < out·in / (out + in)); embeddings stay. `Plan` reports both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn

from rankwise.models.activations import Batch, gather
from rankwise.models.loading import Task, pretrained, resolve
from rankwise.models.loading import load as load_model
from rankwise.models.low_rank import KEY, LowRankLinear, dense_shape, low_rank_layers, record_of
from rankwise.models.low_rank import replace as replace_modules
from rankwise.models.outliers import outlier_scores
from rankwise.models.targets import blocks, linear_layers, target_modules
from rankwise.nearest import unknown
from rankwise.spectral import balanced_factors, each, singular_values, spectrum_and_directions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Method = Literal["welore", "uniform", "owl"]
METHODS = ("welore", "uniform", "owl")
OWL_SPREAD = 0.08  # OWL's λ: how far a block's ratio may lie from the target
_KEEP = 1 << 30  # bytes of singular vectors that a plan may hold, so that `apply` need not find them again
_DAMPING = 1e-6  # of the second moment's mean diagonal, so that it has a Cholesky factor
Progress = Callable[[Sequence[str], str], Iterable[str]]


@dataclass(frozen=True, kw_only=True)
class Component:
    """One matrix of a plan.

    Attributes
    ----------
    name : str
    shape : tuple of int
        ``(out, in)``.
    rank : int
        Directions kept by the threshold, out of ``full_rank``.
    low_rank : bool
        Whether it is factorised (LRC); else it stays as it is.
    spectrum : Tensor
        Singular values, descending, float64 (of ``W L`` when calibrated).
    """

    name: str
    shape: tuple[int, int]
    rank: int
    full_rank: int
    low_rank: bool
    spectrum: Tensor

    @property
    def parameters_before(self) -> int:
        """Entries of the dense weight."""
        return self.shape[0] * self.shape[1]

    @property
    def parameters(self) -> int:
        """Entries of the weight as it will be."""
        return self.rank * sum(self.shape) if self.low_rank else self.parameters_before


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which rank every matrix gets; `apply` carries it out.

    Attributes
    ----------
    components : tuple of Component
        In the model's order.
    threshold : float
        The k of WeLore (NaN for the other methods).
    method : str
    other_parameters : int
        Parameters outside the components, each tensor once.
    item_size : int
        Bytes a parameter.
    whitening : dict of Tensor, optional
        Of a calibrated plan: every layer's L.
    directions : dict of Tensor
        Leading singular vectors of the low-rank components, where planning found them.
    """

    components: tuple[Component, ...]
    threshold: float
    method: str
    other_parameters: int
    item_size: int
    whitening: dict[str, Tensor] | None = None
    directions: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def reduction(self) -> float:
        """ERR: the share of all directions that falls below the threshold."""
        return 1 - sum(c.rank for c in self.components) / sum(c.full_rank for c in self.components)

    @property
    def applied_reduction(self) -> float:
        """The share of directions that is really removed: that of the low-rank components."""
        removed = sum(c.full_rank - c.rank for c in self.components if c.low_rank)
        return removed / sum(c.full_rank for c in self.components)

    @property
    def parameters_before(self) -> int:
        """Of the whole model."""
        return self.other_parameters + sum(c.parameters_before for c in self.components)

    @property
    def parameters(self) -> int:
        """Of the whole model, afterwards."""
        return self.other_parameters + sum(c.parameters for c in self.components)

    @property
    def bytes_before(self) -> int:
        """Of the whole model's weights."""
        return self.parameters_before * self.item_size

    @property
    def bytes(self) -> int:
        """Of the whole model's weights, afterwards."""
        return self.parameters * self.item_size

    def as_dict(self) -> dict:
        """Everything but the spectra, for JSON."""
        rows = [{k: v for k, v in asdict(c).items() if k != "spectrum"} for c in self.components]
        keys = ("reduction", "applied_reduction", "parameters_before", "parameters", "bytes_before", "bytes")
        return {
            "method": self.method,
            "threshold": self.threshold,
            **{k: getattr(self, k) for k in keys},
            "components": [{**r, "parameters": c.parameters} for r, c in zip(rows, self.components, strict=True)],
        }


@torch.no_grad()
def plan(
    model: PreTrainedModel | nn.Module,
    *,
    ratio: float | None = None,
    parameters: float | None = None,
    bytes: float | None = None,
    method: Method = "welore",
    min_ratio: float = 0.5,
    only_if_smaller: bool = True,
    target: str = "auto",
    calibrate: Iterable[Batch] | None = None,
    max_batches: int = 32,
    progress: Progress = lambda names, what: names,
) -> Plan:
    """Choose the rank of every matrix; nothing is changed yet.

    Parameters
    ----------
    model : PreTrainedModel
        float32, bfloat16 or float16; any device. One matrix at a time is widened.
    ratio : float, optional
        Target ERR in (0, 1): the share of all directions to remove. Exactly one of ``ratio``, ``parameters`` and
        ``bytes`` is given.
    parameters, bytes : float, optional
        What the whole model may have afterwards; below 1 a share of what it has.
    method : {"welore", "uniform", "owl"}
        One threshold for all; the same share of every matrix; shares by block, fewer removed where outliers are many.
    min_ratio : float
        A matrix is factorised if it loses more than this share of its directions; in [0, 1).
    only_if_smaller : bool
        And only if the factors have fewer entries than the matrix.
    target : str
        Which layers, see `rankwise.models.target_modules`.
    calibrate : iterable of dict of Tensor, optional
        Batches of inputs: minimise the outputs' error on them (inputs of up to 4096 features).
    max_batches : int
        The most calibration batches read.
    progress : callable
        Wraps the list of names, for a progress bar.

    Raises
    ------
    ValueError
        A target that is out of range, or that would leave a matrix without a direction; no linear layer; quantised or
        already compressed weights; NaN in a weight (it is named).
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    if not 0 <= min_ratio < 1:
        raise ValueError(f"min_ratio={min_ratio} is outside [0, 1)")
    layers = _components(model, target)
    whitening = None if calibrate is None else _whitening(model, calibrate, layers, max_batches)

    kept = whitening is None and 4 * sum(min(dense_shape(m)) ** 2 for m in layers.values()) <= _KEEP

    def spectrum(name: str) -> tuple[Tensor, Tensor | None]:
        W = _weight(layers[name])
        if whitening is not None:
            return singular_values(W.double() @ whitening[name]), None
        return spectrum_and_directions(W) if kept else (singular_values(W), None)

    found = [pair for _, pair in zip(progress(list(layers), "spectra"), each(spectrum, layers), strict=True)]
    spectra = [S for S, _ in found]
    shapes = [dense_shape(m) for m in layers.values()]
    full = np.array([len(S) for S in spectra])
    rank_at, threshold_at = _family(method, model, list(layers), spectra, full)

    def component(i: int, rank: int) -> Component:
        loses = (full[i] - rank) / full[i] > min_ratio
        smaller = rank * sum(shapes[i]) < shapes[i][0] * shapes[i][1] or not only_if_smaller
        return Component(
            name=list(layers)[i],
            shape=shapes[i],
            rank=int(rank),
            full_rank=int(full[i]),
            low_rank=bool(loses and smaller),
            spectrum=spectra[i],
        )

    inside = {id(m.weight): m.weight.numel() for m in layers.values()}
    others = sum(p.numel() for p in model.parameters() if id(p) not in inside)
    draft = Plan(
        components=(),
        threshold=float("nan"),
        method=method,
        other_parameters=others,
        item_size=next(model.parameters()).element_size(),
        whitening=whitening,
    )

    def plan_at(removed: int) -> Plan:
        ranks = rank_at(removed)
        components = tuple(component(i, r) for i, r in enumerate(ranks))
        return replace(draft, components=components, threshold=threshold_at(removed))

    def final(removed: int) -> Plan:
        chosen = plan_at(removed)
        pairs = zip(chosen.components, found, strict=True)
        known = {c.name: V[:, : c.rank].clone() for c, (_, V) in pairs if c.low_rank and V is not None}
        return replace(chosen, directions=known)

    limit = int((full - 1).sum())
    if ratio is not None and parameters is None and bytes is None:
        return final(_removals(ratio, int(full.sum()), limit))
    if (parameters is None) == (bytes is None) or ratio is not None:
        raise ValueError("give exactly one of ratio, parameters and bytes")
    if not only_if_smaller:
        raise ValueError("a target in parameters or bytes needs only_if_smaller=True: else removing may add some")
    before = plan_at(0)
    total = before.parameters_before if parameters is not None else before.bytes_before
    wanted = parameters if parameters is not None else bytes
    assert wanted is not None
    wanted = wanted * total if wanted < 1 else wanted
    size = (lambda p: p.parameters) if parameters is not None else (lambda p: p.bytes)
    if not size(plan_at(limit)) <= wanted < total:
        kind = "parameters" if parameters is not None else "bytes"
        raise ValueError(
            f"{kind}={wanted:,.0f} cannot be reached: the model has {total:,} and, with every matrix at rank 1, "
            f"{size(plan_at(limit)):,}"
        )
    low, high = 0, limit  # size falls as more is removed: the fewest removals that fit
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if size(plan_at(middle)) <= wanted else (middle + 1, high)
    return final(low)


@torch.no_grad()
def apply(
    model: PreTrainedModel | nn.Module, plan: Plan, *, progress: Progress = lambda names, what: names
) -> PreTrainedModel | nn.Module:
    """Factorise the low-rank components in place; the model's configuration notes it. Returns the model.

    Factors are stored in the model's dtype. Modules and weights that are shared stay shared.
    """
    layers = _components(model, "auto")
    chosen = {c.name: c for c in plan.components if c.low_rank}
    missing = [n for n in chosen if n not in layers]
    if missing:
        raise ValueError(f"the plan is for another model: it has no {', '.join(missing[:3])}")
    sharing: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        if isinstance(getattr(module, "weight", None), nn.Parameter):
            sharing.setdefault(id(module.weight), []).append(module)

    def factorised(name: str) -> tuple[Tensor, Tensor]:
        L = None if plan.whitening is None else plan.whitening[name]
        return factors(_weight(layers[name]), chosen[name].rank, L, plan.directions.get(name))

    new: dict[nn.Module, nn.Module] = {}
    for name, (B, A) in zip(progress(list(chosen), "factors"), each(factorised, chosen), strict=True):
        layer = layers[name]
        dtype = layer.weight.dtype
        A, B = nn.Parameter(A.to(dtype).contiguous()), nn.Parameter(B.to(dtype).contiguous())
        for old in sharing[id(layer.weight)]:
            new[old] = _low_rank(old, A, B)
    replace_modules(model, new)
    if hasattr(model, "config") and chosen:
        new_layers = low_rank_layers(model)
        ranks = {n: m.rank for n, m in new_layers.items()}
        setattr(model.config, KEY, {"ranks": ranks, "conv1d": [n for n, m in new_layers.items() if m.conv1d]})
    return model


def compress(model: PreTrainedModel, **options) -> Plan:
    """`plan`, then `apply`: the model is compressed in place. Returns the plan."""
    chosen = plan(model, **options)
    apply(model, chosen)
    return chosen


def load(path: str, *, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """A compressed model from the folder that ``save_pretrained`` wrote; the model it came from is not needed.

    Parameters
    ----------
    path : str
        Folder or hub id.
    dtype : torch.dtype, optional
        The saved one by default, so that outputs are bit for bit the same.

    Raises
    ------
    ValueError
        The checkpoint is not compressed, its entry is malformed, or its architecture is of another kind than a language
        model, a classifier or an encoder.
    """
    from transformers import AutoConfig

    config = pretrained(AutoConfig, resolve(str(path)))
    if record_of(config) is None:
        raise ValueError(f"{path} is not compressed: its config.json has no '{KEY}'; load it with rankwise.models.load")
    architecture = (config.architectures or [""])[0]
    heads: dict[str, Task] = {
        "CausalLM": "causal-lm",
        "LMHeadModel": "causal-lm",
        "SequenceClassification": "classification",
        "Model": "base",
    }
    task: Task | None = next((t for end, t in heads.items() if architecture.endswith(end)), None)
    if task is None:
        raise ValueError(f"{path} holds a {architecture or 'model without a class'}; accepted: {', '.join(heads)}")
    saved = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    return load_model(str(path), task=task, num_labels=config.num_labels or 2, dtype=dtype or saved)


@torch.no_grad()
def to_dense(model: PreTrainedModel) -> PreTrainedModel:
    """Multiply the factors out again, in place: a plain model that any tool loads. Returns it."""
    replace_modules(model, {layer: layer.to_dense() for layer in low_rank_layers(model).values()})
    if hasattr(model.config, KEY):
        delattr(model.config, KEY)
    return model


def train_only(model: nn.Module, which: Literal["lrc", "n-lrc", "all"] = "lrc") -> list[str]:
    """Let only some parameters train: the factors (LRC), the matrices left dense (N-LRC), or everything.

    Embeddings, norms and biases are frozen but for ``all``. Returns the names of what trains.

    Raises
    ------
    ValueError
        An unknown name, or a model without such components.
    """
    if which not in ("lrc", "n-lrc", "all"):
        raise unknown("part to train", which, ("lrc", "n-lrc", "all"))
    low = low_rank_layers(model)
    factors_of = {id(m.weight) for layer in low.values() for m in (layer.A, layer.B)}
    dense = {id(m.weight) for m in linear_layers(model).values()} - factors_of
    wanted = {"lrc": factors_of, "n-lrc": dense, "all": {id(p) for p in model.parameters()}}[which]
    if not low or not wanted:
        raise ValueError(
            f"nothing to train as '{which}': the model has {len(low)} low-rank and {len(dense)} dense matrices"
        )
    trained = []
    for name, p in model.named_parameters():
        p.requires_grad_(id(p) in wanted)
        if p.requires_grad:
            trained.append(name)
    return trained


def normalized_spectrum(S: Tensor) -> Tensor:
    """``σ̃``: descending singular values mapped to [0, 1]; all ones where they are equal, so that none is removed."""
    gap = S[0] - S[-1]
    return (S - S[-1]) / gap if gap > 1e-6 * S[0] else torch.ones_like(S)


def removal_order(spectra: Sequence[Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """All directions but the first of every matrix, by rising σ̃ (ties in the model's order).

    Returns
    -------
    (array, array)
        The matrix that each removal takes a direction from, and the σ̃ removed.
    """
    rising = [normalized_spectrum(S).flip(0)[:-1].cpu().numpy() for S in spectra]
    owner = np.repeat(np.arange(len(spectra)), [len(r) for r in rising])
    values = np.concatenate(rising)
    order = np.argsort(values, kind="stable")
    return owner[order], values[order]


def factors(W: Tensor, rank: int, L: Tensor | None = None, directions: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``B: (out, k)`` and ``A: (k, in)`` with ``B A`` the best rank-k approximation of W (in the norm ``‖· L‖_F``)."""
    if L is None:
        return balanced_factors(W, rank, directions=directions)
    B, A = balanced_factors(W.double() @ L, rank)
    return B, torch.linalg.solve_triangular(L.mT, A.mT, upper=True).mT


def _family(method: str, model: nn.Module, names: list[str], spectra: list[Tensor], full: np.ndarray):
    """Ranks, and threshold, as functions of how many directions are removed in all."""
    total = int(full.sum())
    if method == "welore":
        owner, values = removal_order(spectra)

        def ranks(removed: int) -> np.ndarray:
            return full - np.bincount(owner[:removed], minlength=len(full))

        return ranks, lambda removed: float(values[removed]) if removed < len(values) else 1.0
    offsets = np.zeros(len(full)) if method == "uniform" else _owl_offsets(model, names)

    def shares(removed: int) -> np.ndarray:
        return np.clip(np.rint(full * (1 - removed / total + offsets)), 1, full).astype(int)

    return shares, lambda removed: float("nan")


def _owl_offsets(model: nn.Module, names: list[str]) -> np.ndarray:
    """What a block's matrices keep above (or below) the mean share: up to ±λ by outlier score, zero on average."""
    stack = blocks(model)[0]
    scores = outlier_scores(model).numpy()
    spread = scores.max() - scores.min()
    by_block = 2 * OWL_SPREAD * (scores - scores.min()) / spread if spread > 0 else 0 * scores
    index = [int(n.removeprefix(f"{stack}.").split(".")[0]) if n.startswith(f"{stack}.") else 0 for n in names]
    kept = by_block[index]
    return kept - kept.mean()


def _removals(ratio: float, total: int, limit: int) -> int:
    if not 0 < ratio < 1:
        raise ValueError(f"ratio={ratio} is outside (0, 1): the share of all directions to remove")
    removed = round(ratio * total)
    if removed > limit:
        raise ValueError(f"ratio={ratio} leaves some matrix without a direction; at most {limit / total:.4f}")
    return removed


def _components(model: nn.Module, target: str) -> dict[str, nn.Linear]:
    if low_rank_layers(model) or getattr(getattr(model, "config", None), KEY, None):
        raise ValueError("the model is compressed already; export it to dense first, or start from the original")
    layers = linear_layers(model)
    if not layers:
        raise ValueError(f"{type(model).__name__} has no linear layer: there is nothing to compress")
    chosen: dict[int, str] = {}
    for name in target_modules(model, target):
        weight = layers[name].weight
        if not weight.dtype.is_floating_point or weight.element_size() < 2 or weight.is_meta:
            kind = "on the meta device" if weight.is_meta else f"quantised ({weight.dtype})"
            raise ValueError(f"{name} is {kind}: dense float weights are needed")
        # a finite sum is cheap and settles it; an overflowing one is looked at entry by entry
        if not torch.isfinite(weight.sum()) and not torch.isfinite(weight).all():
            raise ValueError(f"{name} has NaN or Inf in its weight")
        chosen.setdefault(id(weight), name)  # tied weights are one component
    return {n: layers[n] for n in chosen.values()}


def _weight(layer: nn.Module) -> Tensor:
    """``(out, in)`` in float32."""
    W = layer.weight.detach()  # type: ignore[union-attr]
    return (W if isinstance(layer, nn.Linear) else W.mT).float()


def _low_rank(old: nn.Module, A: nn.Parameter, B: nn.Parameter) -> LowRankLinear:
    out_features, in_features = dense_shape(old)
    bias = getattr(old, "bias", None)
    conv1d = not isinstance(old, nn.Linear)
    # on the meta device, so that nothing is drawn for weights that are replaced at once
    new = LowRankLinear(in_features, out_features, len(A), bias=bias is not None, conv1d=conv1d, device="meta")
    new.A.weight, new.B.weight = A, B
    if bias is not None:
        new.B.bias = bias  # the very parameter, so that what shares it still does
    return new.train(old.training)


def _whitening(model: nn.Module, data: Iterable[Batch], layers: dict[str, nn.Linear], most: int) -> dict[str, Tensor]:
    """Cholesky factor of every layer's input second moment, ``(in, in)`` float64, slightly damped."""
    spectra = gather(model, data, layers, n_components=1, center=False, engine="exact", max_batches=most)
    done: dict[str, Tensor] = {}
    for leader in dict.fromkeys(spectra.leader.values()):
        C = spectra.streams[leader].covariance()
        C = C / max(spectra.streams[leader].n_samples, 1)
        C.diagonal().add_(_DAMPING * C.diagonal().mean())
        done[leader] = torch.linalg.cholesky(C)
    return {n: done[spectra.leader[n]] for n in layers}
