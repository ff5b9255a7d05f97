"""Errors that offer the nearest accepted names."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def unknown(kind: str, seen: str, accepted: Iterable[str]) -> ValueError:
    """``ValueError`` for a name that is not among ``accepted``, with the nearest ones (or all, if few) in it."""
    names = sorted(accepted)
    close = get_close_matches(seen, names, n=3, cutoff=0.5)
    shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
    hint = f"did you mean {' or '.join(close)}?" if close else f"accepted: {shown}"
    return ValueError(f"unknown {kind} '{seen}'; {hint}")
