"""CLIP-LIT's claim: learned prompts, round after round, give dark pictures their light without pairs.

Photographs of the same scenes at several exposures (``--data FOLDER`` with ``exposure/pool``). For each seed a third of
the scenes is held out; of the others dark shots and well-lit ones are learned from, unpaired. Judged on held-out scenes
that have both, against the well-lit shot, and on held-out well-lit shots with a foreground darkened by hand, against
themselves. Gamma and the curve bring each picture's mean light to that of the well-lit training pictures, which is more
than the learned arms are told; histograms and CLAHE need nothing. Power first: the best gamma of each picture must gain
much, or there is nothing to win.

The bundled CLIP sees 32 x 32 pixels and learned from CIFAR-10: it knows light and little else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from rankwise.bench import Recipe
from rankwise.bench.shared.evidence import Claim, Evidence, greater, plus_minus
from rankwise.bench.shared.kept import kept_runs
from rankwise.bench.shared.measured import Runs
from rankwise.bench.shared.perceptual import perceptual_distance
from rankwise.events import OnEvent, environment
from rankwise.files import whole_file
from rankwise.models import load_tokenizer
from rankwise.report.plots.distilled import tile_sheet
from rankwise.report.plots.shared import save
from rankwise.vision import BacklitEnhancer
from rankwise.vision.lit.prompts import encoded
from rankwise.vision.lit.settings import PRESETS
from rankwise.vision.lit.training import Training

RECIPE = Recipe(
    name="clip-lit",
    part="exposures",
    about="CLIP-LIT on scenes of several exposures, against gamma, CLAHE, a curve, hand prompts and shuffled labels",
    spreads=True,
    smoke={
        "SOURCE": "crops", "SIDE": 64, "STEPS": {"first_steps": 20, "network_steps": 4, "prompt_steps": 4}, "seeds": 1,
        "ROUNDS": 2, "PICTURES": 4,
    },
    figures=(("held-out scenes: as they are, by five ways, and as they should be", "clip_lit.png"),),
)  # fmt: skip

MODEL, SOURCE = "clip-cifar10", "exposure"
SIDE = 256  # pixels of pictures
DARK, WELL = (0.05, 0.25), (0.38, 0.62)  # mean luma of the two kinds
SAME = 0.8  # correlation of ranks of luma from which two shots in a row are of one scene
HELD_OUT = 3  # one scene in so many
ROUNDS = 3
STEPS: dict[str, int] = {}  # instead of the preset's
PICTURES = 40  # at most, of each kind, to judge on
HAND = ("a backlit photo", "a well-lit photo")
LADDER = (1.0, 0.5, 0.25, 0.125)  # exposures, in linear light
MOST = 100.0  # dB, of equal pictures too
POWER = 3.0  # dB that the best gamma must gain

FULL, FIRST, BY_HAND, SHUFFLED = "CLIP-LIT", "one round", "hand prompts", "labels shuffled"
SUMMED = "identity loss summed over the batch"  # as released; on whole batches that is its mean, weighted by their size
LEARNED = (FULL, FIRST, SUMMED, BY_HAND, SHUFFLED)
INPUT, GAMMA, EQUAL, CLAHE, CURVE, BEST = (
    "input",
    "gamma",
    "histogram",
    "CLAHE",
    "curve",
    "best gamma (knows the truth)",
)
PLAIN = (INPUT, GAMMA, EQUAL, CLAHE, CURVE, BEST)
TESTS = ("scenes", "backlit")
MEASURES = {  # what a column is called, and digits
    "psnr": ("PSNR (dB)", 2), "ssim": ("SSIM", 3), "perceptual": ("perceptual distance", 3),
    "piqe": ("PIQE, no reference", 1),
}  # fmt: skip
SHOWN = 6  # pictures that are drawn
Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One arm of one seed, with everything that a process of its own needs."""

    arm: str
    seed: int
    pictures: Path
    rounds: int
    steps: tuple[tuple[str, int], ...]
    most: int


def measure(out: Path, *, data: Path | None = None, seeds: int = 5, on_event: OnEvent | None = None) -> Runs:
    """Every arm of every seed (what is there is read back)."""
    if find_spec("skimage") is None:
        raise ImportError("pictures are judged by scikit-image: pip install 'rankwise[vision]'")
    out.mkdir(parents=True, exist_ok=True)
    pictures = _prepared(out / "pictures.npz", data)
    size: dict[str, Any] = {"pictures": pictures, "rounds": ROUNDS, "steps": tuple(STEPS.items()), "most": PICTURES}
    asked = [Asked(arm=arm, seed=seed, **size) for seed in range(seeds) for arm in (*LEARNED, *PLAIN)]
    found = kept_runs(out / "runs.json", judged, {_name(a): a for a in asked}, on_event)
    save(drawn(pictures), out / "pictures.png")
    return found


def judge(found: Runs, *, seeds: int) -> Evidence:
    """The arms compared."""
    per_arm = {arm: [found[f"{arm} {s}"] for s in range(seeds)] for arm in (*LEARNED, *PLAIN)}
    measures = [m for m in MEASURES if m in per_arm[INPUT][0][TESTS[0]]]  # PIQE only where it is installed
    rows = [
        [arm, *(plus_minus((float(np.mean(r[t][m])) for r in runs), 1, MEASURES[m][1]) for t in TESTS
                for m in measures)]
        for arm, runs in per_arm.items()
    ]  # fmt: skip
    counts = [found[f"{FULL} {s}"]["counts"] for s in range(seeds)]
    history = np.mean([[[h[k] for k in ("dark", "result", "well")] for h in found[f"{FULL} {s}"]["held"]]
                       for s in range(seeds)], 0)  # fmt: skip
    rounds = "; ".join(f"{i}: {d:.2f} / {r:.2f} / {w:.2f}" for i, (d, r, w) in enumerate(history))
    return Evidence(
        recipe="clip-lit",
        title="CLIP-LIT: light without pairs",
        command=f"rankwise bench clip-lit --data FOLDER --seeds {seeds} --jobs 2",
        setting=f"{MODEL}, preset small, {ROUNDS} rounds; {SOURCE}, {SIDE} x {SIDE}; {seeds} draws of held-out scenes; "
        f"about {np.mean([c['dark'] for c in counts]):.0f} dark and {np.mean([c['well'] for c in counts]):.0f} "
        f"well-lit pictures learned from, {np.mean([c['scenes'] for c in counts]):.0f} pairs and "
        f"{np.mean([c['backlit'] for c in counts]):.0f} darkened pictures judged. "
        "Perceptual distance: LPIPS without learned weights, by the bundled ViT; PIQE (where pypiqe is installed) sees "
        "distortions without the truth; less is better in both. "
        f"Probability of the backlit prompt on held-out dark pictures, results and well-lit ones, by round: {rounds}",
        header=["arm", *(f"{MEASURES[m][0]}, {where}" for where in ("held-out scenes", "darkened foreground")
                         for m in measures)],
        rows=rows,
        claims=_claims(per_arm),
        environment=environment("fp32", 1),
    )  # fmt: skip


def _name(asked: Asked) -> str:
    return f"{asked.arm} {asked.seed}"


# --- pictures


def _prepared(path: Path, data: Path | None) -> Path:
    """Pictures and the scene of each, as one file; written once."""
    if not path.exists():
        shots = _crops() if SOURCE == "crops" else _pool(data)
        small = np.stack([_ranks(p) for p in shots])
        alike = (small[1:] * small[:-1]).mean(1) > SAME
        scenes = np.concatenate([[0], np.cumsum(~alike)])
        with whole_file(path) as draft, draft.open("wb") as stream:
            np.savez(stream, pictures=shots, scenes=scenes)
    return path


def _pool(data: Path | None) -> Pixels:
    """Photographs in the order of their numbers, which keeps the shots of a scene together."""
    from rankwise.data.images import read_image
    from rankwise.data.images.decoding import resized

    if data is None or not (data / "exposure" / "pool").is_dir():
        raise ValueError("photographs at several exposures are needed: --data FOLDER with exposure/pool")
    files = sorted((data / "exposure" / "pool").glob("*.jpg"), key=lambda p: int(p.stem))
    return np.stack([resized(read_image(p), SIDE) for p in files])


def _crops() -> Pixels:
    """Crops of scikit-learn's photographs, each dark and then as it is: for a try without data."""
    from sklearn.datasets import load_sample_images

    shots = []
    for photograph in load_sample_images().images:
        for top in range(0, photograph.shape[0] - SIDE + 1, SIDE):
            for left in range(0, photograph.shape[1] - SIDE + 1, SIDE):
                crop = photograph[top : top + SIDE, left : left + SIDE]
                bright = crop.astype(float) * 128 / max(crop.mean(), 1)
                bright = bright.clip(0, 255).astype(np.uint8)
                shots += [_exposed(bright, 0.05), bright]
    return np.stack(shots)


def _luma(pictures: NDArray[Any]) -> NDArray[Any]:
    return pictures @ np.array([0.299, 0.587, 0.114])  # of BT.601, as the network sees light


def _ranks(picture: Pixels) -> NDArray[np.float64]:
    """Ranks of luma in a grid of 16 x 16, of mean 0 and deviation 1: what exposure leaves as it is."""
    cell = picture.shape[0] // 16
    grid = _luma(picture[: 16 * cell, : 16 * cell]).reshape(16, cell, 16, cell).mean((1, 3)).ravel()
    ranks = grid.argsort(kind="stable").argsort(kind="stable").astype(float)
    return (ranks - ranks.mean()) / ranks.std()


def _exposed(picture: Pixels, exposure: float) -> Pixels:
    """With so much of the light, in linear light (gamma 2.2)."""
    return (255 * ((picture / 255) ** 2.2 * exposure) ** (1 / 2.2)).round().astype(np.uint8)


def _darkened(picture: Pixels, rng: np.random.Generator) -> Pixels:
    """A soft ellipse, the foreground, with a tenth of its light."""
    n = picture.shape[0]
    y, x = np.mgrid[0:n, 0:n] / n - 0.5
    cx, cy, rx, ry = *rng.uniform(-0.15, 0.15, 2), *rng.uniform(0.2, 0.4, 2)
    inside = 1 / (1 + np.exp(12 * (np.hypot((x - cx) / rx, (y - cy) / ry) - 1)))
    light = (picture / 255) ** 2.2 * (1 - 0.9 * inside[..., None])
    return (255 * light ** (1 / 2.2)).round().astype(np.uint8)


@dataclass(frozen=True)
class Split:
    """What a seed learns from and is judged on."""

    dark: Pixels
    well: Pixels
    pairs: dict[str, list[tuple[Pixels, Pixels]]]
    held_dark: Pixels
    held_well: Pixels


def split(asked: Asked) -> Split:
    """Scenes dealt by the seed."""
    held = np.load(asked.pictures)
    pictures, scenes = held["pictures"], held["scenes"]
    rng = np.random.default_rng(asked.seed)
    away = np.isin(scenes, rng.permutation(scenes.max() + 1)[: (scenes.max() + 1) // HELD_OUT])
    light = _luma(pictures).mean((1, 2)) / 255
    kinds = {name: (light > low) & (light < high) for name, (low, high) in (("dark", DARK), ("well", WELL))}
    both = [s for s in np.unique(scenes[away]) if all((kinds[k] & (scenes == s)).any() for k in kinds)]
    chosen = {s: [np.flatnonzero(kinds[k] & (scenes == s))[0] for k in ("dark", "well")] for s in both}
    well = pictures[away & kinds["well"]][: asked.most]
    return Split(
        dark=pictures[~away & kinds["dark"]],
        well=pictures[~away & kinds["well"]],
        pairs={
            "scenes": [(pictures[d], pictures[w]) for d, w in chosen.values()][: asked.most],
            "backlit": [(_darkened(w, rng), w) for w in well],
        },
        held_dark=pictures[away & kinds["dark"]][: asked.most],
        held_well=well,
    )


# --- arms


class _Hand(nn.Module):
    """Prompts as a person writes them; ``rows`` move nothing."""

    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.zeros(1))
        tokenizer = load_tokenizer(MODEL)
        table = clip.text_model.embeddings.token_embedding
        with torch.no_grad():
            rows = [table(torch.tensor([tokenizer(text)["input_ids"]])) for text in HAND]
            self.features = torch.cat([encoded(clip, r, r.shape[1] - 1) for r in rows])

    def forward(self, clip: Any) -> Tensor:
        return self.features + 0 * self.rows


class _HandTraining(Training):
    """A network by hand-written prompts, which stand still."""

    def _start_prompts(self) -> None:
        self.prompts: Any = _Hand(self.clip)

    def _prompt_stage(self, turn: int, results: list[Tensor]) -> None:
        pass


def judged(asked: Asked) -> dict[str, Any]:
    """Each measure on both tests; of learned arms also scores on held-out pictures, round by round."""
    parts = split(asked)
    if asked.arm in PLAIN:
        return _measured(asked, _plain(asked.arm, parts), parts)
    dark, well = parts.dark, parts.well
    if asked.arm == SHUFFLED:
        both, rng = np.concatenate([dark, well]), np.random.default_rng(asked.seed)
        both = both[rng.permutation(len(both))]
        dark, well = both[: len(dark)], both[len(dark) :]
    rounds = 1 if asked.arm == FIRST else asked.rounds
    changes: dict[str, Any] = {"rounds": rounds, "seed": asked.seed, **dict(asked.steps)}
    if asked.arm == SUMMED:
        small = PRESETS["small"]
        changes["identity_weight"] = small.identity_weight * small.batch_network
    enhancer = BacklitEnhancer(MODEL, preset="small", **changes)
    tower = enhancer.tower
    kind = _HandTraining if asked.arm == BY_HAND else _Remembering
    training = kind(tower, enhancer._told["tokens"], settings=enhancer.settings)
    if isinstance(training, _Remembering):
        training.held = parts
    training.run(dark, well)
    enhancer.network, enhancer.prompts = training.network.eval(), training.prompts
    result = _measured(asked, lambda picture, _: enhancer.enhance(picture), parts)
    result["counts"] = {"dark": len(dark), "well": len(well), **{t: len(p) for t, p in parts.pairs.items()}}
    if isinstance(training, _Remembering):
        result["held"] = training.seen
        result["ladder"] = _ladder(enhancer, parts)
    return result


class _Remembering(Training):
    """Scores of held-out pictures too, after each round."""

    held: Split
    seen: list[dict[str, float]]

    def _remember(self, results: Tensor) -> None:
        super()._remember(results)
        enhancer = BacklitEnhancer(MODEL, preset=self.settings)
        enhancer._tower, enhancer.network, enhancer.prompts = self.tower, self.network, self.prompts
        shown = {"dark": self.held.held_dark, "well": self.held.held_well}
        shown["result"] = np.stack([enhancer.enhance(p) for p in self.held.held_dark])
        self.seen = [*getattr(self, "seen", []), {k: float(enhancer.score(v).mean()) for k, v in shown.items()}]


def _ladder(enhancer: BacklitEnhancer, parts: Split) -> float:
    """Share of held-out well-lit pictures whose score rises with every halving of the light."""
    steps = np.stack([enhancer.score(np.stack([_exposed(p, e) for p in parts.held_well])) for e in LADDER])
    return float((np.diff(steps, axis=0) > 0).all(0).mean())


def _plain(arm: str, parts: Split) -> Callable[[Pixels, Pixels], NDArray[Any]]:
    """A baseline: of a picture and, for the one that knows it, the truth."""
    from skimage import exposure

    aim = float(_luma(parts.well).mean() / 255)

    def light(picture: NDArray[Any]) -> float:
        return float(_luma(picture).mean())

    def bisected(made: Callable[[float], NDArray[Any]], low: float, high: float) -> NDArray[Any]:
        """The one whose mean light is the well-lit pictures'; ``made`` gets lighter with its number."""
        for _ in range(20):
            middle = (low + high) / 2
            low, high = (middle, high) if light(made(middle)) < aim else (low, middle)
        return made((low + high) / 2)

    def curve(x: NDArray[Any], a: float) -> NDArray[Any]:
        for _ in range(8):
            x = x + a * x * (1 - x)
        return x

    def best(picture: Pixels, truth: Pixels) -> NDArray[Any]:
        powers = [(picture / 255) ** g for g in np.geomspace(0.15, 1, 24)]
        return min(powers, key=lambda x: float(np.square(x - truth / 255).mean()))

    ways: dict[str, Callable[[Pixels, Pixels], NDArray[Any]]] = {
        INPUT: lambda p, _: p / 255,
        GAMMA: lambda p, _: bisected(lambda g: (p / 255) ** (1 / g), 1.0, 8.0),
        EQUAL: lambda p, _: exposure.equalize_hist(p),
        CLAHE: lambda p, _: exposure.equalize_adapthist(p),
        CURVE: lambda p, _: bisected(lambda a: curve(p / 255, a), 0.0, 1.0),
        BEST: best,
    }
    return lambda picture, truth: (255 * ways[arm](picture, truth)).round().astype(np.uint8)


def _measured(asked: Asked, enhance: Callable[[Pixels, Pixels], NDArray[Any]], parts: Split) -> dict[str, Any]:
    """Of each test, every measure of every picture; the first seed's first results are kept to be seen."""
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    measures: dict[str, Callable[[Pixels, Pixels], Any]] = {
        "psnr": lambda t, r: min(peak_signal_noise_ratio(t, r, data_range=255), MOST),
        "ssim": lambda t, r: structural_similarity(t, r, channel_axis=2, data_range=255),
        "perceptual": perceptual_distance,
    }
    if find_spec("pypiqe") is not None:
        measures["piqe"] = lambda _, r: _blind(r)
    found = {}
    for test, pairs in parts.pairs.items():
        results = [(truth, enhance(before, truth)) for before, truth in pairs]
        found[test] = {name: [float(measure(t, r)) for t, r in results] for name, measure in measures.items()}
        if asked.seed == 0 and test == TESTS[0]:
            with whole_file(_shown(asked.pictures, asked.arm)) as draft, draft.open("wb") as stream:
                np.save(stream, np.stack(results[:SHOWN]))
    return found


def _blind(picture: Pixels) -> float:
    """PIQE, 0 (no distortion is seen) to 100; of a black picture 100."""
    from pypiqe import piqe

    return float(piqe(picture)[0]) if picture.any() else 100.0


def _shown(pictures: Path, arm: str) -> Path:
    """Where an arm's results lie beside their truths, ``(pictures, 2, height, width, 3)``."""
    return pictures.parent / f"shown-{(*LEARNED, *PLAIN).index(arm)}.npy"


def drawn(pictures: Path) -> Figure:
    """Held-out scenes as they are, by gamma, a curve and CLIP-LIT (whole, one round, labels shuffled), and as they
    should be."""
    arms = {arm: np.load(_shown(pictures, arm)) for arm in (INPUT, GAMMA, CURVE, FULL, FIRST, SHUFFLED)}
    rows = [*(found[:, 1] for found in arms.values()), arms[INPUT][:, 0]]
    return tile_sheet(np.concatenate(rows), [*arms, "well-lit shot"], inches=1.2)


def _claims(runs: dict[str, list[dict[str, Any]]]) -> list[Claim]:
    def of(arm: str, test: str) -> NDArray[Any]:
        return np.array([np.mean(r[test]["psnr"]) for r in runs[arm]])

    def gains(better: str, worse: str, text: str, *, test: str = "scenes", control: bool = False) -> Claim:
        """More PSNR in the mean over seeds."""
        return greater(text, of(better, test), of(worse, test), control=control, unit="dB", scale=1)

    power = float((of(BEST, "scenes") - of(INPUT, "scenes")).mean())
    ends = [r["held"][-1] for r in runs[FULL]]
    ladder = [r["ladder"] for r in runs[FULL]]
    wrong = [r["ladder"] for r in runs[SHUFFLED]]
    return [
        Claim(
            text=f"control: the best gamma of each picture gains at least {POWER:g} dB: there is something to win",
            held=power >= POWER,
            found=f"{power:+.2f} dB",
            control=True,
        ),
        gains(FULL, INPUT, "held-out scenes come nearer to their well-lit shots"),
        gains(FULL, INPUT, "and darkened foregrounds to what they were", test="backlit"),
        gains(FULL, GAMMA, "nearer than by gamma to the right mean light"),
        gains(FULL, EQUAL, "than by equalised histograms"),
        gains(FULL, CLAHE, "than by CLAHE"),
        gains(FULL, CURVE, "than by a curve to the right mean light, as Zero-DCE's"),
        gains(FULL, GAMMA, "on darkened foregrounds nearer than by gamma", test="backlit"),
        gains(FULL, BY_HAND, "than by prompts written by hand"),
        gains(FULL, FIRST, "rounds of prompts add to the first"),
        gains(FULL, SUMMED, "the mean of the identity loss is better than its sum over the batch, as released"),
        gains(FULL, SHUFFLED, "control: with labels shuffled less is gained", control=True),
        Claim(
            text="after the last round scores of held-out pictures are in order: dark, results, well-lit",
            held=all(e["dark"] > e["result"] > e["well"] for e in ends),
            found=", ".join(f"{e['dark']:.2f} / {e['result']:.2f} / {e['well']:.2f}" for e in ends),
        ),
        Claim(
            text="scores rise with every halving of the light in at least 90 % of held-out pictures, in every seed",
            held=np.min(ladder) >= 0.9,
            found=f"{100 * np.min(ladder):.0f} % at least, {100 * np.mean(ladder):.0f} % on average (labels shuffled: "
            f"{100 * np.mean(wrong):.0f} %; by chance 4 %)",
        ),
    ]
