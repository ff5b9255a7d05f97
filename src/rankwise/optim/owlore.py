"""OwLore: all parameters trained, a few blocks at a time, each through low-rank gradients.

    every K steps   freeze all blocks, draw γ of them with p_ℓ ∝ D_ℓ (outlier scores), let those train
    every step      GaLore-projected AdamW on their matrices, plain AdamW on embeddings, norms and head
    at a switch     the state of blocks put to sleep is dropped; when drawn again they start anew

Each parameter is updated inside the backward pass and its gradient freed, so that memory holds the weights, the
embeddings' moments, the low-rank state of γ blocks and one gradient at a time.

Source: Li, Yin, Gao & Liu, "OwLore: Outlier-weighed Layerwise Sampled Low-Rank Projection for LLM Fine-tuning", arXiv
2405.18380. The released code never frees the state of sleeping layers (``keep_state=True``), so its memory grows.

The released code takes projected steps as they come (``scale=1``): with rank d/16 they are a quarter as long as a full
step, while embeddings, norms and head take whole ones. Here both are of one length unless ``scale`` or ``rest_lr`` say
otherwise.

What people get wrong: building the optimiser on what trains at the moment. It must know every block from the start, and
leave the sleeping ones alone, decay included; and what the user froze stays frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.models.activations import Batch
from rankwise.models.outliers import outlier_scores
from rankwise.optim.galore import GaLoreAdamW
from rankwise.optim.groups import trained_parameters
from rankwise.optim.held import refuse_replicas
from rankwise.optim.sampling import BY_OUTLIERS, LayerSampler, Mode

__all__ = ["OwLore"]


class OwLore(GaLoreAdamW):
    """Outlier-weighed layer sampling with low-rank gradients, as one optimiser.

    Parameters
    ----------
    model : nn.Module
        The whole model; every parameter of it that trains now is known to the optimiser, the others stay as they are.
    lr : float
        The learning rate. Default 3e-4.
    rank : int, optional
        Of the projection; by default a sixteenth of the largest smaller side of a matrix (hidden size / 16). 0 leaves
        gradients whole (LISA, with ``mode="uniform"``).
    scores : sequence of float, optional
        Outlier scores of the blocks, for the modes that read them; by default
        ``outlier_scores(model, dataloader, threshold=threshold)``.
    dataloader : iterable of dict of Tensor, optional
        Calibration batches for the scores; without it the weights alone decide.
    threshold : float, optional
        How many times the mean an entry has to be to count as an outlier where scores are computed here. Default 13.
    mode, active, interval
        How blocks are sampled, see `LayerSampler`.
    update_gap : int
        Steps between refreshes of a basis, see `GaLoreAdamW`. Default 100.
    scale : float, optional
        Factor of the projected update. By default (``None``) projected steps are as long as full ones; the paper's code
        has 1.0.
    rest_lr : float, optional
        Learning rate of what is not projected (embeddings, norms, head); ``lr`` by default.
    keep_state : bool
        Whether the moments of sleeping blocks are kept, which costs their memory. Default False.
    in_backward : bool
        Update in the backward pass (`GaLoreAdamW.step_in_backward`). Off, all gradients exist together, and can be
        accumulated and clipped.
    max_norm : float, optional
        With ``in_backward``: clip the norm of each gradient tensor to this.
    layers_attribute : str, optional
        Dotted name of the list of blocks, where it cannot be found.
    seed : int
        Decides the draws of blocks, and whatever is random in the projection.
    **options
        Further options of `GaLoreAdamW`, such as ``betas`` or ``weight_decay``.

    Raises
    ------
    ValueError
        No list of blocks, no linear layer that trains, γ or rank out of range, scores or calibration that the mode does
        not read, a model that another OwLore holds, several processes.

    Examples
    --------
    >>> import torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from rankwise.optim import OwLore
    >>> config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=4,
    ...                      num_attention_heads=2)
    >>> model, ids = LlamaForCausalLM(config), torch.randint(64, (2, 8))
    >>> optimizer = OwLore(model, lr=3e-4, active=1)
    >>> for _ in range(3):
    ...     model(input_ids=ids, labels=ids).loss.backward()  # weights move here, and gradients are freed
    ...     optimizer.step()
    >>> all(p.grad is None for p in model.parameters()), len(optimizer.sampler.active_layers)
    (True, 1)
    >>> optimizer.release()  # after training: all blocks train again
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 3e-4,
        *,
        rank: int | None = None,
        scores: Sequence[float] | Tensor | None = None,
        dataloader: Iterable[Batch] | None = None,
        threshold: float | None = None,
        mode: Mode = "owl",
        active: int | None = None,
        interval: int = 50,
        update_gap: int = 100,
        scale: float | None = None,
        rest_lr: float | None = None,
        keep_state: bool = False,
        in_backward: bool = True,
        max_norm: float | None = None,
        layers_attribute: str | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        if (dataloader is not None or threshold is not None) and (scores is not None or mode not in BY_OUTLIERS):
            raise ValueError(
                f"dataloader and threshold are for outlier scores, which mode='{mode}' does not compute here"
            )
        if max_norm is not None and not in_backward:
            raise ValueError("max_norm clips in the backward pass; with in_backward=False clip before step")
        refuse_replicas("OwLore")
        matrices, rest = trained_parameters(model)
        if rank is None:
            rank = max(1, max(min(p.shape) for p in matrices) // 16)
        groups = [{"params": matrices, **({"rank": rank} if rank else {})}]
        groups += [{"params": rest, "lr": lr if rest_lr is None else rest_lr}] if rest else []
        super().__init__(groups, lr, update_gap=update_gap, scale=scale, seed=seed, **options)
        if scores is None and mode in BY_OUTLIERS:
            limit = 13.0 if threshold is None else threshold
            scores = outlier_scores(model, dataloader, threshold=limit, layers_attribute=layers_attribute)
        self.keep_state = keep_state
        self.sampler = LayerSampler(
            model, scores, mode=mode, active=active, interval=interval, seed=seed, layers_attribute=layers_attribute
        )
        if in_backward:
            try:
                self.step_in_backward(model=model, max_norm=max_norm)
            except ValueError:
                self.release()
                raise

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Close the step; at every ``interval``-th, switch blocks."""
        refuse_replicas("OwLore")
        loss = super().step(closure)
        if self.sampler.step() and not self.keep_state:
            self._drop_sleeping()
        return loss

    def release(self) -> None:
        """Let all blocks train again, and `step` update: call it after training."""
        super().release()
        self.sampler.release()

    def _drop_sleeping(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if not p.requires_grad:
                    self.state.pop(p, None)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "keep_state": self.keep_state, "sampler": self.sampler}

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to resume exactly; the sampler's part is in the first group."""
        found = super().state_dict()
        found["param_groups"][0]["sampler"] = self.sampler.state_dict()
        return found

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of `state_dict`.

        Raises
        ------
        ValueError
            A state without the sampler's part, or one that lacks the moments of the blocks that it says are training
            (``torch.distributed.checkpoint`` leaves out what happens to sleep where it is read).
        """
        first, *others = state_dict["param_groups"]
        if "sampler" not in first:
            raise ValueError("this state is not OwLore's: it does not say which blocks were training")
        sampler = first["sampler"]
        first = {k: v for k, v in first.items() if k != "sampler"}
        super().load_state_dict({**state_dict, "param_groups": [first, *others]})
        self.sampler.load_state_dict(sampler)
        awake = [p for i in self.sampler.active_layers for p in self.sampler.own[i]]
        if sampler["steps"] % self.sampler.interval and not any(p in self.state for p in awake):
            raise ValueError(
                f"this state has no moments of the blocks {self.sampler.active_layers} that were training: keep "
                "state_dict() itself, not what torch.distributed.checkpoint makes of it"
            )
