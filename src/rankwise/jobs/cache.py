"""What a thinner key cache costs and saves on one's own texts: bytes, perplexity, next tokens, speed."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from rankwise.files import whole_folder, write_json
from rankwise.jobs.early import PAPERS, check_caches

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from rankwise.compression import ThinKCache

Each = Callable[[Sequence[Any], str], Iterable[Any]]
_COPIES = 4  # of a cache, to see what the process takes for one


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One ratio, over all texts.

    Attributes
    ----------
    ratio : float
        Share of key channels dropped.
    bytes : int
        Of all tensors of the first text's cache right after the prompt, summed over storages.
    resident : int
        By how much the process grows for a copy of it.
    perplexity : float
        Of what follows the prompts.
    agreement : float
        Share of those positions whose likeliest next token is that of the whole cache.
    tokens_per_second : float
        Of decoding, one token after the other; the median.
    """

    ratio: float
    bytes: int
    resident: int
    perplexity: float
    agreement: float
    tokens_per_second: float


@dataclass(frozen=True, kw_only=True)
class CacheReport:
    """All ratios.

    Attributes
    ----------
    model, texts : str
        What was read.
    used, tokens, continued : int
        Texts, tokens of a prompt, and tokens read after it.
    options : dict
        Further options of the caches.
    whole : int
        Bytes of the first text's cache as it is.
    rows : list of Measured
    """

    model: str
    texts: str
    used: int
    tokens: int
    continued: int
    options: dict[str, Any]
    whole: int
    rows: list[Measured]

    def told(self) -> str:
        """What was read."""
        texts = f"{self.used} text{'s' if self.used > 1 else ''}"
        return f"{texts} of {self.texts}: {self.tokens:,} tokens are thinned, {self.continued} read after"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def measure_caches(
    model: str,
    texts: str = PAPERS,
    *,
    out: Path | None = None,
    ratios: Sequence[float] = (0.0, 0.2, 0.4, 0.6),
    tokens: int = 2048,
    continued: int = 64,
    limit: int = 4,
    budget: int | None = None,
    bits: int | None = None,
    each: Each = lambda items, _what: items,
    report: Callable[[Path, CacheReport], None] | None = None,
) -> CacheReport:
    """Thin the cache of the first tokens of every text by each ratio, and read on.

    Parameters
    ----------
    model : str
        A causal language model: a bundled name, a folder, a hub id.
    texts : str
        A file or bundled texts; those with too few tokens are passed over.
    out : Path, optional
        Folder to write ``cache.json`` to, replaced as a whole.
    ratios : sequence of float
        Shares of key channels to drop.
    tokens, continued : int
        Of a prompt, and after it.
    limit : int
        Most texts, the first ones.
    budget, bits : int, optional
        Of `rankwise.compression.ThinKCache`.
    each : callable, optional
        Wraps the texts, to show progress.
    report : callable, optional
        Writes further files into the folder.

    Raises
    ------
    ValueError
        As `check_caches`; a model whose cache cannot be thinned; no text that is long enough.
    """
    check_caches(model, out, ratios=ratios, tokens=tokens, continued=continued, limit=limit, budget=budget, bits=bits)
    import torch

    from rankwise.compression import thinking
    from rankwise.models import load, load_tokenizer
    from rankwise.models.loading import placed

    prompts = _prompts(load_tokenizer(model), texts, tokens + continued, limit)
    network = placed(load(model, task="causal-lm").eval())
    _check_length(network, tokens + continued)
    given = {"budget": budget, "bits": bits}
    files = [p for p in (texts, model) if Path(p).exists()]
    with nullcontext(None) if out is None else whole_folder(out, made_by="cache", inputs=files) as draft:
        with torch.inference_mode(), thinking(network):
            texts_read = enumerate(ids.to(network.device) for ids in each(prompts, "texts"))
            found = [_one(network, ids, tokens, ratios, given, first=i == 0) for i, ids in texts_read]
        done = CacheReport(
            model=model, texts=texts, used=len(prompts), tokens=tokens, continued=continued, options=given,
            whole=int(found[0][0]["whole"]), rows=[_over_texts(r, [f[i] for f in found]) for i, r in enumerate(ratios)],
        )  # fmt: skip
        if draft is not None:
            write_json(draft / "cache.json", done.as_dict())
            if report is not None:
                report(draft, done)
    return done


def _prompts(tokenizer: Any, texts: str, needed: int, limit: int) -> list[Tensor]:
    from rankwise.jobs.compress import texts_of

    corpus, found, longest = texts_of(texts)[0] if texts != PAPERS else _papers(), [], 0
    for text in corpus.texts:
        ids = tokenizer(text[: 16 * needed], return_tensors="pt")["input_ids"][:, : needed + 1]
        longest = max(longest, ids.shape[1])
        if ids.shape[1] == needed + 1:
            found.append(ids)
        if len(found) == limit:
            return found
    if not found:
        raise ValueError(
            f"{corpus.name}: no text has {needed + 1:,} tokens (the longest has {longest:,}): lower --tokens, or give "
            "longer texts"
        )
    return found


def _papers() -> Any:
    from rankwise.data import papers

    return papers()


def _check_length(network: PreTrainedModel, needed: int) -> None:
    most = getattr(network.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if most is not None and needed > most:
        raise ValueError(f"{needed:,} tokens are more than the {most:,} positions of the model: lower --tokens")


def _one(
    network: PreTrainedModel, ids: Tensor, tokens: int, ratios: Sequence[float], given: dict[str, Any], *, first: bool
) -> list[dict[str, Any]]:
    """One text: for every ratio bytes, losses, next tokens and seconds a token."""
    import torch

    from rankwise.compression import ThinKCache

    prompt = ThinKCache(network.config, prompt=tokens + 1)
    network(ids[:, :tokens], cache=prompt, logits_to_keep=1)
    _check_seen(prompt)
    caches = [prompt.thinned(0.0)] + [prompt.thinned(r, **given) for r in ratios]
    whole = caches[0].bytes()
    told: list[dict[str, Any]] = [
        {"whole": whole, "bytes": c.bytes(), "loss": [], "next": [], "seconds": []} for c in caches
    ]
    for cache, kept in zip(caches, told, strict=True):
        kept["resident"] = resident(cache) if first else 0
    for at in range(tokens, ids.shape[1] - 1):
        for cache, kept in zip(caches, told, strict=True):
            start = time.perf_counter()
            logits = network(ids[:, at : at + 1], cache=cache).logits[0, -1].float()
            finite = bool(logits.isfinite().all())  # known once a GPU is done
            kept["seconds"].append(time.perf_counter() - start)
            if not finite:
                raise ValueError("the model's logits are nan or inf: are its weights whole?")
            kept["loss"].append(float(torch.nn.functional.cross_entropy(logits, ids[0, at + 1])))
            kept["next"].append(int(logits.argmax()))
    for kept in told[1:]:
        kept["same"] = [a == b for a, b in zip(kept["next"], told[0]["next"], strict=True)]
    return told[1:]


def _check_seen(prompt: ThinKCache) -> None:
    """Refuse what `ThinKCache.thinned` would, by what the model is."""
    from rankwise.compression.think import ThinKLayer

    kind = prompt.settings.config.model_type
    if not all(isinstance(layer, ThinKLayer) for layer in prompt.layers):
        raise ValueError(
            f"{kind} has layers that are not thinned, with windows or states: models whose layers all attend to "
            "everything are measured"
        )
    if any(isinstance(layer, ThinKLayer) and layer.queries is None for layer in prompt.layers):
        raise ValueError(f"{kind} does not tell its cache who reads it: nothing would be thinned")


def resident(cache: ThinKCache) -> int:
    """By how much the process, or what it holds of a GPU, grows for a copy of a cache."""
    before = _held(cache)
    copies = [copy.deepcopy(cache) for _ in range(_COPIES)]
    return (_held(cache) - before) // len(copies)


def _held(cache: ThinKCache) -> int:
    import torch

    if any(t.is_cuda for t in vars(cache.layers[0]).values() if isinstance(t, torch.Tensor)):
        return torch.cuda.memory_allocated()
    return psutil.Process().memory_info().rss


def _over_texts(ratio: float, found: list[dict[str, Any]]) -> Measured:
    return Measured(
        ratio=ratio,
        bytes=found[0]["bytes"],
        resident=found[0]["resident"],
        perplexity=float(np.exp(np.mean([f["loss"] for f in found]))),
        agreement=float(np.mean([f["same"] for f in found])),
        tokens_per_second=1 / statistics.median(s for f in found for s in f["seconds"]),
    )
