r"""Rich or lazy: how far training moved a network's weights, its representations and its tangent kernel.

A network learns *lazily* when its features stay what they were and only their weighting changes: it is then the kernel
machine of its start. It learns *richly* when features change. Liu et al. (ICLR 2024, arXiv 2310.08513) measure this
between the start 0 and the end T, over inputs x_1 … x_n::

    weight change        ‖θ_T - θ_0‖_F
    representations      K = H Hᵀ  (n, n),   H (n, units): hidden activity      RA = ⟨K_T, K_0⟩ / (‖K_T‖ ‖K_0‖)
    tangent kernel       Θ = J Jᵀ  (R, R),   J = ∂outputs/∂θ, R = n · outputs   KA = ⟨Θ_T, Θ_0⟩ / (‖Θ_T‖ ‖Θ_0‖)
    signs                share of H's entries with the sign that they had (0 is one of three signs)
    kernel and target    yᵀΘ_T y / (‖y‖² tr Θ_T), 1 where the kernel has learned y alone

1 is lazy; the lower KA and RA, the richer. Low-rank starts learn richly, high-rank ones lazily, unless the low rank
already points where the task does; `expected_kernel_alignment` says how much in the case that can be solved.

J is never stored. For a linear layer z_t = A h_t, used at the positions or times t, a row of J is Σ_t δ_t h_tᵀ with
δ = ∂output/∂z, so that::

    Θ_ij = Σ_{t,s} (δ^i_t · δ^j_s) (h^i_t · h^j_s)

over all pairs of times, not t = s alone; see `tangent_kernel`.

What people get wrong: starts of different norm are no comparison of ranks, since the norm alone moves all measures
(`low_rank_init` keeps it); θ is one recurrent matrix in the paper and all that is trained here, by default: say which
(``params``); uncentred alignments are near 1 already where activity has a large mean (``center``); rows and inputs are
to be the same at both ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from rankwise.dynamics.rich_lazy.kernels import (
    MEMORY,
    Inputs,
    OutputFn,
    head,
    kernel_and_shape,
    outputs_of,
    selected,
    size,
)
from rankwise.dynamics.rich_lazy.modes import measuring

__all__ = ["Laziness", "alignment", "laziness"]


@dataclass(frozen=True, kw_only=True)
class Laziness:
    """How far a network went.

    Attributes
    ----------
    weight_change, relative_weight_change : float
        ``‖θ_T - θ_0‖``, and over ``‖θ_0‖`` (infinite where that is 0).
    representation_alignment, kernel_alignment : float
        In [-1, 1]; 1 is lazy.
    sign_similarity : float
        In [0, 1].
    kernel_target_alignment, kernel_target_alignment_before : float or None
        In [0, 1], at the end and at the start; ``None`` without targets.

    Examples
    --------
    >>> import torch
    >>> from rankwise.dynamics import laziness
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> found = laziness(net, net, torch.randn(5, 3))
    >>> found.weight_change, round(found.kernel_alignment, 6)
    (0.0, 1.0)
    """

    weight_change: float
    relative_weight_change: float
    representation_alignment: float
    kernel_alignment: float
    sign_similarity: float
    kernel_target_alignment: float | None = None
    kernel_target_alignment_before: float | None = None

    def as_dict(self) -> dict[str, float | None]:
        """For tables and JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What of a network is compared: weights by name, hidden activity ``(n, units)``, tangent kernel ``(R, R)``.

    ``outputs`` is the shape ``(n, …)`` of what the kernel's rows are of.

    Examples
    --------
    >>> import torch
    >>> from rankwise.dynamics.rich_lazy.measures import Snapshot
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    >>> now = Snapshot.of(net, torch.randn(5, 3))
    >>> now.hidden.shape, now.kernel.shape
    (torch.Size([5, 4]), torch.Size([10, 10]))
    """

    weights: dict[str, Tensor]
    hidden: Tensor
    kernel: Tensor
    outputs: tuple[int, ...]

    @classmethod
    def of(
        cls, model: nn.Module, inputs: Inputs, *, params: str | Sequence[str] | None = None,
        output_fn: OutputFn | None = None, representation_fn: OutputFn | None = None, rows: int | None = None,
        memory: int = MEMORY,
    ) -> Snapshot:  # fmt: skip
        """Of a network as it is; options as of `laziness`."""
        if rows is not None and not 1 <= rows <= size(inputs):
            raise ValueError(f"rows={rows}: from 1 to the {size(inputs)} inputs")
        chosen = selected(model, params)
        for name, p in chosen.items():
            if not bool(torch.isfinite(p).all()):
                raise ValueError(f"{name} has NaN or Inf entries")
        H = hidden(model, inputs, representation_fn=representation_fn, output_fn=output_fn)
        first = head(inputs, rows)
        kernel, shape = kernel_and_shape(model, first, params=list(chosen), output_fn=output_fn, memory=memory)
        weights = {n: p.detach().clone() for n, p in chosen.items()}
        return cls(weights=weights, hidden=H, kernel=kernel, outputs=tuple(shape))

    def until(self, end: Snapshot, *, center: bool = False, targets: Tensor | None = None) -> Laziness:
        """From this one to another of the same network."""
        _check_same(self.weights, end.weights)
        if self.hidden.shape != end.hidden.shape or self.kernel.shape != end.kernel.shape:
            shapes = " and ".join(f"{tuple(s.hidden.shape)}, {len(s.kernel)} outputs" for s in (self, end))
            raise ValueError(f"hidden activity of the two networks is {shapes}: of one shape is needed")
        moved = _norm([end.weights[n].double() - w.double() for n, w in self.weights.items()])
        norm = _norm(list(self.weights.values()))
        y = None if targets is None else _flat(targets, self.outputs)
        return Laziness(
            weight_change=moved,
            relative_weight_change=moved / norm if norm else (float("inf") if moved else 0.0),
            representation_alignment=alignment(_gram(self.hidden), _gram(end.hidden), center=center, of=REPRESENTATION),
            kernel_alignment=alignment(self.kernel, end.kernel, center=center, of="tangent kernel"),
            sign_similarity=float((self.hidden.sign() == end.hidden.sign()).double().mean()),
            kernel_target_alignment=None if y is None else kernel_target(end.kernel, y),
            kernel_target_alignment_before=None if y is None else kernel_target(self.kernel, y),
        )


REPRESENTATION = "hidden activity"
_ROUNDING = 32  # units in the last place that a constant kernel's entries differ by, of float32's products


def laziness(
    before: nn.Module,
    after: nn.Module,
    inputs: Inputs,
    *,
    params: str | Sequence[str] | None = None,
    output_fn: OutputFn | None = None,
    representation_fn: OutputFn | None = None,
    rows: int | None = None,
    center: bool = False,
    targets: Tensor | None = None,
    memory: int = MEMORY,
) -> Laziness:
    """How far training moved a network, between two copies of it.

    Both are measured in evaluation mode (and put back); gradients and weights are left alone.

    Parameters
    ----------
    before, after : Module
        Of the same class and shapes: a ``copy.deepcopy`` from before training, or a checkpoint.
    inputs : Tensor or mapping of str to Tensor
        ``(n, …)``; a mapping is given to the model as keywords, as `transformers` does.
    params : str or sequence of str, optional
        A regular expression, or names: the weights that count, for their change and for J. By default all that
        ``after`` trains.
    output_fn : callable, optional
        ``(model, inputs) -> (n, …)``; by default what the model gives, or its ``logits``. Rows of J are its entries.
    representation_fn : callable, optional
        ``(model, inputs) -> (n, …)``, the hidden activity; by default the input of the linear layer called last.
    rows : int, optional
        Only the first so many inputs enter the tangent kernel, whose cost grows with their square; all by default.
    center : bool
        Centre both kernels first. Default False, as published.
    targets : Tensor, optional
        Of the shape of the outputs that enter the kernel, or class numbers of that shape less its last dimension.
    memory : int
        Bytes for gradients that are held at once. Default 256 MB.

    Raises
    ------
    ValueError
        Weights that differ in name or shape, or are not finite; no weight of that name; outputs that are no ``(n, …)``;
        activity or a kernel that is zero throughout (with ``center``, the same throughout), of which no alignment is
        defined, or of one row, where it is 1 by itself; targets of another shape; inputs that act on each other, or
        are not the first dimension, where that shows (a recurrent layer without ``batch_first``).

    Examples
    --------
    >>> import copy, torch
    >>> from rankwise.dynamics import laziness
    >>> _ = torch.manual_seed(0)
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> x, start = torch.randn(20, 3), copy.deepcopy(net)
    >>> for _ in range(100):
    ...     loss = (net(x) - x[:, :2]).square().mean()
    ...     loss.backward()
    ...     with torch.no_grad():
    ...         for p in net.parameters():
    ...             p -= 0.5 * p.grad
    ...             p.grad = None
    >>> laziness(start, net, x).kernel_alignment < 1, laziness(start, net, x, params="0.weight").weight_change > 0
    (True, True)
    """
    if params is None:
        params = list(selected(after, None))
        _check_same(*(dict(m.named_parameters()) for m in (before, after)))
    else:
        _check_same(*(selected(m, params) for m in (before, after)))
    options: dict[str, Any] = {
        "params": params, "output_fn": output_fn, "representation_fn": representation_fn, "rows": rows, "memory": memory
    }  # fmt: skip
    start = Snapshot.of(before, inputs, **options)
    return start.until(Snapshot.of(after, inputs, **options), center=center, targets=targets)


def alignment(A: Tensor, B: Tensor, *, center: bool = False, of: str = "kernel") -> float:
    """``⟨A, B⟩ / (‖A‖ ‖B‖)`` of two kernels ``(n, n)``; centred is the centred kernel alignment (CKA).

    Examples
    --------
    >>> import torch
    >>> from rankwise.dynamics import alignment
    >>> round(alignment(torch.eye(4), torch.ones(4, 4)), 6)
    0.5
    """
    if A.shape != B.shape or A.dim() != 2:
        raise ValueError(f"kernels of shapes {tuple(A.shape)} and {tuple(B.shape)}: two of one shape (n, n) are needed")
    if len(A) < 2:
        raise ValueError(f"the {of} has one row: aligned with any other; two inputs or outputs are needed")
    A, B = (_scaled(M.detach(), center, f"the {of}", end) for M, end in ((A, "start"), (B, "end")))
    aa, bb, ab = ((M * N).sum(1).double().sum() for M, N in ((A, A), (B, B), (A, B)))
    return float((ab / (aa * bb).sqrt()).clamp(-1, 1))


def _scaled(K: Tensor, center: bool, what: str, end: str) -> Tensor:
    """Over its largest entry, centred where that is asked."""
    top = K.abs().max()  # kept a tensor: a GPU divides by a number by multiplying by its inverse, which can overflow
    if top == 0:
        raise ValueError(f"{what} is zero for all inputs at the {end}: no alignment is defined (a dead network?)")
    if not top < float("inf"):  # NaN too
        raise ValueError(f"{what} at the {end} is not finite")
    if not center:
        return K / top
    K = _centred(K / top)
    left = K.abs().max()
    if left <= _ROUNDING * torch.finfo(K.dtype).eps:
        raise ValueError(f"{what} is the same for all inputs at the {end}: centred, no alignment is defined")
    return K / left


def kernel_target(kernel: Tensor, y: Tensor) -> float:
    """``yᵀΘy / (‖y‖² tr Θ)`` of ``(R, R)`` and ``(R,)``: the share of the kernel along y, between 0 and 1."""
    kernel, y = kernel.double(), y.double().to(kernel.device)
    scale = float(y.square().sum() * kernel.trace())
    if not scale > 0:
        raise ValueError("targets or the kernel are zero throughout: no alignment of the two is defined")
    return float(y @ kernel @ y) / scale


def hidden(
    model: nn.Module, inputs: Inputs, *, representation_fn: OutputFn | None = None, output_fn: OutputFn | None = None
) -> Tensor:
    """Hidden activity ``(n, units)``: by default, what the linear layer that is called last takes."""
    seen: list[Tensor] = []
    linear = [m for m in model.modules() if isinstance(m, nn.Linear | Conv1D)]
    if representation_fn is None and not linear:
        raise ValueError("the network has no linear layer whose input is its representation: name a representation_fn")
    with measuring(model), torch.no_grad():
        if representation_fn is not None:
            return _rows(representation_fn(model, inputs), size(inputs))

        def hook(module: nn.Module, args: tuple, kwargs: Mapping) -> None:
            seen[:] = [args[0] if args else next(iter(kwargs.values()))]

        hooks = [m.register_forward_pre_hook(hook, with_kwargs=True) for m in linear]
        try:
            outputs_of(model, inputs, output_fn)
        finally:
            for handle in hooks:
                handle.remove()
    if not seen:
        raise ValueError("no linear layer was called: name a representation_fn")
    return _rows(seen[0], size(inputs))


def _rows(H: Any, n: int) -> Tensor:
    if not isinstance(H, Tensor) or H.dim() == 0 or H.numel() == 0 or H.numel() % n or len(H) % n:
        said = tuple(H.shape) if isinstance(H, Tensor) else type(H).__name__
        raise ValueError(f"hidden activity of {n} inputs is {said}: (n, …) is needed; name a representation_fn")
    return H.detach().reshape(n, -1).to(torch.promote_types(H.dtype, torch.float32))


def _gram(H: Tensor) -> Tensor:
    top = H.abs().max().clamp(min=torch.finfo(H.dtype).tiny)
    return (H / top) @ (H / top).mT


def _centred(K: Tensor) -> Tensor:
    return K - K.mean(0, keepdim=True) - K.mean(1, keepdim=True) + K.mean()


def _norm(tensors: Sequence[Tensor]) -> float:
    return float(torch.stack([torch.linalg.vector_norm(t.double()).cpu() for t in tensors]).norm())


def _flat(targets: Tensor, outputs: tuple[int, ...]) -> Tensor:
    """``(R,)``, of targets of the outputs' shape, or class numbers of that shape less its last dimension."""
    shape = tuple(targets.shape)
    if shape == outputs or (shape == outputs[:-1] and outputs[-1] == 1):
        return targets.reshape(-1).double()
    if shape == outputs[:-1] and not targets.is_floating_point() and not targets.is_complex():
        if int(targets.min()) >= 0 and int(targets.max()) < outputs[-1]:
            return F.one_hot(targets.long(), outputs[-1]).reshape(-1).double()
        raise ValueError(
            f"targets of shape {shape} name classes {int(targets.min())} to {int(targets.max())}: 0 to "
            f"{outputs[-1] - 1} for outputs {outputs}"
        )
    raise ValueError(
        f"targets of shape {shape} for outputs {outputs}: of that shape, or class numbers {outputs[:-1]}, is needed"
    )


def _check_same(start: Mapping[str, Tensor], end: Mapping[str, Tensor]) -> None:
    names = set(start) ^ set(end)
    if names:
        raise ValueError(f"weights of one network alone: {', '.join(sorted(names)[:3])}; both have to be of one kind")
    for name, w in start.items():
        if w.shape != end[name].shape:
            raise ValueError(f"{name} is {tuple(w.shape)} before and {tuple(end[name].shape)} after")
