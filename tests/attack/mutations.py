"""Seeded damage to files: bits, lengths, trees of JSON and YAML, safetensors headers, other things in their place."""

import json
import os
import random
import re
import struct
from pathlib import Path

import yaml

DEEP = "\ue000"  # stands for a nest of lists, which no writer of JSON or YAML takes
STRANGE = [
    None, True, False, -1, 0, 1, 2, 7, 10**9, 2**31, 2**63, 10**30, 0.5, -0.0, 1e-320, 1e308, float("nan"),
    float("inf"), "", " ", "a", "0", "1e9", "x" * 20_000, "../../../etc/passwd", "/etc/passwd", "/dev/zero", "C:\\x",
    "owner/model", "\x1b]0;title\x07\x1b[2J", "[/b] [red] [link=http://x]y", "\x00", "\n\r\t", "\u202e\u2066",
    "\ud800", "(a+)+$", r"((\w+)+\.?)+!", "(" * 50, ".*", "auto", "float64", "int8", "null", "os.system", "__class__",
    [], {}, [[]], [None] * 3, [1] * 1000, {"a": 1}, {"": {}}, {"__class__": "os.system"}, DEEP, DEEP, [DEEP],
]  # fmt: skip


def damaged(path: Path, rng: random.Random) -> str:
    """Damage the file in place; what was done, in words."""
    if path.name == "seed":  # of a server that damages its answers itself
        path.write_bytes(rng.randbytes(8))
        return "other answers"
    data = path.read_bytes()
    if rng.random() < 0.06:
        return _replaced(path, rng)
    kind = path.suffix if rng.random() < 0.7 else ""
    if path.name.endswith((".record", ".rankwise-draft")):
        kind = ".jsonl" if kind else ""
    try:
        if kind == ".json":
            new, said = _text_of(_tree(json.loads(data), rng, said := []), rng), said
        elif kind == ".jsonl":
            lines = data.decode().splitlines()
            at = rng.randrange(len(lines))
            lines[at] = _text_of(_tree(json.loads(lines[at]), rng, said := []), rng).decode()
            new = ("\n".join(lines) + "\n").encode("utf-8", "surrogatepass")
        elif kind in (".yaml", ".yml"):
            new = _yaml_of(_tree(yaml.safe_load(data), rng, said := []), rng)
        elif kind == ".safetensors":
            new = _safetensors(data, rng, said := [])
        elif kind in (".csv", ".tsv"):
            new = _table(data, "\t" if kind == ".tsv" else ",", rng, said := [])
        else:
            new = _bytes(data, rng, said := [])
    except (ValueError, IndexError, TypeError, RecursionError):
        new = _bytes(data, rng, said := [])
    path.write_bytes(new)
    return f"{path.name}: {'; '.join(said)}"


def damaged_answer(data: bytes, rng: random.Random) -> bytes:
    """A JSON answer with other values in it, or other bytes."""
    if rng.random() < 0.7:
        return _text_of(_tree(json.loads(data), rng, []), rng)
    return _bytes(data, rng, [])


def _replaced(path: Path, rng: random.Random) -> str:
    """Something else in the file's place."""
    path.unlink()
    what = rng.choice(["nothing", "a folder", "a pipe", "a hole", "a link", "a loop", "a device", "a broken link"])
    if what == "a folder":
        path.mkdir()
    elif what == "a pipe":
        os.mkfifo(path)
    elif what == "a hole":
        with path.open("wb") as stream:  # of text a size that no honest one has; of tables one that people do read
            stream.truncate((200 << 20) if path.suffix in (".csv", ".tsv", ".parquet") else (3 << 30))
    elif what != "nothing":
        to = {"a link": "/etc/passwd", "a loop": path.name, "a device": "/dev/zero", "a broken link": "nowhere"}[what]
        path.symlink_to(to)
    return f"{path.name}: {what} in its place"


def _places(value: object) -> list[tuple]:
    """Container and key of every value in a tree."""
    found, todo = [], [value]
    while todo:
        holder = todo.pop()
        for key in list(holder) if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else ():
            found.append((holder, key))
            todo.append(holder[key])
    return found


def _tree(value, rng: random.Random, said: list):
    """A tree with one to three values or keys changed."""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        places = _places(value)
        if not places or rng.random() < 0.03:
            value = rng.choice(STRANGE)
            said.append(f"the whole is {value!r:.40}")
            continue
        holder, key = rng.choice(places)
        what = rng.choice(["strange", "strange", "strange", "delete", "rename", "number", "swap", "repeat", "text"])
        old = holder[key]
        if what == "delete":
            del holder[key]
        elif what == "rename" and isinstance(holder, dict):
            holder[str(rng.choice([key, key, "", "x", "a.b", "\x1b[2J"])) + rng.choice(["", "s", "_", "\n"])] = (
                holder.pop(key)
            )
        elif what == "number" and isinstance(old, int | float):
            holder[key] = rng.choice([-old, old * 10**6, old + 1, old - 1, old / 3, str(old), [old], old * 1.5])
        elif what == "swap":
            other, at = rng.choice(places)
            if at in other if isinstance(other, dict) else at < len(other):
                holder[key], other[at] = json.loads(json.dumps(other[at])), json.loads(json.dumps(old))
        elif what == "repeat" and isinstance(old, list):
            holder[key] = old * rng.choice([2, 100])
        elif what == "text" and isinstance(old, str) and old:
            at = rng.randrange(len(old))
            holder[key] = old[:at] + rng.choice(["", "\x1b[31m", "é", "[/x]", "\x00", "😀", old]) + old[at + 1 :]
        else:
            holder[key] = rng.choice(STRANGE)
        said.append(f"{what} {key!r:.40}" + (f" = {holder[key]!r:.40}" if what == "strange" else ""))
    return value


def _text_of(value, rng: random.Random) -> bytes:
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
    if rng.random() < 0.05 and text.startswith("{") and len(value):  # a key twice
        key = rng.choice(list(value))
        text = text[:-1] + f", {json.dumps(key)}: {json.dumps(rng.choice(STRANGE))}}}"
    return _deep(text, rng)


def _yaml_of(value, rng: random.Random) -> bytes:
    try:
        text = yaml.safe_dump(value, allow_unicode=True)
    except yaml.YAMLError:
        text = json.dumps(value)
    extra = rng.random()
    if extra < 0.05:
        text += (
            "\n"
            + rng.choice(["a: &a [*a]", "b: !!python/object/apply:os.system [id]", "!!int", "- x", "\tx: 1"])
            + "\n"
        )
    elif extra < 0.08:
        levels = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)]
        text = "a0: &a0 [x, x, x, x]\n" + "".join(levels) + text
    elif extra < 0.12:
        text += "\n" + rng.choice(text.splitlines() or [""]) + "\n"
    elif extra < 0.15:
        marks = [": !!int ", ": !!timestamp ", ": !!binary ", ": !!float ", ": !!bool ", ": *", ": 1:"]
        text = text.replace(": ", rng.choice(marks), 1)
    return _deep(text, rng)


def _deep(text: str, rng: random.Random) -> bytes:
    """Nests of lists where their sign stands."""
    n = rng.choice([60, 150, 3000, 200_000])
    text = re.sub(r'"?(?:\ue000|\\ue000)+"?', "[" * n + "]" * n, text, count=1)
    return text.replace(DEEP, "").encode("utf-8", "surrogatepass")


def _safetensors(data: bytes, rng: random.Random, said: list) -> bytes:
    size = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    names = [n for n in header if n != "__metadata__"]
    what = rng.choice(["tree", "tree", "overlap", "length", "huge", "shape", "many"])
    one, other = rng.choice(names), rng.choice(names)
    if what == "overlap":
        header[one] = dict(header[other])
    elif what == "huge":
        header[one] = {"dtype": "F32", "shape": [10**9], "data_offsets": rng.choice([[0, 4 * 10**9], [0, 0]])}
    elif what == "shape":
        header[one]["shape"] = rng.choice([[2**32, 2**32], [-1], [0], [1] * 100, header[other]["shape"], [10**9]])
    elif what == "many":
        for i in range(20_000):
            header[f"{one}.{i}"] = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    elif what == "tree":
        header = _tree(header, rng, said)
    said.append(f"header: {what} {one!r:.60}")
    text = _text_of(header, rng)
    length = rng.choice([2**63, 2**32, 0, 1, len(text) * 2, len(text) - 1]) if what == "length" else len(text)
    return struct.pack("<Q", length) + text + body


def _table(data: bytes, mark: str, rng: random.Random, said: list) -> bytes:
    rows = [line.split(mark) for line in data.decode().splitlines()]
    for _ in range(rng.choice([1, 1, 2, 5])):
        row = rng.choice(rows) if rng.random() < 0.7 else rows[0]
        at = rng.randrange(len(row))
        what = rng.choice(["cell", "cell", "more", "less", "quote", "same"])
        if what == "more":
            row.append("x")
        elif what == "less":
            del row[at]
        elif what == "quote":
            row[at] = '"' + row[at]
        elif what == "same":
            row[at] = row[0]
        else:
            row[at] = str(rng.choice(STRANGE)).replace("\n", " ")
        said.append(f"{what} {at}")
        if not row:
            row.append("")
    return "\n".join(mark.join(r) for r in rows).encode("utf-8", "surrogatepass")


def _bytes(data: bytes, rng: random.Random, said: list) -> bytes:
    new = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4])):
        what = rng.choice(
            ["bits", "bits", "cut", "splice", "number", "number", "insert", "fill", "empty", "append", "double"]
        )
        at = rng.randrange(len(new)) if new else 0
        if rng.random() < 0.5:  # headers are at the beginning
            at = min(at, rng.randrange(200))
        said.append(f"{what} at {at}")
        if what == "bits" and new:
            for _ in range(rng.choice([1, 1, 8])):
                new[min(at + rng.randrange(16), len(new) - 1)] ^= 1 << rng.randrange(8)
        elif what == "cut":
            del new[at:]
        elif what == "splice":
            start = rng.randrange(len(new) + 1)
            new[at:at] = new[start : start + rng.randrange(1, 400)]
        elif what == "number":
            form = rng.choice(["<B", "<H", "<I", "<Q", ">I", "<d"])
            value = (
                float("nan")
                if form == "<d"
                else rng.choice([0, 1, 2 ** (8 * struct.calcsize(form)) - 1, 2 ** (8 * struct.calcsize(form) - 1)])
            )
            piece = struct.pack(form, value)
            new[at : at + len(piece)] = piece
        elif what == "insert":
            new[at:at] = rng.choice(
                [rng.randbytes(rng.randrange(1, 20)), b"\xff\xfe", b"\x00" * 50, b"\x1b[2J", "é\u2028".encode()]
            )
        elif what == "fill":
            n = max(min(rng.choice([4, 64, 1000]), len(new) - at), 0)
            new[at : at + n] = rng.choice([b"\x00", b"\xff", b"["]) * n
        elif what == "empty" and rng.random() < 0.2:
            new.clear()
        elif what == "append":
            new += rng.choice([b"\x00", b"garbage", new[:100], b"\n{}\n"])
        elif what == "double" and len(new) < 1_000_000:
            new += bytes(new)
    return bytes(new)
