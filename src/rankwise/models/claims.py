"""What a model folder claims, compared with the weights that are there, before anything is built or allocated.

A ``config.json`` of a few bytes can ask for a billion layers. The headers of the safetensors files say how many tensors
and numbers there are: a configuration that needs far more is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rankwise.reading import decoded, parse_json, read_json, tensor_shapes

if TYPE_CHECKING:
    from transformers import PretrainedConfig

MOST_BYTES = {"tokenizer.json": 256_000_000, "vocab.json": 64_000_000, "config.json": 16_000_000}
MOST_OTHER = 64_000_000  # bytes of any other text file
TOKENS, MOST_IDS = ("tokenizer.json", "vocab.json", "added_tokens.json"), 10_000_000
FEW, MANY, LABELS = (
    64,
    2_000_000,
    100_000,
)  # layers, entries and classes that a configuration may name whatever it holds
SPARE = 100_000_000  # numbers that may be new or computed: heads, position tables, masks
_STACKED = re.compile(r"(layers?|blocks?|stages?|depths?|experts?)$|^n_layers?$")
_SIZES = re.compile(
    r"^(num|n|d|max)_|size|dim$|dims$|heads|labels|positions|embd|width|length|buckets|channels|ffn|rank"
)


def check_model_folder(folder: Path) -> None:
    """Refuse a folder whose files are too large to be read as text, or whose configuration its weights cannot fill.

    Raises
    ------
    ValueError
        The file, the entry and the value.
    """
    for path in folder.iterdir():
        if path.suffix in (".json", ".txt", ".jinja", ".model") and path.is_file():
            most = MOST_BYTES.get(path.name, MOST_OTHER)
            if (size := path.stat().st_size) > most:
                raise ValueError(
                    f"{path} has {size:,} bytes, more than the {most:,} that such a file may have: not read"
                )
            if path.name in TOKENS:
                _check_ids(path)
    _check_entries(folder / "generation_config.json")
    if not (folder / "config.json").is_file():
        return
    _check_entries(folder / "config.json")
    config, shapes = read_json(folder / "config.json"), weights_of(folder)
    if code := next((p for p, v in _values(config) if p.endswith("_implementation") and "/" in str(v)), None):
        raise ValueError(f"{folder / 'config.json'}: {code} names code on a hub, which rankwise never runs")
    if shapes is None:
        return
    numbers = sum(map(prod, shapes))
    for place, value in _values(config):
        if not isinstance(value, int | float):
            continue
        most = _most(place.rpartition(".")[2], len(shapes), numbers)
        if most is not None and value > most:
            raise ValueError(
                f"{folder / 'config.json'}: {place} is {value:,}, but the weights beside it are {len(shapes):,} "
                f"tensors of {numbers:,} numbers in all: not loaded"
            )


def _check_entries(path: Path) -> None:
    """Refuse what is no number where a token's is asked for, and no name where an architecture's is."""
    said = read_json(path) if path.is_file() else {}
    kinds = said.get("architectures")
    if kinds is not None and not (isinstance(kinds, list) and all(isinstance(k, str) for k in kinds)):
        raise ValueError(f"{path}: architectures is {str(kinds)[:80]!r}; a list of names is needed")
    for key, value in said.items():
        numbers = value if isinstance(value, list) else [] if value is None else [value]
        if key.endswith("_token_id") and not all(isinstance(n, int) for n in numbers):
            raise ValueError(f"{path}: {key} is {str(value)[:80]!r}, which is no token's number")


def _check_ids(path: Path) -> None:
    """Refuse a number of a token for which a tokenizer would make room that the machine has not."""
    data = path.read_bytes()
    if not re.search(rb":\s*\d{8}", data):
        return
    tree = parse_json(decoded(path, data), str(path))
    for place, value in _values(tree):
        if isinstance(value, int) and value >= MOST_IDS and not place.endswith("max_length"):
            raise ValueError(f"{path}: {place[:80]} is {value:,}, more than a token's number may be: not read")


def _most(key: str, tensors: int, numbers: int) -> int | None:
    """The largest value of an entry that so many weights could fill; None where it says no size."""
    if _STACKED.search(key):
        return max(tensors, FEW)
    if "labels" in key:
        return LABELS
    return max(numbers, MANY) if _SIZES.search(key) else None


def weights_of(folder: Path) -> list[tuple[int, ...]] | None:
    """Shapes of all tensors in the folder's safetensors files, read from their headers; None where there are none.

    Raises
    ------
    ValueError
        A broken file, or pickled weights alone.
    """
    files = [p for p in sorted(folder.glob("*.safetensors")) if p.is_file()]
    if not files:
        if pickled := sorted(p.name for p in folder.glob("*.bin") if p.name != "training_args.bin"):
            raise ValueError(f"{folder / pickled[0]} is pickled and is not opened: save the model as safetensors first")
        return None
    return [shape for file in files for shape in tensor_shapes(file).values()]


def check_size(cls: type, config: PretrainedConfig, folder: Path) -> None:
    """Refuse a model that would have far more numbers than its weights hold; it is built without memory to see.

    Raises
    ------
    ValueError
        How many it would have, and how many there are.
    """
    shapes = weights_of(folder)
    if shapes is None:
        return
    with torch.device("meta"):
        blank: Any = cls(config)
    needed = sum(t.numel() for t in (*blank.parameters(), *blank.buffers()))
    there = sum(map(prod, shapes))
    if needed > 3 * there + SPARE:
        raise ValueError(
            f"{folder / 'config.json'} describes a model of {needed:,} numbers; the weights beside it have {there:,}: "
            "not loaded"
        )


def _values(tree: object, place: str = "") -> Iterator[tuple[str, object]]:
    """Names and values of the leaves of a tree of objects and lists; what is in a list has the list's name."""
    if isinstance(tree, dict):
        for key, inner in tree.items():
            yield from _values(inner, f"{place}.{key}".lstrip("."))
    elif isinstance(tree, list):
        for inner in tree:
            yield from _values(inner, place)
    else:
        yield place, tree
