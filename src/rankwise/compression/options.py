"""What options of compression may say; nothing heavy is imported, so that they can be checked first."""

from __future__ import annotations

from numbers import Integral, Real

from rankwise.nearest import unknown

METHODS = ("energy", "top", "welore", "uniform", "owl")
DTYPES = ("float32", "bfloat16", "float16")


def check_options(
    *,
    ratio: float | None = None,
    parameters: float | None = None,
    bytes: float | None = None,
    method: str = "energy",
    min_ratio: float = 0.5,
    only_if_smaller: bool = True,
    multiple_of: int = 1,
) -> None:
    """An error for options of `rankwise.compression.plan` that no model could meet; no model is needed to ask."""
    given = {"ratio": ratio, "parameters": parameters, "bytes": bytes}
    given = {k: v for k, v in given.items() if v is not None}
    if len(given) != 1:
        shown = ", ".join(given) or "none of them"
        raise ValueError(f"give exactly one of ratio, parameters and bytes; given: {shown}")
    for name, value in {**given, "min_ratio": min_ratio}.items():
        if not isinstance(value, Real) or isinstance(value, bool):
            share = "" if name in ("ratio", "min_ratio") else ": a count, or below 1 a share"
            raise ValueError(f"{name}={value!r} is no number{share}; half is 0.5")
    if ratio is not None and not 0 < ratio < 1:
        raise ValueError(f"ratio={ratio} is outside (0, 1): the share of all directions to remove")
    for name, wanted in given.items():
        if not 0 < wanted < float("inf"):
            raise ValueError(f"{name}={wanted} must be a finite number above 0; below 1 it is a share")
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    if not 0 <= min_ratio < 1:
        raise ValueError(f"min_ratio={min_ratio} is outside [0, 1)")
    if not isinstance(multiple_of, Integral) or isinstance(multiple_of, bool) or multiple_of < 1:
        raise ValueError(
            f"multiple_of={multiple_of!r} is no whole number from 1: ranks are rounded up to multiples of it"
        )
    if ratio is None and not only_if_smaller:
        raise ValueError("a target in parameters or bytes needs only_if_smaller=True: else removing may add some")
