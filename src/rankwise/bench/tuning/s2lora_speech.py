"""S2-LoRA's claims on speech, the paper's own ground: Whisper adapted to a low-resource domain of child-like speech.

Whisper tiny.en learns synthetic child-like speech (`rankwise.data.synthesis`) and is tested on held-out child-like
voices and sentences, on adult voices, and on accents. Every variant sees the same recordings in the same order for each
seed, so differences are paired by seed. Validation data picked each learning rate beforehand; test data are scored
once. The score is ``1 - WER``: a point is a point of word error rate, and more is better.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rankwise.bench import Recipe
from rankwise.bench.shared.adapted import UNTRAINED, cost, tested
from rankwise.bench.shared.evidence import Claim, Evidence, paired, plus_minus
from rankwise.bench.shared.measured import Runs
from rankwise.bench.tuning.s2lora import (
    control,
    gathered,
    mean_map,
    permuted_scores,
    seed_scores,
    shown_zeros,
    sparsity_claims,
)
from rankwise.events import OnEvent, environment
from rankwise.jobs.adapt import AdaptConfig, Job
from rankwise.jobs.items import metrics
from rankwise.report.plots.shared import heat_maps, save
from rankwise.report.tables import count, size

RECIPE = Recipe(
    name="s2lora",
    part="speech",
    about="S2-LoRA against AdaLoRA, LoRA and BitFit: Whisper tiny.en and child-like speech",
    figures=(("AdaLoRA's ranks and S2-LoRA's mass by layer", "s2lora_speech_ranks.png"),),
    spreads=True,
    smoke={"seeds": 1, "steps": 1, "TRAINED": 2, "TESTED": 1},
)

TRAINED, TESTED = 8, 24  # recordings a step, and of each domain
IN_DOMAIN, OUT_OF_DOMAIN = "speech:child", ["speech:adult", "speech:accents"]
BUDGETS = {
    "1%": ["bitfit", "lora", "adalora", "s2lora", "s2lora-dense", "s2lora-unshared"],
    "0.1%": ["s2lora"],
    "0.02%": ["s2lora"],
}
SMALL = ("0.1%", "0.02%")
# the best of three a method by validation WER, on the first seed with 32 steps (ablations: S2-LoRA's)
RATES = {
    "bitfit": [4e-3],
    "lora": [2e-3],
    "adalora": [1e-2],
    "s2lora": [3e-3],
    "s2lora-dense": [3e-3],
    "s2lora-unshared": [3e-3],
    "full": [3e-5],
}


def settings(budget: str, seeds: int, steps: int) -> AdaptConfig:
    """The job of one budget; the largest has full fine-tuning beside it."""
    return AdaptConfig(
        task="asr",
        budget=budget,
        methods=BUDGETS[budget],
        eval=OUT_OF_DOMAIN,
        seeds=seeds,
        steps=steps,
        batch_size=TRAINED,
        eval_limit=TESTED,
        precision="bf16",
        silence_stride=4,
        learning_rates=RATES,
        reference="full" if budget == "1%" else "none",
    )


def measure(out: Path, *, seeds: int = 5, steps: int = 48, on_event: OnEvent | None = None) -> Runs:
    """Train all variants (finished ones are read back), draw the rank maps: errors and words of every recording."""
    jobs = {b: Job(settings(b, seeds, steps), out / f"budget-{b}", on_event=on_event) for b in BUDGETS}
    found = {"told": {"steps": steps}, **gathered(jobs)}
    if all((drawn := maps(found)).values()):  # none where all runs diverged
        save(heat_maps(drawn, label="rank or mass"), out / "ranks.png")
    return found


def maps(found: Runs) -> dict[str, dict[str, float]]:
    """By layer, mean over seeds."""
    ada, s2 = found["1% adalora"], found["1% s2lora"]
    return {"AdaLoRA: final rank": mean_map(ada, "ranks"), "S2-LoRA: coefficient mass Σ|λ|": mean_map(s2, "mass")}


def judge(found: Runs, *, seeds: int) -> Evidence:
    """The variants compared, by seed."""
    runs = {(b, n): found[f"{b} {n}"] for b, names in BUDGETS.items() for n in (*names, *(["full"] * (b == "1%")))}
    zero = {corpus: metrics(items)["score"] for corpus, items in found[f"1% {UNTRAINED}"].items()}
    untrained = {
        "in": [zero[IN_DOMAIN]] * seeds,
        "out": [float(np.mean([zero[d] for d in OUT_OF_DOMAIN]))] * seeds,
    }
    scores = {k: seed_scores(run, IN_DOMAIN, OUT_OF_DOMAIN) for k, run in runs.items()}
    return Evidence(
        recipe="s2lora_speech",
        title="S2-LoRA on speech: Whisper tiny.en and child-like voices",
        command=f"rankwise bench s2lora --part speech --seeds {seeds} --jobs 2",
        setting=f"synthetic speech (eSpeak NG), {found['told']['steps']} steps of {TRAINED} recordings, {seeds} seeds, "
        f"tests: {tested(runs.values())}; bfloat16, every fourth silent position encoded; word error rate in per cent, "
        "mean ± standard deviation over seeds, out of domain: mean of adult voices and accents; zero: share of "
        "S2-LoRA's coefficients that are exactly zero",
        header=["variant", "budget", "rank", "trained", "share", "adapter", "zero", "child", "out of domain"],
        rows=_rows(runs, scores, untrained),
        claims=[
            *_claims(runs, scores, untrained),
            *sparsity_claims(runs, "1%", costs(scores, "s2lora-dense", "the L1 term")),
            control(scores["1%", "s2lora"]["in"], permuted_scores(found["permuted"])),
        ],
        environment=environment("bf16", 1),
        extra={
            "maps": maps(found),
            "effective_ranks": mean_map(runs["1%", "s2lora"], "ranks"),
            "scores": {" ".join(k): v for k, v in scores.items()},
        },
    )


def _rates(values: list[float]) -> str:
    return plus_minus([1 - v for v in values])


def _rows(runs: dict, scores: dict, untrained: dict) -> list[list[str]]:
    rows = [["zero-shot", "-", "-", "0", "-", "-", "-", _rates(untrained["in"][:1]), _rates(untrained["out"][:1])]]
    for (budget, name), run in runs.items():
        spent, s = cost(run), scores[budget, name]
        rows.append(
            [
                run["title"],
                budget if name != "full" else "-",
                str(run["rank"] or "-"),
                count(spent["trainable_parameters"]),
                f"{100 * spent['trainable_share']:.3g}%" if run["cost"] else "-",
                size(spent["adapter_bytes"]),
                shown_zeros(run),
                _rates(s["in"]),
                _rates(s["out"]),
            ]
        )
    return rows


def _claims(runs: dict, scores: dict, untrained: dict) -> list[Claim]:
    ada, ada_cost = scores["1%", "adalora"], cost(runs["1%", "adalora"])
    gains = {n: paired(scores["1%", n]["in"], untrained["in"]) for n in ("bitfit", "lora", "adalora", "s2lora", "full")}
    claims = [
        Claim(
            text="every method is at least 5 points of WER better than zero-shot in domain",
            held=all(d.mean >= 0.05 for d in gains.values()),
            found="; ".join(f"{n} {100 * d.mean:+.1f}" for n, d in gains.items()),
        )
    ]
    for budget in SMALL:
        d, own = paired(scores[budget, "s2lora"]["in"], ada["in"]), cost(runs[budget, "s2lora"])
        fewer = ada_cost["trainable_parameters"] / own["trainable_parameters"]
        smaller = ada_cost["adapter_bytes"] / own["adapter_bytes"]
        claims.append(
            Claim(
                text=f"in domain within 1 point of AdaLoRA with at least 8x fewer parameters ({budget} against 1%)",
                held=d.mean >= -0.01 and fewer >= 8,
                found=f"{d} with {fewer:.1f}x fewer parameters, adapter file {smaller:.1f}x smaller",
            )
        )
    for budget in BUDGETS:
        d = paired(scores[budget, "s2lora"]["out"], ada["out"])
        claims.append(
            Claim(
                text=f"mean out-of-domain WER at most AdaLoRA's plus its standard error ({budget} against 1%)",
                held=d.mean >= -d.error,
                found=str(d),
            )
        )
    return [*claims, costs(scores, "s2lora-unshared", "sharing P and Q")]


def costs(scores: dict, without: str, what: str) -> Claim:
    """What a part of S2-LoRA costs in domain."""
    d = paired(scores["1%", "s2lora"]["in"], scores["1%", without]["in"])
    return Claim(text=f"{what} costs at most 1 point of WER in domain", held=d.mean >= -0.01, found=str(d))
