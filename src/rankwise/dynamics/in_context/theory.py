"""Two models of the abrupt start of in-context learning: an induction head of three numbers, and its loss alone.

The head (`MinimalInductionHead`), on the ``D`` numbers ``c_t`` of token t, layer 1 then layer 2, T the target:

    u_t = Σ_{j≤t} softmax_j(β₁ [j = t - 1]) c_j              what the token before says is copied beside c_t
    w_j = softmax_j(α ⟨c_T, u_j⟩ + β₂ [j is a label])         the target finds the label whose copy is like it
    logits = Φ(c_T + Σ_j w_j c_j)                             Φ: three layers, as in the network

The loss (`PhenomenologicalModel`), three logits nested in each other:

    w₁ = e^{β₁} / (e^{β₁} + 2N),      w₂ = e^{α w₁} / (e^{α w₁} + N - 1)
    ℓ = -log[ e^{ξ w₂} / (e^{ξ w₂} + (N - 1) e^{ξ (1 - w₂) / (N - 1)} + L - N) ]

ξ is how far labels are apart for the classifier. At 0 the gradient is (0, 0, 1/L - 1/N): where L > N ξ grows first ("it
is one of the context's labels"), then α and β₁ shoot up together; where L = N the start is a critical point and nothing
begins. The paper's exact form is not public; this one is a reconstruction with the properties that it states.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn

from rankwise.dynamics.in_context.network import (
    HIDDEN,
    AttentionOnlyNet,
    classifier_shapes,
    classify,
    drawn,
    plant_previous_token,
)
from rankwise.dynamics.in_context.sizes import seeds_of, whole
from rankwise.dynamics.in_context.task import InContextTask

__all__ = ["MinimalInductionHead", "PhenomenologicalModel", "hand_set"]


class MinimalInductionHead(nn.Module):
    """An induction head of two or three numbers, and a classifier; all of it can be trained.

    Parameters
    ----------
    beta1 : float
        First logit of the token before, in layer 1.
    alpha : float
        First strength of the match through what was copied, in layer 2.
    beta2 : float, optional
        First logit of labels as such; without it there is no such term, and the model has two parameters.
    task : InContextTask
        Whose sequences it takes.
    seeds : int or sequence of int
        Of the classifier's first weights; a sequence makes a stack.
    hidden : int
        Width of the classifier.

    Examples
    --------
    >>> from rankwise.dynamics import InContextTask, MinimalInductionHead
    >>> task = InContextTask(p_novel=1.0)
    >>> head, batch = MinimalInductionHead(8.0, 30.0, task=task), next(iter(task))
    >>> head(batch.inputs).shape
    torch.Size([128, 32])
    >>> bool((head.attention(batch.inputs)[:, 1::2] * batch.match).sum(1).mean() > 0.9)
    True
    """

    beta1: nn.Parameter
    alpha: nn.Parameter
    beta2: nn.Parameter
    head: nn.Parameter

    def __init__(
        self, beta1: float, alpha: float, beta2: float | None = None, *, task: InContextTask,
        seeds: int | Sequence[int] = 0, hidden: int = HIDDEN,
    ) -> None:  # fmt: skip
        super().__init__()
        stack, several = seeds_of(seeds), not isinstance(seeds, numbers.Integral)
        for name, value in {"beta1": beta1, "alpha": alpha, "beta2": beta2}.items():
            if value is not None:
                first = torch.full((len(stack),), finite(name, value))
                self.register_parameter(name, nn.Parameter(first if several else first[0]))
        for name, tensor in drawn(classifier_shapes(task.dim, hidden, task.labels), stack).items():
            self.register_parameter(name, nn.Parameter(tensor if several else tensor[0]))
        self._places, self._three = task.places, beta2 is not None

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits ``(size, labels)`` of the last token."""
        return classify(self, inputs[..., -1, self._places :] + self.result(inputs))

    def result(self, inputs: Tensor) -> Tensor:
        """``Σ_j w_j c_j``, ``(size, D)``."""
        return (self.attention(inputs)[..., None, :] @ inputs[..., self._places :])[..., 0, :]

    def attention(self, inputs: Tensor) -> Tensor:
        """``w``, ``(size, tokens)``."""
        return self._second(inputs, self._first(inputs), 1)[..., 0, :]

    def layers(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """What each token gets, ``(size, tokens, D)``, and attention ``(size, 2, tokens, tokens)`` by query."""
        first = self._first(inputs)
        second = self._second(inputs, first, inputs.shape[-2])
        got = second @ inputs[..., self._places :]
        return got, torch.stack([first[..., None, :, :].expand_as(second), second], -3)

    def _first(self, inputs: Tensor) -> Tensor:
        """Attention of layer 1, ``(tokens, tokens)``: the same for every sequence."""
        place = torch.arange(inputs.shape[-2], device=inputs.device)
        before = (place[None, :] == place[:, None] - 1).to(inputs)
        return self._causal(self.beta1[..., None, None] * before)

    def _second(self, inputs: Tensor, first: Tensor, queries: int) -> Tensor:
        """Attention of layer 2 of the last ``queries`` tokens."""
        c = inputs[..., self._places :]
        u = first[..., None, :, :] @ c
        logits = self.alpha[..., None, None, None] * (c[..., -queries:, :] @ u.mT)
        if self._three:
            labels = torch.arange(c.shape[-2], device=c.device) % 2
            logits = logits + self.beta2[..., None, None, None] * labels
        return self._causal(logits)

    @staticmethod
    def _causal(logits: Tensor) -> Tensor:
        """Softmax over what is not later, where the last rows are those of the last tokens."""
        rows, tokens = logits.shape[-2:]
        later = torch.ones(rows, tokens, dtype=torch.bool, device=logits.device).triu(tokens - rows + 1)
        return logits.masked_fill(later, -torch.inf).softmax(-1)


def hand_set(task: InContextTask, *, beta1: float = 12.0, alpha: float = 40.0, seed: int = 0) -> AttentionOnlyNet:
    """An `AttentionOnlyNet` that answers from the context without training: the network suffices for it.

    Layer 1 looks one place back and copies what it sees, turned at random, to where the place stands, which it takes
    away: what is left of the place tells the first token, which can only look at itself. Layer 2 looks for the target,
    turned alike, anywhere but there, and copies the label; the classifier reads it by the embeddings of ``seed``.

    Parameters
    ----------
    task : InContextTask
        With at most as many labels as the classifier has units, 128, and two places more than ``dim``.
    beta1, alpha : float
        Logits of the token before, and of a match.
    seed : int
        Of the task's classes and labels.

    Examples
    --------
    >>> from rankwise.dynamics import InContextTask, hand_set
    >>> task = InContextTask(no_repeats=True)
    >>> batch = task.eval_sets(1000)["ic"]  # classes that nothing was told of
    >>> bool((hand_set(task)(batch.inputs).argmax(1) == batch.target).float().mean() > 0.99)
    True
    """
    P, D, L = task.places, task.dim, task.labels
    if L > HIDDEN:
        raise ValueError(f"labels={L}: at most {HIDDEN} are accepted, the classifier's units")
    if P < D + 2:
        raise ValueError(f"dim={D}: at most 2 n_max - 1 = {P - 2} is accepted, since copies stand beside places")
    net = plant_previous_token(AttentionOnlyNet(task, seeds=seed), task, finite("beta1", beta1))
    one, down = torch.ones(P), -torch.arange(P).float()
    chance = torch.randn(P, D, generator=torch.Generator().manual_seed(0))
    turn = torch.linalg.qr(torch.cat([one[:, None], down[:, None], chance], 1)).Q[:, 2:].T  # across both
    next_place = torch.diag(torch.ones(P - 1), 1)
    with torch.no_grad():
        for name in ("v1", "q2", "k2", "v2", "w1", "w2", "w3", "head"):
            getattr(net, name).zero_()
        net.v1[P:, :P] = turn
        net.v1[:P, :P] = one / P - next_place
        net.q2[P:, :P] = finite("alpha", alpha) * turn
        net.q2[:P, :P] = -2 * alpha * down  # times 1, the sum of what is left of a place
        net.k2[:P, :P] = torch.eye(P)
        net.v2[P:, P:] = 10 * torch.eye(D)  # so that the target itself hardly counts
        net.w1[P:, :L] = task.sampler(seed).embeddings[0].T
        for name in ("w2", "w3"):
            getattr(net, name)[:L, :L] = torch.eye(L)
        net.head[:L] = torch.eye(L)
    return net


class PhenomenologicalModel:
    """The loss of an induction head as a function of three numbers, and how it falls.

    Parameters
    ----------
    beta1, alpha, xi : float
        Where it starts.
    pairs, labels : int
        ``N`` and ``L``, with 2 ≤ N ≤ L.

    Examples
    --------
    >>> from rankwise.dynamics import PhenomenologicalModel
    >>> model = PhenomenologicalModel(0.0, 0.0, 0.0, pairs=8, labels=32)
    >>> round(model.loss(), 3)  # log 32
    3.466
    >>> model.flow([0, 50, 70]).loss.round(1).tolist()  # a slow phase, and then at once
    [3.5, 3.1, 0.2]
    """

    def __init__(
        self, beta1: float = 0.0, alpha: float = 0.0, xi: float = 0.0, *, pairs: int = 8, labels: int = 32
    ) -> None:
        pairs, labels = whole("pairs", pairs, 2), whole("labels", labels, 2)
        if pairs > labels:
            raise ValueError(f"pairs={pairs}, labels={labels}: 2 ≤ pairs ≤ labels is accepted")
        given = {"beta1": beta1, "alpha": alpha, "xi": xi}
        self.start = np.array([finite(name, value) for name, value in given.items()])
        self.pairs, self.labels = pairs, labels

    def loss(self) -> float:
        """``ℓ`` at the start, in nats."""
        return float(self._loss(torch.from_numpy(self.start)))

    def gradient(self) -> np.ndarray:
        """``∂ℓ / ∂(β₁, α, ξ)`` at the start."""
        return self._gradient(self.start)

    def flow(self, times: Sequence[float] | np.ndarray) -> pd.DataFrame:
        """``d(β₁, α, ξ)/dt = -∇ℓ`` from the start on, by a Runge-Kutta method of order 5 with steps of its own.

        Parameters
        ----------
        times : sequence of float
            At least two, increasing, from 0 on.

        Returns
        -------
        DataFrame
            Columns ``time``, ``beta1``, ``alpha``, ``xi``, ``loss``, ``w1`` and ``w2``.

        Raises
        ------
        ValueError
            Other times, or a start so large that a gradient is no number.
        """
        t = np.asarray(times, dtype=float)
        if t.ndim != 1 or len(t) < 2 or not np.isfinite(t).all() or t[0] < 0 or (np.diff(t) <= 0).any():
            raise ValueError("times: at least two finite numbers are accepted, increasing, the first at least 0")
        found = solve_ivp(self._fall, (0.0, t[-1]), self.start, t_eval=t, rtol=1e-8, atol=1e-10)
        at = torch.from_numpy(found.y)
        w1, w2 = self._weights(*at[:2])
        columns = dict(zip(("beta1", "alpha", "xi"), found.y, strict=True))
        return pd.DataFrame({"time": t, **columns, "loss": self._loss(at).numpy(), "w1": w1.numpy(), "w2": w2.numpy()})

    def _fall(self, _: float, at: np.ndarray) -> np.ndarray:
        slope = self._gradient(at)
        if not np.isfinite(slope).all():  # of which the solver would make no end
            raise ValueError(f"the flow from {self.start.tolist()} cannot be followed: its gradient is no number")
        return -slope

    def _weights(self, beta1: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
        w1 = torch.sigmoid(beta1 - math.log(2 * self.pairs))
        return w1, torch.sigmoid(alpha * w1 - math.log(self.pairs - 1))

    def _loss(self, at: Tensor) -> Tensor:
        N, L, xi = self.pairs, self.labels, at[2]
        w2 = self._weights(at[0], at[1])[1]
        right, wrong = xi * w2, xi * (1 - w2) / (N - 1) + math.log(N - 1)
        outside = [torch.full_like(right, math.log(L - N))] if L > N else []
        return torch.stack([right, wrong, *outside]).logsumexp(0) - right

    def _gradient(self, at: np.ndarray) -> np.ndarray:
        return torch.func.grad(self._loss)(torch.from_numpy(at)).numpy()


def finite(name: str, value: float) -> float:
    """The number, or a refusal by name."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise ValueError(f"{name}={value!r}: a finite number is accepted")
    return float(value)
