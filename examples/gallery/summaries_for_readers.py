"""Which summariser follows its readers? Papers, three readers each by aspect: accuracy alone cannot tell."""

from pathlib import Path

from rankwise.data.personal import aclsum
from rankwise.ranking import leaderboard
from rankwise.report.plots.ranking import personalisation
from rankwise.report.plots.shared import save

papers = [p for p in aclsum()[:120] if all(p.marked.values())]
wanted = {p.id: {reader: " ".join(p.sentences[i] for i in p.marked[reader]) for reader in p.wrote} for p in papers}
other = {"challenge": "approach", "approach": "outcome", "outcome": "challenge"}
systems = {
    "marked by the reader": wanted,
    "half of it": {d: {r: t[: len(t) // 2] for r, t in own.items()} for d, own in wanted.items()},
    "marked by another": {d: {r: own[other[r]] for r in own} for d, own in wanted.items()},
    "all marked sentences": {d: dict.fromkeys(own, " ".join(own.values())) for d, own in wanted.items()},
    "the abstract's first": {p.id: dict.fromkeys(p.wrote, " ".join(p.sentences[:3])) for p in papers},
}
board = leaderboard({p.id: " ".join(p.sentences) for p in papers}, {p.id: p.wrote for p in papers}, systems)
reports = {name: board.reports[name] for name in board.systems}
scores = {name: (r.score, r.low, r.high) for name, r in reports.items()}
save(personalisation(scores, {n: r.distance for n, r in reports.items()}), Path("summaries_for_readers.png"))
