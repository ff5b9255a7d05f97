"""Equilibrium-Ranking against the generator, the discriminator and their combinations, on multiple choice.

Two tasks: capitals of countries (four candidates of one continent) and continents. Control: the same
with every question's discriminator scores dealt to other candidates; that must not help.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from rankwise.bench import Recipe
from rankwise.bench.shared.evidence import Claim, Evidence
from rankwise.bench.shared.frozen import SETTING, difference, silent, smollm2
from rankwise.data.world import countries
from rankwise.events import OnEvent, environment
from rankwise.prompting.answers import Choices, score_answers
from rankwise.prompting.equilibrium import EquilibriumRanker

METHODS = ("equilibrium", "er-g", "g", "d", "mi", "sc")  # what is judged
RECIPE = Recipe(
    name="equilibrium-ranking",
    part="choice",
    about="Equilibrium-Ranking against G, D, MI and SC: capitals, continents",
    smoke={"seeds": 2, "QUESTIONS": 4},
)

QUESTIONS = 150
CONTINENTS = ("Africa", "Asia", "Europe", "North America", "Oceania", "South America")
TITLES = {"equilibrium": "ER-D", "er-g": "ER-G", "g": "generator", "d": "discriminator", "mi": "MI", "sc": "SC"}


def run(out: Path, *, seeds: int = 5, on_event: OnEvent | None = None) -> Evidence:
    """Score, play, judge the claims; ``seeds`` dealings of the control (recorded answers are read back)."""
    start, note = time.perf_counter(), silent(on_event)
    model = smollm2(out)
    rows, against, dealt, above = [], [], [], []
    for task, (questions, gold) in {"capitals": _capitals(), "continents": _continents()}.items():
        note(task, "train", 0, 1, float("nan"))
        scores = score_answers(model, questions)
        right = {m: _right(t, gold) for m, t in scores.table().items()}
        controls = []
        for seed in range(seeds):
            note(f"{task}, control", "train", seed, seeds, float("nan"))
            rng = np.random.default_rng(seed)
            order = np.stack([_derangement(len(q.candidates), rng, scores.mask.shape[1]) for q in questions])
            index = torch.from_numpy(order)[..., None].expand(-1, -1, 2)
            shuffled = replace(scores, discriminator=scores.discriminator.gather(1, index))
            controls.append(_right(shuffled.table()["equilibrium"], gold))
        control = np.mean(controls, 0)
        note(task, "done", 1, 1, float("nan"))
        own = _right(scores.table(EquilibriumRanker(normalise="own"))["equilibrium"], gold)
        rows += [[task, TITLES[m], *_cells(right[m], right["g"])] for m in TITLES]
        rows.append([task, "ER-D, each side normalised over its own variable alone", *_cells(own, right["g"])])
        rows.append([task, "ER-D, discriminator dealt anew (control)", *_cells(control, right["g"])])
        rivals = {m: right[m].mean() for m in TITLES if m not in ("equilibrium", "er-g")}
        best = max(rivals, key=lambda m: rivals[m])
        against.append((task, best, difference(right["equilibrium"], right[best], scale=100)))
        dealt.append((task, difference(control, right["g"], scale=100)))
        above.append((task, right["g"].mean(), 1 / len(questions[0].candidates)))
        disagree = float(np.mean(right["g"] != right["d"]))
        rows.append([task, "generator and discriminator differ in being right", f"{100 * disagree:.1f}", "-"])
    return Evidence(
        recipe="equilibrium",
        title="Equilibrium-Ranking: choosing among answers",
        command="rankwise bench equilibrium-ranking",
        setting=f"{SETTING}; {QUESTIONS} questions a task, chat prompts, sums of log-probabilities; λ = η = 0.1, 5,000 "
        "iterations; accuracy in per cent ± standard error; differences with 95% bootstrap intervals over questions",
        header=["task", "method", "accuracy", "against the generator"],
        rows=rows,
        claims=[
            Claim(
                text="ER-D is at least as good as the best of G, D, MI and SC (chosen afterwards), in each task",
                held=all(d.mean >= 0 for _, _, d in against),
                found="; ".join(f"{t} {d} against {TITLES[b]}" for t, b, d in against),
            ),
            Claim(
                text="control: with the discriminator's scores dealt anew ER-D does not gain on the generator",
                control=True,
                held=all(d.low <= 0 for _, d in dealt),
                found="; ".join(f"{t} {d}" for t, d in dealt),
            ),
            Claim(
                text="control: the generator is above chance",
                control=True,
                held=all(a > c for _, a, c in above),
                found="; ".join(f"{t} {100 * a:.1f} against {100 * c:.0f}" for t, a, c in above),
            ),
        ],
        seconds=time.perf_counter() - start,
        environment=environment("bf16", 1),
    )


def _capitals() -> tuple[list[Choices], np.ndarray]:
    rng, every = np.random.default_rng(0), countries()
    questions, gold = [], []
    for c in every[:QUESTIONS]:
        others = [o.capital for o in every if o.continent == c.continent and o.capital != c.capital]
        candidates = [c.capital, *rng.choice(others, 3, replace=False)]
        order = rng.permutation(4)
        questions.append(
            Choices(question=f"What is the capital of {c.name}?", candidates=tuple(candidates[i] for i in order))
        )
        gold.append(int(np.flatnonzero(order == 0)[0]))
    return questions, np.array(gold)


def _continents() -> tuple[list[Choices], np.ndarray]:
    rng = np.random.default_rng(1)
    questions, gold = [], []
    for c in countries()[:QUESTIONS]:
        candidates = [c.continent, *rng.choice([n for n in CONTINENTS if n != c.continent], 3, replace=False)]
        order = rng.permutation(4)
        questions.append(
            Choices(question=f"On which continent is {c.name}?", candidates=tuple(candidates[i] for i in order))
        )
        gold.append(int(np.flatnonzero(order == 0)[0]))
    return questions, np.array(gold)


def _derangement(k: int, rng: np.random.Generator, width: int) -> np.ndarray:
    """Every candidate gets another one's scores."""
    shift = rng.permutation(k)
    out = np.arange(width)
    out[shift] = np.roll(shift, 1)
    return out


def _right(table: torch.Tensor, gold: np.ndarray) -> np.ndarray:
    return (table.argmax(1).numpy() == gold).astype(float)


def _cells(right: np.ndarray, generator: np.ndarray) -> list[str]:
    error = 100 * right.std() / np.sqrt(len(right))
    return [f"{100 * right.mean():.1f}±{error:.1f}", str(difference(right, generator, scale=100))]
