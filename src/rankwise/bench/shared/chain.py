"""One causal model is taught three abilities, and made smaller and asked, by steps that a chain puts in a row.

The abilities are those of `bench.shared.experts`, asked in words: polarity of movie snippets, source of a sentence,
whether its words are in order. A prompt is worked examples, then a question; answers are the abilities' own words,
told apart by their first token. Examples are read first and stay in the cache, so that a thin cache is what the
question is read with.

``python -m rankwise.bench.shared.chain FOLDER CACHE`` says what a model costs in a process of its own: resident bytes
of loading and asking it above the libraries', tokens a second, and the cache's bytes.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache, DynamicCache

from rankwise.bench.shared import experts
from rankwise.bench.shared.fresh_process import said_by
from rankwise.compression import ThinKCache, thinking
from rankwise.files import whole_folder
from rankwise.ledger import Cost, measure
from rankwise.models import load, load_tokenizer
from rankwise.prompting.examples import Example
from rankwise.tuning import EvaConfig, initialize

SAID = {"movies": "film", "nyt": "newspaper", "tweets": "tweet", "amazon": "shop"}  # other classes are words already
WORDS = 20  # of a text, at most
READ = 256  # examples that a start from data looks at
CONTEXT, NEW, TIMES = 1_024, 16, 5  # tokens that a model has read and writes, and how often, where its cost is taken


@dataclass(frozen=True, kw_only=True)
class Ability:
    """Answers, examples to learn from and to show, and questions."""

    labels: tuple[str, ...]
    pool: list[Example]
    asked: list[Example]


def abilities(pool: int, asked: int) -> dict[str, Ability]:
    """All three, of so many texts at most."""
    found = {}
    for name, corpus in experts.corpora().items():
        words = [SAID.get(c, c) for c in experts.CLASSES]
        parts = corpus.split()
        rows = [
            [
                Example(question=" ".join(t.split()[:WORDS]), answer=words[int(y)])
                for t, y in zip(part.texts, part.labels, strict=True)
            ]
            for part in (parts.train.head(pool), parts.test.head(asked))
        ]
        found[name] = Ability(labels=tuple(words[experts.OWN[name]]), pool=rows[0], asked=rows[1])
    return found


# --- words and tokens


def tokens(tokenizer: Any, example: Example) -> tuple[list[int], list[int]]:
    """A question up to its answer, and the answer."""
    return tuple(tokenizer([f"{example.question}\nAnswer:", f" {example.answer}\n\n"])["input_ids"])


def first_tokens(tokenizer: Any, labels: Sequence[str]) -> Tensor:
    """By which answers are told apart.

    Raises
    ------
    ValueError
        Two answers begin alike.
    """
    first = [tokenizer(f" {label}")["input_ids"][0] for label in labels]
    if len(set(first)) < len(first):
        raise ValueError(f"some of {', '.join(labels)} begin with the same token")
    return torch.tensor(first)


def batches(
    tokenizer: Any, pool: Sequence[Example], *, size: int, shown: int, seed: int
) -> Iterator[dict[str, Tensor]]:
    """Drawn without end: rows of ``shown`` examples in a row; labels are the answers' tokens, elsewhere -100."""
    rng = np.random.default_rng(seed)
    while True:
        rows = []
        for _ in range(size):
            parts = [tokens(tokenizer, pool[i]) for i in rng.choice(len(pool), shown, replace=False)]
            ids = [t for asked, said in parts for t in (*asked, *said)]
            labels = [t for asked, said in parts for t in (*[-100] * len(asked), said[0], *[-100] * (len(said) - 1))]
            rows.append((torch.tensor(ids), torch.tensor(labels)))
        ids, labels = (pad_sequence([r[i] for r in rows], True, (0, -100)[i]) for i in (0, 1))
        mask = pad_sequence([torch.ones_like(r[0]) for r in rows], True)
        yield {"input_ids": ids, "attention_mask": mask, "labels": labels}


# --- teaching


def taught(
    folder: Path, base: str, ability: Ability, start: str, *, steps: int, batch: int, shown: int, rank: int,
    rate: float, seed: int,
) -> Path:  # fmt: skip
    """An adapter's folder, made once: LoRA on all linear layers, started by ``eva`` or as PEFT does (``lora``)."""
    if not folder.is_dir():
        torch.manual_seed(seed)
        tokenizer, model = load_tokenizer("smollm2"), load(base, task="causal-lm")
        drawn = batches(tokenizer, ability.pool, size=batch, shown=shown, seed=seed)
        told: dict[str, Any] = {"r": rank, "lora_alpha": rank, "target_modules": "all-linear"}
        if start == "eva":
            read = batches(tokenizer, ability.pool, size=batch, shown=shown, seed=seed + 1_000)
            seen = [{k: v for k, v in next(read).items() if k != "labels"} for _ in range(-(-READ // (batch * shown)))]
            adapted = initialize(model, seen, EvaConfig(task_type="CAUSAL_LM", **told))
        else:
            adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **told))
        optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], rate, weight_decay=0.0)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = rate * (1 - step / steps)
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):  # takes half of the time; weights stay in float32
                loss = _answers_loss(adapted, next(drawn))
            loss.backward()
            optimizer.step()
        with whole_folder(folder, made_by="bench") as draft:
            adapted.save_pretrained(str(draft))
    return folder


def _answers_loss(adapted: PeftModel, batch: Mapping[str, Tensor]) -> Tensor:
    """Cross-entropy of the answers alone; logits of other places are not computed."""
    model: Any = adapted.get_base_model()
    hidden = model.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    labels = batch["labels"][:, 1:]
    at = labels != -100
    return F.cross_entropy(model.lm_head(hidden[:, :-1][at]).float(), labels[at])


def with_adapter(base: str, adapter: Path) -> Any:
    """The model with what an adapter taught it in its weights."""
    adapted = PeftModel.from_pretrained(load(base, task="causal-lm"), str(adapter))
    return adapted.merge_and_unload()


# --- asking


@torch.inference_mode()
def asked(model: Any, ability: Ability, shown: Sequence[Sequence[Example]], cache: str, ratio: float) -> dict[str, Any]:
    """Whether each question is answered rightly, and the right answer's log-probability among the ability's own."""
    tokenizer = load_tokenizer("smollm2")
    own = first_tokens(tokenizer, ability.labels)
    right, logp = [], []
    for question, examples in zip(ability.asked, shown, strict=True):
        read = [t for e in examples for part in tokens(tokenizer, e) for t in part]
        with thinking(model):
            held = cache_of(model, cache, ratio)
            model(torch.tensor([read]), cache=held, logits_to_keep=1)
            ids = torch.tensor([tokens(tokenizer, question)[0]])
            said = model(ids, cache=held, logits_to_keep=1).logits[0, -1, own].float().log_softmax(0)
        gold = ability.labels.index(question.answer)
        right.append(int(said.argmax() == gold))
        logp.append(float(said[gold]))
    return {"right": right, "logp": logp}


def cache_of(model: Any, kind: str, ratio: float, *, window: int = 8, recent: int = 8) -> Cache:
    """A dense cache, or one that thins what is older than the ``recent`` tokens; few of each are short prompts' due."""
    if kind == "dense":
        return DynamicCache(config=model.config)
    return ThinKCache(model.config, ratio=ratio, window=window, recent=recent)


# --- what it costs


def size_on_disk(folder: Path) -> int:
    """Bytes of its weights."""
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def cost(folder: Path, cache: str, ratio: float) -> dict[str, float]:
    """What a model costs in a process of its own."""
    return said_by("rankwise.bench.shared.chain", f"the cost of {folder}", folder, cache, ratio)


@torch.inference_mode()
def _spent(folder: str, kind: str, ratio: float) -> dict[str, float]:
    import transformers.models.llama.modeling_llama  # noqa: F401  (libraries belong to the baseline)

    whole, seconds, held = Cost(), [], 0
    with measure(whole):
        model = load(folder, task="causal-lm", dtype=torch.bfloat16).eval()
        ids = torch.randint(1_000, 2_000, (1, CONTEXT), generator=torch.Generator().manual_seed(0))
        for _ in range(TIMES):
            with thinking(model):
                cache = cache_of(model, kind, ratio, window=32, recent=32)
                last = model(ids, cache=cache, logits_to_keep=1).logits[:, -1].argmax(-1, keepdim=True)
                begin = time.perf_counter()
                for _ in range(NEW):
                    last = model(last, cache=cache, logits_to_keep=1).logits[:, -1].argmax(-1, keepdim=True)
                seconds.append(time.perf_counter() - begin)
            held = cache.bytes() if isinstance(cache, ThinKCache) else _bytes(cache)
    return {
        "peak": whole.peak_memory_bytes,
        "speed": NEW / min(seconds),  # other work on the machine only ever slows it down
        "cache": held,
    }


def _bytes(cache: Any) -> int:
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


if __name__ == "__main__":
    print(json.dumps(_spent(sys.argv[1], sys.argv[2], float(sys.argv[3]))))
