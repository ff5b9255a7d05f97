"""What the numerics take: real, finite matrices, at any scale, multiplied in the precision they have."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from threading import Lock
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

Given = ParamSpec("Given")
Returned = TypeVar("Returned")
REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_SAFE = 30  # a float32 of size 2^±30 can be squared and summed without leaving the range


def real(A: Tensor, name: str) -> Tensor:
    """``A`` in the precision of the computation: float64 as it is, float32 for what is shorter.

    Raises
    ------
    ValueError
        Complex, integer or other entries (their kind is named).
    """
    if A.dtype not in REAL:
        raise ValueError(
            f"{name}: entries of {A.dtype}; float16, bfloat16, float32 and float64 are accepted"
            + (": decompose the real and the imaginary part, or use torch.linalg" if A.is_complex() else ": cast first")
        )
    return A if A.dtype == torch.float64 else A.float()


def finite(A: Tensor, name: str) -> Tensor:
    """``A`` as `real` gives it.

    Raises
    ------
    ValueError
        NaN or Inf entries, or a kind that `real` refuses.
    """
    A = real(A, name)
    if A.numel() and not all(torch.isfinite(x) for x in torch.aminmax(A.detach())):  # NaN spreads to both
        raise ValueError(f"{name}: the matrix of shape {tuple(A.shape)} has NaN or Inf entries")
    return A


class _Float32:
    """The process's setting for products of float32 on GPUs, which comes back when no thread is within any more."""

    def __init__(self) -> None:
        self.lock, self.within, self.before = Lock(), 0, ""

    def __enter__(self) -> None:
        matmul = torch.backends.cuda.matmul
        with self.lock:
            self.within += 1
            if self.within == 1 and matmul.fp32_precision == "tf32":
                # a setting that comes from the general one goes on to follow it
                general = getattr(torch.backends, "fp32_precision", "none")
                self.before = "none" if general == "tf32" else "tf32"
                matmul.fp32_precision = "ieee"

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.within -= 1
            if not self.within and self.before:
                torch.backends.cuda.matmul.fp32_precision, self.before = self.before, ""


_FLOAT32 = _Float32()


def exact_products(function: Callable[Given, Returned]) -> Callable[Given, Returned]:
    """Float32 is multiplied as float32 within the function, where ``torch.set_float32_matmul_precision`` lets GPUs take
    TF32: directions would be orthogonal to three digits only. Code that is compiled follows the process's setting."""

    @wraps(function)
    def exactly(*args: Given.args, **kwargs: Given.kwargs) -> Returned:
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        with _FLOAT32:
            return function(*args, **kwargs)

    return exactly


def largest_entry(A: Tensor, dim: tuple[int, ...] = ()) -> Tensor:
    """``max |A|`` over ``dim`` (all where it is empty), NaN where there is one; far faster than a norm of order ∞."""
    return torch.maximum(A.amax(dim), -A.amin(dim))


def ordinary(A: Tensor) -> bool:
    """Whether squares of the entries stay far inside float32's range (so do NaN and Inf, which are named elsewhere)."""
    return A.numel() == 0 or int(torch.frexp(largest_entry(A)).exponent.abs()) <= _SAFE


def scaled(A: Tensor, name: str, *, single: bool = False) -> tuple[Tensor, Tensor]:
    """``A = s · Â`` of finite matrices ``(..., m, n)``, with Â's squares far from overflow and underflow.

    ``s: (...)``, float64, is a power of four, so that neither dividing by it nor its root rounds anything; where all
    matrices are of ordinary size it is one, and Â is A itself.

    Raises
    ------
    ValueError
        NaN or Inf entries, no entries, a kind that `real` refuses, or no matrix (with ``single``, not just one).
    """
    if A.dim() < 2 or (single and A.dim() > 2) or A.numel() == 0:
        needed = "one matrix" if single else "matrices"
        raise ValueError(f"{name}: {needed} with entries needed, got shape {tuple(A.shape)}")
    A = finite(A, name)
    largest = largest_entry(A, (-2, -1))
    exponent = torch.frexp(largest).exponent
    if int(exponent.abs().max()) <= _SAFE:
        return A, torch.ones_like(largest, dtype=torch.float64)
    # two divisions: the inverse of the smallest number has no finite value
    root = torch.ldexp(torch.ones_like(largest), (exponent - 1).div(2, rounding_mode="floor"))
    return A / root[..., None, None] / root[..., None, None], root.double().square()
