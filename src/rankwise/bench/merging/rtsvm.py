"""R-TSVM's claims: the best merge on average, and merging beats mixing the data.

Three experts of one MiniLM (`bench.shared.experts`), merged by 14 methods, with λ chosen on validation for each
alike, from a grid that grows until the best point lies inside it. Against them: the experts themselves, and one model
trained on the mixture of the data (all of it, without the hardest examples, without those whose gradients disagree) for
as many steps as all experts together. Ablations: R-TSVM without its weighting, without its ranks, with its other
readings, and TSVM of a third of the ranks, since R-TSVM keeps about so many. Controls: task vectors turned by random
rotations, of the same spectra; the best λ of every method lies inside its grid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rankwise.bench import Recipe
from rankwise.bench.shared.evidence import Claim, Evidence, greater, plus_minus
from rankwise.bench.shared.experts import TASKS, Bench, State, agreeing, bench, clearest, right
from rankwise.bench.shared.measured import Runs
from rankwise.events import OnEvent, environment, unheard
from rankwise.files import claimed, write_json
from rankwise.jobs.tasks import Example
from rankwise.merging import METHODS, merge
from rankwise.parallel import fan_out, is_spread
from rankwise.reading import read_json
from rankwise.report.plots.merging import interference
from rankwise.report.plots.shared import save
from rankwise.spectral import subspace_overlap, truncated_svd

RECIPE = Recipe(
    name="rtsvm",
    part="experts",
    about="R-TSVM against other merges and against mixing the data, on three experts",
    spreads=True,
    smoke={
        "seeds": 1, "steps": 1, "BLOCKS": 1, "TRAINED": 32, "VALIDATED": 4, "TESTED": 4, "RATES": (1e-4,),
        "SCALES": (1.0,), "LEAST": 1.0, "MOST": 1.0,
    },
    figures=(("what summing two experts costs against the overlap of their subspaces", "rtsvm_interference.png"),),
)  # fmt: skip

TRAINED, VALIDATED, TESTED = 1500, 150, 200  # sentences an ability, at most
BLOCKS = 6  # of MiniLM, all
RATES = (1e-4, 3e-4)
SCALES = (0.3, 0.6, 1.0, 1.5, 2.25)
STEP, LEAST, MOST = 1.5, 0.03, 40.0  # a grid whose best point is its last goes on by this factor, no further than here
COMPARED = (
    "linear", "task_arithmetic", "model_stock", "ties", "dare_linear", "dare_ties", "della_linear", "della",
    "breadcrumbs", "breadcrumbs_ties", "consensus", "pcb", "tsvm", "rtsvm",
)  # fmt: skip
VARIANTS: dict[str, tuple[str, dict]] = {
    **{name: (name, {}) for name in COMPARED},
    "rtsvm, no weighting": ("rtsvm", {"weighting": "none"}),
    "rtsvm, uniform rank": ("rtsvm", {"rank": "uniform"}),
    "rtsvm, weights a row": ("rtsvm", {"weighting": "row"}),
    "rtsvm, ranks by layer": ("rtsvm", {"rank": "layer"}),
    "rtsvm, ranks by expert": ("rtsvm", {"rank": "expert"}),
    "tsvm, a third of the ranks": ("tsvm", {"share": 1 / 3}),
}
MIXTURES = ("mixture", "clearest mixture", "agreeing mixture")
CONTROL = "rtsvm of rotated task vectors"


def measure(out: Path, *, seeds: int = 5, steps: int = 150, on_event: OnEvent | None = None) -> Runs:
    """Train, merge and score (finished parts are read back): of every model the classes of the test sentences."""
    with claimed(out, made_by="bench rtsvm", told={"steps": steps}) as folder:
        b = bench(
            folder, limits=(TRAINED, VALIDATED, TESTED), blocks=BLOCKS, rates=RATES, steps=steps, on_event=on_event
        )
        _rates(b)  # by the first seed, before others ask for them
        heard = replace(b, on_event=unheard) if is_spread() else b
        by_seed = fan_out(_scores, [(heard, seed) for seed in range(seeds)])
    save(interference(_interference(by_seed)), out / "interference.png")
    return {"steps": steps, **{f"seed {seed}": found for seed, found in enumerate(by_seed)}}


def judge(found: Runs, *, seeds: int) -> Evidence:
    """All models compared, paired by seed."""
    by_seed, steps = [found[f"seed {seed}"] for seed in range(seeds)], found["steps"]
    names, points = list(by_seed[0]["test"]), _interference(by_seed)
    test = {n: np.array([accuracies(s, n) for s in by_seed]) for n in names}  # (seeds, tasks)
    normal = {n: (test[n] / test["experts"]).mean(1) for n in names}
    rows = [
        [n, _scale(by_seed, n), *[plus_minus(test[n][:, i]) for i in range(len(TASKS))], plus_minus(normal[n]),
         plus_minus((test[n] / test["experts"]).min(1))]
        for n in names
    ]  # fmt: skip
    return Evidence(
        recipe="rtsvm",
        title="R-TSVM: merging experts",
        command=f"rankwise bench rtsvm --seeds {seeds}",
        setting=f"MiniLM, experts for {', '.join(TASKS)}; {steps} steps of 16 sentences each, mixtures {3 * steps} "
        f"steps; λ from {', '.join(map(str, SCALES))} and on, by validation; {seeds} seeds, {TESTED} test sentences "
        "an ability; accuracy in per cent, mean ± standard deviation; normalised: by the expert's own",
        header=["model", "λ", *TASKS, "normalised", "smallest"],
        rows=rows,
        claims=_claims(
            test, normal, sorted({n for s in by_seed for n, at in s["at_edge"].items() if at and n != CONTROL})
        ),
        environment=environment("fp32", 1),
        extra={"interference": points, "normalised": {n: v.tolist() for n, v in normal.items()}},
    )


def accuracies(found: Mapping[str, Any], name: str) -> list[float]:
    """Of a model on every ability."""
    return [right(said, truth) for said, truth in zip(found["test"][name], found["truth"], strict=True)]


def _interference(by_seed: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How much two experts' leading subspaces overlap, and what summing both costs."""
    points = []
    for seed, found in enumerate(by_seed):
        experts = dict(zip(TASKS, accuracies(found, "experts"), strict=True))
        truth = dict(zip(TASKS, found["truth"], strict=True))
        for pair, overlap, said in found["summed"]:
            kept = np.mean([right(s, truth[t]) / experts[t] for t, s in zip(pair, said, strict=True)])
            points.append({"pair": " + ".join(pair), "seed": seed, "overlap": overlap, "loss": float(1 - kept)})
    return points


def _rates(b: Bench) -> tuple[dict[str, float], float]:
    """Learning rates of the experts and of the mixtures."""
    experts = {t: b.best_rate(t, lambda t=t: b.rows[t].train, [t], steps=b.steps) for t in TASKS}
    return experts, b.best_rate("mixture", lambda: _mixture(b), TASKS, steps=3 * b.steps)


def _mixture(b: Bench) -> list[Example]:
    return [e for t in TASKS for e in b.rows[t].train]


def _scores(asked: tuple[Bench, int]) -> dict:
    b, seed = asked
    path = b.out / f"scores-seed{seed}.json"
    found: dict = read_json(path) if path.exists() else {"test": {}, "scale": {}, "at_edge": {}}
    found["truth"] = [b.truth(t, "test") for t in TASKS]
    rates, rate = _rates(b)
    experts = {t: b.trained(t, lambda t=t: b.rows[t].train, seed=seed, rate=rates[t], steps=b.steps) for t in TASKS}
    base = b.base(seed).state_dict()

    def record(name: str, said: list[str], scale: float | None = None, at_edge: bool = False) -> None:
        found["test"][name], found["scale"][name], found["at_edge"][name] = said, scale, at_edge
        write_json(path, found)
        b.on_event(f"{name} seed={seed}", "done", 1, 1, float("nan"))

    alone = {
        "untrained": lambda: _said(b, base),
        "experts": lambda: [b.predicted(experts[t], t, "test") for t in TASKS],
        **{f"expert for {t}": lambda t=t: _said(b, experts[t]) for t in TASKS},
    }
    for name, said in alone.items():
        if name not in found["test"]:
            record(name, said())
    mixed = {
        "mixture": lambda: _mixture(b),
        "clearest mixture": lambda: clearest(b, experts),
        "agreeing mixture": lambda: agreeing(b, base),
    }
    for name, examples in mixed.items():
        if name not in found["test"]:
            record(name, _said(b, b.trained(name, examples, seed=seed, rate=rate, steps=3 * b.steps)))
    for name, (method, options) in VARIANTS.items():
        if name not in found["test"]:
            record(name, *_best(b, list(experts.values()), base, method, options, seed))
    if CONTROL not in found["test"]:
        turned = [rotated(base, e, seed=100 * seed + i) for i, e in enumerate(experts.values())]
        record(CONTROL, *_best(b, turned, base, "rtsvm", {}, seed))
    if "summed" not in found:
        found["summed"] = [_summed(b, base, experts, pair) for pair in combinations(TASKS, 2)]
        write_json(path, found)
    return found


def _said(b: Bench, state: State, tasks: Sequence[str] = TASKS) -> list[str]:
    return [b.predicted(state, t, "test") for t in tasks]


def _best(b: Bench, experts: list[State], base: State, method: str, options: dict, seed: int):
    """Of the merge whose λ is best on validation: classes of test sentences, λ, whether it is the last of its grid."""

    def merged(scale: float | None) -> State:
        given: dict = options if scale is None else options | {"scale": scale}
        return merge(experts, base=base, method=method, seed=seed, **given)

    if "scale" not in METHODS[method].parameters:
        return _said(b, merged(None)), None, False
    best, at_edge = inside(lambda s: float(b.accuracies(merged(s), "validation").mean()))
    return _said(b, merged(best)), best, at_edge


def inside(score: Callable[[float], float]) -> tuple[float, bool]:
    """The best λ of a grid that goes on past its best point, and whether there was no going on."""
    scores = {s: score(s) for s in SCALES}
    while True:
        best = max(scores, key=lambda s: scores[s])
        further = best * STEP if best == max(scores) else best / STEP if best == min(scores) else None
        if further is None or not LEAST <= further <= MOST:
            return best, further is not None
        scores[further] = score(further)


def rotated(base: State, expert: State, *, seed: int) -> State:
    """The expert with every task vector turned by random rotations: the same singular values, nothing learned."""
    generator = torch.Generator().manual_seed(seed)

    def rotation(n: int) -> Tensor:
        return torch.linalg.qr(torch.randn(n, n, generator=generator)).Q

    out = {}
    for name, weight in expert.items():
        tau = weight - base[name]
        if weight.ndim == 2 and min(weight.shape) > 1 and max(weight.shape) <= 4096:
            tau = rotation(len(tau)) @ tau @ rotation(tau.shape[1])
        elif weight.is_floating_point():
            noise = torch.randn(weight.shape, generator=generator)
            tau = noise * (tau.norm() / noise.norm())
        out[name] = base[name] + tau
    return out


def _summed(b: Bench, base: State, experts: dict[str, State], pair: tuple[str, str]) -> tuple:
    """Two experts, how much their leading subspaces overlap, and what their sum says of the sentences of both."""
    matrices = [n for n, w in base.items() if w.ndim == 2 and "embeddings" not in n and min(w.shape) > 8]
    overlaps = []
    for n in matrices:
        k = min(base[n].shape) // 8
        V = [truncated_svd(experts[t][n] - base[n], k, method="gram").Vh for t in pair]
        overlaps.append(float(subspace_overlap(V[0].mT, V[1].mT)))
    both = merge([experts[t] for t in pair], base=base, method="task_arithmetic", scale=1.0)
    return pair, float(np.mean(overlaps)), _said(b, both, pair)


def _scale(by_seed: list[dict], name: str) -> str:
    scales = [s["scale"].get(name) for s in by_seed]
    return ", ".join(f"{x:g}" for x in sorted({x for x in scales if x is not None})) or "-"


def _claims(test: dict[str, np.ndarray], normal: dict[str, np.ndarray], at_edge: list[str]) -> list[Claim]:
    learned = (test["experts"] - test["untrained"]).mean(0)
    merges = list(COMPARED)
    ranking = sorted(merges, key=lambda n: -normal[n].mean())
    best_mixture = max(MIXTURES, key=lambda n: normal[n].mean())

    def beats(other: str, text: str, **options: Any) -> Claim:
        return greater(text, normal["rtsvm"], normal[other], **options)

    return [
        Claim(
            text="R-TSVM is the best merge on average",
            held=ranking[0] == "rtsvm",
            found=", ".join(f"{n} {100 * normal[n].mean():.1f}" for n in ranking[:5]),
        ),
        beats("tsvm", "R-TSVM beats TSVM"),
        beats("task_arithmetic", "R-TSVM beats task arithmetic"),
        *(beats(n, f"both parts matter: {n} is worse") for n in ("rtsvm, no weighting", "rtsvm, uniform rank")),
        beats("tsvm, a third of the ranks", "R-TSVM is more than TSVM of a third of the ranks"),
        beats(best_mixture, f"merging by R-TSVM beats mixing the data (the best of three mixtures: {best_mixture})"),
        Claim(
            text="control: every expert is at least 10 points above the untrained model in its own ability",
            control=True,
            held=learned.min() >= 0.1,
            found=", ".join(f"{t} {100 * x:+.1f}" for t, x in zip(TASKS, learned, strict=True)),
        ),
        beats(CONTROL, "control: rotated task vectors of the same spectra are worse", control=True),
        Claim(
            text="control: the best λ of every merge lies inside its grid",
            control=True,
            held=not at_edge,
            found=f"at the last point: {', '.join(at_edge) or 'none'}",
        ),
    ]
