"""Gram matrices and symmetric eigenproblems, of which often only the leading vectors are wanted.

``G = Q T Qᵀ`` (tridiagonal T), ``T = Z Λ Zᵀ`` (divide and conquer), vectors ``Q Z``: the last product is taken of the
wanted columns alone. LAPACK's own drivers take it of all, or find some vectors more slowly than others find all. The
steps are called where torch has one thread, as within `each`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from rankwise.spectral.accepted import exact_products, finite

_LARGE = 128  # rows from which on it pays to call BLAS and LAPACK for what torch does not offer


@exact_products
def gram(A: Tensor) -> Tensor:
    """``AᵀA`` of one matrix ``(m, n)`` in its own precision: ``(n, n)``, each pair of columns multiplied once.

    Examples
    --------
    >>> import torch
    >>> from rankwise.spectral import gram
    >>> A = torch.randn(9, 6)
    >>> torch.allclose(gram(A), A.mT @ A, atol=1e-5)
    True
    """
    m, n = A.shape
    if n < _LARGE or not _plain(A):
        return A.mT @ A
    update = _fortran("blas", f"{_KIND[A.dtype]}syrk") if _alone() else None
    if update is None:
        return _in_strips(A)
    A = A if A.is_contiguous() or A.mT.is_contiguous() else A.contiguous()
    half, one, none = A.new_zeros(n, n), A.new_ones(()), A.new_zeros(())
    trans, first = (b"N", n) if A.is_contiguous() else (b"T", m)  # rows here are columns to Fortran
    update(b"L", trans, n, m, one, A, first, none, half, n)
    G = half.mT.contiguous().add_(half)
    G.diagonal().mul_(0.5)
    return G


def _in_strips(A: Tensor) -> Tensor:
    """`gram` by products of a quarter of the columns with those from there on, and their mirror image."""
    n = A.shape[1]
    G, width = A.new_empty(n, n), -(-n // 4)
    for a in range(0, n, width):
        b = min(a + width, n)
        torch.mm(A[:, a:b].mT, A[:, a:], out=G[a:b, a:])
        own = G[a:b, a:b]
        own.copy_(own.triu() + own.triu(1).mT)
        G[b:, a:b] = G[a:b, b:].mT
    return G


def symmetric_eigh(G: Tensor, *, leading: int | None = None) -> tuple[Tensor, Tensor]:
    """``torch.linalg.eigh`` in G's precision; where LAPACK's float32 does not converge (it happens on real Gram
    matrices with many zero rows), and on GPUs, whose float32 solvers lose three digits, in float64, rounded back.

    Parameters
    ----------
    G : Tensor
        ``(..., n, n)``, symmetric, any real dtype and device.
    leading : int, optional
        How many vectors are wanted, those of the largest values; all by default.

    Returns
    -------
    (Tensor, Tensor)
        All values ``(..., n)``, ascending, and the vectors of the last of them as columns, ``(..., n, leading)``.

    Raises
    ------
    ValueError
        More vectors than there are, or NaN or Inf entries.

    Examples
    --------
    >>> import torch
    >>> from rankwise.spectral import symmetric_eigh
    >>> values, vectors = symmetric_eigh(torch.tensor([[2.0, 1.0], [1.0, 2.0]]), leading=1)
    >>> torch.allclose(values, torch.tensor([1.0, 3.0])), vectors.shape
    (True, torch.Size([2, 1]))
    """
    G = finite(G, "symmetric_eigh")
    n = G.shape[-1]
    wanted = n if leading is None else leading
    if not 0 <= wanted <= n:
        raise ValueError(f"leading={leading} is outside 0..{n}")
    found = _in_steps(G, wanted) if G.dim() == 2 and n >= _LARGE and _plain(G) and _alone() else None
    if found is not None:
        return found
    try:
        values, vectors = torch.linalg.eigh(G if G.device.type == "cpu" else G.double())
    except RuntimeError:  # torch.linalg.LinAlgError
        values, vectors = torch.linalg.eigh(G.double())
    return values.to(G.dtype), vectors[..., n - wanted :].to(G.dtype)


def _in_steps(G: Tensor, wanted: int) -> tuple[Tensor, Tensor] | None:
    """Values and leading vectors, or nothing where the steps do not converge."""
    reduce, solve = (_fortran("lapack", f"{_KIND[G.dtype]}{step}") for step in ("sytrd", "stevd"))
    if reduce is None or solve is None:
        return None
    n, info = len(G), torch.zeros(2, dtype=torch.int32)
    A, Z = G.clone(memory_format=torch.contiguous_format), G.new_empty(n, n)
    d, e, tau = G.new_empty(n), G.new_empty(n), G.new_empty(n)
    work, whole = G.new_empty(n * (n + 64)), torch.empty(5 * n + 3, dtype=torch.int32)
    reduce(b"L", n, A, n, d, e, tau, work, len(work), info[:1])
    solve(b"V", n, d, e, Z, n, work, len(work), whole, len(whole), info[1:])
    if info.any():
        return None
    vectors = Z[n - wanted :].mT  # LAPACK's columns lie in rows
    vectors[1:] = torch.ormqr(A.mT[1:, :-1], tau[: n - 1], vectors[1:])
    return d, vectors


# --- what torch does not offer

_KIND = {torch.float32: "s", torch.float64: "d"}


def _plain(A: Tensor) -> bool:
    return A.device.type == "cpu" and A.dtype in _KIND and not A.requires_grad


def _alone() -> bool:
    """Whether torch runs on one thread. Beside others, which spin for more work, SciPy's threads wait milliseconds."""
    return torch.get_num_threads() == 1


@cache
def _fortran(library: str, name: str) -> Callable[..., None] | None:
    """A routine of SciPy's BLAS or LAPACK, unless its integers are of another size than those handed over.

    SciPy's own wrappers hold the interpreter's lock: two threads would wait for each other.
    """
    capsule, api = import_module(f"scipy.linalg.cython_{library}").__pyx_capi__[name], ctypes.pythonapi
    api.PyCapsule_GetName.restype, api.PyCapsule_GetName.argtypes = ctypes.c_char_p, [ctypes.py_object]
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    signature = api.PyCapsule_GetName(capsule)
    if b"int *" not in signature:
        return None
    address = api.PyCapsule_GetPointer(capsule, signature)
    routine = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * signature.count(b"*"))(address)
    return lambda *arguments: routine(*map(_by_reference, arguments))


def _by_reference(argument: Tensor | int | bytes) -> Any:
    if isinstance(argument, Tensor):
        return argument.data_ptr()
    return argument if isinstance(argument, bytes) else ctypes.byref(ctypes.c_int(argument))
