"""250 papers of computational linguistics as they were published, from three to sixteen thousand tokens each.

They come from the aclsum 0.1.2 package (Takeshita, Green, Reinig, Eckert & Ponzetto, "ACLSum: A New Dataset for
Aspect-based Summarization of Scientific Publications", NAACL 2024; MIT licence). A text is the title and the paragraphs
of the body, one a line; abstracts, references and tables are left out.
"""

from __future__ import annotations

from pathlib import Path

from rankwise.archive import Archive, members
from rankwise.data.corpus import Corpus
from rankwise.reading import json_lines, read_json

ACLSUM = Archive(
    package="aclsum",
    version="0.1.2",
    sha256="c75ffc48d3eabc5f37c68ea087943780a85950087957759e89746f21111f2213",
)
_PARTS = ("train", "val", "test")


def papers() -> Corpus:
    """Whole papers, unlabelled, in the order of the data set; fetched on first use and cached (30 MB).

    Examples
    --------
    >>> from rankwise.data import papers
    >>> corpus = papers()
    >>> len(corpus), corpus.texts[0][:30]
    (250, 'Exploring Correlation of Depen')
    """
    lists = members(ACLSUM, [f"aclsum/dataset/{p}.jsonl" for p in _PARTS], folder="data/aclsum-0.1.2/lists")
    ids = [str(row["id"]) for p in _PARTS for _, row in json_lines(lists / f"{p}.jsonl")]
    names = [f"aclsum/dataset/paper_jsons/{i}.json" for i in ids]
    folder = members(ACLSUM, names, folder="data/aclsum-0.1.2/papers")
    return Corpus(name="text:papers", texts=[_text(folder / f"{i}.json") for i in ids], labels=[], groups=ids)


def _text(path: Path) -> str:
    paper = read_json(path)
    lines = [paper["title"], *(p["text"] for p in paper["pdf_parse"]["body_text"])]
    return "\n".join(line.strip() for line in lines if line.strip())
