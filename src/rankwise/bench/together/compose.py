"""Several methods on one model, one after another, against what a user would take at each step.

SmolLM2 is taught three abilities with an adapter each, the adapters are merged into one model, the model is made
smaller, it is asked with a thin cache, and with examples that are chosen. Ours: EVA's start, TSVM, calibrated ranks by
energy, ThinK, DQ-LoRe. Stock: LoRA's start, the mean of the experts, uniform ranks (as many bytes), a whole cache,
random examples. After every step: how well the three abilities are answered, bytes on disk and in memory, tokens a
second. Steps are also taken alone, from the experts, so that the chain's loss can be held against the sum of theirs.

Power first: all three abilities are learned.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rankwise.bench import Recipe
from rankwise.bench.shared.chain import (
    CONTEXT,
    Ability,
    abilities,
    asked,
    batches,
    cost,
    size_on_disk,
    taught,
    with_adapter,
)
from rankwise.bench.shared.evidence import Claim, Evidence
from rankwise.bench.shared.frozen import Difference, difference
from rankwise.bench.shared.kept import kept_runs
from rankwise.bench.shared.language import first_blocks, keep
from rankwise.bench.shared.measured import Runs
from rankwise.compression import compress
from rankwise.events import OnEvent, environment
from rankwise.merging import merge
from rankwise.models import load, load_tokenizer
from rankwise.prompting import DQLoReSelector, RandomSelector, TransformersModel
from rankwise.prompting.examples import Example
from rankwise.report.plots.shared import save
from rankwise.report.plots.together import chains
from rankwise.report.tables import size

RECIPE = Recipe(
    name="compose",
    part="chain",
    about="SmolLM2 taught, merged, compressed and asked by methods in a row, against stock choices at each step",
    spreads=True,
    smoke={
        "seeds": 1, "BLOCKS": 2, "STEPS": 1, "BATCH": 2, "POOL": 24, "ASKED": 3, "CANDIDATES": 6, "CALIBRATED": 1,
        "RANK": 2,
    },
    figures=(("how well three abilities are answered after every step", "compose.png"),),
    remark="In bfloat16 on a CPU the smaller model of many ranks takes more memory than the dense one, since kernels "
    "are kept for each of its shapes; ranks in multiples of 8 (--multiple-of 8) take less; the chain has none.",
)  # fmt: skip

BLOCKS = 30  # all of SmolLM2's
STEPS, BATCH, RANK, RATE = 40, 8, 8, 1e-3  # of an adapter
SHOWN, POOL, ASKED, CANDIDATES = 3, 400, 60, 32  # examples in a prompt, to choose from, questions, for DQ-LoRe
BYTES, CALIBRATED = 0.85, 16  # of the merged model, and batches it is calibrated on
THIN = 0.4  # of the keys' channels
DRAFT = 4  # tokens of DQ-LoRe's first answer
STAGES = ("untaught", "taught", "merged", "smaller", "thin cache", "examples")
CHOICES = {
    "ours": {"start": "eva", "merged": "tsvm", "smaller": "energy", "thin cache": "think", "examples": "dq-lore"},
    "stock": {"start": "lora", "merged": "linear", "smaller": "uniform", "thin cache": "dense", "examples": "random"},
}
SAID = {
    "untaught": ("SmolLM2", "SmolLM2"), "taught": ("EVA, an expert an ability", "LoRA, an expert an ability"),
    "merged": ("TSVM", "mean"), "smaller": ("energy, calibrated", "uniform ranks"), "thin cache": ("ThinK", "whole"),
    "examples": ("DQ-LoRe", "random"),
}  # fmt: skip
COSTS = "costs"
ALONE = ("merged", "smaller", "thin cache", "examples")
Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One chain of one seed, with everything that a process of its own needs."""

    chain: str
    seed: int
    folder: Path
    base: str
    rank: int
    steps: int
    batch: int
    shown: int
    pool: int
    asked: int
    candidates: int
    calibrated: int


def measure(out: Path, *, seeds: int = 3, on_event: OnEvent | None = None) -> Runs:
    """Both chains of every seed (what is there is read back; adapters are kept one by one), then what they cost."""
    out.mkdir(parents=True, exist_ok=True)
    sizes = {"rank": RANK, "steps": STEPS, "batch": BATCH, "shown": SHOWN, "pool": POOL, "asked": ASKED}
    sizes |= {"candidates": CANDIDATES, "calibrated": CALIBRATED}
    base = first_blocks(out / "model", BLOCKS)
    runs = {
        f"{chain} {seed}": Asked(chain=chain, seed=seed, folder=out / "adapters", base=base, **sizes)
        for seed in range(seeds)
        for chain in CHOICES
    }
    found = kept_runs(out / "runs.json", chained, runs, on_event)
    first = [runs[f"{chain} 0"] for chain in CHOICES]
    found |= kept_runs(out / "costs.json", costs, {COSTS: first}, on_event)  # one process: nothing runs beside it
    lines = {
        chain: [difference(_logp(found, chain, stage, seeds), np.zeros(1)) for stage in STAGES] for chain in CHOICES
    }
    save(
        chains(STAGES, {chain: [(d.mean, d.low, d.high) for d in ds] for chain, ds in lines.items()}), out / "chain.png"
    )
    return found


def chained(a: Asked) -> dict[str, Any]:
    """All stages of a chain, and its steps alone: answers by ability."""
    chain = _Chain(a)
    with tempfile.TemporaryDirectory() as place:
        return {"stages": chain.stages(Path(place)), "alone": chain.alone() if a.chain == "ours" else {}}


def costs(asked: Sequence[Asked]) -> dict[str, Any]:
    """What the models of each chain cost after every stage, one after another."""
    found = {}
    for a in asked:
        with tempfile.TemporaryDirectory() as place:
            found[a.chain] = _Chain(a).costs(Path(place))
    return found


class _Chain:
    """The pieces of a chain."""

    def __init__(self, a: Asked) -> None:
        self.a, self.choices, self.tokenizer = a, CHOICES[a.chain], load_tokenizer("smollm2")
        self.abilities = abilities(a.pool, a.asked)
        self.adapters = {
            name: taught(
                a.folder / f"{a.chain}-{a.seed}-{name}", a.base, ability, self.choices["start"], steps=a.steps,
                batch=a.batch, shown=a.shown, rank=a.rank, rate=RATE, seed=a.seed,
            )
            for name, ability in self.abilities.items()
        }  # fmt: skip

    def stages(self, place: Path) -> dict[str, Any]:
        """In a row; where a step of the stock chain changes nothing, its answers are those before."""
        cache, examples = self.choices["thin cache"], self.choices["examples"]
        base, merged, smaller = self._models(place)
        found = {"untaught": self._answers(self._read(base)), "taught": self._answers(self.expert)}
        found["merged"] = self._answers(self._read(merged))
        found["smaller"] = found["thin cache"] = found["examples"] = self._answers(self._read(smaller))
        if cache != "dense":
            found["thin cache"] = self._answers(self._read(smaller), cache=cache)
            found["examples"] = self._answers(self._read(smaller), cache=cache, examples=examples)
        return found

    def costs(self, place: Path) -> dict[str, Any]:
        """Of the model after every stage; three experts are the model and their adapters."""
        base, merged, smaller = ({"disk": size_on_disk(f), **cost(f, "dense", THIN)} for f in self._models(place))
        adapters = sum(size_on_disk(folder) for folder in self.adapters.values())
        kind = self.choices["thin cache"]
        thin = smaller if kind == "dense" else smaller | cost(place / "smaller", kind, THIN)
        taught_ = base | {"disk": base["disk"] + adapters}
        return dict(zip(STAGES, (base, taught_, merged, smaller, thin, thin), strict=True))

    def _models(self, place: Path) -> tuple[Path, Path, Path]:
        """Folders of the untaught model, of the merged one, and of that made smaller."""
        base, merged, smaller = place / "base", place / "merged", place / "smaller"
        keep(load(self.a.base, task="causal-lm").bfloat16(), base)
        model = self.merged()
        keep(model.bfloat16(), merged)
        keep(self._smaller(model.float(), list(self.abilities)).bfloat16(), smaller)
        return base, merged, smaller

    def alone(self) -> dict[str, Any]:
        """Each step from the experts; merging is the chain's own."""
        return {
            "smaller": self._answers(lambda name: self._smaller(self.expert(name).float(), [name]).bfloat16()),
            "thin cache": self._answers(self.expert, cache=self.choices["thin cache"]),
            "examples": self._answers(self.expert, examples=self.choices["examples"]),
        }

    def expert(self, name: str) -> Any:
        """The model with one adapter in its weights."""
        return with_adapter(self.a.base, self.adapters[name]).bfloat16().eval()

    def merged(self) -> Any:
        """One model of all adapters."""
        model = load(self.a.base, task="causal-lm")
        state = merge([str(p) for p in self.adapters.values()], base=self.a.base, method=self.choices["merged"])
        unlike = model.load_state_dict(state, strict=False)
        if unlike.unexpected_keys or {*unlike.missing_keys} - {"lm_head.weight"}:  # which is tied
            raise ValueError(f"the merged model is not SmolLM2: {unlike}")
        model.tie_weights()
        return model

    def _smaller(self, model: Any, names: Sequence[str]) -> Any:
        a, method = self.a, self.choices["smaller"]
        if method == "uniform":
            compress(model, bytes=BYTES, method="uniform", min_ratio=0.0)  # or it jumps far below what is asked
            return model
        drawn = [
            batches(self.tokenizer, self.abilities[n].pool, size=a.batch, shown=a.shown, seed=a.seed + 2_000)
            for n in names
        ]
        read = [{k: v for k, v in next(drawn[i % len(drawn)]).items() if k != "labels"} for i in range(a.calibrated)]
        compress(model, bytes=BYTES, method="energy", calibrate=read)
        return model

    def _read(self, folder: Path) -> Callable[[str], Any]:
        model = load(str(folder), task="causal-lm", dtype=torch.bfloat16).eval()
        return lambda _: model

    def _answers(
        self, model_of: Callable[[str], Any], *, cache: str = "dense", examples: str = "random"
    ) -> dict[str, Any]:
        found = {}
        for name, ability in self.abilities.items():
            model = model_of(name)
            found[name] = asked(model, ability, self._shown(model, ability, examples), cache, THIN)
        return {"answers": found}

    def _shown(self, model: Any, ability: Ability, how: str) -> list[list[Example]]:
        k = self.a.shown
        if how == "random":
            selector: Any = RandomSelector(k, seed=self.a.seed)
        else:
            says = TransformersModel(model, self.tokenizer, batch_size=8)
            selector = DQLoReSelector(says, k_examples=k, candidates=self.a.candidates, initial=k, max_new_tokens=DRAFT)
        return selector.fit(ability.pool).select_batch([q.question for q in ability.asked])


# --- judging


def judge(found: Runs, *, seeds: int) -> Evidence:
    """Both chains, step by step, and the steps alone."""
    logp = {(chain, stage): _logp(found, chain, stage, seeds) for chain in CHOICES for stage in STAGES}
    rows = [
        [chain, stage, SAID[stage][i], *_quality(found, chain, stage, seeds), *_spent(found[COSTS][chain][stage])]
        for i, chain in enumerate(CHOICES)
        for stage in STAGES
    ]
    return Evidence(
        recipe="compose",
        title="Together: taught, merged, compressed, asked",
        command=f"rankwise bench compose --seeds {seeds} --jobs 2",
        setting=f"SmolLM2-135M-Instruct ({BLOCKS} blocks); {STEPS} steps of {BATCH} prompts of {SHOWN} answered "
        f"examples, rank {RANK}, rate {RATE:g}; {BYTES:.0%} of the merged model's bytes, {CALIBRATED} batches of "
        f"calibration; {THIN:.0%} of the keys' channels dropped; {ASKED} questions an ability, {SHOWN} examples before "
        f"each, {seeds} seeds; accuracy in per cent and log-probability of the right answer, means over abilities; "
        "differences with 95 % bootstrap intervals over questions, seeds averaged, which decide as a whole; "
        f"disk: weights; memory: most resident bytes of loading the model and reading {CONTEXT:,} tokens, above those "
        "of the libraries (of an expert those of the model); cache: bytes then; tokens/s: written after them, the "
        "best of several; costs are those of the first seed",
        header=["chain", "after", "by", "accuracy", "log p", "disk", "memory", "cache", "tokens/s"],
        rows=rows,
        claims=_claims(found, logp, seeds),
        environment=environment("bf16", 1),
        extra={
            "log p": {f"{chain}, {stage}": float(v.mean()) for (chain, stage), v in logp.items()},
            "by ability": {
                f"{chain}, {stage}": {n: _mean(found, chain, stage, n, seeds) for n in _names(found)}
                for chain in CHOICES
                for stage in STAGES
            },
        },
    )


def _names(found: Runs) -> list[str]:
    return list(found["ours 0"]["stages"]["taught"]["answers"])


def _of(found: Runs, chain: str, stage: str, seed: int, *, alone: bool = False) -> dict[str, Any]:
    return found[f"{chain} {seed}"]["alone" if alone else "stages"][stage]["answers"]


def _logp(found: Runs, chain: str, stage: str, seeds: int, *, alone: bool = False) -> Array:
    """Of the right answer, ``(questions of all abilities,)``: means over seeds."""
    runs = [_of(found, chain, stage, s, alone=alone).values() for s in range(seeds)]
    return np.mean([np.concatenate([answers["logp"] for answers in run]) for run in runs], 0)


def _mean(found: Runs, chain: str, stage: str, name: str, seeds: int) -> list[float]:
    """Accuracy and log-probability of one ability."""
    return [float(np.mean([_of(found, chain, stage, s)[name][k] for s in range(seeds)])) for k in ("right", "logp")]


def _quality(found: Runs, chain: str, stage: str, seeds: int) -> list[str]:
    by_ability = np.array([_mean(found, chain, stage, name, seeds) for name in _names(found)])
    return [f"{100 * by_ability[:, 0].mean():.1f}", f"{by_ability[:, 1].mean():.3f}"]


def _spent(told: Mapping[str, float]) -> list[str]:
    return [*(size(told[k]) for k in ("disk", "peak", "cache")), f"{told['speed']:.1f}"]


def _claims(found: Runs, logp: dict[tuple[str, str], Array], seeds: int) -> list[Claim]:
    first, last = "taught", STAGES[-1]
    learned = {
        f"{name}, {chain}": difference(
            *(np.mean([_of(found, chain, s_, s)[name]["logp"] for s in range(seeds)], 0) for s_ in (first, "untaught"))
        )
        for name in _names(found)
        for chain in CHOICES
    }
    lost = {(c, b): logp[c, a] - logp[c, b] for c in CHOICES for a, b in pairwise(STAGES)}
    alone = {b: logp["ours", first] - _alone(found, logp, b, seeds) for b in ALONE}
    whole = logp["ours", first] - logp["ours", last]
    more = difference(whole, np.sum(list(alone.values()), 0))
    out = [
        Claim(
            text="power: every ability is learned by either start",
            held=all(d.low > 0 for d in learned.values()),
            found="; ".join(f"{name} {d}" for name, d in learned.items()),
            control=True,
        ),
        _better(
            "EVA's start ends better than LoRA's, in log-probability",
            difference(logp["ours", first], logp["stock", first]),
        ),
    ]
    for stage, text in (
        ("merged", "TSVM loses less than the mean of the experts"),
        ("smaller", "calibrated ranks by energy lose less than uniform ones, at equal bytes"),
    ):
        out.append(_better(text, difference(lost["stock", stage], lost["ours", stage])))
    thin = difference(logp["ours", "thin cache"], logp["ours", "smaller"])
    out.append(
        Claim(
            text="a cache without 40 % of the keys' channels loses at most .05 of log-probability",
            held=thin.low > -0.05,
            found=str(thin),
        )
    )
    out.append(
        _better("chosen examples gain over random ones", difference(*(logp["ours", s] for s in (last, "thin cache"))))
    )
    out.append(_better("the chain ends better than the stock one", difference(logp["ours", last], logp["stock", last])))
    out.append(
        Claim(
            text="steps do not make each other worse: the chain loses at most .1 more than they lose alone, in sum",
            held=more.high < 0.1,
            found=f"{more} ({whole.mean():+.3f} in a row; alone "
            + ", ".join(f"{name} {v.mean():+.3f}" for name, v in alone.items())
            + ")",
        )
    )
    return out


def _alone(found: Runs, logp: dict[tuple[str, str], Array], stage: str, seeds: int) -> Array:
    return logp["ours", stage] if stage == "merged" else _logp(found, "ours", stage, seeds, alone=True)


def _better(text: str, by: Difference) -> Claim:
    return Claim(text=text, held=by.low > 0, found=f"log-probability {by}")
