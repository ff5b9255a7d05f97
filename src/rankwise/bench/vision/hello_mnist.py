"""HeLlO where the base has never seen the classes: digits, by a CLIP that was trained on CIFAR-10.

Its texts of digits say nothing to it, so that what its labels are worth, its adapters have learned.
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
    part="mnist",
    about="HeLlO on handwritten digits, which its base has never seen, against stored, pruned and hard labels",
    spreads=True,
    smoke={
        "SOURCE": "digits", "TRAIN": 60, "TEST": 20, "IPCS": (1, 2), "EPOCHS": (2, 1), "RANKS": (1, 2), "TEACHERS": 2,
        "TEACHING": 1, "LEARNING": 1, "CANDIDATES": 4, "TILES": 1, "WIDTH": 4, "FULL": 1, "seeds": 1,
    },
    figures=(("ten distilled pictures a class, of the first seed", "hello_mnist.png"),),
)  # fmt: skip

SOURCE, SIZE = "mnist", 32  # of 28 pixels, scaled to the base's
TRAIN, TEST = 3500, 1000  # at most
IPCS, EPOCHS = (1, 10, 50), (300, 100, 30)
RANKS = (8, 2, 16)
TEACHERS, TEACHING, LEARNING, RATE = 3, 6, 10, 1e-2
CANDIDATES, TILES, WIDTH, FULL = 300, 1, 32, 6  # tiles: as published at 32 pixels


def measure(out: Path, *, seeds: int = 5, on_event: OnEvent | None = None) -> Runs:
    """What all say of the test pictures (what is there is read back)."""
    train, test = (read_images(SOURCE, split=s) for s in ("train", "test"))
    pictures = prepared(out / "pictures.npz", train.head(TRAIN), test.head(TEST), SIZE)
    return measured(out, _sizes(pictures), on_event, seeds=seeds)


def judge(found: Runs, *, seeds: int) -> Evidence:
    """All compared."""
    return evidence_of(
        found, _sizes(), seeds=seeds, recipe="hello",
        title="HeLlO: digits as a few pictures, by a base that has never seen one",
        command="rankwise bench hello --part mnist",
        setting=f"{SOURCE}, at most {TRAIN:,} training and {TEST:,} test pictures at {SIZE} pixels, base clip-cifar10, "
        f"which has never seen digits, ranks {RANKS[0]} and 64 (at most what a layer can have), fitted, then "
        f"{LEARNING} epochs at rate {RATE:g}, tiles {TILES} x {TILES}, bfloat16",
    )  # fmt: skip


def _sizes(pictures: Path = Path()) -> Sizes:
    return Sizes(
        pictures=pictures, flip=False, ipcs=IPCS, epochs=EPOCHS, ranks=RANKS, tiles=TILES, teachers=TEACHERS,
        teaching=TEACHING, learning=LEARNING, candidates=CANDIDATES, lr=RATE, width=WIDTH, full=FULL,
    )  # fmt: skip
