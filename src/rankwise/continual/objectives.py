"""What a task's loss and accuracy are: of a CLIP, of a sentence encoder, of a classifier, of a language model.

Losses see the classes of the task at hand alone: where classes of earlier tasks stand in the softmax at all, their
columns are -∞, so leaving them out is the same. For images ``x_b`` with classes ``y_b`` and cosines ``s`` times a scale

    L = -(1/B) Σ_b log softmax_c(s_bc)[y_b]  -  (1/C) Σ_c Σ_b 1[y_b = c] log softmax_b(s_bc)

where the second term, text to image, divides by the number C of all classes seen so far, as released: it shrinks as
classes accumulate. ``normalise_text_loss`` divides by the number of images instead. Accuracy is among the classes of
all domains together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankwise.models.loading import most_tokens
from rankwise.nearest import unknown

__all__ = ["Classifier", "ImageText", "LanguageModel", "Objective", "SentenceText", "objective_for"]

Batch = Mapping[str, Tensor]


class Objective(Protocol):
    """What the learner asks of a kind of model; an object of your own with these two methods serves any other kind.

    Examples
    --------
    >>> import torch
    >>> from rankwise.continual import Classifier, Objective
    >>> def used(objective: Objective):
    ...     return objective.loss
    >>> callable(used(Classifier()))
    True
    """

    def loss(self, model: nn.Module, batch: Batch, classes: Sequence[str], seen: int) -> Tensor:
        """The loss of a batch whose ``labels`` index ``classes``; ``seen`` other classes came before."""
        ...

    def right(self, model: nn.Module, batch: Batch, classes: Sequence[str], among: Sequence[str]) -> Tensor:
        """Which of the batch's answers are right, ``bool``, where ``among`` holds every class to choose from."""
        ...


def two_way_loss(logits: Tensor, labels: Tensor, *, all_classes: int | None = None) -> Tensor:
    """Image to text plus text to image.

    Parameters
    ----------
    logits : Tensor
        ``(batch, classes)``.
    labels : Tensor
        ``(batch,)``, indices of classes.
    all_classes : int, optional
        What the text term divides by; the batch's size by default.

    Examples
    --------
    >>> import torch
    >>> from rankwise.continual.objectives import two_way_loss
    >>> round(two_way_loss(torch.zeros(4, 2), torch.tensor([0, 0, 1, 1])).item(), 4)  # log 2 + log 4
    2.0794
    """
    to_image = F.log_softmax(logits, 0).gather(1, labels[:, None]).sum()
    return F.cross_entropy(logits, labels) - to_image / (all_classes or len(logits))


class _TwoTowers(ABC):
    """Items and names of classes side by side."""

    normalise_text_loss: bool
    template: str

    def __post_init__(self) -> None:
        if self.template.count("{}") != 1:
            raise ValueError(f"template '{self.template}' needs {{}} once, where the class stands")

    @abstractmethod
    def items(self, model: Any, batch: Batch) -> Tensor:
        """Features of the items."""

    @abstractmethod
    def names(self, model: Any, classes: Sequence[str]) -> Tensor:
        """Features of the classes."""

    @abstractmethod
    def scale(self, model: Any) -> Tensor | float:
        """What the cosines are multiplied by."""

    def logits(self, model: Any, batch: Batch, classes: Sequence[str]) -> Tensor:
        """Scaled cosines ``(batch, classes)``."""
        items, names = self.items(model, batch), self.names(model, classes)
        return self.scale(model) * F.normalize(items, dim=-1) @ F.normalize(names, dim=-1).mT

    def loss(self, model: nn.Module, batch: Batch, classes: Sequence[str], seen: int) -> Tensor:
        """Both ways, over the classes of the task."""
        total = None if self.normalise_text_loss else len(classes) + seen
        return two_way_loss(self.logits(model, batch, classes), batch["labels"], all_classes=total)

    def right(self, model: nn.Module, batch: Batch, classes: Sequence[str], among: Sequence[str]) -> Tensor:
        """By the nearest name."""
        return self.logits(model, batch, among).argmax(-1) == _places(classes, among, batch["labels"])


@dataclass(frozen=True, kw_only=True)
class ImageText(_TwoTowers):
    """Of a CLIP: pictures (``pixel_values``) by the captions of their classes.

    Attributes
    ----------
    tokenizer : PreTrainedTokenizerBase
    template : str
        A caption with ``{}`` for the class; ``a photo of a {}`` by default.
    normalise_text_loss : bool
        Divide the text term by the batch's size instead of the number of all classes. Default ``False``.

    Examples
    --------
    >>> from rankwise.continual import ImageText
    >>> from rankwise.models import load, load_tokenizer
    >>> import torch
    >>> objective = ImageText(tokenizer=load_tokenizer("clip-cifar10"))
    >>> objective.logits(load("clip-cifar10"), {"pixel_values": torch.zeros(1, 3, 32, 32)}, ["cat", "ship"]).shape
    torch.Size([1, 2])
    """

    tokenizer: Any
    template: str = "a photo of a {}"
    normalise_text_loss: bool = False

    def items(self, model: Any, batch: Batch) -> Tensor:
        """Features of the pictures."""
        return model.get_image_features(pixel_values=batch["pixel_values"]).pooler_output

    def names(self, model: Any, classes: Sequence[str]) -> Tensor:
        """Features of the captions."""
        most = model.config.text_config.max_position_embeddings
        words = _tokens(self.tokenizer, self.template, classes, most, next(model.parameters()).device)
        return model.get_text_features(**words).pooler_output

    def scale(self, model: Any) -> Tensor:
        """The model's own."""
        return model.logit_scale.exp()


@dataclass(frozen=True, kw_only=True)
class SentenceText(_TwoTowers):
    """Of a sentence encoder: texts by the names of their classes, both through the one tower.

    Attributes
    ----------
    tokenizer : PreTrainedTokenizerBase
    template : str
        A sentence with ``{}`` for the class; the name alone by default.
    temperature : float
        Cosines are divided by it. Default 0.05.
    normalise_text_loss : bool
        As of `ImageText`.

    Examples
    --------
    >>> from rankwise.continual import SentenceText
    >>> SentenceText(tokenizer=None).temperature
    0.05
    """

    tokenizer: Any
    template: str = "{}"
    temperature: float = 0.05
    normalise_text_loss: bool = False

    def items(self, model: Any, batch: Batch) -> Tensor:
        """The mean of the tokens that are no padding."""
        hidden = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        mask = batch["attention_mask"][..., None].to(hidden.dtype)
        return (hidden * mask).sum(1) / mask.sum(1)

    def names(self, model: Any, classes: Sequence[str]) -> Tensor:
        """Features of the classes' sentences."""
        device = next(model.parameters()).device
        return self.items(model, _tokens(self.tokenizer, self.template, classes, most_tokens(model), device))

    def scale(self, model: Any) -> float:
        """One over the temperature."""
        return 1 / self.temperature


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """Of a classifier: its outputs by the names that its configuration gives them.

    A task without classes has labels that index the outputs themselves, all of which are then of the task.

    Examples
    --------
    >>> import torch
    >>> from rankwise.continual import Classifier
    >>> from rankwise.models import load
    >>> batch = {"pixel_values": torch.zeros(2, 3, 32, 32), "labels": torch.tensor([0, 1])}
    >>> Classifier().right(load("vit-cifar10"), batch, ["cat", "ship"], ["bird", "cat", "ship"]).shape
    torch.Size([2])
    """

    def logits(self, model: Any, batch: Batch, classes: Sequence[str]) -> Tensor:
        """Outputs ``(batch, classes)``."""
        logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
        return logits[:, _outputs(model, classes)] if classes else logits

    def loss(self, model: nn.Module, batch: Batch, classes: Sequence[str], seen: int) -> Tensor:
        """Cross-entropy over the classes of the task."""
        if len(classes) == 1:
            raise ValueError(f"a classifier learns nothing from one class alone, '{classes[0]}': its loss is zero")
        return F.cross_entropy(self.logits(model, batch, classes), batch["labels"])

    def right(self, model: nn.Module, batch: Batch, classes: Sequence[str], among: Sequence[str]) -> Tensor:
        """By the largest output."""
        found = self.logits(model, batch, among).argmax(-1)
        return found == (_places(classes, among, batch["labels"]) if classes else batch["labels"])


@dataclass(frozen=True, kw_only=True)
class LanguageModel:
    """Of a causal language model: ``labels`` are tokens, -100 where none is asked.

    Examples
    --------
    >>> import torch
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> from rankwise.continual import LanguageModel
    >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=1))
    >>> batch = {"input_ids": torch.tensor([[1, 2, 3]]), "labels": torch.tensor([[-100, 2, 3]])}
    >>> LanguageModel().right(model, batch, (), ()).shape  # a verdict a token that is asked
    torch.Size([2])
    """

    def loss(self, model: Any, batch: Batch, classes: Sequence[str], seen: int) -> Tensor:
        """The model's own: mean over the tokens that are asked."""
        return model(**batch).loss

    def right(self, model: Any, batch: Batch, classes: Sequence[str], among: Sequence[str]) -> Tensor:
        """Token by token, each after the true ones before it."""
        logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits[:, :-1]
        labels = batch["labels"][:, 1:]
        asked = labels != -100
        return logits.argmax(-1)[asked] == labels[asked]


def objective_for(model: nn.Module, tokenizer: Any = None, **options: Any) -> Objective:
    """The objective of a model of `transformers`, by its class.

    Parameters
    ----------
    model : nn.Module
        A CLIP, an encoder without a head, a classifier of texts or pictures, or a causal language model.
    tokenizer : PreTrainedTokenizerBase, optional
        Needed for the first two.
    **options
        Of the objective.

    Raises
    ------
    ValueError
        Another model, or no tokenizer.

    Examples
    --------
    >>> from rankwise.continual import objective_for
    >>> from rankwise.models import load
    >>> objective_for(load("vit-cifar10"))
    Classifier()
    """
    kind = type(model).__name__
    if kind.endswith(("ForSequenceClassification", "ForImageClassification")):
        return Classifier(**options)
    if kind.endswith(("ForCausalLM", "LMHeadModel")):
        return LanguageModel(**options)
    towers = hasattr(model, "get_text_features") and hasattr(model, "logit_scale")
    if towers and "siglip" in kind.lower():
        raise ValueError(
            f"no objective for a {kind}, which reads captions padded to one length, without a mask: pass objective="
        )
    encodes = kind.endswith("Model") and getattr(model, "main_input_name", "") == "input_ids"
    if not towers and (not encodes or (hasattr(model, "encoder") and hasattr(model, "decoder"))):
        raise ValueError(
            f"no objective for a {kind}: CLIPs, encoders without a head, classifiers of texts or pictures and causal "
            "language models are known; pass objective=, an object with loss and right"
        )
    for tower in (getattr(model, "vision_model", None), getattr(model, "text_model", None)) if towers else ():
        if getattr(tower, "pooler", tower) is None:
            raise ValueError(f"no objective for a {kind} whose {type(tower).__name__} has no pooler: pass objective=")
    if tokenizer is None:
        raise ValueError(f"{kind} learns from the names of classes: pass its tokenizer=")
    return (ImageText if towers else SentenceText)(tokenizer=tokenizer, **options)


def _tokens(
    tokenizer: Any, template: str, classes: Sequence[str], most: int | None, device: torch.device
) -> dict[str, Tensor]:
    """Ids and mask of the classes' captions, ``(classes, tokens)``; an error where one is too long for the model."""
    words = tokenizer([template.replace("{}", c) for c in classes], padding=True, return_tensors="pt")
    lengths = words["attention_mask"].sum(1)
    if most is not None and int(lengths.max()) > most:
        longest = classes[int(lengths.argmax())]
        raise ValueError(
            f"the caption of '{longest[:60]}' has {int(lengths.max())} tokens; the model reads up to {most}"
        )
    return {k: words[k].to(device) for k in ("input_ids", "attention_mask")}


def _places(classes: Sequence[str], among: Sequence[str], labels: Tensor) -> Tensor:
    """Where the labels' classes stand among all."""
    where = {name: i for i, name in enumerate(among)}
    if lost := [c for c in classes if c not in where]:
        raise unknown("class", lost[0], where)
    return torch.tensor([where[c] for c in classes], device=labels.device)[labels]


def _outputs(model: Any, classes: Sequence[str]) -> list[int]:
    known = model.config.label2id
    for name in classes:
        if name not in known:
            raise unknown("class", name, known)
    return [int(known[name]) for name in classes]
