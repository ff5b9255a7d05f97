"""GaLore: AdamW whose moments live in a low-rank subspace of the gradient.

For a weight ``W: (m, n)`` with gradient ``G`` and rank r, every T steps the basis is drawn anew from the current G:

    m >= n:  Q ← leading r right singular vectors of G, (r, n);   R = G Qᵀ  (m, r),   back(N) = N Q
    m <  n:  Q ← leading r left singular vectors of G,  (r, m);   R = Q G   (r, n),   back(N) = Qᵀ N

    M ← β₁ M + (1-β₁) R,   V ← β₂ V + (1-β₂) R²,   N = M̂ / (√V̂ + ε),   W ← W - lr·scale·back(N) - lr·wd·W

so the state of a matrix is ``2·r·m + r·n`` numbers (or ``2·r·n + r·m``) instead of ``2·m·n``. Parameters in groups
without a rank get plain AdamW. Moments and bases are float32 whatever the weights are (float64 for float64 weights): in
bfloat16 a second moment with β₂ = 0.999 would never move.

Adam's N has entries of size one, so that ``back(N)`` is √(r/n) as long as the step of plain AdamW (√(r/m) on the left).
``scale=None`` makes up for it, matrix by matrix; a number is galore-torch's one factor for all.

The basis comes from `rankwise.spectral.truncated_svd`, one power iteration from the old basis, instead of a full SVD.
``captured_share`` of a matrix is (at least) the share ``‖Q Gᵀ‖² / ‖G‖²`` of the energy inside its basis at the last
refresh: since no subspace holds more than all of it, this bounds from below what the basis captures relative to the
best one of its rank.

Source: Zhao et al., "GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection", ICML 2024, arXiv
2403.03507, Algorithm 2; the group keys are those of the package galore-torch.

What people get wrong: expecting memory from the projection alone. The full gradient still exists unless every parameter
is updated, and its gradient freed, while the backward pass runs (`GaLoreAdamW.step_in_backward`).
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.optim.optimizer import Optimizer

from rankwise.optim.groups import check_group, check_keys, check_state, split
from rankwise.optim.held import Holders, refuse_loss_scaling, refuse_replicas, undo_of
from rankwise.optim.tied import gather_in_place
from rankwise.spectral import truncated_svd
from rankwise.spectral.accepted import largest_entry

__all__ = ["GaLoreAdamW"]

if TYPE_CHECKING:
    from transformers import TrainerCallback

_OVERSAMPLE = 8
_CHUNK = 1 << 20  # entries of a low-precision weight updated at a time, in float32
_KEPT = ("stochastic_rounding", "max_skipped", "skipped", "_skipped_in_a_row")  # by copies and pickles
_UPDATING = Holders("updates these parameters in the backward pass")


class GaLoreAdamW(Optimizer):
    """AdamW with low-rank gradient projection; drop-in for ``galore_torch.GaLoreAdamW``.

    Copies and pickles have moments and settings, but not the hooks of `step_in_backward`: they update in ``step``.

    Parameters
    ----------
    params : iterable of Tensor or of dict
        Groups with a ``rank`` key are projected and hold matrices only (`galore_groups` makes them); others get AdamW.
        float32, float64, bfloat16 or float16, any device and layout; sparse gradients are made dense.
    lr : float
        The learning rate. Default 1e-3.
    rank : int, optional
        Of a plain list of parameters: project all matrices to this rank. At least 1 and at most the larger side; where
        it reaches the projected side the basis is a rotation, and nothing is saved.
    update_gap : int
        Steps T between refreshes of a basis (at steps 0, T, 2T, …); ``update_proj_gap`` in a group is the same.
    scale : float, optional
        Factor of the projected update, galore-torch's 0.25 by default; ``None`` makes it as long as a full step.
    proj_type : {"std", "reverse_std", "left", "right", "full"}
        Which side is projected: the smaller, the larger, always left or right, both.
    on_refresh : {"keep", "reset", "rotate"}
        What happens to the moments when the basis changes: nothing (the reference's way), start anew (bias correction
        too), or the change of basis (exact for the mean, squared coefficients for the variance).
    svd : {"subspace", "full", "random"}
        One power iteration from the old basis, LAPACK's full SVD, or random directions (a control).
    betas, eps, weight_decay
        As in `torch.optim.AdamW`, with galore-torch's ``eps=1e-6``, and no decay by default.
    stochastic_rounding : bool
        Round updates of bfloat16 weights at random, unbiased, so that small ones are not lost.
    max_skipped : int
        A step whose gradients are not finite is skipped and counted in ``skipped``; after so many in a row it raises.
        In the backward pass only the tensors with such gradients are skipped: the others have moved already.
    seed : int
        At least 0. Decides random directions and rounding, together with the parameter's number and the step.

    Raises
    ------
    ValueError
        Rank out of range, a projected group with a tensor that is no matrix, complex or integer parameters, float16
        weights with stochastic rounding, unknown names and keys.
    FloatingPointError
        In ``step``, after ``max_skipped`` steps in a row without finite gradients.

    Examples
    --------
    >>> import torch
    >>> from rankwise.optim import GaLoreAdamW
    >>> layer = torch.nn.Linear(8, 4)
    >>> optimizer = GaLoreAdamW(layer.parameters(), lr=1e-2, rank=2)
    >>> for _ in range(3):
    ...     optimizer.zero_grad()
    ...     layer(torch.randn(16, 8)).square().mean().backward()
    ...     optimizer.step()
    >>> optimizer.state[layer.weight]["exp_avg"].shape  # of a matrix of 4 x 8
    torch.Size([2, 8])
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        rank: int | None = None,
        update_gap: int = 200,
        scale: float | None = 0.25,
        proj_type: Literal["std", "reverse_std", "left", "right", "full"] = "std",
        on_refresh: Literal["keep", "reset", "rotate"] = "keep",
        svd: Literal["subspace", "full", "random"] = "subspace",
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        stochastic_rounding: bool = False,
        max_skipped: int = 10,
        seed: int = 0,
    ) -> None:
        self.stochastic_rounding, self.max_skipped = stochastic_rounding, max_skipped
        self.skipped = self._skipped_in_a_row = 0
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "update_gap": update_gap}
        defaults |= {"scale": scale, "proj_type": proj_type, "on_refresh": on_refresh, "svd": svd}
        defaults |= {"seed": seed, "steps": 0}
        self._begin()
        super().__init__(split(params, rank), defaults)

    def _begin(self) -> None:
        """What belongs to this object alone: its hooks, and what has happened since the last step."""
        self.updates_in_backward, self.released = False, False
        self._undo, self._max_norm = undo_of(self), None
        self._number: dict[int, tuple[int, int]] = {}  # of a parameter: its place, and its group's
        self._updated: set[int] = set()
        self._bad, self._asked = False, False

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), **{k: getattr(self, k) for k in _KEPT}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "_undo" not in self.__dict__:  # a copy or a pickle; torch also comes here when state is loaded
            self._begin()
        super().__setstate__(state)
        self._count_parameters()

    def add_param_group(self, param_group: dict) -> None:
        """Add a group, checked; ``update_proj_gap`` is galore-torch's name for ``update_gap``."""
        if "update_proj_gap" in param_group:
            if "update_gap" in param_group:
                raise ValueError("update_gap and update_proj_gap are the same option: give one")
            param_group["update_gap"] = param_group.pop("update_proj_gap")
        check_keys(param_group)
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            check_group(group)
            if self.stochastic_rounding and any(p.dtype == torch.float16 for p in group["params"]):
                raise ValueError("stochastic_rounding is for bfloat16 weights, not for float16")
            if self.updates_in_backward:
                self._watch(group["params"])
        except ValueError:
            self.param_groups.pop()
            raise
        self._count_parameters()

    def _count_parameters(self) -> None:
        places = ((p, g) for g, group in enumerate(self.param_groups) for p in group["params"])
        self._number = {id(p): (i, g) for i, (p, g) in enumerate(places)}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient (those updated in the backward pass are done already)."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        waiting = [(p, _dense(p.grad), g) for g in self.param_groups for p in g["params"] if p.grad is not None]
        if not _finite([grad for _, grad, _ in waiting]):
            self._bad, waiting = True, []
        for p, grad, group in waiting:
            self._update(p, grad, group)
            if self.updates_in_backward:  # a gradient that came without its hook
                p.grad = None
        for group in self.param_groups:
            group["steps"] += 1
        self._updated.clear()
        self._count_skipped()
        return loss

    def step_in_backward(self, *, model: nn.Module | None = None, max_norm: float | None = None) -> None:
        """Update each parameter as soon as its gradient is complete, and free that gradient at once.

        From here on, until `release`, ``step`` only closes the step (it must still be called: schedules and counters
        hang on it). A second backward pass before it, as in gradient accumulation, is an error, and so are scaled
        losses (``GradScaler``) and several processes.

        Parameters
        ----------
        model : nn.Module, optional
            Whose tied embedding, if it has one, gets its gradient in one buffer (`rankwise.optim.tied`).
        max_norm : float, optional
            Clip the norm of each gradient tensor to this; a norm over all parameters is not known in time.

        Raises
        ------
        ValueError
            Another optimiser updates one of the parameters in the backward pass; several processes run; ``max_norm`` is
            not positive.
        """
        if max_norm is not None and not max_norm > 0:
            raise ValueError(f"max_norm={max_norm}: above 0, or None")
        refuse_replicas("updating in the backward pass")
        self._undo.close()
        self._watch([p for group in self.param_groups for p in group["params"]])
        if model is not None:
            self._undo.callback(gather_in_place(model))
        self.updates_in_backward, self.released, self._asked, self._max_norm = True, False, False, max_norm

    def release(self) -> None:
        """Undo `step_in_backward`: from here on ``step`` updates, and gradients stay until they are zeroed."""
        self._undo.close()
        _UPDATING.give_back(self)
        self.updates_in_backward, self.released = False, True

    def _watch(self, params: list[Tensor]) -> None:
        _UPDATING.take(self, params)
        weakly = weakref.ref(self)  # a hook that held the optimiser would keep it, and itself, alive

        def complete(p: Tensor) -> None:
            if (me := weakly()) is not None:
                me._update_and_free(p)

        for p in params:
            trains = p.requires_grad
            p.requires_grad_(True)  # a frozen parameter takes no hook
            self._undo.callback(p.register_post_accumulate_grad_hook(complete).remove)
            p.requires_grad_(trains)

    @torch.no_grad()
    def _update_and_free(self, p: Tensor) -> None:
        if id(p) in self._updated:
            raise RuntimeError(
                "two backward passes in one step: gradient accumulation needs all gradients at once; accumulate 1 "
                "step, or use the optimiser without step_in_backward"
            )
        if not self._updated:
            self._ask_once()
        grad, p.grad = p.grad, None
        assert grad is not None
        grad = _dense(grad)
        self._updated.add(id(p))
        if not _finite([grad]):
            self._bad = True
            return
        if self._max_norm is not None:
            norm = torch.linalg.vector_norm(grad, dtype=_precision(grad))
            grad.mul_((self._max_norm / (norm + 1e-6)).clamp(max=1.0))
        self._update(p, grad, self.param_groups[self._number[id(p)][1]])

    def _ask_once(self) -> None:
        """Before the first weight moves: whether somebody expects gradients to be there afterwards."""
        if not self._asked:
            refuse_replicas("updating in the backward pass")
            refuse_loss_scaling()
            self._asked = True

    def _count_skipped(self) -> None:
        self.skipped += self._bad
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if self._bad else 0
        self._bad = False
        if self._skipped_in_a_row >= self.max_skipped:
            raise FloatingPointError(
                f"gradients were not finite in {self._skipped_in_a_row} steps in a row; lower the learning rate"
            )

    def _update(self, p: Tensor, grad: Tensor, group: dict) -> None:
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros(())
        (self._projected if group.get("rank") else self._plain)(p, grad, group, state)

    def _projected(self, p: Tensor, grad: Tensor, group: dict, state: dict) -> None:
        if int(state["step"]) % group["update_gap"] == 0:
            _refresh(grad, group, state, seed=self._seed(p, 0))
        R = project(grad, state.get("left"), state.get("right")).to(_precision(p))
        if "exp_avg" not in state:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(R), torch.zeros_like(R)
        state["step"] += 1
        state["age"] = state.get("age", 0) + 1  # of the moments, for the bias correction
        beta1, beta2 = group["betas"]
        M = state["exp_avg"].lerp_(R, 1 - beta1)
        V = state["exp_avg_sq"].mul_(beta2).addcmul_(R, R, value=1 - beta2)
        scale = math.sqrt(p.numel() / R.numel()) if group["scale"] is None else group["scale"]
        size = group["lr"] * scale / (1 - beta1 ** state["age"])
        N = M / V.sqrt().div_(math.sqrt(1 - beta2 ** state["age"])).add_(group["eps"])
        W = p.to(_precision(p))  # the weight itself, where it is long enough
        left, right = back(N, state.get("left"), state.get("right"))
        W.addmm_(left, right, beta=1 - group["lr"] * group["weight_decay"], alpha=-size)
        if W.dtype != p.dtype:
            self._store(p, W, self._seed(p, 1))

    def _plain(self, p: Tensor, grad: Tensor, group: dict, state: dict) -> None:
        if "exp_avg" not in state:
            state["exp_avg"], state["exp_avg_sq"] = (p.new_zeros(p.shape, dtype=_precision(p)) for _ in "mv")
        M, V, step = state["exp_avg"], state["exp_avg_sq"], state["step"]
        beta1, beta2 = group["betas"]
        options = {"beta1": beta1, "beta2": beta2, "lr": group["lr"], "weight_decay": group["weight_decay"]}
        options |= {"eps": group["eps"], "amsgrad": False, "maximize": False, "foreach": False}
        if p.dtype == _precision(p):
            # one pass without temporaries, over memory as it lies; on a GPU it would want the step there
            fused = p.device.type == "cpu" and p.is_contiguous() and grad.is_contiguous()
            adamw([p], [grad.to(p.dtype)], [M], [V], [], [step], fused=fused, **options)
            return
        dense = p.contiguous()
        weights, grads, M, V, now = dense.view(-1), grad.reshape(-1), M.view(-1), V.view(-1), step.clone()
        for start in range(0, len(weights), _CHUNK):
            part = slice(start, start + _CHUNK)
            W, now = weights[part].float(), step.clone()
            adamw([W], [grads[part].float()], [M[part]], [V[part]], [], [now], **options)
            self._store(weights[part], W, self._seed(p, 1 + start))
        step.copy_(now)
        if not p.is_contiguous():
            p.copy_(dense)

    def _store(self, p: Tensor, W: Tensor, seed: int) -> None:
        p.copy_(stochastic_round(W, seed) if self.stochastic_rounding and p.dtype == torch.bfloat16 else W)

    def _seed(self, p: Tensor, use: int) -> int:
        """Of one draw: a function of the seed, the parameter's number, the step and the use."""
        number, place = self._number[id(p)]
        group = self.param_groups[place]
        words = group["seed"], number, group["steps"], use
        return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)

    def captured_share(self) -> dict[int, float]:
        """Share of each projected gradient's energy inside its basis at the last refresh, by parameter number."""
        numbered = enumerate(p for g in self.param_groups for p in g["params"])
        return {i: float(self.state[p]["captured"]) for i, p in numbered if "captured" in self.state.get(p, {})}

    def state_bytes(self) -> int:
        """Bytes of all optimiser state: moments, bases, counters."""
        return sum(v.nbytes for s in self.state.values() for v in s.values() if isinstance(v, Tensor))

    def state_dict(self) -> dict[str, Any]:
        """Moments, bases and counters: resuming continues exactly."""
        return {**super().state_dict(), "counts": [self.skipped, self._skipped_in_a_row]}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of `state_dict`; float32 state of bfloat16 weights stays float32.

        Counts of skipped steps may be missing, as in what ``torch.distributed.checkpoint`` keeps.

        Raises
        ------
        ValueError
            The state of another optimiser, or of parameters of other shapes.
        """
        check_state(state_dict, self.param_groups)
        super().load_state_dict({k: state_dict[k] for k in ("state", "param_groups")})
        names = [n for g in state_dict["param_groups"] for n in g["params"]]
        params = [p for g in self.param_groups for p in g["params"]]
        for name, p in zip(names, params, strict=True):
            for key, value in state_dict["state"].get(name, {}).items():
                if isinstance(value, Tensor):  # torch has cast it to the weight's dtype
                    self.state[p][key] = value.detach().clone().to("cpu" if value.dim() == 0 else p.device)
        self.skipped, self._skipped_in_a_row = state_dict.get("counts", (0, 0))

    def callback(self) -> TrainerCallback:
        """For `transformers.Trainer`: refuses settings that cannot work, and releases the model at the end."""
        from rankwise.optim.trainer import in_trainer

        return in_trainer(self)


def _precision(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _dense(grad: Tensor) -> Tensor:
    return grad.to_dense() if grad.is_sparse else grad


def _finite(grads: list[Tensor]) -> bool:
    """Whether no gradient has NaN or Inf; a norm over all would overflow before its entries do."""
    largest = [largest_entry(g) for g in grads if g.numel()]
    return not largest or bool(torch.stack([x.to(largest[0].device, torch.float64) for x in largest]).isfinite().all())


def sides(shape: tuple[int, ...], proj_type: str) -> tuple[bool, bool]:
    """Whether the left and the right side of a gradient ``(m, n)`` are projected."""
    tall = shape[0] >= shape[1]
    right = {"std": tall, "reverse_std": not tall, "right": True, "left": False, "full": True}[proj_type]
    return (not right or proj_type == "full"), right


def project(G: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
    """``R``: the gradient ``(m, n)`` in the bases ``left: (r, m)`` and ``right: (r, n)``, where there are such."""
    G = G if left is None else left.to(G.dtype) @ G
    return G if right is None else G @ right.to(G.dtype).mT


def back(N: Tensor, left: Tensor | None, right: Tensor | None) -> tuple[Tensor, Tensor]:
    """Two thin matrices whose product is ``back(N)``, the update ``(m, n)``."""
    if left is None:
        assert right is not None
        return N, right
    return left.mT, N if right is None else N @ right


def leading_basis(
    G: Tensor, rank: int, *, side: str = "right", start: Tensor | None = None, svd: str = "subspace", seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Leading singular vectors of ``G: (m, n)`` as rows ``(r, n)`` (left: ``(r, m)``), and the energy share they hold.

    Signs follow ``start``, so that kept moments meet the direction they were gathered in (not with LAPACK's SVD, whose
    signs are the reference's).
    """
    small = min(G.shape)
    rank = min(rank, small)
    if svd == "random":
        generator = torch.Generator().manual_seed(seed)
        Y = torch.randn(G.shape[side == "right"], rank, generator=generator, dtype=G.dtype).to(G.device)
        Q = torch.linalg.qr(Y).Q.mT.contiguous()
        held = (G @ Q.mT if side == "right" else Q @ G).square().sum()
        return Q, (held / G.square().sum().clamp(min=1e-30)).double()
    if svd == "full":
        full = truncated_svd(G, rank, method="full")
        return (full.Vh if side == "right" else full.U.mT).contiguous(), 1 - full.error.square()
    found = truncated_svd(
        G if side == "right" else G.mT,
        rank,
        method="randomized" if 3 * (rank + _OVERSAMPLE) <= small else "gram",
        oversample=_OVERSAMPLE,
        max_power_iterations=1,
        start=start,
        seed=seed,
    )
    Q = found.Vh
    if start is not None and start.shape == Q.shape:
        Q = Q * torch.where((Q * start).sum(1) < 0, -1.0, 1.0)[:, None]
    return Q.contiguous(), 1 - found.error.square()


def _refresh(grad: Tensor, group: dict, state: dict, *, seed: int) -> None:
    """Draw the bases from the current gradient, and carry the moments over as the group says."""
    G, captured = grad.to(_precision(grad)), torch.ones((), dtype=torch.float64)
    old = {k: state.get(k) for k in ("left", "right")}
    for side, wanted in zip(("left", "right"), sides(grad.shape, group["proj_type"]), strict=True):
        if wanted:
            state[side], share = leading_basis(
                G, group["rank"], side=side, start=old[side], svd=group["svd"], seed=seed
            )
            captured = torch.minimum(captured, share.cpu())
    state["captured"] = captured
    if "exp_avg" not in state or group["on_refresh"] == "keep":
        return
    if group["on_refresh"] == "reset":
        del state["exp_avg"], state["exp_avg_sq"]
        state["age"] = 0
        return
    turn = {k: state[k] @ b.mT for k, b in old.items() if b is not None}  # (r new, r old)
    state["exp_avg"] = project(state["exp_avg"], turn.get("left"), turn.get("right"))
    squared = {k: t.square() for k, t in turn.items()}
    state["exp_avg_sq"] = project(state["exp_avg_sq"], squared.get("left"), squared.get("right"))


def stochastic_round(x: Tensor, seed: int) -> Tensor:
    """float32 to bfloat16, up or down at random with the chance that makes the mean exact."""
    generator = torch.Generator(x.device).manual_seed(seed)
    noise = torch.randint(1 << 16, x.shape, generator=generator, device=x.device, dtype=torch.int32)
    return (x.contiguous().view(torch.int32) + noise).bitwise_and_(-65536).view(torch.float32).bfloat16()
