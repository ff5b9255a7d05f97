"""What decides how an enhancer is trained and applied, checked once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal

from rankwise.nearest import unknown
from rankwise.vision.lit.network import LEAST, WIDTHS

__all__ = ["LitSettings"]


@dataclass(frozen=True, kw_only=True)
class LitSettings:
    """How an enhancer is trained and applied; the defaults are the published values, but for ``least``.

    Parameters
    ----------
    network : {"full", "light"}
        The published network, 278,790 parameters, or one of a quarter of its channels.
    start : {"random", "identity"}
        Of the network, see `rankwise.vision.lit.network.IlluminationNet`.
    size_network, size_prompts : int
        Pixels of a side of training pictures, for the network and for the prompts; pictures are squeezed to squares.
    most : int
        Longest side at which the network sees a picture that is enhanced; larger ones go through a copy.
    least : float
        Smallest value of the map by which a picture is divided, 0 to 1: no pixel gets more than ``1 / least`` times its
        light. Ours; 0 is the published formula, by which a map of 0 turns all but black to white. Training takes the
        formula as it is, since below a bound no step could move the map.
    lr_network, lr_prompts : float
        Learning rates of Adam.
    weight_decay : float
        Added to gradients, as Adam's.
    batch_network, batch_prompts : int
        Pictures of a step.
    first_steps : int
        Steps of the prompts' start, by cross-entropy.
    warm_steps : int
        Steps of the network on the identity loss alone.
    network_steps, prompt_steps : int
        Of each round.
    rounds : int
        Rounds of both.
    network_limit, prompt_limit : float
        While the last loss is above, 60 or 100 steps are added.
    extensions : int
        At most so many times.
    scale : float
        Of cosines.
    clip_weight, identity_weight, rank_weight : float
        Of the loss's terms.
    alphas : tuple of float
        Of the five stages of the identity loss, in rounds; all are 1 in the warm-up.
    augment : bool
        Whether pictures are flipped, turned and zoomed. Without it features of prompts' pictures are computed once.
    released : bool
        What the released code trains with: the identity loss summed over the batch, zeros beyond the borders of plain
        convolutions, pictures made smaller without antialiasing.
    seed : int
        Of all draws.

    Raises
    ------
    ValueError
        A value out of range; it is named.

    Examples
    --------
    >>> from rankwise.vision import LitSettings
    >>> LitSettings(rounds=3).lr_prompts
    5e-06
    """

    network: Literal["full", "light"] = "full"
    start: Literal["random", "identity"] = "random"
    size_network: int = 512
    size_prompts: int = 256
    most: int = 512
    least: float = 0.1
    lr_network: float = 2e-5
    lr_prompts: float = 5e-6
    weight_decay: float = 1e-3
    batch_network: int = 8
    batch_prompts: int = 16
    first_steps: int = 8000
    warm_steps: int = 1000
    network_steps: int = 2100
    prompt_steps: int = 1000
    rounds: int = 13
    network_limit: float = 90.0
    prompt_limit: float = 60.0
    extensions: int = 10
    scale: float = 100.0
    clip_weight: float = 320.0
    identity_weight: float = 22.5
    rank_weight: float = 200.0
    alphas: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0, 0.5)
    augment: bool = True
    released: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, accepted in (("network", tuple(WIDTHS)), ("start", ("random", "identity"))):
            if getattr(self, name) not in accepted:
                raise unknown(name, str(getattr(self, name)), accepted)
        least = {"size_network": LEAST, "size_prompts": LEAST, "most": LEAST, "extensions": 0, "rounds": 0, "seed": 0}
        counts = (
            "size_network", "size_prompts", "most", "batch_network", "batch_prompts", "first_steps", "warm_steps",
            "network_steps", "prompt_steps", "rounds", "extensions", "seed",
        )  # fmt: skip
        for name in counts:
            value, low = getattr(self, name), least.get(name, 1)
            if isinstance(value, bool) or not isinstance(value, Integral) or value < low:
                raise ValueError(f"{name}={value!r}; a whole number of at least {low}")
            object.__setattr__(self, name, int(value))  # numpy's too, which JSON does not take
        if self.seed >= 2**32:
            raise ValueError(f"seed={self.seed}; below {2**32}")
        self._check_amounts()
        for name in ("augment", "released"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}={getattr(self, name)!r}; True or False")

    def _check_amounts(self) -> None:
        positive = ("lr_network", "lr_prompts", "scale")
        weights = ("weight_decay", "network_limit", "prompt_limit", "clip_weight", "identity_weight", "rank_weight")
        for name in (*positive, *weights):
            value, said = getattr(self, name), "above 0" if name in positive else "from 0 on"
            if not (_number(value) and value >= 0) or (name in positive and value == 0):
                raise ValueError(f"{name}={value!r}; a number {said}")
        if not (_number(self.least) and 0 <= self.least <= 1):
            raise ValueError(f"least={self.least!r}; a number from 0 to 1")
        alphas = self.alphas if isinstance(self.alphas, Sequence) else ()
        if len(alphas) != 5 or not all(_number(a) and a >= 0 for a in alphas):
            raise ValueError(f"alphas={self.alphas!r}; five numbers from 0 on")


def _number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


PRESETS = {
    "published": LitSettings(),
    "small": LitSettings(
        network="light", start="identity", size_network=64, size_prompts=64, most=256, lr_network=4e-4,
        lr_prompts=3e-3, first_steps=500, warm_steps=1, network_steps=200, prompt_steps=200, rounds=3, extensions=0,
        scale=10.0, augment=False,
    ),
}  # fmt: skip
