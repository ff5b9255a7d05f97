"""The ``rankwise`` command: its entry point."""

from __future__ import annotations

import errno
import logging
import os
import re
import sys
import warnings

from rankwise.cli import tuning  # noqa: F401  (each import adds its commands, in the order of the help)

# isort: split
from rankwise.cli import compression, distributions, evidence, merging, prompting  # noqa: F401
from rankwise.cli.app import app, errors, when_cut_short

LONGEST = 2000  # characters of a message


def run() -> None:
    """Entry point: exit status 0 when what was asked was done, 2 with one clear line when the input was wrong."""
    for category in (UserWarning, FutureWarning, RuntimeWarning):
        warnings.filterwarnings("ignore", category=category)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of kernels that nothing here uses
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        app()
    except Exception as error:
        if os.environ.get("RANKWISE_TRACEBACK") or not isinstance(
            error, ValueError | OSError | ImportError | TypeError
        ):
            raise
        errors.print(f"error: {explained(error)}", style="red", soft_wrap=True)
        sys.exit(2)


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
