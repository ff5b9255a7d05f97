"""Rich or lazy along a training with `transformers.Trainer`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import TrainerCallback

from rankwise.dynamics.rich_lazy.kernels import MEMORY, Inputs, OutputFn, head, size
from rankwise.dynamics.rich_lazy.measures import Snapshot

__all__ = ["LazinessCallback"]


class LazinessCallback(TrainerCallback):
    """Records `Laziness` between the first step and every so many that follow.

    Kept are the start's weights, activity and kernel, and at most ``points`` records: when they are full, every other
    one goes and steps between records double. So memory does not grow with training. Weights, gradients, modes and
    random numbers of the training are left alone.

    Parameters
    ----------
    inputs : Tensor or mapping of str to Tensor
        What the network is looked at with; the same at all times. Moved to the model's device.
    every : int
        Steps between records, at first. Default 50.
    points : int
        The most records. Default 64; at least 4.
    params, output_fn, representation_fn
        As of `laziness`.
    rows : int, optional
        Inputs that enter the tangent kernel. Default 32, or all where there are fewer.
    center, memory
        As of `laziness`.

    Attributes
    ----------
    history : list of dict
        ``step`` and the measures; the first is of step 0, the last of the end. ``pandas.DataFrame(history)`` is a
        table, `rankwise.report.plots.dynamics.along_training` a plot.

    Examples
    --------
    >>> import torch
    >>> from transformers import BertConfig, BertForSequenceClassification
    >>> from rankwise.dynamics import LazinessCallback
    >>> config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    >>> model = BertForSequenceClassification(config)
    >>> callback = LazinessCallback({"input_ids": torch.randint(1000, (4, 8))}, params="query|value", every=10)
    >>> callback.record(model, step=0)  # Trainer(callbacks=[callback]) does so
    >>> callback.history[0]["step"], round(callback.history[0]["kernel_alignment"], 4)
    (0, 1.0)
    """

    def __init__(
        self, inputs: Inputs, *, every: int = 50, points: int = 64, params: str | Sequence[str] | None = None,
        output_fn: OutputFn | None = None, representation_fn: OutputFn | None = None, rows: int | None = None,
        center: bool = False, memory: int = MEMORY,
    ) -> None:  # fmt: skip
        if every < 1 or points < 4:
            raise ValueError(f"every={every}, points={points}: at least 1 step and 4 records")
        n = size(inputs)
        self.inputs = head(inputs, n)
        self.every, self.points, self.center = every, points, center
        self.options: dict[str, Any] = {
            "params": params, "output_fn": output_fn, "representation_fn": representation_fn,
            "rows": min(n, 32) if rows is None else rows, "memory": memory,
        }  # fmt: skip
        self.start: Snapshot | None = None
        self.history: list[dict[str, Any]] = []

    def record(self, model: nn.Module, *, step: int) -> None:
        """Measure now; the first time, what is measured against."""
        model = getattr(model, "module", model)  # of a parallel wrapper
        device = next(model.parameters()).device
        inputs: Any = self.inputs
        inputs = {k: v.to(device) for k, v in inputs.items()} if isinstance(inputs, dict) else inputs.to(device)
        now = Snapshot.of(model, inputs, **self.options)
        if self.start is None:
            self.start, self.options["params"] = now, list(now.weights)
        if self.history and self.history[-1]["step"] == step:
            return
        self.history.append({"step": step, **self.start.until(now, center=self.center).as_dict()})
        if len(self.history) > self.points:
            self.history = [*self.history[:-1:2], self.history[-1]]
            self.every *= 2

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The start."""
        self.record(kwargs["model"], step=state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Every so many steps."""
        if state.global_step % self.every == 0:
            self.record(kwargs["model"], step=state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The end."""
        self.record(kwargs["model"], step=state.global_step)
