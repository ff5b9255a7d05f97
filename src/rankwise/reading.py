"""Reading what others wrote: plain data, of bounded size, depth and time; every complaint names the file.

Nothing read here runs. A file that is too large, nests too deeply, unfolds when its references are followed, or is no
text at all gives one `ValueError`. A text file may be compressed (.gz, .bz2, .xz, .zst).
"""

from __future__ import annotations

import io
import itertools
import json
import lzma
import re
import subprocess
import sys
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

MOST_TEXT = 256_000_000  # bytes
MOST_JSON = 32_000_000  # bytes; indices of large models have ten million
MOST_HEADER = 32_000_000  # bytes of a safetensors file's list of tensors
MOST_YAML = 1_000_000  # bytes
MOST_NODES = 100_000  # of a YAML file, aliases followed
MOST_LINE = 16_000_000  # bytes of a line of JSON lines
LONGEST_NUMBER = 1000  # characters of a number, a date or what else YAML takes apart; binary is not read
DEEPEST = 100
SECONDS = 5.0  # for a pattern
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
UNFOLDS_TO = 64_000_000, 100  # a compressed file: so many bytes, or so many times its own size, if that is more
_DIRECTIONS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c"


def check_regular(path: Path) -> None:
    """``ValueError`` where there is no file, or a folder, a device or a pipe, which would be read for ever."""
    if not path.is_file():
        raise ValueError(f"no such file: {path}" if not path.exists() else f"{path} is no regular file")


def opened(path: Path) -> io.BufferedReader:
    """A file's bytes to read; one named .gz, .bz2, .xz or .zst is decompressed, up to the bound in `UNFOLDS_TO`.

    Raises
    ------
    ValueError
        No such file, no regular file; while reading: broken, or unfolding beyond the bound.
    """
    check_regular(path)
    return io.BufferedReader(_Unfolded(path)) if path.suffix.lower() in COMPRESSED else path.open("rb")


def read_text(path: Path, *, most: int = MOST_TEXT) -> str:
    """A UTF-8 file of at most ``most`` bytes, a byte order mark dropped.

    Raises
    ------
    ValueError
        No such file, no regular file, too large, or not UTF-8 (line and column are said).
    """
    return decoded(path, _bytes(path, most))


def read_json(path: Path, kind: type = dict) -> Any:
    """The JSON value in a file, an object unless ``kind`` says ``list``.

    Raises
    ------
    ValueError
        As `read_text`; also not JSON, deeper than 100, or of another kind.
    """
    return parse_json(read_text(path, most=MOST_JSON), str(path), kind)


_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def _is_text(value: object) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def parse_json(text: str, source: str, kind: type | tuple[type, ...] = dict) -> Any:
    """The JSON value in ``text``; errors say that it is of ``source``."""
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError(f"{source} nests deeper than {DEEPEST} levels: not read") from error
    except ValueError as error:  # also numbers of thousands of digits
        raise ValueError(f"{source} is not valid JSON: {error}") from error
    if _deeper(value, DEEPEST):
        raise ValueError(f"{source} nests deeper than {DEEPEST} levels: not read")
    if _HALF.search(text) and not _is_text(value):
        raise ValueError(f"{source} holds half of a character (\\ud800 to \\udfff alone), which is no text")
    if not isinstance(value, kind):
        names = {dict: "an object", list: "a list"}
        wanted = " or ".join(names.get(k, k.__name__) for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise ValueError(f"{source}: {wanted} is needed, found {names.get(type(value), type(value).__name__)}")
    return value


def read_yaml(path: Path) -> object:
    """What a YAML file holds, by the safe loader: nothing in it runs.

    Raises
    ------
    ValueError
        As `read_text`; also not YAML, a key given twice, or too many values once its aliases are followed.
    """
    import yaml

    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    text = read_text(path, most=MOST_YAML)
    try:
        tree = yaml.compose(text, Loader=loader)
        weight = 0 if tree is None else _weight(tree, path, {})
    except RecursionError as error:
        raise ValueError(f"{path} nests too deeply: not read") from error
    except (yaml.YAMLError, UnicodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if weight > MOST_NODES:
        raise ValueError(f"{path} unfolds to more than {MOST_NODES:,} values: not read")
    try:
        return yaml.load(text, Loader=loader)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    except (LookupError, AttributeError, TypeError, ArithmeticError) as error:  # as of `!!timestamp x`
        raise ValueError(f"{path} is not valid YAML: a value is not of the kind that its tag says") from error


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """Line numbers and objects of a file with a JSON object a line; blank lines are skipped.

    Raises
    ------
    ValueError
        No such file, not UTF-8, a line over 16 MB, or one that is no JSON object: which, and where.
    """
    for number, line in byte_lines(path):
        text = decoded(path, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line, first=number)
        if text.strip():
            yield number, parse_json(text, f"{path}, line {number}")


def byte_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Line numbers and lines, with their ends, of a file.

    Raises
    ------
    ValueError
        No such file, or a line over 16 MB.
    """
    with opened(path) as stream:
        for number in itertools.count(1):
            line = stream.readline(MOST_LINE)
            if len(line) == MOST_LINE and not line.endswith(b"\n"):
                raise ValueError(f"{path}, line {number} has more than {MOST_LINE:,} bytes: not read")
            if not line:
                return
            yield number, line


def read_tensors(path: Path, *, device: str = "cpu") -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises
    ------
    ValueError
        No such file, or one that is cut short or of another kind.
    """
    with tensor_file(path, device) as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a safetensors file; only its header is read.

    Raises
    ------
    ValueError
        As `read_tensors`.
    """
    with tensor_file(path) as opened:
        return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118


@contextmanager
def tensor_file(path: Path, device: str = "cpu") -> Iterator[Any]:
    """A safetensors file opened by `safetensors.safe_open`.

    Raises
    ------
    ValueError
        As `read_tensors`.
    """
    from safetensors import SafetensorError, safe_open

    check_regular(path)
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
    if length > MOST_HEADER:
        raise ValueError(f"{path} cannot be read as safetensors: a header of {length:,} bytes. Is the file whole?")
    try:
        with safe_open(path, framework="pt", device=device) as opened:
            yield opened
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as safetensors: {error}. Is the file whole?") from error


def matching(pattern: str, names: Sequence[str], *, source: str) -> list[str]:
    """The names that a regular expression out of a file matches whole.

    Matching runs in a process of its own that is ended after 5 seconds, since a pattern can take for ever.

    Raises
    ------
    ValueError
        No regular expression, or one that takes too long.
    """
    if re.fullmatch(r"[\w.-]*", pattern):  # plain text, but that a point stands for anything
        return [n for n in names if re.fullmatch(pattern, n)]
    code = (
        "import json, re, sys\n"
        "pattern, names = json.load(sys.stdin)\n"
        "try: found = [n for n in names if re.fullmatch(pattern, n)]\n"
        "except (re.error, RecursionError, OverflowError) as error: found = str(error)\n"
        "print(json.dumps(found))"
    )
    asked = json.dumps([pattern, list(names)])
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", code], input=asked, capture_output=True, text=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"{source}: the pattern {pattern[:80]!r} takes too long to match: not used") from error
    found = parse_json(done.stdout, f"{source}: the answer to the pattern {pattern[:80]!r}", (list, str))
    if isinstance(found, str):
        raise ValueError(f"{source}: {pattern[:80]!r} is no regular expression: {found}")
    return found


def printable(text: str) -> str:
    """Text for a terminal: line ends and tabs stay; other control characters and changes of direction are dropped."""
    return "".join(
        c
        for c in text
        if c in "\n\t" or (unicodedata.category(c) not in ("Cc", "Cs", "Zl", "Zp") and c not in _DIRECTIONS)
    )


class _Unfolded(io.RawIOBase):
    """A decompressed file that ends in an error where it unfolds beyond the bound."""

    def __init__(self, path: Path) -> None:
        least, times = UNFOLDS_TO
        self.path, self.seen, self.most = path, 0, max(least, times * path.stat().st_size)
        self.stream = _decompressing(path)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self.stream.read(len(buffer))
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise ValueError(f"{self.path} cannot be decompressed: {error}. Is the file whole?") from error
        self.seen += len(data)
        if self.seen > self.most:
            raise ValueError(f"{self.path} unfolds to more than {self.most:,} bytes: not read")
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self.stream.close()
        super().close()


def _decompressing(path: Path) -> Any:
    import bz2
    import gzip

    suffix = path.suffix.lower()
    if suffix != ".zst":
        return {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}[suffix](path, "rb")
    try:
        from pyarrow import CompressedInputStream
    except ImportError as error:
        raise ImportError("reading .zst needs: pip install 'rankwise[data]'") from error
    return CompressedInputStream(str(path), "zstd")


def _bytes(path: Path, most: int) -> bytes:
    with opened(path) as stream:
        data = stream.read(most + 1)
    if len(data) > most:
        raise ValueError(f"{path} has more than {most:,} bytes: not read")
    return data


def decoded(path: Path, data: bytes, first: int = 1) -> str:
    """Bytes of a file that begin at line ``first``, as text; what is not UTF-8 is an error that says where."""
    try:
        return data.decode("utf-8-sig" if first == 1 else "utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + first
        column = error.start - data.rfind(b"\n", 0, error.start)
        raise ValueError(f"{path}, line {line}, column {column}: not UTF-8 (byte 0x{data[error.start]:02x})") from error


def _deeper(value: object, most: int) -> bool:
    """Whether lists and objects nest deeper than ``most``; without recursion."""
    level = [value]
    for _ in range(most):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def _weight(node: Any, path: Path, known: dict[int, int]) -> int:
    """Values under a YAML node, aliases counted as often as they stand; one in itself, or a key twice, is refused."""
    if id(node) in known:
        if known[id(node)] == 0:
            raise ValueError(f"{path} refers to itself: not read")
        return known[id(node)]
    known[id(node)] = 0
    total = 1
    if isinstance(node.value, str) and len(node.value) > LONGEST_NUMBER and not node.tag.endswith(":str"):
        raise ValueError(f"{path}, line {node.start_mark.line + 1}: a value of {len(node.value):,} digits: not read")
    if isinstance(node.value, list):
        pairs = [p for p in node.value if isinstance(p, tuple)]
        counts = Counter(k.value for k, _ in pairs if isinstance(k.value, str))
        if twice := next((k for k, n in counts.items() if n > 1), None):
            raise ValueError(f"{path} gives '{twice}' twice (line {node.start_mark.line + 1} and on)")
        for inner in (n for p in node.value for n in (p if isinstance(p, tuple) else (p,))):
            total += _weight(inner, path, known)
    known[id(node)] = total
    return total
