"""HeLlO on CIFAR-10, with a base that was trained on CIFAR-10's training pictures and their names.

That is a leak: the base names test pictures without any adapter, and where it does so better than the teachers, labels
that imitate the teachers are worse than its own. The control says so; `hello_mnist` has no leak.
"""

from __future__ import annotations

from pathlib import Path

from rankwise.bench import Recipe
from rankwise.bench.shared.distilled import Sizes, evidence_of, measured, prepared
from rankwise.bench.shared.evidence import Evidence
from rankwise.bench.shared.measured import Runs
from rankwise.data import read_images
from rankwise.events import OnEvent

RECIPE = Recipe(
    name="hello",
    part="cifar10",
    about="HeLlO on CIFAR-10, whose classes its base knows, against stored, pruned and hard labels",
    spreads=True,
    smoke={
        "SOURCE": "digits", "TRAIN": 60, "TEST": 20, "IPCS": (1, 2), "EPOCHS": (2, 1), "RANKS": (1, 2), "TEACHERS": 2,
        "TEACHING": 1, "LEARNING": 1, "CANDIDATES": 4, "TILES": 1, "WIDTH": 4, "FULL": 1, "seeds": 1,
    },
    figures=(("ten distilled pictures a class, of the first seed", "hello.png"),),
    remark="The base was trained on CIFAR-10: what its labels are worth is not what adapters taught it.",
)  # fmt: skip

SOURCE, SIZE = "cifar10", 32
TRAIN, TEST = 6000, 1000  # at most
IPCS, EPOCHS = (1, 10, 50), (300, 100, 30)
RANKS = (8, 2, 16)
TEACHERS, TEACHING, LEARNING, RATE = 3, 8, 6, 5e-3
CANDIDATES, TILES, WIDTH, FULL = 300, 1, 32, 6  # tiles: as published at 32 pixels


def measure(out: Path, *, data: Path | None = None, seeds: int = 5, on_event: OnEvent | None = None) -> Runs:
    """What all say of the test pictures (what is there is read back)."""
    where = data if SOURCE == "cifar10" else None
    train, test = (read_images(SOURCE, split=s, data=where) for s in ("train", "test"))
    pictures = prepared(out / "pictures.npz", train.head(TRAIN), test.head(TEST), SIZE)
    return measured(out, _sizes(pictures), on_event, seeds=seeds)


def judge(found: Runs, *, seeds: int) -> Evidence:
    """All compared."""
    return evidence_of(
        found, _sizes(), seeds=seeds, recipe="hello", title="HeLlO: CIFAR-10 as a few pictures",
        command="rankwise bench hello --part cifar10 --data cifar10",
        setting=f"{SOURCE}, at most {TRAIN:,} training and {TEST:,} test pictures, base clip-cifar10, which was "
        f"trained on all training pictures of CIFAR-10 (a leak), ranks {RANKS[0]} and 64 (at most what a layer can "
        f"have), fitted, then {LEARNING} epochs at rate {RATE:g}, tiles {TILES} x {TILES}, bfloat16",
    )  # fmt: skip


def _sizes(pictures: Path = Path()) -> Sizes:
    return Sizes(
        pictures=pictures, flip=True, ipcs=IPCS, epochs=EPOCHS, ranks=RANKS, tiles=TILES, teachers=TEACHERS,
        teaching=TEACHING, learning=LEARNING, candidates=CANDIDATES, lr=RATE, width=WIDTH, full=FULL,
    )  # fmt: skip
