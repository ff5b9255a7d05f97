"""What sees pictures: a CLIP's image tower, prepared so that gradients reach the pixels, and stages that hold content.

A CLIP of transformers is a ViT: its stages are five evenly spaced layers, the embedded patches first, each token with
mean 0 and variance 1: a residual stream grows, and in some models a few numbers of it are hundreds. The paper takes the
stem and the four stages of a ResNet (RN101), which ``open-clip-torch`` has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STAGES = 5
Stages = Callable[[Tensor], Sequence[Tensor]]
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of OpenAI's CLIP


class Seen(NamedTuple):
    """Pictures as a tower sees them.

    Attributes
    ----------
    features : Tensor
        ``(batch, d)``, unit vectors.
    stages : list of Tensor
        ``(batch, tokens, width)`` each.

    Examples
    --------
    >>> import torch
    >>> from rankwise.vision.lit.towers import Seen
    >>> len(Seen(torch.zeros(2, 4), [torch.zeros(2, 5, 8)]).stages)
    1
    """

    features: Tensor
    stages: list[Tensor]


class ImageTower:
    """A CLIP's image tower over pictures in [0, 1] of any size.

    Parameters
    ----------
    clip : CLIPModel
        It is only read.
    mean, std : sequence of float
        Of colours, as its image processor says.
    antialias : bool
        Whether pictures are made smaller by bicubic with antialiasing, as image processors do; the released code takes
        bilinear without.

    Examples
    --------
    >>> import torch
    >>> from rankwise.models import load
    >>> from rankwise.vision.lit.towers import ImageTower
    >>> tower = ImageTower(load("clip-cifar10").eval(), (0.5,) * 3, (0.25,) * 3)
    >>> seen = tower(torch.rand(2, 3, 64, 48))
    >>> seen.features.shape, len(seen.stages)
    (torch.Size([2, 96]), 5)
    """

    def __init__(self, clip: Any, mean: Sequence[float], std: Sequence[float], *, antialias: bool = True) -> None:
        self.clip, self.size = clip, clip.config.vision_config.image_size
        like = clip.visual_projection.weight
        self.mean, self.std = (torch.tensor(list(v)).view(3, 1, 1).to(like) for v in (mean, std))
        self.antialias = antialias
        layers = clip.config.vision_config.num_hidden_layers
        self.kept = [round(i * layers / (STAGES - 1)) for i in range(STAGES)]

    def prepared(self, pictures: Tensor) -> Tensor:
        """``(batch, 3, size, size)``, the whole picture whatever its shape, colours shifted and scaled."""
        return (resized(pictures, self.size, antialias=self.antialias).to(self.mean) - self.mean) / self.std

    def __call__(self, pictures: Tensor) -> Seen:
        tower = self.clip.vision_model
        seen = tower(pixel_values=self.prepared(pictures), output_hidden_states=True)
        features = self.clip.visual_projection(seen.pooler_output).float()
        stages = [seen.hidden_states[i].float() for i in self.kept]
        return Seen(F.normalize(features, dim=-1), [F.layer_norm(h, h.shape[-1:]) for h in stages])


class ResNetStages:
    """Stem and four stages of a CLIP's ResNet, as of ``open_clip.create_model("RN101", "openai").visual``.

    Parameters
    ----------
    visual : nn.Module
        With ``stem``, ``layer1`` … ``layer4``.
    size : int
        Pixels of a side that it sees.

    Raises
    ------
    ValueError
        A module without those parts.
    """

    def __init__(self, visual: nn.Module, size: int = 224, *, antialias: bool = True) -> None:
        if absent := [n for n in ("stem", *(f"layer{i}" for i in range(1, STAGES))) if not hasattr(visual, n)]:
            raise ValueError(f"{type(visual).__name__} has no {absent[0]}: a ResNet of open-clip is needed")
        self.visual, self.size, self.antialias = visual, size, antialias
        like = next(visual.parameters())
        self.mean, self.std = (torch.tensor(v).view(3, 1, 1).to(like) for v in (MEAN, STD))

    def __call__(self, pictures: Tensor) -> list[Tensor]:
        parts: Any = self.visual
        seen = [parts.stem((resized(pictures, self.size, antialias=self.antialias) - self.mean) / self.std)]
        for i in range(1, STAGES):
            seen.append(getattr(parts, f"layer{i}")(seen[-1]))
        return seen


def open_clip_stages(name: str, *, antialias: bool = True) -> ResNetStages:
    """``ARCHITECTURE/WEIGHTS`` of open-clip, e.g. ``RN101/openai``.

    Raises
    ------
    ImportError
        ``open-clip-torch`` is not installed.
    ValueError
        Another form, or no ResNet.
    """
    try:
        import open_clip  # pyright: ignore[reportMissingImports]  (installed by those who want it)
    except ImportError as error:
        raise ImportError(f"{name} is read by open-clip: pip install open-clip-torch") from error
    architecture, _, weights = name.partition("/")
    if not weights:
        raise ValueError(f"identity='{name}'; 'vit', or a ResNet and its weights as in RN101/openai")
    visual: Any = open_clip.create_model(architecture, weights).visual
    size = visual.image_size
    found = ResNetStages(visual, size[0] if isinstance(size, tuple) else size, antialias=antialias)
    found.visual.eval().requires_grad_(False)
    return found


def resized(pictures: Tensor, size: int, *, antialias: bool = True) -> Tensor:
    """``(batch, 3, size, size)`` in [0, 1]: bicubic with antialiasing, or bilinear without."""
    if pictures.shape[-2:] == (size, size):
        return pictures
    if not antialias:
        return F.interpolate(pictures, (size, size), mode="bilinear", align_corners=False)
    return F.interpolate(pictures, (size, size), mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
