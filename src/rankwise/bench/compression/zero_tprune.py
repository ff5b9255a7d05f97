"""Zero-TPrune's claim: tokens ranked on the attention graph can leave a trained transformer, and each step helps.

A ViT on CIFAR-10's test pictures: accuracy at several shares of the cost, with the paper's ladder (random tokens,
votes, + heads by root mean square, + heads filtered by variance, + similar tokens first), attention to CLS, similar
tokens alone, and merging as in ToMe. All arms see the same pictures: differences are paired by picture. Random tokens
are the control. In a smoke run it is a ViT of four blocks, trained for some seconds on scikit-learn's digits.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankwise.bench import Recipe
from rankwise.bench.shared.evidence import Claim, Evidence
from rankwise.bench.shared.measured import Runs
from rankwise.compression import (
    AttentionGraph,
    AttentionToCLS,
    MergeSimilar,
    RandomTokens,
    TokenChooser,
    TokenSchedule,
    TowerShape,
    merging_schedule,
    planned,
    prune_tokens,
)
from rankwise.compression.tokens.towers import tower_of
from rankwise.data import read_images
from rankwise.events import OnEvent, environment
from rankwise.files import write_json
from rankwise.models import load, load_image_processor
from rankwise.reading import read_json

RECIPE = Recipe(
    name="zero-tprune",
    part="accuracy",
    about="Zero-TPrune on CIFAR-10: accuracy and throughput by share of the cost, against the paper's ladder",
    remark="Random tokens, the control, lose less than what the votes choose: with this model and small pictures, "
    "one object each, the recipe cannot tell whether the paper's claim holds for larger ones.",
    smoke={"MODEL": "", "TESTED": 200, "TARGETS": (0.65,), "ROUNDS": (1, 5), "STEPS": 120, "seeds": 1},
)

MODEL = "vit-cifar10"  # empty: a small one, trained here on digits
TESTED, BATCH = 10_000, 100  # pictures
TARGETS = (0.8, 0.65, 0.5)  # of the dense cost
MAIN = 0.65  # at which the claims are judged
TIMED = 20  # batches
ROUNDS = (1, 2, 5, 30)  # of votes, the same in all layers
STEPS = 200  # of training, of the small one
VOTES = AttentionGraph(heads="mean", vhf=None)  # without what the paper adds
LADDER = {
    "votes": VOTES,
    "+ root mean square": AttentionGraph(vhf=None),
    "+ heads filtered": AttentionGraph(),
    "+ similar first": AttentionGraph(),
}
RANDOM, CLS, ALIKE, MERGED, FULL = "random tokens", "attention to CLS", "similar alone", "merging (ToMe-like)", "dense"
OURS, BEFORE = "+ similar first", "+ heads filtered"
KINDS = (RANDOM, *LADDER, ALIKE, CLS, MERGED)
LOSS = 0.004  # published: 0.4 points at 65% of the cost
GAIN = 1.3


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model, its pictures in batches, their labels, and what it is."""

    model: Any
    batches: list[Tensor]
    labels: NDArray[np.int64]
    title: str


def measure(out: Path, *, data: Path | None = None, seeds: int = 3, on_event: OnEvent | None = None) -> Runs:
    """Which pictures each arm gets right (what is there is read back), packed; what batches take at the main target."""
    subject = _subject(data)
    shape = tower_of(subject.model).shape
    arms = _arms(shape, seeds)
    found = _measured(out / "right.json", subject, arms, on_event or (lambda *_: None))
    timed = {FULL: arms[FULL]} | {k: arms[f"{k} {MAIN} 0" if k == RANDOM else f"{k} {MAIN}"] for k in KINDS}
    told = {
        "title": subject.title, "pictures": len(subject.labels), "heads": shape.heads,
        "dropped": _dropped(subject, shape), "threads": torch.get_num_threads(),
    }  # fmt: skip
    return {"told": told, "seconds": _seconds(subject, timed), **found}


def judge(found: Runs, *, seeds: int) -> Evidence:
    """The arms compared, paired by picture; of random tokens the mean over ``seeds`` draws."""
    told, gains = found["told"], _gains(found["seconds"])
    arms = {name: arm for name, arm in found.items() if name not in ("told", "seconds")}
    right = {name: _unpacked(arm["right"], told["pictures"]) for name, arm in arms.items()}
    for target in TARGETS:
        right[f"{RANDOM} {target}"] = np.mean([right[f"{RANDOM} {target} {s}"] for s in range(seeds)], 0)
    rows = [[FULL, *[f"{right[FULL].mean():.2%}"] * len(TARGETS), "1.00x"]]
    rows += [
        [kind, *[_shown(right[f"{kind} {t}"], right[FULL]) for t in TARGETS], f"{gains[kind]:.2f}x"] for kind in KINDS
    ]
    rows += [
        [
            f"T = {T} in all layers",
            *[_shown(right[f"T={T} {t}"], right[FULL]) if t == MAIN else "" for t in TARGETS],
            "",
        ]
        for T in ROUNDS
    ]
    power = 2.8 * _error(right[f"{OURS} {MAIN}"] - right[f"{BEFORE} {MAIN}"])
    dropped = ", ".join(f"{n:.1f} of {told['heads']} after block {layer}" for layer, n in told["dropped"])
    return Evidence(
        recipe="zero-tprune",
        title="Zero-TPrune: fewer tokens without training",
        command=f"rankwise bench zero-tprune --data cifar10 --seeds {seeds}",
        setting=f"{told['title']}, {told['pictures']:,} test pictures. Power: a step of the ladder is seen (80%, at "
        f"{MAIN:.0%} of the cost) from {100 * power:.2f} points on. Differences are paired by picture, with 95% "
        f"intervals; random tokens: {seeds} draws; gain: medians of {TIMED} batches in turns at {MAIN:.0%}, "
        f"{told['threads']} threads. Heads that the filter drops, by layer, at {MAIN:.0%}: {dropped}",
        header=["accuracy at a share of the cost", *[f"{t:.0%}" for t in TARGETS], f"gain at {MAIN:.0%}"],
        rows=rows,
        claims=_claims(right, gains[OURS]),
        environment=environment("fp32", 1),
        extra={"arms": {k: {**v, "accuracy": float(right[k].mean())} for k, v in arms.items()}},
    )


Arm = tuple[TokenSchedule | None, TokenChooser | None]


def _arms(shape: TowerShape, seeds: int) -> dict[str, Arm]:
    """Everything that is run, by name and target."""
    arms: dict[str, Arm] = {FULL: (None, None)}
    for t in TARGETS:
        alone, ours = planned(shape, target_flops=t, similar=0), planned(shape, target_flops=t)
        arms |= {f"{RANDOM} {t} {seed}": (alone, RandomTokens(seed=seed)) for seed in range(seeds)}
        arms |= {f"{name} {t}": (ours if name == OURS else alone, method) for name, method in LADDER.items()}
        arms[f"{CLS} {t}"] = alone, AttentionToCLS()
        arms[f"{ALIKE} {t}"] = planned(shape, target_flops=t, keep=1), AttentionGraph()
        arms[f"{MERGED} {t}"] = merging_schedule(shape, t), MergeSimilar()
    swept = {f"T={T} {MAIN}": (planned(shape, target_flops=MAIN, iterations=T), AttentionGraph()) for T in ROUNDS}
    return arms | swept


def _measured(path: Path, subject: Subject, arms: dict[str, Arm], note: OnEvent) -> dict[str, Any]:
    """For each arm, which pictures are right; what is in ``path`` already is read back."""
    found = read_json(path) if path.exists() else {}
    for i, (name, (schedule, method)) in enumerate(arms.items()):
        if name in found:
            continue
        note(name, "evaluate", i, len(arms), float("nan"))
        if schedule is None or method is None:
            found[name] = _evaluated(subject)
        else:
            with prune_tokens(subject.model, schedule, method) as pruned:
                found[name] = {**_evaluated(subject), "share": pruned.flops().share}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, found)
    return {name: found[name] for name in arms}


@torch.inference_mode()
def _evaluated(subject: Subject) -> dict[str, Any]:
    said = [subject.model(pixel_values=pixels).logits.argmax(-1).numpy() for pixels in subject.batches]
    return {"right": np.packbits(np.concatenate(said) == subject.labels).tobytes().hex()}


def _unpacked(packed: str, number: int) -> NDArray[np.float64]:
    return np.unpackbits(np.frombuffer(bytes.fromhex(packed), np.uint8))[:number].astype(np.float64)


def _subject(data: Path | None) -> Subject:
    """The bundled model on test pictures of CIFAR-10, or a small one on digits."""
    if not MODEL:
        return _digits()
    images = read_images("cifar10", split="test", data=data).head(TESTED)
    processor, model = load_image_processor(MODEL), load(MODEL).eval()
    batches = [
        processor([images.pil(i) for i in range(a, min(a + BATCH, len(images)))], return_tensors="pt")["pixel_values"]
        for a in range(0, len(images), BATCH)
    ]
    assert images.labels is not None
    title = f"{MODEL} ({sum(p.numel() for p in model.parameters()):,} parameters) on CIFAR-10"
    return Subject(model=model, batches=batches, labels=images.labels, title=title)


def _digits() -> Subject:
    """A ViT of four blocks and 64 patches, trained for some seconds."""
    from transformers import ViTConfig, ViTForImageClassification

    def pixels(images: Any) -> Tensor:
        grey = torch.stack([torch.from_numpy(images[i]) for i in range(len(images))]).permute(0, 3, 1, 2)
        return torch.nn.functional.interpolate(grey.float() / 127.5 - 1, 32, mode="bilinear")

    train, test = read_images("digits", split="train"), read_images("digits", split="test").head(TESTED)
    assert train.labels is not None
    assert test.labels is not None
    torch.manual_seed(0)
    labels: dict[str, Any] = {"num_labels": 10}
    model = ViTForImageClassification(
        ViTConfig(
            hidden_size=48, num_hidden_layers=4, num_attention_heads=3, intermediate_size=96, image_size=32,
            patch_size=4, **labels,
        )
    )  # fmt: skip
    x, y, optimizer = pixels(train), torch.from_numpy(train.labels), torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(STEPS):
        rows = torch.randint(len(x), (64,))
        model(pixel_values=x[rows], labels=y[rows]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return Subject(
        model=model.eval(),
        batches=list(pixels(test).split(BATCH)),
        labels=test.labels,
        title=f"a ViT of four blocks after {STEPS} steps on digits",
    )


@torch.inference_mode()
def _dropped(subject: Subject, shape: TowerShape) -> list[tuple[int, float]]:
    """Each pruning layer, and how many heads do not count there on average."""
    schedule = planned(shape, target_flops=MAIN, similar=0)
    with prune_tokens(subject.model, schedule, AttentionGraph()) as pruned:
        layers = pruned.tokens(subject.batches[0])
    return [(k.layer, float((~k.heads).float().sum(1).mean())) for k in layers if k.heads is not None]


@torch.inference_mode()
def _seconds(subject: Subject, arms: dict[str, Arm]) -> dict[str, list[float]]:
    """Of batches by each arm, in turns on the same ones: what else goes on hits all alike. The first ones warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for pixels in subject.batches[: TIMED + 1]:
        for name, (schedule, method) in arms.items():
            with nullcontext() if schedule is None or method is None else prune_tokens(subject.model, schedule, method):
                begin = time.perf_counter()
                subject.model(pixel_values=pixels)
                seconds[name].append(time.perf_counter() - begin)
    return {name: told[1:] for name, told in seconds.items()}


def _gains(seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Dense seconds of a batch by each arm's."""
    middle = {name: statistics.median(told) for name, told in seconds.items()}
    return {name: middle[FULL] / told for name, told in middle.items()}


def _error(difference: NDArray[np.float64]) -> float:
    return float(difference.std(ddof=1) / len(difference) ** 0.5)


def _shown(right: NDArray[np.float64], dense: NDArray[np.float64]) -> str:
    """Accuracy, and in points what pruning changes."""
    d = right - dense
    return f"{right.mean():.2%} ({100 * d.mean():+.2f}±{196 * _error(d):.2f})"


def _claims(right: dict[str, NDArray[np.float64]], gain: float) -> list[Claim]:
    def step(better: str, worse: str, text: str, verdict: Callable[[float, float], bool], **told: Any) -> Claim:
        """Judged at the main target; the others are told."""
        shown, held = [], False
        for t in TARGETS:
            d = right[f"{better} {t}"] - right[f"{worse} {t}"]
            mean, half = float(d.mean()), 1.96 * _error(d)
            shown.append(f"{100 * mean:+.2f}±{100 * half:.2f} points at {t:.0%}")
            held = verdict(mean, half) if t == MAIN else held
        return Claim(
            text=f"{text} (95 % interval, at {MAIN:.0%} of the cost)", held=held, found=", ".join(shown), **told
        )

    def above(mean: float, half: float) -> bool:
        return mean - half > 0

    def not_below(mean: float, half: float) -> bool:
        return mean - half >= -LOSS

    lost = right[FULL] - right[f"{OURS} {MAIN}"]
    of = "(DeiT-S, ImageNet, 3.08 GFLOPs)"
    return [
        step(
            "votes",
            RANDOM,
            "control: random tokens lose more than votes choose",
            above,
            control=True,
            paper=f"78.6 against 76.8 % {of}",
        ),
        step(
            "+ root mean square",
            "votes",
            f"heads by root mean square are at most {100 * LOSS:.1f} points worse than by their mean",
            not_below,
            paper=f"78.8 against 78.6 % {of}",
        ),
        step(
            BEFORE,
            "+ root mean square",
            f"heads filtered by variance are at most {100 * LOSS:.1f} points worse than all",
            not_below,
            paper=f"78.9 against 78.8 % {of}",
        ),
        step(
            OURS, BEFORE, "similar tokens first: better than importance alone", above, paper=f"79.4 against 78.9 % {of}"
        ),
        step(OURS, ALIKE, "and better than similar tokens alone", above),
        step(OURS, CLS, "better than attention to CLS", above),
        step(
            OURS,
            MERGED,
            "better than merging at the same cost",
            above,
            paper="79.4 against 78.9 % (DeiT-S at 3 GFLOPs); large models at half of the cost: the reverse",
        ),
        Claim(
            text=f"at {MAIN:.0%} of the cost at most {100 * LOSS:.1f} points are lost",
            held=lost.mean() <= LOSS,
            found=f"{100 * lost.mean():.2f}±{196 * _error(lost):.2f} points",
            paper="0.4 points at 65 % (DeiT-S)",
        ),
        Claim(
            text=f"and throughput is at least {GAIN}x the dense model's",
            held=gain >= GAIN,
            found=f"{gain:.2f}x; the cost allows {1 / MAIN:.2f}x",
            paper="1.45x at 65 % (DeiT-S, A100)",
        ),
    ]
