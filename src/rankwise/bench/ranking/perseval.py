"""PerSEval orders systems by how they follow their readers, where EGISES and accuracy are fooled.

Systems of known worth on real documents: the sentences that each reader wants, a share of them replaced by others of
the document, what another reader wants, and the same for all. Controls: EGISES is fooled by another reader's summaries;
two systems of the same worth are told apart no more often than chance.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from rankwise.bench import Recipe
from rankwise.bench.shared.evidence import Claim, Evidence
from rankwise.bench.shared.measured import Runs
from rankwise.data.personal import Read, aclsum, opinosis
from rankwise.events import OnEvent, environment
from rankwise.parallel import fan_out
from rankwise.ranking import leaderboard, rouge_l
from rankwise.ranking.bootstrap import Array, interval

RECIPE = Recipe(
    name="perseval",
    part="readers",
    about="PerSEval: systems of known worth in order, where EGISES and accuracy are fooled",
    spreads=True,
    smoke={
        "PAPERS": 24,
        "COMPARED": 12,
        "DRAWS": 2,
        "SIZES": (8, 16),
        "RESAMPLES": 100,
        "DISTANCES": ("jsd", "rouge-l"),
    },
    remark="Opinosis (51 topics) is read from the folder that --data names; papers come out of the package aclsum. "
    "The noise and the draws of documents are simulated; documents, readers' texts and marked sentences are real.",
)

PAPERS, COMPARED = 250, 50  # in all, and to compare distances
NOISE = (0.0, 0.25, 0.5, 0.75)  # share of a summary's sentences that are replaced
DISTANCES = ("jsd", "rouge-l", "bleu", "embedding")
SIZES = (10, 20, 40, 80, 160)  # documents, for the power to tell two systems apart
DRAWS = 200  # of so many documents
RESAMPLES = 1000
COLUMNS = ("perseval", "degress", "distance")  # of a document
DIGITS = 5
OTHER, SAME, OWN, TWIN = "another reader's", "same for all", "readers' own", "noise 50%, another draw"
Texts = dict[str, dict[str, str]]


@dataclass(frozen=True, kw_only=True)
class Report:
    """A system's means over documents, the interval of the first, and PerSEval by document."""

    score: float
    low: float
    high: float
    degress: float
    egises: float
    distance: float
    documents: dict[str, Array]


@dataclass(frozen=True, kw_only=True)
class Board:
    """What of a leaderboard is judged: systems, the best first, and their places by accuracy."""

    systems: list[str]
    reports: dict[str, Report]
    ranks: dict[str, dict[str, float]]

    @classmethod
    def of(cls, kept: Mapping[str, Any], seed: int) -> Board:
        """Of what every document gave by system."""
        reports = {}
        for name, columns in kept["documents"].items():
            of = {k: np.array(v) for k, v in columns.items()}
            low, high = interval(of["perseval"], resamples=RESAMPLES, seed=seed)
            score, degress, distance = (float(of[k].mean()) for k in COLUMNS)
            reports[name] = Report(score=score, low=low, high=high, degress=degress, egises=1 - degress,
                                   distance=distance, documents={"perseval": of["perseval"]})  # fmt: skip
        by_accuracy = rankdata([r.distance for r in reports.values()]).tolist()
        return cls(systems=sorted(reports, key=lambda n: -reports[n].score), reports=reports,
                   ranks={"accuracy": dict(zip(reports, by_accuracy, strict=True))})  # fmt: skip


def measure(out: Path, *, data: Path | None = None, seeds: int = 5, on_event: OnEvent | None = None) -> Runs:
    """Make the systems ``seeds`` times, judge them on each collection: what every document gave."""
    note = on_event or (lambda *_: None)
    collections = {"papers": [_marked(paper) for paper in aclsum()[:PAPERS]]}
    if data is not None:
        folder = data / "opinosis" if (data / "opinosis").is_dir() else data
        collections["opinions"] = [_nearest(topic) for topic in opinosis(folder)]
    found: Runs = {"told": {name: len(documents) for name, documents in collections.items()}}
    for name, documents in collections.items():
        note(name, "train", 0, seeds, float("nan"))
        boards = fan_out(_judged, [(documents, seed, "jsd") for seed in range(seeds)])
        found |= {f"{name}, seed {seed}": board for seed, board in enumerate(boards)}
        note(name, "done", 1, 1, float("nan"))
    few = collections["papers"][:COMPARED]
    boards = fan_out(_judged, [(few, 0, d) for d in DISTANCES])
    return found | {f"by {d}": board for d, board in zip(DISTANCES, boards, strict=True)}


def judge(found: Runs, *, seeds: int) -> Evidence:
    """Orders of the systems, by collection, seed and distance."""
    told = found["told"]
    boards = {name: [Board.of(found[f"{name}, seed {seed}"], seed) for seed in range(seeds)] for name in told}
    by = {d: Board.of(found[f"by {d}"], 0) for d in DISTANCES}
    power = {name: _power(of[0]) for name, of in boards.items()}
    without = "opinions" not in told
    return Evidence(
        recipe="perseval",
        title="PerSEval: do scores follow readers?",
        command=f"rankwise bench perseval --seeds {seeds}" + ("" if without else " --data FOLDER"),
        setting=_setting(told, seeds, without),
        header=["collection", "system", "PerSEval", "95%", "EGISES", "distance", "rank by accuracy"],
        rows=[row for name, of in boards.items() for row in _rows(name, of)],
        claims=_claims(boards, by, power),
        environment=environment("fp64", 1),
        extra={
            "power": power,
            "by distance": {d: {n: round(b.reports[n].score, 4) for n in b.systems} for d, b in by.items()},
            "stability": {name: found[f"{name}, seed 0"]["stability"] for name in told},
        },
    )


# --- systems of known worth


def _marked(paper: Read) -> Read:
    """Readers with the sentences that they marked; those who marked none are left out."""
    wrote = {reader: text for reader, text in paper.wrote.items() if paper.marked[reader]}
    return Read(id=paper.id, sentences=paper.sentences, wrote=wrote, marked={r: paper.marked[r] for r in wrote})


def _nearest(topic: Read) -> Read:
    """Readers with as many sentences as they wrote, those nearest to what they wrote by ROUGE-L."""
    marked = {}
    for reader, text in topic.wrote.items():
        far = np.asarray(rouge_l().of([text] * len(topic.sentences), topic.sentences))
        marked[reader] = np.argsort(far, kind="stable")[: max(1, text.count("."))].tolist()
    return Read(id=topic.id, sentences=topic.sentences, wrote=topic.wrote, marked=marked)


def systems(documents: Sequence[Read], seed: int) -> dict[str, Texts]:
    """Summaries by system, document and reader."""
    made: dict[str, Texts] = {f"noise {100 * p:.0f}%": _noisy(documents, p, [seed, i]) for i, p in enumerate(NOISE)}
    made[TWIN] = _noisy(documents, 0.5, [seed, len(NOISE)])
    made[OTHER] = {d.id: _turned(_texts(d)) for d in documents}
    longest = {d.id: max(len(m) for m in d.marked.values()) for d in documents if d.marked}
    made[SAME] = {d.id: dict.fromkeys(d.wrote, " ".join(d.sentences[: longest.get(d.id, 1)])) for d in documents}
    made[OWN] = {d.id: dict(d.wrote) for d in documents}
    return made


def _texts(document: Read) -> dict[str, str]:
    return {reader: " ".join(document.sentences[i] for i in chosen) for reader, chosen in document.marked.items()}


def _turned(texts: Mapping[str, str]) -> dict[str, str]:
    readers = list(texts)
    return {reader: texts[readers[(i + 1) % len(readers)]] for i, reader in enumerate(readers)}


def _noisy(documents: Sequence[Read], share: float, seed: Sequence[int]) -> Texts:
    """Each sentence replaced, with that chance, by another of the document."""
    rng = np.random.default_rng(list(seed))
    made: Texts = {}
    for d in documents:
        made[d.id] = {}
        for reader, chosen in d.marked.items():
            kept = [i if rng.random() >= share else int(rng.integers(len(d.sentences))) for i in chosen]
            made[d.id][reader] = " ".join(d.sentences[i] for i in kept)
    return made


def _judged(asked: tuple[Sequence[Read], int, str]) -> dict[str, Any]:
    """What every document gave by system; of the first draw what is left of the order when less is measured."""
    documents, seed, distance = asked
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        board = leaderboard(
            {d.id: " ".join(d.sentences) for d in documents}, {d.id: d.wrote for d in documents},
            systems(documents, seed), distance=distance, resamples=RESAMPLES, seed=seed,
        )  # fmt: skip
    columns = {n: {k: [float(f"{v:.{DIGITS}g}") for v in r.documents[k]] for k in COLUMNS}
               for n, r in board.reports.items()}  # fmt: skip
    stability = [[s.by, s.share, round(s.kendall, 3)] for s in board.stability]
    return {"documents": columns, "stability": stability if seed == 0 and distance == "jsd" else []}


# --- what is concluded


def _power(board: Board) -> dict[str, dict[str, float]]:
    """By number of documents, how often the interval of a difference leaves out 0: of noise 0 and 25%, and of twins."""
    score = {n: np.asarray(board.reports[n].documents["perseval"]) for n in board.systems}
    rng, found = np.random.default_rng(0), {}
    pairs = {"noise 0% and 25%": ("noise 0%", "noise 25%"), "twins": ("noise 50%", TWIN)}
    for what, (a, b) in pairs.items():
        difference = score[a] - score[b]
        if what == "twins":
            difference = difference - difference.mean()  # equal by construction, not only on average
        found[what] = {}
        for size in SIZES:
            told = 0
            for _ in range(DRAWS):
                drawn = rng.choice(difference, size)
                means = rng.multinomial(size, np.full(size, 1 / size), RESAMPLES) @ drawn / size
                low, high = np.quantile(means, [0.025, 0.975])
                told += low > 0 or high < 0
            found[what][str(size)] = float(told / DRAWS)
    return found


def _rows(collection: str, boards: Sequence[Board]) -> list[list[str]]:
    return [
        [
            collection,
            name,
            _over(boards, name, "score"),
            f"{boards[0].reports[name].low:.3f} to {boards[0].reports[name].high:.3f}",
            _over(boards, name, "egises"),
            _over(boards, name, "distance"),
            f"{np.mean([b.ranks['accuracy'][name] for b in boards]):.1f}",
        ]
        for name in boards[0].systems
    ]


def _claims(
    boards: Mapping[str, Sequence[Board]],
    by: Mapping[str, Board],
    power: Mapping[str, Mapping[str, Mapping[str, float]]],
) -> list[Claim]:
    claims = []
    for name, found in boards.items():
        claims += _order(name, found)
    right = {d: _kendall(b) for d, b in by.items()}
    false = {name: [p["twins"][str(size)] for size in SIZES] for name, p in power.items()}
    seen = {name: [p["noise 0% and 25%"][str(size)] for size in SIZES] for name, p in power.items()}
    return [
        *claims,
        Claim(
            text=f"every distance puts the levels of noise in order, on {COMPARED} papers of the first seed",
            held=all(v == 1 for v in right.values()),
            found="Kendall's τ with the truth: " + ", ".join(f"{d} {v:.2f}" for d, v in right.items()),
        ),
        Claim(
            text=f"{SIZES[-1]} documents tell a quarter of noise from none in 80% of draws",
            held=all(v[-1] >= 0.8 for v in seen.values()),
            found="; ".join(f"{n}: {_by_size(v)}" for n, v in seen.items()),
        ),
        Claim(
            text=f"control: {SIZES[-1]} documents of two equal systems are told apart in at most 10% of draws",
            held=all(v[-1] <= 0.1 for v in false.values()),
            found="; ".join(f"{n}: {_by_size(v)}" for n, v in false.items()),
            control=True,
        ),
    ]


def _order(collection: str, boards: Sequence[Board]) -> list[Claim]:
    score = {n: np.array([b.reports[n].score for b in boards]) for n in boards[0].systems}
    levels = [f"noise {100 * p:.0f}%" for p in NOISE]
    steps = [float((score[a] > score[b]).mean()) for a, b in pairwise(levels)]
    ladder = [levels[0], levels[1], OTHER, SAME]
    places = [float((score[a] > score[b]).mean()) for a, b in pairwise(ladder)]
    words = {"degress": "DEGRESS", "score": "PerSEval"}
    kept = {k: [getattr(b.reports[OTHER], k) / getattr(b.reports[levels[0]], k) for b in boards] for k in words}
    return [
        Claim(
            text=f"{collection}: PerSEval falls with every level of noise, in every seed",
            held=min(steps) == 1,
            found=f"{'; '.join(f'{n} {score[n].mean():.3f}' for n in levels)}; in {min(steps):.0%} of the seeds",
        ),
        Claim(
            text=f"{collection}: readers' sentences > quarter of noise > another reader's > one for all, in every seed",
            held=min(places) == 1,
            found=f"{'; '.join(f'{n} {score[n].mean():.3f}' for n in ladder)}; in {min(places):.0%} of the seeds",
        ),
        Claim(
            text=f"control: on {collection} EGISES is fooled: another reader's summaries keep three quarters of "
            "DEGRESS (1 - EGISES) in every seed, and less than half of PerSEval",
            held=np.min(kept["degress"]) >= 0.75 and np.max(kept["score"]) < 0.5,
            found=f"{100 * np.min(kept['degress']):.0f}% of {words['degress']} at least, "
            f"{100 * np.max(kept['score']):.0f}% of {words['score']} at most",
            control=True,
        ),
    ]


def _kendall(board: Board) -> float:
    levels = [f"noise {100 * p:.0f}%" for p in NOISE]
    signs = [np.sign(board.reports[a].score - board.reports[b].score) for a, b in combinations(levels, 2)]
    return float(np.mean(signs))


def _over(boards: Sequence[Board], name: str, what: str) -> str:
    return f"{np.mean([getattr(b.reports[name], what) for b in boards]):.3f}"


def _by_size(shares: Sequence[float]) -> str:
    return ", ".join(f"{100 * v:.0f}% of {n}" for n, v in zip(SIZES, shares, strict=True))


def _setting(collections: Mapping[str, int], seeds: int, without: bool) -> str:
    said: dict[str, Any] = {
        "papers": "papers (ACLSum, three readers: challenge, approach, outcome; the sentences that each marked)",
        "opinions": "topics of opinions (Opinosis, four or five readers; the sentences nearest to what each wrote)",
    }
    parts = [f"{number} {said[name]}" for name, number in collections.items()]
    left = "; Opinosis is left out: --data names its folder" if without else ""
    return f"{'; '.join(parts)}; {seeds} draws of noise; intervals by {RESAMPLES:,} draws of documents{left}"
