"""CoDyRA in a `transformers.Trainer`.

A file of its own: PEFT's types are registered while `transformers` may still be loading, which a callback needs whole.
"""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from rankwise.tuning.codyra import CodyraModel, check_schedule
from rankwise.tuning.s2lora_step import refuse_copies

__all__ = ["CodyraCallback"]


class CodyraCallback(TrainerCallback):
    """Prunes the gates of a CoDyRA adapter in a `transformers.Trainer`, over all of the training's steps.

    Examples
    --------
    >>> import tempfile, torch
    >>> from peft import get_peft_model
    >>> from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments
    >>> from rankwise.tuning import CodyraCallback, CodyraConfig
    >>> config = BertConfig(vocab_size=9, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    >>> model = get_peft_model(BertForSequenceClassification(config), CodyraConfig(r=4, max_kappa=1.0, kappa_steps=5))
    >>> rows = [{"input_ids": torch.tensor([1, 2, i]), "labels": i % 2} for i in range(4)]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     arguments = TrainingArguments(folder, max_steps=20, disable_tqdm=True, report_to=[], use_cpu=True)
    ...     trained = Trainer(model, arguments, train_dataset=rows, callbacks=[CodyraCallback()]).train()
    {'train_runtime': ...}
    >>> sum(kept.rank for kept in model.base_model.rank_map().values())
    0
    """

    def on_train_begin(self, args, state, control, model: Any = None, **kwargs):
        """Find the adapter, and warn of a training that is too short for the schedule."""
        tuner = next((m for m in model.modules() if isinstance(m, CodyraModel)), None)
        if tuner is None:
            raise ValueError(
                f"the trained {type(model).__name__} has no CoDyRA adapter: CodyraCallback has no use for it"
            )
        refuse_copies("CoDyRA")
        self._tuner = tuner
        check_schedule(state.max_steps, tuner.peft_config[tuner.active_adapters[0]])

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        """Before the step: which gates are closed."""
        self._around = self._tuner.gate_step(state.global_step, state.max_steps)
        self._around.__enter__()

    def on_optimizer_step(self, args, state, control, **kwargs):
        """After it: prune."""
        self._around.__exit__(None, None, None)
