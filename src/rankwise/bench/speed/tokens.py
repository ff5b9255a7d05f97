"""Fewer tokens, side by side: a transformer of DeiT-S's size on 197 tokens, in turn with and without pruning.

Speed depends on shapes alone, so weights are drawn. The limit is what the multiply-accumulates allow: dense over
pruned. Random tokens pay for everything but the choice; merging as in ToMe leaves after every block; adaptive token
sampling is vit-pytorch's own model of the same size, where that is installed, against its own model without sampling.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from rankwise.bench import Recipe
from rankwise.bench.shared.evidence import Claim, Evidence
from rankwise.compression import (
    AttentionGraph,
    AttentionToCLS,
    MergeSimilar,
    RandomTokens,
    TokenChooser,
    TokenSchedule,
    merging_schedule,
    planned,
    prune_tokens,
)
from rankwise.compression.tokens.towers import tower_of
from rankwise.events import OnEvent, environment

RECIPE = Recipe(
    name="speed",
    part="tokens",
    about="Zero-TPrune against the dense model, random tokens, attention to CLS, ToMe-like merging, sampling",
    smoke={"WIDTH": 48, "DEPTH": 4, "SIDE": 64, "BATCH": 2, "TIMES": 1},
    control=False,
)

WIDTH, DEPTH, SIDE, BATCH = 384, 12, 224, 16  # DeiT-S: channels, blocks, pixels; images at once
TIMES = 9  # rounds in which each is run once, in turn
TARGET = 0.65  # of the dense cost
OVERHEAD, GAIN, OF_LIMIT = 1.05, 1.3, 0.8

Arm = tuple[str, TokenSchedule | None, TokenChooser | None]


def run(out: Path, *, on_event: OnEvent | None = None) -> Evidence:
    """Every arm in turn, some rounds; medians; the claims."""
    begin, note = time.perf_counter(), on_event or (lambda *_: None)
    model, pixels = _model(), torch.randn(BATCH, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    arms, shares = _arms(model)
    sampled = _sampling(shares["Zero-TPrune"])
    with torch.inference_mode():
        dense, same = model(pixels).logits, _pruned(model, arms[1], lambda: model(pixels).logits)
        seconds: dict[str, list[float]] = {}
        for i in range(-1, TIMES):  # one to warm up
            note(f"round {i + 1}", "train", max(i, 0), TIMES, float("nan"))
            if i == 0:
                seconds.clear()
            for arm in arms:
                kept = seconds.setdefault(arm[0], [])
                kept.append(_pruned(model, arm, lambda: _seconds(model, pixels)))
            for name, net in sampled.items():
                seconds.setdefault(name, []).append(_seconds(net, pixels))
    typical = {name: statistics.median(s) for name, s in seconds.items()}
    gains = {name: _gain(name, seconds) for name in seconds}
    rows = [
        [
            name,
            f"{shares[name]:.3f}" if name in shares else "-",
            f"{BATCH / s:.1f}",
            f"{gains[name]:.2f}x",
            _limit(shares, name),
        ]
        for name, s in typical.items()
    ]
    return Evidence(
        recipe="speed",
        title="Fewer tokens: throughput",
        command="rankwise bench speed --part tokens",
        setting=f"a ViT of {DEPTH} blocks of {WIDTH} channels on {(SIDE // 16) ** 2 + 1} tokens, drawn weights, "
        f"batches of {BATCH}, {torch.get_num_threads()} threads; medians of {TIMES} runs in turn; gain: median over "
        "rounds of dense seconds by own; limit: dense multiply-accumulates by own",
        header=["arm", "share of MACs", "images/s", "gain", "limit"],
        rows=rows,
        claims=_claims(gains, shares, equal=torch.equal(dense, same)),
        seconds=time.perf_counter() - begin,
        environment=environment("fp32", 1),
        extra={"seconds": seconds, "shares": shares},
    )


def _model() -> ViTForImageClassification:
    torch.manual_seed(0)
    heads = max(1, WIDTH // 64)
    labels: dict[str, Any] = {"num_labels": 1000}
    config = ViTConfig(
        hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=heads, intermediate_size=4 * WIDTH,
        image_size=SIDE, patch_size=16, initializer_range=0.06, **labels,
    )  # fmt: skip
    return ViTForImageClassification(config).eval()


def _arms(model: nn.Module) -> tuple[list[Arm], dict[str, float]]:
    """What is run, and each one's share of the dense cost."""
    shape = tower_of(model).shape
    ours, merging = planned(shape, target_flops=TARGET), merging_schedule(shape, TARGET)
    alone = planned(shape, target_flops=TARGET, similar=0)
    arms: list[Arm] = [
        ("dense", None, None),
        ("keep = 1", planned(shape, keep=1), AttentionGraph()),
        ("Zero-TPrune", ours, AttentionGraph()),
        ("I alone", alone, AttentionGraph()),
        ("attention to CLS", ours, AttentionToCLS()),
        ("random tokens", ours, RandomTokens()),
        ("merging (ToMe-like)", merging, MergeSimilar()),
    ]
    dense = shape.macs([shape.patches + shape.prefix] * shape.depth)

    def share(schedule: TokenSchedule | None) -> float:
        if schedule is None:
            return 1.0
        return shape.macs(schedule.counts(patches=shape.patches, prefix=shape.prefix, depth=shape.depth)) / dense

    return arms, {name: share(schedule) for name, schedule, _ in arms}


def _sampling(share: float) -> dict[str, nn.Module]:
    """vit-pytorch's adaptive token sampling and the same model without; nothing where that is not installed."""
    try:
        from vit_pytorch.ats_vit import ViT  # pyright: ignore[reportMissingImports]  (an optional peer)
    except (ImportError, RuntimeError):  # torchvision of another torch raises the latter
        return {}
    patches, stages = (SIDE // 16) ** 2, 3 * DEPTH // 4
    sizes: dict[str, Any] = {
        "image_size": SIDE, "patch_size": 16, "num_classes": 1000, "dim": WIDTH, "depth": DEPTH,
        "heads": max(1, WIDTH // 64), "mlp_dim": 4 * WIDTH,
    }  # fmt: skip
    # in the last three quarters of the blocks as many tokens as make the cost of the others, about
    left = max(1, int(patches * (share * DEPTH - (DEPTH - stages)) / stages))
    most = [patches] * (DEPTH - stages) + [left] * stages
    return {
        "vit-pytorch, dense": ViT(max_tokens_per_depth=tuple([patches] * DEPTH), **sizes).eval(),
        "vit-pytorch, sampling (ATS)": ViT(max_tokens_per_depth=tuple(most), **sizes).eval(),
    }


def _pruned(model: nn.Module, arm: Arm, call: Callable[[], Any]) -> Any:
    """What ``call`` gives while the model is pruned so."""
    _, schedule, method = arm
    if schedule is None or method is None:
        return call()
    with prune_tokens(model, schedule, method):
        return call()


def _seconds(model: nn.Module, pixels: torch.Tensor) -> float:
    begin = time.perf_counter()
    model(pixels)
    return time.perf_counter() - begin


def _gain(name: str, seconds: dict[str, list[float]]) -> float:
    """Median over rounds of the dense run's seconds by this arm's: neighbours in time are compared."""
    against = seconds["vit-pytorch, dense" if name.startswith("vit-pytorch") else "dense"]
    return statistics.median(d / s for d, s in zip(against, seconds[name], strict=True))


def _limit(shares: dict[str, float], name: str) -> str:
    return f"{1 / shares[name]:.2f}x" if name in shares else "-"


def _claims(gains: dict[str, float], shares: dict[str, float], *, equal: bool) -> list[Claim]:
    gain, limit = gains["Zero-TPrune"], 1 / shares["Zero-TPrune"]
    choice = gains["random tokens"] / gain
    return [
        Claim(
            text=f"Zero-TPrune at {TARGET:.0%} of the cost: at least {OF_LIMIT}x of the gain that the cost allows",
            held=gain >= OF_LIMIT * limit,
            found=f"{gain:.2f}x of at most {limit:.2f}x: {gain / limit:.2f} of it",
        ),
        Claim(
            text=f"and at least {GAIN}x the dense model's throughput",
            held=gain >= GAIN,
            found=f"{gain:.2f}x",
        ),
        Claim(
            text=f"keep = 1 costs at most {OVERHEAD - 1:.0%} more time, and its logits are the same bit for bit",
            held=1 / gains["keep = 1"] <= OVERHEAD and equal,
            found=f"{1 / gains['keep = 1'] - 1:+.1%}; {'the same' if equal else 'not the same'}",
        ),
        Claim(
            text=f"choosing costs at most {OVERHEAD - 1:.0%} beside random tokens on the same schedule",
            held=choice <= OVERHEAD,
            found=f"{choice - 1:+.1%} (published on a GPU: +4.8%)",
        ),
    ]
