"""What decides how requests are forgotten, checked once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rankwise.continual.accepted import check_ranges
from rankwise.continual.training import Schedule
from rankwise.continual.unlearning.names import CHOICES, check_choices
from rankwise.continual.unlearning.rows import REFUSALS

__all__ = ["UnlearningSettings"]


@dataclass(frozen=True, kw_only=True)
class UnlearningSettings:
    """How requests are forgotten.

    Parameters
    ----------
    rank : int, optional
        Of a request's block. None: the largest up to 8 with which a request, its detector included, holds at most 1 %
        of the model's bytes.
    scaling : float
        ``s``, LoRA's alpha over rank. Default 2.
    dropout : float
        On the blocks' inputs in training.
    target : str
        The layers that get blocks, as `rankwise.models.target_modules` takes them.
    adapter : {"blocks", "shared"}
        A block a request, or one adapter that every request trains on, as released.
    combine : {"per-block", "max"}, optional
        Whether a block has its own request's weight, or all have the largest. Default: by ``adapter``; a shared one
        has only the largest.
    orthogonal : float
        Weight of ``Σ_{s<t} ‖A_s A_tᵀ‖_F²``; 0 switches it off, and the start that is orthogonal too.
    schedule : Schedule
        Of a request's training. Default 100 steps of 16 at 1e-3.
    answers : {"refusal", "random", "released"}
        What is learned instead: refusals, other answers drawn at random, or any answer, the true one included.
    refusals : sequence of str
        Those that ``answers="refusal"`` draws from.
    learn_prompts : bool
        Whether the prompt's tokens are learned too, as released.
    style : {"chat", "text"}
        Whether prompts go through the tokenizer's chat template.
    max_length : int
        Tokens of a prompt and its answer.
    score : {"standardised", "released"}
        Of a layer, see `rankwise.continual.unlearning.detector`.
    nu : float
        Of the one-class SVM.
    encoder_steps : int
        Steps of tuning the encoder on each request's texts; 0 leaves all requests one frozen encoder, whose states
        they share. Each tuned request costs a pass of its own.
    encoder_rate : float
        Its learning rate.
    router : {"soft", "hard", "released", "released-tofu", "off"}
        How a weight becomes a scale: monotone and soft, one step, as released with its holes, or everything always on.
    two_sided : bool
        Whether texts that are *more* like a request than its own are switched off too, as released.
    low, high : float
        Weight up to which the model stays as it is, and from which on a block acts fully.
    top : float
        Scale of a block that acts fully; above 1 unlearns more than was trained (1.2 in the released code).
    keep_texts : bool
        Whether the state holds the forgotten texts, so that they can be measured again after later requests.
    seed : int
        Of all draws.

    Raises
    ------
    ValueError
        A value outside of what is said above; it is named.

    Examples
    --------
    >>> from rankwise.continual import UnlearningSettings
    >>> UnlearningSettings(adapter="shared").combined
    'max'
    >>> UnlearningSettings.released().router
    'released'
    """

    rank: int | None = None
    scaling: float = 2.0
    dropout: float = 0.05
    target: str = "auto"
    adapter: Literal["blocks", "shared"] = "blocks"
    combine: Literal["per-block", "max"] | None = None
    orthogonal: float = 0.1
    schedule: Schedule = field(default_factory=lambda: Schedule(steps=100, batch_size=16, learning_rate=1e-3))
    answers: Literal["refusal", "random", "released"] = "refusal"
    refusals: Sequence[str] = REFUSALS
    learn_prompts: bool = False
    style: Literal["chat", "text"] = "chat"
    max_length: int = 256
    score: Literal["standardised", "released"] = "standardised"
    nu: float = 0.1
    encoder_steps: int = 0
    encoder_rate: float = 1e-5
    router: Literal["soft", "hard", "released", "released-tofu", "off"] = "soft"
    two_sided: bool = False
    low: float = 0.2
    high: float = 0.5
    top: float = 1.0
    keep_texts: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_choices(**{name: getattr(self, name) for name in CHOICES if getattr(self, name) is not None})
        if self.adapter == "shared" and self.combine == "per-block":
            raise ValueError("a shared adapter has one scale: combine='max'")
        check_ranges(
            self,
            shares=("dropout", "nu", "low", "high"),
            amounts=("scaling", "orthogonal", "encoder_rate", "top"),
            least={"max_length": 2, "encoder_steps": 0, "seed": 0, "rank": 1},
        )
        if self.nu == 0 or self.dropout == 1 or self.low >= self.high:
            raise ValueError(f"nu={self.nu} must be above 0, dropout={self.dropout} below 1, low={self.low} below high")
        if not self.refusals or not all(isinstance(r, str) and r.strip() for r in self.refusals):
            raise ValueError("refusals must be a list of sentences")

    @property
    def combined(self) -> str:
        """``combine``, or what ``adapter`` makes of it."""
        return self.combine or ("max" if self.adapter == "shared" else "per-block")

    @classmethod
    def released(cls, **changes: Any) -> UnlearningSettings:
        """As the released code: one shared adapter of rank 8, any answer drawn, a router with a hole."""
        return cls(**{
            "rank": 8, "adapter": "shared", "answers": "released", "learn_prompts": True, "score": "released",
            "router": "released", "two_sided": True, "encoder_steps": 100,
            "schedule": Schedule(steps=150, batch_size=128, learning_rate=3e-4), **changes,
        })  # fmt: skip
