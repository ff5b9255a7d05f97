"""O3 on TOFU: facts about authors who do not exist, an author a request; what is said instead are refusals.

As with domains, but what stays are other authors, and what was never taught are other questions about the same ones: a
taught answer is a sentence, so that accuracy counts tokens' sequences that are right throughout, and losses tell more.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rankwise.bench import Recipe
from rankwise.bench.continual.o3 import summary
from rankwise.bench.shared.evidence import Claim, Evidence, plus_minus
from rankwise.bench.shared.measured import Runs
from rankwise.bench.shared.requests import made_up, tofu
from rankwise.bench.shared.unlearning import ARMS, O3, ORACLE, SHUFFLED, TAUGHT, Sizes, Subject, by_seed, read_back
from rankwise.continual import Schedule
from rankwise.continual.unlearning.measuring import auroc
from rankwise.events import OnEvent, environment

RECIPE = Recipe(
    name="o3",
    part="tofu",
    about="O3 on TOFU's authors in sequence: answers forgotten, retained, membership",
    spreads=True,
    smoke={
        "DATA": "made-up", "BLOCKS": 1, "TEACH": 2, "FORGET": 2, "BASELINES": 1, "BATCH": 4, "RATES": (1e-3,),
        "seeds": 1,
    },
)  # fmt: skip

DATA = "tofu"
REQUESTS, EACH, RETAINED = 3, 12, 24  # authors, questions of an author (of 20), and questions about others
BLOCKS = 30
BATCH = 8
TEACH, FORGET, BASELINES = 80, 20, 10
RATES = (2e-4, 5e-4, 1e-3)  # of the baselines; the best one is taken
RANK = 4


def measure(out: Path, *, data: Path | None = None, seeds: int = 5, on_event: OnEvent | None = None) -> Runs:
    """All ways on ``seeds`` draws of questions: losses and answers by row."""
    sizes = Sizes(
        blocks=BLOCKS, taught=Schedule(steps=TEACH, batch_size=BATCH, learning_rate=2e-4, precision="bf16"),
        baselines=BASELINES,
        forgotten=Schedule(steps=FORGET, batch_size=BATCH, learning_rate=1e-3, precision="bf16"),
        rates=RATES, rank=RANK, answers="refusal", max_length=96,
    )  # fmt: skip
    return by_seed(out, lambda seed: _subject(data, seed), sizes, seeds, on_event)


def judge(found: Runs, *, seeds: int) -> Evidence:
    """All ways compared, after the last request."""
    told, arms_of, names = read_back(found, seeds)
    end = {arm: [_with_losses(arms[arm], [*arms[O3]]) for arms in arms_of]  # each seed has authors of its own
           for arm in (TAUGHT, *ARMS, ORACLE)}  # fmt: skip
    return Evidence(
        recipe="o3_tofu",
        title="O3: forgetting authors, task after task",
        command=f"rankwise bench o3 --part tofu --data FOLDER --seeds {seeds} --jobs 2",
        setting=f"SmolLM2 ({BLOCKS} blocks) taught {TEACH} steps of {BATCH}; {len(names)} requests of {EACH} answers, "
        f"{FORGET} steps each of refusals (other objectives at rates chosen in their favour on the judged rows after "
        f"the first seed's first request); rank {RANK}; after the last request; {seeds} seeds; on {told['device']}",
        header=["", "forgotten, nats a token", "right", "retained, nats a token", "right", "utility", "membership AUC"],
        rows=[[arm, plus_minus([s["lost"] for s in all_], 1, 2), plus_minus([s["taught"] for s in all_]),
               plus_minus([s["stays"] for s in all_], 1, 2), plus_minus([s["retained"] for s in all_]),
               plus_minus([s["utility"] for s in all_]), plus_minus([s["membership"] for s in all_], 1, 3)]
              for arm, all_ in end.items()],
        claims=_claims(end),
        environment=environment("bf16", 1),
    )  # fmt: skip


def _subject(data: Path | None, seed: int) -> Subject:
    if data is None and DATA == "made-up":
        return made_up(seed=seed)
    return tofu(data, seed=seed, requests=REQUESTS, each=EACH, retained=RETAINED)


def _with_losses(stages: dict, names: list[str]) -> dict[str, float]:
    last = list(stages.values())[-1]
    lost = float(np.mean([np.mean(last[f"{n}/train"]["nll"]) for n in names]))
    found = {**summary(stages, names), "lost": lost, "stays": float(np.mean(last["retained"]["nll"]))}
    if "weight" not in last["retained"]:
        return found
    own, others = (np.concatenate([last[s]["weight"] for s in sets])
                   for sets in ([f"{n}/test" for n in names], ["retained"]))  # fmt: skip
    return found | {"told apart": auroc(own, others), "opened": float(np.mean(others > 0))}


def _claims(end: dict[str, list[dict[str, float]]]) -> list[Claim]:
    def of(arm: str, kind: str) -> np.ndarray:
        return np.array([s[kind] for s in end[arm]])

    known = of(ORACLE, "lost") - of(TAUGHT, "lost")
    kept, shuffled = of(O3, "stays") - of(TAUGHT, "stays"), of(O3, "lost") - of(SHUFFLED, "lost")
    near = [np.abs(of(arm, "membership") - 0.5).mean() for arm in (O3, TAUGHT)]
    return [
        Claim(text="power: answers were known, half a nat a token better than by a model never taught, in every seed",
              held=known.min() >= 0.5, found=f"{plus_minus(known, 1, 2)} nats, at least {known.min():.2f}",
              control=True),
        Claim(text="control: a router with other prompts' weights forgets less, in every seed",
              held=bool((shuffled > 0).all()), control=True,
              found=f"O3 {plus_minus(shuffled, 1, 2)} nats above, at least {shuffled.min():.2f}"),
        Claim(text="the router tells unseen questions about the authors from those about others: AUROC of 0.9",
              held=of(O3, "told apart").mean() >= 0.9,
              found=f"{plus_minus(of(O3, 'told apart'), 1, 3)}; open for {plus_minus(of(O3, 'opened'))} % of others"),
        Claim(text="forgotten: at most 10 % of the answers are still given word for word",
              held=of(O3, "taught").mean() <= 0.1,
              found=f"{plus_minus(of(O3, 'taught'))} % from {plus_minus(of(TAUGHT, 'taught'))} %"),
        Claim(text="forgotten: as unlikely as to a model taught anew, less 0.1 nats a token, on average",
              held=(of(O3, "lost") - of(ORACLE, "lost")).mean() >= -0.1,
              found=f"{plus_minus(of(O3, 'lost'), 1, 2)} against {plus_minus(of(ORACLE, 'lost'), 1, 2)} nats a token"),
        Claim(text="retained: at most 0.05 nats a token lost, on average", held=kept.mean() <= 0.05,
              found=f"{plus_minus(kept, 1, 3)} nats"),
        Claim(text="membership: nearer to 0.5 than before, on average", held=near[0] < near[1],
              found=f"{plus_minus(of(O3, 'membership'), 1, 3)} from {plus_minus(of(TAUGHT, 'membership'), 1, 3)}"),
    ]  # fmt: skip
