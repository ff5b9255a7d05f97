"""Prompts of the deepest examples against random ones: TTE depth's claim for in-context learning.

Two label tasks on real sentences: polarity of movie snippets, and which of four sources a sentence is from. Twenty
pools that share no sentence, each with queries of its own; from each pool a prompt of its deepest examples, one of its
shallowest, and two of random ones, labels in turns in all of them. Intervals are by drawing pools. Controls: the
shallowest are no better than random ones, and the model with random ones is above the commonest label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankwise.bench import Recipe
from rankwise.bench.shared.evidence import Claim, Evidence
from rankwise.bench.shared.frozen import SETTING, Difference, difference, label_logp, polarity, smollm2, sources
from rankwise.bench.shared.kept import kept_runs
from rankwise.bench.shared.measured import Runs
from rankwise.events import OnEvent, environment
from rankwise.models.embedding import embed
from rankwise.prompting.examples import Example
from rankwise.prompting.selectors import DepthSelector

RECIPE = Recipe(
    name="tte-depth",
    part="prompts",
    about="TTE depth: prompts of the deepest examples, over twenty pools",
    spreads=True,
    smoke={"seeds": 2, "QUERIES": 4, "POOL": 24},
)

K, POOL, QUERIES, DRAWS = 8, 100, 40, 2  # of a pool
TASKS = {
    "polarity": (("negative", "positive"), "Is the sentence negative or positive?"),
    "source": (("film", "newspaper", "tweet", "shop"), "Is the sentence from a film, newspaper, tweet or shop review?"),
}
NONE, DEEP, SHALLOW, RANDOM = "no examples", "deepest", "shallowest", "random"
ARMS = (NONE, DEEP, SHALLOW, *(f"{RANDOM} {i}" for i in range(DRAWS)))
Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One pool of a task, with everything that a process of its own needs."""

    task: str
    seed: int
    seeds: int
    out: Path
    pool: int
    queries: int


def measure(out: Path, *, seeds: int = 20, on_event: OnEvent | None = None) -> Runs:
    """Score the labels of every pool's queries after every prompt (what is there is read back)."""
    size = {"out": out, "seeds": seeds, "pool": POOL, "queries": QUERIES}
    asked = {f"{task} {s}": Asked(task=task, seed=s, **size) for task in TASKS for s in range(seeds)}
    return kept_runs(out / "runs.json", scored, asked, on_event)


def scored(asked: Asked) -> dict[str, Any]:
    """Which label is right, and log-probabilities of all labels by prompt, ``(queries, labels)``."""
    labels, instruction = TASKS[asked.task]
    pool, queries = (
        _sentences(asked.task, split, n, asked.seeds)[asked.seed]
        for split, n in (("train", asked.pool), ("test", asked.queries))
    )
    prompts = dict(zip(ARMS, prompts_of(pool, labels, asked.seed), strict=True))
    with smollm2(asked.out / f"{asked.task}{asked.seed}") as model:
        logp = {
            arm: label_logp(model, queries, [shots] * len(queries), labels, instruction=instruction).tolist()
            for arm, shots in prompts.items()
        }
    return {"gold": [labels.index(q.answer) for q in queries], "logp": logp}


@cache
def _sentences(task: str, split: str, n: int, shares: int) -> list[list[Example]]:
    """Shares of a split, n sentences each, that have no sentence in common; as many of each label."""
    every = polarity("movies", split, 2 * n * shares) if task == "polarity" else sources(split, n * shares)
    distinct = {e.question: e for e in every}.values()
    kinds = [[e for e in distinct if e.answer == label] for label in TASKS[task][0]]
    most = n // len(kinds)
    return [[e for own in kinds for e in own[i * most : (i + 1) * most]] for i in range(shares)]


def prompts_of(pool: Sequence[Example], labels: Sequence[str], seed: int) -> list[list[Example]]:
    """In the order of `ARMS`; labels take turns in all of them."""
    rng, out = np.random.default_rng(seed), [[]]
    for shallowest in (False, True):
        selector = DepthSelector(K, encoder=embed, balanced=True, shallowest=shallowest)
        out.append(selector.fit(list(pool)).select(""))
    by_label = [[e for e in pool if e.answer == label] for label in labels]
    for _ in range(DRAWS):
        rows = [rng.choice(len(own), K // len(labels), replace=False) for own in by_label]
        order = rng.permutation(len(labels))
        out.append([by_label[i][rows[i][turn]] for turn in range(K // len(labels)) for i in order])
    return out


def judge(found: Runs, *, seeds: int) -> Evidence:
    """The prompts compared, paired by pool."""
    rows, deep, against, shallow, above = [], [], [], [], []
    for task in TASKS:
        runs = [found[f"{task} {s}"] for s in range(seeds)]
        logp, share = ({arm: np.array([f(run, arm) for run in runs]) for arm in ARMS} for f in (of_right, accuracy))
        for kind in (logp, share):
            kind[RANDOM] = np.mean([kind[arm] for arm in ARMS if arm.startswith(RANDOM)], 0)
        rows += [
            [task, arm, f"{100 * share[arm].mean():.1f}±{100 * share[arm].std(ddof=1):.1f}", f"{logp[arm].mean():.3f}",
             "-" if arm == RANDOM else str(difference(logp[arm], logp[RANDOM]))]
            for arm in (NONE, DEEP, RANDOM, SHALLOW)
        ]  # fmt: skip
        common = np.array([np.bincount(run["gold"]).max() / len(run["gold"]) for run in runs])
        deep.append((task, difference(logp[DEEP], logp[RANDOM])))
        against.append((task, difference(logp[DEEP], logp[SHALLOW])))
        shallow.append((task, difference(logp[SHALLOW], logp[RANDOM])))
        above.append((task, difference(share[RANDOM], common, scale=100)))
    return Evidence(
        recipe="depth_prompts",
        title="TTE depth: prompts of the deepest examples",
        command=f"rankwise bench tte-depth --part prompts --seeds {seeds} --jobs 2",
        setting=f"{SETTING}; {seeds} pools of {POOL}, {K} examples a prompt with labels in turns, {QUERIES} queries a "
        f"pool; random: mean of {DRAWS} draws a pool; accuracy in per cent, mean ± standard deviation over pools, mean "
        "log-probability of the right label among the labels; differences with 95% bootstrap intervals over pools; "
        "sees: the smallest difference that so many pools would have shown, 2.8 standard errors",
        header=["task", "examples", "accuracy", "log p", "log p against random"],
        rows=rows,
        claims=_claims(deep, against, shallow, above),
        environment=environment("bf16", 1),
    )


def of_right(run: dict[str, Any], arm: str) -> float:
    """Mean log-probability of the right label."""
    return float(np.array(run["logp"][arm])[np.arange(len(run["gold"])), run["gold"]].mean())


def accuracy(run: dict[str, Any], arm: str) -> float:
    """Share of queries whose likeliest label is right."""
    return float(np.mean(np.array(run["logp"][arm]).argmax(1) == run["gold"]))


Found = Sequence[tuple[str, Difference]]


def _claims(deep: Found, against: Found, shallow: Found, above: Found) -> list[Claim]:
    def told(differences: Found) -> str:
        return "; ".join(f"{task} {d}" for task, d in differences)

    return [
        Claim(
            text="the deepest examples beat random ones in log-probability, each task (95 % interval)",
            held=all(d.low > 0 for _, d in deep),
            found=told(deep),
            paper="on average over six text classification tasks",
        ),
        Claim(
            text="and the shallowest ones, each task (95 % interval)",
            held=all(d.low > 0 for _, d in against),
            found=told(against),
        ),
        Claim(
            text="control: the shallowest are not shown to beat random ones (the 95 % interval reaches 0)",
            control=True,
            held=all(d.low <= 0 for _, d in shallow),
            found=told(shallow),
        ),
        Claim(
            text="control: with random examples the model is above the commonest label (points, 95 % interval)",
            control=True,
            held=all(d.low > 0 for _, d in above),
            found=told(above),
        ),
    ]
