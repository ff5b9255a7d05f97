"""Speed of the prompting family, side by side: depths, the consensus game, scoring with shared prefixes, LoRe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rankwise.bench import Recipe
from rankwise.bench.shared.evidence import Claim, Evidence
from rankwise.bench.shared.frozen import polarity
from rankwise.bench.speed.core import Measured, alternate, side_by_side, timed
from rankwise.events import OnEvent
from rankwise.prompting import EquilibriumRanker, TextDepth
from rankwise.prompting.dq_lore import lore
from rankwise.prompting.examples import few_shot
from rankwise.prompting.transformers_model import TransformersModel

RECIPE = Recipe(
    name="speed",
    part="prompting",
    about="prompting: speed ratios",
    smoke={"TEXTS": 60, "MANY": 300, "QUESTIONS": 4, "GAMES": 2, "PROMPTS": 1, "QUERIES": 10},
    control=False,
)

TEXTS, MANY = 5_000, 100_000  # embeddings
QUESTIONS, GAMES = 1_000, 20  # at once, and in the loop
PROMPTS = 8
QUERIES = 1_000  # of LoRe


def run(out: Path, *, on_event: OnEvent | None = None) -> Evidence:
    """Time every pair; the inputs are fixed."""
    return side_by_side(
        {"depth": depth, "equilibrium": equilibrium, "prefixes": prefixes, "LoRe": reranking},
        on_event,
        recipe="prompting_speed",
        title="Prompting: speed ratios",
        command="rankwise bench speed --part prompting",
        setting=f"{torch.get_num_threads()} threads, one process; depths: ours the median of five runs, the released "
        "ones once; the game once; the others medians of three alternating runs",
    )


def depth() -> Measured:
    """Depths of embeddings within themselves against the released package, and of many by themselves."""
    from tte_depth import StatDepth

    rng = np.random.default_rng(0)
    X = rng.normal(size=(TEXTS, 384)) + rng.normal(size=384)
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    rows, claims = [], []
    for distance, least in (("cosine", 1000), ("chord", 20)):
        ours, found = timed(lambda d=distance: TextDepth(d).fit(X).depths_, 5)
        theirs, expected = timed(lambda d=distance: StatDepth(d).depths(X), 1)
        gap = float(np.abs(found - np.asarray(expected)).max())
        rows.append(_row(f"depth, {distance}, {TEXTS:,} texts", ours, "tte-depth", theirs))
        claims.append(
            Claim(
                text=f"depth, {distance}: at least {least}x faster than tte-depth, equal to 1e-9",
                held=theirs / ours >= least and gap <= 1e-9,
                found=f"{theirs / ours:,.0f}x, largest difference {gap:.1g}",
            )
        )
    many = rng.normal(size=(MANY, 384)).astype(np.float32)
    seconds, _ = timed(lambda: TextDepth().fit(many).depths_, 3)
    rows.append([f"depth, cosine, {MANY:,} texts", f"{seconds:.2f}s", "-", "-", "-"])
    claims.append(Claim(text="100,000 x 384 cosine depths below 1 s", held=seconds < 1, found=f"{seconds:.2f} s"))
    return rows, claims


def equilibrium() -> Measured:
    """Questions of 10 candidates at once against a loop over questions, which is timed on a few."""
    g, ranker = torch.Generator().manual_seed(0), EquilibriumRanker(tol=0)
    generator = torch.randn(QUESTIONS, 2, 10, generator=g, dtype=torch.float64)
    discriminator = torch.randn(QUESTIONS, 10, 2, generator=g, dtype=torch.float64)
    ours, together = timed(lambda: ranker.rank(generator, discriminator), 1)

    def loop() -> list[Tensor]:
        return [ranker.rank(generator[i : i + 1], discriminator[i : i + 1]).policy_d[0] for i in range(GAMES)]

    theirs, alone = timed(loop, 1)
    theirs *= QUESTIONS / GAMES
    gap = float((together.policy_d[:GAMES] - torch.stack(alone)).abs().max())
    what = f"consensus game, {QUESTIONS:,} x 10, 5,000 iterations"
    return [_row(what, ours, f"loop (from {GAMES} questions)", theirs)], [
        Claim(
            text="the consensus game at least 20x faster than a loop over questions, equal to 1e-9",
            held=theirs / ours >= 20 and gap <= 1e-9,
            found=f"{theirs / ours:.0f}x, largest difference {gap:.1g}",
        )
    ]


def prefixes() -> Measured:
    """Four candidates after four examples, with the prompt computed once and with every sequence in full."""
    model, shots = TransformersModel("smollm2"), polarity("movies", "train", 4)
    queries = polarity("movies", "test", PROMPTS)
    prompts = [few_shot(q.question, shots, style="text").prompt for q in queries]
    given = [[" negative", " positive", " neither of the two", " I do not know"]] * len(prompts)

    def scored(share: bool) -> list[float]:
        model.share_prefixes = share
        return [s.total for row in model.score(prompts, given) for s in row]

    ours, theirs = alternate(lambda: scored(True), lambda: scored(False))
    gap = float(np.abs(np.subtract(scored(True), scored(False))).max())
    return [_row(f"SmolLM2 scores, {PROMPTS} prompts x 4 candidates", ours, "without the shared cache", theirs)], [
        Claim(
            text="scoring with shared prefixes at least 2x faster, equal to 1e-3",
            held=theirs / ours >= 2 and gap <= 1e-3,
            found=f"{theirs / ours:.1f}x, largest difference {gap:.1g}",
        )
    ]


def reranking() -> Measured:
    """LoRe for queries of 64 candidates, against an SVD a query."""
    g = torch.Generator().manual_seed(0)
    query, candidates = torch.randn(QUERIES, 384, generator=g), torch.randn(QUERIES, 64, 384, generator=g)

    def one_by_one() -> np.ndarray:
        out = []
        for q, c in zip(query.numpy(), candidates.numpy(), strict=True):
            X = np.vstack([c, q])
            X = X - X.mean(0)
            Z = X @ np.linalg.svd(X, full_matrices=False)[2][:16].T
            out.append(Z[:-1] @ Z[-1])
        return np.array(out)

    ours, theirs = alternate(lambda: lore(query, candidates, 16), one_by_one)
    gap = float(np.abs(lore(query, candidates, 16).numpy() - one_by_one()).max())
    return [_row(f"LoRe, {QUERIES:,} queries of 64 candidates", ours, "an SVD a query", theirs)], [
        Claim(
            text="LoRe of 1,000 queries in at most 1 s, equal to 1e-3",
            held=ours <= 1 and gap <= 1e-3,
            found=f"{ours:.2f} s, {theirs / ours:.1f}x an SVD a query, largest difference {gap:.1g}",
        )
    ]


def _row(what: str, ours: float, against: str, theirs: float) -> list[str]:
    return [what, f"{ours:.3f}s", against, f"{theirs:.1f}s", f"{theirs / ours:,.1f}x"]
