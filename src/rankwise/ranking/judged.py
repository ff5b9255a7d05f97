"""All distances that a measure of personalisation needs, each computed once: documents by their number of readers."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rankwise.ranking.distances import Distance, of_pairs

Array = NDArray[np.float64]
Texts = Mapping[str, Mapping[str, str]]
Columns = dict[str, list[str] | Array]


@dataclass(kw_only=True)
class Block:
    """Documents with the same number of readers: distances between them as arrays, ``(d, n, n)`` and ``(d, n)``.

    Examples
    --------
    >>> from rankwise.ranking import jsd
    >>> from rankwise.ranking.judged import Judged
    >>> wrote = {"rule": {"ann": "states sue", "bob": "states win"}}
    >>> judged = Judged.of(None, wrote, {"own": wrote}, jsd(), simplified=True, digits=4)
    >>> judged.blocks[0].between["own"].tolist()
    [[[0.0, 0.5], [0.5, 0.0]]]
    """

    at: list[int]
    users: list[tuple[str, ...]]
    between: dict[str | None, Array]  # by system; None: what readers wrote
    to_document: dict[str | None, Array]
    accuracy: dict[str, Array]


@dataclass(kw_only=True)
class Judged:
    """All distances of some systems' summaries of the same documents for the same readers, each computed once.

    Examples
    --------
    >>> from rankwise.ranking import jsd
    >>> from rankwise.ranking.judged import Judged
    >>> wrote = {"rule": {"ann": "states sue", "bob": "states win"}}
    >>> judged = Judged.of(None, wrote, {"own": wrote}, jsd(), simplified=True, digits=4)
    >>> judged.documents, judged.by_user({})["user"]
    (['rule'], ['ann', 'bob'])
    """

    documents: list[str]
    blocks: list[Block]
    left_out: dict[str, int]

    @classmethod
    def of(
        cls,
        documents: Mapping[str, str] | None,
        user_summaries: Texts,
        systems: Mapping[str, Texts],
        distance: Distance,
        *,
        simplified: bool,
        digits: int | None,
        accuracy: bool = True,
    ) -> Judged:
        """Measure; documents and readers count where every system has a summary."""
        readers, left_out = common_readers(user_summaries, systems)
        names = list(readers)
        if not simplified:
            _check_texts(names, documents or {})
        place: dict[str, int] = {}
        asked: list[tuple[NDArray, NDArray]] = []

        def ask(left: NDArray, right: NDArray) -> int:
            asked.append(np.broadcast_arrays(left, right))  # pyright: ignore[reportArgumentType]  (a tuple of two arrays)
            return len(asked) - 1

        plans = []
        for n in sorted({len(r) for r in readers.values()}):
            at = [i for i, name in enumerate(names) if len(readers[names[i]]) == n]
            ids = {
                system: np.array(
                    [[place.setdefault(texts[names[i]][u], len(place)) for u in readers[names[i]]] for i in at]
                )
                for system, texts in {None: user_summaries, **systems}.items()
            }
            plan: dict[tuple[str, str | None], int] = {}
            for system, own in ids.items():
                plan["between", system] = ask(own[:, :, None], own[:, None, :])
                if not simplified and documents is not None:
                    bodies = np.array([[place.setdefault(documents[names[i]], len(place))] for i in at])
                    plan["document", system] = ask(own, bodies)
                if accuracy and system is not None:
                    plan["accuracy", system] = ask(ids[None], own)
            plans.append((at, plan))
        found = _measured(distance, list(place), asked, digits)
        blocks = []
        for at, plan in plans:
            users = [readers[names[i]] for i in at]
            named = [names[i] for i in at]
            for (kind, system), k in plan.items():
                _check_range(found[k], named, users, distance.name, kind, system)
            between = {s: found[plan["between", s]] for s in (None, *systems)}
            bodies = {} if simplified else {s: found[plan["document", s]] for s in between}
            far = {s: found[plan["accuracy", s]] for s in systems} if accuracy else {}
            blocks.append(Block(at=at, users=users, between=between, to_document=bodies, accuracy=far))
        return cls(documents=names, blocks=blocks, left_out=left_out)

    def between(self, system: str) -> dict[str, list[Array]]:
        """Mean distances between readers and between summaries, by document."""
        return {
            name: [b.between[key].sum((1, 2)) / (b.between[key][0].size - b.between[key].shape[1]) for b in self.blocks]
            for name, key in (("between_users", None), ("between_summaries", system))
        }

    def in_order(self, values: Iterable[Array]) -> Array:
        """Values by block, ``(d, …)`` each, in the order of documents; rows of readers are put after each other."""
        rows: list[Array] = [np.empty(0)] * len(self.documents)
        for block, array in zip(self.blocks, values, strict=True):
            for i, row in zip(block.at, array, strict=True):
                rows[i] = np.atleast_1d(row)
        return np.concatenate(rows)

    def by_document(self, values: Mapping[str, list[Array]]) -> Columns:
        """Columns, a row a document."""
        count = self.in_order([np.full(len(b.at), len(b.users[0]), float) for b in self.blocks])
        return {"document": list(self.documents), "users": count, **{k: self.in_order(v) for k, v in values.items()}}

    def by_user(self, values: Mapping[str, list[Array]]) -> Columns:
        """Columns, a row a document and reader."""
        users = {i: names for b in self.blocks for i, names in zip(b.at, b.users, strict=True)}
        rows = [(self.documents[i], user) for i in range(len(self.documents)) for user in users[i]]
        named: Columns = {"document": [d for d, _ in rows], "user": [u for _, u in rows]}
        return {**named, **{k: self.in_order(v) for k, v in values.items()}}


def common_readers(
    user_summaries: Texts, systems: Mapping[str, Texts]
) -> tuple[dict[str, tuple[str, ...]], dict[str, int]]:
    """By document the readers who wrote something and were given something by every system, and how many are left out.

    Raises
    ------
    ValueError
        A text that is none, or no document with two such readers.
    """
    left_out = {"readers without a summary of every system": 0, "readers who wrote nothing": 0,
                "summaries for readers who are not known": 0, "documents with fewer than two readers": 0}  # fmt: skip
    readers: dict[str, tuple[str, ...]] = {}
    for document, wrote in user_summaries.items():
        own = [u for u, text in wrote.items() if _filled(text, f"document {document}, reader {u}")]
        given = [
            {u for u, text in texts.get(document, {}).items()
             if _filled(text, f"document {document}, reader {u}{', system ' * bool(name)}{name}")}
            for name, texts in systems.items()
        ]  # fmt: skip
        both = tuple(u for u in own if all(u in g for g in given))
        left_out["readers who wrote nothing"] += len(wrote) - len(own)
        left_out["readers without a summary of every system"] += len(own) - len(both)
        if len(both) < 2:
            left_out["documents with fewer than two readers"] += 1
        else:
            readers[document] = both
    left_out["summaries for readers who are not known"] = sum(
        u not in user_summaries.get(document, {})
        for texts in systems.values() for document, given in texts.items() for u in given
    )  # fmt: skip
    left_out = {k: n for k, n in left_out.items() if n}
    if not readers:
        raise ValueError(
            f"no document has two readers with a summary each ({_counts(left_out) or 'there is no document'}): whether "
            "summaries follow readers cannot be seen from one reader"
        )
    if left_out:
        warnings.warn(f"left out: {_counts(left_out)}", stacklevel=4)
    return readers, left_out


def _measured(
    distance: Distance, texts: list[str], asked: list[tuple[NDArray, NDArray]], digits: int | None
) -> list[Array]:
    """Distances of all that was asked at once; those between readers have a diagonal of 0, which is never measured."""
    masks = [_measurable(left) for left, _ in asked]
    flat = [
        np.concatenate([side[mask] for side, mask in zip(sides, masks, strict=True)])
        for sides in zip(*asked, strict=True)
    ]
    values = of_pairs(distance, texts, flat[0], flat[1])
    values = values if digits is None else np.round(values, digits)
    out, start = [], 0
    for mask in masks:
        full = np.zeros(mask.shape)
        full[mask] = values[start : start + int(mask.sum())]
        start += int(mask.sum())
        out.append(full)
    return out


def _measurable(index: NDArray) -> NDArray[np.bool_]:
    """All of ``(d, n)``, and of ``(d, n, n)`` what is off the diagonal."""
    return np.broadcast_to(~np.eye(index.shape[-1], dtype=bool) if index.ndim == 3 else True, index.shape)


def _check_range(
    values: Array, documents: list[str], users: list[tuple[str, ...]], name: str, kind: str, system: str | None
) -> None:
    bad = np.argwhere(~((values >= 0) & (values <= 1)))
    if len(bad):
        d, *j = (int(i) for i in bad[0])
        who = " and ".join(f"reader {users[d][i]}" for i in j)
        what = {"between": "between the texts of", "document": "to the document of the text of",
                "accuracy": "of the summary to what was written by"}[kind]  # fmt: skip
        of = f"system {system}" if system else "the system" if system is not None else "what readers wrote"
        raise ValueError(
            f"distance {name} {what} {who} is {values[tuple(bad[0])]:g} (document {documents[d]}, {of}); "
            "numbers in [0, 1] are accepted: scale it"
        )


def _check_texts(names: list[str], documents: Mapping[str, str]) -> None:
    without = [n for n in names if not _filled(documents.get(n, ""), f"document {n}")]
    if without:
        raise ValueError(
            f"{len(without)} of {len(names)} documents have no text, e.g. {without[0]}: give it, or take "
            "simplified=True (--simplified), which does not weigh by distances to documents"
        )


def _filled(text: object, where: str) -> bool:
    if text is None:
        return False
    if not isinstance(text, str):
        raise ValueError(f"{where}: a text is needed, found {type(text).__name__}")
    return bool(text.strip())


def _counts(left_out: Mapping[str, int]) -> str:
    return ", ".join(f"{n:,} {what}" for what, n in left_out.items())
