"""S2-LoRA's claims on text: comparable in domain at far fewer parameters, better out of domain, ranks like AdaLoRA's.

MiniLM learns the polarity of movie snippets and is tested on held-out movies, tweets, Amazon reviews and NYT sentences.
Every variant sees the same examples in the same order for each seed, so differences are paired by seed. Validation
picks each variant's learning rate on the first seed; test data are scored once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata

from rankwise.bench import Recipe
from rankwise.bench.shared.adapted import by_seed, cost, runs_of, tested
from rankwise.bench.shared.evidence import CERTAIN, Claim, Evidence, paired, plus_minus
from rankwise.bench.shared.measured import Runs
from rankwise.events import OnEvent, environment
from rankwise.jobs.adapt import AdaptConfig, Job, load_adapted
from rankwise.jobs.items import metrics
from rankwise.reading import read_tensors
from rankwise.report.tables import count, size
from rankwise.tuning.s2lora import S2LoraLayer

RECIPE = Recipe(
    name="s2lora",
    part="text",
    about="S2-LoRA against AdaLoRA, LoRA and BitFit: sentiment in four domains",
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
TESTED = 500  # a domain, at most
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
ACTS = 0.1  # share of coefficients that the L1 term makes zero, from which it is taken to have acted
WHAT = {"mass": "mass", "ranks": "effective ranks"}
IN_DOMAIN = "sentiment:movies"
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
        precision="bf16",
        baseline=budget == "0.5%",
    )


def measure(out: Path, *, seeds: int = 5, steps: int = 240, on_event: OnEvent | None = None) -> Runs:
    """Train all variants (finished ones are read back): what was said of every test sentence, and what is zero."""
    jobs = {b: Job(settings(b, m, seeds, steps), out / f"budget-{b}", on_event=on_event) for b, m in BUDGETS.items()}
    return {"told": {"steps": steps}, **gathered(jobs, leave=("nll",))}


def gathered(jobs: Mapping[str, Job], *, leave: Collection[str] = ()) -> Runs:
    """The runs of every budget, and those of the first with S2-LoRA's coefficients dealt to other matrices."""
    found: Runs = {}
    for budget, job in jobs.items():
        for name, run in runs_of(job, leave=leave).items():
            found[f"{budget} {name}"] = run
            for trial in run["trials"] if name.startswith("s2lora") else ():
                trial["coefficients"] = coefficients(_folder(job, trial) / "adapter")
    first = next(iter(jobs))
    found["permuted"] = permuted(jobs[first], found[f"{first} s2lora"], leave)
    return found


def _folder(job: Job, trial: Mapping[str, Any]) -> Path:
    return job.trial_folder(trial["method"], trial["learning_rate"], trial["seed"])


def coefficients(adapter: Path) -> dict[str, int]:
    """How many rank coefficients a saved adapter has, and how many of them are exactly zero."""
    files = [read_tensors(path) for path in adapter.glob("*.safetensors")]
    values = [t for tensors in files for name, t in tensors.items() if "s2lora_lambda" in name]
    return {"of": sum(t.numel() for t in values), "zero": sum(int((t == 0).sum()) for t in values)}


@torch.no_grad()
def permuted(job: Job, run: Runs, leave: Collection[str]) -> list[dict[str, list[float]]]:
    """Items in domain by seed, of the trained coefficients dealt to other matrices; none where a run diverged."""
    found = []
    for t in run["trials"]:
        if not t["items"]:
            found.append({})
            continue
        torch.manual_seed(t["seed"])
        model = load_adapted(job.ready.fresh_model(), _folder(job, t) / "adapter")
        layers = [m for m in model.modules() if isinstance(m, S2LoraLayer)]
        values = [m.s2lora_lambda["default"].clone() for m in layers]
        order = torch.randperm(len(layers), generator=torch.Generator().manual_seed(t["seed"]))
        for layer, i in zip(layers, order.tolist(), strict=True):
            layer.s2lora_lambda["default"].copy_(values[i])
        bf16 = job.precision == "bf16"
        items = job.ready.task.items(model, job.ready.examples[job.ready.tests[0]], bf16=bf16)
        found.append({name: column for name, column in items.items() if name not in leave})
    return found


def judge(found: Runs, *, seeds: int) -> Evidence:
    """The variants compared, by seed."""
    runs = {(b, n): found[f"{b} {n}"] for b, names in BUDGETS.items() for n in names}
    runs = {("0.5%", "head"): found["0.5% head"]} | runs
    scores = {k: seed_scores(run, IN_DOMAIN, OUT_OF_DOMAIN) for k, run in runs.items()}
    return Evidence(
        recipe="s2lora",
        title="S2-LoRA: sparsely shared low-rank adaptation",
        command=f"rankwise bench s2lora --part text --seeds {seeds} --jobs 2",
        setting=f"MiniLM, movie polarity, {found['told']['steps']} steps of 16 examples, bfloat16 arithmetic, "
        f"{seeds} seeds, tests: {tested(runs.values())}; accuracy in per cent, mean ± standard deviation over "
        "seeds; zero: share of S2-LoRA's coefficients that are exactly zero",
        header=["variant", "budget", "rank", "trained", "adapter", "zero", "movies", "out of domain"],
        rows=_rows(runs, scores),
        claims=[
            *_claims(runs, scores),
            *sparsity_claims(runs, "0.5%", dense_costs(scores)),
            control(scores["0.5%", "s2lora"]["in"], permuted_scores(found["permuted"])),
        ],
        environment=environment("bf16", 1),
        extra={
            key: {n: mean_map(run, key) for (b, n), run in runs.items() if b == "0.5%"} for key in ("ranks", "mass")
        },
    )


def seed_scores(run: Runs, in_domain: str, out_of_domain: list[str]) -> dict[str, list[float]]:
    """Scores of a variant by seed: ``in`` domain, and the mean ``out`` of domain."""
    out = np.mean([by_seed(run, d) for d in out_of_domain], axis=0)
    return {"in": by_seed(run, in_domain).tolist(), "out": out.tolist()}


def permuted_scores(found: Sequence[Mapping[str, Any]]) -> list[float]:
    """Scores of what `permuted` kept."""
    return [metrics(items)["score"] if items else float("nan") for items in found]


def zeros(run: Runs) -> np.ndarray:
    """Share of the coefficients that are zero, by seed; NaN for one that diverged."""
    counts = [
        (t["coefficients"]["zero"], t["coefficients"]["of"]) if t["items"] else (np.nan, 1) for t in run["trials"]
    ]
    return np.array([zero / of for zero, of in counts])


def shown_zeros(run: Runs) -> str:
    """The same for a table; of other methods a dash."""
    return f"{plus_minus(zeros(run))}%" if any("coefficients" in t for t in run["trials"]) else "-"


def _rows(runs: dict, scores: dict) -> list[list[str]]:
    return [
        [
            run["title"],
            budget if name != "head" else "-",
            str(run["rank"] or "-"),
            count(cost(run)["trainable_parameters"]),
            size(cost(run)["adapter_bytes"]),
            shown_zeros(run),
            plus_minus(scores[budget, name]["in"]),
            plus_minus(scores[budget, name]["out"]),
        ]
        for (budget, name), run in runs.items()
    ]


def _claims(runs: dict, scores: dict) -> list[Claim]:
    ada, claims = scores["0.5%", "adalora"], []
    ada_cost = cost(runs["0.5%", "adalora"])
    for budget in ("0.05%", "0.02%"):
        s2, own = scores[budget, "s2lora"], cost(runs[budget, "s2lora"])
        ratio = ada_cost["trainable_parameters"] / own["trainable_parameters"]
        bytes_ratio = ada_cost["adapter_bytes"] / own["adapter_bytes"]
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
    return claims


def dense_costs(scores: dict) -> Claim:
    """What the L1 term costs in domain."""
    d = paired(scores["0.5%", "s2lora"]["in"], scores["0.5%", "s2lora-dense"]["in"])
    return Claim(
        text="the L1 term costs no accuracy in domain (within 1 point of no L1)", held=d.mean >= -0.01, found=str(d)
    )


def sparsity_claims(runs: dict, budget: str, costs: Claim) -> list[Claim]:
    """Whether the L1 term acted; where it did, what it costs and whether it makes ranks like AdaLoRA's."""
    s2lora, dense, adalora = (runs[budget, n] for n in ("s2lora", "s2lora-dense", "adalora"))
    share, without = zeros(s2lora), zeros(dense)  # coefficients start at zero: some may never have moved
    acted = bool(share.mean() - without.mean() >= ACTS)
    of = s2lora["trials"][0]["coefficients"]["of"]
    acts = Claim(
        text=f"the L1 term acts: at least {100 * ACTS:g} points more of the coefficients are zero than without it "
        f"({budget})",
        held=acted,
        found=f"{plus_minus(share)} % of {of} coefficients are zero, {plus_minus(without)} % without it"
        + ("" if acted else "; what rests on sparsity is not judged"),
    )
    pattern = [rank_pattern(s2lora, adalora, "mass")]
    return [acts, *pattern, *([costs, rank_pattern(s2lora, adalora, "ranks")] if acted else [])]


def mean_map(run: Runs, key: str) -> dict[str, float]:
    """Ranks or coefficient mass by layer, mean over seeds."""
    maps = [t[key] for t in run["trials"] if t["items"] and t[key]]
    return {n: float(np.mean([m.get(n, 0) for m in maps])) for n in maps[0]} if maps else {}


def rank_pattern(s2lora: Runs, adalora: Runs, by: str) -> Claim:
    """S2-LoRA's mass or effective ranks against AdaLoRA's final ranks, over layers, with a permutation p-value."""
    ours, ranks = mean_map(s2lora, by), mean_map(adalora, "ranks")
    text = f"rank pattern like AdaLoRA's: Spearman correlation of {WHAT[by]} and final ranks above 0.3, p < 0.05"
    if not (ours and ranks):
        return Claim(text=text, held=False, found="all runs diverged")
    a, b = np.array(list(ours.values())), np.array([ranks[n] for n in ours])
    rho = _spearman(a, b)
    rng = np.random.default_rng(0)
    p = float(np.mean([_spearman(rng.permutation(a), b) >= rho for _ in range(2000)]))
    return Claim(
        text=text,
        held=rho > 0.3 and p < 0.05,
        found=f"rho={rho:.2f}, permutation p={p:.3f}, {len(a)} matrices",
    )


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    x, y = rankdata(a), rankdata(b)
    return float(np.corrcoef(x, y)[0, 1]) if x.std() * y.std() > 0 else 0.0


def control(right: list[float], dealt: list[float]) -> Claim:
    """The right coefficients against ones dealt to other matrices."""
    d = paired(right, dealt)
    return Claim(
        text="control: coefficients dealt to other matrices lose at least 2 points (p ≤ 0.05)",
        held=d.mean >= 0.02 and d.p_value <= CERTAIN,
        found=f"the right ones lead by {d}",
        control=True,
    )
