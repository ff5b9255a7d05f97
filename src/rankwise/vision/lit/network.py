"""The network that maps a picture to its illumination: full resolution throughout, with a summary of the whole picture.

    conv 3 → w, LeakyReLU;  2 residual blocks;  pyramid pooling;  conv w → 2w;  2 blocks;  conv 2w → w;  2 blocks;
    conv w → 1, ReLU                                          (batch, 3, H, W) → (batch, 1, H, W)

All convolutions but those of the pooling are 3 x 3. With ``w = 32`` it is the published one of 278,790 parameters.

What people get wrong: it is no U-Net. And the pooling's coarsest bin is the mean of the whole picture, so that no tile
gets what the whole gets.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = {"full": 32, "light": 8}
BINS = (1, 2, 3, 6)
LEAST = 32  # pixels of a side
SPREAD = 0.02  # deviation of weights at the start


class IlluminationNet(nn.Module):
    """Illumination of pictures, not below 0.

    Parameters
    ----------
    width : int
        Channels ``w``, a multiple of 4: 32 as published, 8 for the light one of 17,814 parameters.
    start : {"identity", "random"}
        ``random``, as published: all weights are N(0, .02²), and the illumination is about 0: the last ReLU may be off
        for good. ``identity``: the last bias is 1, so that at first pictures stay about as they are, and what is
        neither last nor the end of a residual branch starts as He et al. say, so that the picture reaches the end.
    padding : {"reflect", "zeros"}
        Of the four plain convolutions; the released code trains with ``zeros``.

    Examples
    --------
    >>> import torch
    >>> from rankwise.vision.lit.network import IlluminationNet
    >>> net = IlluminationNet()
    >>> sum(p.numel() for p in net.parameters()), net(torch.rand(1, 3, 40, 48)).shape
    (278790, torch.Size([1, 1, 40, 48]))
    """

    def __init__(
        self,
        width: int = 32,
        *,
        start: Literal["identity", "random"] = "random",
        padding: Literal["reflect", "zeros"] = "reflect",
    ) -> None:
        super().__init__()
        if width < 4 or width % 4:
            raise ValueError(f"width={width}; a multiple of 4 is needed, such as 32 or 8")
        w = width
        self.body = nn.Sequential(
            _conv(3, w, padding), nn.LeakyReLU(0.2, inplace=True), _Residual(w), _Residual(w), _Pyramid(w),
            _conv(w, 2 * w, padding), _Residual(2 * w), _Residual(2 * w),
            _conv(2 * w, w, padding), _Residual(w), _Residual(w),
        )  # fmt: skip
        self.last = _conv(w, 1, padding)
        branches = {module.two for module in self.modules() if isinstance(module, _Residual)}
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                if start == "random" or module in branches or module is self.last:
                    nn.init.normal_(module.weight, std=SPREAD)
                else:
                    nn.init.kaiming_normal_(module.weight, 0.2)
        if start == "identity":
            nn.init.ones_(self._bias)
        # as fast convolutions want it
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (not in torch's overloads)

    @property
    def _bias(self) -> Tensor:
        bias = self.last.bias
        assert bias is not None
        return bias

    def forward(self, pictures: Tensor) -> Tensor:
        """``(batch, 3, H, W)`` in [0, 1] to ``(batch, 1, H, W)``."""
        return self.last(self.body(pictures.contiguous(memory_format=torch.channels_last))).relu()


def _conv(inner: int, outer: int, padding: str) -> nn.Conv2d:
    return nn.Conv2d(inner, outer, 3, padding=1, padding_mode=padding)  # pyright: ignore[reportArgumentType]  (two of its names)


class _Residual(nn.Module):
    """``LeakyReLU(x + conv(LeakyReLU(conv(x))))``, without biases."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.two = (
            nn.Conv2d(width, width, 3, padding=1, padding_mode="reflect", bias=False) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        branch = self.two(F.leaky_relu(self.one(x), 0.2, inplace=True))
        return F.leaky_relu(branch.add_(x), 0.2, inplace=True)


class _Pyramid(nn.Module):
    """Means over 1, 4, 9 and 36 parts of the picture, each brought to a quarter of the channels, beside the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        part = width // len(BINS)
        self.parts = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(n), nn.Conv2d(width, part, 1, bias=False), nn.PReLU()) for n in BINS
        )
        joined = nn.Conv2d(2 * width, width, 3, padding=1, padding_mode="reflect", bias=False)
        self.join = nn.Sequential(joined, nn.PReLU())

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        seen = [F.interpolate(part(x), size, mode="bilinear", align_corners=True) for part in self.parts]
        return self.join(torch.cat([x, *seen], 1))


def enhanced(pictures: Tensor, illumination: Tensor) -> Tensor:
    """``clamp(I / (i + 1e-9), 0, 1)``: where i = 0, black stays black and the rest is white, never NaN.

    Examples
    --------
    >>> import torch
    >>> from rankwise.vision.lit.network import enhanced
    >>> enhanced(torch.tensor([0.2, 0.2, 0.0]), torch.tensor([0.5, 0.0, 0.0])).tolist()
    [0.4000000059604645, 1.0, 0.0]
    """
    return (pictures / (illumination + 1e-9)).clamp(0, 1)
