"""GaLore: AdamW whose moments live in a low-rank subspace of the gradient.

For a weight ``W: (m, n)`` with gradient ``G`` and rank r, every T steps the basis is drawn anew from the current G:

    m >= n:  Q ← leading r right singular vectors of G, (r, n);   R = G Qᵀ  (m, r),   back(N) = N Q
    m <  n:  Q ← leading r left singular vectors of G,  (r, m);   R = Q G   (r, n),   back(N) = Qᵀ N

    M ← β₁ M + (1-β₁) R,   V ← β₂ V + (1-β₂) R²,   N = M̂ / (√V̂ + ε),   W ← W - lr·scale·back(N) - lr·wd·W

so the state of a matrix is ``2·r·m + r·n`` numbers (or ``2·r·n + r·m``) instead of ``2·m·n``. Parameters in groups
without a rank get plain AdamW. Moments and bases are float32 whatever the weights are: in bfloat16 a second moment with
β₂ = 0.999 would never move.

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
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim.adamw import adamw
from torch.optim.optimizer import Optimizer

from rankwise.models.targets import linear_layers
from rankwise.nearest import unknown
from rankwise.optim.tied import gather_in_place
from rankwise.spectral import truncated_svd

PROJECTIONS = ("std", "reverse_std", "left", "right", "full")
SVDS = ("subspace", "full", "random")
ON_REFRESH = ("keep", "reset", "rotate")
_OVERSAMPLE = 8
_CHUNK = 1 << 20  # entries of a low-precision weight updated at a time, in float32


def galore_groups(model: nn.Module, **options: Any) -> list[dict]:
    """Parameter groups of a model: the matrices of its blocks projected, everything else (embeddings, norms, head) not.

    Parameters
    ----------
    model : nn.Module
        With linear layers (``nn.Linear`` or GPT-2's ``Conv1D``).
    **options
        ``rank`` and, if wanted, ``update_gap``, ``scale``, ``proj_type``, ``weight_decay`` … of the projected group.

    Raises
    ------
    ValueError
        The model has no linear layer.
    """
    layers = linear_layers(model)
    if not layers:
        raise ValueError(f"{type(model).__name__} has no linear layer: there is no gradient to project")
    inside = {id(layer.weight): layer.weight for layer in layers.values()}
    rest = [p for p in model.parameters() if id(p) not in inside]
    return [{"params": list(inside.values()), **options}, *([{"params": rest}] if rest else [])]


class GaLoreAdamW(Optimizer):
    """AdamW with low-rank gradient projection; drop-in for ``galore_torch.GaLoreAdamW``.

    Parameters
    ----------
    params : iterable of Tensor or of dict
        Groups with a ``rank`` key are projected and hold matrices only (`galore_groups` makes them); others get AdamW.
        float32 or bfloat16, any device.
    lr, betas, eps, weight_decay
        As in `torch.optim.AdamW`, with galore-torch's ``eps=1e-6``.
    rank : int, optional
        Of a plain list of parameters: project all matrices to this rank. At least 1 and at most the larger side; where
        it reaches the projected side the basis is a rotation, and nothing is saved.
    update_gap : int
        Steps T between refreshes of a basis (at steps 0, T, 2T, …); ``update_proj_gap`` in a group is the same.
    scale : float
        Factor of the projected update.
    proj_type : {"std", "reverse_std", "left", "right", "full"}
        Which side is projected: the smaller, the larger, always left or right, both.
    on_refresh : {"keep", "reset", "rotate"}
        What happens to the moments when the basis changes: nothing (the reference's way), start anew (bias correction
        too), or the change of basis (exact for the mean, squared coefficients for the variance).
    svd : {"subspace", "full", "random"}
        One power iteration from the old basis, LAPACK's full SVD, or random directions (a control).
    stochastic_rounding : bool
        Round updates of bfloat16 weights at random, unbiased, so that small ones are not lost.
    max_skipped : int
        A step whose gradients are not finite is skipped and counted in ``skipped``; after so many in a row it raises.
    seed : int
        Of the random directions and of stochastic rounding.

    Raises
    ------
    ValueError
        Rank out of range, a projected group with a tensor that is no matrix, unknown names.
    FloatingPointError
        In ``step``, after ``max_skipped`` steps in a row without finite gradients.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        rank: int | None = None,
        update_gap: int = 200,
        scale: float = 0.25,
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
        if lr < 0 or eps < 0 or weight_decay < 0 or not all(0 <= b < 1 for b in betas):
            raise ValueError(
                f"lr={lr}, eps={eps}, weight_decay={weight_decay} must be >= 0 and betas={betas} in [0, 1)"
            )
        self.stochastic_rounding, self.max_skipped = stochastic_rounding, max_skipped
        self.skipped = self._skipped_in_a_row = 0
        self._generator = torch.Generator().manual_seed(seed)
        self._in_backward: list[torch.utils.hooks.RemovableHandle] = []
        self._max_norm: float | None = None
        self._untie: Callable[[], None] = lambda: None
        self._updated: set[int] = set()
        self._bad = False
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "update_gap": update_gap}
        defaults |= {"scale": scale, "proj_type": proj_type, "on_refresh": on_refresh, "svd": svd}
        super().__init__(_split(list(params), rank), defaults)

    def add_param_group(self, param_group: dict) -> None:
        """Add a group, checked; ``update_proj_gap`` is galore-torch's name for ``update_gap``."""
        if "update_proj_gap" in param_group:
            param_group["update_gap"] = param_group.pop("update_proj_gap")
        super().add_param_group(param_group)
        _check(self.param_groups[-1])

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient (those updated in the backward pass are done already)."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not self._in_backward:
            grads = [p.grad for g in self.param_groups for p in g["params"] if p.grad is not None]
            self._bad = bool(grads) and not bool(torch.isfinite(get_total_norm(grads)))
            for group in self.param_groups if not self._bad else ():
                for p in group["params"]:
                    if p.grad is not None:
                        self._update(p, p.grad, group)
        self._updated.clear()
        self._count_skipped()
        return loss

    def step_in_backward(self, *, model: nn.Module | None = None, max_norm: float | None = None) -> None:
        """Update each parameter as soon as its gradient is complete, and free that gradient at once.

        From here on ``step`` only closes the step (it must still be called: schedules and counters hang on it). A
        second backward pass before it, as in gradient accumulation, is an error.

        Parameters
        ----------
        model : nn.Module, optional
            Whose tied embedding, if it has one, gets its gradient in one buffer (`rankwise.optim.tied`).
        max_norm : float, optional
            Clip the norm of each gradient tensor to this; a norm over all parameters is not known in time.
        """
        self._max_norm = max_norm
        for handle in self._in_backward:
            handle.remove()
        self._in_backward = []
        if model is not None:
            self._untie = gather_in_place(model)
        for index, group in enumerate(self.param_groups):
            for p in group["params"]:
                trains = p.requires_grad
                p.requires_grad_(True)  # a frozen parameter takes no hook
                self._in_backward.append(p.register_post_accumulate_grad_hook(self._hook(index)))
                p.requires_grad_(trains)

    @property
    def updates_in_backward(self) -> bool:
        """Whether `step_in_backward` is on."""
        return bool(self._in_backward)

    def _hook(self, group_index: int) -> Callable[[Tensor], None]:
        @torch.no_grad()
        def update_and_free(p: Tensor) -> None:
            if id(p) in self._updated:
                raise RuntimeError(
                    "two backward passes in one step: gradient accumulation needs all gradients at once; accumulate 1 "
                    "step, or use the optimiser without step_in_backward"
                )
            grad, p.grad = p.grad, None
            assert grad is not None
            self._updated.add(id(p))
            norm = torch.linalg.vector_norm(grad, dtype=torch.float32)
            if not torch.isfinite(norm):
                self._bad = True
                return
            if self._max_norm is not None:
                grad.mul_((self._max_norm / (norm + 1e-6)).clamp(max=1.0))
            self._update(p, grad, self.param_groups[group_index])

        return update_and_free

    def _count_skipped(self) -> None:
        self.skipped += self._bad
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if self._bad else 0
        self._bad = False
        if self._skipped_in_a_row >= self.max_skipped:
            raise FloatingPointError(
                f"gradients were not finite in {self._skipped_in_a_row} steps in a row; lower the learning rate"
            )

    def _update(self, p: Tensor, grad: Tensor, group: dict) -> None:
        if grad.is_sparse:
            raise ValueError("sparse gradients are not supported; use nn.Embedding(sparse=False)")
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros(())
        if group.get("rank"):
            self._projected(p, grad, group, state)
        else:
            self._plain(p, grad, group, state)

    def _projected(self, p: Tensor, grad: Tensor, group: dict, state: dict) -> None:
        step = int(state["step"])
        if step % group["update_gap"] == 0:
            _refresh(grad, group, state, seed=self._seed())
        R = project(grad, state.get("left"), state.get("right")).float()
        if "exp_avg" not in state:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(R), torch.zeros_like(R)
        state["step"] += 1
        state["age"] = state.get("age", 0) + 1  # of the moments, for the bias correction
        beta1, beta2 = group["betas"]
        M = state["exp_avg"].lerp_(R, 1 - beta1)
        V = state["exp_avg_sq"].mul_(beta2).addcmul_(R, R, value=1 - beta2)
        size = group["lr"] * group["scale"] / (1 - beta1 ** state["age"])
        N = M / V.sqrt().div_(math.sqrt(1 - beta2 ** state["age"])).add_(group["eps"])
        W = p if p.dtype == torch.float32 else p.float()
        left, right = back(N, state.get("left"), state.get("right"))
        W.addmm_(left, right, beta=1 - group["lr"] * group["weight_decay"], alpha=-size)
        if W is not p:
            self._store(p, W)

    def _plain(self, p: Tensor, grad: Tensor, group: dict, state: dict) -> None:
        if "exp_avg" not in state:
            state["exp_avg"] = torch.zeros_like(p, dtype=torch.float32)
            state["exp_avg_sq"] = torch.zeros_like(p, dtype=torch.float32)
        beta1, beta2 = group["betas"]
        options = {"beta1": beta1, "beta2": beta2, "lr": group["lr"], "weight_decay": group["weight_decay"]}
        options |= {"eps": group["eps"], "amsgrad": False, "maximize": False}
        if p.dtype == torch.float32:
            fused = p.device.type == "cpu"  # one pass without temporaries; on a GPU it would want the step there
            moments = [state["exp_avg"]], [state["exp_avg_sq"]]
            adamw([p], [grad], *moments, [], [state["step"]], fused=fused, foreach=False, **options)  # type: ignore[arg-type]
            return
        step, rows = state["step"].clone(), (state["exp_avg"].view(-1), state["exp_avg_sq"].view(-1))
        weights, grads = p.view(-1), grad.reshape(-1)
        for start in range(0, len(weights), _CHUNK):
            part = slice(start, start + _CHUNK)
            W, step = weights[part].float(), state["step"].clone()
            moments = [rows[0][part]], [rows[1][part]]
            adamw([W], [grads[part].float()], *moments, [], [step], foreach=False, **options)  # type: ignore[arg-type]
            self._store(weights[part], W)
        state["step"].copy_(step)

    def _store(self, p: Tensor, W: Tensor) -> None:
        p.copy_(stochastic_round(W, self._seed()) if self.stochastic_rounding and p.dtype == torch.bfloat16 else W)

    def _seed(self) -> int:
        return int(torch.randint(1 << 62, (), generator=self._generator))

    def captured_share(self) -> dict[int, float]:
        """Share of each projected gradient's energy inside its basis at the last refresh, by parameter number."""
        numbered = enumerate(p for g in self.param_groups for p in g["params"])
        return {i: float(self.state[p]["captured"]) for i, p in numbered if "captured" in self.state.get(p, {})}

    def state_bytes(self) -> int:
        """Bytes of all optimiser state: moments, bases, counters."""
        return sum(v.nbytes for s in self.state.values() for v in s.values() if isinstance(v, Tensor))

    def state_dict(self) -> dict[str, Any]:
        """Moments, bases, counters and random state: resuming continues exactly."""
        extra = {"random": self._generator.get_state(), "counts": [self.skipped, self._skipped_in_a_row]}
        return {**super().state_dict(), **extra}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of `state_dict`; float32 state of bfloat16 weights stays float32."""
        super().load_state_dict({k: state_dict[k] for k in ("state", "param_groups")})
        for i, p in enumerate(p for g in self.param_groups for p in g["params"]):
            for key, value in state_dict["state"].get(i, {}).items():
                if isinstance(value, Tensor):  # torch has cast it to the weight's dtype
                    self.state[p][key] = value.detach().clone().to("cpu" if value.dim() == 0 else p.device)
        self._generator.set_state(state_dict["random"].cpu().to(torch.uint8))
        self.skipped, self._skipped_in_a_row = state_dict["counts"]


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
        Y = torch.randn(G.shape[side == "right"], rank, generator=generator).to(G.device)
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
    G, captured = grad.float(), torch.ones((), dtype=torch.float64)
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


def _split(params: list, rank: int | None) -> list[dict]:
    """Groups; plain parameters with a rank fall into matrices, projected, and the rest."""
    if not params:
        raise ValueError("the optimiser got an empty parameter list")
    if isinstance(params[0], dict):
        if rank is not None:
            raise ValueError(f"rank={rank} is for a plain list of parameters; give each group its own 'rank' key")
        return [{**g} for g in params]
    params = [p[1] if isinstance(p, tuple) else p for p in params]
    matrices = [p for p in params if p.dim() == 2 and rank is not None]
    chosen = {id(p) for p in matrices}
    rest = [p for p in params if id(p) not in chosen]
    return [*([{"params": matrices, "rank": rank}] if matrices else []), *([{"params": rest}] if rest else [])]


def _check(group: dict) -> None:
    for name, accepted in (
        ("proj_type", PROJECTIONS),
        ("on_refresh", ON_REFRESH),
        ("svd", ("subspace", "full", "random")),
    ):
        if group[name] not in accepted:
            raise unknown(name, str(group[name]), accepted)
    if group["update_gap"] < 1:
        raise ValueError(f"update_gap={group['update_gap']}: at least 1 step")
    if "rank" not in group or group["rank"] is None:
        return
    for p in group["params"]:
        if p.dim() != 2:
            raise ValueError(
                f"a group with rank={group['rank']} holds a tensor of shape {tuple(p.shape)}; only matrices can be "
                "projected: put it in a group without rank (galore_groups sorts a model's parameters)"
            )
        if not 1 <= group["rank"] <= max(p.shape):
            raise ValueError(
                f"rank={group['rank']} is outside 1..{max(p.shape)} for a matrix of shape {tuple(p.shape)}"
            )


__all__ = ["GaLoreAdamW", "back", "galore_groups", "leading_basis", "project", "sides", "stochastic_round"]
