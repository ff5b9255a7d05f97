"""``python -m mutants FAMILY --n 60 --seed 0`` from a project's root."""

import argparse
from pathlib import Path

from mutants.run import main

parser = argparse.ArgumentParser(
    prog="mutants", description="The share of a seeded sample of faults that tests notice."
)
parser.add_argument("family", help="a folder of the package")
parser.add_argument("--n", type=int, default=60, help="how many faults (default 60)")
parser.add_argument("--seed", type=int, default=0, help="which ones (default 0)")
given = parser.parse_args()
main(Path.cwd().resolve(), given.family, given.n, given.seed)
