"""ThinK's claim: a key cache loses 40 % of its channels and the model writes on as before.

SmolLM2-135M on whole papers (`rankwise.data.papers`): the cache of the first 2,048 tokens is thinned, and the next
64 are read with it. Perplexity, and how often the likeliest next token is the one of the whole cache, both paired by
paper; a hundred papers, since the interval of twenty is as wide as the margin of 2 % that the claim allows. Recall:
codes of three digits under sixteen names, between sentences of a paper; names are asked after the cache has been
thinned, so that every digit is read from thin keys. Without thinning the model can do it: that is shown first.

Arms drop as many channels of the same rows: ThinK with scores of the rows that it thins or of all of them as released,
random channels (the control), those whose keys are smallest whatever the queries, and, as the line above, the
projection that loses least of ‖Q Kᵀ‖_F: a singular value decomposition, which no choice of channels beats on those
queries. Zeroing as kvpress does it takes channels of all rows, the recent ones too, and saves nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

from rankwise.bench import Recipe
from rankwise.bench.shared.evidence import Claim, Evidence, plus_minus
from rankwise.bench.shared.measured import Runs
from rankwise.compression import ThinKCache, thinking
from rankwise.compression.thin.layer import ThinKLayer
from rankwise.compression.thin.scores import channel_scores, filled, kept, picked
from rankwise.data import papers
from rankwise.events import OnEvent, environment
from rankwise.files import write_json
from rankwise.models import load, load_tokenizer
from rankwise.reading import read_json

RECIPE = Recipe(
    name="think",
    part="quality",
    about="ThinK on SmolLM2 and whole papers: perplexity, next tokens and recall, against other channels",
    smoke={"PAPERS": 2, "PROMPT": 160, "CONTINUED": 8, "RATIOS": (0.4,), "NAMES": 4, "ASKED": 2, "SHOTS": 1},
)

PAPERS, PROMPT, CONTINUED = 100, 2048, 64  # texts, and tokens of each
RATIOS = (0.2, 0.4, 0.6, 0.7)
NAMES, ASKED, SHOTS = 16, 8, 3  # of recall
WINDOW, RECENT, BUDGET = 32, 32, 512
LOSS_DIGITS = 4  # of a token's
WAYS = {
    "think": "ThinK",
    "all": "ThinK, all rows scored",
    "keys": "smallest keys, no queries",
    "random": "random channels",
    "zeroed": "zeros in all rows",
    "pca": "best projection (SVD)",
    "snapkv": "ThinK after SnapKV",
}
WORDS = [
    "apple", "river", "stone", "cloud", "tiger", "lemon", "music", "paper", "glass", "honey", "eagle", "flute",
    "ocean", "piano", "robot", "salad", "train", "olive", "magic", "night", "pearl", "queen", "sugar", "table",
    "uncle", "violin", "water", "zebra", "bread", "chair",
]  # fmt: skip
Found = dict[str, dict[str, Any]]  # by way and ratio: what every token and every question gave


def measure(out: Path, *, on_event: OnEvent | None = None) -> Runs:
    """Every paper (what is there is read back): tokens' losses, which are as with the whole cache, codes recalled."""
    note, found = on_event or (lambda *_: None), {}
    model, tokenizer = load("smollm2", task="causal-lm", dtype=torch.bfloat16).eval(), load_tokenizer("smollm2")
    enough = (t for t in papers().texts if len(tokenizer.encode(t[: 12 * PROMPT])) > PROMPT + CONTINUED)
    texts = list(islice(enough, PAPERS))
    for i, text in enumerate(texts):
        path = out / f"paper-{i}.json"
        if not path.exists():
            note(f"paper {i + 1}", "thin", i, len(texts), float("nan"))
            with torch.inference_mode(), thinking(model):
                write_json(path, measured(model, tokenizer, text, Random(i)))
        found[f"paper {i}"] = read_json(path)
    return found


def judge(found: Runs) -> Evidence:
    """The ways compared, paired by paper."""
    read = [_summed(paper) for paper in found.values()]
    table = {way: {r: _means(read, way, r) for r in _ratios(way)} for way in WAYS}
    dense = _means(read, "dense", 0.0)
    return Evidence(
        recipe="think",
        title="ThinK: fewer channels in the key cache",
        command="rankwise bench think --part quality",
        setting=f"SmolLM2-135M-Instruct in bfloat16, {len(read)} papers; {PROMPT} tokens are thinned, {CONTINUED} read "
        "after them; rise of perplexity in per cent | next token as with the whole cache in per cent | codes recalled "
        f"in per cent; means (whole cache: perplexity {np.exp(dense['loss']):.2f}, recall {100 * dense['recall']:.0f})",
        header=["channels dropped by", *[f"{r:.0%}" for r in RATIOS]],
        rows=[[title, *[_cell(table[way].get(r), dense) for r in RATIOS]] for way, title in WAYS.items()],
        claims=_claims(read),
        environment=environment("bf16", 1),
    )


# -- one paper


def measured(model: PreTrainedModel, tokenizer: Any, text: str, draw: Random) -> dict[str, Found]:
    """Every way and ratio on one paper, by way and ratio."""
    ids = torch.tensor([tokenizer.encode(text[: 12 * PROMPT])[: PROMPT + CONTINUED + 1]])
    context, questions = recall(tokenizer, text, draw)
    prompts = {"text": waiting(model, ids[:, :PROMPT]), "recall": waiting(model, context)}
    whole = _logits(model, replaced(prompts["text"], lambda _q, k: k), ids[:, PROMPT:-1])
    right, found = ids[0, PROMPT + 1 :], {}
    for way in ("dense", *WAYS):
        for ratio in _ratios(way):
            torch.manual_seed(draw.randrange(2**31))
            logits = _logits(model, cache_of(way, ratio, prompts["text"]), ids[:, PROMPT:-1])
            told = found.setdefault(way, {}).setdefault(str(ratio), {})
            losses = torch.nn.functional.cross_entropy(logits[0], right, reduction="none")
            told["loss"] = [float(f"{v:.{LOSS_DIGITS}g}") for v in losses.tolist()]
            told["agrees"] = _bits(logits.argmax(-1)[0] == whole.argmax(-1)[0])
            cache = cache_of(way, ratio, prompts["recall"])
            told["bytes"] = cache.bytes() if isinstance(cache, ThinKCache) else 0
            cache.batch_repeat_interleave(len(questions))
            said = _logits(model, cache, questions)[:, -4:-1].argmax(-1)  # what stands before each of three digits
            told["recall"] = _bits((said == questions[:, -3:]).all(1))
    return found


def _bits(yes: Tensor) -> str:
    return "".join("1" if v else "0" for v in yes.tolist())


def _logits(model: PreTrainedModel, cache: Cache, ids: Tensor) -> Tensor:
    return model(ids, cache=cache).logits.float()


def waiting(model: PreTrainedModel, ids: Tensor) -> ThinKCache:
    """The cache of a prompt, whole, with the queries of its window."""
    cache = ThinKCache(model.config, window=WINDOW, recent=RECENT, prompt=10 * ids.shape[1])
    model(ids, cache=cache, logits_to_keep=1)
    return cache


def cache_of(way: str, ratio: float, prompt: ThinKCache) -> Cache:
    """The prompt's cache as one way leaves it."""
    if way == "dense":
        return replaced(prompt, lambda _q, k: k)
    if way in ("think", "all", "snapkv"):
        rows = "all" if way == "all" else "thinned"
        budget = BUDGET if way == "snapkv" and prompt.get_seq_length() > BUDGET else None
        return prompt.thinned(ratio, score_rows=rows, budget=budget, block=None)
    return replaced(prompt, CHANGES[way](ratio))


def layers(cache: ThinKCache) -> list[ThinKLayer]:
    """Its layers that can be thinned: of SmolLM2 all."""
    return [layer for layer in cache.layers if isinstance(layer, ThinKLayer)]


def held(layer: ThinKLayer) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of the window, keys and values of a layer that waits."""
    if layer.queries is None or layer.keys is None or layer.values is None:
        raise ValueError("the layer is thin already")
    return layer.queries[:, :, -WINDOW:], layer.keys, layer.values  # more queries are held, for a crop


Change = Callable[[Tensor, Tensor], Tensor]  # of queries and keys: other keys


def replaced(prompt: ThinKCache, change: Change) -> DynamicCache:
    """A stock cache of the prompt with other keys."""
    cache = DynamicCache(config=prompt.settings.config)
    for i, layer in enumerate(layers(prompt)):
        queries, keys, values = held(layer)
        cache.update(change(queries, keys), values, i)
    return cache


def _of_old(change: Change) -> Change:
    """The change in all rows but the recent ones."""
    return lambda Q, K: torch.cat([change(Q, K[:, :, :-RECENT]), K[:, :, -RECENT:]], 2)


def _without(ratio: float, score: Change) -> Change:
    """Zeros in the channels of least score."""

    def change(Q: Tensor, K: Tensor) -> Tensor:
        channels = kept(score(Q, K), ratio)
        return filled(picked(K, channels), channels, K.shape[-1])

    return change


def projected(Q: Tensor, K: Tensor, rank: int) -> Tensor:
    """The keys of that rank that lose least of ``‖Q Kᵀ‖_F``, by group: ``K C^½ V Vᵀ C^-½`` with ``C = Qᵀ Q``."""
    q, k = Q.float().unflatten(1, (K.shape[1], -1)).flatten(2, 3), K.float()
    C = q.mT @ q
    values, vectors = torch.linalg.eigh(C)
    values = values.clamp_min(1e-6 * values[..., -1:])
    half, back = ((vectors * values[..., None, :] ** p) @ vectors.mT for p in (0.5, -0.5))
    V = torch.linalg.eigh(half @ k.mT @ k @ half).eigenvectors[..., -rank:]
    return (k @ (half @ V @ V.mT @ back)).to(K.dtype)


CHANGES: dict[str, Callable[[float], Change]] = {
    "keys": lambda r: _of_old(_without(r, lambda _q, k: k.float().square().mean(2))),
    "random": lambda r: _of_old(_without(r, lambda _q, k: torch.rand(k.shape[0], k.shape[1], k.shape[3]))),
    "zeroed": lambda r: _without(r, channel_scores),
    "pca": lambda r: _of_old(lambda q, k: projected(q, k, k.shape[-1] - int(r * k.shape[-1]))),
}


def recall(tokenizer: Any, text: str, draw: Random) -> tuple[Tensor, Tensor]:
    """Names and codes between a paper's sentences, some of them repeated; others to be asked, with answers."""
    words = [w for w in WORDS if len(tokenizer.encode(f"{w}: 123")) == len(tokenizer.encode("river: 123"))]
    names = draw.sample(words, NAMES)
    codes = {n: f"{draw.randrange(1000):03d}" for n in names}
    between = [s for s in text.replace("\n", " ").split(". ") if 40 < len(s) < 160]
    lines = [f"{between[2 * i]}. {between[2 * i + 1]}.\n{n}: {codes[n]}\n" for i, n in enumerate(names)]
    order = draw.sample(names, SHOTS + ASKED)
    shots = "".join(f"{n}: {codes[n]}\n" for n in order[:SHOTS])
    asked = [tokenizer.encode(f"{n}: {codes[n]}") for n in order[SHOTS:]]
    return torch.tensor([tokenizer.encode("".join(lines) + "Once more:\n" + shots)]), torch.tensor(asked)


# -- all papers


def _ratios(way: str) -> tuple[float, ...]:
    return (0.0,) if way == "dense" else (0.0, *RATIOS) if way == "snapkv" else RATIOS


def _summed(paper: Found) -> dict[str, dict[str, dict[str, float]]]:
    """A paper's means over its tokens and questions."""

    def share(bits: str) -> float:
        return bits.count("1") / len(bits)

    return {
        way: {
            ratio: {"loss": float(np.mean(told["loss"])), "agrees": share(told["agrees"]),
                    "recall": share(told["recall"]), "bytes": told["bytes"]}
            for ratio, told in by_ratio.items()
        }
        for way, by_ratio in paper.items()
    }  # fmt: skip


def _all(found: list[dict], way: str, ratio: float, what: str) -> np.ndarray:
    return np.array([f[way][str(ratio)][what] for f in found])


def _means(found: list[dict], way: str, ratio: float) -> dict[str, float]:
    return {what: float(_all(found, way, ratio, what).mean()) for what in ("loss", "agrees", "recall")}


def _cell(means: dict[str, float] | None, dense: dict[str, float]) -> str:
    if means is None:
        return "-"
    rise = 100 * (np.exp(means["loss"] - dense["loss"]) - 1)
    return f"{rise:+.1f} | {100 * means['agrees']:.1f} | {100 * means['recall']:.0f}"


def interval(differences: np.ndarray, *, draws: int = 5000) -> tuple[float, float, float]:
    """Mean over papers, and the 95 % interval of means of papers drawn again with replacement."""
    means = np.random.default_rng(0).choice(differences, (draws, len(differences))).mean(1)
    return float(differences.mean()), *np.quantile(means, [0.025, 0.975]).tolist()


WHOLE = " (whole 95 % interval over papers)"


def _told(d: tuple[float, float, float]) -> str:
    return f"{100 * d[0]:+.2f} [{100 * d[1]:+.2f}, {100 * d[2]:+.2f}]"


def _claims(found: list[dict]) -> list[Claim]:
    def rise(way: str, ratio: float, than: str = "dense") -> tuple[float, float, float]:
        """Of the logarithm of perplexity."""
        return interval(_all(found, way, ratio, "loss") - _all(found, than, 0.0 if than == "dense" else ratio, "loss"))

    middle = [r for r in RATIOS if r >= 0.4]
    power = 100 * _all(found, "dense", 0.0, "recall")
    four, agrees = rise("think", 0.4), _all(found, "think", 0.4, "agrees")
    lost = interval(_all(found, "think", 0.4, "recall") - _all(found, "dense", 0.0, "recall"))

    def worse(way: str, text: str, ratios: list[float], better: str = "think", *, control: bool = False) -> Claim:
        seen = {r: interval(_all(found, way, r, "loss") - _all(found, better, r, "loss")) for r in ratios}
        shown = ", ".join(f"{r:.0%}: {_told(d)}" for r, d in seen.items())
        found_text = f"difference of 100 · log perplexity with its 95 % interval: {shown}"
        held = all(d[1] > 0 for d in seen.values())
        return Claim(text=text + WHOLE, held=held, found=found_text, control=control)

    return [
        Claim(
            text="power: with the whole cache at least 80 % of the codes are recalled",
            held=power.mean() >= 80,
            found=f"{plus_minus(power, 1)} % by paper",
            control=True,
        ),
        Claim(
            text="without 40 % of the channels log perplexity rises by at most 0.02" + WHOLE,
            held=four[2] <= 0.02,
            found=f"100 · log perplexity {_told(four)}; the next token stays in {plus_minus(agrees)} %",
        ),
        Claim(
            text="and recall falls by at most 5 points" + WHOLE, held=lost[1] >= -0.05, found=f"{_told(lost)} points"
        ),
        worse("keys", "channels with the smallest keys, chosen without queries, are worse from 40 % on", middle),
        worse("all", "scores of the rows that are thinned are better than scores of all rows, from 40 % on", middle),
        worse("zeroed", "zeros in all rows, the recent ones too, are worse from 40 % on", middle),
        worse("think", "the best projection of the same rank is better still, from 40 % on", middle, better="pca"),
        _after_eviction(found),
        worse("random", "control: random channels are worse from 20 % on", list(RATIOS), control=True),
    ]


def _after_eviction(found: list[dict]) -> Claim:
    d = interval(_all(found, "snapkv", 0.4, "loss") - _all(found, "snapkv", 0.0, "loss"))
    return Claim(
        text=f"after SnapKV has left {BUDGET} of {PROMPT} tokens, 40 % of the channels cost at most 0.02 of "
        f"log perplexity{WHOLE}",
        held=d[2] <= 0.02,
        found=f"100 · log perplexity {_told(d)}",
    )
