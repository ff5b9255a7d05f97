"""Spectra and factors of the matrices of a model, with and without inputs to judge the error by.

Without inputs: the singular values of W and its best approximation of rank k. With inputs ``x`` of second moment
``C = E[x xᵀ]``: the k directions U of the outputs that leave the least error ``E‖(W - W') x‖²``,

    W C Wᵀ = U diag(σ²) Uᵀ,     W' = U_k U_kᵀ W

(of a tall ``W = Q R`` the same for R, and U = Q times R's). No root and no inverse of C is needed, so few inputs, or
inputs that are always zero, cannot fail; a little of the identity in C lets W alone decide what they do not show.

What people get wrong: holding the second moments of all layers at once, 8 bytes times the square of every width: 44 GB
for a model of 7B parameters. Here the layers are read in groups that fit ``memory``, a pass over the inputs for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from rankwise.models.activations import Batch, gather
from rankwise.models.low_rank import dense_shape
from rankwise.spectral import balanced_factors, each, singular_values, spectrum_and_directions

MEMORY = 2 << 30  # bytes of second moments held at once
_KEEP = 1 << 30  # bytes of directions that a plan may hold, so that `apply` need not find them again
_DAMPING = 1e-6  # of ‖C‖: about what float32 leaves of noise in it
Progress = Callable[[Sequence[str], str], Iterable[str]]
Layers = Mapping[str, nn.Module]
Result = TypeVar("Result")


class Decomposition(NamedTuple):
    """Singular values ``(n,)`` float64, descending, n = min(out, in); and, if asked for, a column a direction.

    Examples
    --------
    >>> import torch
    >>> from rankwise.compression.directions import decomposed
    >>> found = decomposed(torch.tensor([[0.0, 3.0], [4.0, 0.0]]), vectors=False)
    >>> found.S.tolist(), found.V
    ([4.0, 3.0], None)
    """

    S: Tensor
    V: Tensor | None


def decompositions(
    model: nn.Module, layers: Layers, calibration: Sequence[Batch], *, memory: int, progress: Progress
) -> dict[str, Decomposition]:
    """Of every layer; with directions where those of all layers together are small enough to be kept."""
    kept = 4 * sum(min(dense_shape(m)) ** 2 for m in layers.values()) <= _KEEP
    found = _each_layer(model, layers, calibration, lambda W, C, name: decomposed(W, C, vectors=kept), memory)
    return dict(zip(progress(list(layers), "spectra"), found, strict=True))


def all_factors(
    model: nn.Module,
    layers: Layers,
    ranks: Mapping[str, int],
    calibration: Sequence[Batch],
    directions: Mapping[str, Tensor],
    *,
    memory: int,
    progress: Progress,
) -> dict[str, tuple[Tensor, Tensor]]:
    """``B: (out, k)`` and ``A: (k, in)`` of every layer in ``ranks``, in the dtype of its weight.

    Without ``directions`` they are found anew, which reads ``calibration`` again.
    """

    def found(W: Tensor, C: Tensor | None, name: str) -> tuple[Tensor, Tensor]:
        pair = factors(W, ranks[name], C, directions=directions.get(name), calibrated=bool(calibration))
        dtype = layers[name].get_parameter("weight").dtype
        return pair[0].to(dtype).contiguous(), pair[1].to(dtype).contiguous()

    chosen = {n: layers[n] for n in ranks}
    pairs = _each_layer(model, chosen, () if directions else calibration, found, memory)
    return dict(zip(progress(list(ranks), "factors"), pairs, strict=True))


def decomposed(W: Tensor, C: Tensor | None = None, *, vectors: bool = True) -> Decomposition:
    """Spectrum and directions of ``W: (out, in)``; of ``W C^½`` for inputs of second moment ``C: (in, in)`` float64."""
    if C is None:
        return Decomposition(*spectrum_and_directions(W)) if vectors else Decomposition(singular_values(W), None)
    R = _reduced(W)[1]
    M = R @ C @ R.mT
    if not vectors:
        return Decomposition(torch.linalg.eigvalsh(M).flip(0).clamp(min=0).sqrt(), None)
    values, V = torch.linalg.eigh(M)
    return Decomposition(values.flip(0).clamp(min=0).sqrt(), V.flip(1).float())


def factors(
    W: Tensor, rank: int, C: Tensor | None = None, *, directions: Tensor | None = None, calibrated: bool = False
) -> tuple[Tensor, Tensor]:
    """``B: (out, k)`` and ``A: (k, in)`` with ``B A`` the best rank-k approximation of W, for inputs of moment C.

    ``directions`` are those that `decomposed` found, with inputs or (by ``calibrated``) without.
    """
    if C is None and not calibrated:
        return balanced_factors(W, rank, directions=directions)
    Q, R = _reduced(W)
    found = decomposed(W, C).V if directions is None else directions
    assert found is not None, "`decomposed` gives directions where they are not declined"
    V = found[:, :rank].double()
    A = V.mT @ R
    root = A.norm(dim=1).clamp(min=torch.finfo(A.dtype).tiny).sqrt()
    return (V if Q is None else Q @ V) * root, A / root[:, None]


def _reduced(W: Tensor) -> tuple[Tensor | None, Tensor]:
    """``W = Q R`` in float64 with R of n rows; no Q where W is not tall."""
    W = W.double()
    return torch.linalg.qr(W) if W.shape[0] > W.shape[1] else (None, W)


def weight_of(layer: nn.Module) -> Tensor:
    """``(out, in)`` in float32, or float64 where it is so."""
    W = layer.get_parameter("weight").detach()
    W = W if isinstance(layer, nn.Linear) else W.mT
    return W if W.dtype == torch.float64 else W.float()


def damped(C: Tensor) -> Tensor:
    """C with a little of the identity, in place; the identity where C is zero, so that W alone decides."""
    size = float(torch.linalg.matrix_norm(C))
    C.diagonal().add_(_DAMPING * size if size > 0 else 1.0)
    return C


def _each_layer(
    model: nn.Module,
    layers: Layers,
    calibration: Sequence[Batch],
    f: Callable[[Tensor, Tensor | None, str], Result],
    memory: int,
) -> Iterator[Result]:
    """``f(W, C, name)`` of every layer in order, several at a time on a CPU; C is None without calibration."""
    workers = 1 if any(p.is_cuda for p in model.parameters()) else None  # a GPU works at one after the other
    if not calibration:
        yield from each(lambda name: f(weight_of(layers[name]), None, name), layers, workers=workers)
        return
    for group in in_groups(layers, memory):
        C = second_moments(model, group, calibration)
        yield from each(lambda name, C=C: f(weight_of(layers[name]), C[name], name), group, workers=workers)


def second_moments(model: nn.Module, layers: Layers, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """Damped ``C: (in, in)`` float64 of every layer's inputs; layers that read the same input share one.

    Raises
    ------
    ValueError
        A layer does not run, or its inputs have NaN (it is named).
    """
    spectra = gather(model, batches, layers, n_components=1, center=False, engine="exact", max_batches=len(batches))
    moments = {}
    for leader in dict.fromkeys(spectra.leader.values()):
        stream = spectra.streams.pop(leader)
        moments[leader] = damped(stream.covariance() / stream.n_samples)
    return {n: moments[spectra.leader[n]] for n in layers}


def in_groups(layers: Layers, memory: int) -> Iterator[dict[str, nn.Module]]:
    """The layers in order, cut where the second moments of a group would exceed ``memory`` bytes; one at least."""
    group: dict[str, nn.Module] = {}
    held = 0
    for name, layer in layers.items():
        size = 8 * dense_shape(layer)[1] ** 2
        if group and held + size > memory:
            yield group
            group, held = {}, 0
        group[name], held = layer, held + size
    if group:
        yield group
