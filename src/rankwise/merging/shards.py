"""Safetensors files read and written a tensor at a time, with no more than that tensor in memory.

A file is the length of a JSON header (8 bytes, little-endian), the header ``{name: {dtype, shape, data_offsets}}``, and
the tensors' bytes. The offsets are known before anything is computed, so a merge writes each tensor to its place as
soon as it is done, in any order. Reading goes by plain reads rather than a memory map, whose pages would count as
memory in use.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rankwise.files import write_json
from rankwise.reading import parse_json, read_json

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {v: k for k, v in DTYPES.items()}
INDEX = "model.safetensors.index.json"
_MOST_HEADER = 100_000_000
_MOST_ENTRIES = 1 << 48
_MOST_AXES = 16


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies.

    Attributes
    ----------
    file : Path
        The safetensors file.
    dtype : torch.dtype
        The dtype in which it is stored.
    shape : tuple of int
        Its shape.
    start : int
        The byte of the file at which it begins.

    Examples
    --------
    >>> import tempfile
    >>> import torch
    >>> from pathlib import Path
    >>> from safetensors.torch import save_file
    >>> from rankwise.merging.shards import entries
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_file({"w": torch.ones(2, 3)}, f"{folder}/model.safetensors")
    ...     entry = entries(Path(folder, "model.safetensors"))["w"]
    ...     entry.shape, entry.bytes, float(entry.read().sum())
    ((2, 3), 24, 6.0)
    """

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def bytes(self) -> int:
        """Its size."""
        return prod(self.shape) * self.dtype.itemsize

    def same(self, other: Entry) -> bool:
        """Whether both are one place of one file."""
        return self.start == other.start and self.file.resolve() == other.file.resolve()

    def read(self) -> Tensor:
        """The tensor, in memory of its own."""
        data = torch.empty(self.bytes, dtype=torch.uint8)  # not zeroed first, as a bytearray would be
        with self.file.open("rb", buffering=0) as stream:
            stream.seek(self.start)
            view, done = memoryview(data.numpy().data), 0
            while done < len(view):
                got = stream.readinto(view[done:])
                if not got:
                    raise ValueError(f"{self.file} ends before its tensors do")
                done += got
        return data.view(self.dtype).reshape(self.shape)


def entries(file: Path) -> dict[str, Entry]:
    """What a safetensors file holds, by its header; nothing else is read.

    Raises
    ------
    ValueError
        Not a safetensors file: a header that is too long or no JSON, an unknown dtype, offsets outside the file or not
        of the size that dtype and shape ask for, tensors that overlap or leave bytes between them.
    """
    if not file.is_file():
        raise ValueError(f"{file} is no regular file")
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= min(_MOST_HEADER, size - 8):
            raise ValueError(f"{file} is not a safetensors file (its header would have {length:,} bytes)")
        try:
            header = parse_json(stream.read(length).decode(), "its header")
            header.pop("__metadata__", None)
            found = {n: _entry(file, d, 8 + length) for n, d in header.items()}
            _check_cover(found, 8 + length, size)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file} is not a valid safetensors file: {error}") from error
    return found


def _entry(file: Path, d: dict, origin: int) -> Entry:
    if d["dtype"] not in DTYPES:
        raise ValueError(f"dtype {str(d['dtype'])[:20]} is unknown")
    begin, end = d["data_offsets"]
    shape = tuple(d["shape"])
    if any(type(x) is not int or not 0 <= x < _MOST_ENTRIES for x in (begin, end, *shape)) or len(shape) > _MOST_AXES:
        raise ValueError(f"shape {str(list(shape))[:60]} and bytes {str(begin)[:20]}..{str(end)[:20]} are no numbers")
    entry = Entry(file, DTYPES[d["dtype"]], shape, origin + begin)
    if end - begin != entry.bytes:
        raise ValueError(f"bytes {begin}..{end} do not fit shape {list(shape)} of {d['dtype']}")
    return entry


def _check_cover(found: Mapping[str, Entry], start: int, size: int) -> None:
    """The tensors lie one behind the other, from the header to the end of the file."""
    for name, entry in sorted(found.items(), key=lambda pair: (pair[1].start, pair[1].bytes)):
        if entry.start != start:
            raise ValueError(f"{name[:80]} begins at byte {entry.start:,}, where {start:,} is next: overlap or gap")
        start += entry.bytes
    if start != size:
        raise ValueError(f"its tensors end at byte {start:,} of {size:,}: is the file whole?")


@dataclass(frozen=True)
class Slot:
    """A tensor that will be written.

    Examples
    --------
    >>> import torch
    >>> from rankwise.merging.shards import Slot, split
    >>> slots = [Slot("a", torch.float16, (2, 4)), Slot("b", torch.float32, (4,)), Slot("c", torch.float32, (2,))]
    >>> [[slot.name for slot in shard] for shard in split(slots, most=32)]
    [['a', 'b'], ['c']]
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its size."""
        return prod(self.shape) * self.dtype.itemsize


def split(slots: Iterable[Slot], most: int) -> list[list[Slot]]:
    """In order, into shards of at most ``most`` bytes (a larger tensor gets one of its own)."""
    shards: list[list[Slot]] = [[]]
    used = 0
    for slot in slots:
        if shards[-1] and used + slot.bytes > most:
            shards.append([])
            used = 0
        shards[-1].append(slot)
        used += slot.bytes
    return shards


class ShardWriter:
    """Writes tensors of a planned checkpoint in any order; what was written is found again after a kill.

    Parameters
    ----------
    folder : Path
        Where the shards go; it may hold what an earlier writer of the same plan left.
    slots : iterable of Slot
        All tensors of the checkpoint, in order.
    shard_size : int
        Bytes that a shard has at most.

    Attributes
    ----------
    done : set of str
        Tensors that are safely on disk already.

    Examples
    --------
    >>> import tempfile
    >>> import torch
    >>> from pathlib import Path
    >>> from safetensors.torch import load_file
    >>> from rankwise.merging.shards import ShardWriter, Slot
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     writer = ShardWriter(Path(folder), [Slot("w", torch.float32, (2, 3))], shard_size=1_000)
    ...     writer.write("w", torch.ones(2, 3))
    ...     writer.close(finished=True)
    ...     float(load_file(f"{folder}/model.safetensors")["w"].sum())
    6.0
    """

    def __init__(self, folder: Path, slots: Iterable[Slot], *, shard_size: int) -> None:
        shards = split(slots, shard_size)
        count = len(shards)
        names = [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
        names = ["model.safetensors"] if count == 1 else names
        self.folder, self.places = folder, {}
        self.weight_map: dict[str, str] = {}
        self.total = sum(s.bytes for shard in shards for s in shard)
        self._journal, self._lock = folder / "written.txt", threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free + sum(p.stat().st_blocks * 512 for p in folder.glob("*.safetensors"))
        if self.total > free:  # said now rather than after hours
            raise OSError(errno.ENOSPC, f"{self.total:,} bytes are to be written and {free:,} are free", str(folder))
        noted = self._journal.read_text(encoding="utf-8").split("\n") if self._journal.is_file() else [boot(), ""]
        # what the page cache held is lost with the machine, though not with the process: then all is written anew.
        # A line that a kill cut short has no end.
        self.done = set(noted[1:-1]) if noted[0] == boot() else set()
        if not self.done:
            self._journal.write_text(f"{boot()}\n", encoding="utf-8")
        elif noted[-1]:
            self._journal.write_text("\n".join(noted[:-1]) + "\n", encoding="utf-8")
        self._files = {}
        for name, shard in zip(names, shards, strict=True):
            self._lay_out(folder / name, shard)
        self._noted = self._journal.open("a", encoding="utf-8")

    def _lay_out(self, file: Path, shard: list[Slot]) -> None:
        header: dict[str, dict[str, Any]] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for slot in shard:
            header[slot.name] = {
                "dtype": NAMES[slot.dtype],
                "shape": list(slot.shape),
                "data_offsets": [offset, offset + slot.bytes],
            }
            offset += slot.bytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        self._files[file.name] = handle
        start = 8 + len(text)
        os.pwrite(handle, len(text).to_bytes(8, "little") + text, 0)
        os.truncate(handle, start + offset)
        for slot in shard:
            self.places[slot.name] = (handle, start, slot)
            self.weight_map[slot.name] = file.name
            start += slot.bytes

    def write(self, name: str, tensor: Tensor) -> None:
        """Put a tensor in its place; any thread."""
        handle, start, slot = self.places[name]
        assert tensor.dtype == slot.dtype, name
        assert tuple(tensor.shape) == slot.shape, name
        data = memoryview(tensor.contiguous().cpu().flatten().view(torch.uint8).numpy().data) if slot.bytes else b""
        done = 0
        while done < len(data):
            done += os.pwrite(handle, data[done:], start + done)
        with self._lock:
            self._noted.write(f"{name}\n")
            self._noted.flush()

    def close(self, *, finished: bool) -> None:
        """Flush; when ``finished``, also write the index and drop the journal."""
        self._noted.close()
        for handle in self._files.values():
            os.close(handle)
        if finished:
            if len(self._files) > 1:
                index = {"metadata": {"total_size": self.total}, "weight_map": self.weight_map}
                write_json(self.folder / INDEX, index)
            self._journal.unlink(missing_ok=True)


def boot() -> str:
    """Changes when the machine starts anew; constant where the system does not tell."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else "boot"


def checkpoint_entries(folder: Path) -> dict[str, Entry]:
    """All tensors of a folder: by its index, or of its only safetensors file.

    Raises
    ------
    ValueError
        No safetensors, pickled weights only, an index that points outside the folder or to what is not there.
    """
    index, single = folder / INDEX, folder / "model.safetensors"
    if single.exists():  # transformers reads it first as well
        return entries(single)
    if not index.exists():
        pickled = [p.name for p in folder.glob("*.bin")] + [p.name for p in folder.glob("*.pt")]
        hint = f"; {pickled[0]} is pickled and is not opened: save it as safetensors first" if pickled else ""
        raise ValueError(f"{folder} has no model.safetensors{hint}")
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(f, str) for f in weight_map.values()):
        raise ValueError(f"{index} is not a valid index: weight_map must name a file for each tensor")
    found: dict[str, Entry] = {}
    for name in sorted(set(weight_map.values())):
        if Path(name).name != name:
            raise ValueError(f"{index} points outside its folder: {name}")
        if not (folder / name).exists():
            raise ValueError(f"{index} names {name}, which is not there")
        held = entries(folder / name)
        found |= {k: e for k, e in held.items() if weight_map.get(k) == name}
    if absent := sorted(set(weight_map) - set(found)):
        raise ValueError(f"{index} names tensors that its files do not hold: {', '.join(absent[:3])[:200]}")
    return found
