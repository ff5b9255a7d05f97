"""Speed of learning from clicks, against the same written as loops: over positions, and over lists."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from rankwise.bench import Recipe
from rankwise.bench.shared.evidence import Claim, Evidence
from rankwise.bench.speed.core import Measured, alternate, side_by_side
from rankwise.events import OnEvent
from rankwise.ranking import PBM, DualLearningRanker, attraction, ndcg
from rankwise.ranking.click_ranker import mlp

RECIPE = Recipe(
    name="speed",
    part="clicks",
    about="learning from clicks: speed ratios",
    smoke={"LISTS": 200, "STEPS": 5, "DRAWN": 200},
    control=False,
)

RATE = 0.01  # of both; at 0.05 so many features are learned by heart
LISTS, STEPS, DRAWN, PLACES, FEATURES, HIDDEN, BATCH = 5_000, 300, 20_000, 10, 46, (64, 32), 256


def run(out: Path, *, on_event: OnEvent | None = None) -> Evidence:
    """Time both pairs; the inputs are fixed."""
    return side_by_side(
        {"training": training, "simulation": simulation},
        on_event,
        recipe="clicks_speed",
        title="Learning from clicks: speed ratios",
        command="rankwise bench speed --part clicks",
        setting=f"{torch.get_num_threads()} threads, one process; medians of alternating runs; {STEPS} steps of "
        f"{BATCH} lists of {PLACES} documents with {FEATURES} features; clicks of {DRAWN:,} lists",
    )


def lists() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, grades and clicks of generated lists."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(LISTS, PLACES, FEATURES))
    y = np.clip(np.round(X[..., 0] + 1), 0, 4)
    return X, y, PBM().simulate(attraction(y), seed=0)


def training() -> Measured:
    """A batch as one pass, against a network call, a weight and a loss term for each position."""
    X, y, clicks = lists()
    ours = DualLearningRanker(hidden=HIDDEN, steps=STEPS, batch_size=BATCH, learning_rate=RATE)
    log = {"clicks": clicks.ravel(), "query": np.repeat(np.arange(LISTS), PLACES)}
    nets = []
    a, b = alternate(
        lambda: ours.fit(X.reshape(-1, FEATURES), **log), lambda: nets.append(_by_position(X, clicks)), times=5
    )
    query, rows = np.repeat(np.arange(LISTS), PLACES), X.reshape(-1, FEATURES)
    with torch.no_grad():
        theirs = nets[-1](torch.as_tensor(rows).float())[:, 0].numpy()
    mine, loops = (float(np.nanmean(ndcg(y.ravel(), s, query=query))) for s in (ours.predict(rows), theirs))
    return [["dual learning", f"{a:.2f}s", "a loop over positions", f"{b:.2f}s", f"{b / a:.1f}x"]], [
        Claim(
            text="training at least 5x faster than a loop over positions, nDCG@10 within 1 point",
            held=b / a >= 5 and abs(mine - loops) < 0.01,
            found=f"{b / a:.1f}x; nDCG@10 {100 * mine:.1f} against {100 * loops:.1f}",
        )
    ]


def _by_position(X: np.ndarray, clicks: np.ndarray) -> torch.nn.Module:
    """The algorithm position by position, as released code has it: one document of every list at a time."""
    torch.manual_seed(0)
    net, examine = mlp(FEATURES, HIDDEN), torch.nn.Linear(PLACES, 1)
    optimizers = [torch.optim.Adagrad(m.parameters(), lr=RATE) for m in (net, examine)]
    x, c, rng = torch.as_tensor(X).float(), torch.as_tensor(clicks).float(), np.random.default_rng(0)
    for _ in range(STEPS):
        batch = rng.integers(LISTS, size=min(BATCH, LISTS))
        f = torch.cat([net(x[batch, k]) for k in range(PLACES)], 1)
        shown = [torch.zeros(len(batch), PLACES) for _ in range(PLACES)]
        for k in range(PLACES):
            shown[k][:, k] = 1
        g = torch.cat([examine(one) for one in shown], 1)
        losses = []
        for z, other in ((f, g), (g, f)):
            p = other.softmax(1).detach()
            weights = torch.stack([p[:, 0] / p[:, k] for k in range(PLACES)], 1).clamp(max=10)
            total = torch.stack([c[batch, k] * weights[:, k] for k in range(PLACES)], 1)
            terms = [-total[:, k] * F.log_softmax(z, 1)[:, k] for k in range(PLACES)]
            losses.append(torch.stack(terms).sum() / total.sum())
        for optimizer in optimizers:
            optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        for optimizer, module in zip(optimizers, (net, examine), strict=True):
            torch.nn.utils.clip_grad_norm_(module.parameters(), 5.0)
            optimizer.step()
    return net


def simulation() -> Measured:
    """All lists at once, against a draw for each document."""
    a_k = attraction(np.random.default_rng(0).integers(0, 5, size=(DRAWN, PLACES)))
    theta, model = PBM().of(PLACES).tolist(), PBM()
    rates: list[np.ndarray] = []

    def loop() -> None:
        rng, rows = random.Random(0), a_k.tolist()
        drawn = [[int(rng.random() < theta[k] * row[k]) for k in range(PLACES)] for row in rows]
        rates.append(np.mean(drawn, 0))

    a, b = alternate(lambda: rates.append(model.simulate(a_k, seed=0).mean(0)), loop, times=5)
    gap = float(np.abs(rates[-1] - rates[-2]).max())
    return [
        ["clicks, position-based", f"{1e3 * a:.1f}ms", "a loop over documents", f"{1e3 * b:.0f}ms", f"{b / a:.0f}x"]
    ], [
        Claim(
            text="simulation at least 50x faster than a loop, click rates equal up to chance",
            held=b / a >= 50 and gap < 5 * np.sqrt(0.5 / DRAWN),
            found=f"{b / a:.0f}x, rates differ by at most {gap:.4f}",
        )
    ]
