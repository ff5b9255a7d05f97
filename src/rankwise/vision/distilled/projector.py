"""What makes labels: an image encoder and a head of text embeddings, both changed by adapters of low rank alone.

    f(x) = W · E(x) / |E(x)|,   W = W₀ + BA,   W₀ = exp(logit scale) · unit embeddings of the classes' texts

With fresh adapters (B = 0) these are CLIP's own zero-shot logits. W₀ and the encoder's weights are of the base: they
are rebuilt from it, and only the adapters' numbers are kept.
"""

from __future__ import annotations

import copy
import hashlib
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import CLIPModel, PreTrainedModel

from rankwise.models import load, load_image_processor
from rankwise.models.loading import load_tokenizer
from rankwise.vision.distilled.tiles import scaled

HEAD = "head"
CLOSE = 1e-3  # of sums of W₀'s rows on another machine


@dataclass(frozen=True, kw_only=True)
class Seeing:
    """How a base takes pictures.

    Attributes
    ----------
    size : int or None
        Pixels of a side; ``None``: any.
    mean, std : tuple of float
        Of the three colours.
    """

    size: int | None = None
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        if len(self.mean) != 3 or len(self.std) != 3 or not all(math.isfinite(v) for v in (*self.mean, *self.std)):
            raise ValueError(f"mean={self.mean}, std={self.std}: three finite numbers each, of red, green and blue")
        if min(self.std) <= 0 or (self.size is not None and self.size < 1):
            raise ValueError(f"std={self.std}, size={self.size}: numbers above 0 are accepted")


class Tower(nn.Module):
    """The image half of a CLIP."""

    def __init__(self, model: CLIPModel) -> None:
        super().__init__()
        self.vision_model, self.visual_projection = model.vision_model, model.visual_projection

    def forward(self, pixels: Tensor) -> Tensor:
        """``(n, d)``, of no particular length."""
        return self.visual_projection(self.vision_model(pixel_values=pixels).pooler_output)


class Projector(nn.Module):
    """Logits of pictures in [0, 1].

    Parameters
    ----------
    encoder : nn.Module
        Pictures as the base takes them to ``(n, d)``; it is copied, and never leaves evaluation mode.
    rows : Tensor
        ``(classes, d)``, W₀.
    seeing : Seeing
        How the encoder takes pictures.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: nn.Module, rows: Tensor, seeing: Seeing) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder).cpu().float().requires_grad_(False)
        for part in self.encoder.modules():
            if isinstance(part, PreTrainedModel):
                part.set_attn_implementation("eager")  # under bfloat16 on a CPU much faster to train than the fused one
        self.head = nn.Linear(rows.shape[1], rows.shape[0], bias=False)
        self.head.weight = nn.Parameter(rows.detach().clone().float(), requires_grad=False)
        self.size = seeing.size
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(seeing, name)).view(3, 1, 1), persistent=False)
        self.eval()

    def train(self, mode: bool = True) -> Projector:
        """Statistics and dropout stand still while adapters learn."""
        return super().train(False)

    def features(self, pixels: Tensor) -> Tensor:
        """``E(x) / |E(x)|``, ``(n, d)``."""
        side = self.size or pixels.shape[-1]
        seen = self.encoder((scaled(pixels, side, side) - self.mean) / self.std)
        return F.normalize(getattr(seen, "pooler_output", seen).flatten(1), dim=-1)

    @torch.no_grad()
    def check(self, picture: Tensor) -> None:
        """``ValueError`` where the encoder does not give the head's features, finite, of ``picture (1, 3, s, s)``."""
        try:
            found = self.features(picture)
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(
                f"the base's {type(self.encoder).__name__} gives no features of a picture: (n, d), or an output with "
                f"pooler_output, is needed; of a classifier, its model without the head ({error})"
            ) from error
        if found.shape[1] != (width := self.head.weight.shape[1]) or not bool(found.isfinite().all()):
            raise ValueError(f"the base gives {found.shape[1]} features of a picture, or not finite ones: the head has "
                             f"{width}")  # fmt: skip

    def forward(self, pixels: Tensor) -> Tensor:
        """``(n, classes)``."""
        return self.head(self.features(pixels))


def based(base: str | nn.Module, texts: Sequence[str] | Tensor, tokenizer: Any = None) -> tuple[nn.Module, Tensor]:
    """The image encoder of a base and W₀ ``(classes, d)``: of texts, or as it is given."""
    if not isinstance(texts, Tensor):
        return of_clip(cast(Any, base), texts, tokenizer)
    if isinstance(base, str):
        raise ValueError(f"{base} with a head of numbers: give texts, or the encoder as an object")
    if tokenizer is not None:
        raise ValueError("a head of numbers needs no tokenizer: leave it out")
    if texts.ndim != 2 or len(texts) < 2 or not texts.is_floating_point() or not bool(texts.isfinite().all()):
        raise ValueError(f"a head of shape {tuple(texts.shape)}, {texts.dtype}: (classes, features), finite, is needed")
    return base, texts.detach().float()


def projected(model: Projector, rank: int, head_rank: int, seed: int) -> nn.Module:
    """With fresh adapters; as it is where both ranks are 0."""
    if not rank and not head_rank:
        return model
    return adapted(model, rank=rank, head_rank=head_rank, seed=seed)


def of_clip(base: str | CLIPModel, texts: Sequence[str], tokenizer: Any = None) -> tuple[nn.Module, Tensor]:
    """Encoder and W₀ of a CLIP by name or as an object."""
    if isinstance(base, str):
        base, tokenizer = cast(Any, load(base, task="zero-shot-image")), load_tokenizer(base)
    if not isinstance(base, CLIPModel):
        raise ValueError(f"the base is a {type(base).__name__}: a CLIPModel of transformers, or an image encoder with "
                         "a head of numbers instead of texts, is accepted")  # fmt: skip
    if tokenizer is None:
        raise ValueError("a CLIP as an object needs its tokenizer: tokenizer=…, or give the base by name")
    return Tower(base), text_rows(base, tokenizer, texts)


def seeing_of(base: str | nn.Module, seeing: Seeing | None) -> Seeing:
    """How a base takes pictures: as its processor says, or as it is told."""
    if not isinstance(base, str):
        config = getattr(base, "config", None)
        vision = getattr(config, "vision_config", config)
        return seeing or Seeing(size=getattr(vision, "image_size", None))
    if seeing is not None:
        raise ValueError(f"{base} says itself how it takes pictures: leave seeing out")
    told: Any = load_image_processor(base)
    config: Any = load(base, task="zero-shot-image").config
    plain = Seeing(size=config.vision_config.image_size)
    if not getattr(told, "do_normalize", True):
        return plain
    return Seeing(size=plain.size, mean=tuple(told.image_mean), std=tuple(told.image_std))


@torch.no_grad()
def text_rows(model: CLIPModel, tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """``exp(logit scale) ·`` unit embeddings of texts, ``(n, d)``."""
    model = copy.deepcopy(model).float().eval()
    ids = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt").to(model.device)
    found: Any = model.get_text_features(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"])
    rows = F.normalize(getattr(found, "pooler_output", found), dim=-1)
    return (model.logit_scale.exp() * rows).cpu()


def same_rows(rows: Tensor) -> list[tuple[int, int]]:
    """Pairs of classes whose rows are equal, which only an adapter can tell apart.

    Examples
    --------
    >>> import torch
    >>> from rankwise.vision.distilled.projector import same_rows
    >>> same_rows(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]))
    [(0, 2)]
    """
    apart = torch.cdist(rows[None], rows[None])[0] <= 1e-5 * rows.norm(dim=1).max()
    return [(int(i), int(j)) for i, j in apart.nonzero() if i < j]


def checksum(rows: Tensor) -> dict[str, Any]:
    """Of W₀: the bits, and each row's sum, which another machine's arithmetic moves a little."""
    held = rows.detach().float().cpu().contiguous()
    return {"sha256": hashlib.sha256(held.numpy().tobytes()).hexdigest(), "sums": held.double().sum(1).tolist()}


def check_rows(rows: Tensor, told: dict[str, Any]) -> None:
    """``ValueError`` where W₀ is another than what labels were made with."""
    found = checksum(rows)
    if found["sha256"] == told["sha256"]:
        return
    sums = told["sums"]
    if len(sums) == len(rows) and torch.allclose(torch.tensor(found["sums"]), torch.tensor(sums), atol=CLOSE):
        return
    raise ValueError("the head rebuilt from the base and the texts is another than the one that the labels were made "
                     "with: give the same base")  # fmt: skip


def weights_hash(encoder: nn.Module) -> str:
    """SHA-256 of an encoder's numbers, in float32, by name."""
    digest = hashlib.sha256()
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def layers(projector: Projector) -> Iterator[tuple[str, nn.Module]]:
    """Convolutions and linear layers that an adapter can stand beside, the head last.

    Not those in groups, which PEFT cannot merge, nor those inside attention that reads their weights itself.
    """
    inside = {m for whole in projector.modules() if isinstance(whole, nn.MultiheadAttention) for m in whole.modules()}
    for name, module in projector.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and module not in inside and getattr(module, "groups", 1) == 1:
            yield name, module


def ranks(projector: Projector, rank: int, head_rank: int) -> dict[str, int]:
    """The rank of each layer's adapter: as asked, at most the rank that its weights can have."""
    found = {}
    for name, layer in layers(projector):
        weight = cast(Tensor, layer.weight)
        if r := min(head_rank if name == HEAD else rank, weight.shape[0], weight[0].numel()):
            found[name] = r
    return found


def adapted(projector: Projector, *, rank: int = 8, head_rank: int = 64, seed: int = 0) -> PeftModel:
    """The projector with fresh adapters of PEFT, which change nothing yet.

    Parameters
    ----------
    projector : Projector
        Its layers are wrapped in place.
    rank, head_rank : int
        Of convolutions and linear layers; of the head. 0: none there; both 0 leave nothing to learn.
    seed : int
        Of the adapters' first halves.

    Raises
    ------
    ValueError
        No layer is left to adapt.
    """
    held = ranks(projector, rank, head_rank)
    if not held:
        raise ValueError(f"rank={rank}, head_rank={head_rank}: no layer is left to adapt")
    names = sorted(held, key=len, reverse=True)  # PEFT takes the first pattern that fits a name's end
    pattern = {re.escape(name): held[name] for name in names}
    config = LoraConfig(
        r=max(held.values()),
        lora_alpha=max(held.values()),
        rank_pattern=pattern,
        alpha_pattern=pattern,
        target_modules="|".join(map(re.escape, names)),
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a projector is no model of transformers
        torch.manual_seed(seed)
        return cast(PeftModel, get_peft_model(cast(Any, projector), config))


def numbers(model: nn.Module) -> dict[str, Tensor]:
    """The adapters' numbers, by name: all that is kept of a projector."""
    held = {n: p for n, p in model.named_parameters() if ".lora_" in n}
    return {n.removeprefix("base_model.model.").replace(".default.", "."): p for n, p in held.items()}


def within(model: nn.Module) -> Projector:
    """The projector inside of what PEFT made of it."""
    return model if isinstance(model, Projector) else cast(Any, model).base_model.model


@torch.no_grad()
def halved(model: nn.Module) -> None:
    """Round the adapters' numbers to what float16 holds, so that what is kept is what makes labels."""
    for name, p in numbers(model).items():
        p.copy_(p.half().float())
        if not bool(p.isfinite().all()):
            raise ValueError(f"{name} is beyond float16: lower the learning rate")


@torch.no_grad()
def give(model: nn.Module, held: dict[str, Tensor]) -> None:
    """Put the adapters' numbers in.

    Raises
    ------
    ValueError
        Names or shapes are not those of this base and these ranks.
    """
    own = numbers(model)
    if strange := sorted(own.keys() ^ held.keys()):
        raise ValueError(f"the labels' adapters are of another base: {strange[0]} does not fit")
    for name, p in own.items():
        if p.shape != held[name].shape:
            raise ValueError(f"{name} is {tuple(held[name].shape)}, and this base needs {tuple(p.shape)}")
        p.copy_(held[name].float())
