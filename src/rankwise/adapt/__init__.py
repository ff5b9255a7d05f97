"""The main job: a pretrained model, data and a budget in; several ways to train it, side by side.

It stands above the method families (`rankwise.tuning`, `rankwise.optim`, `rankwise.compression`), which know nothing of
it: a method that trains brings a line in `rankwise.adapt.methods`.
"""

from rankwise.adapt.job import AdaptConfig, Job

__all__ = ["AdaptConfig", "Job"]
