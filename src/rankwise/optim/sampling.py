"""Layerwise sampling: train a few blocks at a time, drawn anew every K steps.

    p_ℓ = D_ℓ / Σ D     (OwLore: D is the outlier score of `rankwise.models.outliers`; uniform p is LISA)

γ blocks are drawn without replacement, one after the other, the rest renormalised after each; the others are frozen.
What is not in a block (embeddings, final norm, head) always trains.

Source: Li et al., "OwLore", arXiv 2405.18380; Pan et al., "LISA", NeurIPS 2024, arXiv 2403.17919.

What people get wrong: weight decay and old moments still move a frozen layer when the optimiser is not told. Here a
frozen block has no gradient, and `rankwise.optim.OwLore` drops its state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from rankwise.models.targets import blocks
from rankwise.nearest import unknown

if TYPE_CHECKING:
    from transformers import TrainerCallback

Mode = Literal["owl", "owl_reverse", "uniform", "increase", "decrease", "norm"]
MODES = ("owl", "owl_reverse", "uniform", "increase", "decrease", "norm")
_FLOOR = 1e-6


class LayerSampler:
    """Freezes all blocks of a model but a few, drawn anew every ``interval`` steps.

    Parameters
    ----------
    model : nn.Module
        With a list of repeated blocks. The first draw happens here.
    scores : sequence of float, optional
        One a block, non-negative: the outlier scores of ``owl`` and ``owl_reverse``.
    mode : {"owl", "owl_reverse", "uniform", "increase", "decrease", "norm"}
        Sampling distribution, see `sampling_probabilities`.
    active : int, optional
        Blocks γ that train at a time; ``round(0.15 · blocks)``, at least 2, by default.
    interval : int
        Steps K between draws.
    seed : int
        Of the draws.
    layers_attribute : str, optional
        Dotted name of the list of blocks, where it cannot be found.

    Attributes
    ----------
    probabilities : Tensor
        ``(blocks,)`` float64.
    active_layers : list of int
        The blocks that train now.

    Raises
    ------
    ValueError
        γ out of range, scores of another length, an unknown mode, no list of blocks.
    """

    def __init__(
        self,
        model: nn.Module,
        scores: Sequence[float] | Tensor | None = None,
        *,
        mode: Mode = "owl",
        active: int | None = None,
        interval: int = 50,
        seed: int = 0,
        layers_attribute: str | None = None,
    ) -> None:
        self.layers = blocks(model, layers_attribute=layers_attribute)[1]
        n = len(self.layers)
        self.active = min(n, max(2, round(0.15 * n))) if active is None else active
        if not 1 <= self.active <= n:
            raise ValueError(f"active={self.active} is outside 1..{n}, the blocks of the model")
        if interval < 1:
            raise ValueError(f"interval={interval}: at least 1 step")
        self.probabilities = sampling_probabilities(mode, self.layers, scores)
        self.interval, self.steps, self.active_layers = interval, 0, []
        self._generator = torch.Generator().manual_seed(seed)
        self.draw()

    def draw(self) -> list[int]:
        """Draw the next blocks, freeze the others and free their gradients."""
        drawn = torch.multinomial(self.probabilities, self.active, generator=self._generator)
        self._train_only(sorted(drawn.tolist()))
        return self.active_layers

    def step(self) -> bool:
        """Count a training step; at every ``interval``-th, draw. Returns whether it did."""
        self.steps += 1
        due = self.steps % self.interval == 0
        if due:
            self.draw()
        return due

    def release(self) -> None:
        """Let all blocks train again (after training)."""
        self._train_only(list(range(len(self.layers))))

    def _train_only(self, chosen: list[int]) -> None:
        self.active_layers = chosen
        for layer in self.layers:
            layer.requires_grad_(False)
        for i in chosen:  # after the freezing: blocks may share parameters
            self.layers[i].requires_grad_(True)
        for p in self.layers.parameters():
            if not p.requires_grad:
                p.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Steps, current blocks, probabilities (they belong to the weights before training) and random state."""
        return {
            "steps": self.steps,
            "active": list(self.active_layers),
            "probabilities": self.probabilities.clone(),
            "random": self._generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.steps, self.probabilities = state["steps"], state["probabilities"].double().cpu()
        self._generator.set_state(state["random"].cpu().to(torch.uint8))
        self._train_only(list(state["active"]))

    def callback(self) -> TrainerCallback:
        """For `transformers.Trainer` with an optimiser that knows nothing of layers (such as AdamW)."""
        return _sampling_callback(self)


def sampling_probabilities(
    mode: str, layers: Sequence[nn.Module] | nn.ModuleList, scores: Sequence[float] | Tensor | None = None
) -> Tensor:
    """``p_ℓ`` of every block, ``(blocks,)`` float64; none is below 1e-6, so that γ blocks can always be drawn.

    ``owl``: ∝ scores; ``owl_reverse``: ∝ max - p; ``uniform``; ``increase`` and ``decrease``: linear in depth;
    ``norm``: ∝ Frobenius norm of the block's weights.
    """
    if mode not in MODES:
        raise unknown("sampling mode", mode, MODES)
    n = len(layers)
    depth = torch.arange(1, n + 1, dtype=torch.float64)
    if mode in ("owl", "owl_reverse"):
        if scores is None:
            raise ValueError(f"mode '{mode}' samples by outlier scores: give scores=outlier_scores(model)")
        p = torch.as_tensor(scores, dtype=torch.float64).flatten()
        if len(p) != n or not torch.isfinite(p).all() or (p < 0).any():
            raise ValueError(f"scores must be {n} finite, non-negative numbers, one a block; got {p.tolist()}")
        p = p / p.sum() if p.sum() > 0 else torch.full_like(p, 1 / n)
        p = p.max() - p if mode == "owl_reverse" else p
    elif mode == "norm":
        p = torch.stack([_norm(layer) for layer in layers])
    else:
        p = {"uniform": torch.ones_like(depth), "increase": depth, "decrease": depth.flip(0)}[mode]
    p = p / p.sum() if p.sum() > 0 else torch.full_like(p, 1 / n)
    return p.clamp(min=_FLOOR) / p.clamp(min=_FLOOR).sum()


def _norm(layer: nn.Module) -> Tensor:
    squares = [p.detach().double().square().sum().cpu() for p in layer.parameters()]
    return torch.stack(squares).sum().sqrt() if squares else torch.zeros((), dtype=torch.float64)


def _sampling_callback(sampler: LayerSampler) -> TrainerCallback:
    from transformers import TrainerCallback

    class LayerSamplingCallback(TrainerCallback):
        """Draws blocks after every ``interval``-th optimiser step, and lets all train at the end."""

        def on_step_end(self, args, state, control, **kwargs):
            sampler.step()

        def on_train_end(self, args, state, control, **kwargs):
            sampler.release()

    return LayerSamplingCallback()
