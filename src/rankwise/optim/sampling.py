"""Layerwise sampling: train a few blocks at a time, drawn anew every K steps.

    p_ℓ = D_ℓ / Σ D     (OwLore: D is the outlier score of `rankwise.models.outliers`; uniform p is LISA)

γ blocks are drawn without replacement, one after the other, the rest renormalised after each; the others are frozen.
What is not in a block (embeddings, final norm, head) always trains; what was frozen before stays frozen.

Source: Li et al., "OwLore", arXiv 2405.18380; Pan et al., "LISA", NeurIPS 2024, arXiv 2403.17919.

What people get wrong: weight decay and old moments still move a frozen layer when the optimiser is not told. Here a
frozen block has no gradient, and `rankwise.optim.OwLore` drops its state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from rankwise.models.targets import blocks
from rankwise.nearest import unknown
from rankwise.optim.held import Holders, refuse_replicas, undo_of

if TYPE_CHECKING:
    from transformers import TrainerCallback

__all__ = ["MODES", "LayerSampler", "sampling_probabilities"]

Mode = Literal["owl", "owl_reverse", "uniform", "increase", "decrease", "norm"]
MODES = ("owl", "owl_reverse", "uniform", "increase", "decrease", "norm")
BY_OUTLIERS = ("owl", "owl_reverse")
_FLOOR = 1e-6
_SAMPLING = Holders("samples these blocks")


class LayerSampler:
    """Freezes all blocks of a model but a few, drawn anew every ``interval`` steps.

    It toggles what trained when it was made, and nothing else; blocks where nothing did are never drawn. `release`
    gives that back, and so does the collection of a sampler that nobody holds any more. A copy holds its own model.

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
        Steps K between two draws.
    seed : int
        At least 0. It decides every draw, together with the draw's number.
    layers_attribute : str, optional
        Dotted name of the list of blocks, where it cannot be found.

    Attributes
    ----------
    probabilities : Tensor
        ``(blocks,)`` float64; 0 for blocks where nothing trains.
    active_layers : list of int
        The positions of the blocks that train now.

    Raises
    ------
    ValueError
        γ out of range, scores of another length or for a mode that reads none, an unknown mode, no list of blocks, no
        block that trains, a model that another sampler holds, several processes.

    Examples
    --------
    >>> import torch
    >>> from rankwise.optim import LayerSampler
    >>> model = torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(8, 2, batch_first=True), num_layers=4)
    >>> optimizer = torch.optim.AdamW(model.parameters())
    >>> sampler = LayerSampler(model, mode="uniform", active=1, interval=2)
    >>> for _ in range(4):
    ...     optimizer.zero_grad()
    ...     model(torch.randn(2, 5, 8)).square().mean().backward()
    ...     optimizer.step()
    ...     _ = sampler.step()  # true where it drew another block
    >>> sum(p.requires_grad for p in model.parameters()), sampler.draws  # 12 parameters a block
    (12, 3)
    >>> sampler.release()
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
        self.probabilities = sampling_probabilities(mode, self.layers, scores)
        own = [[p for p in layer.parameters() if p.requires_grad] for layer in self.layers]
        drawable = torch.tensor([bool(ps) for ps in own])
        n = int(drawable.sum())
        if n == 0:
            raise ValueError(f"no parameter of {type(model).__name__}'s {len(own)} blocks trains: nothing can be drawn")
        self.active = min(n, max(2, round(0.15 * n))) if active is None else active
        if not 1 <= self.active <= n:
            raise ValueError(f"active={self.active} is outside 1..{n}, the blocks of the model that train")
        if interval < 1 or seed < 0:
            raise ValueError(f"interval={interval} must be at least 1 step, seed={seed} at least 0")
        self.probabilities = self.probabilities * drawable / (self.probabilities * drawable).sum()
        self.interval, self.seed, self.own = interval, seed, own
        self.steps, self.draws, self.active_layers, self.released = 0, 0, [], False
        _SAMPLING.take(self, [p for ps in own for p in ps])
        self._undo_at_release()
        self.draw()

    def _undo_at_release(self) -> None:
        self._undo = undo_of(self)
        for p in [p for ps in self.own for p in ps]:
            self._undo.callback(p.requires_grad_, True)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_undo"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._undo_at_release()

    def draw(self) -> list[int]:
        """Draw the next blocks, freeze the others and free their gradients."""
        refuse_replicas("sampling layers")
        seed = int(np.random.SeedSequence((self.seed, self.draws)).generate_state(1, np.uint64)[0] >> 1)
        drawn = torch.multinomial(self.probabilities, self.active, generator=torch.Generator().manual_seed(seed))
        self.draws += 1
        self._train_only(sorted(drawn.tolist()))
        return self.active_layers

    def step(self) -> bool:
        """Count a training step; at every ``interval``-th, until `release`, draw. Returns whether it did."""
        self.steps += 1
        due = self.steps % self.interval == 0 and not self.released
        if due:
            self.draw()
        return due

    def release(self) -> None:
        """Let all that trained in the beginning train again (after training), and draw no more."""
        self._undo.close()
        _SAMPLING.give_back(self)
        self.released, self.active_layers = True, [i for i, ps in enumerate(self.own) if ps]

    def _train_only(self, chosen: list[int]) -> None:
        self.active_layers = chosen
        awake = {id(p) for i in chosen for p in self.own[i]}  # blocks may share parameters
        for p in [p for ps in self.own for p in ps]:
            p.requires_grad_(id(p) in awake)
            if id(p) not in awake:
                p.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Seed, steps, draws, current blocks, and probabilities (they belong to the weights before training)."""
        return {
            "seed": self.seed,
            "steps": self.steps,
            "draws": self.draws,
            "active": list(self.active_layers),
            "probabilities": self.probabilities.tolist(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken.

        Raises
        ------
        ValueError
            No state of a sampler, or of a model with another number of blocks.
        """
        if missing := [k for k in self.state_dict() if k not in state]:
            raise ValueError(f"this is no state of a LayerSampler: it has no {', '.join(missing)}")
        if len(state["probabilities"]) != len(self.layers):
            raise ValueError(f"this state is of {len(state['probabilities'])} blocks, the model has {len(self.layers)}")
        self.seed, self.steps, self.draws = (int(state[k]) for k in ("seed", "steps", "draws"))
        self.probabilities = torch.tensor([float(p) for p in state["probabilities"]], dtype=torch.float64)
        self._train_only([int(i) for i in state["active"]])

    def callback(self) -> TrainerCallback:
        """For `transformers.Trainer` with an optimiser that knows nothing of layers (such as AdamW)."""
        from rankwise.optim.trainer import sampler_in_trainer

        return sampler_in_trainer(self)


def sampling_probabilities(
    mode: str, layers: Sequence[nn.Module] | nn.ModuleList, scores: Sequence[float] | Tensor | None = None
) -> Tensor:
    """``p_ℓ`` of every block, ``(blocks,)`` float64; none is below 1e-6, so that γ blocks can always be drawn.

    ``owl``: ∝ scores; ``owl_reverse``: ∝ max - p; ``uniform``; ``increase`` and ``decrease``: linear in depth;
    ``norm``: ∝ Frobenius norm of the block's weights.

    Examples
    --------
    >>> import torch
    >>> from rankwise.optim import sampling_probabilities
    >>> blocks = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(4))
    >>> sampling_probabilities("owl", blocks, scores=[1.0, 1.0, 2.0, 4.0]).tolist()
    [0.125, 0.125, 0.25, 0.5]
    """
    if mode not in MODES:
        raise unknown("sampling mode", mode, MODES)
    n = len(layers)
    depth = torch.arange(1, n + 1, dtype=torch.float64)
    if scores is not None and mode not in BY_OUTLIERS:
        raise ValueError(f"mode '{mode}' reads no scores; leave them out, or sample by {' or '.join(BY_OUTLIERS)}")
    if mode in BY_OUTLIERS:
        if scores is None:
            raise ValueError(f"mode '{mode}' samples by outlier scores: give scores=outlier_scores(model)")
        p = torch.as_tensor(scores, dtype=torch.float64).flatten()
        if len(p) != n or not torch.isfinite(p).all() or (p < 0).any():
            raise ValueError(f"scores must be {n} finite, non-negative numbers, one a block; got {p.tolist()}")
        p = p / p.sum() if p.sum() > 0 else torch.full_like(p, 1 / n)
        p = p.max() - p if mode == "owl_reverse" else p
    elif mode == "norm":
        p = torch.stack([_norm(layer) for layer in layers])
        if not torch.isfinite(p).all():
            raise ValueError(
                f"mode 'norm': weights with NaN or Inf in block {int((~torch.isfinite(p)).int().argmax())}"
            )
    else:
        p = {"uniform": torch.ones_like(depth), "increase": depth, "decrease": depth.flip(0)}[mode]
    p = p / p.sum() if p.sum() > 0 else torch.full_like(p, 1 / n)
    return p.clamp(min=_FLOOR) / p.clamp(min=_FLOOR).sum()


def _norm(layer: nn.Module) -> Tensor:
    squares = [p.detach().double().square().sum().cpu() for p in layer.parameters()]
    return torch.stack(squares).sum().sqrt() if squares else torch.zeros((), dtype=torch.float64)
