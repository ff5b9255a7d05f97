"""Can a network without a server learn to rank from clicks, and what do attackers cost it? Simulated."""

from pathlib import Path

from rankwise.ranking import simulate
from rankwise.report.plots.ranking import network_learning
from rankwise.report.plots.shared import save

size = {"nodes": 100, "searches": 200, "click": "position", "every": 10}
rankings = {
    "G-Rank": {},
    "popularity, gossiped": {"similarity": "equal"},
    "popularity, a server": {"ranker": "global"},
    "own clicks alone": {"ranker": "local"},
    "chance": {"ranker": "random"},
}
runs = {name: simulate(**size, **how) for name, how in rankings.items()}
curves = {name: (run.rounds.tolist(), (100 * run.ndcg.mean(1)).tolist()) for name, run in runs.items()}
number = {0: 0, 10: 11, 20: 25, 30: 43, 40: 67, 50: 100}  # attackers beside 100 nodes, by their share in %
attacked = {
    kind: (
        list(number),
        [100 * simulate(**size, attack=kind, attackers=n).late("ndcg").mean() for n in number.values()],
    )
    for kind in ("inflation", "targeted")
}
save(network_learning(curves, attacked), Path("search_among_peers.png"))
