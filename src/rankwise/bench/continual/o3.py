"""O3's claim: requests are forgotten one after another without retained data, and everything else stays.

SmolLM2 is taught the intents of queries from five domains of CLINC150; three of them are to be forgotten in order.
After every request: accuracy on what was taught and is forgotten, on unseen queries of the same domains, on the domains
that stay, on general facts; and a membership attack on losses, of which 0.5 is the aim. All baselines train a block of
the same rank. Power first: what is to be forgotten was known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rankwise.bench import Recipe
from rankwise.bench.shared.evidence import Claim, Evidence, paired, plus_minus
from rankwise.bench.shared.measured import Runs
from rankwise.bench.shared.requests import clinc, made_up
from rankwise.bench.shared.unlearning import (
    ARMS,
    ASCENT,
    HARD,
    LOOSE,
    NPO,
    O3,
    OPEN,
    ORACLE,
    PLAIN,
    SHUFFLED,
    TAUGHT,
    Sizes,
    Subject,
    by_seed,
    read_back,
    right,
)
from rankwise.continual import Schedule, membership_auc
from rankwise.events import OnEvent, environment

RECIPE = Recipe(
    name="o3",
    part="domains",
    about="O3 on CLINC150's domains as requests: forgotten, retained, useful, membership; against eight other ways",
    spreads=True,
    smoke={
        "DATA": "made-up", "BLOCKS": 1, "TEACH": 2, "FORGET": 2, "BASELINES": 1, "BATCH": 4, "RATES": (1e-3,),
        "seeds": 1,
    },
)  # fmt: skip

DATA = "clinc150"
DOMAINS, RETAINED = ("banking", "travel", "kitchen_and_dining"), ("work", "auto_and_commute")
INTENTS, TRAIN, TEST = 6, 10, 5  # of a domain, and queries of an intent
BLOCKS = 30  # all of SmolLM2's
TEACH, FORGET, BASELINES = 80, 30, 15  # steps, of a request
BATCH = 16  # rows a step
RATES = (2e-4, 5e-4, 1e-3)  # of the baselines; the best one is taken
RANK = 4
Stage = Mapping[str, Any]


def measure(out: Path, *, data: Path | None = None, seeds: int = 5, on_event: OnEvent | None = None) -> Runs:
    """All ways on ``seeds`` draws of intents and queries, each with a model of its own: losses and answers by row."""
    sizes = Sizes(
        blocks=BLOCKS, taught=Schedule(steps=TEACH, batch_size=BATCH, learning_rate=1e-4, precision="bf16"),
        baselines=BASELINES,
        forgotten=Schedule(steps=FORGET, batch_size=BATCH, learning_rate=1e-3, precision="bf16"),
        rates=RATES, rank=RANK, answers="random", max_length=64,
    )  # fmt: skip
    return by_seed(out, lambda seed: _subject(data, seed), sizes, seeds, on_event)


def judge(found: Runs, *, seeds: int) -> Evidence:
    """All ways compared, after the last request."""
    told, arms_of, names = read_back(found, seeds)
    end = {arm: [summary(arms[arm], names) for arms in arms_of] for arm in (TAUGHT, *ARMS, ORACLE)}
    rates = ", ".join(f"{arm} {rate:g}" for arm, rate in told["rates"].items())
    return Evidence(
        recipe="o3",
        title="O3: forgetting requests one after another",
        command=f"rankwise bench o3 --part domains --data FOLDER --seeds {seeds} --jobs 2",
        setting=f"SmolLM2 ({BLOCKS} blocks) taught {TEACH} steps of {BATCH} queries; requests {', '.join(names)}, "
        f"{FORGET} steps each of random answers ({BASELINES} for other objectives, at the best of "
        f"{', '.join(f'{r:g}' for r in RATES)}: {rates}, chosen in their favour on the judged rows "
        f"after the first seed's first request), rank {RANK}; after the last request; {seeds} seeds, of "
        f"queries, intents and training alike; on {told['device']}",
        header=["", "forgotten, taught", "forgotten, unseen", "retained", "utility", "membership AUC"],
        rows=[[arm, *[plus_minus([s[k] for s in all_]) for k in KINDS[:4]],
               plus_minus([s["membership"] for s in all_], 1, 3)] for arm, all_ in end.items()],
        claims=claims(end, arms_of, names),
        environment=environment("bf16", 1),
        extra={"after every request": [
            {arm: {n: brief(stage, names) for n, stage in stages.items()} for arm, stages in arms.items()}
            for arms in arms_of
        ]},
    )  # fmt: skip


KINDS = ("taught", "unseen", "retained", "utility", "membership")


def _subject(data: Path | None, seed: int) -> Subject:
    if data is None and DATA == "made-up":
        return made_up(seed=seed)
    return clinc(data, seed=seed, domains=DOMAINS, retained=RETAINED, intents=INTENTS, train=TRAIN, test=TEST)


def brief(stage: Stage, names: Sequence[str]) -> dict[str, float]:
    """A stage's numbers, of all requests together."""
    auc = [membership_auc(stage[f"{n}/train"]["nll"], stage[f"{n}/test"]["nll"]) for n in names]
    return {
        "taught": float(np.mean([right(stage, f"{n}/train") for n in names])),
        "unseen": float(np.mean([right(stage, f"{n}/test") for n in names])),
        "retained": right(stage, "retained"),
        "utility": right(stage, "utility"),
        "membership": float(np.mean(auc)),
    }


def summary(stages: Mapping[str, Stage], names: Sequence[str]) -> dict[str, float]:
    """After the last request."""
    return brief(list(stages.values())[-1], names)


def claims(end: dict[str, list[dict[str, float]]], found: list[dict], names: Sequence[str]) -> list[Claim]:
    """The paper's, ours, and two controls."""

    def of(arm: str, kind: str) -> np.ndarray:
        return np.array([s[kind] for s in end[arm]])

    def traded(arm: str) -> np.ndarray:
        return of(arm, "retained") - of(arm, "unseen")

    known, kept = of(TAUGHT, "taught"), of(O3, "retained") - of(TAUGHT, "retained")
    first = np.array([[right(stage, f"{names[0]}/train") for stage in arms[O3].values()] for arms in found])
    shuffled, shift = paired(traded(O3), traded(SHUFFLED)), traded(O3) - traded(SHUFFLED)
    out = [
        Claim(text="power: what is to be forgotten was known, at least 80 % of it in every seed",
              held=known.min() >= 0.8, found=f"{plus_minus(known)} % taught, at least {100 * known.min():.1f}; "
              f"{plus_minus(of(TAUGHT, 'unseen'))} % unseen", control=True),
        Claim(text="control: a router with other prompts' weights forgets less or keeps less, in every seed",
              held=bool((shift > 0).all()), found=f"O3 ahead by {shuffled}, at least {100 * shift.min():.1f}",
              control=True),
        Claim(text="forgotten, unseen: at most 10 points more answered than by a model taught anew, on average",
              held=(of(O3, "unseen") - of(ORACLE, "unseen")).mean() <= 0.1,
              found=f"{plus_minus(of(O3, 'unseen'))} % against {plus_minus(of(ORACLE, 'unseen'))} %"),
        Claim(text="retained: at most 2 points lost, on average", held=kept.mean() >= -0.02,
              found=f"{100 * kept.mean():+.2f} points"),
        Claim(text="utility: at most 2 points lost, on average",
              held=(of(O3, "utility") - of(TAUGHT, "utility")).mean() >= -0.02,
              found=f"{100 * (of(O3, 'utility') - of(TAUGHT, 'utility')).mean():+.2f} points"),
        Claim(text="membership: nearer to 0.5 than before, on average",
              held=np.abs(of(O3, "membership") - 0.5).mean() < np.abs(of(TAUGHT, "membership") - 0.5).mean(),
              found=f"{plus_minus(of(O3, 'membership'), 1, 3)} from {plus_minus(of(TAUGHT, 'membership'), 1, 3)}; "
              f"taught anew {plus_minus(of(ORACLE, 'membership'), 1, 3)}"),
        Claim(text="the first request stays forgotten: later ones bring back at most 2 points, on average",
              held=(first[:, -1] - first[:, 0]).mean() <= 0.02,
              found=", ".join(f"{100 * v:.1f} %" for v in first.mean(0)) + " after each"),
    ]  # fmt: skip
    for other in (PLAIN, ASCENT, NPO, OPEN, HARD, LOOSE):
        ahead = paired(traded(O3), traded(other))
        out.append(
            Claim(
                text=f"retained less forgotten, unseen: above '{other}' by more than two standard errors over seeds",
                held=ahead.mean > 2 * ahead.error,
                found=str(ahead),
            )
        )
    return out
