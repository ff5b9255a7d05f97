"""A ranker from a click log: fitted, judged on held-out queries, and said in words what debiasing changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.stats import kendalltau, rankdata

from rankwise.data.clicks import ClickLog, Judged, named, read_click_log, read_judged, table_number
from rankwise.data.tables import READERS, number, read_table, write_rows
from rankwise.files import whole_folder, write_json
from rankwise.jobs.early import RANK, check_documents, check_evaluation, check_ranking, check_ranking_run, there
from rankwise.ranking.bootstrap import interval
from rankwise.ranking.click_ranker import ClickRanker, NaiveRanker
from rankwise.ranking.click_saved import load_ranker, write_ranker
from rankwise.ranking.debiasing import PropensityCurve, propensity_curve
from rankwise.ranking.dla import DualLearningRanker
from rankwise.ranking.lists import ClickLists, lists_of
from rankwise.ranking.ranking_metrics import RankingReport, place_log_likelihood, ranking_report
from rankwise.reading import read_text

Array = NDArray[np.float64]
HIDDEN = (64, 32)
RATES = {"dnn": 0.002, "linear": 0.01}  # of learning; far larger ones learn some hundred queries by heart
CONFOUNDED = 0.3  # mean rank correlation of a list's order with the learned scores


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What a log taught.

    Attributes
    ----------
    ranker : ClickRanker
        Dual learning's.
    curve : PropensityCurve
        By position.
    likelihood : dict
        By model, the held-out log-likelihood of where a click falls: mean, low, high.
    change, noise : float
        1 - Kendall's τ of held-out orders: with and without debiasing; and between two seeds of the same.
    excess : tuple of float
        95% interval over queries of change less noise.
    agreement : float
        Mean rank correlation of the order shown with the learned scores.
    counts : dict
        Lists, queries, documents, clicks, lists without one, rows cut, documents that stood at one place alone.
    notes : list of str
        What to be wary of.
    """

    ranker: ClickRanker
    curve: PropensityCurve
    likelihood: dict[str, tuple[float, float, float]]
    change: float
    noise: float
    excess: tuple[float, float]
    agreement: float
    counts: dict[str, int]
    notes: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """In words."""
        said = f"(1 - Kendall's τ: {self.change:.3f} against {self.noise:.3f} between seeds"
        if np.isnan(self.excess[0]):
            return f"One held-out query cannot tell whether debiasing changed the ranking {said})."
        said += f", difference {self.excess[0]:+.3f} to {self.excess[1]:+.3f})"
        if self.excess[0] > 0:
            return f"Debiasing changed the ranking by more than its noise {said}."
        return f"Debiasing did not change the ranking by more than its noise {said}."

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        curve = {k: getattr(self.curve, k).tolist() for k in ("propensity", "low", "high")}
        return {
            "verdict": self.verdict, "propensity": curve,
            "likelihood": {k: dict(zip(("mean", "low", "high"), v, strict=True)) for k, v in self.likelihood.items()},
            "change": self.change, "noise": self.noise, "excess": list(self.excess), "agreement": self.agreement,
            "counts": self.counts, "notes": self.notes,
        }  # fmt: skip


def fit_log(
    path: Path,
    out: Path,
    *,
    features: Path | None = None,
    ranker: str = "dnn",
    hidden: tuple[int, ...] | None = None,
    list_size: int = 10,
    steps: int = 1000,
    learning_rate: float | None = None,
    max_weight: float = 100.0,
    held_out: float = 0.2,
    resamples: int = 1000,
    seed: int = 0,
    page: Callable[[Learned, Path], None] | None = None,
) -> Learned:
    """Fit dual learning and the naive ranker twice each, judge on held-out queries, and write ``out``.

    Parameters
    ----------
    path : Path
        The log.
    out : Path
        ``ranker.json``, ``ranker.safetensors``, ``propensity.csv`` and ``results.json``.
    features : Path, optional
        A file of judged documents with the features; further columns of the log by default.
    ranker : {"dnn", "linear"}
        As of `rankwise.ranking.DualLearningRanker`, like the next but for their defaults.
    hidden : tuple of int, optional
        Units of each hidden layer of ``dnn``; 64, 32 by default.
    list_size, steps : int
        Positions that are learned from; of training.
    learning_rate : float, optional
        Of the ranker; 0.002 for ``dnn`` and 0.01 for ``linear`` by default.
    max_weight : float
        Where weights of clicks are cut.
    held_out : float
        Share of the queries that only judge.
    resamples, seed : int
        Of the intervals; of all draws.
    page : callable, optional
        Called with the result and the folder, before it appears.

    Raises
    ------
    ValueError
        Options or data that are not accepted.
    """
    options: dict[str, Any] = {"hidden": hidden, "list_size": list_size, "steps": steps, "learning_rate": learning_rate}
    check_ranking(path, features, out, ranker=ranker, held_out=held_out, max_weight=max_weight, **options)
    options |= {"hidden": hidden or HIDDEN, "learning_rate": learning_rate or RATES[ranker]}
    log = read_click_log(path, None if features is None else read_judged(features))
    with whole_folder(
        out,
        made_by=RANK,
        inputs=there(path, features),
        told={"seed": seed, **options, "hidden": list(options["hidden"])},
    ) as draft:
        learned = learn(log, ranker=ranker, max_weight=max_weight, held_out=held_out, resamples=resamples, seed=seed,
                        **options)  # fmt: skip
        write_ranker(learned.ranker, draft)
        c = learned.curve
        points = zip(c.propensity.tolist(), c.low.tolist(), c.high.tolist(), strict=True)
        write_rows(draft / "propensity.csv", (
            {"position": k, "propensity": p, "low": low, "high": high} for k, (p, low, high) in enumerate(points, 1)
        ))  # fmt: skip
        write_json(draft / "results.json", learned.as_json())
        if page is not None:
            page(learned, draft)
    return learned


def learn(
    log: ClickLog, *, ranker: str, max_weight: float, held_out: float, resamples: int, seed: int, **options: Any
) -> Learned:
    """The same of a log in memory."""
    if not _differs(log):
        raise ValueError("no feature differs between documents of one query: there is nothing to rank by")
    judging = _drawn(log.query, held_out, seed)
    data = {"clicks": log.clicks, "query": log.showing, "position": log.position, "document": log.document}
    training = {k: v[~judging] for k, v in data.items()}
    fits = {
        name: [make(seed + k).fit(log.features, **training) for k in range(2)]
        for name, make in {
            "debiased": lambda s: DualLearningRanker(ranker, max_weight=max_weight, random_state=s, **options),
            "naive": lambda s: NaiveRanker(ranker, random_state=s, **options),
        }.items()
    }
    scores = {name: [fit.predict(log.features) for fit in both] for name, both in fits.items()}
    names = _names(log)
    trained, held = (
        lists_of(
            log.clicks[rows], query=log.showing[rows], position=log.position[rows], document=log.document[rows],
            list_size=options["list_size"],
        )
        for rows in (~judging, judging)
    )  # fmt: skip
    curve = propensity_curve(trained, scores["debiased"][0][trained.rows], group=names[trained.query],
                             max_weight=max_weight, resamples=resamples, seed=seed)  # fmt: skip
    change, noise = _changes(log, judging, scores)
    low, high = interval(change - noise, resamples=resamples, seed=seed)
    agreement = _agreement(trained, scores["debiased"][0])
    likelihood = _likelihoods(trained, held, scores, fits, names, resamples, seed)
    return Learned(
        ranker=fits["debiased"][0], curve=curve, likelihood=likelihood, change=float(change.mean()),
        noise=float(noise.mean()), excess=(low, high), agreement=agreement, counts=_counts(log, fits["debiased"][0]),
        notes=_notes(agreement, fits["debiased"][0], curve, max_weight, likelihood, _groups(log, judging, options)),
    )  # fmt: skip


def score_documents(run: Path, documents: Path) -> list[dict[str, Any]]:
    """A row a document of a judged file: query, doc and score."""
    check_ranking_run(run)
    check_documents(documents)
    ranker, docs = load_ranker(run), read_judged(documents)
    try:
        docs = docs.with_features(ranker.n_features_in_)
    except ValueError as error:
        raise ValueError(f"{documents}: {error} to the ranker of {run}") from error
    scores = ranker.predict(docs.features).tolist()
    return [{"query": q, "doc": d, "score": s}
            for q, d, s in zip(docs.query.tolist(), docs.document.tolist(), scores, strict=True)]  # fmt: skip


def evaluate_scores(scores: Path, qrels: Path) -> RankingReport:
    """Scores of documents against grades.

    Scores are a table of query, doc and score, or TREC's ``query Q0 doc rank score tag``; grades a table of query, doc
    and grade, TREC's ``query 0 doc grade``, or as of `read_judged`.

    Raises
    ------
    ValueError
        A document that has a score and no grade, or a grade and no score; one that stands there twice.
    """
    check_evaluation(scores, qrels)
    found = (
        _by_pair(scores, "score") if scores.suffix.lower() in READERS else _trec(scores, "query Q0 doc rank score tag")
    )
    grades = _qrels(qrels)
    for one, other, what in ((found, grades, "grade"), (grades, found, "score")):
        if missing := [pair for pair in one if pair not in other]:
            raise ValueError(
                f"{len(missing):,} documents have no {what}: the first is {missing[0][1]} of query {missing[0][0]}"
            )
    pairs = list(found)
    return ranking_report([grades[p] for p in pairs], [found[p] for p in pairs], query=[q for q, _ in pairs])


def _by_pair(path: Path, column: str) -> dict[tuple[str, str], float]:
    """A column of numbers by query and document."""
    found: dict[tuple[str, str], float] = {}
    table = read_table(path)
    for n, row in table.rows:
        pair = named(table, n, row, "query"), named(table, n, row, "doc")
        if pair in found:
            raise ValueError(f"{table.at(n)}: document {pair[1]} of query {pair[0]} stands there twice")
        found[pair] = table_number(table, n, row, column)
    if not found:
        raise ValueError(f"{path} has no rows")
    return found


def _qrels(path: Path) -> dict[tuple[str, str], float]:
    if path.suffix.lower() in READERS:
        found = _by_pair(path, "grade")
    elif path.is_dir() or len(first := _first(path)) < 2 or ":" in first[1]:
        docs: Judged = read_judged(path)
        pairs = zip(docs.query.tolist(), docs.document.tolist(), strict=True)
        return dict(zip(pairs, docs.relevance.tolist(), strict=True))
    else:
        found = _trec(path, "query 0 doc grade")
    return {pair: max(grade, 0.0) for pair, grade in found.items()}  # TREC marks spam by negative grades


def _words(path: Path) -> Iterator[tuple[int, list[str]]]:
    for n, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip() and not line.startswith("#"):
            yield n, line.split()


def _first(path: Path) -> list[str]:
    return next((words for _, words in _words(path)), [])


def _trec(path: Path, form: str) -> dict[tuple[str, str], float]:
    """Numbers by query and document of lines of such words; the number is the score or grade."""
    names, found = form.split(), {}
    at = next(names.index(name) for name in ("score", "grade") if name in names)
    for n, words in _words(path):
        try:
            query, _, doc, *_ = words
            value = number(words[at]) if len(words) == len(names) else number("")
        except ValueError:
            raise ValueError(f"{path}, line {n}: '{form}' is accepted, the {names[at]} a number") from None
        if (query, doc) in found:
            raise ValueError(f"{path}, line {n}: document {doc} of query {query} stands there twice")
        found[query, doc] = value
    if not found:
        raise ValueError(f"{path} has no lines")
    return found


def _differs(log: ClickLog) -> bool:
    """Whether some feature takes two values within a query."""
    names, of = np.unique(log.query, return_inverse=True)
    rows = np.unique(np.c_[of, log.document], axis=0)
    X, first = log.features[rows[:, 1]], np.searchsorted(rows[:, 0], np.arange(len(names)))
    return bool((X - X[first[rows[:, 0]]]).any())


def _drawn(query: NDArray[Any], share: float, seed: int) -> NDArray[np.bool_]:
    """Rows of held-out queries."""
    names = np.unique(query)
    n = round(share * len(names))
    if n < 1 or len(names) - n < 1:
        raise ValueError(f"{len(names)} queries: too few to hold out a share of {share:g} and learn from the rest")
    return np.isin(query, np.random.default_rng(seed).permutation(names)[:n])


def _names(log: ClickLog) -> NDArray[Any]:
    """The query of each showing."""
    names = np.empty(log.showing.max() + 1, dtype=log.query.dtype)
    names[log.showing] = log.query
    return names


def _changes(log: ClickLog, judging: NDArray[np.bool_], scores: dict[str, list[Array]]) -> tuple[Array, Array]:
    """By held-out query, 1 - τ with and without debiasing (mean over seeds), and the larger one between seeds."""
    change, noise = [], []
    (a, b), (c, d) = scores["debiased"], scores["naive"]
    for name in np.unique(log.query[judging]):
        rows = np.unique(log.document[log.query == name])
        if len(rows) < 2:
            continue
        change.append(np.mean([_apart(x[rows], y[rows]) for x in (a, b) for y in (c, d)]))
        noise.append(max(_apart(a[rows], b[rows]), _apart(c[rows], d[rows])))
    if not change:
        raise ValueError("no held-out query has two documents: there is no order to compare")
    return np.array(change), np.array(noise)


def _apart(x: Array, y: Array) -> float:
    tau = float(np.asarray(kendalltau(x, y))[0])
    return 1 - (tau if tau == tau else float(np.ptp(x) == np.ptp(y)))


def _agreement(lists: ClickLists, scores: Array) -> float:
    """Mean over lists of the rank correlation of order and score."""
    found = []
    for rows, mask in zip(lists.rows[:5000], lists.mask[:5000], strict=True):
        s = rankdata(scores[rows[mask]])
        if len(s) > 1 and s.std() > 0:
            found.append(np.corrcoef(-np.arange(len(s)), s)[0, 1])
    return float(np.mean(found)) if found else 0.0


def _likelihoods(
    trained: ClickLists, held: ClickLists, scores: dict[str, list[Array]], fits: dict[str, list[Any]],
    names: NDArray[Any], resamples: int, seed: int,
) -> dict[str, tuple[float, float, float]]:  # fmt: skip
    n = held.mask.shape[1]
    places = np.log(np.maximum(np.pad(trained.clicks.sum(0), (0, max(0, n - trained.mask.shape[1])))[:n], 0.5))
    examined = fits["debiased"][0].propensity_
    g = np.log(np.pad(examined, (0, max(0, n - len(examined))), mode="edge")[:n])
    logits = {
        "position alone": np.broadcast_to(places, held.mask.shape),
        "naive ranker": scores["naive"][0][held.rows],
        "debiased ranker × propensity": scores["debiased"][0][held.rows] + g,
    }
    out = {}
    for name, z in logits.items():
        v = place_log_likelihood(z, held.clicks, held.mask)
        kept = ~np.isnan(v)
        _, of = np.unique(names[held.query[kept]], return_inverse=True)
        by_query = np.bincount(of, v[kept]) / np.bincount(of) if kept.any() else np.array([np.nan])
        out[name] = (float(by_query.mean()), *interval(by_query, resamples=resamples, seed=seed))
    return out


def _groups(log: ClickLog, judging: NDArray[np.bool_], options: dict[str, Any]) -> int:
    learned = ~judging & (log.position <= options["list_size"])
    return groups_of_positions(log.document[learned], log.position[learned])


def _counts(log: ClickLog, ranker: Any) -> dict[str, int]:
    pairs = np.unique(np.c_[log.document, log.position], axis=0)
    return {
        "lists": int(log.showing.max()) + 1,
        "queries": len(np.unique(log.query)), "documents": len(np.unique(log.document)),
        "clicks": int(log.clicks.sum()), "training lists without a click": ranker.empty_,
        "training rows beyond the list": ranker.cut_,
        "documents seen at one place alone": int((np.bincount(pairs[:, 0])[np.unique(pairs[:, 0])] == 1).sum()),
    }  # fmt: skip


def groups_of_positions(document: NDArray[np.int64], position: NDArray[np.int64]) -> int:
    """Into how many groups positions fall that no document connects by having been seen in both.

    Relevance and examination of different groups are told apart by the likeness of features alone (Chen et al.,
    arXiv 2309.15560).

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.jobs.clicks import groups_of_positions
    >>> groups_of_positions(np.array([0, 0, 1, 2]), np.array([1, 2, 2, 3]))
    2
    """
    (rows, about), (columns, place) = (np.unique(v, return_inverse=True) for v in (document, position))
    nodes = len(rows) + len(columns)
    seen = coo_array((np.ones(len(about)), (about, len(rows) + place)), (nodes, nodes))
    _, group = connected_components(seen, directed=False)
    return len(np.unique(group[len(rows) :]))


def _notes(
    agreement: float, ranker: Any, curve: PropensityCurve, max_weight: float,
    likelihood: dict[str, tuple[float, float, float]], groups: int,
) -> list[str]:  # fmt: skip
    notes = []
    if groups > 1:
        notes.append(
            f"positions fall into {groups:,} groups that no document was seen in both of, so that the likeness of "
            "features alone tells relevance from position (arXiv 2309.15560): shuffle some lists, or let documents swap"
        )
    if agreement > CONFOUNDED:
        notes.append(
            f"the logging policy confounds: the order shown agrees with the learned relevance (rank correlation "
            f"{agreement:.2f}), so that position and relevance cannot be told apart well and the curve may hold part "
            "of the relevance (arXiv 2212.13937, 2409.12043); shuffle some lists, or do not read it as position bias"
        )
    if all(np.isnan(mean) for mean, *_ in likelihood.values()):
        notes.append("no held-out list has a click: how well clicks are predicted is not known")
    if np.isnan(curve.propensity).any():
        notes.append(
            "no training list was clicked at its first place, which propensities are relative to: there is none"
        )
    if never := int((curve.propensity == 0).sum()):
        notes.append(f"{never:,} positions were never clicked in training lists: their propensity is not known")
    if (rare := int((curve.propensity * max_weight < 1.5).sum()) - never) and max_weight > 1:
        notes.append(
            f"{rare:,} positions are looked at about as rarely as weights are cut (max_weight={max_weight:g}) or more "
            "so, which flattens the curve: take a larger one"
        )
    if ranker.empty_:
        notes.append(f"{ranker.empty_:,} training lists have no click and teach nothing")
    if ranker.cut_:
        notes.append(f"{ranker.cut_:,} training rows lie beyond the list's size and were cut")
    notes.append(
        "fitting clicks better is not agreeing better with experts (arXiv 2404.02543): check with "
        "`rankwise rank evaluate`"
    )
    return notes
