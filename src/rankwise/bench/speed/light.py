"""CLIP-LIT side by side: a step of the network with the towers' passes batched, against a loop over pictures; and one
megapixel through a bounded copy, against the network at full size."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rankwise.bench import Recipe
from rankwise.bench.shared.evidence import Claim, Evidence
from rankwise.bench.speed.core import alternate, timed
from rankwise.events import OnEvent, environment
from rankwise.vision import BacklitEnhancer
from rankwise.vision.lit.illumination import illumination_of
from rankwise.vision.lit.losses import backlit_probability, identity_loss
from rankwise.vision.lit.network import WIDTHS, IlluminationNet, enhanced
from rankwise.vision.lit.training import Training, floats, frozen

RECIPE = Recipe(
    name="speed",
    part="light",
    about="CLIP-LIT: a batched step against a loop over pictures; a megapixel through a bounded copy",
    smoke={"MEGAPIXEL": (128, 128), "MOST": 64, "TIMES": 1, "STEPS": 4, "FULL_SIZE": ("light",)},
    control=False,
)

MODEL = "clip-cifar10"
BATCH, TIMES = 8, 7
MEGAPIXEL, MOST = (1000, 1000), 512
FULL_SIZE = ("full", "light")  # networks that are timed on a megapixel
GAIN, SECONDS = 3.0, 1.0
STEPS = 150  # of the network, before its maps are compared
VARIES = 0.05  # deviation of the map over the picture, below which there is nothing to compare
LEARNED: dict[str, Any] = {"first_steps": 300, "prompt_steps": 2, "rounds": 1}


def run(out: Path, *, on_event: OnEvent | None = None) -> Evidence:
    """Time every pair; the inputs are fixed."""
    begin, note = time.perf_counter(), on_event or (lambda *_: None)
    training = _learned()
    note("steps", "train", 0, 2, float("nan"))
    with frozen(training.clip), torch.no_grad():
        prompts = training.prompts(training.clip)
    with frozen(training.clip):
        ours, loop = alternate(lambda: _step(training, prompts), lambda: _loop(training, prompts), times=TIMES)
    shown = [f"{ours:.3f}s", "three passes a picture", f"{loop:.3f}s", f"{loop / ours:.1f}x"]
    rows = [[f"a step of {BATCH} pictures", *shown]]
    picture = _photograph()
    seconds: dict[str, float] = {}
    note("a megapixel", "train", 1, 2, float("nan"))
    error = spread = 0.0
    with torch.inference_mode():
        for name in FULL_SIZE:
            net = training.network if name == "light" else IlluminationNet(WIDTHS[name], start="identity").eval()
            seconds[name], copied = timed(lambda net=net: illumination_of(picture, net, most=MOST), TIMES)
            whole, full = timed(lambda net=net: net(picture), 1)
            if name == "light":
                difference = enhanced(picture, copied) - enhanced(picture, full)
                error, spread = float(difference.abs().mean()), float(full.std())
            what = f"{picture.shape[-1]} x {picture.shape[-2]} pixels, {name} network, copy of {MOST}"
            gain = f"{whole / seconds[name]:.1f}x"
            rows.append([what, f"{seconds[name]:.2f}s", "at full size", f"{whole:.2f}s", gain])
    return Evidence(
        recipe="speed",
        title="Speed: light",
        command="rankwise bench speed --part light",
        setting=f"{MODEL}, light network at {training.settings.size_network} pixels; "
        f"{torch.get_num_threads()} threads; medians of {TIMES}, steps in turn; at full size once",
        header=["what", "ours", "against", "theirs", "gain"],
        rows=rows,
        claims=[
            Claim(
                text=f"a step takes at most a {1 / GAIN:.2f} part of a loop over its pictures",
                held=loop / ours >= GAIN,
                found=f"{loop / ours:.2f}x",
            ),
            Claim(
                text=f"a megapixel takes at most {SECONDS:g} s, with either network",
                held=max(seconds.values()) <= SECONDS,
                found=", ".join(f"{name} {s:.2f} s" for name, s in seconds.items()),
            ),
            Claim(
                text="results by the copy differ from those by the network at full size by at most .02 in the mean, "
                f"light network, where its map varies by {VARIES:g} or more",
                held=error <= 0.02 and spread >= VARIES,
                found=f"{error:.4f} of 1; the map's own deviation is {spread:.3f} (at least {VARIES:g} is "
                f"asked), light network after {STEPS} steps",
            ),
        ],
        seconds=time.perf_counter() - begin,
        environment=environment("fp32", 1),
    )


def _photograph() -> Tensor:
    """A photograph of scikit-learn's, enlarged, and as dark as those learned from."""
    from sklearn.datasets import load_sample_image

    pixels = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)[None].float() / 255
    return torch.nn.functional.interpolate(pixels, MEGAPIXEL, mode="bicubic", antialias=True).clamp(0, 1) / 5


def _learned() -> Training:
    """A training that has begun, on crops of photographs."""
    from sklearn.datasets import load_sample_images

    images = load_sample_images().images
    crops = np.stack([i[y : y + 96, x : x + 96] for i in images for y in range(0, 330, 96) for x in range(0, 540, 96)])
    enhancer = BacklitEnhancer(MODEL, preset="small", batch_network=BATCH, network_steps=STEPS, **LEARNED)
    training = Training(enhancer.tower, enhancer._told["tokens"], settings=enhancer.settings)
    return training.run(crops[::2] // 5, crops[1::2])


def _rows(training: Training) -> Tensor:
    return floats(training.dark[torch.randint(len(training.dark), (BATCH,), generator=training.draws)])


def _step(training: Training, prompts: Tensor) -> None:
    training._step("speed", training._network_loss(prompts), training.network, training.by_network)


def _loop(training: Training, prompts: Tensor) -> None:
    """As the released code goes: picture by picture, a pass for the score and two for the content."""
    s, tower = training.settings, training.tower
    pictures = _rows(training)
    results = enhanced(pictures, training.network(pictures))
    light, content = [], []
    for picture, result in zip(pictures.split(1), results.split(1), strict=True):
        light.append(backlit_probability(tower(result).features, prompts, s.scale).mean())
        with torch.no_grad():
            source = tower(picture).stages
        content.append(identity_loss(tower(result).stages, source, s.alphas))
    loss = s.clip_weight * torch.stack(light).mean() + s.identity_weight * torch.stack(content).mean()
    training._step("speed", loss, training.network, training.by_network)
