r"""Tangent kernels Θ = J Jᵀ without J.

Rows of J are outputs of inputs: R = n · K for n inputs of K outputs each. Two routes give the same Θ:

* **factored**, for weights and biases of linear layers, however often a layer is used (times of a recurrent network,
  positions of a text): h_t ``(n, T, p)`` and δ_t ``(n, K, T, q)`` are kept, from K backward passes over all inputs at
  once, and Θ_ij = Σ_{t,s} (δ^i_t·δ^j_s)(h^i_t·h^j_s). For a recurrent matrix of N units that is T/N of J's memory.
  Each use is verified on one input against its gradient by autograd: a weight that is also used outside of its layer,
  inputs that are mixed, or an order other than inputs first sends it to the other route.
* **by rows**, for all other parameters: blocks of J that fit into ``memory``, recomputed for each pair of blocks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.dynamics.rich_lazy.modes import measuring
from rankwise.nearest import unknown

__all__ = ["tangent_kernel"]

Inputs = Tensor | Mapping[str, Tensor]
OutputFn = Callable[[nn.Module, Any], Tensor]
MEMORY = 2**28  # bytes of gradients held at once
MOST_ROWS = 32_768  # of a kernel: 4 GB in float32
_AGREES = 1e-3  # of the gradient's norm: a factored gradient is either right to rounding or wrong altogether


def tangent_kernel(
    model: nn.Module, inputs: Inputs, *, params: str | Sequence[str] | None = None, output_fn: OutputFn | None = None,
    memory: int = MEMORY,
) -> Tensor:  # fmt: skip
    """``Θ = J Jᵀ``: ``(R, R)``, R = inputs × outputs, in the outputs' precision, at least float32.

    Parameters
    ----------
    model : Module
        Measured in evaluation mode; inputs do not act on each other.
    inputs, params, output_fn, memory
        As of `laziness`.

    Raises
    ------
    ValueError
        As of `laziness`; more than 32,768 rows.

    Examples
    --------
    >>> import torch
    >>> from rankwise.dynamics import tangent_kernel
    >>> net = torch.nn.Linear(3, 1, bias=False)
    >>> x = torch.randn(4, 3)
    >>> torch.allclose(tangent_kernel(net, x), x @ x.mT, atol=1e-6)  # a linear map's kernel is that of its inputs
    True
    """
    if memory < 1:
        raise ValueError(f"memory={memory}: bytes, at least 1")
    chosen = selected(model, params)
    with measuring(model, chosen.values()):
        calls = _Calls(model, chosen)
        with calls:
            out = outputs_of(model, inputs, output_fn)
        n, K = len(out), out[0].numel()
        if n * K > MOST_ROWS:
            raise ValueError(f"{n} inputs of {K} outputs are {n * K:,} rows: at most {MOST_ROWS:,}; take fewer inputs "
                             "(rows=…), or outputs of fewer entries (output_fn=…)")  # fmt: skip
        flat = out.reshape(n, K)
        if not bool(torch.isfinite(flat).all()):
            raise ValueError("outputs have NaN or Inf entries")
        dtype = torch.promote_types(out.dtype, torch.float32)
        kernel = torch.zeros(n * K, n * K, dtype=dtype, device=out.device)
        if not flat.requires_grad:
            return kernel
        layers, rest = calls.verified(flat)
        for group in _groups(layers, n * K, memory // 2):
            _factored(kernel, flat, group, memory // 2)
        del flat, out, calls, layers
        if rest:
            _by_rows(kernel, model, inputs, output_fn, rest, K, memory)
    return kernel


def selected(model: nn.Module, params: str | Sequence[str] | None) -> dict[str, nn.Parameter]:
    """The parameters that are meant, by name: those that are trained, those that match, or those named."""
    named = {n: p for n, p in model.named_parameters() if p.is_floating_point()}
    if params is None:
        found = {n: p for n, p in named.items() if p.requires_grad}
        if not found:
            raise ValueError("no parameter of the network is trained: name some with params")
        return found
    if not isinstance(params, str):
        for name in params:
            if name not in named:
                raise unknown("parameter", name, named)
        if not params:
            raise ValueError("params names no parameter")
        return {n: named[n] for n in params}
    try:
        found = {n: p for n, p in named.items() if re.search(params, n)}
    except re.error as error:
        raise ValueError(f"params={params!r} is no regular expression: {error}") from error
    if not found:
        raise unknown("parameters", params, named)
    return found


def outputs_of(model: nn.Module, inputs: Inputs, output_fn: OutputFn | None) -> Tensor:
    """``(n, …)``."""
    n = size(inputs)
    if output_fn is not None:
        out: Any = output_fn(model, inputs)
    else:
        out = model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
        out = getattr(out, "logits", out)
    if not isinstance(out, Tensor):
        raise ValueError(f"the network gives {type(out).__name__}: name an output_fn (model, inputs) -> (n, …)")
    if out.dim() == 0 or len(out) != n or out.numel() == 0 or not out.is_floating_point():
        raise ValueError(f"outputs of {n} inputs are {tuple(out.shape)}, {out.dtype}: real (n, …) are needed")
    return out


def size(inputs: Inputs) -> int:
    """How many inputs there are."""
    tensors = list(inputs.values()) if isinstance(inputs, Mapping) else [inputs]
    lengths = {len(t) if isinstance(t, Tensor) and t.dim() else 0 for t in tensors}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError("inputs are a tensor (n, …), or a mapping of such tensors of one n, at least 1")
    return lengths.pop()


def head(inputs: Inputs, n: int | None) -> Inputs:
    """The first n."""
    if n is None:
        return inputs
    return {k: v[:n] for k, v in inputs.items()} if isinstance(inputs, Mapping) else inputs[:n]


@dataclass
class _Layer:
    """A weight and bias of one or several linear layers: which of the two are meant, and every call."""

    weight: Tensor | None
    bias: Tensor | None
    calls: list[tuple[Tensor, Tensor]]  # what went in, detached, and what came out

    def inputs(self, n: int) -> Tensor:
        """``(n, T, p)``, a column of ones for the bias."""
        h = torch.cat([h.reshape(n, -1, h.shape[-1]) for h, _ in self.calls], 1)
        h = h.to(torch.promote_types(h.dtype, torch.float32))
        one = h.new_ones(*h.shape[:2], 1)
        return torch.cat([part for part, p in ((h, self.weight), (one, self.bias)) if p is not None], -1)

    def deltas(self, grads: Sequence[Tensor | None], n: int) -> Tensor:
        """``(n, T, q)`` from gradients by the calls' outputs."""
        parts = [
            (torch.zeros_like(z) if g is None else g).reshape(n, -1, z.shape[-1])
            for g, (_, z) in zip(grads, self.calls, strict=True)
        ]
        return torch.cat(parts, 1)

    def times(self, n: int) -> int:
        return sum(z.numel() // z.shape[-1] for _, z in self.calls) // n

    def width(self) -> int:
        return self.calls[0][1].shape[-1]


class _Calls:
    """Within a block, notes every call of the linear layers that hold chosen parameters."""

    def __init__(self, model: nn.Module, chosen: Mapping[str, nn.Parameter]) -> None:
        self.chosen = {id(p): p for p in chosen.values()}
        homes: dict[int, set[type]] = {}
        for module in model.modules():
            for p in module._parameters.values():
                if p is not None and id(p) in self.chosen:
                    homes.setdefault(id(p), set()).add(type(module))
        linear = {i for i, kinds in homes.items() if kinds == {nn.Linear}}
        self.layers: dict[tuple[int, int], _Layer] = {}
        self.modules: list[tuple[nn.Linear, _Layer]] = []
        for module in model.modules():
            if type(module) is not nn.Linear:
                continue
            weight, bias = (p if p is not None and id(p) in linear else None for p in (module.weight, module.bias))
            if weight is not None or bias is not None:
                layer = self.layers.setdefault((id(module.weight), id(module.bias)), _Layer(weight, bias, []))
                self.modules.append((module, layer))

    def __enter__(self) -> None:
        def noted(layer: _Layer) -> Callable[..., Tensor]:
            def hook(module: nn.Module, args: tuple, kwargs: Mapping, z: Tensor) -> Tensor:
                layer.calls.append(((args[0] if args else kwargs["input"]).detach(), z))
                return z.clone()  # what follows may write into it

            return hook

        self.hooks = [m.register_forward_hook(noted(layer), with_kwargs=True) for m, layer in self.modules]

    def __exit__(self, *_: object) -> None:
        for handle in self.hooks:
            handle.remove()

    def verified(self, flat: Tensor) -> tuple[list[_Layer], list[nn.Parameter]]:
        """Layers whose factors give the gradient of the last input, and the parameters of no such layer."""
        n, K = flat.shape
        weights = torch.linspace(1.0, 2.0, K, dtype=flat.dtype, device=flat.device)
        kept = [layer for layer in self.layers.values() if all(self._fits(h, z, n) for h, z in layer.calls)]
        kept = [layer for layer in kept if layer.calls]
        zs = [z for layer in kept for _, z in layer.calls]
        owned = [p for layer in kept for p in (layer.weight, layer.bias) if p is not None]
        if len({id(p) for p in owned}) < len(owned):  # one weight with two biases
            kept, zs, owned = [], [], []
        if zs:
            deltas = _grads(flat @ weights, zs, torch.ones(n, dtype=flat.dtype, device=flat.device))
            truth = dict(zip(map(id, owned), _grads(flat[-1] @ weights, owned, None), strict=True))
            kept = [k for k, d in zip(kept, _split(deltas, kept), strict=True) if _agrees(k, d, truth, n)]
        done = {id(p) for layer in kept for p in (layer.weight, layer.bias) if p is not None}
        return kept, [p for i, p in self.chosen.items() if i not in done]

    @staticmethod
    def _fits(h: Tensor, z: Tensor, n: int) -> bool:
        return h.dim() > 1 and len(h) % n == 0 and h.shape[:-1] == z.shape[:-1] and z.requires_grad


def _agrees(layer: _Layer, grads: Sequence[Tensor | None], truth: Mapping[int, Tensor | None], n: int) -> bool:
    H, D = layer.inputs(n)[-1], layer.deltas(grads, n)[-1].to(torch.float32)
    G = D.mT.to(H.dtype) @ H
    parts = [p for p in (layer.weight, layer.bias) if p is not None]
    wanted = torch.cat([_single(truth[id(p)], p).reshape(len(G), -1) for p in parts], 1).to(G.dtype)
    near = _AGREES if torch.finfo(parts[0].dtype).bits >= 32 else 30 * _AGREES
    return bool((G - wanted).norm() <= near * wanted.norm() + torch.finfo(torch.float32).tiny)


def _grads(out: Tensor, by: Sequence[Tensor], weights: Tensor | None) -> list[Tensor | None]:
    return list(torch.autograd.grad(out, list(by), weights, retain_graph=True, allow_unused=True))


def _split(values: list[Any], layers: Sequence[_Layer]) -> list[list[Any]]:
    at, parts = 0, []
    for layer in layers:
        parts.append(values[at : at + len(layer.calls)])
        at += len(layer.calls)
    return parts


def _groups(layers: Sequence[_Layer], rows: int, memory: int) -> list[list[_Layer]]:
    """Layers that are read in the same backward passes: as many as fit, at least one."""
    groups: list[list[_Layer]] = []
    left = 0
    for layer in layers:
        n = len(layer.calls[0][0])
        need = rows * layer.times(n) * layer.width() * 4
        if not groups or need > left:
            groups.append([])
            left = memory
        groups[-1].append(layer)
        left -= need
    return groups


def _factored(kernel: Tensor, flat: Tensor, group: Sequence[_Layer], memory: int) -> None:
    """Adds the group's share; outputs go in blocks of which two fit into ``memory``, where not all do."""
    n, K = flat.shape
    one = n * sum(layer.times(n) * layer.width() for layer in group) * 4
    step = K if K * one <= memory else max(1, memory // (2 * one))
    blocks = [range(a, min(a + step, K)) for a in range(0, K, step)]
    places = torch.arange(n * K, device=flat.device).reshape(n, K)
    H = [layer.inputs(n) for layer in group]
    for i, a in enumerate(blocks):
        left = _deltas(flat, group, a)
        for b in blocks[i:]:
            right = left if b is a else _deltas(flat, group, b)
            for h, da, db in zip(H, left, right, strict=True):
                _contract(kernel, places[:, a.start : a.stop], places[:, b.start : b.stop], h, da, db, memory)


def _deltas(flat: Tensor, group: Sequence[_Layer], ks: range) -> list[Tensor]:
    """Of every layer ``(n, len(ks), T, q)``: gradients of these outputs by what the layer gave."""
    n = len(flat)
    zs = [z for layer in group for _, z in layer.calls]
    dtype = torch.promote_types(flat.dtype, torch.float32)
    found = [flat.new_zeros(n, len(ks), layer.times(n), layer.width(), dtype=dtype) for layer in group]
    one = torch.ones(n, dtype=flat.dtype, device=flat.device)
    for at, k in enumerate(ks):
        for D, layer, grads in zip(found, group, _split(_grads(flat[:, k], zs, one), group), strict=True):
            D[:, at] = layer.deltas(grads, n).to(dtype)
    return found


def _contract(
    kernel: Tensor, rows: Tensor, columns: Tensor, H: Tensor, Da: Tensor, Db: Tensor, memory: int
) -> None:  # fmt: skip
    """Adds Σ_{t,s} (δ_t·δ'_s)(h_t·h_s), δ of ``Da`` at ``rows`` ``(n, a)``, δ' of ``Db`` at ``columns`` ``(n, b)``."""
    same = Da is Db
    n, a, T, q = Da.shape
    b, H = Db.shape[1], H.to(Da.dtype)
    if _written_out(n, max(a, b), T, H.shape[-1], q, memory):
        G = torch.einsum("ntp,nktq->nkpq", H, Da).reshape(n * a, -1)
        other = G if same else torch.einsum("ntp,nktq->nkpq", H, Db).reshape(n * b, -1)
        _add(kernel, rows.reshape(-1), columns.reshape(-1), G @ other.mT, mirrored=not same)
        return
    for i in range(n):
        first = i if same else 0  # the rest is its mirror
        moved = (H[i] @ H[first:].mT)[:, None] @ Db[first:]  # (m, b, T, q)
        block = Da[i].reshape(a, T * q) @ moved.reshape(-1, T * q).mT
        _add(kernel, rows[i], columns[first:].reshape(-1), block, mirrored=not same)
        if same:
            kernel[columns[i + 1 :].reshape(-1)[:, None], rows[i]] += block[:, b:].mT


def _add(kernel: Tensor, rows: Tensor, columns: Tensor, block: Tensor, *, mirrored: bool) -> None:
    kernel[rows[:, None], columns] += block
    if mirrored:
        kernel[columns[:, None], rows] += block.mT


def _written_out(n: int, k: int, T: int, p: int, q: int, memory: int) -> bool:
    """Whether gradients Σ_t δ_t h_tᵀ are better written out: fewer products, and room for them."""
    rows = n * k
    out = rows * T * q * p + rows**2 * q * p
    factored = (n**2 * T**2 * (p + k * q) + rows**2 * T * q) / 2  # of which half is a mirror
    return out < factored and (p <= T or 8 * rows * q * p <= memory)


def _by_rows(
    kernel: Tensor, model: nn.Module, inputs: Inputs, output_fn: OutputFn | None, params: list[nn.Parameter], K: int,
    memory: int,
) -> None:  # fmt: skip
    """Adds J Jᵀ of these parameters, block by block."""
    width = 4 * sum(p.numel() for p in params)
    step = len(kernel) if len(kernel) * width <= memory else max(1, memory // (2 * width))
    blocks = [range(a, min(a + step, len(kernel))) for a in range(0, len(kernel), step)]
    for i, a in enumerate(blocks):
        Ja = _jacobian(model, inputs, output_fn, params, a, K)
        for b in blocks[i:]:
            block = Ja @ (Ja if b is a else _jacobian(model, inputs, output_fn, params, b, K)).mT
            kernel[a.start : a.stop, b.start : b.stop] += block.to(kernel.dtype)
            if b is not a:
                kernel[b.start : b.stop, a.start : a.stop] += block.mT.to(kernel.dtype)


def _jacobian(
    model: nn.Module, inputs: Inputs, output_fn: OutputFn | None, params: list[nn.Parameter], rows: range, K: int
) -> Tensor:
    """These rows of J, ``(len(rows), P)``: one input's forward pass, a backward pass for each of its outputs."""
    found = []
    for i in sorted({r // K for r in rows}):
        one = {k: v[i : i + 1] for k, v in inputs.items()} if isinstance(inputs, Mapping) else inputs[i : i + 1]
        flat = outputs_of(model, one, output_fn).reshape(K)
        for k in range(K):
            if i * K + k in rows:
                grads = _grads(flat[k], params, None)
                found.append(torch.cat([_single(g, p) for g, p in zip(grads, params, strict=True)]))
    return torch.stack(found)


def _single(g: Tensor | None, p: Tensor) -> Tensor:
    """A gradient as a row, at least in float32."""
    return (torch.zeros_like(p) if g is None else g).reshape(-1).to(torch.promote_types(p.dtype, torch.float32))
