"""Short versions of `make fuzz` and `make kill`: other inputs and moments a seed, the same counts."""

import os
import re
import subprocess
import sys
from pathlib import Path

import rankwise

PATHS = [str(Path(rankwise.__file__).parents[1]), str(Path(__file__).parents[1])]
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join(PATHS), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
QUICK = ["texts jsonl", "texts csv", "merge dry", "load classifier", "ctranslate2", "server", "spectra", "record"]


def attack(module, *args, cwd):
    done = subprocess.run(
        [sys.executable, "-m", f"attack.{module}", *args], env=ENV, cwd=cwd, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_damaged_inputs_end_well_or_in_one_line(tmp_path):
    cases = [part for name in QUICK for part in ("--case", name)]
    told = attack("fuzz", "--n", "60", "--seconds", "120", "--seed", "11", *cases, cwd=tmp_path)
    counts = re.search(r"^all 60 +(\d+) +(\d+)$", told, re.MULTILINE)
    assert counts is not None, told
    assert int(counts[1]) + int(counts[2]) == 60
    assert int(counts[2]) > 10  # so many were noticed


def test_killed_commands_given_again_end_as_unbroken_ones(tmp_path):
    told = attack("kill", "--n", "6", "--seed", "3", "--command", "merge", "--command", "answer", cwd=tmp_path)
    assert re.search(r"^seed 3: 7 in \d+ s, 0 faults$", told, re.MULTILINE), told
