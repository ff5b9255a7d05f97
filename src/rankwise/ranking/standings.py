"""Several systems compared by PerSEval: intervals, stability, and what an order by accuracy alone would say.

All systems are judged on the documents and readers that each of them served. Intervals draw documents again, the same
for all systems; stability draws shares of the documents, or of the pairs of readers, without replacement.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau, pearsonr, rankdata, spearmanr

from rankwise.ranking.bootstrap import quantiles, resampled
from rankwise.ranking.distances import as_distance
from rankwise.ranking.judged import Array, Judged, Texts
from rankwise.ranking.personalisation import (
    Given,
    Personalisation,
    check_options,
    degress_of,
    inaccuracy_discount,
    report_of,
    told,
    warn_of_scale,
)

__all__ = ["Agreement", "Leaderboard", "Stability", "agreement", "borda", "leaderboard", "reasons"]

SHARES = (0.8, 0.6, 0.4, 0.2)
TIMES = 10  # draws of each share


@dataclass(frozen=True, kw_only=True)
class Stability:
    """What is left of scores and of their order when less is measured.

    Attributes
    ----------
    by : {"documents", "pairs"}
        What is drawn, without replacement.
    share : float
        How much of it; 1 is all.
    scores : dict of str to float
        PerSEval by system, the mean of ten draws; one in which nothing was drawn is left out.
    kendall : float
        Mean of Kendall's τ between the order in a draw and the order by all.

    Examples
    --------
    >>> from rankwise.ranking import leaderboard
    >>> wrote = {f"d{i}": {"ann": f"states {i}a", "bob": f"towns {i}b"} for i in range(5)}
    >>> board = leaderboard(None, wrote, {"own": wrote}, simplified=True)
    >>> [(s.by, s.share, s.kendall) for s in board.stability][-1]
    ('pairs', 0.2, 1.0)
    """

    by: Literal["documents", "pairs"]
    share: float
    scores: dict[str, float]
    kendall: float


@dataclass(frozen=True, kw_only=True)
class Leaderboard:
    """What `leaderboard` finds; systems stand in the order of PerSEval, the best first.

    Attributes
    ----------
    systems : list of str
        Their names, in order.
    reports : dict of str to Personalisation
        By system.
    ranks : dict of str to dict
        ``perseval``, ``accuracy`` (by the mean distance) and ``egises``: each system's rank, 1 the best; ties
        share the mean of theirs.
    borda : dict of str to float
        Points of the orders by PerSEval and by accuracy together.
    ahead : ndarray
        ``(systems, systems)``: in which share of the draws of documents the row is ahead of the column.
    stability : list of Stability
        By documents and by pairs of readers.
    left_out : dict of str to int
        How many readers or documents could not be judged, by reason.
    notes : list of str
        What was warned of.

    Examples
    --------
    >>> from rankwise.ranking import leaderboard
    >>> wrote = {"rule": {"ann": "states sue", "bob": "business glad"}}
    >>> swapped = {"rule": {"ann": "business glad", "bob": "states sue"}}
    >>> board = leaderboard(None, wrote, {"own": wrote, "swapped": swapped}, simplified=True)
    >>> board.systems, board.ranks["egises"]  # EGISES cannot tell them apart
    (['own', 'swapped'], {'own': 1.5, 'swapped': 1.5})
    """

    systems: list[str]
    reports: dict[str, Personalisation]
    ranks: dict[str, dict[str, float]]
    borda: dict[str, float]
    ahead: Array
    stability: list[Stability]
    left_out: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def wander(self, by: str) -> dict[str, float]:
        """By system, the standard deviation of its five scores over shares 1 to .2 (published as "bias")."""
        found = [s.scores for s in self.stability if s.by == by]
        return {name: float(np.std([scores[name] for scores in found])) for name in self.systems}


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Three correlations of two scores of the same systems.

    Attributes
    ----------
    pearson, spearman, kendall : float
        In [-1, 1].

    Examples
    --------
    >>> from rankwise.ranking import agreement
    >>> round(agreement({"a": 1, "b": 2, "c": 4}, {"a": 1, "b": 2, "c": 3}).pearson, 3)
    0.982
    """

    pearson: float
    spearman: float
    kendall: float


def leaderboard(
    documents: Mapping[str, str] | None,
    user_summaries: Texts,
    systems: Mapping[str, Texts],
    *,
    distance: Given = "jsd",
    simplified: bool = False,
    alpha: float = 3.0,
    beta: float = 1.0,
    gamma: float = 4.0,
    acp: Literal["relative", "absolute"] = "relative",
    digits: int | None = 4,
    resamples: int = 1000,
    seed: int = 0,
) -> Leaderboard:
    """Compare systems by how their summaries follow readers.

    Parameters
    ----------
    documents, user_summaries
        As for `perseval`.
    systems : mapping of str to mapping
        By system, what it gave: by document and reader.
    distance, simplified, alpha, beta, gamma, acp, digits, resamples, seed
        As for `perseval`; the seed also decides the draws of stability.

    Returns
    -------
    Leaderboard
        Scores, intervals and orders.

    Raises
    ------
    ValueError
        No system; as `perseval`.

    Examples
    --------
    >>> from rankwise.ranking import leaderboard
    >>> wrote = {"rule": {"ann": "states sue over pollution", "bob": "business glad of lax rule"}}
    >>> gave = {"rule": {"ann": "states sue", "bob": "business glad"}}
    >>> same = {"rule": {"ann": "pollution rule", "bob": "pollution rule"}}
    >>> board = leaderboard(None, wrote, {"same": same, "own": gave}, simplified=True)
    >>> board.systems, board.borda
    (['own', 'same'], {'own': 4.0, 'same': 2.0})
    """
    if not systems:
        raise ValueError("there is no system to judge")
    options: dict[str, Any] = {"alpha": alpha, "beta": beta, "gamma": gamma, "acp": acp}
    check_options(digits=digits, resamples=resamples, simplified=simplified, documents=documents, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        measure = as_distance(distance)
        told(measure)
        judged = Judged.of(documents, user_summaries, systems, measure, simplified=simplified, digits=digits)
        reports = {name: report_of(judged, name, **options) for name in systems}
        if acp == "relative":
            warn_of_scale(reports.values())
    notes = list(dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, UserWarning)))
    for note in notes:
        warnings.warn(note, stacklevel=2)
    order = sorted(systems, key=lambda name: -reports[name].score)
    values = np.stack([np.asarray(reports[name].documents["perseval"]) for name in order], 1)
    means = resampled(values, resamples=resamples, seed=seed)
    low, high = quantiles(means, n=len(values))
    ranks = {
        "perseval": _ranks({n: -reports[n].score for n in order}),
        "accuracy": _ranks({n: reports[n].distance for n in order}),
        "egises": _ranks({n: reports[n].egises for n in order}),
    }
    return Leaderboard(
        systems=order,
        reports={n: replace(reports[n], low=float(low[i]), high=float(high[i])) for i, n in enumerate(order)},
        ranks=ranks,
        borda=borda(ranks["perseval"], ranks["accuracy"]),
        ahead=(means[:, :, None] > means[:, None, :]).mean(0),
        stability=[*_by_documents(order, values, seed), *_by_pairs(order, judged, options, seed)],
        left_out=judged.left_out,
        notes=notes,
    )


def borda(*ranks: Mapping[str, float]) -> dict[str, float]:
    """Points of several orders of the same systems: n for the first of n, 1 for the last, summed.

    Parameters
    ----------
    *ranks : mapping of str to float
        Each system's rank, 1 the best; ties share the mean of theirs.

    Examples
    --------
    >>> from rankwise.ranking import borda
    >>> borda({"a": 1, "b": 2, "c": 3}, {"a": 3, "b": 1, "c": 2})
    {'a': 4.0, 'b': 5.0, 'c': 3.0}
    """
    return {name: float(sum(len(r) + 1 - r[name] for r in ranks)) for name in ranks[0]}


def agreement(scores: Mapping[str, float], people: Mapping[str, float]) -> Agreement:
    """How far scores of systems agree with people's: Pearson's r, Spearman's ρ, Kendall's τ.

    Parameters
    ----------
    scores, people : mapping of str to float
        Of the same systems, three or more.

    Raises
    ------
    ValueError
        Other systems in one than in the other, or fewer than three.

    Examples
    --------
    >>> from rankwise.ranking import agreement
    >>> agreement({"a": 0.3, "b": 0.2, "c": 0.1}, {"a": 0.5, "b": 0.1, "c": 0.2}).spearman
    0.5
    """
    if set(scores) != set(people) or len(scores) < 3:
        raise ValueError(f"systems are {sorted(scores)} and {sorted(people)}; the same ones, three or more, are needed")
    a, b = ([values[name] for name in scores] for values in (scores, people))
    found: list[Any] = [of(a, b)[0] for of in (pearsonr, spearmanr, kendalltau)]
    return Agreement(pearson=float(found[0]), spearman=float(found[1]), kendall=float(found[2]))


def reasons(report: Personalisation) -> list[str]:
    """Why each document scores as it does, a sentence a row of ``report.documents``.

    Examples
    --------
    >>> from rankwise.ranking import perseval, reasons
    >>> wrote = {"rule": {"ann": "states sue over pollution", "bob": "business glad of lax rule"}}
    >>> same = {"rule": {"ann": "states sue", "bob": "states sue"}}
    >>> reasons(perseval(None, wrote, same, simplified=True))
    ['one summary for all, while what readers wrote is 1.00 apart; served unequally: .19 to 1.00 away']
    """
    columns = {k: np.asarray(v) for k, v in report.documents.items() if k != "document"}
    return [_reason({k: float(v[i]) for k, v in columns.items()}) for i in range(len(columns["perseval"]))]


def _reason(row: Mapping[str, float]) -> str:
    own, given, worst = row["between_users"], row["between_summaries"], row["best"] + row["spread"]
    apart = f"while what readers wrote is {_short(own)} apart"
    if given == 0 and own > 0:
        said = f"one summary for all, {apart}"
    elif row["degress"] >= 0.7:
        said = f"summaries differ as readers do ({_short(given)} and {_short(own)} apart)"
    elif given < 0.8 * own:
        said = f"summaries are only {_short(given)} apart, {apart}"
    elif given > 1.25 * own:
        said = f"summaries are {_short(given)} apart, {apart}"
    else:
        said = "summaries differ as much as readers do, but between others"
    if row["best"] > 0.5:
        return f"{said}; even the nearest is {_short(row['best'])} from what its reader wrote"
    if row["edp"] >= 0.7:
        return f"{said}; all are near, {_short(row['best'])} to {_short(worst)} away"
    return f"{said}; served unequally: {_short(row['best'])} to {_short(worst)} away"


def _short(value: float) -> str:
    return f"{value:.2f}".removeprefix("0")


def _ranks(values: Mapping[str, float]) -> dict[str, float]:
    """The least first; ties share the mean of their ranks."""
    return dict(zip(values, map(float, rankdata(list(values.values()))), strict=True))


def _by_documents(order: Sequence[str], values: Array, seed: int) -> Iterator[Stability]:
    rng, n = np.random.default_rng([seed, 1]), len(values)
    yield _stability("documents", 1.0, order, values.mean(0), [values.mean(0)])
    for share in SHARES:
        chosen = [rng.permutation(n)[: max(1, round(share * n))] for _ in range(TIMES)]
        yield _stability("documents", share, order, values.mean(0), [values[rows].mean(0) for rows in chosen])


def _by_pairs(order: Sequence[str], judged: Judged, options: Mapping[str, Any], seed: int) -> Iterator[Stability]:
    """Of all pairs of readers of a document a share; a reader, and a document, without any is left out."""
    rng = np.random.default_rng([seed, 2])
    discount = {n: [inaccuracy_discount(b.accuracy[n], **options) for b in judged.blocks] for n in order}

    def scores(share: float) -> Array:
        pairs = [rng.random(b.between[None].shape) < share for b in judged.blocks]
        return np.array([_mean_score(judged, name, discount[name], pairs) for name in order])

    whole = scores(1.0)
    yield _stability("pairs", 1.0, order, whole, [whole])
    for share in SHARES:
        yield _stability("pairs", share, order, whole, [scores(share) for _ in range(TIMES)])


def _mean_score(judged: Judged, name: str, discount: list[Array], pairs: list[NDArray[np.bool_]]) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # documents without a pair
        rows = [
            np.nanmean(degress_of(block, name, drawn) * d, axis=1)
            for block, d, drawn in zip(judged.blocks, discount, pairs, strict=True)
        ]
        return float(np.nanmean(np.concatenate(rows)))


def _tau(whole: Array, scores: Array) -> float:
    """Kendall's τ; where one order is all ties, 1 if the other is too and else 0; NaN of NaN."""
    if 0 in (np.ptp(whole), np.ptp(scores)) and not np.isnan(scores).any():
        return float(np.ptp(whole) == np.ptp(scores))
    found: Any = kendalltau(whole, scores)
    return float(found[0])


def _stability(by: Any, share: float, order: Sequence[str], whole: Array, drawn: Sequence[Array]) -> Stability:
    told = [scores for scores in drawn if not np.isnan(scores).any()] or [np.full(len(order), np.nan)]
    scores = dict(zip(order, map(float, np.mean(told, axis=0)), strict=True))
    return Stability(by=by, share=share, scores=scores, kendall=float(np.mean([_tau(whole, s) for s in told])))
