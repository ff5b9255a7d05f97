"""ViDA's claim: a stream of changing corruptions is followed by two branches in balance, better than by other means.

`vit-cifar10` on pictures of CIFAR-10 that are corrupted in turn in fifteen ways at severity 5, round after round,
without a reset. Each seed has an order of corruptions of its own (the first the usual one), of pictures, and draws of
its own; all arms see the same, so that differences are paired by seed. The control is homeostasis the wrong way round.
The model has no batch norms: TENT moves the scales and shifts of its layer norms.

The rates, the averages' α and the batch were chosen on other pictures, with branches in no balance.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankwise.bench import Recipe
from rankwise.bench.shared.evidence import Claim, Evidence, greater, paired, plus_minus
from rankwise.bench.shared.kept import kept_runs
from rankwise.bench.shared.measured import Runs
from rankwise.continual import CoTTA, Tent, TestTimeAdapter, warm_up
from rankwise.continual.stream import StreamAdapter
from rankwise.data import read_images
from rankwise.data.corruptions import corrupt
from rankwise.events import OnEvent, environment
from rankwise.files import whole_file
from rankwise.models import load, load_image_processor
from rankwise.tuning import VidaConfig

RECIPE = Recipe(
    name="vida",
    part="stream",
    about="ViDA on CIFAR-10-C's corruptions in turn, three rounds, against TENT, CoTTA and its own parts",
    spreads=True,
    smoke={
        "PICTURES": 8, "CLEAN": 8, "BATCH": 8, "ROUNDS": 1, "WARMED": 2, "VIEWS": 2, "SOURCE": "digits", "seeds": 1,
        "KINDS": 2,
    },
)  # fmt: skip

MODEL, SOURCE = "vit-cifar10", "cifar10"
PICTURES, CLEAN, BATCH = 160, 1000, 20  # of each corruption; clean ones, before and after; of a step
ROUNDS, SEVERITY = 3, 5
ORDER = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
    "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
KINDS = len(ORDER)  # the first so many
CHOSEN = 300  # pictures on which rates were chosen, left out
WARMED = 200  # steps of the warm-up, on training pictures
VIEWS = 8  # of CoTTA, where it averages them
STEP: dict[str, Any] = {"lr": 1e-3, "lr_vida": 1e-3, "alpha": 0.99, "alpha_vida": 0.99, "restore": 0.01, "n_aug": 4}
LOW, HIGH = 1, 128

FULL, PLAIN, WRONG, SOURCE_ARM, WARM = "ViDA", "no homeostasis", "inverted", "source", ", warmed up"
AVERAGED = "CoTTA, views averaged"  # below the published threshold, which is where nearly all batches lie
BASELINES = ("TENT", "CoTTA", AVERAGED)
# settings and ranks of each arm of ours
OURS: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "low only": ({"homeostasis": "off"}, (LOW, 0)),
    "high only": ({"homeostasis": "off"}, (0, HIGH)),
    "one branch of both ranks": ({"homeostasis": "off"}, (0, LOW + HIGH)),
    PLAIN: ({"homeostasis": "off"}, (LOW, HIGH)),
    FULL: ({}, (LOW, HIGH)),
    "as released (wide scale 1)": ({"compat": "released"}, (LOW, HIGH)),
    WRONG: ({"homeostasis": "inverted"}, (LOW, HIGH)),
}
ARMS = (SOURCE_ARM, *BASELINES, *OURS, SOURCE_ARM + WARM, PLAIN + WARM, FULL + WARM)
PAPER = "(ImageNet-C, ViT-B)"  # where the paper's figures are from
HURT = 10.0  # points of error that the stream must add for the recipe to tell


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One arm over one stream, with everything that a process of its own needs."""

    arm: str
    seed: int
    pictures: Path
    kinds: int
    batch: int
    rounds: int
    warmed: int
    views: int


def measure(out: Path, *, data: Path | None = None, seeds: int = 5, on_event: OnEvent | None = None) -> Runs:
    """Every arm over every stream (what is there is read back)."""
    out.mkdir(parents=True, exist_ok=True)
    pictures = _prepared(out / "pictures.npz", data)
    size = {"kinds": KINDS, "batch": BATCH, "rounds": ROUNDS, "warmed": WARMED, "views": VIEWS}
    asked = [Asked(arm=arm, seed=seed, pictures=pictures, **size) for seed in range(seeds) for arm in ARMS]
    return kept_runs(out / "runs.json", streamed, {_name(a): a for a in asked}, on_event)


def judge(found: Runs, *, seeds: int) -> Evidence:
    """The arms compared."""
    errors = {arm: np.array([found[f"{arm} {s}"]["errors"] for s in range(seeds)]) for arm in ARMS}  # (seeds, segments)
    clean = {arm: np.array([found[f"{arm} {s}"]["clean"] for s in range(seeds)]) for arm in ARMS}
    before = clean[SOURCE_ARM]
    rows = [
        [
            arm,
            plus_minus(e.mean(1), digits=2),
            " / ".join(f"{100 * part.mean():.1f}" for part in np.split(e, ROUNDS, 1)),
            "-" if arm == SOURCE_ARM else str(paired(errors[SOURCE_ARM].mean(1), e.mean(1))),
            plus_minus(clean[arm], digits=2),
        ]
        for arm, e in errors.items()
    ]
    unsure = np.concatenate([found[f"{FULL} {s}"]["uncertainty"] for s in range(seeds)])
    above = np.mean(unsure >= TestTimeAdapter.presets["ours"].theta)
    return Evidence(
        recipe="vida",
        title="ViDA: following a stream of corruptions",
        command=f"rankwise bench vida --data cifar10 --seeds {seeds} --jobs 2",
        setting=f"{MODEL} on {SOURCE}, {PICTURES} pictures of each of {KINDS} corruptions at severity {SEVERITY}, "
        f"{ROUNDS} rounds, no reset, batches of {BATCH}; {seeds} orders; ViDA: ranks {LOW} and {HIGH}, "
        f"{', '.join(f'{k} {v}' for k, v in STEP.items())}; warm-up: {WARMED} steps on clean training pictures; CoTTA: "
        f"threshold .1, and .92 with {VIEWS} views; bfloat16. Uncertainty of batches: {np.median(unsure):.3f}, from "
        f"{unsure.min():.3f} to {unsure.max():.3f}; at or above Θ: {above:.0%}",
        header=["arm", "error (%)", "by round", "less error than the source model", "clean error afterwards (%)"],
        rows=rows,
        claims=_claims(errors, clean, before),
        environment=environment("bf16", 1),
        extra={"corruptions": list(ORDER[:KINDS])},
    )


def _name(asked: Asked) -> str:
    return f"{asked.arm} {asked.seed}"


def _prepared(path: Path, data: Path | None) -> Path:
    """Corrupted and clean test pictures, and training pictures, as one file; written once."""
    if not path.exists():
        data = data if SOURCE == "cifar10" else None
        images = read_images(SOURCE, split="test", data=data)
        known = set(images.head(CHOSEN).digests) if len(images) > 2 * CHOSEN else set()
        test = images.where(lambda i: images.digests[i] not in known).head(max(CLEAN, PICTURES)).stacked(32)
        train = read_images(SOURCE, split="train", data=data).head(WARMED * BATCH).stacked(32)
        arrays = {"clean": _array(test), "labels": test.labels, "train": _array(train), "train_labels": train.labels}
        arrays |= {k: corrupt(_array(test)[:PICTURES], k, severity=SEVERITY) for k in ORDER[:KINDS]}
        with whole_file(path) as draft, draft.open("wb") as stream:
            np.savez(stream, **{k: v for k, v in arrays.items() if v is not None})
    return path


def _array(images: Any) -> NDArray[np.uint8]:
    return images.store.array


def streamed(asked: Asked) -> dict[str, Any]:
    """Share of errors of each corruption in each round, by corruption; clean error afterwards; what was uncertain."""
    held = np.load(asked.pictures)
    rng, labels = np.random.default_rng(asked.seed), torch.from_numpy(held["labels"])
    adapter = _adapter(asked, held)
    order = np.arange(asked.kinds) if asked.seed == 0 else rng.permutation(asked.kinds)
    errors = np.zeros((asked.rounds, asked.kinds))
    uncertain = []
    for turn in range(asked.rounds):
        for kind in order:
            pixels = _pixels(held[ORDER[kind]])
            rows = torch.from_numpy(rng.permutation(len(pixels)))
            wrong = 0
            for part in rows.split(asked.batch):
                said = adapter(pixels[part], True)
                wrong += int((said.argmax(1) != labels[part]).sum())
                uncertain.append(adapter.uncertainty)
            errors[turn, kind] = wrong / len(pixels)
    clean = torch.cat([adapter(part, False).argmax(1) for part in _pixels(held["clean"]).split(100)])
    return {
        "errors": errors.ravel().tolist(),
        "clean": float((clean != labels).float().mean()),
        "uncertainty": [u for u in uncertain if u is not None],
        "skipped": adapter.skipped,
    }


def _pixels(pictures: NDArray[np.uint8]) -> Tensor:
    """As the model takes them."""
    processor: Any = load_image_processor(MODEL)
    mean, std = (torch.tensor(t).view(3, 1, 1) for t in (processor.image_mean, processor.image_std))
    return (torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255 - mean) / std


class _Arm:
    """A model, adapting or not, and what it last was uncertain of."""

    def __init__(self, model: Any, adapter: StreamAdapter | None) -> None:
        self.model, self.adapter = model, adapter
        self.uncertainty: float | None = None

    @property
    def skipped(self) -> int:
        return 0 if self.adapter is None else self.adapter.skipped

    def __call__(self, pixels: Tensor, adapt: bool) -> Tensor:
        if self.adapter is None:
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                return self.model(pixels).logits
        said = self.adapter.predict(pixels, adapt=adapt)
        last = getattr(self.adapter, "last", None)
        self.uncertainty = None if last is None else float(last.uncertainty)
        return said


def _adapter(asked: Asked, held: Any) -> _Arm:
    model: Any = load(MODEL).eval()
    processor: Any = load_image_processor(MODEL)
    model.set_attn_implementation("eager")  # under bfloat16 several times faster than the fused one on a CPU
    options: dict[str, Any] = {
        "mean": processor.image_mean, "std": processor.image_std, "precision": "bf16", "seed": asked.seed,
    }  # fmt: skip
    arm = asked.arm.removesuffix(WARM)
    if arm != asked.arm:
        model = _warmed(model, asked, held)
    if arm == SOURCE_ARM:
        return _Arm(model, None)
    if arm == "TENT":
        return _Arm(model, Tent(model, preset="ours", **options))
    if arm in ("CoTTA", AVERAGED):
        options |= {"n_aug": asked.views, "threshold": 0.1 if arm == "CoTTA" else 0.92}
        return _Arm(model, CoTTA(model, preset="ours", **options))
    settings, (low, high) = OURS[arm]
    if arm == asked.arm:
        options["adapter"] = VidaConfig(r=low, r_high=high)
    return _Arm(model, TestTimeAdapter(model, preset="ours", **options | STEP | settings))


def _warmed(model: Any, asked: Asked, held: Any) -> Any:
    """Branches trained on clean training pictures; the seed decides their start and the order."""
    torch.manual_seed(asked.seed)
    rows = torch.randperm(len(held["train"]), generator=torch.Generator().manual_seed(asked.seed))
    pixels, labels = _pixels(held["train"]), torch.from_numpy(held["train_labels"])
    batches = [(pixels[part], labels[part]) for part in rows.split(asked.batch)[: asked.warmed]]
    with torch.autocast("cpu", torch.bfloat16):
        return warm_up(model, batches, adapter=VidaConfig(r=LOW, r_high=HIGH))


def _claims(errors: dict[str, NDArray[Any]], clean: dict[str, NDArray[Any]], before: NDArray[Any]) -> list[Claim]:
    mean = {arm: e.mean(1) for arm, e in errors.items()}

    def less(better: str, worse: str, text: str, **told: Any) -> Claim:
        """Less error in the mean over seeds."""
        return greater(text, mean[worse], mean[better], **told)

    hurt = 100 * float(mean[SOURCE_ARM].mean() - before.mean())
    rounds = np.split(errors[FULL], ROUNDS, 1)
    drift = paired(rounds[0].mean(1), rounds[-1].mean(1))
    back = paired(clean[FULL], before)
    return [
        Claim(
            text=f"control: the stream hurts the source model by at least {HURT:.0f} points: there is something to win",
            held=hurt >= HURT,
            found=f"{hurt:+.1f} points: {100 * before.mean():.1f} % clean, {100 * mean[SOURCE_ARM].mean():.1f} % on it",
            control=True,
        ),
        less(FULL, SOURCE_ARM, "ViDA errs less than the source model", paper=f"43.4 against 55.8 % {PAPER}"),
        less(FULL, "TENT", "and less than TENT"),
        less(FULL, "CoTTA", "and less than CoTTA", paper="61.2 against 62.7 % (ImageNet-C, ResNet-50)"),
        less(
            "low only",
            SOURCE_ARM,
            "the narrow branch alone errs less than the source model",
            paper=f"by 4.6 points {PAPER}",
        ),
        less("high only", SOURCE_ARM, "and so does the wide one", paper=f"by 5.1 points {PAPER}"),
        less(PLAIN, "one branch of both ranks", "two branches err less than one of the same number of parameters"),
        less(FULL, PLAIN, "homeostasis errs less than scales of 1", paper=f"43.4 against 45.6 % {PAPER}"),
        less(
            FULL, WRONG, "control: the wrong way round it errs more", control=True, paper=f"46.3 against 43.4 % {PAPER}"
        ),
        less(FULL + WARM, FULL, "a warm-up on source data errs less than none"),
        less(FULL + WARM, SOURCE_ARM + WARM, "and adapting still adds to it"),
        Claim(
            text="the last round is no worse than the first, in the mean: nothing is lost",
            held=drift.mean >= 0,
            found=f"{drift} from the first round to the last",
        ),
        Claim(
            text="clean pictures afterwards: at most a point of error more than before, in the mean",
            held=back.mean <= 0.01,
            found=str(back),
        ),
    ]
