"""Does EVA's start help by itself? Five starts of LoRA's A at equal ranks, one grid of rates, paired by data order.

MiniLM learns the polarity of movie snippets under a frozen linear probe, so that all that is learned goes through the
adapters. The starts are EVA's leading directions, those of another domain, the directions of least variance (the
control), random orthonormal rows, and PEFT's Kaiming draw; B is zero. All starts share the rates, the examples and
their order. Two comparisons: the mean over the grid (equal rates), and each start at its best rate, chosen on seeds
that are not judged. A second half keeps A frozen, where a start decides what can be learned at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rankwise.bench import Recipe
from rankwise.bench.shared.evidence import Claim, Evidence, Paired, greater, paired, plus_minus
from rankwise.bench.shared.measured import Runs
from rankwise.data import sentiment
from rankwise.events import OnEvent, counting, environment
from rankwise.files import write_json
from rankwise.models import load, load_tokenizer, target_modules
from rankwise.parallel import fan_out
from rankwise.reading import read_json
from rankwise.tuning.eva import EvaConfig, activation_spectra

RECIPE = Recipe(
    name="eva",
    part="starts",
    about="EVA's start against random, Kaiming, foreign and least directions at equal ranks, A trained and frozen",
    spreads=True,
    smoke={
        "seeds": 1, "CHOOSING": 1, "RATES": (1e-3,), "STEPS": 2, "EVERY": 1, "PROBED": 40, "LOOKED_AT": 32,
        "VALIDATED": 8, "TESTED": 8,
    },
)  # fmt: skip

MODEL, OWN, OTHER = "minilm", "movies", "nyt"
STARTS = {
    "EVA": "EVA", "another domain": "EVA of another domain", "least": "least variance",
    "random": "random, orthonormal", "Kaiming": "Kaiming (PEFT's)",
}  # fmt: skip
RATES = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
CHOOSING = 2  # seeds on which rates are chosen
RANK, STEPS, BATCH, TOKENS, EVERY = 8, 60, 16, 32, 15
PROBED, LOOKED_AT, VALIDATED, TESTED = 2_000, 1_024, 100, 500  # texts

Found = dict[tuple[str, bool, float, int], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What every run shares; it travels with the run to other processes."""

    steps: int
    every: int
    probed: int
    looked_at: int
    validated: int
    tested: int


def measure(out: Path, *, seeds: int = 6, on_event: OnEvent | None = None) -> Runs:
    """Train every start at every rate on every seed (what is there is read back): losses, and answers by test text."""
    setting = Setting(steps=STEPS, every=EVERY, probed=PROBED, looked_at=LOOKED_AT, validated=VALIDATED, tested=TESTED)
    keys = [
        (start, frozen, rate, seed)
        for seed in range(seeds + CHOOSING)
        for frozen in (False, True)
        for rate in RATES
        for start in STARTS
    ]
    note = counting(on_event or (lambda *_: None), "eva", len(keys))
    runs = fan_out(_one, [(out, setting, k) for k in keys], on_done=note)
    found = {_named(*key): _brief(run) for key, run in zip(keys, runs, strict=True)}
    labels = _texts(OWN, setting)["labels"]
    return {"told": {"gold": [int(labels[i]) for i in _texts(OWN, setting)["test"]]}, **found}


def _named(start: str, frozen: bool, rate: float, seed: int) -> str:
    return f"{start}, A {'frozen' if frozen else 'trained'}, rate {rate:g}, seed {seed}"


def _brief(run: Mapping[str, Any]) -> dict[str, Any]:
    """Losses with five digits, and what was predicted."""
    losses = {k: [float(f"{v:.5g}") for v in run[k]] for k in ("loss", "validation")}
    return losses | {"predicted": run["predicted"]}


def read_back(runs: Runs, seeds: int) -> Found:
    """The runs by start, whether A was frozen, rate and seed; with what was right."""
    gold = np.array(runs["told"]["gold"])
    keys = product(STARTS, (False, True), RATES, range(seeds + CHOOSING))
    found = {key: runs[_named(*key)] for key in keys}
    return {key: run | {"right": (np.array(run["predicted"]) == gold).astype(int)} for key, run in found.items()}


def judge(found: Runs, *, seeds: int) -> Evidence:
    """Every start against EVA's, paired by seed."""
    runs = read_back(found, seeds)
    halves = {frozen: Half(runs, frozen, seeds) for frozen in (False, True)}
    return Evidence(
        recipe="eva",
        title="EVA: does the start help?",
        command=f"rankwise bench eva --part starts --seeds {seeds} --jobs 2",
        setting=f"MiniLM, polarity of {OWN} under a frozen linear probe, LoRA of rank {RANK} everywhere, {STEPS} steps "
        f"of {BATCH}, rates {', '.join(f'{r:g}' for r in RATES)}, {seeds} seeds paired by the order of examples, best "
        f"rates chosen on {CHOOSING} others; spectra of {LOOKED_AT} random texts, bfloat16 arithmetic. "
        "Loss: mean over all training steps; "
        f"area: mean validation loss, every {EVERY} steps; mean ± standard deviation over seeds",
        header=["A", "start", "best rate", "loss", "area", "test accuracy", "loss at equal rates"],
        rows=[row for half in halves.values() for row in half.rows()],
        claims=[c for half in halves.values() for c in half.claims()],
        environment=environment("bf16", 1),
        extra={
            "losses": [
                {
                    "start": s,
                    "frozen": f,
                    "rate": r,
                    "seed": k,
                    "loss": np.mean(v["loss"]),
                    "area": np.mean(v["validation"]),
                }
                for (s, f, r, k), v in runs.items()
            ]
        },
    )


class Half:
    """What was found with A trained, or frozen: each start at its best rate, and at equal rates."""

    def __init__(self, found: Found, frozen: bool, seeds: int) -> None:
        self.frozen, self.judged = frozen, range(seeds)
        self.found = {(s, r, k): v for (s, f, r, k), v in found.items() if f == frozen}
        self.rates = sorted({r for _, r, _ in self.found})
        others = {k for *_, k in self.found} - {*self.judged}
        self.best = {
            s: min(self.rates, key=lambda r: np.mean([np.mean(self.found[s, r, k]["loss"]) for k in others]))
            for s in STARTS
        }

    def at_best(self, start: str, what: str) -> list[float]:
        """A figure of each seed at the start's best rate."""
        return [float(np.mean(self.found[start, self.best[start], k][what])) for k in self.judged]

    def at_equal(self, start: str) -> list[float]:
        """Training loss of each seed, the mean over the grid."""
        return [float(np.mean([np.mean(self.found[start, r, k]["loss"]) for r in self.rates])) for k in self.judged]

    def rows(self) -> list[list[str]]:
        """One a start."""
        return [
            [
                "frozen" if self.frozen else "trained",
                title,
                f"{self.best[s]:g}",
                plus_minus(self.at_best(s, "loss"), 1, 4),
                plus_minus(self.at_best(s, "validation"), 1, 4),
                plus_minus(self.at_best(s, "right")),
                plus_minus(self.at_equal(s), 1, 4),
            ]
            for s, title in STARTS.items()
        ]

    def claims(self) -> list[Claim]:
        """EVA against each other start; the control is the least variance."""
        where = "A frozen: " if self.frozen else ""
        loss, area = ({s: self.at_best(s, what) for s in STARTS} for what in ("loss", "validation"))
        equal = {s: self.at_equal(s) for s in STARTS}
        text = "control: the directions of least variance have a higher training loss, each at its best rate"
        return [
            _lower(f"{where}lower training loss than random orthonormal rows, each at its best rate", loss, "random"),
            _lower(f"{where}the same at equal rates, on average over the grid", equal, "random"),
            _lower(f"{where}lower area under the validation loss than random rows, at best rates", area, "random"),
            _lower(f"{where}lower training loss than PEFT's Kaiming start, each at its best rate", loss, "Kaiming"),
            _lower(
                f"{where}lower training loss than another domain's directions, at best rates", loss, "another domain"
            ),
            _lower(f"{where}{text}", loss, "least", control=True),
        ]


def _lower(text: str, figures: dict[str, list[float]], than: str, *, control: bool = False) -> Claim:
    """`greater`, with differences of losses in the digits that they need."""
    claim = greater(text, figures[than], figures["EVA"], control=control)
    return replace(claim, found=_shown(paired(figures[than], figures["EVA"])))


def _shown(gain: Paired) -> str:
    return f"lower by {gain.mean:.4f}±{gain.error:.4f}, p={gain.p_value:.2g}, sees {gain.smallest:.4f}"


def _one(item: tuple[Path, Setting, tuple[str, bool, float, int]]) -> dict[str, Any]:
    """One run, or what is kept of it: losses, and what was predicted of every test text."""
    out, setting, (start, frozen, rate, seed) = item
    path = out / f"{start.replace(' ', '-')}-{'frozen' if frozen else 'trained'}-{rate:g}-{seed}.json"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, _trained(setting, start, frozen, rate, seed))
    return read_json(path)


def _trained(setting: Setting, start: str, frozen: bool, rate: float, seed: int) -> dict[str, Any]:
    texts = _texts(OWN, setting)
    weight, bias = _probe(setting)
    torch.manual_seed(seed)
    base = load(MODEL, task="base", dropout=0.0)
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=target_modules(base), lora_dropout=0.0)
    model = get_peft_model(base, config)
    layers = {n.removeprefix("base_model.model."): m for n, m in model.named_modules() if isinstance(m, LoraLayer)}
    for name, layer in layers.items():
        A = layer.lora_A["default"].get_parameter("weight")
        if (rows := _rows(start, name, A, setting, seed)) is not None:
            A.data.copy_(rows)
        A.requires_grad_(not frozen)

    def logits(which: list[int]) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            pooled = _pooled(model, [texts["ids"][i] for i in which])
        return pooled.float() @ weight.T + bias

    @torch.no_grad()
    def scored(which: list[int]) -> Tensor:
        order = sorted(range(len(which)), key=lambda k: len(texts["ids"][which[k]]))  # little padding
        found = torch.cat([logits([which[k] for k in order[i : i + 64]]) for i in range(0, len(order), 64)])
        return found[torch.tensor(order).argsort()]

    labels = texts["labels"]
    order = torch.randperm(len(texts["train"]), generator=torch.Generator().manual_seed(seed)).tolist()
    order = [texts["train"][i] for i in order]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda at: min(1.0, (at + 1) / 4) * (1 - at / setting.steps)
    )
    losses, validation = [], []
    for step in range(setting.steps):
        picked = [order[i % len(order)] for i in range(step * BATCH, (step + 1) * BATCH)]
        loss = F.cross_entropy(logits(picked), labels[picked])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if (step + 1) % setting.every == 0:
            validation.append(F.cross_entropy(scored(texts["validation"]), labels[texts["validation"]]).item())
    return {"loss": losses, "validation": validation, "predicted": scored(texts["test"]).argmax(1).tolist()}


def _rows(start: str, name: str, A: Tensor, setting: Setting, seed: int) -> Tensor | None:
    """What A starts from, ``(r, d_in)``; nothing for PEFT's own draw."""
    if start == "Kaiming":
        return None
    if start == "random":
        return torch.linalg.qr(torch.randn(A.shape[1], A.shape[0])).Q.T
    stream = _spectra(OTHER if start == "another domain" else OWN, setting, seed).stream(name)
    if start == "least":
        return torch.linalg.eigh(stream.covariance())[1][:, : A.shape[0]].T.float()
    return stream.components(A.shape[0])[1]


@lru_cache(maxsize=4)
def _spectra(domain: str, setting: Setting, seed: int):
    """Of so many random training texts; a seed draws them."""
    texts = _texts(domain, setting)
    order = torch.randperm(len(texts["train"]), generator=torch.Generator().manual_seed(1_000 + seed)).tolist()
    rows = [texts["train"][i] for i in order[: setting.looked_at]]
    batches = [_padded([texts["ids"][i] for i in rows[at : at + 32]]) for at in range(0, len(rows), 32)]
    model = load(MODEL, task="base", dropout=0.0)
    config = EvaConfig(r=RANK, rho=1.0, tau=1.0, max_batches=len(batches))
    return activation_spectra(model, batches, config, layers=target_modules(model))


@lru_cache(maxsize=2)
def _texts(domain: str, setting: Setting) -> dict[str, Any]:
    """Ids and labels of all texts, and which of them train, validate and test."""
    tokenizer = load_tokenizer(MODEL)
    parts = dict(zip(("train", "validation", "test"), sentiment(domain, task="polarity").split(), strict=True))
    most = {"train": len(parts["train"]), "validation": setting.validated, "test": setting.tested}
    ids, labels, where = [], [], {}
    for name, part in parts.items():
        kept = part.head(most[name])
        where[name] = [*range(len(ids), len(ids) + len(kept.texts))]
        ids += tokenizer(kept.texts, truncation=True, max_length=TOKENS)["input_ids"]
        labels += [int(y) for y in kept.labels]
    return {"ids": ids, "labels": torch.tensor(labels), **where}


@lru_cache(maxsize=1)
def _probe(setting: Setting) -> tuple[Tensor, Tensor]:
    """A logistic regression on the untouched model's pooled features: the head of every run, frozen."""
    texts = _texts(OWN, setting)
    rows = texts["train"][: setting.probed]
    model = load(MODEL, task="base", dropout=0.0)
    with torch.no_grad():
        X = torch.cat([_pooled(model, [texts["ids"][i] for i in rows[at : at + 64]]) for at in range(0, len(rows), 64)])
    fitted = LogisticRegression(max_iter=1000).fit(X.numpy(), texts["labels"][rows].numpy())
    half = torch.from_numpy(fitted.coef_).float() / 2  # the logit is the difference of two
    bias = torch.from_numpy(fitted.intercept_).float() / 2
    return torch.cat([-half, half]), torch.cat([-bias, bias])


def _pooled(model: Any, ids: list[list[int]]) -> Tensor:
    """Mean over tokens, as MiniLM's sentences are embedded."""
    batch = _padded(ids)
    hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"].unsqueeze(-1)
    return (hidden * mask).sum(1) / mask.sum(1)


def _padded(ids: list[list[int]]) -> dict[str, Tensor]:
    rows, ones = ([torch.tensor(r) for r in ids], [torch.ones(len(r), dtype=torch.long) for r in ids])
    return {"input_ids": pad_sequence(rows, batch_first=True), "attention_mask": pad_sequence(ones, batch_first=True)}
