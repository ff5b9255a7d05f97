r"""Tangent kernels Θ = J Jᵀ without J.

Rows of J are outputs of inputs: R = n · K for n inputs of K outputs each. Two routes give the same Θ:

* **factored**, for weights and biases of linear layers (GPT-2's ``Conv1D`` too), however often a layer is used (times
  of a recurrent network, positions of a text): h_t ``(n, T, p)`` and δ_t ``(n, K, T, q)`` are kept, from K backward
  passes over all inputs at once, and Θ_ij = Σ_{t,s} (δ^i_t·δ^j_s)(h^i_t·h^j_s). For a recurrent matrix of N units
  that is T/N of J's memory. Where δ of all outputs do not fit into ``memory``, blocks of them are kept, without the
  times that come after an output, and the outputs that follow pass by, a few at a time, by backward passes of their
  own. Each use is verified on one input against its gradient by autograd: a weight that is also used outside of its
  layer, inputs that are mixed, or an order other than inputs first sends it to the other route.
* **by rows**, for all other parameters: blocks of J that fit into ``memory``, recomputed for each pair of blocks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

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
    return kernel_and_shape(model, inputs, params=params, output_fn=output_fn, memory=memory)[0]


def kernel_and_shape(
    model: nn.Module, inputs: Inputs, *, params: str | Sequence[str] | None = None, output_fn: OutputFn | None = None,
    memory: int = MEMORY,
) -> tuple[Tensor, torch.Size]:  # fmt: skip
    """The kernel, and the shape ``(n, …)`` of the outputs whose entries are its rows."""
    if memory < 1:
        raise ValueError(f"memory={memory}: bytes, at least 1")
    chosen = selected(model, params)
    with measuring(model, chosen.values()):
        inputs = usable(inputs)
        calls = _Calls(model, chosen)
        with calls:
            out = outputs_of(model, inputs, output_fn)
        n, K = len(out), out[0].numel()
        if n * K > MOST_ROWS:
            raise ValueError(f"{n} inputs of {K} outputs are {n * K:,} rows: at most {MOST_ROWS:,}; take fewer inputs "
                             "(rows=…), or outputs of fewer entries (output_fn=…)")  # fmt: skip
        flat, shape = out.reshape(n, K), out.shape
        if not bool(torch.isfinite(flat).all()):
            raise ValueError("outputs have NaN or Inf entries")
        dtype = torch.promote_types(out.dtype, torch.float32)
        layers, rest = calls.verified(flat) if flat.requires_grad else ([], [])
        kernel = torch.zeros(n * K, n * K, dtype=dtype, device=out.device)
        for group in _groups(layers, n * K, memory // 2):
            _factored(kernel, flat, group, memory)
        alone = flat.detach()
        del flat, out, calls, layers
        if rest:
            _by_rows(kernel, model, inputs, output_fn, rest, alone, memory)
    return kernel, shape


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


def usable(inputs: Inputs) -> Inputs:
    """Copies of tensors that were made in inference mode, which autograd cannot keep."""
    if isinstance(inputs, Mapping):
        return {k: v.clone() if v.is_inference() else v for k, v in inputs.items()}
    return inputs.clone() if inputs.is_inference() else inputs


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
    turned: bool = False  # whether the weight is (p, q), not (q, p)

    def inputs(self, n: int, which: slice = slice(None)) -> Tensor:
        """``(n, T, p)``, a column of ones for the bias; of these of the n inputs."""
        h = torch.cat([h.reshape(n, -1, h.shape[-1])[which] for h, _ in self.calls], 1)
        h = h.to(torch.promote_types(h.dtype, torch.float32))
        if self.bias is None:
            return h
        one = h.new_ones(*h.shape[:2], 1)
        return one if self.weight is None else torch.cat([h, one], -1)

    def fill(self, D: Tensor, grads: Sequence[Tensor | None], n: int, which: slice = slice(None)) -> None:
        """D ``(n, T, q)``, zeros so far, from gradients by the calls' outputs; the first T times where it has fewer."""
        at = 0
        for g, (_, z) in zip(grads, self.calls, strict=True):
            t = min(z[..., 0].numel() // n, D.shape[1] - at)
            if g is not None and t > 0:
                D[:, at : at + t] = g.reshape(n, -1, z.shape[-1])[which, :t]
            at += t

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
        linear = {i for i, kinds in homes.items() if kinds in ({nn.Linear}, {Conv1D})}
        self.layers: dict[tuple[int, int], _Layer] = {}
        self.modules: list[tuple[nn.Module, _Layer]] = []
        for module in model.modules():
            if type(module) is not nn.Linear and type(module) is not Conv1D:
                continue
            turned = type(module) is Conv1D
            weight, bias = (p if p is not None and id(p) in linear else None for p in (module.weight, module.bias))
            if weight is not None or bias is not None:
                layer = self.layers.setdefault((id(module.weight), id(module.bias)), _Layer(weight, bias, [], turned))
                self.modules.append((module, layer))

    def __enter__(self) -> None:
        def noted(layer: _Layer) -> Callable[..., Tensor]:
            def hook(module: nn.Module, args: tuple, kwargs: Mapping, z: Tensor) -> Tensor:
                layer.calls.append(((args[0] if args else next(iter(kwargs.values()))).detach(), z))
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
    H = layer.inputs(n, slice(-1, None))
    D = H.new_zeros(1, layer.times(n), layer.width())
    layer.fill(D, grads, n, slice(-1, None))
    G = D[0].mT @ H[0]  # (q, p), (q, p + 1), or (q, 1)
    parts = [p for p in (layer.weight, layer.bias) if p is not None]
    near = _AGREES if torch.finfo(parts[0].dtype).bits >= 32 else 30 * _AGREES
    wanted = [_single(truth[id(p)], p).reshape(p.shape).to(G.dtype) for p in parts]
    wanted = [w[:, None] if w.dim() == 1 else w.mT if layer.turned else w for w in wanted]
    size = torch.stack([w.norm() for w in wanted]).norm()
    for w in wanted:
        part, G = G[:, : w.shape[1]], G[:, w.shape[1] :]
        if not bool((part - w).norm() <= near * size + torch.finfo(torch.float32).tiny):
            return False
    return True


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
    """Adds the group's share: half of ``memory`` for gradients that are kept, the rest for those that pass by."""
    n, K = flat.shape
    whole = [layer.times(n) for layer in group]
    one = 4 * n * sum(T * layer.width() for T, layer in zip(whole, group, strict=True))
    blocks, times, few = [range(K)], [whole] * K, K
    if K * one > memory // 2:
        times, few = [_ends(flat, group, k) for k in range(K)], max(1, memory // (8 * one))
        blocks = _blocks(times, [4 * n * layer.width() for layer in group], memory // 2)
    table = kernel.view(n, K, n, K)
    H = [layer.inputs(n) for layer in group]
    for a in blocks:
        left = _deltas(flat, group, a, times)
        passing = [range(b, min(b + few, K)) for b in range(a.stop, K, few)]
        for b in (a, *passing):
            right = left if b is a else _deltas(flat, group, b, times)
            for h, da, db in zip(H, left, right, strict=True):
                _contract(table, a, b, h, da, db, memory // 2)


def _blocks(times: Sequence[Sequence[int]], sizes: Sequence[int], memory: int) -> list[range]:
    """Neighbouring outputs, as many as fit: of each, as many times as the longest of the block has."""
    blocks, longest = [range(1)], list(times[0])
    for k in range(1, len(times)):
        new = [max(a, b) for a, b in zip(longest, times[k], strict=True)]
        first = blocks[-1].start
        if (k + 1 - first) * sum(T * s for T, s in zip(new, sizes, strict=True)) <= memory:
            blocks[-1], longest = range(first, k + 1), new
        else:
            blocks.append(range(k, k + 1))
            longest = list(times[k])
    return blocks


def _ends(flat: Tensor, group: Sequence[_Layer], k: int) -> list[int]:
    """Of every layer, how many times come before the gradients of this output are zero throughout."""
    ends = []
    for D in _deltas(flat, group, range(k, k + 1), None):
        used = D.abs().amax((0, 1, 3)).nonzero()
        ends.append(int(used.max()) + 1 if len(used) else 1)
    return ends


def _deltas(
    flat: Tensor, group: Sequence[_Layer], ks: range, times: Sequence[Sequence[int]] | None
) -> list[Tensor]:  # fmt: skip
    """Of every layer ``(n, len(ks), T, q)``: gradients of these outputs by what it gave, the first T times."""
    n = len(flat)
    zs = [z for layer in group for _, z in layer.calls]
    dtype = torch.promote_types(flat.dtype, torch.float32)
    ends = [max(times[k][i] for k in ks) if times else layer.times(n) for i, layer in enumerate(group)]
    found = [flat.new_zeros(n, len(ks), T, layer.width(), dtype=dtype) for T, layer in zip(ends, group, strict=True)]
    one = torch.ones(n, dtype=flat.dtype, device=flat.device)
    for at, k in enumerate(ks):
        for D, layer, grads in zip(found, group, _split(_grads(flat[:, k], zs, one), group), strict=True):
            layer.fill(D[:, at], grads, n)
    return found


def _contract(
    table: Tensor, left: range, right: range, H: Tensor, Da: Tensor, Db: Tensor, memory: int
) -> None:  # fmt: skip
    """Adds Σ_{t,s} (δ_t·δ'_s)(h_t·h_s) to ``(n, K, n, K)``, δ of ``Da`` at the outputs ``left``, δ' of ``Db`` at
    ``right``, and its mirror where these are others.
    """  # fmt: skip
    same = Da is Db
    n, a, T, q = Da.shape
    b, S, H = Db.shape[1], Db.shape[2], H.to(Da.dtype)
    there, back = (table[:, r.start : r.stop, :, c.start : c.stop] for r, c in ((left, right), (right, left)))
    if _written_out(n, max(a, b), max(T, S), H.shape[-1], q, memory):
        G = torch.einsum("ntp,nktq->nkpq", H[:, :T], Da).reshape(n * a, -1)
        other = G if same else torch.einsum("ntp,nktq->nkpq", H[:, :S], Db).reshape(n * b, -1)
        block = (G @ other.mT).reshape(n, a, n, b)
        there += block
        if not same:
            back += block.permute(2, 3, 0, 1)
        return
    m = max(1, memory // (8 * b * T * q))  # inputs that are moved at once, in half of that memory
    for i in range(n):
        for j in range(i if same else 0, n, m):  # the rest is its mirror
            moved = (H[i, :T] @ H[j : j + m, :S].mT)[:, None] @ Db[j : j + m]  # (m, b, T, q)
            block = (Da[i].reshape(a, T * q) @ moved.reshape(-1, T * q).mT).reshape(a, -1, b)
            there[i, :, j : j + m] += block
            if not same or j > i:
                back[j : j + m, :, i] += block.permute(1, 2, 0)
            elif block.shape[1] > 1:
                back[i + 1 : j + m, :, i] += block[:, 1:].permute(1, 2, 0)


def _written_out(n: int, k: int, T: int, p: int, q: int, memory: int) -> bool:
    """Whether gradients Σ_t δ_t h_tᵀ are better written out: fewer products, and room for them."""
    rows = n * k
    out = rows * T * q * p + rows**2 * q * p
    factored = (n**2 * T**2 * (p + k * q) + rows**2 * T * q) / 2  # of which half is a mirror
    return out < factored and (p <= T or 8 * rows * q * p <= memory)


def _by_rows(
    kernel: Tensor, model: nn.Module, inputs: Inputs, output_fn: OutputFn | None, params: list[nn.Parameter],
    flat: Tensor, memory: int,
) -> None:  # fmt: skip
    """Adds J Jᵀ of these parameters, block by block; ``flat`` are the outputs ``(n, K)`` of all inputs together."""
    width = 4 * sum(p.numel() for p in params)
    step = len(kernel) if len(kernel) * width <= memory else max(1, memory // (2 * width))
    blocks = [range(a, min(a + step, len(kernel))) for a in range(0, len(kernel), step)]
    for i, a in enumerate(blocks):
        Ja = _jacobian(model, inputs, output_fn, params, a, flat)
        for b in blocks[i:]:
            block = Ja @ (Ja if b is a else _jacobian(model, inputs, output_fn, params, b, flat)).mT
            kernel[a.start : a.stop, b.start : b.stop] += block.to(kernel.dtype)
            if b is not a:
                kernel[b.start : b.stop, a.start : a.stop] += block.mT.to(kernel.dtype)


def _jacobian(
    model: nn.Module, inputs: Inputs, output_fn: OutputFn | None, params: list[nn.Parameter], rows: range, flat: Tensor
) -> Tensor:
    """These rows of J, ``(len(rows), P)``: one input's forward pass, a backward pass for each of its outputs."""
    found, K = [], flat.shape[1]
    for i in sorted({r // K for r in rows}):
        one = {k: v[i : i + 1] for k, v in inputs.items()} if isinstance(inputs, Mapping) else inputs[i : i + 1]
        out = outputs_of(model, one, output_fn)
        if out.numel() != K or not _near(out.detach().reshape(K), flat[i], flat):
            raise ValueError(
                "an input alone gives other outputs than among the others: inputs that act on each other, or that are "
                "not the first dimension, have no kernel (recurrent layers need batch_first=True)"
            )
        for k in range(K):
            if i * K + k in rows:
                grads = _grads(out.reshape(K)[k], params, None)
                found.append(torch.cat([_single(g, p) for g, p in zip(grads, params, strict=True)]))
    return torch.stack(found)


def _near(a: Tensor, b: Tensor, scale: Tensor) -> bool:
    """Equal to what the order of sums may change."""
    slack = (_AGREES if torch.finfo(a.dtype).bits >= 32 else 30 * _AGREES) * float(scale.abs().max())
    return bool((a - b).abs().max() <= slack)


def _single(g: Tensor | None, p: Tensor) -> Tensor:
    """A gradient as a row, at least in float32."""
    return (torch.zeros_like(p) if g is None else g).reshape(-1).to(torch.promote_types(p.dtype, torch.float32))
