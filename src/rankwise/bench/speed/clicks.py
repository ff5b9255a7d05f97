"""Speed of learning from clicks, against the same written as loops: over positions, over lists, and over both."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from rankwise.bench import Recipe
from rankwise.bench.shared.evidence import Claim, Evidence
from rankwise.bench.speed.core import Measured, alternate, side_by_side
from rankwise.events import OnEvent
from rankwise.ranking import PBM, DualLearningRanker, attraction, ndcg
from rankwise.ranking.click_ranker import mlp
from rankwise.ranking.dla import FREE_RATE

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
        f"{BATCH} lists of {PLACES} documents with {FEATURES} features; clicks of {DRAWN:,} lists. The network's own "
        "arithmetic, equal in all, is half of our time",
    )


def lists() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, grades and clicks of generated lists."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(LISTS, PLACES, FEATURES))
    y = np.clip(np.round(X[..., 0] + 1), 0, 4)
    return X, y, PBM().simulate(attraction(y), seed=0)


def training() -> Measured:
    """A batch as one pass, against the same fed list by list, and against a pass for each position."""
    X, y, clicks = lists()
    ours = DualLearningRanker(hidden=HIDDEN, steps=STEPS, batch_size=BATCH, learning_rate=RATE)
    query, flat = np.repeat(np.arange(LISTS), PLACES), X.reshape(-1, FEATURES)
    rows, claims = [], []
    for what, loop in (
        ("a loop over lists and positions, as released code feeds them", _as_released),
        ("a loop over positions, tensors ready", _by_position),
    ):
        nets: list[torch.nn.Module] = []
        a, b = alternate(
            lambda: ours.fit(flat, clicks.ravel(), query=query),
            lambda loop=loop, nets=nets: nets.append(loop(X, clicks)),
            times=5,
        )
        with torch.no_grad():
            theirs = nets[-1](torch.as_tensor(flat).float())[:, 0].numpy()
        mine, loops = (float(np.nanmean(ndcg(y.ravel(), s, query=query))) for s in (ours.predict(flat), theirs))
        rows.append(["dual learning", f"{a:.2f}s", what, f"{b:.2f}s", f"{b / a:.1f}x"])
        claims.append(
            Claim(
                text=f"training at least 5x faster than {what}, nDCG@10 within 1 point",
                held=b / a >= 5 and abs(mine - loops) < 0.01,
                found=f"{b / a:.1f}x; nDCG@10 {100 * mine:.1f} against {100 * loops:.1f}",
            )
        )
    return rows, claims


def _as_released(X: np.ndarray, clicks: np.ndarray) -> torch.nn.Module:
    """Lists of Python numbers are gathered one by one, then laid out position by position; one pass of the network."""
    documents, clicked, rng = X.reshape(-1, FEATURES).tolist(), clicks.tolist(), random.Random(0)
    used = np.flatnonzero(clicks.any(1)).tolist()

    def fed() -> tuple[list[torch.Tensor], torch.Tensor]:
        features: list[list[float]] = []
        places, labels = [], []
        for _ in range(min(BATCH, LISTS)):
            i = rng.choice(used)
            places.append([len(features) + k for k in range(PLACES)])
            features.extend(documents[i * PLACES + k] for k in range(PLACES))
            labels.append(clicked[i])
        x = torch.as_tensor(np.array(features, dtype=np.float32))
        shown = [x[np.array([row[k] for row in places])] for k in range(PLACES)]
        return shown, torch.as_tensor(np.array([[row[k] for row in labels] for k in range(PLACES)], dtype=np.float32).T)

    def step(net: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        shown, c = fed()
        return torch.cat(net(torch.cat(shown)).split(len(c)), 1), c

    return _trained(step)


def _by_position(X: np.ndarray, clicks: np.ndarray) -> torch.nn.Module:
    """A pass of the network for each position: one document of every list at a time."""
    x, c, rng = torch.as_tensor(X).float(), torch.as_tensor(clicks).float(), np.random.default_rng(0)
    used = np.flatnonzero(clicks.any(1))

    def step(net: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        batch = rng.choice(used, size=min(BATCH, LISTS))
        return torch.cat([net(x[batch, k]) for k in range(PLACES)], 1), c[batch]

    return _trained(step)


def _trained(step: Callable[[torch.nn.Module], tuple[torch.Tensor, torch.Tensor]]) -> torch.nn.Module:
    """Examination, weights and loss position by position; ``step`` gives a batch's scores and clicks."""
    torch.manual_seed(0)
    net, examine = mlp(FEATURES, HIDDEN), torch.nn.Linear(PLACES, 1)
    optimizers = [torch.optim.Adagrad(m.parameters(), lr=rate) for m, rate in ((net, RATE), (examine, FREE_RATE))]
    for _ in range(STEPS):
        f, c = step(net)
        shown = [torch.zeros(len(c), PLACES) for _ in range(PLACES)]
        for k in range(PLACES):
            shown[k][:, k] = 1
        g = torch.cat([examine(one) for one in shown], 1)
        losses = []
        for z, other in ((f, g), (g, f)):
            p = other.softmax(1).detach()
            weights = torch.stack([p[:, 0] / p[:, k] for k in range(PLACES)], 1).clamp(max=100)
            total = torch.stack([c[:, k] * weights[:, k] for k in range(PLACES)], 1)
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
    drawn: dict[str, Any] = {}

    def ours() -> None:
        drawn["ours"] = model.simulate(a_k, seed=0)

    def loop() -> None:
        rng, rows = random.Random(0), a_k.tolist()
        drawn["loop"] = [[int(rng.random() < theta[k] * row[k]) for k in range(PLACES)] for row in rows]

    a, b = alternate(ours, loop, times=15)
    gap = float(np.abs(np.mean(drawn["ours"], 0) - np.mean(drawn["loop"], 0)).max())
    return [
        ["clicks, position-based", f"{1e3 * a:.1f}ms", "a loop over documents", f"{1e3 * b:.0f}ms", f"{b / a:.0f}x"]
    ], [
        Claim(
            text="simulation at least 50x faster than a loop, click rates equal up to five standard errors",
            held=b / a >= 50 and gap < 5 * np.sqrt(0.5 / DRAWN),
            found=f"{b / a:.0f}x, rates differ by at most {gap:.4f}",
        )
    ]
