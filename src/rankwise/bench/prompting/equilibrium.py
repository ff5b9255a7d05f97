"""Equilibrium-Ranking against the generator, the discriminator and their combinations: capitals of small countries.

Four capitals of one continent are the candidates. Every prompt shows six solved questions about well-known countries:
a right answer where one is asked for, a wrong one where that is, verdicts of both kinds for the discriminator; without
them a small model does not tell the four requests apart. A seed draws the demonstrations and the candidates. Measured
is also the log-probability that each policy gives the right candidate. Controls: asking for a correct against an
incorrect answer (SC) is about as good as the generator; the discriminator is above chance; discriminator scores dealt
to other candidates do not help.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankwise.bench import Recipe
from rankwise.bench.shared.evidence import CERTAIN, Claim, Evidence, greater, paired, plus_minus
from rankwise.bench.shared.frozen import SETTING, smollm2
from rankwise.bench.shared.kept import kept_runs
from rankwise.bench.shared.measured import Runs
from rankwise.data.world import Country, countries
from rankwise.events import OnEvent, environment
from rankwise.prompting.answers import AnswerPrompts, Choices, Scores, score_answers
from rankwise.prompting.equilibrium import EquilibriumRanker

RECIPE = Recipe(
    name="equilibrium-ranking",
    part="choice",
    about="Equilibrium-Ranking against G, D, MI and SC: capitals of lesser-known countries, six demonstrations",
    spreads=True,
    smoke={"seeds": 2, "QUESTIONS": 4, "SHOWN": 2},
)

KNOWN, QUESTIONS, SHOWN, CHOICES = 60, 150, 6, 4  # the most populous are shown, those that follow are asked for
TITLES = {"equilibrium": "ER-D", "er-g": "ER-G", "g": "generator", "d": "discriminator", "mi": "MI", "sc": "SC"}
OURS, RIVALS, POLICIES = "equilibrium", ("g", "d", "mi", "sc"), ("equilibrium", "er-g")
CLOSE, ABOVE = 0.10, 0.10  # SC to the generator, and the discriminator to chance, for the recipe to tell
DEALT = 5  # dealings of the control
Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One seed, with everything that a process of its own needs."""

    seed: int
    out: Path
    questions: int
    shown: int


def measure(out: Path, *, seeds: int = 5, on_event: OnEvent | None = None) -> Runs:
    """Score all candidates, seed by seed (what is there is read back)."""
    size = {"out": out, "questions": QUESTIONS, "shown": SHOWN}
    return kept_runs(out / "runs.json", scored, {f"seed {s}": Asked(seed=s, **size) for s in range(seeds)}, on_event)


def scored(asked: Asked) -> dict[str, Any]:
    """Candidates of every question, which is right, and all log-probabilities."""
    questions, gold, prompts = drawn(asked.seed, asked.questions, asked.shown)
    model = smollm2(asked.out / f"seed{asked.seed}")
    found = score_answers(model, questions, style="text", prompts=prompts)
    model.close()
    return {
        "questions": [q.question for q in questions],
        "candidates": [list(q.candidates) for q in questions],
        "gold": gold,
        "generator": found.generator.tolist(),
        "discriminator": found.discriminator.tolist(),
        "plain": found.plain.tolist(),
    }


def drawn(seed: int, questions: int, shown: int) -> tuple[list[Choices], list[int], AnswerPrompts]:
    """Questions with four candidates of one continent, which one is right, and prompts with demonstrations."""
    rng, every = np.random.default_rng(seed), countries()
    picked = [every[i] for i in rng.permutation(KNOWN)[:shown]]
    found, gold = [], []
    for country in every[KNOWN : KNOWN + questions]:
        candidates = [country.capital.strip(), *_others(country, every, CHOICES - 1, rng)]
        order = rng.permutation(len(candidates))
        found.append(Choices(question=_question(country), candidates=tuple(candidates[i] for i in order)))
        gold.append(int(np.flatnonzero(order == 0)[0]))
    return found, gold, demonstrated(picked, [_others(c, every, 1, rng)[0] for c in picked])


def _others(country: Country, every: Sequence[Country], n: int, rng: np.random.Generator) -> list[str]:
    """Capitals of other countries of its continent, or of any where there are too few."""
    near = sorted({o.capital.strip() for o in every if o.continent == country.continent} - {country.capital.strip()})
    far = sorted({o.capital.strip() for o in every} - {country.capital.strip()})
    return [str(c) for c in rng.choice(near if len(near) >= n else far, n, replace=False)]


def _question(country: Country) -> str:
    return f"What is the capital of {country.name}?"


def demonstrated(shown: Sequence[Country], wrong: Sequence[str]) -> AnswerPrompts:
    """Right and wrong answers, and verdicts on both in turn."""

    def solved(kind: str, answers: Sequence[str]) -> str:
        parts = [f"Question: {_question(c)}\n{kind}: {a}\n\n" for c, a in zip(shown, answers, strict=True)]
        return "".join(parts) + f"Question: {{question}}\n{kind}:"

    right = [c.capital.strip() for c in shown]
    proposed = [(right[i], "Yes") if i % 2 else (wrong[i], "No") for i in range(len(shown))]
    judged = "".join(
        f"Question: {_question(c)}\nProposed answer: {a}\nCorrect: {v}\n\n"
        for c, (a, v) in zip(shown, proposed, strict=True)
    )
    return AnswerPrompts(
        correct=solved("Correct answer", right),
        incorrect=solved("Incorrect answer", wrong),
        plain=solved("Answer", right),
        judge=judged + "Question: {question}\nProposed answer: {candidate}\nCorrect:",
    )


def judge(found: Runs, *, seeds: int) -> Evidence:
    """The game played on the scores, its answers compared by seed."""
    every = [table(run) for run in found.values()]
    gold = [np.array(run["gold"]) for run in found.values()]
    hits = {m: [right(t[m], g) for (t, _), g in zip(every, gold, strict=True)] for m in TITLES}
    share = {m: np.array([h.mean() for h in each]) for m, each in hits.items()}
    logp = {m: np.array([log_share(t[m], g, m in POLICIES).mean() for (t, _), g in zip(every, gold, strict=True)])
            for m in TITLES}  # fmt: skip
    dealt = np.array([
        np.mean([right(dealt_anew(s, 1000 * i + j).table()[OURS], g).mean() for j in range(DEALT)])
        for i, ((_, s), g) in enumerate(zip(every, gold, strict=True))
    ])  # fmt: skip
    ranker = EquilibriumRanker(normalise="own")
    own = np.array([right(s.table(ranker)[OURS], g).mean() for (_, s), g in zip(every, gold, strict=True)])
    differ = np.mean([np.mean(a != b) for a, b in zip(hits["g"], hits["d"], strict=True)])

    def against(values: Array) -> str:
        return str(paired(values, share["g"]))

    rows = [
        [TITLES[m], plus_minus(share[m]), plus_minus(logp[m], 1, 3), "-" if m == "g" else against(share[m])]
        for m in TITLES
    ]
    rows += [
        [name, plus_minus(v), "-", against(v)]
        for name, v in (("ER-D, each side normalised over its own variable alone", own),
                        ("ER-D, discriminator dealt anew (control)", dealt))
    ]  # fmt: skip
    return Evidence(
        recipe="equilibrium",
        title="Equilibrium-Ranking: choosing among answers",
        command=f"rankwise bench equilibrium-ranking --seeds {seeds} --jobs 2",
        setting=f"{SETTING}; {QUESTIONS} countries from place {KNOWN + 1} by population, {CHOICES} capitals of one "
        f"continent each; {SHOWN} demonstrations a prompt, plain text, sums of log-probabilities; λ = η = 0.1, 5,000 "
        f"iterations; {seeds} draws of demonstrations and candidates, mean ± standard deviation; accuracy in per cent, "
        f"log-probability of the right candidate; generator and discriminator differ in being right in {differ:.0%}",
        header=["method", "accuracy", "log p", "against the generator"],
        rows=rows,
        claims=_claims(share, logp, dealt),
        environment=environment("bf16", 1),
    )


def table(run: dict[str, Any]) -> tuple[dict[str, Tensor], Scores]:
    """All methods' scores of all candidates."""
    mask = torch.zeros(len(run["candidates"]), max(map(len, run["candidates"])), dtype=torch.bool)
    for row, candidates in zip(mask, run["candidates"], strict=True):
        row[: len(candidates)] = True
    numbers = {k: torch.tensor(run[k], dtype=torch.float64) for k in ("generator", "discriminator", "plain")}
    scores = Scores(**numbers, mask=mask)
    return scores.table(), scores


def right(scores: Tensor, gold: Array) -> Array:
    """Whether the best candidate is the right one."""
    return (scores.argmax(1).numpy() == gold).astype(float)


def log_share(scores: Tensor, gold: Array, policy: bool) -> Array:
    """Log-probability of the right candidate: of a policy over its sum, of log-probabilities by their softmax."""
    weights = scores.clamp(min=0) if policy else scores.softmax(1)
    shares = weights / weights.sum(1, keepdim=True)
    return shares.clamp(min=1e-12).log().numpy()[np.arange(len(gold)), gold]


def dealt_anew(scores: Scores, seed: int) -> Scores:
    """Every candidate has another one's discriminator scores."""
    rng, width = np.random.default_rng(seed), scores.mask.shape[1]
    order = np.stack([derangement(int(n), rng, width) for n in scores.mask.sum(1)])
    index = torch.from_numpy(order)[..., None].expand(-1, -1, 2)
    return replace(scores, discriminator=scores.discriminator.gather(1, index))


def derangement(k: int, rng: np.random.Generator, width: int) -> NDArray[np.intp]:
    """A place for each of k, never its own; those behind stay."""
    shift = rng.permutation(k)
    out = np.arange(width)
    out[shift] = np.roll(shift, 1)
    return out


def _claims(share: dict[str, Array], logp: dict[str, Array], dealt: Array) -> list[Claim]:
    best = max(RIVALS, key=lambda m: share[m].mean())
    lead = paired(share[OURS], share[best])
    told, judged = paired(share["sc"], share["g"]), float(share["d"].mean()) - 1 / CHOICES
    gain = paired(dealt, share["g"])
    return [
        Claim(
            text="ER-D is at least as good as the best of G, D, MI and SC, chosen afterwards (mean not below it)",
            held=lead.mean >= 0,
            found=f"{lead} against {TITLES[best]}",
            paper="best or equal on nearly all of MMLU, ARC, RACE, HHH, TruthfulQA and GSM8K (LLaMA-7B, 13B)",
        ),
        greater("ER-D beats the generator", share[OURS], share["g"]),
        greater("ER-D beats the discriminator", share[OURS], share["d"]),
        greater(
            "ER-D gives the right answer more probability than the generator, among the candidates", logp[OURS],
            logp["g"], unit="nats", scale=1,
        ),
        Claim(
            text=f"control: correct against incorrect (SC) is at most {100 * CLOSE:.0f} points below the generator",
            held=told.mean >= -CLOSE,
            found=str(told),
            control=True,
        ),
        Claim(
            text=f"control: the discriminator is at least {100 * ABOVE:.0f} points above chance",
            held=judged >= ABOVE,
            found=f"{100 * judged:+.1f} points above {100 / CHOICES:.0f}",
            control=True,
        ),
        Claim(
            text="control: with the discriminator's scores dealt anew ER-D does not gain on the generator (p > 0.05)",
            held=gain.mean <= 0 or gain.p_value > CERTAIN,
            found=str(gain),
            control=True,
        ),
    ]  # fmt: skip
