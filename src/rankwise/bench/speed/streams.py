"""Adapting while predicting, side by side: views all at once against a loop of ten passes, the published steps in
order."""

from __future__ import annotations

import copy
import math
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from peft import get_peft_model
from torch import Tensor

from rankwise.bench import Recipe
from rankwise.bench.shared.evidence import Claim, Evidence
from rankwise.continual import TestTimeAdapter
from rankwise.continual.augmentation import brightened, contrasted, raised, saturated, turned_hue
from rankwise.data import read_images
from rankwise.data.corruptions import CORRUPTIONS, corrupt
from rankwise.events import OnEvent, environment
from rankwise.models import load, load_image_processor
from rankwise.tuning import VidaConfig

RECIPE = Recipe(
    name="speed",
    part="streams",
    about="ViDA's adaptation: views all at once in bfloat16, against a loop of ten passes",
    smoke={"PICTURES": 8, "BATCH": 4, "KINDS": 1, "SOURCE": "digits"},
    control=False,
)

MODEL, SOURCE = "vit-cifar10", "cifar10"
PICTURES, BATCH, KINDS = 200, 40, 5  # of each corruption; of a step; corruptions, the first ones
VIEWS, FEWER = 10, 4
RATES: dict[str, Any] = {"lr": 1e-3, "lr_vida": 1e-3, "alpha": 0.99, "alpha_vida": 0.99, "restore": 0.01}
GAIN, EQUAL = 2.0, 0.01  # times; of the error


def run(out: Path, *, data: Path | None = None, on_event: OnEvent | None = None) -> Evidence:
    """Every arm over the same stream, batch by batch in turn; medians, errors, the claims."""
    begin, note = time.perf_counter(), on_event or (lambda *_: None)
    pixels, labels = _stream(data)
    processor: Any = load_image_processor(MODEL)
    colours: dict[str, Any] = {"mean": processor.image_mean, "std": processor.image_std}

    def ours(**options: Any) -> Any:
        model = load(MODEL).eval()
        if options.get("precision") == "bf16":
            model.set_attn_implementation("eager")  # of both the faster one there
        return TestTimeAdapter(model, preset="cifar10c", **RATES | colours | options).predict

    arms = {
        f"{VIEWS} views at once, bf16": ours(n_aug=VIEWS, precision="bf16"),
        f"{VIEWS} views at once, fp32": ours(n_aug=VIEWS),
        f"{FEWER} views at once, bf16": ours(n_aug=FEWER, precision="bf16"),
        f"a loop of {VIEWS} passes": _Loop(colours),
    }
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    wrong = dict.fromkeys(arms, 0)
    batches = list(zip(pixels.split(BATCH), labels.split(BATCH), strict=True))
    for i, (x, y) in enumerate(batches):
        note(f"batch {i + 1}", "train", i, len(batches), float("nan"))
        for name, predict in arms.items():
            start = time.perf_counter()
            said = predict(x)
            seconds[name].append(time.perf_counter() - start)
            wrong[name] += int((said.argmax(1) != y).sum())
    *_, loop = arms
    error = {name: n / len(labels) for name, n in wrong.items()}
    gain = {n: statistics.median(b / a for a, b in zip(s, seconds[loop], strict=True)) for n, s in seconds.items()}
    return Evidence(
        recipe="streams_speed",
        title="Adapting while predicting: time of a batch",
        command="rankwise bench speed --part streams --data cifar10",
        setting=f"{MODEL}, {len(labels):,} pictures of {KINDS} corruptions at severity 5, batches of {BATCH}, each arm "
        f"in turn; {torch.get_num_threads()} threads; gain: median over batches of the loop's seconds by own; a batch "
        "is its views, the teacher, the student's step, the average and what is restored",
        header=["arm", "a batch", "gain", "error"],
        rows=[
            [name, f"{1e3 * statistics.median(s):.0f}ms", f"{gain[name]:.2f}x", f"{error[name]:.1%}"]
            for name, s in seconds.items()
        ],
        claims=_claims(gain, error, loop),
        seconds=time.perf_counter() - begin,
        environment=environment("bf16", 1),
        extra={"seconds": seconds},
    )


def _claims(gain: dict[str, float], error: dict[str, float], loop: str) -> list[Claim]:
    first = next(iter(gain))
    worse = error[first] - error[loop]
    return [
        Claim(
            text=f"{first}: at least {GAIN:g}x faster than {loop}, error at most {100 * EQUAL:g} point apart",
            held=gain[first] >= GAIN and abs(worse) <= EQUAL,
            found=f"{gain[first]:.2f}x, {100 * worse:+.2f} points",
        )
    ]


def _stream(data: Path | None) -> tuple[Tensor, Tensor]:
    """Corrupted pictures as the model takes them, one corruption after another, and labels."""
    images = read_images(SOURCE, split="test", data=data if SOURCE == "cifar10" else None).head(PICTURES).stacked(32)
    shown: Any = images.store
    kinds = [corrupt(shown.array, kind, severity=5) for kind in CORRUPTIONS[:KINDS]]
    processor: Any = load_image_processor(MODEL)
    mean, std = (torch.tensor(t).view(3, 1, 1) for t in (processor.image_mean, processor.image_std))
    pixels = torch.from_numpy(np.concatenate(kinds)).permute(0, 3, 1, 2).float() / 255
    return (pixels - mean) / std, torch.from_numpy(np.asarray(images.labels)).repeat(KINDS)


class _Loop:
    """The algorithm as it is written down: view after view, parameter after parameter, in float32."""

    def __init__(self, colours: dict[str, Any]) -> None:
        torch.manual_seed(0)
        self.student: Any = get_peft_model(load(MODEL).eval(), VidaConfig()).requires_grad_(True)
        self.teacher: Any = copy.deepcopy(self.student).requires_grad_(False)
        self.source = copy.deepcopy(dict(self.student.named_parameters()))
        self.mean, self.std = (torch.tensor(colours[k]).view(3, 1, 1) for k in ("mean", "std"))
        named = list(self.student.named_parameters())
        self.optimizer = torch.optim.Adam(
            [
                {"params": [p for n, p in named if "vida_" not in n], "lr": RATES["lr"]},
                {"params": [p for n, p in named if "vida_" in n], "lr": RATES["lr_vida"]},
            ]
        )

    def __call__(self, x: Tensor) -> Tensor:
        plain = x * self.std + self.mean
        with torch.no_grad():
            views = [self.teacher((_viewed(plain) - self.mean) / self.std).logits for _ in range(VIEWS)]
            U = 0.1 * float(torch.stack(views).var(0).mean())
            low, high = (1 - U, 1 + U) if U >= 0.05 else (1 + U, 1 - U)
            for model in (self.student, self.teacher):
                model.base_model.set_scales(low, high)
            said = self.teacher(x).logits
        loss = -(said.softmax(1) * self.student(x).logits.log_softmax(1)).sum(1).mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            named = dict(self.student.named_parameters())
            for name, p in self.teacher.named_parameters():
                p.copy_(RATES["alpha"] * p + (1 - RATES["alpha"]) * named[name])
            for name, p in named.items():
                mask = (torch.rand(p.shape) < RATES["restore"]).float()
                p.copy_(self.source[name] * mask + p * (1 - mask))
        return said


def _viewed(x: Tensor) -> Tensor:
    """One view in the published steps: colours, pad, affine map, blur, crop, flip, noise."""

    def drawn(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand(()))

    n = x.shape[-1]
    x = x.clamp(0, 1)
    steps = [(brightened, 0.6, 1.4), (contrasted, 0.7, 1.3), (saturated, 0.5, 1.5), (turned_hue, -0.06, 0.06)]
    steps += [(raised, 0.7, 1.3)]
    for i in torch.randperm(len(steps)).tolist():
        step, low, high = steps[i]
        x = step(x, drawn(low, high))
    x = F.pad(x, [n // 2] * 4, mode="replicate")
    turn, zoom = math.radians(drawn(-15, 15)), drawn(0.9, 1.1)
    shift = [round(drawn(-1 / 16, 1 / 16) * 2 * n) / n for _ in range(2)]
    c, s = math.cos(turn) / zoom, math.sin(turn) / zoom
    back = torch.tensor([[c, s, -c * shift[0] - s * shift[1]], [-s, c, s * shift[0] - c * shift[1]]])
    grid = F.affine_grid(back.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, align_corners=False)
    taps = torch.exp(-0.5 * (torch.arange(-2.0, 3.0) / drawn(0.001, 0.5)) ** 2)
    kernel = torch.outer(taps / taps.sum(), taps / taps.sum()).expand(3, 1, 5, 5)
    x = F.conv2d(F.pad(x, [2] * 4, mode="reflect"), kernel, groups=3)
    x = x[..., n // 2 : n // 2 + n, n // 2 : n // 2 + n]
    x = x.flip(-1) if float(torch.rand(())) < 0.5 else x
    return (x + 0.005 * torch.randn_like(x)).clamp(0, 1)
