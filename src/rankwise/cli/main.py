"""The ``rankwise`` command: its entry point."""

from __future__ import annotations

import errno
import logging
import os
import re
import sys
import traceback
import warnings

from rankwise import __version__
from rankwise.cli import tuning  # noqa: F401  (each import adds its commands, in the order of the help)

# isort: split
from rankwise.cli import (  # noqa: F401
    clicks,
    compression,
    continual,
    distilled,
    distributions,
    evidence,
    in_context,
    light,
    merging,
    peers,
    prompting,
    ranking,
    rich_lazy,
    subspaces,
    unlearning,
    vision,
)
from rankwise.cli.app import app, errors, when_cut_short

_ON_CPU = " (CUDA_VISIBLE_DEVICES= before the command keeps it on the CPU)"
LONGEST = 2000  # characters of a message
REPORT = "please report it, with what stands above and the command, where the project is hosted (see CONTRIBUTING.md)"


def run() -> None:
    """Entry point.

    Exit status 0 when what was asked was done, 2 with one clear line when the input was wrong; anything else is a fault
    of the library's own and shows its traceback.
    """
    for category in (UserWarning, FutureWarning, RuntimeWarning):
        warnings.filterwarnings("ignore", category=category)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of kernels that nothing here uses
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        app()
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get("RANKWISE_TRACEBACK"):
            raise
        errors.print(f"error: {explained(error)}", style="red", soft_wrap=True)
        sys.exit(2)
    except Exception as error:
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # the latter is torch's
            said = f"{explained(error)}{_ON_CPU if 'CUDA' in str(error) else ''}"
            errors.print(f"error: not enough memory{when_cut_short()}: {said}", style="red", soft_wrap=True)
            sys.exit(2)
        errors.print(traceback.format_exc(), soft_wrap=True)
        errors.print(f"this is a fault of rankwise {__version__}, not yours: {REPORT}", style="red", soft_wrap=True)
        sys.exit(1)


def explained(error: Exception) -> str:
    """What a person is told of an error: one line of at most 2,000 characters."""
    said = re.sub(r"\s*[\n\r\v\f\x85\u2028\u2029]\s*", " ", _said(error).strip())
    return said if len(said) <= LONGEST else said[:LONGEST] + " …"


def _said(error: Exception) -> str:
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        return "; ".join(
            f"{'.'.join(map(str, e['loc']))}: {e['msg'].removeprefix('Value error, ')}" for e in error.errors()
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" while writing {error.filename}" if error.filename else ""
        return f"no space left on disk{where}; free some{when_cut_short()}"
    if isinstance(error, PermissionError):
        return f"no permission: {error.filename}"
    return str(error)
