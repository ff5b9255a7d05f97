"""The network: two attention layers of one head, then a classifier of three layers on the last token.

    X ← X + softmax(X W_Q W_Kᵀ Xᵀ, causal) X W_V        twice;  W ∈ ℝ^{d×d}, N(0, 1/D)
    h ← relu(h W + b)                                    three times;  W ~ N(0, 2 / inputs), one number b a layer
    logits = h W_out                                     W_out ~ N(0, 1 / hidden)

No biases, no norm, no 1/√d, no projection of the output. The last token alone is classified, so that the second layer
is computed for its query only, and ``W_Q W_Kᵀ`` before any token: the same numbers for a third of the work.

A stack of networks, one a seed, is one network whose parameters have a first dimension more.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankwise.dynamics.in_context.sizes import seeds_of, whole
from rankwise.dynamics.in_context.task import InContextTask, generator

__all__ = ["AttentionOnlyNet"]

FIRST = ("q1", "k1", "v1")  # parameters of the first layer
HIDDEN = 128


class AttentionOnlyNet(nn.Module):
    """Two layers of attention and a classifier; of several seeds at once, where several are given.

    Parameters
    ----------
    task : InContextTask
        Whose sequences it takes: its places, dimension and labels.
    seeds : int or sequence of int
        Of the first weights. A sequence makes a stack: inputs and logits have a first dimension more.
    hidden : int
        Width of the classifier.

    Examples
    --------
    >>> from rankwise.dynamics import AttentionOnlyNet, InContextTask
    >>> task = InContextTask()
    >>> batch = next(iter(task))
    >>> AttentionOnlyNet(task)(batch.inputs).shape
    torch.Size([128, 32])
    """

    q1: nn.Parameter
    k1: nn.Parameter
    v1: nn.Parameter
    q2: nn.Parameter
    k2: nn.Parameter
    v2: nn.Parameter
    w1: nn.Parameter
    w2: nn.Parameter
    w3: nn.Parameter
    b1: nn.Parameter
    b2: nn.Parameter
    b3: nn.Parameter
    head: nn.Parameter

    def __init__(self, task: InContextTask, *, seeds: int | Sequence[int] = 0, hidden: int = HIDDEN) -> None:
        super().__init__()
        d, stack, several = task.width, seeds_of(seeds), not isinstance(seeds, numbers.Integral)
        shapes = dict.fromkeys(("q1", "k1", "v1", "q2", "k2", "v2"), ((d, d), 1 / math.sqrt(task.dim)))
        shapes |= classifier_shapes(d, hidden, task.labels)
        for name, tensor in drawn(shapes, stack).items():
            self.register_parameter(name, nn.Parameter(tensor if several else tensor[0]))

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits ``(size, labels)`` of the last token."""
        self._check(inputs)
        x = inputs + self._layer(inputs, 1)[0]
        last = x[..., -1:, :]
        scores = project(project(last, self.q2), self.k2.mT) @ x.mT
        return classify(self, (last + project(scores.softmax(-1) @ x, self.v2))[..., 0, :])

    def layers(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The stream after both layers, ``(size, tokens, d)``, and attention ``(size, 2, tokens, tokens)``.

        Rows of attention are queries; row t is 0 after t.
        """
        self._check(inputs)
        first, a1 = self._layer(inputs, 1)
        x = inputs + first
        second, a2 = self._layer(x, 2)
        return x + second, torch.stack([a1, a2], -3)

    @torch.no_grad()
    def run_with_cache(self, inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits, and what is inside, under the names and with the shapes that TransformerLens gives it.

        Returns
        -------
        logits : Tensor
            ``(size, labels)``.
        cache : dict of str to Tensor
            Of layers 0 and 1 ``blocks.{i}.hook_resid_pre``, ``hook_attn_out`` and ``hook_resid_post``, ``(size, tokens,
            d)``; ``attn.hook_q``, ``hook_k``, ``hook_v`` and ``hook_z``, ``(size, tokens, 1, d)``;
            ``attn.hook_attn_scores`` (of later tokens -inf) and ``hook_pattern``, ``(size, 1, tokens, tokens)``. The
            value goes unchanged into the stream: there is no projection of the output. Of a stack all have a first
            dimension more.
        """
        self._check(inputs)
        cache, x = {}, inputs.clone()  # who edits the cache leaves the inputs as they are
        for i in (0, 1):
            block, before = f"blocks.{i}", x
            q, k, v = (project(x, getattr(self, f"{name}{i + 1}")) for name in "qkv")
            scores = _causal(q @ k.mT)
            pattern = scores.softmax(-1)
            moved = pattern @ v
            x = before + moved
            cache |= {f"{block}.hook_resid_pre": before, f"{block}.hook_attn_out": moved, f"{block}.hook_resid_post": x}
            cache |= {f"{block}.attn.hook_{name}": part.unsqueeze(-2)
                      for name, part in zip("qkvz", (q, k, v, moved), strict=True)}  # fmt: skip
            cache |= {f"{block}.attn.hook_{name}": part.unsqueeze(-3)
                      for name, part in (("attn_scores", scores), ("pattern", pattern))}  # fmt: skip
        return self(inputs), cache

    def _check(self, inputs: Tensor) -> None:
        width = self.q1.shape[-1]
        if not isinstance(inputs, Tensor) or inputs.dim() < 3 or inputs.shape[-1] != width:
            said = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
            raise ValueError(f"inputs {said}: a tensor (size, tokens, {width}) is needed, as batch.inputs of the task")

    def _layer(self, x: Tensor, number: int) -> tuple[Tensor, Tensor]:
        q, k, v = (getattr(self, f"{name}{number}") for name in "qkv")
        a = _causal(project(x, q @ k.mT) @ x.mT).softmax(-1)
        return a @ project(x, v), a


def _causal(scores: Tensor) -> Tensor:
    """``(…, tokens, tokens)`` with -inf for later tokens."""
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    return scores.masked_fill(later, -torch.inf)


def project(x: Tensor, W: Tensor) -> Tensor:
    """``x W``, a matrix for each network of a stack."""
    return torch.einsum("...std,...de->...ste", x, W)


def classify(net: nn.Module, h: Tensor) -> Tensor:
    """Three layers with one bias each, and the head."""
    for i in (1, 2, 3):
        W, b = getattr(net, f"w{i}"), getattr(net, f"b{i}")
        h = F.relu(torch.einsum("...sd,...de->...se", h, W) + b[..., None, None])
    return torch.einsum("...sd,...de->...se", h, getattr(net, "head"))  # noqa: B009  (of either model)


def classifier_shapes(inputs: int, hidden: int, labels: int) -> dict[str, tuple[tuple[int, ...], float]]:
    """Shape and standard deviation of each of the classifier's parameters."""
    widths = (inputs, *3 * [whole("hidden", hidden, 1)])
    found: dict[str, tuple[tuple[int, ...], float]] = {
        f"w{i + 1}": ((widths[i], hidden), math.sqrt(2 / widths[i])) for i in range(3)
    }
    return found | {f"b{i}": ((), 0.0) for i in (1, 2, 3)} | {"head": ((hidden, labels), 1 / math.sqrt(hidden))}


def drawn(shapes: dict[str, tuple[tuple[int, ...], float]], seeds: Sequence[int]) -> dict[str, Tensor]:
    """First values of parameters, stacked over seeds: each seed's do not depend on the others."""
    sources = [generator(seed, "weights") for seed in seeds]
    return {
        name: torch.stack([scale * torch.randn(shape, generator=g) for g in sources])
        for name, (shape, scale) in shapes.items()
    }


def plant_previous_token(net: AttentionOnlyNet, task: InContextTask, beta1: float) -> AttentionOnlyNet:
    """Make the first layer look at the token before, with logit ``beta1``, by places alone; in place."""
    P = task.places
    with torch.no_grad():
        net.q1.zero_()
        net.k1.zero_()
        net.k1[..., :P, :P] = torch.eye(P)
        net.q1[..., :P, :P] = beta1 * torch.diag(torch.ones(P - 1), -1)  # place t asks for place t - 1
    return net
