"""A leaderboard of personalised summaries from a file."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rankwise.data.summaries import read_summaries
from rankwise.data.tables import write_rows
from rankwise.files import whole_folder, write_json
from rankwise.jobs.early import PERSEVAL, check_personalisation, there
from rankwise.ranking.distances import Distance, as_distance, embedding, jsd
from rankwise.ranking.standings import Leaderboard, leaderboard, reasons
from rankwise.ranking.words import content_words
from rankwise.reading import read_text


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A leaderboard, and what was judged.

    Attributes
    ----------
    board : Leaderboard
        Scores and orders.
    distance : str
        The distance's name.
    documents, readers : int
        How many documents, and pairs of a document and a reader, were judged.
    """

    board: Leaderboard
    distance: str
    documents: int
    readers: int

    def as_json(self) -> dict[str, Any]:
        """For programs: a system an entry, in order, with its parts by document."""
        return {
            "distance": self.distance,
            "documents": self.documents,
            "readers": self.readers,
            "left_out": self.board.left_out,
            "notes": self.board.notes,
            "systems": [self._system(i, name) for i, name in enumerate(self.board.systems)],
            "stability": [vars(s) for s in self.board.stability],
        }

    def document_rows(self) -> list[dict[str, Any]]:
        """A row a system and document, with the reason of its score."""
        return [
            {"system": name, **{k: _plain(v[i]) for k, v in report.documents.items()}, "reason": why}
            for name, report in self.board.reports.items()
            for i, why in enumerate(reasons(report))
        ]

    def reader_rows(self) -> list[dict[str, Any]]:
        """A row a system, document and reader."""
        return [
            {"system": name, **{k: _plain(v[i]) for k, v in report.users.items()}}
            for name, report in self.board.reports.items()
            for i in range(len(report.users["user"]))
        ]

    def _system(self, at: int, name: str) -> dict[str, Any]:
        report, board = self.board.reports[name], self.board
        numbers = {k: getattr(report, k) for k in ("score", "low", "high", "degress", "egises", "edp", "distance")}
        ranks = {kind: ranks[name] for kind, ranks in board.ranks.items()}
        ahead = dict(zip(board.systems, board.ahead[at].tolist(), strict=True))
        return {"system": name, **numbers, "ranks": ranks, "borda": board.borda[name], "ahead": ahead}


def judge_file(
    path: Path,
    *,
    systems: Sequence[str] = (),
    distance: str = "jsd",
    stopwords: str | None = None,
    model: str | None = None,
    simplified: bool = False,
    alpha: float = 3.0,
    beta: float = 1.0,
    gamma: float = 4.0,
    acp: Literal["relative", "absolute"] = "relative",
    resamples: int = 1000,
    seed: int = 0,
    out: Path | None = None,
    page: Callable[[Judged, Path], None] | None = None,
) -> Judged:
    """Judge the systems in a file, and write ``results.json``, ``documents.csv`` and ``readers.csv`` into ``out``.

    Parameters
    ----------
    systems : sequence of str
        Those that are judged; all by default.
    distance : {"jsd", "rouge-l", "bleu", "embedding"}
        Of texts.
    stopwords : str, optional
        Of ``jsd``: ``english`` (the default), ``none``, or a file with a word a line.
    model : str, optional
        Of ``embedding``: ``minilm`` (the default), a folder or a hub id.
    page : callable, optional
        Called with the result and the folder, before it appears, to add files to it.

    Raises
    ------
    ValueError
        A file that cannot be read, an option that the distance has not, or as `rankwise.ranking.leaderboard`.
    """
    options: dict[str, Any] = {"alpha": alpha, "beta": beta, "gamma": gamma, "acp": acp, "resamples": resamples}
    check_personalisation(path, out, distance=distance, stopwords=stopwords, model=model, **options)
    given = read_summaries(path)
    given = given.only(systems) if systems else given
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # they are the leaderboard's notes
        board = leaderboard(
            None if simplified else given.documents, given.users, given.systems, simplified=simplified, seed=seed,
            distance=_distance(distance, stopwords, model), **options,
        )  # fmt: skip
    report = board.reports[board.systems[0]]
    judged = Judged(
        board=board, distance=distance, documents=len(report.documents["document"]), readers=len(report.users["user"])
    )
    if out is not None:
        with whole_folder(out, made_by=PERSEVAL, inputs=there(path, stopwords, model)) as draft:
            write_json(draft / "results.json", judged.as_json())
            write_rows(draft / "documents.csv", judged.document_rows())
            write_rows(draft / "readers.csv", judged.reader_rows())
            if page is not None:
                page(judged, draft)
    return judged


def _distance(name: str, stopwords: str | None, model: str | None) -> Distance:
    if name == "embedding":
        return embedding(model or "minilm")
    if name != "jsd" or stopwords in (None, "english"):
        return as_distance(name)
    words = set() if stopwords == "none" else set(read_text(Path(str(stopwords))).lower().split())
    lemma = str if stopwords == "none" else None  # another language has other plurals
    return jsd(words=partial(content_words, stopwords=words, lemma=lemma))


def _plain(value: Any) -> Any:
    return value if isinstance(value, str) else round(float(value), 6)
