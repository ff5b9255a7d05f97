"""S2-LoRA's proximal step for the Trainer; apart, so that importing the methods never imports the Trainer.

`transformers` imports `peft` while its own Trainer is still being imported, and that import registers our methods.
"""

# pyright: reportOptionalMemberAccess=false

from __future__ import annotations

from transformers import TrainerCallback

from rankwise.tuning.s2lora import S2LoraModel


class S2LoraCallback(TrainerCallback):
    """The proximal step for `transformers.Trainer`: ``Trainer(..., callbacks=[S2LoraCallback()])``."""

    def on_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
        """Shrink the coefficients right after the optimiser moved them, at the learning rate it used."""
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        for module in model.modules():
            if isinstance(module, S2LoraModel):
                module.proximal_step(rates)
