"""OwLore: all parameters trained, a few blocks at a time, each through low-rank gradients.

    every K steps   freeze all blocks, draw γ of them with p_ℓ ∝ D_ℓ (outlier scores), let those train
    every step      GaLore-projected AdamW on their matrices, plain AdamW on embeddings, norms and head
    at a switch     the state of blocks put to sleep is dropped; when drawn again they start anew

Each parameter is updated inside the backward pass and its gradient freed, so that memory holds the weights, the
embeddings' moments, the low-rank state of γ blocks and one gradient at a time.

Source: Li, Yin, Gao & Liu, "OwLore: Outlier-weighed Layerwise Sampled Low-Rank Projection for LLM Fine-tuning", arXiv
2405.18380. The released code never frees the state of sleeping layers (``keep_state=True``), so its memory grows.

What people get wrong: building the optimiser on what trains at the moment. It must know every parameter from the start,
and leave the frozen ones alone, decay included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rankwise.models.activations import Batch
from rankwise.models.outliers import outlier_scores
from rankwise.optim.galore import GaLoreAdamW, galore_groups
from rankwise.optim.sampling import LayerSampler, Mode

if TYPE_CHECKING:
    from transformers import TrainerCallback


class OwLore(GaLoreAdamW):
    """Outlier-weighed layer sampling with low-rank gradients, as one optimiser.

    Parameters
    ----------
    model : nn.Module
        The whole model; every parameter of it is known to the optimiser.
    lr : float
        Default 3e-4.
    rank : int, optional
        Of the projection; by default a sixteenth of the largest smaller side of a matrix (hidden size / 16). 0 leaves
        gradients whole (LISA, with ``mode="uniform"``).
    scores : sequence of float, optional
        Outlier scores of the blocks; by default ``outlier_scores(model, dataloader, threshold=threshold)``.
    dataloader : iterable of dict of Tensor, optional
        Calibration batches for the scores; without it the weights alone decide.
    mode, active, interval, layers_attribute
        See `LayerSampler`.
    update_gap, scale
        See `GaLoreAdamW`; 100 and 1.0 here.
    keep_state : bool
        Keep the moments of sleeping blocks.
    in_backward : bool
        Update in the backward pass (`GaLoreAdamW.step_in_backward`). Off, all gradients exist together.
    seed : int
        Of the draws and of the projection.
    **options
        Further options of `GaLoreAdamW`.

    Raises
    ------
    ValueError
        No list of blocks, no linear layer, γ or rank out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 3e-4,
        *,
        rank: int | None = None,
        scores: Sequence[float] | Tensor | None = None,
        dataloader: Iterable[Batch] | None = None,
        threshold: float = 13.0,
        mode: Mode = "owl",
        active: int | None = None,
        interval: int = 50,
        update_gap: int = 100,
        scale: float = 1.0,
        keep_state: bool = False,
        in_backward: bool = True,
        layers_attribute: str | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        if scores is None and mode in ("owl", "owl_reverse"):
            scores = outlier_scores(model, dataloader, threshold=threshold, layers_attribute=layers_attribute)
        groups = galore_groups(model)
        if rank is None:
            rank = max(1, max(min(p.shape) for p in groups[0]["params"]) // 16)
        if rank:
            groups[0] |= {"rank": rank}
        super().__init__(groups, lr, update_gap=update_gap, scale=scale, seed=seed, **options)
        self.keep_state = keep_state
        self.sampler = LayerSampler(
            model, scores, mode=mode, active=active, interval=interval, seed=seed, layers_attribute=layers_attribute
        )
        if in_backward:
            self.step_in_backward(model=model)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Close the step; at every ``interval``-th, switch blocks."""
        loss = super().step(closure)
        if self.sampler.step() and not self.keep_state:
            self._drop_sleeping()
        return loss

    def release(self) -> None:
        """Let all blocks train again: call it after training."""
        self.sampler.release()
        self._untie()
        self._untie = lambda: None

    def _drop_sleeping(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if not p.requires_grad:
                    self.state.pop(p, None)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to resume exactly, the sampler included."""
        return {**super().state_dict(), "sampler": self.sampler.state_dict()}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        super().load_state_dict(state_dict)
        self.sampler.load_state_dict(state_dict["sampler"])

    def callback(self) -> TrainerCallback:
        """For `transformers.Trainer`: refuses settings that cannot work, and lets all blocks train at the end."""
        return _owlore_callback(self)


def _owlore_callback(optimizer: OwLore) -> TrainerCallback:
    from transformers import TrainerCallback

    class OwLoreCallback(TrainerCallback):
        """Checks the arguments when training begins, releases the blocks when it ends."""

        def on_train_begin(self, args, state, control, **kwargs):
            if optimizer.updates_in_backward and args.gradient_accumulation_steps > 1:
                raise ValueError(
                    f"gradient_accumulation_steps={args.gradient_accumulation_steps}: updates in the backward pass "
                    "cannot accumulate; use 1, or OwLore(in_backward=False)"
                )
            if optimizer.updates_in_backward and args.world_size > 1:
                raise ValueError("updates in the backward pass come before gradients are averaged: in_backward=False")

        def on_train_end(self, args, state, control, **kwargs):
            optimizer.release()

    return OwLoreCallback()
