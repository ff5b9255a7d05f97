"""O3's detectors: all layers together tell a request's texts from others better than one layer, or a classifier.

Each of CLINC150's ten domains in turn is the request: a detector sees a hundred of its queries and nothing else, and is
judged by AUROC on unseen queries of the domain against those of the nine others and against queries out of every
domain's scope. Beside it Mahalanobis distance, nearest neighbours and cosine in the last layer, and a classifier of
the request's own intents by energy and by its largest probability. The control is a detector of queries drawn from all
domains, which has nothing to tell.

What a request must be like TOFU shows: a dozen questions about one author, as many about ten, and most about ten, each
detector judged on unseen questions about the same authors against others'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp, softmax

from rankwise.bench import Recipe
from rankwise.bench.shared.evidence import Claim, Evidence, plus_minus
from rankwise.bench.shared.measured import Runs
from rankwise.bench.shared.requests import ATTRIBUTES, NAMES, QUESTIONS, folder_of, tofu_tasks
from rankwise.continual.unlearning.detector import Detector, statistics
from rankwise.continual.unlearning.features import LayerEncoder
from rankwise.continual.unlearning.views import tuned
from rankwise.events import OnEvent, environment
from rankwise.reading import read_json

RECIPE = Recipe(
    name="o3",
    part="detectors",
    about="O3's detectors on CLINC150: AUROC against Mahalanobis, neighbours, energy",
    smoke={"DATA": "made-up", "TUNED": 2, "TUNED_DOMAINS": 1, "seeds": 1},
)

DATA = "clinc150"
FITTED, JUDGED, BEYOND = 100, 50, 200  # queries of a domain, and out of scope
TUNED, TUNED_RATE, TUNED_DOMAINS = 100, 1e-4, 3  # steps of tuning the encoder; on the first domains alone
NEIGHBOUR = 5
FEW, MOST, STRANGERS = 12, 14, 300  # questions of a request about authors; of each of ten; and of others' authors
ONE, TEN, WHOLE = f"{FEW} about one author", f"{FEW} about ten", f"{MOST} about each of ten"
AUTHORS = "TOFU's questions"
OURS, RELEASED = "all layers, standardised", "all layers, released"
CONTROL = "control: of all domains"
Queries = dict[str, tuple[list[tuple[str, str]], list[tuple[str, str]]]]


def measure(out: Path, *, data: Path | None = None, seeds: int = 5, on_event: OnEvent | None = None) -> Runs:
    """Of every score, domain and draw: how many of the others each of the domain's queries is above."""
    note, encoder = on_event or (lambda *_: None), LayerEncoder()
    found: Runs = {}
    for seed in range(seeds):
        queries, outside = _queries(data, seed)
        states = {d: [encoder([t for t, _ in part])[0] for part in parts] for d, parts in queries.items()}
        scope = encoder(outside)[0]
        if data is not None and (data / "tofu").is_dir():  # rows of their own, where TOFU lies beside CLINC150
            found[f"{AUTHORS}, draw {seed}"] = _authors(encoder, data, seed)
        mixed = np.concatenate([fit for fit, _ in states.values()])
        mixed = mixed[np.random.default_rng(seed).permutation(len(mixed))[:FITTED]]
        for at, (domain, (fit, own)) in enumerate(states.items()):
            note(f"{domain} seed={seed}", "evaluate", at, len(states), float("nan"))
            labels = [y for _, y in queries[domain][0]]
            others = np.concatenate([held for d, (_, held) in states.items() if d != domain])
            scores = {**_scores(fit, labels, seed), CONTROL: _detector(mixed, "standardised", seed)}
            found[f"{domain}, draw {seed}"] = run = {
                "others": len(others), "beyond": len(scope),
                "above": {n: [above(s(own), s(others)), above(s(own), s(scope))] for n, s in scores.items()},
            }  # fmt: skip
            if at < TUNED_DOMAINS:
                run["tuned"] = _tuned(encoder, queries, domain, seed)
    return found


def judge(found: Runs, *, seeds: int) -> Evidence:
    """AUROC of every score, over domains and draws."""
    runs = [run for name, run in found.items() if not name.startswith(AUTHORS)]
    asked = [run for name, run in found.items() if name.startswith(AUTHORS)]
    authors = {n: [area(r["above"][n], r["others"]) for r in asked] for n in (ONE, TEN, WHOLE)} if asked else {}
    names, domains = list(runs[0]["above"]), len(runs) // seeds
    near = {n: [area(r["above"][n][0], r["others"]) for r in runs] for n in names}
    beyond = {n: [area(r["above"][n][1], r["beyond"]) for r in runs] for n in names}
    encoded = [area(r["tuned"], r["others"]) - a for r, a in zip(runs, near[OURS], strict=True) if "tuned" in r]
    return Evidence(
        recipe="o3_detectors",
        title="O3's detectors: a request's texts told from others",
        command=f"rankwise bench o3 --part detectors --data FOLDER --seeds {seeds}",
        setting=f"{domains} domains, each the request once, {FITTED} queries fit, {JUDGED} of each domain judge; "
        f"{seeds} draws; MiniLM; ± over domains and draws. Tuning the encoder by the entropy of views ({TUNED} steps, "
        f"on {TUNED_DOMAINS} domains) changes AUROC by {plus_minus(encoded)} points",
        header=["score", "AUROC, other domains", "AUROC, out of scope"],
        rows=[[n, plus_minus(near[n], 1, 3), plus_minus(beyond[n], 1, 3)]
              for n in sorted(names, key=lambda n: -np.mean(near[n]))]
        + [[f"{OURS}; {AUTHORS}, {n}", plus_minus(v, 1, 3), "-"] for n, v in authors.items()],
        claims=_claims(near, seeds) + _author_claims(authors),
        environment=environment("fp32", 1),
    )  # fmt: skip


def above(own: NDArray, others: NDArray) -> list[float]:
    """Of each score, how many of the others are below it, ties half."""
    ordered = np.sort(others)
    return ((np.searchsorted(ordered, own, "left") + np.searchsorted(ordered, own, "right")) / 2).tolist()


def area(counts: Sequence[float], others: int) -> float:
    """AUROC of scores that are each above so many of the others."""
    return float(np.mean(counts)) / others


Score = Callable[[NDArray], NDArray]


def _detector(fit: NDArray, score: Any, seed: int) -> Score:
    found = Detector.fit(fit, score=score, seed=seed)
    return lambda h: (
        found.calibration.likeness(found.scores(h), two_sided=True) if score == "released" else found.scores(h)
    )


def _scores(fit: NDArray, labels: list[str], seed: int) -> dict[str, Score]:
    """Every score by name, higher for what is like the request; all see the same texts."""
    from sklearn.linear_model import LogisticRegression

    known, last = statistics(fit[:, -1:]), fit[:, -1] / np.linalg.norm(fit[:, -1], axis=1, keepdims=True)
    net = LogisticRegression(C=10, max_iter=1000).fit(last, labels)

    def cosines(h: NDArray) -> NDArray:
        return np.sort(h[:, -1] / np.linalg.norm(h[:, -1], axis=1, keepdims=True) @ last.T, 1)

    def logits(h: NDArray) -> NDArray:
        z = net.decision_function(h[:, -1] / np.linalg.norm(h[:, -1], axis=1, keepdims=True))
        return z if z.ndim == 2 else np.stack([-z / 2, z / 2], 1)

    return {
        OURS: _detector(fit, "standardised", seed),
        RELEASED: _detector(fit, "released", seed),
        "Mahalanobis, last layer": lambda h: -known.mahalanobis(h[:, -1:])[:, 0],
        f"neighbour {NEIGHBOUR}, last layer": lambda h: cosines(h)[:, -NEIGHBOUR],
        "largest cosine, last layer": lambda h: cosines(h)[:, -1],
        "energy of a classifier": lambda h: np.asarray(logsumexp(logits(h), 1)),
        "largest probability": lambda h: np.asarray(softmax(logits(h), 1)).max(1),
    }


def _tuned(encoder: LayerEncoder, queries: Queries, domain: str, seed: int) -> list[float]:
    """`above` of our score with an encoder that was tuned on the request."""
    fit = [t for t, _ in queries[domain][0]]
    block = tuned(encoder, fit, steps=TUNED, learning_rate=TUNED_RATE, seed=seed)
    score = _detector(encoder(fit, block)[0], "standardised", seed)
    own = encoder([t for t, _ in queries[domain][1]], block)[0]
    others = [t for d, (_, held) in queries.items() if d != domain for t, _ in held]
    return above(score(own), score(encoder(others, block)[0]))


def _authors(encoder: LayerEncoder, data: Path, seed: int) -> dict[str, Any]:
    """How many of others' questions each unseen one is above, for requests about one author and about ten."""
    rng = np.random.default_rng(seed)
    tasks, rest = tofu_tasks(folder_of(data, "tofu"))
    task = [row.prompt for row in tasks[list(tasks)[seed % len(tasks)]]]
    about = [[task[QUESTIONS * a + i] for i in rng.permutation(QUESTIONS)] for a in range(len(task) // QUESTIONS)]
    strangers = [row.prompt for row in rest if row.prompt not in set(task)]
    others = encoder([strangers[i] for i in rng.permutation(len(strangers))[:STRANGERS]])[0]
    mixed = [task[i] for i in rng.permutation(len(task))]
    one = about[int(rng.integers(len(about)))]
    requests = {
        ONE: (one[:FEW], one[FEW:]),
        TEN: (mixed[:FEW], mixed[FEW:]),
        WHOLE: ([q for own in about for q in own[:MOST]], [q for own in about for q in own[MOST:]]),
    }
    found = {}
    for name, (fit, held) in requests.items():
        score = _detector(encoder(fit)[0], "standardised", seed)
        found[name] = above(score(encoder(held)[0]), score(others))
    return {"others": len(others), "above": found}


def _queries(data: Path | None, seed: int) -> tuple[Queries, list[str]]:
    """Queries and intents that fit and that judge, by domain; and queries out of scope."""
    rng = np.random.default_rng(seed)
    if data is None and DATA == "made-up":
        made: Queries = {}
        for kind, (question, answers) in ATTRIBUTES.items():
            rows = [(question.format(n), answers[i % 2]) for i, n in enumerate(rng.permutation(NAMES))]
            made[kind] = rows[:16], rows[16:]
        return made, [f"Tell {n} about the weather." for n in NAMES]
    folder = folder_of(data, "clinc150")
    of, rows = read_json(folder / "domains.json"), read_json(folder / "data_full.json")
    drawn: Queries = {}
    for domain, intents in of.items():
        parts = [[(t, i) for t, i in rows[split] if i in intents] for split in ("train", "test")]
        fit, held = (
            [part[k] for k in rng.permutation(len(part))[:n]] for part, n in zip(parts, (FITTED, JUDGED), strict=True)
        )
        drawn[domain] = fit, held
    return drawn, [t for t, _ in rows["oos_test"]][:BEYOND]


def _author_claims(found: dict[str, list[float]]) -> list[Claim]:
    if not found:
        return []
    seen = "; ".join(f"{n}: {plus_minus(v, 1, 3)}" for n, v in found.items())
    return [
        Claim(text=f"{FEW} questions about one author are enough: AUROC at least 0.95 against others' authors",
              held=bool(np.mean(found[ONE]) >= 0.95), found=seen),
        Claim(text=f"{FEW} about ten authors are not: less than about one in every draw",
              held=all(a > b for a, b in zip(found[ONE], found[TEN], strict=True)), found=seen),
    ]  # fmt: skip


def _claims(found: dict[str, list[float]], draws: int) -> list[Claim]:
    """Paired by domain, draws averaged; ahead by more than two standard errors."""
    ours, out = np.array(found[OURS]), []
    for name, values in found.items():
        if name not in (OURS, CONTROL):
            d = (ours - np.array(values)).reshape(draws, -1).mean(0)  # draws of one domain are not independent
            error = float(d.std(ddof=1) / len(d) ** 0.5) if len(d) > 1 else float("nan")
            out.append(
                Claim(
                    text=f"its AUROC is above that of '{name}' by more than two standard errors over domains",
                    held=d.mean() > 2 * error,
                    found=f"{100 * d.mean():+.2f}±{100 * error:.2f} points",
                )
            )
    nothing = np.array(found[CONTROL])
    out.append(Claim(text="control: a detector of all domains tells nothing (AUROC from 0.4 to 0.6 on average)",
                     held=0.4 <= nothing.mean() <= 0.6, found=plus_minus(nothing, 1, 3), control=True))  # fmt: skip
    told = "a request's texts are told from other domains': AUROC at least 0.95"
    out.append(Claim(text=told, held=ours.mean() >= 0.95, found=plus_minus(ours, 1, 3)))
    return out
