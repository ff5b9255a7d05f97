"""Small real vision models from scratch: a classifier and a CLIP of 1.5 million parameters each, on CIFAR-10.

Both train with `transformers.Trainer` under bfloat16 autocast: crops and flips drawn on whole batches, Muon for the
matrices of the blocks and AdamW for the rest, one rise and one fall of the learning rate. A killed run goes on from the
last pass over the data.
"""

from rankwise.jobs.pretrain.job import pretrain

__all__ = ["pretrain"]
