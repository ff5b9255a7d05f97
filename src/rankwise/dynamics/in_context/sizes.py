"""Which tasks there can be: told before anything heavy is imported."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping
from typing import Any

LEAST = {"classes": 1, "labels": 2, "dim": 1, "pairs": 2, "burstiness": 0, "n_max": 1, "batch_size": 1, "seed": 0}


def whole(name: str, value: object, least: int) -> int:
    """The number, numpy's too, or a refusal by name."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise ValueError(f"{name}={value!r}: a whole number of at least {least} is accepted")
    return int(value)


def seeds_of(seeds: object) -> list[int]:
    """One seed, or several in their order."""
    given = list(seeds) if isinstance(seeds, Iterable) else [seeds]
    if not given:
        raise ValueError(f"seeds={seeds!r}: at least one is needed")
    return [whole("seeds", seed, 0) for seed in given]


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same, with Python's numbers for numpy's, as JSON has them."""
    return {name: value.item() if hasattr(value, "item") else value for name, value in values.items()}


def check_task(values: Mapping[str, Any]) -> None:
    """Refuse what `InContextTask` cannot be, by name; ``values`` are all of its fields."""
    for name, least in LEAST.items():
        whole(name, values[name], least)
    for name in ("zipf", "noise", "p_burst", "p_novel"):
        value, most = values[name], 1.0 if name[1] == "_" else math.inf
        if not isinstance(value, numbers.Real) or not 0 <= float(value) <= most or math.isinf(value):
            raise ValueError(f"{name}={value!r}: a number {'in [0, 1]' if most == 1 else 'of at least 0'} is accepted")
    K, L, N, B = (values[name] for name in ("classes", "labels", "pairs", "burstiness"))
    if K % L:
        raise ValueError(f"classes={K}: a multiple of labels={L} is accepted, e.g. {max(1, K // L) * L}")
    if values["n_max"] < N:
        raise ValueError(f"pairs={N}: places have room for n_max={values['n_max']}; give n_max={N} or more")
    if B and (N % B or B >= N):
        accepted = ", ".join(str(b) for b in range(1, N) if N % b == 0)
        raise ValueError(f"burstiness={B}: divisors of pairs={N} below it are accepted ({accepted}), or 0")
    if not B and (values["p_burst"] or values["p_novel"]):
        raise ValueError("burstiness=0: no sequence is bursty, so give p_burst=0 and p_novel=0, or burstiness=1")
    for name, only in (("p_burst", 1), ("zipf", 0)):
        if values["p_novel"] == 1 and values[name] != only:
            raise ValueError(
                f"{name}={values[name]!r}: where all sequences are of new classes (p_novel=1), bursty and as frequent "
                f"as each other, {name}={only} is accepted; give p_novel below 1"
            )
    if B and values["no_repeats"] and N // B > L:
        raise ValueError(f"no_repeats with pairs / burstiness = {N // B} classes: at most labels={L} have labels apart")
    if B and N // B > K:
        raise ValueError(f"classes={K}: at least pairs / burstiness = {N // B} are needed")
