"""Equilibrium-Ranking: answers on which a model's generating and judging sides agree.

A generator π_G(y | v) that is told whether to answer correctly (v = 0) or not (v = 1), each half of the time, and a
discriminator π_D(v | y) that sees the answer and guesses v, are both paid when the guess is right, and both pay λ times
their KL divergence from what the language model said at first. No-regret dynamics, both sides at once, t = 1, 2, …:

    Q_G(y | v) = (1 / 2t) Σ_{τ≤t} π_D^τ(v | y)            Q_D(v | y) = (1 / 2t) Σ_{τ≤t} π_G^τ(y | v)
    π^{t+1} ∝ exp{ (Q + λ log π⁰) / (1 / (η t) + λ) }

ER-D answers ``argmax_y π_D(correct | y)``, ER-G ``argmax_y π_G(y | correct)``.

Shapes: questions B, candidates K; the generator's ``(B, 2, K)``, the discriminator's ``(B, K, 2)``. All questions move
in one loop; questions with fewer candidates are masked.

Source: Jacob, Shen, Farina & Andreas, "The Consensus Game", ICLR 2024, arXiv 2310.09139; the dynamics are piKL's,
derived anew.

What people get wrong: the normalisation. Both sides are first made comparable across the variable they condition on:
what the generator would say just as well when lying tells nothing. With ``normalise="both"`` each side is made a
distribution of its own before that,

    g(y | v) = P(y | v) / Σ_y' P(y' | v),    π_G⁰(y | v) ∝ g(y | v) / Σ_v' g(y | v')

so that a prompt under which every answer is less likely does not count, nor a constant added to its log-probabilities.
The paper divides the model's raw probabilities, ``π_G⁰(y | v) ∝ P(y | v) / Σ_v' P(y | v')``, and the discriminator's
across answers likewise: ``normalise="raw"``. In a few questions of a hundred another answer wins.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rankwise.nearest import unknown

__all__ = ["EquilibriumRanker", "Ranking"]

CORRECT = 0
NORMALISATIONS = ("both", "raw", "own")
_CHECK = 100  # iterations between looks at the gap


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Both sides' policies at the end.

    Attributes
    ----------
    policy_g : Tensor
        ``(B, 2, K)``, sums to 1 over candidates.
    policy_d : Tensor
        ``(B, K, 2)``, sums to 1 over (correct, incorrect).
    order_d, order_g : Tensor
        ``(B, K)`` candidates from best to worst by ER-D and ER-G; masked ones last.
    iterations : int
        How many iterations the dynamics took.
    gap : Tensor
        ``(B,)``, exploitability: what both sides together would gain by best responses in the regularised game.

    Examples
    --------
    >>> import torch
    >>> from rankwise.prompting import EquilibriumRanker
    >>> logp = torch.tensor([[0.7, 0.3]]).log()  # one question with two candidates
    >>> ranking = EquilibriumRanker().rank(torch.stack([logp, logp.flip(1)], 1), torch.stack([logp, logp.flip(1)], 2))
    >>> ranking.order_d.tolist(), ranking.policy_g.shape, ranking.policy_d.shape
    ([[0, 1]], torch.Size([1, 2, 2]), torch.Size([1, 2, 2]))
    """

    policy_g: Tensor
    policy_d: Tensor
    order_d: Tensor
    order_g: Tensor
    iterations: int
    gap: Tensor


@dataclass(frozen=True, kw_only=True)
class EquilibriumRanker:
    """The consensus game's solver.

    Parameters
    ----------
    lambda_g, lambda_d : float
        λ: how much each side keeps to what the model said; 0 forgets it, infinity keeps it.
    eta_g, eta_d : float
        η, the learning rate of each side; above 0.
    iterations : int
        Iterations that are made at most.
    tol : float
        Stop when every question's gap lies below; 0 never stops early.
    normalise : {"both", "raw", "own"}
        Across candidates and conditions, each side made a distribution first; the same of raw probabilities, as in the
        paper; across its own variable alone.
    refine : int
        Rounds of damped best responses after the dynamics; 0 is the paper's. The dynamics forget their start only as
        1 / t: at 5,000 iterations a gap of 1e-3 to 1e-2 is left, which 200 rounds bring below 1e-6, at times with
        another winner. Both λ have to be above 0.

    Examples
    --------
    >>> import torch
    >>> from rankwise.prompting import EquilibriumRanker
    >>> correct, incorrect = torch.tensor([0.6, 0.4]).log(), torch.tensor([0.3, 0.7]).log()  # P(answer | asked for …)
    >>> judged = torch.tensor([[0.8, 0.2], [0.4, 0.6]]).log()  # P(it is correct, it is not | answer)
    >>> ranking = EquilibriumRanker(refine=200).rank(torch.stack([correct, incorrect])[None], judged[None])
    >>> ranking.order_d.tolist(), bool(ranking.gap[0] < 1e-6)
    ([[0, 1]], True)
    """

    lambda_g: float = 0.1
    lambda_d: float = 0.1
    eta_g: float = 0.1
    eta_d: float = 0.1
    iterations: int = 5000
    tol: float = 1e-6
    normalise: str = "both"
    refine: int = 0

    def __post_init__(self) -> None:
        for name in ("lambda_g", "lambda_d", "tol", "refine"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        for name in ("eta_g", "eta_d", "iterations"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive")
        if self.normalise not in NORMALISATIONS:
            raise unknown("normalise", self.normalise, NORMALISATIONS)
        if self.refine and not min(self.lambda_g, self.lambda_d) > 0:
            raise ValueError(f"refine={self.refine} needs lambda_g and lambda_d above 0: best responses jump at 0")

    @torch.no_grad()
    def rank(self, generator_logp: Tensor, discriminator_logp: Tensor, mask: Tensor | None = None) -> Ranking:
        """Play the game for all questions.

        Parameters
        ----------
        generator_logp : Tensor
            ``(B, 2, K)``: log-probability of each answer when asked for a (correct, incorrect) one; any constant may be
            added to a row, unless ``normalise="raw"``.
        discriminator_logp : Tensor
            ``(B, K, 2)``: log-probability of (correct, incorrect) for each answer.
        mask : Tensor, optional
            ``(B, K)`` boolean, true where there is a candidate.

        Raises
        ------
        ValueError
            Shapes that do not fit, no candidate, NaN, or a question whose candidates all have probability 0.
        """
        log_g, log_d, mask = self._initial(generator_logp, discriminator_logp, mask)
        G, D = log_g.exp(), log_d.exp()
        sum_g, sum_d = torch.zeros_like(G), torch.zeros_like(D)
        gap, t = torch.full((len(G),), float("inf"), dtype=G.dtype, device=G.device), 0
        anchor_g, anchor_d = _finite(self.lambda_g) * log_g, _finite(self.lambda_d) * log_d
        for t in range(1, self.iterations + 1):
            sum_g += G
            sum_d += D
            G = _step(sum_d.mT / (2 * t), anchor_g, self.lambda_g, self.eta_g, t, log_g, dim=2)
            D = _step(sum_g.mT / (2 * t), anchor_d, self.lambda_d, self.eta_d, t, log_d, dim=2)
            if t % _CHECK == 0 or t == self.iterations:
                gap = self.gap(G, D, log_g, log_d, mask)
                if self.tol > 0 and bool((gap < self.tol).all()):
                    break
        if self.refine:
            for _ in range(self.refine):
                answer_g = _step(D.mT / 2, anchor_g, self.lambda_g, float("inf"), 1, log_g, dim=2)
                answer_d = _step(G.mT / 2, anchor_d, self.lambda_d, float("inf"), 1, log_d, dim=2)
                G, D = (G + answer_g) / 2, (D + answer_d) / 2
            gap = self.gap(G, D, log_g, log_d, mask)
        absent = ~mask
        best_d = D[:, :, CORRECT].masked_fill(absent, -1).argsort(dim=1, descending=True, stable=True)
        best_g = G[:, CORRECT].masked_fill(absent, -1).argsort(dim=1, descending=True, stable=True)
        return Ranking(policy_g=G, policy_d=D, order_d=best_d, order_g=best_g, iterations=t, gap=gap)

    def gap(self, G: Tensor, D: Tensor, log_g: Tensor, log_d: Tensor, mask: Tensor) -> Tensor:
        """``(B,)``: what best responses gain, ``max_π {π·Q - λ KL(π ‖ π⁰)}`` less the same at π, both sides summed."""
        gain_g = _gain(G, D.mT / 2, log_g, self.lambda_g).sum(1)
        gain_d = (_gain(D, G.mT / 2, log_d, self.lambda_d) * mask).sum(1)
        return gain_g + gain_d

    def _initial(self, g: Tensor, d: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """``log π⁰`` of both sides, float64, and the mask."""
        if g.ndim != 3 or g.shape[1] != 2 or d.shape != (g.shape[0], g.shape[2], 2):
            raise ValueError(
                f"generator {tuple(g.shape)} and discriminator {tuple(d.shape)} do not fit: (B, 2, K) and (B, K, 2)"
            )
        mask = torch.ones(g.shape[0], g.shape[2], dtype=torch.bool, device=g.device) if mask is None else mask.bool()
        if mask.shape != (g.shape[0], g.shape[2]):
            raise ValueError(f"mask {tuple(mask.shape)} does not fit {g.shape[0]} questions of {g.shape[2]} candidates")
        bare = (~mask.any(1)).nonzero().flatten().tolist()
        if bare:
            raise ValueError(f"questions without a candidate: {bare[:5]}")
        g, d = g.double(), d.double()
        if g.mT[mask].isnan().any() or d[mask].isnan().any():
            raise ValueError("log-probabilities have NaN")
        out = ~mask[:, None, :]
        g = g.masked_fill(out, -torch.inf)
        if (g.amax(2) == -torch.inf).any():
            raise ValueError("a question's candidates all have probability 0 (log-probability -inf) for the generator")
        d = d.masked_fill(~mask[:, :, None], 0.0)
        if (d.amax(2) == -torch.inf).any():
            raise ValueError("a candidate has probability 0 of being either correct or incorrect")
        if self.normalise == "both":  # what was added to a whole row must not count
            g, d = g.log_softmax(2), d.log_softmax(2)
        if self.normalise != "own":
            g = g.log_softmax(1).masked_fill(g.amax(1, keepdim=True) == -torch.inf, -torch.inf)
            d = d.masked_fill(~mask[:, :, None], -torch.inf).log_softmax(1).masked_fill(~mask[:, :, None], 0.0)
        return g.log_softmax(2), d.log_softmax(2), mask


def _finite(x: float) -> float:
    return x if x < float("inf") else 1.0


def _step(Q: Tensor, anchor: Tensor, lam: float, eta: float, t: int, log0: Tensor, *, dim: int) -> Tensor:
    if lam == float("inf"):
        return log0.exp()
    # 0 · log 0: an answer the model rules out stays ruled out
    logits = (Q + anchor.masked_fill(log0 == -torch.inf, -torch.inf)) / (1 / (eta * t) + lam)
    return torch.softmax(logits, dim)


def _gain(policy: Tensor, Q: Tensor, log0: Tensor, lam: float) -> Tensor:
    """``max_π {π·Q - λ KL(π ‖ π⁰)}`` less its value at ``policy``, over the last dimension."""
    possible = log0 > -torch.inf
    if lam == float("inf"):
        return torch.zeros_like(policy[..., 0])
    value = (policy * Q).sum(-1)
    if lam == 0:
        return Q.masked_fill(~possible, -torch.inf).amax(-1) - value
    best = lam * torch.logsumexp(log0 + Q / lam, -1)
    divergence = torch.special.xlogy(policy, policy) - policy * log0.masked_fill(~possible, 0.0)
    return best - (value - lam * divergence.sum(-1))


def baselines(generator_logp: Tensor, discriminator_logp: Tensor, plain_logp: Tensor) -> dict[str, Tensor]:
    """Scores ``(B, K)`` of the rankings to compare with, higher is better.

    Parameters
    ----------
    generator_logp, discriminator_logp : Tensor
        Log-probabilities as `EquilibriumRanker.rank` takes them.
    plain_logp : Tensor
        ``(B, K)``: log-probability of each answer when nothing is said of correctness.

    Returns
    -------
    dict of Tensor
        ``G`` the generator, ``D`` the discriminator, ``MI`` their product, ``SC`` correct against incorrect.
    """
    G, D = plain_logp.log_softmax(1), discriminator_logp.log_softmax(2)[:, :, CORRECT]
    contrast = generator_logp.log_softmax(2)
    return {"G": G, "D": D, "MI": G + D, "SC": contrast[:, CORRECT] - contrast[:, 1 - CORRECT]}


def merged(candidates: list[str], logp: Tensor) -> tuple[list[str], Tensor]:
    """Equal candidates become one, their probabilities summed; ``logp`` is ``(..., K)``, order of first appearance."""
    names = list(dict.fromkeys(candidates))
    if not names:
        raise ValueError("there is no candidate")
    rows = [[i for i, c in enumerate(candidates) if c == n] for n in names]
    return names, torch.stack([logp[..., r].logsumexp(-1) for r in rows], -1)
