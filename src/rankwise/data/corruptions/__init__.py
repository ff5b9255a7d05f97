"""The fifteen corruptions of CIFAR-10-C at five severities, over batches and from a seed.

Hendrycks & Dietterich, "Benchmarking neural network robustness to common corruptions and perturbations" (ICLR 2019).
Severities are those of the CIFAR-10 variant: lengths are in pixels of a picture of 32 x 32, so that on larger ones blur
and noise are finer than in ImageNet-C; zoom, fog, frost, elastic and pixelate go with the size.

What people get wrong is the draws: here every picture has random numbers of its own, decided by seed, corruption and
its row, so that a batch of one, another batch size or another order gives the same picture, and the five severities
differ in strength alone.

Differences from the released script: glass blur exchanges pixels (there, one of the two is written twice); frost is
generated, as frosted panes look, instead of cut out of six photographs; a value is rounded to 8 bits, not cut off;
pictures need not be square, nor of one size. ImageMagick, OpenCV and scikit-image are not needed.
"""

from rankwise.data.corruptions.table import CORRUPTIONS, SEVERITIES, corrupt, corrupted

__all__ = ["CORRUPTIONS", "SEVERITIES", "corrupt", "corrupted"]
