"""CoTTA: a student learns from its moving average, whose answer is averaged over views where the source is unsure.

For a batch ``x``, with teacher ``t``, student ``s`` and source model ``o``:

    ŷ = t(x)                          where the mean over the batch of max_c softmax(o(x)) is at least the threshold
    ŷ = mean over n views of t(view)  elsewhere
    one step of s on −Σ_c softmax(ŷ) log softmax(s(x))
    t ← α t + (1 − α) s;  each number of s returns to that of o with probability ``restore``

The prediction is ŷ. Source: Wang, Fink, Van Gool & Dai, "Continual Test-Time Domain Adaptation", CVPR 2022, arXiv
2203.13591. The released code computes the 32 views whether they are used or not; here they are made where they are
used.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from rankwise.continual.settings import OPTIMISING, Settings
from rankwise.continual.stream import Inputs, rows
from rankwise.continual.teacher import TeacherAdapter

__all__ = ["CoTTA"]


class CoTTA(TeacherAdapter):
    """Averaged answers of a moving average, batch by batch; no adapters, all weights move.

    Parameters
    ----------
    model, mean, std
        As for `TestTimeAdapter`.
    preset : {"cifar10c", "imagenetc", "ours"} or Settings
        ``cifar10c`` (the default): Adam at 1e-3, 32 views below a threshold of .92, α = .999, restored at .01;
        ``imagenetc``: SGD at .01, threshold .1, restored at .001; ``ours`` is ``cifar10c`` with α = .99, for streams of
        hundreds of batches, and the threshold .1: on pictures of 32 pixels, averaged views cost more than they give.
    **changes
        Of `Settings`: ``optimizer``, ``lr``, ``momentum``, ``n_aug``, ``threshold``, ``alpha``, ``restore``,
        ``augmentation``, ``episodic``, ``precision``, ``chunk``, ``seed``.

    Examples
    --------
    >>> import torch
    >>> from transformers import ViTConfig, ViTForImageClassification
    >>> from rankwise.continual import CoTTA
    >>> config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
    ...                    image_size=8, patch_size=4, num_labels=3)
    >>> adapter = CoTTA(ViTForImageClassification(config), n_aug=4)
    >>> adapter.predict(torch.rand(4, 3, 8, 8)).shape
    torch.Size([4, 3])
    """

    reads = OPTIMISING | {"n_aug", "threshold", "alpha", "restore", "augmentation", "chunk"}
    presets: ClassVar[dict[str, Settings]] = {
        "ours": Settings(lr=1e-3, n_aug=32, restore=0.01, alpha=0.99, threshold=0.1),
        "cifar10c": Settings(lr=1e-3, n_aug=32, restore=0.01),
        "imagenetc": Settings(optimizer="sgd", lr=0.01, n_aug=32, restore=0.001, threshold=0.1),
    }

    def _answers(self, inputs: Inputs) -> Tensor:
        if self._sure(inputs) >= self.settings.threshold:
            return self.logits(self.teacher, inputs)
        total, number = torch.zeros(()), self.settings.n_aug
        for views in self.views(inputs, number):
            logits = self.logits(self.teacher, views)
            total = total.to(logits.device) + logits.unflatten(0, (-1, rows(inputs))).sum(0)
        return total / number

    def _sure(self, inputs: Inputs) -> float:
        """The source model's mean top probability."""

        def anchor(*args: Any, **kwargs: Any) -> Any:
            return torch.func.functional_call(self.teacher, self.source, args, kwargs)

        return float(self.logits(anchor, inputs).softmax(1).amax(1).mean())
