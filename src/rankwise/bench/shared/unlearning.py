"""A language model is taught, then asked to forget, request after request, in several ways; all are measured alike.

Baselines train one low-rank block on the taught model, of the same rank as O3's, on every request in turn, and have no
router: gradient ascent, GradDiff (ascent, and descent on retained rows), NPO, and the answers that O3 learns. The
oracle is taught anew without what was forgotten.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rankwise.bench.shared.measured import Runs
from rankwise.continual import O3Unlearner, Schedule, UnlearningSettings
from rankwise.continual.training import draw, rows_of, train
from rankwise.continual.unlearning.blocks import acting, fresh
from rankwise.continual.unlearning.features import LayerEncoder
from rankwise.continual.unlearning.measuring import GENERAL, known, token_losses
from rankwise.continual.unlearning.rows import Row, Writer
from rankwise.events import OnEvent, unheard
from rankwise.files import whole_file, write_json
from rankwise.models import linear_layers, load, load_tokenizer
from rankwise.parallel import fan_out, is_spread
from rankwise.reading import read_json

O3, LOOSE, PLAIN = "O3", "O3, not orthogonal", "plain LoRA, no router"
OPEN, HARD, SHUFFLED = "O3, no router", "O3, hard router", "O3, shuffled router"
ASCENT, DIFFERENCE, NPO = "gradient ascent", "GradDiff (retained data)", "NPO"
TAUGHT, ORACLE = "taught", "taught anew (oracle)"
ARMS = (O3, HARD, LOOSE, OPEN, PLAIN, ASCENT, DIFFERENCE, NPO, SHUFFLED)
BETA = 0.1  # of NPO
Around = Callable[[Sequence[Row]], AbstractContextManager]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is taught: requests to forget, by name, each with rows taught and rows never seen; and what stays."""

    requests: Mapping[str, tuple[list[Row], list[Row]]]
    retained: tuple[list[Row], list[Row]]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of a recipe."""

    blocks: int  # of the model's
    taught: Schedule
    forgotten: Schedule
    baselines: int  # steps a request
    rates: tuple[float, ...]  # of baselines: the best on the first request of the first seed is taken
    rank: int
    answers: str
    max_length: int


@dataclass(kw_only=True)
class Bench:
    """One seed's models and rows; every measure is kept in a file and read back."""

    subject: Subject
    sizes: Sizes
    folder: Path
    seed: int
    note: OnEvent
    encoder: LayerEncoder = field(default_factory=LayerEncoder)

    def __post_init__(self) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.writer = Writer(load_tokenizer("smollm2"), style="text", max_length=self.sizes.max_length)
        self.encoder.to(self.device)
        self.folder.mkdir(parents=True, exist_ok=True)

    # --- teaching

    def taught(self, *, without: bool = False) -> nn.Module:
        """The model after learning everything, or all but the requests."""
        path, model = self.folder / f"{'oracle' if without else 'taught'}.safetensors", self._fresh()
        if not path.is_file():
            rows = [*self.subject.retained[0]]
            rows += [] if without else [r for taught, _ in self.subject.requests.values() for r in taught]
            what, schedule = ORACLE if without else TAUGHT, self.sizes.taught

            def loss(step: int) -> Tensor:
                part = [rows[i] for i in rows_of(step, len(rows), schedule.batch_size, self.seed)]
                losses, _, mask = token_losses(model, self.writer.batch(part))
                return losses.sum() / mask.sum()

            parameters: Any = dict(model.named_parameters())
            train(parameters, loss, schedule, self.seed, on_step=self._told(what, schedule.steps))
            with whole_file(path) as draft:
                save_file({n: p.detach().cpu().bfloat16().contiguous() for n, p in model.named_parameters()}, draft)
        held = {n: p.to(self.device) for n, p in load_file(path).items()}
        with torch.no_grad():
            for n, p in model.named_parameters():
                p.copy_(held[n])
        return model.requires_grad_(False)

    def _fresh(self) -> Any:
        model: Any = load("smollm2")
        model.model.layers = model.model.layers[: self.sizes.blocks]
        model.config.num_hidden_layers = len(model.model.layers)
        return model.to(self.device).eval()

    def _told(self, what: str, steps: int) -> Callable[[int, float], None]:
        return lambda step, loss: self.note(f"{what} seed={self.seed}", "train", step + 1, steps, loss)

    # --- measuring

    def sets(self) -> dict[str, list[Row]]:
        """All rows that are measured after every request."""
        requests = self.subject.requests.items()
        own = {f"{n}/{part}": rows[i] for n, rows in requests for i, part in enumerate(("train", "test"))}
        return own | {"retained": self.subject.retained[1], "utility": list(GENERAL[:20])}

    def measured(self, model: nn.Module, around: Around | None = None) -> dict[str, dict[str, list[float]]]:
        """Of every set's rows: nats a token, and whether right."""
        found = {}
        for name, rows in self.sets().items():
            with self.sizes.taught.cast(self.device):
                k = known(model, self.writer, rows, **({} if around is None else {"around": around}))  # pyright: ignore[reportArgumentType]  (a context)
            found[name] = {"nll": k.nll.round(5).tolist(), "right": k.right.astype(int).tolist()}
        return found

    def kept(self, arm: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What was measured of an arm before, or now."""
        path = self.folder / f"{ARM_FILES.get(arm, arm)}.json"
        if not path.is_file():
            start = time.perf_counter()
            write_json(path, {"stages": make(), "seconds": time.perf_counter() - start})
        return read_json(path)["stages"]

    # --- arms

    def o3(self, model: nn.Module, *, arms: Sequence[str], **changes: Any) -> dict[str, dict[str, Any]]:
        """O3's requests one after another; each arm reads the same blocks through another router."""
        s = self.sizes
        settings = UnlearningSettings(**{
            "rank": s.rank, "schedule": s.forgotten, "answers": s.answers, "style": "text", "seed": self.seed,
            "max_length": s.max_length, **changes,
        })  # fmt: skip
        unlearner = O3Unlearner(model, self.writer.tokenizer, settings=settings, encoder=self.encoder)
        routers = {HARD: "hard", OPEN: "off"}
        stages: dict[str, dict[str, Any]] = {arm: {} for arm in arms}
        for name, (rows, _) in self.subject.requests.items():
            told = [{"question": r.prompt, "answer": r.answer, "choices": list(r.choices) or None} for r in rows]
            unlearner.forget(told, name=name, on_step=self._told(f"{arms[0]} {name}", s.forgotten.steps))
            for arm in arms:
                unlearner.settings = replace(settings, router=routers.get(arm, settings.router))
                weights = self._weights(unlearner, shuffled=arm == SHUFFLED)
                found = self.measured(model, _routed(unlearner, weights))
                for what, rows in self.sets().items():  # how far any request acts on each row
                    found[what]["weight"] = [round(float(weights[r.prompt].max()), 5) for r in rows]
                stages[arm][name] = found
            unlearner.settings = settings
        return stages

    def _weights(self, unlearner: O3Unlearner, *, shuffled: bool) -> dict[str, Any]:
        """Of each prompt; shuffled, those of another prompt."""
        prompts = list(dict.fromkeys(r.prompt for rows in self.sets().values() for r in rows))
        weights = unlearner.weights(prompts)
        if shuffled:
            weights = weights[np.random.default_rng(self.seed).permutation(len(weights))]
        return dict(zip(prompts, weights, strict=True))

    def baseline(self, model: nn.Module, arm: str, rate: float, requests: int | None = None) -> dict[str, Any]:
        """One block that every request trains on, without a router."""
        layers: dict[str, nn.Module] = dict(linear_layers(model))
        start = fresh(layers, self.sizes.rank, [], seed=self.seed)
        block: Any = {n: tuple(nn.Parameter(f.to(self.device)) for f in pair) for n, pair in start.items()}
        parameters = {f"{n}|{i}": p for n, pair in block.items() for i, p in enumerate(pair)}
        stages, one = {}, torch.ones(1, 1)
        schedule = replace(self.sizes.forgotten, steps=self.sizes.baselines, learning_rate=rate)
        for t, (name, (rows, _)) in enumerate([*self.subject.requests.items()][:requests]):
            before = known(model, self.writer, rows).nll

            def loss(step: int, rows: list[Row] = rows, before: Any = before, t: int = t) -> Tensor:
                at = rows_of(step, len(rows), schedule.batch_size, self.seed, t)
                with acting(layers, [block], one, scaling=2.0):
                    losses, _, mask = token_losses(model, self.writer.batch([rows[i] for i in at]), ends=False)
                    kept = self._retained(model, step, t) if arm == DIFFERENCE else 0.0
                if arm != NPO:
                    return kept - losses.sum() / mask.sum()
                reference = torch.tensor(before[at], device=losses.device) * mask.sum(1)
                ratio = reference - losses.sum(1)  # log π/π_ref of each answer
                return -(2 / BETA) * nn.functional.logsigmoid(-BETA * ratio).mean()

            train(
                parameters,
                loss,
                schedule,
                draw(self.seed, t),
                on_step=self._told(f"{arm} {name} {rate:g}", schedule.steps),
            )
            with _still(parameters):
                stages[name] = self.measured(model, lambda part: acting(layers, [block], one, scaling=2.0))
        return stages

    def _retained(self, model: nn.Module, step: int, t: int) -> Tensor:
        rows = self.subject.retained[0]
        part = [rows[i] for i in rows_of(step, len(rows), self.sizes.forgotten.batch_size, self.seed, 100 + t)]
        losses, _, mask = token_losses(model, self.writer.batch(part))
        return losses.sum() / mask.sum()


def _routed(unlearner: O3Unlearner, of: Mapping[str, Any]) -> Around:
    """With each prompt's weights."""
    return lambda part: unlearner.acting(np.stack([of[r.prompt] for r in part]))


ARM_FILES = {arm: arm.replace(",", "").replace(" ", "-").replace("(", "").replace(")", "").lower() for arm in
             (*ARMS, TAUGHT, ORACLE)}  # fmt: skip


@contextmanager
def _still(parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    for p in parameters.values():
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters.values():
            p.requires_grad_(True)


def by_seed(out: Path, subject: Callable[[int], Subject], sizes: Sizes, seeds: int, on_event: OnEvent | None) -> Runs:
    """All arms of every seed, and the rates that the first seed chose."""
    note = unheard if on_event is None or is_spread() else on_event
    asked = [
        {"subject": subject(seed), "sizes": sizes, "folder": out / f"seed-{seed}", "seed": seed, "note": note}
        for seed in range(seeds)
    ]
    rates = best_rates(Bench(**asked[0]))
    arms = fan_out(_compared, [(one, rates) for one in asked])
    told = {"rates": rates, "device": "a GPU" if torch.cuda.is_available() else "the CPU"}
    return {"told": told, **{f"seed {seed}": found for seed, found in enumerate(arms)}}


def read_back(found: Runs, seeds: int) -> tuple[dict[str, Any], list[dict[str, Any]], list[str]]:
    """What was told of all seeds, the arms of every seed, and the names of the requests."""
    arms = [found[f"seed {seed}"] for seed in range(seeds)]
    return found["told"], arms, [*arms[0][O3]]


def _compared(asked: tuple[dict[str, Any], dict[str, float]]) -> dict[str, dict[str, Any]]:
    told, rates = asked
    return compared(Bench(**told), rates)


def compared(bench: Bench, rates: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """Every arm's measures after every request."""
    model = bench.taught()
    found = {TAUGHT: bench.kept(TAUGHT, lambda: {"": bench.measured(model)})}
    todo = [arm for arm in (O3, HARD, OPEN, SHUFFLED) if not (bench.folder / f"{ARM_FILES[arm]}.json").is_file()]
    if todo:
        for arm, stages in bench.o3(model, arms=(O3, HARD, OPEN, SHUFFLED)).items():
            bench.kept(arm, lambda stages=stages: stages)
    found |= {arm: bench.kept(arm, dict) for arm in (O3, HARD, OPEN, SHUFFLED)}
    found[LOOSE] = bench.kept(LOOSE, lambda: bench.o3(model, arms=[LOOSE], orthogonal=0.0)[LOOSE])
    found[PLAIN] = bench.kept(
        PLAIN, lambda: bench.o3(model, arms=[PLAIN], orthogonal=0.0, adapter="shared", router="off")[PLAIN]
    )
    for arm, rate in rates.items():
        found[arm] = bench.kept(arm, lambda arm=arm, rate=rate: bench.baseline(model, arm, rate))
    found[ORACLE] = bench.kept(
        ORACLE, lambda: {[*bench.subject.requests][-1]: bench.measured(bench.taught(without=True))}
    )
    return {arm: found[arm] for arm in (TAUGHT, *ARMS, ORACLE)}


def best_rates(bench: Bench) -> dict[str, float]:
    """Of the baselines."""
    model = bench.taught()
    return {arm: best_rate(bench, model, arm) for arm in (ASCENT, DIFFERENCE, NPO)}


def best_rate(bench: Bench, model: nn.Module, arm: str) -> float:
    """The rate with which, after the first request, most is forgotten of its rows and least of what is retained."""
    if len(bench.sizes.rates) == 1:
        return bench.sizes.rates[0]
    first, scores = next(iter(bench.subject.requests)), {}
    for rate in bench.sizes.rates:
        stages = bench.kept(f"rate-{ARM_FILES[arm]}-{rate:g}", lambda r=rate: bench.baseline(model, arm, r, 1))
        scores[rate] = right(stages[first], "retained") - right(stages[first], f"{first}/train")
    return max(scores, key=lambda rate: scores[rate])


def right(measures: Mapping[str, Any], what: str) -> float:
    """Share of a set's rows that are right."""
    return float(np.mean(measures[what]["right"]))
