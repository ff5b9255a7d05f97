"""TENT: the scales and shifts of normalisation follow the entropy of the model's own predictions.

For a batch with probabilities ``p`` of the model, one step on ``-Σ_c p_c log p_c``, its mean, over the affine
parameters of normalisation alone; the prediction is the one before the step. Source: Wang, Shelhamer, Liu, Olshausen &
Darrell, "Tent: Fully Test-Time Adaptation by Entropy Minimization", ICLR 2021, arXiv 2006.10726.

What people get wrong: TENT is of batch norms, which also take the statistics of the batch. A transformer has none:
there its layer norms' scales and shifts move, and no statistics. And without a reset, entropy can be made small by
naming one class for everything: on long streams accuracy falls below the source model's.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from rankwise.continual.settings import OPTIMISING, Settings
from rankwise.continual.stream import Inputs, StreamAdapter

__all__ = ["Tent"]

NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)


class Tent(StreamAdapter):
    """Entropy minimisation over normalisation layers, batch by batch.

    Parameters
    ----------
    model, mean, std
        As for `TestTimeAdapter`.
    preset : {"cifar10c", "imagenetc", "ours"} or Settings
        Adam at 1e-3 (``cifar10c``, the default; published for batches of 200), SGD at 2.5e-4 (``imagenetc``), or Adam
        at 1e-4 (``ours``), which smaller batches stand.
    **changes
        Of `Settings`: ``optimizer``, ``lr``, ``momentum``, ``episodic``, ``precision``, ``seed``.

    Examples
    --------
    >>> import torch
    >>> from transformers import ViTConfig, ViTForImageClassification
    >>> from rankwise.continual import Tent
    >>> config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
    ...                    image_size=8, patch_size=4, num_labels=3)
    >>> adapter = Tent(ViTForImageClassification(config))
    >>> len(adapter.trained)  # weight and bias of three layer norms
    6
    >>> adapter.predict(torch.rand(4, 3, 8, 8)).shape
    torch.Size([4, 3])
    """

    reads = OPTIMISING
    presets: ClassVar[dict[str, Settings]] = {
        "ours": Settings(lr=1e-4),
        "cifar10c": Settings(lr=1e-3),
        "imagenetc": Settings(optimizer="sgd", lr=2.5e-4),
    }

    def _trained(self, model: nn.Module) -> dict[str, nn.Parameter]:
        modules = dict(model.named_modules())
        return {n: p for n, p in model.named_parameters() if isinstance(modules[n.rpartition(".")[0]], NORMS)}

    def _step(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        said = self.logits(self.model, inputs)
        return said, entropy(said)


def entropy(logits: Tensor) -> Tensor:
    """``-Σ_c p_c log p_c``, mean over the batch, in nats.

    Examples
    --------
    >>> import torch
    >>> from rankwise.continual.tent import entropy
    >>> round(float(entropy(torch.zeros(3, 4))), 4)  # log 4
    1.3863
    """
    return torch.special.entr(logits.softmax(1)).sum(1).mean()
