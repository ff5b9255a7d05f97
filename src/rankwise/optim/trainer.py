"""The optimisers in `transformers.Trainer`: what cannot work is refused when training begins, undone when it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rankwise.optim.held import refuse_replicas

if TYPE_CHECKING:
    from transformers import TrainerCallback, TrainingArguments

    from rankwise.optim.galore import GaLoreAdamW
    from rankwise.optim.sampling import LayerSampler


def in_trainer(optimizer: GaLoreAdamW) -> TrainerCallback:
    """Checks the arguments when training begins, calls ``release`` when it ends.

    Examples
    --------
    >>> import torch
    >>> from rankwise.optim import GaLoreAdamW
    >>> optimizer = GaLoreAdamW(torch.nn.Linear(8, 4).parameters(), rank=2)
    >>> callback = optimizer.callback()  # Trainer(..., optimizers=(optimizer, None), callbacks=[callback])
    >>> callback.on_train_end(None, None, None)
    >>> optimizer.released
    True
    """
    from transformers import TrainerCallback

    class OptimizerCallback(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            if optimizer.released:
                raise ValueError(f"this {type(optimizer).__name__} was released after training: make a new one")
            if optimizer.updates_in_backward:
                _check_arguments(args)

        def on_train_end(self, args, state, control, **kwargs):
            optimizer.release()

    return OptimizerCallback()


def _check_arguments(args: TrainingArguments) -> None:
    """Updates in the backward pass leave no gradients to accumulate, average, clip together or unscale."""
    if args.gradient_accumulation_steps > 1:
        raise ValueError(
            f"gradient_accumulation_steps={args.gradient_accumulation_steps}: updates in the backward pass cannot "
            "accumulate; use 1, or OwLore(in_backward=False)"
        )
    if args.max_grad_norm:
        raise ValueError(
            f"max_grad_norm={args.max_grad_norm}: updates in the backward pass leave no gradients to clip together; "
            "set max_grad_norm=0, with OwLore(max_norm=…) or step_in_backward(max_norm=…) to clip each tensor"
        )
    if args.fp16:
        raise ValueError(
            "fp16=True scales the loss, which updates in the backward pass cannot divide out: use bf16=True"
        )
    if args.world_size > 1:
        raise ValueError(f"updates in the backward pass run in one process, not in {args.world_size}")


def sampler_in_trainer(sampler: LayerSampler) -> TrainerCallback:
    """Draws blocks after every ``interval``-th optimiser step, and lets all train at the end."""
    from transformers import TrainerCallback

    class LayerSamplingCallback(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            refuse_replicas("sampling layers")
            if sampler.released:
                raise ValueError("this LayerSampler was released after training: make a new one")

        def on_step_end(self, args, state, control, **kwargs):
            sampler.step()

        def on_train_end(self, args, state, control, **kwargs):
            sampler.release()

    return LayerSamplingCallback()
