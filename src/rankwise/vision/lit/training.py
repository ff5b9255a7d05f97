"""Prompts and network in turn: a start of each, then rounds, the best of a stage always as a copy."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankwise.events import OnEvent
from rankwise.vision.lit import snapshot
from rankwise.vision.lit.losses import backlit_probability, identity_loss, rank_loss
from rankwise.vision.lit.network import WIDTHS, IlluminationNet, enhanced
from rankwise.vision.lit.pictures import as_bytes, squares
from rankwise.vision.lit.prompts import LearnedPrompts
from rankwise.vision.lit.settings import LitSettings
from rankwise.vision.lit.towers import ImageTower, Stages
from rankwise.vision.lit.views import NETWORK_ZOOM, PROMPT_ZOOM, drawn, moved

LOOK = 20  # steps between looks for the best
RECENT = 30  # steps whose mean says how good a network is
DEAD = 8.0  # dB: a start that gives worse pictures is none
WATCHED = 100  # steps of the warm-up before a start is judged
STARTS = 20  # at most
HALVINGS = 6  # of the network's rate, at most
ADDED = {"network": 60, "prompts": 100}  # steps, while a stage's last loss is above its limit
CHUNK = 32  # pictures that a tower or the network sees at once
EVEN = (1.0,) * 5  # weights of stages in the warm-up
KEPT = 2**28  # bytes of dark pictures' stages that are kept, where these are always the same


class _Died(Exception):
    """An illumination of 0 everywhere, which no step can change."""


class _Pass(NamedTuple):
    """A batch of dark pictures, the stages that hold their content, their results, their illumination."""

    pictures: Tensor
    content: Sequence[Tensor]
    results: Tensor
    light: Tensor


class Best:
    """A copy of a module's weights where a value was highest; later steps leave it.

    Examples
    --------
    >>> import torch
    >>> from rankwise.vision.lit.training import Best
    >>> module, best = torch.nn.Linear(1, 1, bias=False), Best()
    >>> best.see(1.0, module)
    >>> _ = torch.nn.init.zeros_(module.weight)
    >>> best.see(0.5, module)
    >>> best.restore(module)
    >>> bool(module.weight == 0)
    False
    """

    def __init__(self) -> None:
        self.value, self.state = -math.inf, {}

    def see(self, value: float, module: nn.Module) -> None:
        """Copy the weights if the value is the highest so far."""
        if value > self.value:
            self.value, self.state = value, copy.deepcopy(module.state_dict())

    def restore(self, module: nn.Module) -> None:
        """The module as it was then."""
        module.load_state_dict(self.state)


class Training:
    """One training, from the pictures to network and prompts.

    Parameters
    ----------
    tower : ImageTower
        The CLIP, which is only read.
    tokens : sequence of int
        What the prompts start from.
    settings : LitSettings
        How long, how fast, how large.
    stages : callable, optional
        What compares content, instead of the tower's own layers.
    note : callable
        Told of every step.

    Attributes
    ----------
    network : IlluminationNet
    prompts : LearnedPrompts
    history : list of dict
        Mean ``S`` of dark pictures, results and well-lit pictures: after the start of the prompts (round 0, results are
        the warmed-up network's), and after each round by its new prompts.
    starts : int
        How often the network was drawn.
    rate : float
        The network's learning rate at the end: halved where a round had to begin again.
    """

    def __init__(
        self,
        tower: ImageTower,
        tokens: Sequence[int],
        *,
        settings: LitSettings,
        stages: Stages | None = None,
        note: OnEvent = lambda *_: None,
    ) -> None:
        self.tower, self.clip, self.stages, self.settings, self.note = tower, tower.clip, stages, settings, note
        self.device = tower.mean.device
        self.draws = torch.Generator().manual_seed(settings.seed)
        self.prompts = LearnedPrompts.starting(self.clip, tokens).to(self.device)
        self.history: list[dict[str, float]] = []
        self.starts, self.rate = 0, settings.lr_network
        self._new_network()
        decay = settings.weight_decay
        self.by_prompts = torch.optim.Adam(self.prompts.parameters(), settings.lr_prompts, weight_decay=decay)

    def run(self, dark: Any, well_lit: Any, *, checkpoint: Path | None = None) -> Training:
        """All stages; with a checkpoint, what is in it already is gone on from, and it is written after each round."""
        self._read(dark, well_lit)
        results: list[Tensor] = []
        with frozen(self.clip):
            if checkpoint is not None and checkpoint.is_file():
                results = snapshot.read(checkpoint, self)
            else:
                self._start_prompts()
                self._warm_up()
                self._remember(self._results())
            for turn in range(len(self.history), self.settings.rounds + 1):
                if checkpoint is not None:
                    snapshot.write(checkpoint, self, results)
                self._network_stage(turn)
                results = [*results, self._results()][-2:]
                self._prompt_stage(turn, results)
                self._remember(results[-1])
        return self

    def _read(self, dark: Any, well_lit: Any) -> None:
        sizes = [self.settings.size_network, self.settings.size_prompts]
        self.dark, self.dark_small = squares(dark, sizes, "dark")
        self._dark_stages: list[Tensor] | None = None
        self._fits: bool | None = None
        (self.well,) = squares(well_lit, sizes[1:], "well-lit")
        known = {part.numpy().tobytes() for part in self.dark_small}
        if both := [i for i, part in enumerate(self.well) if part.numpy().tobytes() in known]:
            raise ValueError(f"well-lit picture {both[0]} is among the dark ones too: each kind in a place of its own")

    def _new_network(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(int(torch.randint(2**31, (), generator=self.draws)))
            self.network = made(self.settings).to(self.device)
        self.starts += 1
        self._new_optimizer()

    def _new_optimizer(self) -> None:
        decay = self.settings.weight_decay
        self.by_network = torch.optim.Adam(self.network.parameters(), self.rate, weight_decay=decay)

    # --- stages

    def _start_prompts(self) -> None:
        """Cross-entropy of dark pictures against well-lit ones."""
        half = max(1, self.settings.batch_prompts // 2)
        labels = torch.tensor([0, 1], device=self.device).repeat_interleave(half)
        views = self._seen(self.dark_small), self._seen(self.well)

        def loss() -> Tensor:
            features = self._drawn([[views[0]], [views[1]]], half)
            return F.cross_entropy(self.settings.scale * torch.cat(features) @ self.prompts(self.clip).T, labels)

        self._stage("prompts", "start", self.prompts, self.by_prompts, loss, self.settings.first_steps)

    def _warm_up(self) -> None:
        """The identity loss alone; a start whose pictures are ruined is drawn anew."""
        done, steps, psnr = 0, self.settings.warm_steps, []
        while done < steps:
            batch = self._pass()
            loss = self.settings.identity_weight * self._identity(batch, self._stages(batch.results), EVEN)
            self._step("the warm-up", loss, self.network, self.by_network)
            done += 1
            psnr.append(likeness(batch.results.detach(), batch.pictures))
            self.note("network", "warm-up", done, steps, float(loss.detach()))
            judged = done > WATCHED or done == steps
            if judged and (np.mean(psnr[-RECENT:]) < DEAD or not bool(batch.light.detach().any())):
                if self.starts == STARTS:
                    raise ValueError(f"{STARTS} networks in a row give no pictures; start='identity' begins with some")
                self._new_network()
                done, psnr = 0, []

    def _network_stage(self, turn: int) -> None:
        """The probability of the backlit prompt, and the identity loss.

        Where the illumination becomes 0 everywhere nothing has a gradient: again from the beginning, at half the rate.
        """
        s = self.settings
        with torch.no_grad():
            prompts = self.prompts(self.clip)  # they stand still

        def loss() -> Tensor:
            return self._network_loss(prompts)

        begun = copy.deepcopy(self.network.state_dict())
        for _ in range(HALVINGS):
            try:
                when, steps = f"round {turn}", s.network_steps
                self._stage("network", when, self.network, self.by_network, loss, steps, limit=s.network_limit)
                return
            except _Died:
                self.network.load_state_dict(begun)
                self.rate /= 2
                self._new_optimizer()
        raise ValueError(f"round {turn}: the illumination becomes 0 everywhere; lower lr_network={s.lr_network}")

    def _network_loss(self, prompts: Tensor) -> Tensor:
        s, batch = self.settings, self._pass()
        if not bool(batch.light.detach().any()):
            raise _Died
        seen = self.tower(batch.results)
        light = backlit_probability(seen.features, prompts, s.scale).mean()
        stages = seen.stages if self.stages is None else self.stages(batch.results)
        return s.clip_weight * light + s.identity_weight * self._identity(batch, stages, s.alphas)

    def _prompt_stage(self, turn: int, results: list[Tensor]) -> None:
        """Dark pictures, their results, well-lit pictures, in that order."""
        s = self.settings
        chain = [self._seen(part) for part in (self.dark_small, *results)]
        well = self._seen(self.well)

        def loss() -> Tensor:
            prompts, count = self.prompts(self.clip), s.batch_prompts
            dark, *found, light = (
                backlit_probability(part, prompts, s.scale) for part in self._drawn([chain, [well]], count, same=True)
            )
            return s.rank_weight * rank_loss(dark, found, light)

        steps = s.prompt_steps
        self._stage("prompts", f"round {turn}", self.prompts, self.by_prompts, loss, steps, limit=s.prompt_limit)

    def _stage(
        self,
        what: str,
        when: str,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_of: Callable[[], Tensor],
        steps: int,
        *,
        limit: float = math.inf,
    ) -> None:
        """Steps, more of them while the last loss is above the limit; the module ends as the best that was seen."""
        best, losses, most = Best(), [], steps + self.settings.extensions * ADDED[what]
        window = RECENT if what == "network" else 1
        while len(losses) < steps:
            loss = loss_of()
            losses.append(float(loss.detach()))
            if len(losses) % LOOK == 0 or len(losses) == steps:
                best.see(-float(np.mean(losses[-window:])), module)
            self._step(f"{what}, {when}", loss, module, optimizer)
            self.note(what, when, len(losses), steps, losses[-1])
            if len(losses) == steps and losses[-1] > limit:
                steps = min(steps + ADDED[what], most)
        best.restore(module)

    def _step(self, what: str, loss: Tensor, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        if not bool(loss.isfinite()):
            raise ValueError(f"{what}: the loss is {float(loss.detach()):g}; lower the learning rate")
        parameters = list(module.parameters())
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        optimizer.step()

    # --- pieces

    def _pass(self) -> _Pass:
        """The network on rows that are drawn."""
        count = self.settings.batch_network
        rows = torch.randint(len(self.dark), (count,), generator=self.draws)
        pictures = floats(self.dark[rows]).to(self.device)
        if self.settings.augment:
            pictures = moved(pictures, drawn(count, NETWORK_ZOOM, self.draws)).clamp(0, 1)
        light = self.network(pictures)
        return _Pass(pictures, self._content(rows, pictures), enhanced(pictures, light), light)

    def _stages(self, pictures: Tensor) -> Sequence[Tensor]:
        return self.tower(pictures).stages if self.stages is None else self.stages(pictures)

    @torch.no_grad()
    def _content(self, rows: Tensor, pictures: Tensor) -> Sequence[Tensor]:
        """Stages of dark pictures; where these are always the same, and not too many, they are computed once."""
        if self.settings.augment or self._fits is False:
            return self._stages(pictures)
        if self._dark_stages is None:
            seen = self._stages(pictures)
            self._fits = len(self.dark) * sum(part[:1].nbytes for part in seen) <= KEPT
            if not self._fits:
                return seen
            parts = [self._stages(floats(part).to(self.device)) for part in self.dark.split(CHUNK)]
            self._dark_stages = [torch.cat(stage) for stage in zip(*parts, strict=True)]
        return [stage[rows] for stage in self._dark_stages]

    def _identity(self, batch: _Pass, stages: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        if len(stages) != len(weights):
            raise ValueError(f"identity gives {len(stages)} tensors of a picture; {len(weights)} are needed")
        return identity_loss(stages, batch.content, weights, summed=self.settings.released)

    def _seen(self, pictures: Tensor) -> Tensor:
        """Pictures, or, where they are not augmented and so always the same, their features, computed once."""
        return pictures if self.settings.augment else features(self.tower, pictures)

    def _drawn(self, groups: Sequence[Sequence[Tensor]], count: int, *, same: bool = False) -> list[Tensor]:
        """Features of ``count`` rows of each group, the same rows within it; with ``same``, through the same views."""
        parts, maps = [], None
        for group in groups:
            rows = torch.randint(len(group[0]), (count,), generator=self.draws)
            if not self.settings.augment:
                parts += [part[rows] for part in group]
                continue
            maps = maps if same and maps is not None else drawn(count, PROMPT_ZOOM, self.draws)
            parts += [moved(floats(part[rows]), maps).clamp(0, 1) for part in group]
        if not self.settings.augment:
            return parts
        return list(features(self.tower, torch.cat(parts)).split(count))

    @torch.no_grad()
    def _results(self) -> Tensor:
        """All dark pictures enhanced, as bytes, as if they had been saved."""
        parts = (floats(part).to(self.device) for part in self.dark_small.split(CHUNK))
        least = self.settings.least
        return torch.cat([as_bytes(enhanced(part, self.network(part).clamp(min=least))).cpu() for part in parts])

    @torch.no_grad()
    def _remember(self, results: Tensor) -> None:
        means = {
            name: float(scores(self.tower, self.prompts, part, self.settings.scale).mean())
            for name, part in (("dark", self.dark_small), ("result", results), ("well", self.well))
        }
        self.history.append({"round": float(len(self.history)), **means})


def likeness(results: Tensor, pictures: Tensor) -> float:
    """Mean PSNR in dB of pictures in [0, 1], at most 100.

    Examples
    --------
    >>> import torch
    >>> from rankwise.vision.lit.training import likeness
    >>> round(likeness(torch.full((2, 3, 4, 4), 0.1), torch.zeros(2, 3, 4, 4)), 3)
    20.0
    """
    error = (results - pictures).square().mean((1, 2, 3)).clamp(min=1e-10)
    return float(-10 * error.log10().mean())


def made(settings: LitSettings) -> IlluminationNet:
    """A fresh network as the settings say."""
    padding = "zeros" if settings.released else "reflect"
    return IlluminationNet(WIDTHS[settings.network], start=settings.start, padding=padding)


@torch.no_grad()
def features(tower: ImageTower, pictures: Tensor) -> Tensor:
    """Unit vectors of pictures in [0, 1] or of bytes, ``(pictures, d)``."""
    return torch.cat([tower(floats(part)).features for part in pictures.split(CHUNK)])


def scores(tower: ImageTower, prompts: LearnedPrompts, pictures: Tensor, scale: float) -> Tensor:
    """``S`` of pictures, ``(pictures,)``; the prompts' features are computed once."""
    return backlit_probability(features(tower, pictures), prompts(tower.clip), scale).detach().cpu()


def floats(pictures: Tensor) -> Tensor:
    """Bytes from 0 to 1; what is so already as it is."""
    return pictures.float() / 255 if pictures.dtype == torch.uint8 else pictures


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Within the block a model drops nothing and takes no gradients; afterwards it is as it was."""
    training = {m: m.training for m in model.modules()}
    wanted = {p: p.requires_grad for p in model.parameters()}
    try:
        model.eval().requires_grad_(False)
        yield
    finally:
        for module, was in training.items():
            module.training = was
        for parameter, was in wanted.items():
            parameter.requires_grad_(was)
