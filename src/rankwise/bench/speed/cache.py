"""A thinner key cache against the caches of transformers, side by side in one run: bytes, prefill, decoding.

SmolLM2-135M on whole papers. All caches hold the same prompt and decode the same tokens in turn, a token each. What the
bytes moved allow: a token reads all weights and the whole cache, so the whole cache's time shrinks at most to
(weights + thin cache) / (weights + whole cache). A stock cache also copies itself for every token.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel, QuantizedCache

from rankwise.bench import Recipe
from rankwise.bench.shared.evidence import Claim, Evidence
from rankwise.bench.speed.core import Measured, alternate, side_by_side
from rankwise.compression import ThinKCache, thinking
from rankwise.compression.thin.layer import ThinKLayer
from rankwise.data import papers
from rankwise.events import OnEvent
from rankwise.models import load, load_tokenizer
from rankwise.report.tables import size

RECIPE = Recipe(
    name="speed",
    part="cache",
    about="bytes and speed of ThinK's cache against whole, quantised and zeroed ones",
    smoke={"SHORT": 128, "LONG": 192, "STEPS": 2, "TIMES": 1},
    control=False,
)

SHORT, LONG = 2048, 8120  # tokens of a prompt; SmolLM2 has 8,192 positions
STEPS, TIMES = 24, 9  # tokens decoded, and prefills
RATIO = 0.4
BACKENDS = {"optimum.quanto": "quanto", "hqq": "hqq"}


def run(out: Path, *, on_event: OnEvent | None = None) -> Evidence:
    """Measure both lengths; the inputs are fixed."""
    model, tokenizer = load("smollm2", task="causal-lm").eval(), load_tokenizer("smollm2")
    text = "\n\n".join(papers().texts[:4])
    ids = tokenizer(text, return_tensors="pt")["input_ids"][:, : LONG + STEPS]
    with torch.inference_mode():
        return side_by_side(
            {
                "prefill": lambda: prefill(model, ids),
                f"{SHORT} tokens": lambda: decoding(model, ids, SHORT, 1.0),
                f"{LONG} tokens": lambda: decoding(model, ids, LONG, None),
            },
            on_event,
            recipe="cache",
            title="A thinner key cache: bytes and speed",
            command="rankwise bench speed --part cache",
            setting=f"SmolLM2-135M-Instruct, {model.dtype}, {torch.get_num_threads()} threads, batch 1, ratio {RATIO}; "
            f"medians of {STEPS} tokens decoded in turn with every cache; weights {size(weights(model))}",
        )


def weights(model: PreTrainedModel) -> int:
    """Bytes that a token reads of the model."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def prefill(model: PreTrainedModel, ids: Tensor) -> Measured:
    """The prompt into a thin cache, and into a stock one."""

    def ours() -> None:
        with thinking(model):
            model(ids[:, :SHORT], cache=ThinKCache(model.config, RATIO), logits_to_keep=1)

    def theirs() -> None:
        model(ids[:, :SHORT], cache=DynamicCache(config=model.config), logits_to_keep=1)

    ours()
    a, b = alternate(ours, theirs, times=TIMES)
    return [[f"prefill of {SHORT:,}", f"{a:.2f}s", "DynamicCache", f"{b:.2f}s", f"{b / a:.2f}x"]], [
        Claim(text="prefill at most 2 % slower", held=a <= 1.02 * b, found=f"{100 * (a / b - 1):+.1f} %")
    ]


def decoding(model: PreTrainedModel, ids: Tensor, length: int, least: float | None) -> Measured:
    """One prompt in every cache; ``least`` is the ratio that decides, None for 95 % of what bytes allow."""
    with thinking(model):
        prompt = ThinKCache(model.config, prompt=length + 1)
        for part in ids[:, :length].split(1024, 1):
            model(part, cache=prompt, logits_to_keep=1)
    caches = {name: make(prompt) for name, make in ways().items()}
    held = {name: _bytes(c) for name, c in caches.items()}
    seconds: dict[str, list[float]] = {name: [] for name in caches}
    for at in range(length, length + STEPS):
        for name, cache in caches.items():
            seconds[name].append(_step(model, cache, ids[:, at : at + 1], ours=name.startswith("ThinK")))
    times = {name: statistics.median(s) for name, s in seconds.items()}
    whole, W = "DynamicCache", weights(model)
    rows = []
    for name, t in times.items():
        if name != whole:
            what = f"{name}, {length:,} tokens"
            rows.append([what, f"{1e3 * t:.1f}ms", whole, f"{1e3 * times[whole]:.1f}ms", f"{times[whole] / t:.2f}x"])
            rows.append(
                [f"{what}, bytes", size(held[name]), whole, size(held[whole]), f"{held[name] / held[whole]:.2f}x"]
            )
    allowed = (W + held[whole]) / (W + held["ThinK, fused"])
    faster, share = times[whole] / times["ThinK, fused"], held["ThinK, fused"] / held[whole]
    needed = 0.95 * allowed if least is None else least
    told = f"{faster:.2f}x; bytes moved allow {allowed:.3f}x ({size(W + held['ThinK, fused'])} a token)"
    return rows, [
        Claim(text=f"decoding speed after {length:,} at least {needed:.2f}x", held=faster >= needed, found=told),
        Claim(text=f"at most 0.82x its bytes after {length:,} tokens", held=share <= 0.82, found=f"{share:.3f}x"),
    ]  # fmt: skip


def ways() -> dict[str, Callable[[ThinKCache], Cache]]:
    """Every cache by name, made of a prompt; quantised ones where their libraries are installed."""
    found: dict[str, Callable[[ThinKCache], Cache]] = {
        "DynamicCache": lambda p: filled(p, DynamicCache(config=p.settings.config)),
        "ThinK, fused": lambda p: p.thinned(RATIO),
        "ThinK, storage": lambda p: p.thinned(RATIO, mode="storage"),
        "ThinK, 8 bits": lambda p: p.thinned(RATIO, bits=8),
        "zeros (kvpress)": lambda p: filled(p, DynamicCache(config=p.settings.config), zeros=True),
    }
    for module, backend in BACKENDS.items():
        if importlib.util.find_spec(module.partition(".")[0]) and importlib.util.find_spec(module):
            found[f"QuantizedCache, {backend}"] = lambda p, b=backend: filled(
                p, QuantizedCache(b, p.settings.config, nbits=4 if b == "quanto" else 8)
            )
    return found


def filled(prompt: ThinKCache, cache: Cache, *, zeros: bool = False) -> Cache:
    """A stock cache with the prompt's keys and values; with zeros in the channels that ThinK would drop."""
    thin = prompt.thinned(RATIO, mode="storage") if zeros else prompt
    for i, layer in enumerate(thin.layers):
        if isinstance(layer, ThinKLayer):
            cache.update(*layer.whole(), i)
    return cache


def _step(model: PreTrainedModel, cache: Cache, token: Tensor, *, ours: bool) -> float:
    model.set_attn_implementation("think" if ours else "sdpa")
    start = time.perf_counter()
    model(token, cache=cache)
    return time.perf_counter() - start


def _bytes(cache: Any) -> int:
    """Of a cache's tensors, whatever holds them."""
    if isinstance(cache, ThinKCache):
        return cache.bytes()
    return sum(_held(layer) for layer in cache.layers)


def _held(layer: Any) -> int:
    total = 0
    for x in vars(layer).values():
        parts = x if isinstance(x, (tuple, list)) else [x]
        for part in parts:
            inner = [getattr(part, n, None) for n in ("_data", "_scale", "_shift")]  # a quantised tensor of quanto
            found = [t for t in inner if isinstance(t, Tensor)] or [part]
            total += sum(t.untyped_storage().nbytes() for t in found if isinstance(t, Tensor) and t.numel() > 1)
    return total
