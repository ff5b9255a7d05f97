"""How far a checkpoint went from another: alignments of the whole, and what of every weight moved."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankwise.jobs.early import check_laziness

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from rankwise.dynamics import Laziness

DIRECTIONS = 4  # of an encoder's embedding
OUTPUTS = {
    "classification": "class scores",
    "image-classification": "class scores",
    "causal-lm": "mean log-probability of a text",
    "base": f"mean-pooled embedding along {DIRECTIONS} fixed random directions",
}
Waiting = Callable[[str], AbstractContextManager[Any]]


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Two checkpoints.

    Attributes
    ----------
    before, after, data : str
    outputs : str
        Of what the tangent kernel is.
    inputs, rows : int
        Texts or pictures that were read, and those of them that entered the tangent kernel.
    laziness : Laziness
    weights : list of dict
        Of every weight that counted, the most moved first: ``weight``, ``change``, ``relative_change``, and
        ``effective_rank`` of the change of a matrix (participation ratio); None where that is not defined.
    """

    before: str
    after: str
    data: str
    outputs: str
    inputs: int
    rows: int
    laziness: Laziness
    weights: list[dict[str, Any]]

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows for people."""
        found = self.laziness
        return ["measure", "found", "lazy"], [
            ["kernel alignment", f"{found.kernel_alignment:.4f}", "1"],
            ["representation alignment", f"{found.representation_alignment:.4f}", "1"],
            ["equal signs of hidden activity", f"{found.sign_similarity:.4f}", "1"],
            ["change of the weights", f"{found.weight_change:.4g}", "0"],
            ["relative to their norm", f"{found.relative_weight_change:.4g}", "0"],
        ]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        told = {k: getattr(self, k) for k in ("before", "after", "data", "outputs", "inputs", "rows")}
        measures = {k: v for k, v in self.laziness.as_dict().items() if v is not None}
        return told | measures | {"weights": self.weights}


def compare_checkpoints(
    before: str,
    after: str,
    data: str,
    *,
    out: Path | None = None,
    target: str | None = None,
    limit: int = 64,
    rows: int = 16,
    max_length: int = 64,
    center: bool = False,
    seed: int = 0,
    waiting: Waiting = lambda what: nullcontext(),
) -> Compared:
    """How rich or lazy what lies between two checkpoints of one network was.

    Parameters
    ----------
    before, after : str
        Bundled names, folders or hub ids; compared with their heads where both have one of the same kind, else without.
    data : str
        Texts, or for image classifiers pictures: a file or folder, or bundled ones.
    out : Path, optional
        A csv, tsv, jsonl, json or parquet file for a row a weight.
    target : str, optional
        Regular expression of the weights that count; by default those of the linear layers in the blocks.
    limit, rows, max_length : int
        Texts or pictures, those of them that enter the tangent kernel, and tokens of a text.
    center : bool
        Centre the kernels.
    seed : int
        Draws the directions of an encoder's embedding.
    waiting : callable
        Given a few words, a context around what takes long.

    Raises
    ------
    ValueError
        As `check_laziness`; models of different kinds; as `rankwise.dynamics.laziness`.
    """
    check_laziness(before, after, data, out=out, limit=limit, rows=rows, max_length=max_length, seed=seed)
    import torch

    from rankwise.data.tables import write_rows
    from rankwise.dynamics import laziness
    from rankwise.models import linear_layers
    from rankwise.models.loading import most_tokens

    kind = _kind(before, after)
    with waiting("reading"):
        first, last = _loaded(before, kind), _loaded(after, kind)
        if type(first) is not type(last):
            raise ValueError(f"{before} is a {type(first).__name__} and {after} a {type(last).__name__}: of one class")
        _check_same(before, first, after, last)
        read, n = _inputs((before, after), kind, data, limit, min(max_length, most_tokens(first) or max_length))
        inputs = {k: v.to(first.device) for k, v in read.items()}
        if n < 2:
            raise ValueError(f"{data}, limit={limit}: a single input, whose alignment is 1 by itself; at least 2")
        inside = [f"{name}.weight" for name in linear_layers(last)] if target is None else target
    with waiting("measuring"):
        direction = torch.randn(_width(last), DIRECTIONS, generator=torch.Generator().manual_seed(seed)).to(last.device)
        found = laziness(
            first, last, inputs, params=inside, rows=min(rows, n), center=center,
            output_fn=_output(kind, direction / DIRECTIONS**0.5), representation_fn=_representation(kind),
        )  # fmt: skip
        weights = _moved(first, last, inside)
    if out is not None:
        write_rows(out, weights)
    return Compared(before=before, after=after, data=data, outputs=OUTPUTS[kind], inputs=n, rows=min(rows, n),
                    laziness=found, weights=weights)  # fmt: skip


def _kind(*names: str) -> str:
    """What both are for; without heads, where they are for different things."""
    from transformers import AutoConfig

    from rankwise.models import resolve
    from rankwise.models.loading import pretrained
    from rankwise.models.names import OWN_TASKS

    kinds = set()
    for name in names:
        config = pretrained(AutoConfig, resolve(name))
        made_for = str(next(iter(config.architectures or ()), ""))
        ends = {"ForSequenceClassification": "classification", "ForCausalLM": "causal-lm", "LMHeadModel": "causal-lm",
                "ForImageClassification": "image-classification"}  # fmt: skip
        kind = next((k for end, k in ends.items() if end in made_for), "base")
        own = OWN_TASKS.get(config.model_type, ("base",))
        if ("image-classification" not in own and own != ("base",)) or (kind == "base" and own != ("base",)):
            raise ValueError(f"{name} is a {config.model_type}: encoders and decoders of texts, and image classifiers, "
                             "are compared")  # fmt: skip
        kinds.add(kind)
    if "image-classification" in kinds and len(kinds) > 1:
        raise ValueError(f"{' and '.join(names)}: one classifies images, the other does not")
    return kinds.pop() if len(kinds) == 1 else "base"


def _loaded(name: str, kind: str) -> PreTrainedModel:
    from transformers import AutoConfig

    from rankwise.models import load, resolve
    from rankwise.models.loading import placed, pretrained

    labels = pretrained(AutoConfig, resolve(name)).num_labels if kind == "classification" else None
    task: Any = kind
    return placed(load(name, task=task, num_labels=labels).eval())


def _check_same(before: str, first: PreTrainedModel, after: str, last: PreTrainedModel) -> None:
    """Both hold finite weights of the same names and shapes, and where texts are read, the same words."""
    old, new = dict(first.named_parameters()), dict(last.named_parameters())
    alone = sorted(set(old) ^ set(new))
    if alone:
        raise ValueError(f"{before if alone[0] in old else after} alone has {alone[0]}: {before} and {after} are not "
                         "checkpoints of one network")  # fmt: skip
    for name, p in old.items():
        if p.shape != new[name].shape:
            raise ValueError(f"{name} is {tuple(p.shape)} in {before} and {tuple(new[name].shape)} in {after}: not "
                             "checkpoints of one network")  # fmt: skip
        for model, w in ((before, p), (after, new[name])):
            if not bool(w.isfinite().all()):
                raise ValueError(f"{name} of {model} has NaN or Inf entries")


def _tokenizer(before: str, after: str) -> Any:
    """Of the first that has one; of one vocabulary, where both do."""
    from rankwise.models import load_tokenizer

    found, missing = {}, []
    for model in (before, after):
        try:
            found[model] = load_tokenizer(model)
        except (OSError, ValueError) as error:
            missing.append(error)
    if not found:
        raise missing[0]
    if len({tuple(sorted(t.get_vocab().items())) for t in found.values()}) > 1:
        raise ValueError(f"the tokenizers of {before} and {after} differ: token numbers mean different words")
    return next(iter(found.values()))


def _inputs(
    models: tuple[str, str], kind: str, data: str, limit: int, max_length: int
) -> tuple[dict[str, Tensor], int]:
    if kind == "image-classification":
        from rankwise.data import read_images
        from rankwise.models import load_image_processor

        images = read_images(data, split="test" if data in ("digits", "mnist", "cifar10") else None).head(limit)
        pictures = [images.pil(i).convert("RGB") for i in range(len(images))]
        taken = load_image_processor(models[0])(pictures, return_tensors="pt")
        return {"pixel_values": taken["pixel_values"]}, len(pictures)
    from rankwise.data import load as texts_of

    texts = texts_of(data, task="causal-lm").texts if not data.startswith("sentiment:") else texts_of(data).texts
    texts = [t for t in texts if t.strip()][:limit]
    if not texts:
        raise ValueError(f"{data} holds no text")
    tokenizer = _tokenizer(*models)
    tokenizer.padding_side = "right"
    tokens = tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=max_length)
    kept = {k: v for k, v in tokens.items() if k in ("input_ids", "attention_mask", "token_type_ids")}
    if kind == "causal-lm":
        if int(kept["attention_mask"].sum(1).min()) < 2:
            raise ValueError(f"{data}: a text of a single token has no probability; leave it out")
        kept.pop("token_type_ids", None)
    return kept, len(texts)


def _width(model: PreTrainedModel) -> int:
    return int(getattr(model.config, "hidden_size", 1))


def _pooled(states: Tensor, mask: Tensor) -> Tensor:
    """``(n, d)``."""
    share = (mask / mask.sum(1, keepdim=True)).to(states.dtype)
    return (states * share[..., None]).sum(1)


def _output(kind: str, direction: Tensor) -> Callable[[nn.Module, Any], Tensor] | None:
    def likelihood(model: Any, inputs: Any) -> Tensor:
        logits = model(**inputs).logits[:, :-1]
        said = logits.log_softmax(-1).gather(-1, inputs["input_ids"][:, 1:, None])
        return _pooled(said, inputs["attention_mask"][:, 1:])

    def embedding(model: Any, inputs: Any) -> Tensor:
        states = model(**inputs).last_hidden_state
        return _pooled(states, inputs["attention_mask"]) @ direction[: states.shape[-1]]

    return {"causal-lm": likelihood, "base": embedding}.get(kind)


def _representation(kind: str) -> Callable[[nn.Module, Any], Tensor] | None:
    def pooled(model: Any, inputs: Any) -> Tensor:
        states = model(**inputs, output_hidden_states=True).hidden_states[-1]
        return _pooled(states, inputs["attention_mask"])

    return pooled if kind in ("causal-lm", "base") else None


def _moved(before: nn.Module, after: nn.Module, params: str | list[str]) -> list[dict[str, Any]]:
    import torch

    from rankwise.dynamics import effective_rank
    from rankwise.dynamics.rich_lazy.kernels import selected

    first, rows = dict(before.named_parameters()), []
    for name, p in selected(after, params).items():
        old = first[name].detach().float()
        change = p.detach().float() - old
        # sums in float32 are off in the fourth digit where there are millions of entries
        size, norm = (float(torch.linalg.vector_norm(w, dtype=torch.float64)) for w in (change, old))
        rank = float(effective_rank(change)) if change.dim() == 2 and size > 0 else None
        relative = size / norm if norm else (None if size else 0.0)
        rows.append({"weight": name, "change": size, "relative_change": relative, "effective_rank": rank})
    return sorted(rows, key=lambda row: -math.inf if row["relative_change"] is None else -row["relative_change"])
