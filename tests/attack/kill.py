"""SIGKILL at seeded moments, and two processes at once: the same command again gives what an unbroken run gives.

    python -m attack.kill --n 72 --seed 0

A command is killed at a moment of its run, or just before one of its writes (any of them, by its number); then it is
given again. The folder must then hold the same files with the same results, times and dates aside, and nothing else:
no drafts, locks or temporary files. Two at once must leave the same; one of them may say that the other is writing.
"""

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from attack.cases import FORGET, RANKED, SHORT, STREAM
from attack.children import run
from attack.places import build, imports

PASSING = re.compile(
    r"second|time|resident|date|memory|speed|wall|created|python|platform|environment|started|finished|^when$"
)
PICTURES = (".html", ".png", ".svg", ".md")


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command line and the folder (of `places.BUILDERS`) that it works in."""

    folder: str
    args: tuple[str, ...]


COMMANDS = {
    "merge": Command(folder="merge", args=("merge", "merge.yaml", "--out", "merged")),
    "merge in shards": Command(folder="merge", args=("merge", "merge.yaml", "--out", "merged", "--shard-size", "9KB")),
    "merge over an old result": Command(folder="merged", args=("merge", "merge.yaml", "--out", "merged")),
    "compress": Command(
        folder="compress",
        args=("compress", "--model", "model", "--data", "texts.jsonl", "--ratio", "0.5", "--out", "small"),
    ),
    "quantile fit": Command(
        folder="tables",
        args=(
            "quantile",
            "fit",
            "data.csv",
            "--response",
            "price",
            "--models",
            "linear,boosting",
            "--levels",
            "0.1,0.5,0.9",
            "--out",
            "fitted",
        ),
    ),
    "quantile fit again": Command(
        folder="quantiles",
        args=(
            "quantile",
            "fit",
            "data.csv",
            "--response",
            "price",
            "--models",
            "linear",
            "--levels",
            "0.1,0.5,0.9",
            "--out",
            "fitted",
        ),
    ),
    "adapt": Command(folder="adapt", args=("adapt", "run.yaml")),
    "pretrain": Command(
        folder="cifar",
        args=("pretrain", "vit-cifar10", "--data", "cifar10", "--epochs", "3", "--batch-size", "16", "--out", "vit"),
    ),
    "tokens": Command(
        folder="pictures", args=("tokens", "photos", "--model", "vit", "--flops", "0.7", "--out", "photos/kept")
    ),
    "continual adapt": Command(folder="pictures", args=STREAM),
    "learn": Command(folder="tasks", args=("continual", "learn", "tasks.yaml", "--out", "out")),
    "cache": Command(
        folder="long texts", args=("cache", "--model", "model", "--texts", "long.jsonl", *SHORT, "--out", "out")
    ),
    "select": Command(
        folder="select",
        args=(
            "select",
            "--pool",
            "pool.jsonl",
            "--queries",
            "queries.jsonl",
            "--selector",
            "dq-lore",
            "-k",
            "2",
            "--candidates",
            "4",
            "--rank",
            "2",
            "--retriever",
            "model",
            "--model",
            "model",
            "--out",
            "new.jsonl",
            "--max-new-tokens",
            "4",
        ),
    ),
    "answer": Command(
        folder="record",
        args=("answer", "--model", "model", "--questions", "questions.jsonl", "--style", "text", "--out", "new.jsonl"),
    ),
    "export": Command(folder="lora", args=("export", "adapter", "--to", "merged", "--out", "out")),
    "rank fit": Command(
        folder="clicks", args=("rank", "fit", "clicks.csv", "--features", "docs.svm", *RANKED, "--out", "new")
    ),
    "rank fit again": Command(
        folder="clicks", args=("rank", "fit", "clicks.csv", "--features", "docs.svm", *RANKED, "--out", "ranker")
    ),
    "rank score": Command(folder="clicks", args=("rank", "score", "ranker", "docs.svm", "--out", "new.csv")),
    "perseval": Command(folder="summaries", args=("perseval", "news.jsonl", "--resamples", "20", "--out", "new")),
    "forget": Command(folder="forgetful", args=(*FORGET, "second.jsonl", "--name", "two", "--out", "new")),
    "forget more": Command(folder="forgetful", args=(*FORGET, "second.jsonl", "--name", "two", "--out", "state")),
    "relearn": Command(folder="forgetful", args=("continual", "relearn", "state", "--name", "one")),
    "quantile predict": Command(
        folder="quantiles", args=("quantile", "predict", "fitted", "new.csv", "--out", "predicted.csv")
    ),
}


def content(path: Path) -> object:
    """What a file says, times and dates aside."""
    data = path.read_bytes()
    if path.suffix in PICTURES:
        return "a page or a picture"
    if path.suffix == ".json":
        return _lasting(json.loads(data))
    if path.suffix in (".jsonl", ".record"):
        return sorted(json.dumps(_lasting(json.loads(line)), sort_keys=True) for line in data.splitlines())
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return {n: hashlib.sha256(archive.read(n)).hexdigest() for n in sorted(archive.namelist())}
    return hashlib.sha256(data).hexdigest()


def _lasting(value: object) -> object:
    """A tree without what passes; of a marker the command and the names of files, since inputs have other inodes."""
    if isinstance(value, dict):
        kept = {k: _lasting(v) for k, v in value.items() if not PASSING.search(k)}
        if isinstance(value.get("files"), dict) and "made_by" in value:
            kept = {"made_by": value["made_by"], "files": sorted(value["files"])}
        return kept
    return [_lasting(v) for v in value] if isinstance(value, list) else value


def tree(folder: Path) -> dict[str, object]:
    """Everything in a folder, hidden files included."""
    return {str(p.relative_to(folder)): "a folder" if p.is_dir() else content(p) for p in sorted(folder.rglob("*"))}


def _moment(rng: random.Random, whole: dict) -> dict:
    if rng.random() < 0.4 or not whole["writes"]:
        return {"after": round(rng.uniform(0.0, whole["seconds"]), 3)}
    return {"before_write": rng.randint(1, whole["writes"])}


def killed(command: Command, root: Path, place: Path, expected: dict, whole: dict, rng: random.Random) -> list[str]:
    """Kill once or more, then run to the end; what is wrong."""
    shutil.copytree(root / command.folder, place)
    moments = []
    for _ in range(rng.choice([1, 1, 2, 3])):
        moments.append(_moment(rng, whole))
        run(command.args, place, **moments[-1])
    faults = _faults([run(command.args, place)], place, expected)
    return [f"{moments}", *faults] if faults else []


def two_at_once(
    command: Command, root: Path, place: Path, expected: dict, whole: dict, rng: random.Random
) -> list[str]:
    """Run twice at the same time, then, where one was refused, nothing more; what is wrong."""
    shutil.copytree(root / command.folder, place)
    apart = rng.uniform(0, whole["seconds"] * 0.8)
    other = os.fork()
    if other == 0:
        try:
            time.sleep(apart)
            ending = run(command.args, place)
            (place.parent / f"{place.name}.other").write_text(json.dumps(ending))
        finally:
            os._exit(0)
    endings = [run(command.args, place)]
    os.waitpid(other, 0)
    endings.append(json.loads((place.parent / f"{place.name}.other").read_text()))
    faults = _faults(endings, place, expected)
    return [f"{apart:.2f} s apart", *faults] if faults else []


def _faults(endings: list[dict], place: Path, expected: dict) -> list[str]:
    faults = [
        f"ended with {e['ended']}: {e.get('said', '')[-600:]}"
        for e in endings
        if e["ended"] not in ("success", "clean")
    ]
    if all(e["ended"] != "success" for e in endings):
        faults.append(f"no success: {endings[0].get('said', '')[-600:]}")
    refused = [e["said"] for e in endings if e["ended"] == "clean" and "another command" not in e["said"]]
    faults += [f"refused for another reason: {said[-300:]}" for said in refused if not faults]
    try:
        found = tree(place)
    except (OSError, ValueError) as error:
        return [*faults, f"what is left cannot be read: {error}"]
    more = sorted(found.keys() - expected.keys())
    faults += [f"left over: {n}" for n in more if str(Path(n).parent) not in more]
    faults += [f"missing: {n}" for n in sorted(expected.keys() - found.keys())]
    return faults + [f"differs: {n}" for n in sorted(found.keys() & expected.keys()) if found[n] != expected[n]]


def kill(n: int, *, seed: int = 0, names: list[str] | None = None, seconds: float = 1e9) -> list[str]:
    """Kill ``n`` times in all, and run pairs at once, a fifth as often; print the counts; what is wrong."""
    imports()
    names, wrong, counts, start = names or list(COMMANDS), [], Counter(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="rankwise-kill-") as made:
        root = Path(made)
        failed = build(root, only={COMMANDS[n].folder for n in names})
        wrong += [f"no folder '{name}': {why}" for name, why in failed.items()]
        names = [k for k in names if COMMANDS[k].folder not in failed]
        unbroken = {}
        for name in names:
            place = root / f"whole {name}"
            shutil.copytree(root / COMMANDS[name].folder, place)
            unbroken[name] = run(COMMANDS[name].args, place), tree(place)
            if unbroken[name][0]["ended"] != "success":
                wrong.append(f"{name} ends with {unbroken[name][0]}")
        for i in range(n + n // 5):
            name = names[i % len(names)]
            rng, attack = random.Random(f"{seed}/{i}"), killed if i < n else two_at_once
            if time.monotonic() - start > seconds or unbroken[name][0]["ended"] != "success":
                continue
            whole, expected = unbroken[name]
            faults = attack(COMMANDS[name], root, root / f"{i}", expected, whole, rng)
            counts[name, attack.__name__, bool(faults)] += 1
            if faults:
                wrong.append(f"{name}, {attack.__name__} {i}: {'; '.join(faults)}"[:1500])
            shutil.rmtree(root / f"{i}", ignore_errors=True)
    for name in names:
        kills, pairs = (sum(counts[name, a, bad] for bad in (False, True)) for a in ("killed", "two_at_once"))
        bad = counts[name, "killed", True] + counts[name, "two_at_once", True]
        print(f"{name:28}{kills:4} killed, {pairs:3} at once, {bad:3} wrong")
    print(f"seed {seed}: {sum(counts.values())} in {time.monotonic() - start:.0f} s, {len(wrong)} faults")
    for fault in wrong:
        print(f"  {fault}")
    return wrong


def main() -> int:
    """Kill; 0 when all is as if nothing had happened."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=72)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--command", action="append", choices=sorted(COMMANDS))
    given = parser.parse_args()
    return 1 if kill(given.n, seed=given.seed, names=given.command) else 0


if __name__ == "__main__":
    sys.exit(main())
