"""S2-LoRA's claims on text: comparable in domain at far fewer parameters, better out of domain, ranks like AdaLoRA's.

MiniLM learns the polarity of movie snippets and is tested on held-out movies, tweets, Amazon reviews and NYT sentences.
Every variant sees the same examples in the same order for each seed, so differences are paired by seed. Validation
picks each variant's learning rate on the first seed; test data are scored once.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from scipy.stats import rankdata

from rankwise.bench import Recipe
from rankwise.bench.shared.evidence import Claim, Evidence, paired, plus_minus
from rankwise.events import OnEvent, environment
from rankwise.jobs.adapt import AdaptConfig, Job, load_adapted
from rankwise.report.tables import count, size
from rankwise.tuning.s2lora import S2LoraLayer

RECIPE = Recipe(
    name="s2lora",
    part="text",
    about="S2-LoRA against AdaLoRA, LoRA and BitFit: sentiment in four domains",
    remark="Recorded before S2-LoRA's default set a share of its coefficients to zero; to be measured again.",
    spreads=True,
    smoke={
        "seeds": 1, "steps": 2, "TRAINED": 32, "TESTED": 10,
        "RATES": {
            "head": [1e-2], "bitfit": [5e-3], "lora": [1e-3], "adalora": [1e-2], "s2lora": [1e-2],
            "s2lora-dense": [1e-2], "s2lora-penalty": [1e-2], "s2lora-unshared": [1e-2], "s2lora-frozen": [1e-2],
        },
    },
)  # fmt: skip

TRAINED: int | None = None  # sentences at most; all
TESTED = 500  # a domain
RATES: dict[str, list[float]] = {}  # grids by variant; the methods' own
BUDGETS = {
    "0.5%": [
        "bitfit",
        "lora",
        "adalora",
        "s2lora",
        "s2lora-dense",
        "s2lora-penalty",
        "s2lora-unshared",
        "s2lora-frozen",
    ],
    "0.1%": ["s2lora"],
    "0.05%": ["s2lora"],
    "0.02%": ["s2lora"],
}
OUT_OF_DOMAIN = ["sentiment:tweets", "sentiment:amazon", "sentiment:nyt"]


def settings(budget: str, methods: list[str], seeds: int, steps: int) -> AdaptConfig:
    """The job of one budget; at 0.02% only the attention projections fit."""
    return AdaptConfig(
        budget=budget,
        methods=methods,
        target="attention" if budget == "0.02%" else "auto",
        eval=OUT_OF_DOMAIN,
        seeds=seeds,
        steps=steps,
        batch_size=16,
        max_length=48,
        learning_rates=RATES,
        train_limit=TRAINED,
        eval_limit=TESTED,
        dropout=0.0,
        precision="fp32",
        baseline=budget == "0.5%",
    )


def run(out: Path, *, seeds: int = 5, steps: int = 80, on_event: OnEvent | None = None) -> Evidence:
    """Train all variants (finished ones are read back), judge the claims."""
    start, jobs, found = time.perf_counter(), {}, {}
    for budget, methods in BUDGETS.items():
        job = jobs[budget] = Job(settings(budget, methods, seeds, steps), out / f"budget-{budget}", on_event=on_event)
        for entry in job.run()["methods"]:
            found[budget, entry["name"]] = entry
    scores = {k: seed_scores(e, "sentiment:movies", OUT_OF_DOMAIN) for k, e in found.items()}
    permuted = permuted_scores(jobs["0.5%"], found["0.5%", "s2lora"])
    return Evidence(
        recipe="s2lora",
        title="S2-LoRA: sparsely shared low-rank adaptation",
        command=f"rankwise bench s2lora --seeds {seeds}",
        setting=f"MiniLM, movie polarity, {steps} steps of 16 examples, {seeds} seeds, {TESTED} test sentences "
        "a domain; accuracy in per cent, mean ± standard deviation over seeds",
        header=["variant", "budget", "rank", "trained", "adapter", "movies", "out of domain"],
        rows=_rows(found, scores),
        claims=[
            *_claims(found, scores),
            rank_pattern(found["0.5%", "s2lora"], found["0.5%", "adalora"]),
            control(scores["0.5%", "s2lora"]["in"], permuted),
        ],
        seconds=time.perf_counter() - start,
        environment=environment("fp32", 1),
        extra={
            "ranks": {e["name"]: mean_map(e, "ranks") for k, e in found.items() if k[0] == "0.5%" and e["trials"]},
            "mass": {e["name"]: mean_map(e, "mass") for k, e in found.items() if k[0] == "0.5%" and e["trials"]},
        },
    )


def seed_scores(entry: dict, in_domain: str, out_of_domain: list[str]) -> dict[str, list[float]]:
    """Scores of a variant by seed: ``in`` domain, and the mean ``out`` of domain."""
    trials = [t for t in entry["trials"] if t["status"] == "done"]
    return {
        "in": [t["scores"][in_domain]["score"] for t in trials],
        "out": [float(np.mean([t["scores"][d]["score"] for d in out_of_domain])) for t in trials],
    }


def _rows(found: dict, scores: dict) -> list[list[str]]:
    rows = []
    for (budget, name), e in found.items():
        if not e["trials"]:
            continue
        s, cost = scores[budget, name], e["cost"]
        rows.append(
            [
                e["title"],
                budget if name != "head" else "-",
                str(e["rank"] or "-"),
                count(cost["trainable_parameters"]),
                size(cost["adapter_bytes"]),
                plus_minus(s["in"]),
                plus_minus(s["out"]),
            ]
        )
    return rows


def _claims(found: dict, scores: dict) -> list[Claim]:
    ada, claims = scores["0.5%", "adalora"], []
    ada_cost = found["0.5%", "adalora"]["cost"]
    for budget in ("0.05%", "0.02%"):
        s2, cost = scores[budget, "s2lora"], found[budget, "s2lora"]["cost"]
        ratio = ada_cost["trainable_parameters"] / cost["trainable_parameters"]
        bytes_ratio = ada_cost["adapter_bytes"] / cost["adapter_bytes"]
        d = paired(s2["in"], ada["in"])
        claims.append(
            Claim(
                text=f"in domain within 1 point of AdaLoRA with at least 8x fewer parameters ({budget} against 0.5%)",
                held=d.mean >= -0.01 and ratio >= 8,
                found=f"{d} with {ratio:.1f}x fewer parameters, adapter file {bytes_ratio:.1f}x smaller",
            )
        )
    for budget in ("0.5%", "0.05%"):
        d = paired(scores[budget, "s2lora"]["out"], ada["out"])
        claims.append(
            Claim(
                text=f"mean out-of-domain accuracy at least AdaLoRA's less its standard error ({budget} against 0.5%)",
                held=d.mean >= -d.error,
                found=str(d),
            )
        )
    dense = paired(scores["0.5%", "s2lora"]["in"], scores["0.5%", "s2lora-dense"]["in"])
    claims.append(
        Claim(
            text="the L1 term costs no accuracy in domain (within 1 point of no L1)",
            held=dense.mean >= -0.01,
            found=str(dense),
        )
    )
    return claims


def mean_map(entry: dict, key: str) -> dict[str, float]:
    """Ranks or coefficient mass by layer, mean over seeds."""
    maps = [t[key] for t in entry["trials"] if t["status"] == "done" and t[key]]
    return {n: float(np.mean([m.get(n, 0) for m in maps])) for n in maps[0]} if maps else {}


def rank_pattern(s2lora: dict, adalora: dict) -> Claim:
    """Rank pattern: S2-LoRA's mass against AdaLoRA's final ranks, over layers, with a permutation p-value."""
    mass, ranks = mean_map(s2lora, "mass"), mean_map(adalora, "ranks")
    a, b = np.array(list(mass.values())), np.array([ranks[n] for n in mass])
    rho = _spearman(a, b)
    rng = np.random.default_rng(0)
    p = float(np.mean([_spearman(rng.permutation(a), b) >= rho for _ in range(2000)]))
    return Claim(
        text="rank pattern like AdaLoRA's: Spearman correlation of mass and final ranks above 0.3",
        held=rho > 0.3 and p < 0.05,
        found=f"rho={rho:.2f}, permutation p={p:.3f}, {len(a)} matrices",
    )


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


@torch.no_grad()
def permuted_scores(job: Job, entry: dict) -> list[float]:
    """In-domain scores with the trained coefficients dealt to other matrices."""
    scores = []
    for t in entry["trials"]:
        folder = job.trial_folder("s2lora", t["learning_rate"], t["seed"])
        torch.manual_seed(t["seed"])
        model = load_adapted(job.ready.fresh_model(), folder / "adapter")
        layers = [m for m in model.modules() if isinstance(m, S2LoraLayer)]
        values = [m.s2lora_lambda["default"].clone() for m in layers]
        order = torch.randperm(len(layers), generator=torch.Generator().manual_seed(t["seed"]))
        for layer, i in zip(layers, order.tolist(), strict=True):
            layer.s2lora_lambda["default"].copy_(values[i])
        scores.append(job.ready.task.evaluate(model, job.ready.examples[job.ready.tests[0]])["score"])
    return scores


def control(right: list[float], permuted: list[float]) -> Claim:
    """The right coefficients against ones dealt to other matrices."""
    d = paired(right, permuted)
    return Claim(
        text="control: coefficients dealt to other matrices lose at least 2 points",
        held=d.mean >= 0.02,
        found=f"the right ones lead by {d}",
        control=True,
    )
