"""Thousands of damaged inputs through the real entry points: each must end well, or with one clear line.

    python -m attack.fuzz --n 5000 --seed 0 --seconds 1500
    python -m attack.fuzz --only 1234 --seed 0          # one input again

Every input is damaged by its own seed, run in a forked child with limits of memory and time, and counted. Successes and
clean errors are good; tracebacks, crashes, hangs, memory over the bound, control codes and long errors are not.
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from attack import children
from attack.cases import CASES
from attack.mutations import damaged
from attack.places import build, imports

GOOD = ("success", "clean")
BATCH = 12


def trial(number: int, seed: int, root: Path, place: Path, names: list[str]) -> tuple[str, str]:
    """Make the folder of an input: its case, and what was damaged."""
    rng = random.Random(f"{seed}/{number}")
    name = rng.choices(names, [CASES[n].weight for n in names])[0]
    case = CASES[name]
    shutil.copytree(root / case.folder, place, symlinks=True)
    found = [p for p in sorted(place.glob(rng.choice(case.files))) if p.is_file()]
    return name, damaged(rng.choice(found), rng) if found else "nothing is there to damage"


def attacked(numbers: list[int], make: Callable[[int, Path], tuple[str, str]], root: Path) -> Iterator[dict]:
    """Run inputs, some a child; number, case, damage and ending of each."""
    left = list(numbers)
    while left:
        batch = left[:BATCH]

        def work(tell: Callable[[dict], None], batch: list[int] = batch) -> None:
            for number in batch:
                with tempfile.TemporaryDirectory(dir=root) as scratch:
                    place = Path(scratch) / "input"
                    name, said = make(number, place)
                    tell({"number": number, "case": name, "damage": said})
                    os.chdir(place)
                    tell(children.timed(CASES[name].call))
                    os.chdir(root)

        now: dict = {}
        for message in children.in_child(work):
            now |= message
            if "ended" in message:
                yield now
                left = [n for n in left if n > now.get("number", left[0])]
                now = {}


def controls(root: Path, names: list[str]) -> dict[str, str]:
    """Cases that do not even succeed undamaged, and why."""

    def make(number: int, place: Path) -> tuple[str, str]:
        shutil.copytree(root / CASES[names[number]].folder, place, symlinks=True)
        return names[number], "undamaged"

    endings = attacked(list(range(len(names))), make, root)
    return {e["case"]: f"{e['ended']}: {e['said']}" for e in endings if e["ended"] != "success"}


def main() -> int:
    """Attack; 0 when all ended well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1500.0)
    parser.add_argument("--only", type=int)
    parser.add_argument("--case", action="append", choices=sorted(CASES))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--keep", type=Path, default=Path("runs/fuzz"))
    given = parser.parse_args()
    found = fuzz(
        given.n if given.only is None else 1, seed=given.seed, seconds=given.seconds, first=given.only or 0,
        names=given.case, workers=given.workers if given.only is None else 1, keep=given.keep,
    )  # fmt: skip
    return 0 if all(e["ended"] in GOOD for e in found) else 1


def fuzz(
    n: int, *, seed: int, seconds: float, first: int = 0, names=None, workers: int = 2, keep: Path | None = None
) -> list[dict]:
    """Attack with ``n`` inputs within ``seconds`` and print the counts; every ending."""
    start, names = time.monotonic(), names or list(CASES)
    imports()
    with tempfile.TemporaryDirectory(prefix="rankwise-fuzz-") as made:
        root = Path(made)
        failed = build(root, only={CASES[k].folder for k in names})
        for name, why in failed.items():
            print(f"no folder '{name}': {why}", flush=True)
        names = [k for k in names if CASES[k].folder not in failed]
        failed |= (broken := controls(root, names))
        for name, why in broken.items():
            print(f"undamaged, '{name}' does not succeed: {why}", flush=True)
        print(f"{len(names)} entry points, folders made in {time.monotonic() - start:.0f} s", flush=True)
        start, pids = time.monotonic(), []
        for worker in range(workers):
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    with (root / f"endings-{worker}.jsonl").open("w", buffering=1) as stream:
                        numbers = list(range(first + worker, first + n, workers))
                        for ending in attacked(numbers, lambda i, p: trial(i, seed, root, p, names), root):
                            stream.write(json.dumps(ending) + "\n")
                            if time.monotonic() - start > seconds:
                                break
                    status = 0
                finally:
                    os._exit(status)
            pids.append(pid)
        for pid in pids:
            os.waitpid(pid, 0)
        endings = [json.loads(line) for w in range(workers) for line in (root / f"endings-{w}.jsonl").open()]
        _show(endings, seed, time.monotonic() - start)
        if keep is not None:
            _keep([e for e in endings if e["ended"] not in GOOD], seed, root, names, keep)
    return endings + [{"ended": "no folder", "said": why} for why in failed.values()]


def _show(endings: list[dict], seed: int, seconds: float) -> None:
    counts = Counter(e["ended"] for e in endings)
    by_case: dict[str, Counter] = defaultdict(Counter)
    for e in endings:
        by_case[e.get("case", "?")][e["ended"]] += 1
    kinds = ["success", "clean", *sorted(set(counts) - set(GOOD))]
    print(f"\n{'case':28}" + "".join(f"{k:>14}" for k in kinds))
    for name in sorted(by_case):
        print(f"{name:28}" + "".join(f"{by_case[name][k] or '':>14}" for k in kinds))
    print(f"{'all ' + str(len(endings)):28}" + "".join(f"{counts[k]:>14}" for k in kinds))
    slow = max((e.get("seconds", 0) for e in endings), default=0)
    large = max((e.get("bytes", 0) for e in endings), default=0)
    print(f"seed {seed}, {seconds:.0f} s; slowest {slow:.1f} s, largest {large / 2**20:.0f} MB")


def _keep(bad: list[dict], seed: int, root: Path, names: list[str], keep: Path) -> None:
    """Save what failed, one example a kind, and say how to try it again."""
    seen = Counter()
    for e in sorted(bad, key=lambda e: e.get("number", 0)):
        kind = (
            e.get("case"),
            e["ended"],
            (e.get("said") or "").strip().splitlines()[-1:] and e["said"].strip().splitlines()[-1][:100],
        )
        seen[kind] += 1
        if seen[kind] > 1 or "number" not in e:
            continue
        place = keep / f"{seed}-{e['number']}"
        shutil.rmtree(place, ignore_errors=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        trial(e["number"], seed, root, place, names)
        (place / "ENDING").write_text(f"{e['case']}\n{e['damage']}\n{e['ended']}\n\n{e.get('said', '')}")
    for (case, ended, last), n in seen.most_common():
        print(f"{n:4} × {case}: {ended}: {last}")
    if bad:
        print(f"examples in {keep}/; one again: python -m attack.fuzz --seed {seed} --only NUMBER")


if __name__ == "__main__":
    sys.exit(main())
