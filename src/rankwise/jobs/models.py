"""The models of the main job: pretrained ones, and those that are made anew under a name of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from rankwise.jobs.lama import LAMA_RATES, VARIANTS, build_lama

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Untrained:
    """A model that comes without weights of its own.

    Attributes
    ----------
    base : str
        The pretrained model whose tokenizer it uses.
    tasks : tuple of str
        What it can learn.
    learning_rates : list of float
        The grid of full training.
    build : callable
        Makes one with ``num_labels`` outputs, drawn from the current random state.
    """

    base: str
    tasks: tuple[str, ...]
    learning_rates: list[float]
    build: Callable[..., PreTrainedModel]


UNTRAINED = {
    name: Untrained(
        base="minilm",
        tasks=("classification", "regression"),
        learning_rates=LAMA_RATES,
        build=partial(build_lama, name),
    )
    for name in VARIANTS
}


def base_of(model: str) -> str:
    """The pretrained model whose tokenizer a model uses: itself, but for those made anew."""
    return UNTRAINED[model].base if model in UNTRAINED else model


def fresh(
    name: str, *, task: str, num_labels: int, dropout: float | None = None, source: str | None = None
) -> PreTrainedModel:
    """A model with a new head, drawn from the current random state.

    Parameters
    ----------
    name : str
        As ``--model`` takes it.
    task : str
        Of the main job, e.g. ``"regression"``.
    num_labels : int
        Outputs of the head.
    dropout : float, optional
        Of a pretrained model; its own by default.
    source : str, optional
        Where a pretrained model is read from, if not by its name.

    Raises
    ------
    ValueError
        A task that the model cannot learn, and what `rankwise.models.load` refuses.
    """
    if (own := UNTRAINED.get(name)) is not None:
        if task not in own.tasks:
            raise ValueError(f"{name} classifies: its task is {' or '.join(own.tasks)}, not {task}")
        return own.build(num_labels=num_labels)
    from rankwise.models import load

    kind = "causal-lm" if task in ("causal-lm", "text-to-label") else "classification"
    return load(source or name, task=kind, num_labels=num_labels, dropout=dropout)
