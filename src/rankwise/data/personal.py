"""Real documents with several readers: papers by aspect, opinions on a topic, news headlines.

The first comes out of a published package; the others are read from a folder of yours and never leave it.
"""

from __future__ import annotations

import csv
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from rankwise.archive import extract, members
from rankwise.data.literature import ACLSUM
from rankwise.data.summaries import Summaries
from rankwise.reading import MOST_TEXT, json_lines, opened, read_text

ASPECTS = ("challenge", "approach", "outcome")


@dataclass(frozen=True, kw_only=True)
class Read:
    """A document with what its readers wrote.

    Attributes
    ----------
    id : str
        Its name.
    sentences : list of str
        The document.
    wrote : dict of str to str
        By reader, his summary.
    marked : dict of str to list of int
        By reader, the sentences that he marked, by place; empty where nobody did.

    Examples
    --------
    >>> from rankwise.data.personal import Read
    >>> Read(id="N1", sentences=["States sue.", "Business is glad."], wrote={"ann": "states sue"}, marked={}).wrote
    {'ann': 'states sue'}
    """

    id: str
    sentences: list[str]
    wrote: dict[str, str]
    marked: dict[str, list[int]]


def aclsum() -> list[Read]:
    """250 papers (abstract, introduction, conclusion) that three readers summarised: challenge, approach, outcome.

    Takeshita, Green, Friedrich, Eckert & Ponzetto, ACLSum, NAACL 2024 (MIT); fetched on first use and cached.
    """
    parts = ("train", "val", "test")
    folder = members(
        ACLSUM, [f"aclsum/dataset/{p}.jsonl" for p in parts], folder=f"data/aclsum-summaries-{ACLSUM.version}"
    )
    found = []
    for part in parts:
        for _, row in json_lines(folder / f"{part}.jsonl"):
            paper: dict = dict(row)
            sections = list(paper["sentences"])
            marks = {a: [m for s in sections for m in paper["highlights"][a][s]] for a in ASPECTS}
            sentences = [text for s in sections for text in paper["sentences"][s]]
            found.append(
                Read(
                    id=paper["id"],
                    sentences=sentences,
                    wrote={a: paper["summary"][a] for a in ASPECTS},
                    marked={a: [i for i, m in enumerate(marks[a]) if m] for a in ASPECTS},
                )
            )
    return found


def opinosis(folder: Path) -> list[Read]:
    """51 topics of sentences from reviews, each summarised by four or five readers.

    Parameters
    ----------
    folder : Path
        Holds Opinosis 1.0 (Ganesan, Zhai & Han, COLING 2010), as its zip file or unpacked.

    Raises
    ------
    ValueError
        It does not.
    """
    if zipped := sorted(folder.glob("Opinosis*.zip")):
        with tempfile.TemporaryDirectory() as scratch:
            try:
                with zipfile.ZipFile(zipped[0]) as archive:
                    names = [n for n in archive.namelist() if n.endswith((".txt.data", ".gold"))]
            except zipfile.BadZipFile as error:
                raise ValueError(f"{zipped[0]} cannot be read as an archive: {error}") from error
            extract(zipped[0], names, Path(scratch))
            return opinosis(Path(scratch))
    topics = sorted(folder.rglob("*.txt.data"))
    if not topics:
        raise ValueError(f"{folder} does not hold Opinosis: neither Opinosis*.zip nor files named *.txt.data")
    golds = sorted(folder.rglob("*.gold"))
    found = []
    for path in topics:
        name = path.name.removesuffix(".txt.data")
        own = {p.name.removesuffix(".gold").removeprefix(f"{name}."): p for p in golds if p.name.startswith(f"{name}.")}
        wrote = {reader: " ".join(_legacy(p).split()) for reader, p in own.items()}
        sentences = [line.strip() for line in _legacy(path).split("\n") if line.strip()]
        found.append(Read(id=name, sentences=sentences, wrote=wrote, marked={}))
    return found


def pens(folder: Path) -> Summaries:
    """Headlines that 103 readers wrote for news (PENS, Ao et al., ACL 2021), and five systems'; articles are not there.

    Parameters
    ----------
    folder : Path
        Holds ``personalized_test.tsv`` and ``hyps_*.txt``, a line a row of the former.

    Raises
    ------
    ValueError
        It does not, or a system has another number of lines.
    """
    path = folder / "personalized_test.tsv"
    if not path.is_file():
        raise ValueError(f"{folder} does not hold PENS: personalized_test.tsv is missing")
    try:
        pairs = [
            (document, row["userid"], title)
            for row in csv.DictReader(read_text(path).split("\n"), delimiter="\t")
            for document, title in zip(row["posnewID"].split(","), row["rewrite_titles"].split(";;"), strict=True)
            if title.strip()
        ]
    except (KeyError, AttributeError, csv.Error, ValueError) as error:
        raise ValueError(f"{path} is not of PENS, or broken: {error}") from error
    systems = {p.stem.removeprefix("hyps_"): read_text(p).rstrip("\n").split("\n") for p in folder.glob("hyps_*.txt")}
    for name, lines in systems.items():
        if len(lines) != len(pairs):
            raise ValueError(f"hyps_{name}.txt has {len(lines):,} lines where {len(pairs):,} headlines are")
    out = Summaries()
    for n, (document, reader, title) in enumerate(pairs):
        if reader not in out.users.get(document, {}):  # some pairs stand twice: the first counts
            texts = {name: lines[n] for name, lines in sorted(systems.items())}
            out.add(f"headline {n + 1}", document, reader, {"user": title, **texts})
    return out


def _legacy(path: Path) -> str:
    """A text in UTF-8 or, as some of 2010 are, in Windows-1252."""
    with opened(path) as stream:
        data = stream.read(MOST_TEXT)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")
