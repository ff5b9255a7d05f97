"""Whether a network that gossips clicks learns to rank, whether similarity helps, and what attackers cost.

A simulated network (library, tastes and clicks are made up): nDCG@10 of the lists that are shown, for three models of
clicks, against what a server could do, gossip of popularity, a node's own clicks and chance. All arms share worlds,
queries and meetings: differences are paired by seed. Controls: with every node's similarity given to another the gain
goes; the paper's own model of clicks, the first place, teaches nothing about relevance.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from rankwise.bench import Recipe
from rankwise.bench.shared.evidence import Claim, Evidence
from rankwise.bench.shared.loopback import on_loopback
from rankwise.bench.shared.measured import Runs
from rankwise.events import OnEvent, counting, environment
from rankwise.files import write_json
from rankwise.parallel import fan_out
from rankwise.ranking import simulate
from rankwise.reading import read_json
from rankwise.report.plots.ranking import network_learning
from rankwise.report.plots.shared import save

RECIPE = Recipe(
    name="g-rank",
    part="network",
    about="G-Rank: a simulated network that gossips clicks, against servers and popularity, under attack",
    spreads=True,
    smoke={
        "NODES": 12,
        "SEARCHES": 16,
        "LONG": 16,
        "SHARES": (0.1, 0.5),
        "CUT": 3,
        "PILOT": 2,
        "REAL": 4,
        "REAL_SEARCHES": 4,
        "seeds": 2,
    },
    figures=(("nDCG@10 over searches, and by the share of attackers", "g_rank.png"),),
    remark="Clicks, tastes and libraries are simulated throughout: the figures say how the rules behave, not how "
    "people do. A server that counts clicks on its own lists shows the same ten items again and again; a network whose "
    "nodes show different lists finds more, from which a server that counted the network's clicks would gain too.",
)

NODES, SEARCHES, LONG = 100, 200, 2_000  # searches of each node; the paper has 100 of each
MODELS, MAIN = ("interest", "position", "first"), "position"  # of clicks
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5)  # of attackers in the network
CUT = 30  # nodes that go offline
PILOT = 4  # seeds that are not judged, for the power
DIGITS = 4  # of a node's nDCG, in points
REAL, REAL_SEARCHES = 20, 50  # peers on loopback, and searches of each
OURS, ISOLATED, RELEASED, SHUFFLED = "G-Rank", "F = 1", "released similarity", "similarity shuffled"
GOSSIPED, LOCAL, SERVER, TASTES = "popularity, gossiped", "own clicks alone", "popularity, a server", "tastes, a server"
CHANCE, GRADES = "chance", "grades, the best"
RANKERS: dict[str, dict[str, Any]] = {
    OURS: {},
    ISOLATED: {"isolation": 1.0},
    RELEASED: {"similarity": "released"},
    SHUFFLED: {"similarity": "shuffled"},
    GOSSIPED: {"similarity": "equal"},
    LOCAL: {"ranker": "local"},
    SERVER: {"ranker": "global"},
    TASTES: {"ranker": "tastes"},
    CHANCE: {"ranker": "random"},
    GRADES: {"ranker": "oracle"},
}
LATER = (OURS, ISOLATED, RELEASED, SHUFFLED, GOSSIPED, SERVER)  # in the long run
ATTACKED = (ISOLATED, RELEASED, GOSSIPED)  # beside ours, at the first share
KINDS = ("inflation", "targeted")
PUSH, DEAF, OFFLINE, EPIC, CAP = "push", "half hear nothing", "cut off", "epic sybil", 3
Curves = dict[str, tuple[list[float], list[float]]]
Found = Mapping[str, Sequence[Mapping[str, Any]]]  # by arm, a summary a seed


class Difference(NamedTuple):
    """Mean difference by seed with its 95% interval, in points."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


def measure(out: Path, *, seeds: int = 10, on_event: OnEvent | None = None) -> Runs:
    """Every arm for every seed (what is in ``out`` already is read back): every node's nDCG, and what else is told."""
    note = on_event or (lambda *_: None)
    out.mkdir(parents=True, exist_ok=True)
    everything = arms()
    pilot = _runs(out, {a: everything[a] for a in _pilot()}, range(1000, 1000 + PILOT), note)
    found = _runs(out, everything, range(seeds), note)
    save(network_learning(*_curves(_summed(found))), out / "g_rank.png")
    runs = {f"pilot, {arm}": runs for arm, runs in pilot.items()} | found
    kept = {arm: [{k: v for k, v in run.items() if k != "curve"} for run in runs] for arm, runs in runs.items()}
    return {"real": _real(out), **kept}


def judge(found: Runs, *, seeds: int) -> Evidence:
    """The arms compared, paired by seed."""
    summaries = _summed({arm: runs for arm, runs in found.items() if arm != "real"})
    pilot, shown = ([n for n in summaries if n.startswith("pilot, ") == first] for first in (True, False))
    power = {b.removeprefix("pilot, "): _power(_of(summaries, a), _of(summaries, b), seeds) for a, b in pairwise(pilot)}
    runs = {arm: summaries[arm] for arm in shown}
    return Evidence(
        recipe="g-rank",
        title="G-Rank: search among peers (simulated)",
        command=f"rankwise bench g-rank --seeds {seeds}",
        setting=f"{NODES} simulated nodes, {SEARCHES} searches each ({LONG:,} in the long run), 253 made-up items, 39 "
        f"terms, 4 tastes, swaps at 10%, {seeds} seeds; nDCG@10 of the lists shown in the second half; 95% intervals "
        f"of differences paired by seed. Power, from {PILOT} other seeds: a difference is seen (80%) from "
        + ", ".join(f"{p:.1f} points ({a.partition(': ')[2]})" for a, p in power.items()),
        header=["clicks", "what", "nDCG@10", "against G-Rank", "these clicks counted", "distance", "led by attackers"],
        rows=_rows(runs),
        claims=[*_claims(runs), _same_lists(found["real"])],
        environment=environment("fp64", 1),
        extra={"nDCG@10 by seed": {arm: [round(run["late"], 2) for run in of] for arm, of in runs.items()}},
    )


# --- what is run


def arms() -> dict[str, dict[str, Any]]:
    """Options of `simulate` by arm; its name begins with the model of clicks."""
    made = {f"{model}: {name}": {"click": model, **how} for model in MODELS for name, how in RANKERS.items()}
    main: dict[str, dict[str, Any]] = {
        PUSH: {"gossip": "push"},
        DEAF: {"accepting": 0.5, "asked": False},
        OFFLINE: {"offline": CUT},
        EPIC: {"attack": "epic"},
    }
    first = _attackers(SHARES[0])
    for kind in KINDS:
        main |= {f"{kind} {share:.0%}": {"attack": kind, "attackers": _attackers(share)} for share in SHARES}
        main |= {f"{kind} {SHARES[0]:.0%}, {name}": {"attack": kind, "attackers": first, **RANKERS[name]}
                 for name in ATTACKED}  # fmt: skip
        main[f"{kind} {SHARES[-1]:.0%}, cap {CAP}"] = {"attack": kind, "attackers": _attackers(SHARES[-1]), "cap": CAP}
    main[f"targeted {SHARES[0]:.0%}, {PUSH}"] = {"attack": "targeted", "attackers": first, "gossip": "push"}
    made |= {f"{MAIN}: {name}": {"click": MAIN, **how} for name, how in main.items()}
    return made | {f"{MAIN}, long: {n}": {"click": MAIN, "searches": LONG, **RANKERS[n]} for n in LATER}


def _attackers(share: float) -> int:
    return round(NODES * share / (1 - share))


def _pilot() -> list[str]:
    return [f"{MAIN}: {name}" for name in (SHUFFLED, OURS, GOSSIPED)]


def _runs(out: Path, asked: Mapping[str, dict[str, Any]], seeds: range, note: OnEvent) -> dict[str, list[Any]]:
    todo = [(name, seed, {"nodes": NODES, "searches": SEARCHES, **how, "seed": seed})
            for name, how in asked.items() for seed in seeds]  # fmt: skip
    kept = {(name, seed): out / f"{re.sub(r'[^a-z0-9]+', '_', name.lower())}.{seed}.json" for name, seed, _ in todo}
    missing = [item for item in todo if not kept[item[:2]].exists()]
    told = counting(note, "networks", len(missing))

    def keep(at: int, result: dict[str, Any]) -> None:
        write_json(kept[missing[at][:2]], result)
        told(at, result)

    fan_out(_measured, missing, on_done=keep)
    return {name: [read_json(kept[name, seed]) for seed in seeds] for name in asked}


def _measured(asked: tuple[str, int, dict[str, Any]]) -> dict[str, Any]:
    """What is kept of one run; nDCG in points."""
    options = asked[2]
    every = max(1, options["searches"] // 40)
    s = simulate(**options, every=every)
    late, half = 100 * s.late("ndcg"), len(s.rounds) // 2
    last = 100 * s.ndcg[:, -CUT:].mean(1)
    return {
        "late": [float(f"{v:.{DIGITS}g}") for v in late],
        "hears": "".join("1" if heard else "0" for heard in s.hears),
        "counted": float(100 * s.late("counted").mean()),
        "tastes": float(100 * s.late("of_taste").mean()),
        "early": float(100 * s.ndcg[: max(1, len(s.rounds) // 4)].mean()),
        "distance": float(s.late("distance").mean()),
        "led": float(100 * s.late("led").mean()),
        "holding": float(100 * s.holding[-1]),
        "reached": float(100 * s.reached[half:].mean()),
        "last": {"before": float(last[max(0, half - 3) : half].mean()), "after": float(last[half:].mean())},
        "curve": [s.rounds.tolist(), (100 * s.ndcg.mean(1)).round(2).tolist()],
    }


def summed(run: Mapping[str, Any]) -> dict[str, Any]:
    """A run with means over its nodes, over those that hear of others' clicks, and over those that do not."""
    late, hears = np.array(run["late"]), np.array([c == "1" for c in run["hears"]])
    apart = {"hearing": late[hears], "deaf": late[~hears]}
    means = {name: float(values.mean()) if len(values) else None for name, values in apart.items()}
    return {**run, "late": float(late.mean()), **means}


def _summed(found: Found) -> dict[str, list[dict[str, Any]]]:
    return {arm: [summed(run) for run in runs] for arm, runs in found.items()}


def _real(out: Path) -> str:
    """Real peers, told the draws of a simulated network: of every list whether it is the simulation's."""
    kept = out / f"real_{REAL}_{REAL_SEARCHES}.json"
    if not kept.exists():
        options: dict[str, Any] = {"nodes": REAL, "searches": REAL_SEARCHES, "seed": 0, "click": MAIN}
        simulated = simulate(**options, swap=0.0, keep=True).lists
        with tempfile.TemporaryDirectory() as folder:
            real = on_loopback(Path(folder), **options)
        same = (real == simulated).all(-1)
        write_json(kept, {"same": "".join("1" if alike else "0" for alike in same.ravel())})
    return read_json(kept)["same"]


# --- what is concluded


def _same_lists(same: str) -> Claim:
    return Claim(
        text=f"{REAL} real peers on loopback (signed clicks over UDP, logs in files), told the same draws, show the "
        "simulation's lists, every place of every one",
        held="0" not in same,
        found=f"{same.count('1'):,} of {len(same):,} lists",
    )


def _difference(a: Sequence[float], b: Sequence[float]) -> Difference:
    d = np.subtract(a, b)
    wide = float(stats.t.ppf(0.975, len(d) - 1) * d.std(ddof=1) / math.sqrt(len(d))) if len(d) > 1 else math.inf
    return Difference(float(d.mean()), float(d.mean()) - wide, float(d.mean()) + wide)


def _power(a: Sequence[float], b: Sequence[float], seeds: int) -> float:
    """The difference that so many seeds show in 80% of cases, given the spread of some."""
    if seeds < 2:
        return math.inf
    reach = stats.t.ppf(0.975, seeds - 1) + stats.t.ppf(0.8, seeds - 1)
    return float(reach * np.std(np.subtract(a, b), ddof=1) / math.sqrt(seeds))


def _of(found: Found, arm: str, what: str = "late") -> list[float]:
    return [run[what] for run in found[arm]]


def _gain(found: Found, arm: str, than: str, what: str = "late") -> Difference:
    return _difference(_of(found, arm, what), _of(found, than, what))


def _claims(found: Found) -> list[Claim]:
    return [*_learning(found), *_gossip(found), *_attacks(found)]


def _learning(found: Found) -> list[Claim]:
    claims, others = [], (GOSSIPED, SERVER, TASTES, LOCAL, CHANCE)
    for model in MODELS[:2]:
        gains = {name: _gain(found, f"{model}: {OURS}", f"{model}: {name}") for name in others}
        claims.append(
            Claim(
                text=f"clicks by {model}: better lists than by popularity, gossiped or at a server, at a server that "
                "knows tastes, by own clicks alone and by chance (95 % intervals)",
                held=all(g.low > 0 for g in gains.values()),
                found="; ".join(f"{n} {g}" for n, g in gains.items()),
            )
        )
    ours = f"{MAIN}: {OURS}"
    same = {what: _difference(_of(found, ours), _of(found, ours, what)) for what in ("counted", "tastes")}
    shuffled = {m: _gain(found, f"{m}: {OURS}", f"{m}: {SHUFFLED}") for m in MODELS[:2]}
    blind = _gain(found, f"{MODELS[2]}: {OURS}", f"{MODELS[2]}: {CHANCE}")
    later = {n: _gain(found, f"{MAIN}, long: {OURS}", f"{MAIN}, long: {n}") for n in LATER[1:]}
    isolated = _gain(found, f"{MAIN}: {OURS}", f"{MAIN}: {ISOLATED}")
    return [
        *claims,
        Claim(
            text="without a server as good as one that counts all clicks of the same network at once, less a point "
            "(95 % interval)",
            held=same["counted"].low > -1,
            found=f"{same['counted']}; against one that knows tastes too {same['tastes']}",
        ),
        Claim(
            text="control: with every node's similarity given to another, nDCG falls (95 % interval)",
            held=all(g.low > 0 for g in shuffled.values()),
            found="G-Rank is ahead by " + ", ".join(f"{g} ({m})" for m, g in shuffled.items()),
            control=True,
        ),
        Claim(
            text="control: where the first place is always clicked (the paper's model), nothing is learned: nDCG is "
            "within 3 points of chance, or below",
            held=blind.mean <= 3,
            found=f"{blind} points against chance",
            control=True,
        ),
        Claim(
            text=f"after {LONG:,} searches each, similarity still helps: better than shuffled, and than popularity "
            "(95 % intervals)",
            held=later[SHUFFLED].low > 0 and later[GOSSIPED].low > 0,
            found="; ".join(f"{n} {g}" for n, g in later.items()),
        ),
        Claim(
            text="the isolation constant has an effect: F = 0 is better than F = 1 (95 % interval)",
            held=isolated.low > 0,
            found=f"{isolated}; in the long run {later[ISOLATED]}",
        ),
    ]


def _gossip(found: Found) -> list[Claim]:
    ours, spam = f"{MAIN}: {OURS}", f"{MAIN}: targeted {SHARES[0]:.0%}"
    faster, poisoned = _gain(found, f"{MAIN}: {PUSH}", ours, "early"), _gain(found, f"{spam}, {PUSH}", spam, "reached")
    deaf = _difference(_of(found, f"{MAIN}: {DEAF}", "deaf"), _of(found, f"{MAIN}: {LOCAL}"))
    hearing = _difference(_of(found, f"{MAIN}: {DEAF}", "hearing"), _of(found, ours))
    cut = [run["last"] for run in found[f"{MAIN}: {OFFLINE}"]]
    online = [run["last"]["after"] for run in found[ours]]
    since = _difference([c["after"] for c in cut], [c["before"] for c in cut])
    lost = [1 - c["after"] / o for c, o in zip(cut, online, strict=True)]
    return [
        Claim(
            text="push converges faster than pull (nDCG over the first quarter, 95 % interval)",
            held=faster.low > 0,
            found=f"{faster} points",
        ),
        Claim(
            text="push is poisoned faster than pull (nodes that heard of the attack, mean over the rounds since, "
            "95 % interval)",
            held=poisoned.low > 0,
            found=f"{poisoned} points more of the nodes; pull {np.mean(_of(found, spam, 'reached')):.0f}%",
        ),
        Claim(
            text="nodes that are cut off after half go on improving (95 % interval), and lose at most a tenth of what "
            "they would have, in every seed",
            held=since.low > 0 and np.max(lost) <= 0.1,
            found=f"{since} points since; {100 * np.mean(lost):.1f}% lost, at most {100 * max(lost):.1f}%",
        ),
        Claim(
            text="where half of the nodes hear nothing, as in the released code, these stay at what own clicks give (3 "
            "points), and hold back the others by less than 3",
            held=abs(deaf.mean) <= 3 and hearing.mean > -3,
            found=f"those {deaf} against own clicks alone; the others {hearing} against a network where all hear",
        ),
    ]


def _attacks(found: Found) -> list[Claim]:
    ours, first = f"{MAIN}: {OURS}", f"{SHARES[0]:.0%}"
    cost = {k: [_gain(found, f"{MAIN}: {k} {share:.0%}", ours) for share in SHARES] for k in KINDS}
    falls = all(b.mean < a.mean < 0 for costs in cost.values() for a, b in pairwise(costs))
    worse = _gain(found, f"{MAIN}: targeted {first}", f"{MAIN}: inflation {first}")
    led = _gain(found, f"{MAIN}: targeted {first}", f"{MAIN}: targeted {first}, {GOSSIPED}", "led")
    ways = {OURS: f"{MAIN}: inflation {first}", **{n: f"{MAIN}: inflation {first}, {n}" for n in ATTACKED}}
    lost = {n: np.subtract(_of(found, arm), _of(found, f"{MAIN}: {n}")).tolist() for n, arm in ways.items()}
    holding = _of(found, f"{MAIN}: {EPIC}", "holding")
    return [
        Claim(
            text="the more attackers, the lower nDCG, for both attacks, and at the largest share by the 95 % interval",
            held=falls and all(costs[-1].high < 0 for costs in cost.values()),
            found="; ".join(
                f"{k}: " + ", ".join(f"{c.mean:+.1f} at {s:.0%}" for s, c in zip(SHARES, costs, strict=True))
                for k, costs in cost.items()
            ),
        ),
        Claim(
            text=f"as published, targeted sybils ({first} of the network) harm more than clicklog inflation "
            "(95 % interval)",
            held=worse.high < 0,
            found=f"targeted {cost['targeted'][0]}, inflation {cost['inflation'][0]}; difference {worse}",
        ),
        Claim(
            text="similarity keeps what targeted sybils push from the first place more than gossip of popularity does "
            "(95 % interval)",
            held=led.high < 0,
            found=f"{led} points of the lists; led with G-Rank: "
            f"{np.mean(_of(found, f'{MAIN}: targeted {first}', 'led')):.2f}%",
        ),
        Claim(
            text=f"clicklog inflation ({first}) costs at most half a point more than with gossip of popularity, "
            "in the mean",
            held=_difference(lost[OURS], lost[GOSSIPED]).mean >= -0.5,
            found="; ".join(f"{n} {_difference(values, [0.0] * len(values))}" for n, values in lost.items()),
        ),
        Claim(
            text="under an epic sybil (three attackers a node) not all nodes hold the most popular item (median)",
            held=np.max(holding) < 100,
            found=f"{np.mean(holding):.0f}%, at most {max(holding):.0f}%; without attack "
            f"{np.mean(_of(found, ours, 'holding')):.0f}%; nDCG {_gain(found, f'{MAIN}: {EPIC}', ours)}",
        ),
    ]


def _rows(found: Found) -> list[list[str]]:
    rows = []
    for arm in found:
        model, _, name = arm.partition(": ")
        ours = f"{model}: {OURS}"
        values = _of(found, arm)
        rows.append(
            [
                model,
                name,
                f"{np.mean(values):.1f}±{np.std(values, ddof=1) if len(values) > 1 else 0:.1f}",
                "" if name == OURS else str(_gain(found, arm, ours)),
                f"{np.mean(_of(found, arm, 'counted')):.1f}",
                f"{np.mean(_of(found, arm, 'distance')):.1f}",
                f"{np.mean(_of(found, arm, 'led')):.1f}%" if any(_of(found, arm, "led")) else "",
            ]
        )
    return rows


def _curves(found: Found) -> tuple[Curves, Curves]:
    """Mean nDCG over searches by ranker, and by share of attackers."""
    shown = (OURS, SHUFFLED, GOSSIPED, SERVER, TASTES, LOCAL, CHANCE)
    over = {n: found[f"{MAIN}: {n}"] for n in shown}
    learned = {n: (r[0]["curve"][0], np.mean([x["curve"][1] for x in r], 0).tolist()) for n, r in over.items()}
    shares = [0.0, *SHARES]
    base = float(np.mean(_of(found, f"{MAIN}: {OURS}")))
    harmed = {
        k: ([100 * s for s in shares], [base, *[float(np.mean(_of(found, f"{MAIN}: {k} {s:.0%}"))) for s in SHARES]])
        for k in KINDS
    }
    return learned, harmed
