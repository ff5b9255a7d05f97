"""WeLore: give every matrix the rank its own spectrum asks for, and afterwards train only what became low-rank.

For each linear layer of a block, with singular values ``σ_1 ≥ … ≥ σ_n``, n = min(out, in), of the float32 weight, every
direction is worth something (`rankwise.compression.ranks`), and one threshold k serves all matrices:

    kept_m(k) = #{worth_mj ≥ k},      ERR(k) = Σ_m (n_m - kept_m) / Σ_m n_m        effective rank reduction

ERR is a step function of k: sorting all directions once gives the k of any target exactly. A matrix that loses more
than ``min_ratio`` of its directions is a low-rank component (LRC) and becomes two linears, ``W ≈ U_k diag(σ) V_kᵀ``,
``B = U √σ (out, k)``, ``A = √σ Vᵀ (k, in)``; the others (N-LRC) stay dense.

The paper's worth is ``(σ_j - σ_n) / (σ_1 - σ_n)``: ``method="welore"``. The default, ``σ_j² / Σσ²``, measures better
(`rankwise bench welore`: when calibrated at every reduction, without up to 30 %), most of all where a small flat matrix
stands beside large steep ones.

With calibration data the error minimised is that of the outputs, ``E‖(W - W') x‖²`` over the layer's inputs
(`rankwise.compression.directions`; the aim is that of Wang et al., "SVD-LLM", arXiv 2403.07378). That is an extension:
WeLore itself needs no data.

Source: Jaiswal et al., "From GaLore to WeLore: How Low-Rank Weights Non-uniformly Emerge from Low-Rank Gradients",
arXiv 2407.11239. The reference drops biases and factorises even where that costs memory; here biases stay, and
``only_if_smaller`` leaves such matrices dense.

What people get wrong: ERR is not memory. A square matrix saves nothing until half of its directions are gone
(k < out·in / (out + in)); embeddings stay. `Plan` reports both.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from rankwise.compression.accepted import check_plain, check_weight, components, content_of
from rankwise.compression.directions import MEMORY, Decomposition, Progress, all_factors, decompositions
from rankwise.compression.options import check_options
from rankwise.compression.plans import Component, Plan
from rankwise.compression.ranks import Method, Rule, rule
from rankwise.models.activations import Batch
from rankwise.models.loading import load_as_saved, pretrained, resolve
from rankwise.models.low_rank import KEY, LowRankLinear, dense_shape, low_rank_layers, record_of
from rankwise.models.low_rank import replace as replace_modules
from rankwise.models.targets import linear_layers
from rankwise.nearest import unknown

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["LowRankLinear", "apply", "compress", "load", "plan", "to_dense", "train_only"]

NEAR = 0.01  # of the model's size, or of all directions: a plan so near to what was asked needs no note


@torch.no_grad()
def plan(
    model: PreTrainedModel | nn.Module,
    *,
    ratio: float | None = None,
    parameters: float | None = None,
    bytes: float | None = None,
    method: Method = "energy",
    min_ratio: float = 0.5,
    only_if_smaller: bool = True,
    multiple_of: int = 1,
    target: str = "auto",
    calibrate: Iterable[Batch] | None = None,
    max_batches: int = 32,
    memory: int = MEMORY,
    progress: Progress = lambda names, what: names,
) -> Plan:
    """Choose the rank of every matrix; nothing is changed yet.

    Parameters
    ----------
    model : PreTrainedModel
        float32, float64, bfloat16 or float16; any device. One matrix at a time is widened.
    ratio : float, optional
        Target ERR in (0, 1): the share of all directions to remove. Exactly one of ``ratio``, ``parameters`` and
        ``bytes`` is given.
    parameters, bytes : float, optional
        What the whole model may have afterwards, in the dtypes that it has; below 1 a share of what it has.
    method : {"energy", "top", "welore", "uniform", "owl"}
        One threshold for all, on σ²/Σσ², on σ/σ₁, or as in the paper; the same share of every matrix; shares by block,
        fewer removed where outliers are many.
    min_ratio : float
        A matrix is factorised if it loses more than this share of its directions; in [0, 1). Where ranks are equal,
        many are at once, and the model may become smaller than asked (a warning says so, and what comes nearer).
    only_if_smaller : bool
        And only if the factors have fewer entries than the matrix.
    multiple_of : int
        Ranks are rounded up to multiples of it: 8 suits tensor cores, and on a CPU in bfloat16 a model of few shapes
        takes less memory, as kernels are kept by shape. A target in sizes is met all the same; of ``ratio``, which is
        then at most, a warning says how much is lost.
    target : str
        Which layers, see `rankwise.models.target_modules`.
    calibrate : iterable of dict of Tensor, optional
        Batches of inputs: minimise the outputs' error on them. They are kept in the plan.
    max_batches : int
        Calibration batches that are read at most.
    memory : int
        Bytes that second moments of inputs may take at once (8 times the square of a layer's width each, one at least):
        with less, the calibration data is run through the model more often.
    progress : callable
        Wraps the list of names, for a progress bar.

    Raises
    ------
    ValueError
        A target that is out of range, or that would leave a matrix without a direction; no linear layer; quantised or
        already compressed weights, adapters, experts in one parameter; a ``multiple_of`` that no rank is below; NaN in
        a weight or in a layer's inputs, or a layer that calibration does not reach (it is named).

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from rankwise.compression import apply, plan
    >>> config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
    ...                      num_attention_heads=2)
    >>> model = LlamaForCausalLM(config)
    >>> chosen = plan(model, ratio=0.6, method="uniform")
    >>> {c.rank for c in chosen.components}, round(chosen.reduction, 3)  # of 16 directions each
    ({6}, 0.625)
    >>> _ = apply(model, chosen)
    """
    check_options(
        ratio=ratio,
        parameters=parameters,
        bytes=bytes,
        method=method,
        min_ratio=min_ratio,
        only_if_smaller=only_if_smaller,
        multiple_of=multiple_of,
    )
    layers = components(model, target)
    largest = max(min(dense_shape(m)) for m in layers.values())
    if multiple_of >= largest:
        raise ValueError(f"multiple_of={multiple_of} rounds every rank up to the full one ({largest} at most)")
    calibration = () if calibrate is None else tuple(islice(calibrate, max_batches))
    if calibrate is not None and not calibration:
        raise ValueError("the calibration data is empty: no batch of inputs")
    found = decompositions(model, layers, calibration, memory=memory, progress=progress)
    inside = {id(m.weight) for m in layers.values()}
    others = [p for p in model.parameters() if id(p) not in inside]
    saved = model.state_dict().keys()
    buffers = [b for n, b in model.named_buffers() if n in saved]
    plans = _Plans(
        layers=layers,
        contents={n: content_of(m.get_parameter("weight")) for n, m in layers.items()},
        found=found,
        given=rule(method, model, list(layers), [d.S for d in found.values()]),
        min_ratio=min_ratio,
        only_if_smaller=only_if_smaller,
        multiple_of=int(multiple_of),
        told={
            "method": method,
            "other_parameters": sum(p.numel() for p in others),
            "other_bytes": sum(t.nbytes for t in [*others, *buffers]),
            "calibration": calibration,
        },
    )
    given = {"ratio": ratio, "parameters": parameters, "bytes": bytes}
    kind, wanted = next((k, float(v)) for k, v in given.items() if v is not None)
    chosen = plans.of(kind, wanted)
    if note := _note(plans, chosen, kind, wanted):
        warnings.warn(note, stacklevel=3)  # beyond torch's own wrapper
    kept = {
        c.name: V[:, : c.rank].clone() for c in chosen.components if c.low_rank and (V := found[c.name].V) is not None
    }
    return replace(chosen, directions=kept, note=note)


@dataclass(frozen=True, kw_only=True)
class _Plans:
    """All plans of a model: one for every number of directions that are removed."""

    layers: Mapping[str, nn.Module]
    contents: Mapping[str, str]  # of their weights
    found: Mapping[str, Decomposition]
    given: Rule
    min_ratio: float
    only_if_smaller: bool
    multiple_of: int
    told: dict[str, Any]  # what all have in common

    def of(self, kind: str, wanted: float) -> Plan:
        """The plan of a ratio, or the largest that fits so many parameters or bytes."""
        return self.at(_removals(wanted, self.given)) if kind == "ratio" else _smallest(self, kind, wanted)

    def at(self, removed: int) -> Plan:
        ranks = zip(self.layers, self.given.ranks(removed), strict=True)
        components = tuple(self._component(name, int(rank)) for name, rank in ranks)
        return Plan(components=components, threshold=self.given.threshold(removed), **self.told)

    def _component(self, name: str, rank: int) -> Component:
        shape, S = dense_shape(self.layers[name]), self.found[name].S
        rank = min(-(-rank // self.multiple_of) * self.multiple_of, len(S))
        smaller = rank * sum(shape) < shape[0] * shape[1] or not self.only_if_smaller
        return Component(
            name=name,
            shape=shape,
            rank=rank,
            full_rank=len(S),
            low_rank=(len(S) - rank) / len(S) > self.min_ratio and smaller,
            spectrum=S,
            item_size=self.layers[name].get_parameter("weight").element_size(),
            content=self.contents[name],
        )


def _removals(ratio: float, given: Rule) -> int:
    total, limit = int(given.full.sum()), int((given.full - 1).sum())
    if round(ratio * total) > limit:
        raise ValueError(f"ratio={ratio} leaves some matrix without a direction; at most {limit / total:.4f}")
    return round(ratio * total)


def _smallest(plans: _Plans, kind: str, wanted: float) -> Plan:
    """The plan with the fewest removals whose ``kind`` (parameters or bytes) fits; sizes fall as more is removed."""
    size: Callable[[Plan], int] = attrgetter(kind)
    low, high = 0, int((plans.given.full - 1).sum())
    total, least = size(plans.at(0)), size(plans.at(high))
    goal = wanted * total if wanted < 1 else wanted
    if goal >= total:
        raise ValueError(f"{kind}={goal:,.0f} takes nothing away: the model has {total:,}")
    if least > goal:
        finer = size(replace(plans, multiple_of=1).at(high))
        rounded = f" (with multiple_of=1, {finer:,})" if finer < least else ""
        raise ValueError(
            f"{kind}={goal:,.0f} cannot be reached: the model has {total:,} and, with every matrix at its least rank, "
            f"{least:,}{rounded}{'; a share lies below 1' if 1 <= wanted < 2 else ''}"
        )
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if size(plans.at(middle)) <= goal else (middle + 1, high)
    return plans.at(low)


def _note(plans: _Plans, chosen: Plan, kind: str, wanted: float) -> str:
    """Where a plan is not near to what was asked: by how much, and what other options would give."""

    def given_by(plan: Plan) -> float:
        return plan.reduction if kind == "ratio" else getattr(plan, kind) / getattr(plan, f"{kind}_before")

    asked = wanted if wanted < 1 else wanted / getattr(chosen, f"{kind}_before")
    reached = given_by(chosen)
    # without rounding, a ratio is met but for single directions
    if reached >= asked - NEAR or (kind == "ratio" and plans.multiple_of == 1):
        return ""
    changes: dict[str, float] = {"min_ratio": 0, "multiple_of": 1}
    if kind == "ratio":
        changes.pop("min_ratio")  # what is factorised is no matter of its ranks
    others = {f"{n}={v}": given_by(replace(plans, **{n: v}).of(kind, wanted)) for n, v in changes.items()}
    nearer = [f"with {option}, {x:.1%}" for option, x in others.items() if x > reached + NEAR / 10]
    if kind == "ratio":
        said = f"{reached:.1%} of all directions go where {asked:.1%} may: ranks are rounded up"
    else:
        said = (
            f"{reached:.1%} of the model's {kind} are left where {asked:.1%} may be: sizes jump where many matrices "
            "change at once"
        )
    return "; ".join([said, *nearer])


@torch.no_grad()
def apply(
    model: PreTrainedModel | nn.Module,
    plan: Plan,
    *,
    memory: int = MEMORY,
    progress: Progress = lambda names, what: names,
) -> PreTrainedModel | nn.Module:
    """Factorise the low-rank components in place; the model's configuration notes it. Returns the model.

    Factors are stored in the dtype of the weight. Modules and weights that are shared stay shared. A calibrated plan of
    a model whose directions were too many to keep reads its batches again (``memory`` as in `plan`).

    Raises
    ------
    ValueError
        The plan is of another model or of other weights, or the model is compressed already or wrapped by PEFT.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from rankwise.compression import apply, plan
    >>> config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
    ...                      num_attention_heads=2)
    >>> model = LlamaForCausalLM(config)
    >>> chosen = plan(model, parameters=0.6)
    >>> sum(p.numel() for p in apply(model, chosen).parameters()) == chosen.parameters
    True
    """
    check_plain(model)
    layers = linear_layers(model)
    chosen = {c.name: c for c in plan.components if c.low_rank}
    strange = [n for n, c in chosen.items() if n not in layers or dense_shape(layers[n]) != c.shape]
    if strange:
        raise ValueError(f"the plan is for another model: it has no {', '.join(strange[:3])} of that shape")
    for name in chosen:
        check_weight(name, layers[name].get_parameter("weight"))
    other = [n for n, c in chosen.items() if c.content and c.content != content_of(layers[n].get_parameter("weight"))]
    if other:
        raise ValueError(
            f"the plan is for another model, or for this one before its weights changed (by training, or a cast): "
            f"{', '.join(other[:3])}; plan it again"
        )
    sharing: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        if isinstance(getattr(module, "weight", None), nn.Parameter):
            sharing.setdefault(id(module.weight), []).append(module)
    ranks = {n: c.rank for n, c in chosen.items()}
    found = all_factors(model, layers, ranks, plan.calibration, plan.directions, memory=memory, progress=progress)
    new: dict[nn.Module, nn.Module] = {}
    for name, pair in found.items():
        B, A = map(nn.Parameter, pair)
        for old in sharing[id(layers[name].weight)]:
            new[old] = _low_rank(old, A, B)
    replace_modules(model, new)
    if hasattr(model, "config") and chosen:
        new_layers = low_rank_layers(model)
        names = {"ranks": {n: m.rank for n, m in new_layers.items()}}
        setattr(model.config, KEY, {**names, "conv1d": [n for n, m in new_layers.items() if m.conv1d]})
    return model


def compress(model: PreTrainedModel, **options) -> Plan:
    """`plan`, then `apply`: the model is compressed in place. Returns the plan.

    Examples
    --------
    >>> import torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from rankwise.compression import compress
    >>> config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
    ...                      num_attention_heads=2)
    >>> model = LlamaForCausalLM(config)
    >>> chosen = compress(model, bytes=0.7)
    >>> chosen.bytes <= 0.7 * chosen.bytes_before
    True
    >>> model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4, pad_token_id=0, eos_token_id=None).shape
    torch.Size([1, 7])
    """
    chosen = plan(model, **options)
    apply(model, chosen)
    return chosen


def load(path: str, *, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """A compressed model from the folder that ``save_pretrained`` wrote; the model it came from is not needed.

    Parameters
    ----------
    path : str
        A folder that ``save_pretrained`` wrote, or a hub id.
    dtype : torch.dtype, optional
        The saved one by default, so that outputs are bit for bit the same.

    Raises
    ------
    ValueError
        The checkpoint is not compressed, its entry is malformed, it names no class of `transformers`, or its weights do
        not fill it.

    Examples
    --------
    >>> import tempfile
    >>> import torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from rankwise.compression import compress, load
    >>> config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
    ...                      num_attention_heads=2)
    >>> model, ids = LlamaForCausalLM(config).eval(), torch.tensor([[1, 2, 3]])
    >>> _ = compress(model, parameters=0.6)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model.save_pretrained(folder)
    ...     again = load(folder).eval()
    >>> torch.equal(model(ids).logits, again(ids).logits)
    True
    """
    from transformers import AutoConfig

    if record_of(pretrained(AutoConfig, resolve(str(path)))) is None:
        raise ValueError(f"{path} is not compressed: its config.json has no '{KEY}'; load it with rankwise.models.load")
    return load_as_saved(str(path), dtype=dtype)


@torch.no_grad()
def to_dense(model: PreTrainedModel) -> PreTrainedModel:
    """Multiply the factors out again, in place: a plain `transformers` model. Returns it.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from rankwise.compression import compress, to_dense
    >>> config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
    ...                      num_attention_heads=2)
    >>> model = LlamaForCausalLM(config)
    >>> _ = compress(model, parameters=0.6)
    >>> type(to_dense(model).model.layers[0].mlp.up_proj).__name__
    'Linear'
    """
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

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from rankwise.compression import compress, train_only
    >>> config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
    ...                      num_attention_heads=2)
    >>> model = LlamaForCausalLM(config)
    >>> _ = compress(model, parameters=0.6)
    >>> {name.split(".")[-2] for name in train_only(model, "lrc")} == {"A", "B"}
    True
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
