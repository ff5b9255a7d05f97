"""The installed command, as a person would run it in a terminal of 80 columns."""

import os
import subprocess
import sys
from pathlib import Path

RANKWISE = str(Path(sys.executable).parent / "rankwise")
ENV = {**os.environ, "COLUMNS": "80", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def rankwise(*args, **options):
    return subprocess.run([RANKWISE, *map(str, args)], capture_output=True, text=True, env=ENV, timeout=400, **options)
