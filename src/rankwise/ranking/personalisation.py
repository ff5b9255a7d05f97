"""PerSEval: whether summaries follow their readers, and not only the document.

Dasgupta, Chander, Borad, Motiyani & Chakraborty, PerSEval, TMLR 2024; EGISES: Vansh, Rank, Dasgupta & Chakraborty,
Findings of EMNLP 2023. A document has n readers; reader j wrote uⱼ and was given sⱼ; σ in [0, 1] is a distance.

* How much two readers differ, seen from the first (``(n, n)``, the softmax over the other readers):
  Xⱼₖ = σ(uⱼ, uₖ) softmaxₖ(σ(uⱼ, uₖ) / σ(uⱼ, d)); Yⱼₖ is the same of the summaries.
* DEGRESSⱼ = meanₖ (min(Xⱼₖ, Yⱼₖ) + ε) / (max(Xⱼₖ, Yⱼₖ) + ε), ε = 1e-5: 1 where summaries differ as readers do.
* Accuracy takes off what DEGRESS cannot see, by aⱼ = σ(uⱼ, sⱼ) and a* = minⱼ aⱼ, with S(x) = 1/(1 + 10^γ e^(-10x)):
  ADP = S(a* / (1 - a* + ε)), ACPⱼ = S((aⱼ - a*) / (mean a - a* + ε)), ε = 1e-7;
  EDPⱼ = 1 - 1/(1 + 10^α exp(-10^β (ADP + ACPⱼ))) + ε.
* PerSEval is the mean over documents of the mean over readers of DEGRESSⱼ EDPⱼ; EGISES is 1 - mean DEGRESS.

What people get wrong: EGISES alone is content with somebody else's summary, since it never looks at aⱼ. ACP is free of
scale: a spread of .001 between readers is punished like one of .5 (``acp="absolute"`` is not), and ADP is near 1 once
the best reader is further than .5 away. β decides a lot: 1.0 is the released default, at 1.7 hardly a score is left.

Where we differ from the released code: the mean over documents is one for EGISES too (theirs weights readers by pairs);
where σ(uⱼ, d) is 0 the quotient is 0, as is meant there; the softmax cannot overflow; what a reader wrote is the
reference of what he was given; X and Y are not rounded; draws are seeded; nothing is cached by a document's name.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rankwise.nearest import unknown
from rankwise.ranking.bootstrap import interval
from rankwise.ranking.distances import Distance, as_distance
from rankwise.ranking.judged import Array, Block, Columns, Judged, Texts

__all__ = [
    "Egises",
    "Personalisation",
    "consistency_penalty",
    "degress",
    "differences",
    "egises",
    "inaccuracy_discount",
    "inaccuracy_penalty",
    "perseval",
]

Given = str | Distance | Callable[[Sequence[str], Sequence[str]], ArrayLike]
PENALTIES = ("relative", "absolute")
EPSILON, SMALL = 1e-5, 1e-7  # of DEGRESS; of the penalties
NARROW, OFTEN = 0.02, 0.05  # readers' distances that differ by less are as good as equal; share of documents


@dataclass(frozen=True, kw_only=True)
class Egises:
    """How far summaries are from differing as their readers do; accuracy is not looked at.

    Attributes
    ----------
    score : float
        EGISES = 1 - DEGRESS: low is good.
    degress : float
        Mean over documents of the mean over readers.
    users : dict
        Columns, a row a document and reader: ``document``, ``user``, ``degress``. ``pandas.DataFrame(users)`` makes
        a table.
    documents : dict
        Columns, a row a document: ``document``, ``users`` (how many), ``degress``, ``between_users``,
        ``between_summaries`` (mean distances).
    left_out : dict
        How many readers or documents could not be judged, by reason.

    Examples
    --------
    >>> from rankwise.ranking import egises
    >>> wrote = {"rule": {"ann": "states sue", "bob": "business glad"}}
    >>> found = egises(None, wrote, {"rule": {"ann": "states", "bob": "business states"}}, simplified=True)
    >>> found.users["user"], found.users["degress"].round(4).tolist()
    (['ann', 'bob'], [0.3113, 0.3113])
    """

    score: float
    degress: float
    users: Columns
    documents: Columns
    left_out: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Personalisation:
    """What `perseval` finds of one system.

    Attributes
    ----------
    score : float
        PerSEval in [0, 1]: high is good.
    low, high : float
        Interval of 95% by a bootstrap over documents; NaN of one document.
    degress, egises : float
        Whether summaries differ as readers do: mean DEGRESS (high is good), and 1 minus it.
    edp : float
        Mean discount for inaccuracy (1: none).
    distance : float
        Mean distance of a summary to what its reader wrote: accuracy alone, low is good.
    users : dict
        Columns, a row a document and reader: ``document``, ``user``, ``distance``, ``degress``, ``adp``, ``acp``,
        ``edp``, ``perseval``. ``pandas.DataFrame(users)`` makes a table.
    documents : dict
        Columns, a row a document: ``document``, ``users`` (how many), ``perseval``, ``degress``, ``edp``, ``distance``,
        ``best`` (the nearest reader's distance), ``spread`` (furthest minus nearest), ``between_users``,
        ``between_summaries`` (mean distances).
    left_out : dict
        How many readers or documents could not be judged, by reason.

    Examples
    --------
    >>> from rankwise.ranking import perseval
    >>> wrote = {"rule": {"ann": "states sue", "bob": "business glad"}}
    >>> found = perseval(None, wrote, {"rule": {"ann": "states", "bob": "business"}}, simplified=True)
    >>> found.users["distance"].tolist(), found.documents["best"].tolist(), found.degress
    ([0.3113, 0.3113], [0.3113], 1.0)
    """

    score: float
    low: float
    high: float
    degress: float
    egises: float
    edp: float
    distance: float
    users: Columns
    documents: Columns
    left_out: dict[str, int] = field(default_factory=dict)


def perseval(
    documents: Mapping[str, str] | None,
    user_summaries: Texts,
    model_summaries: Texts,
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
) -> Personalisation:
    """Score one system's summaries by how they follow their readers.

    Parameters
    ----------
    documents : mapping of str to str, or None
        Text (title and body) of every document, by its name; None together with ``simplified``.
    user_summaries : mapping of str to mapping
        By document, what each reader wrote: the reader's name to the text.
    model_summaries : mapping of str to mapping
        By document, what the system gave each reader. An absent or empty text leaves that reader out there, counted and
        warned of; a document needs two readers.
    distance : str, Distance or callable
        ``jsd`` (as published), ``rouge-l``, ``bleu``, ``embedding``, one of `rankwise.ranking.distances`, or a function
        of two equally long lists of texts (what readers wrote first) that gives numbers in [0, 1].
    simplified : bool
        Take σ itself for X and Y, without the weights by distance to the document, whose text is not needed then.
    alpha, beta : float
        Of the discount: 10^α is where it starts, 10^β how steep it is.
    gamma : float
        Of both penalties: 10^γ.
    acp : {"relative", "absolute"}
        Penalty of a reader served worse than the best one: relative to the mean (as published), or by the difference
        itself, aⱼ - a* in the place of a* in ADP (our extension).
    digits : int or None
        Digits to which distances are rounded, 4 as published; None leaves them.
    resamples, seed : int
        Of the bootstrap over documents.

    Returns
    -------
    Personalisation
        The score with its interval, and its parts by reader and by document.

    Raises
    ------
    ValueError
        No document with two readers, one without a text, a distance that is no number in [0, 1] (document and readers
        are named), an option out of its range.

    Examples
    --------
    >>> from rankwise.ranking import perseval
    >>> documents = {"rule": "States sue over the pollution rule. Critics say the rule is lax; business is glad."}
    >>> wrote = {"rule": {"ann": "states sue over pollution", "bob": "business glad of lax rule"}}
    >>> gave = {"rule": {"ann": "states sue over rule", "bob": "business glad of rule"}}
    >>> same = {"rule": {"ann": "states sue over rule", "bob": "states sue over rule"}}
    >>> found = [perseval(documents, wrote, summaries) for summaries in (gave, same)]
    >>> [round(f.score, 3) for f in found], [round(f.egises, 3) for f in found]
    ([0.347, 0.0], [0.333, 1.0])
    """
    check_options(
        alpha=alpha, beta=beta, gamma=gamma, acp=acp, digits=digits, resamples=resamples, simplified=simplified,
        documents=documents,
    )  # fmt: skip
    measure = as_distance(distance)
    told(measure)
    judged = Judged.of(documents, user_summaries, {"": model_summaries}, measure, simplified=simplified, digits=digits)
    report = report_of(judged, "", alpha=alpha, beta=beta, gamma=gamma, acp=acp)
    if acp == "relative":
        warn_of_scale([report])
    low, high = interval(np.asarray(report.documents["perseval"]), resamples=resamples, seed=seed)
    return Personalisation(**{**vars(report), "low": low, "high": high})


def egises(
    documents: Mapping[str, str] | None,
    user_summaries: Texts,
    model_summaries: Texts,
    *,
    distance: Given = "jsd",
    simplified: bool = False,
    digits: int | None = 4,
) -> Egises:
    """Score how far summaries are from differing as their readers do; parameters and errors are those of `perseval`.

    Parameters
    ----------
    documents, user_summaries, model_summaries, distance, simplified, digits
        As for `perseval`.

    Returns
    -------
    Egises
        The score, and DEGRESS by reader and by document.

    Examples
    --------
    >>> from rankwise.ranking import egises
    >>> wrote = {"rule": {"ann": "states sue over pollution", "bob": "business glad of lax rule"}}
    >>> swapped = {"rule": {"ann": wrote["rule"]["bob"], "bob": wrote["rule"]["ann"]}}
    >>> egises(None, wrote, swapped, simplified=True).score  # the other reader's summary pleases it
    0.0
    """
    check_options(digits=digits, simplified=simplified, documents=documents)
    measure = as_distance(distance)
    told(measure)
    systems = {"": model_summaries}
    judged = Judged.of(
        documents, user_summaries, systems, measure, simplified=simplified, digits=digits, accuracy=False
    )
    values = [degress_of(block, "") for block in judged.blocks]
    mean = float(np.concatenate([v.mean(1) for v in values]).mean())
    return Egises(
        score=1 - mean,
        degress=mean,
        users=judged.by_user({"degress": values}),
        documents=judged.by_document({"degress": [v.mean(1) for v in values], **judged.between("")}),
        left_out=judged.left_out,
    )


# --- the mathematics: arrays (…, n, n) of pairs of readers and (…, n) of readers


def differences(between: Array, to_document: Array) -> Array:
    """X of distances between texts ``(…, n, n)`` and of each to the document ``(…, n)``; the diagonal is 0."""
    other = ~np.eye(between.shape[-1], dtype=bool)
    with np.errstate(divide="ignore", invalid="ignore"):
        quotient = np.where(to_document[..., None] > 0, between / to_document[..., None], 0.0)
    quotient = np.where(other, quotient, -np.inf)
    weight = np.exp(quotient - quotient.max(-1, keepdims=True))
    return between * np.where(other, weight / weight.sum(-1, keepdims=True), 0.0)


def degress(X: Array, Y: Array, *, pairs: NDArray[np.bool_] | None = None) -> Array:
    """DEGRESS ``(…, n)`` of differences between readers and between summaries, each ``(…, n, n)``.

    Parameters
    ----------
    X, Y : ndarray
        Differences of the readers' texts and of the summaries.
    pairs : ndarray of bool, optional
        Pairs that count; all but the diagonal by default. NaN where a reader has none.
    """
    other = np.broadcast_to(~np.eye(X.shape[-1], dtype=bool), X.shape)
    counted = other if pairs is None else other & pairs
    alike = (np.minimum(X, Y) + EPSILON) / (np.maximum(X, Y) + EPSILON)
    with np.errstate(invalid="ignore"):
        return np.where(counted, alike, 0.0).sum(-1) / counted.sum(-1)


def inaccuracy_penalty(accuracy: Array, *, gamma: float = 4.0) -> Array:
    """ADP ``(…, 1)``: how far even the best served of the readers ``(…, n)`` is."""
    return _step(_odds(accuracy.min(-1, keepdims=True)), gamma, 1.0)


def consistency_penalty(accuracy: Array, *, gamma: float = 4.0, acp: str = "relative") -> Array:
    """ACP ``(…, n)``: how much worse each reader is served than the best one; ``acp`` is that of `perseval`."""
    if acp not in PENALTIES:
        raise unknown("acp", acp, PENALTIES)
    excess = accuracy - accuracy.min(-1, keepdims=True)
    return _step(_odds(excess) if acp == "absolute" else excess / (excess.mean(-1, keepdims=True) + SMALL), gamma, 1.0)


def inaccuracy_discount(
    accuracy: Array, *, alpha: float = 3.0, beta: float = 1.0, gamma: float = 4.0, acp: str = "relative"
) -> Array:
    """EDP ``(…, n)`` of distances between summaries and what their readers wrote; 1 is no discount."""
    penalty = inaccuracy_penalty(accuracy, gamma=gamma) + consistency_penalty(accuracy, gamma=gamma, acp=acp)
    return 1 - _step(penalty, alpha, beta) + SMALL


def _odds(x: Array) -> Array:
    return x / (1 - x + SMALL)


def _step(x: Array, alpha: float, beta: float) -> Array:
    """1/(1 + 10^α exp(-10^β x)), for any x."""
    return 1 / (1 + np.exp(np.minimum(alpha * math.log(10) - 10**beta * x, 700)))


# --- reports


def degress_of(block: Block, system: str, pairs: NDArray[np.bool_] | None = None) -> Array:
    """DEGRESS ``(d, n)`` of a block's documents."""
    X, Y = (
        differences(block.between[s], block.to_document[s]) if block.to_document else block.between[s]
        for s in (None, system)
    )
    return degress(X, Y, pairs=pairs)


def report_of(judged: Judged, system: str, **options: Any) -> Personalisation:
    """All that is said of a system, but for the interval; ``options`` are those of `inaccuracy_discount`."""
    by: dict[str, list[Array]] = {k: [] for k in ("distance", "degress", "adp", "acp", "edp", "perseval")}
    for block in judged.blocks:
        a = block.accuracy[system]
        own = {k: options[k] for k in ("gamma", "acp")}
        values = {"distance": a, "degress": degress_of(block, system), "edp": inaccuracy_discount(a, **options)}
        values["adp"] = np.broadcast_to(inaccuracy_penalty(a, gamma=own["gamma"]), a.shape)
        values["acp"] = consistency_penalty(a, **own)
        values["perseval"] = values["degress"] * values["edp"]
        for k, v in values.items():
            by[k].append(v)
    means = {k: [v.mean(1) for v in by[k]] for k in ("perseval", "degress", "edp", "distance")}
    spread = {"best": [v.min(1) for v in by["distance"]], "spread": [np.ptp(v, axis=1) for v in by["distance"]]}
    whole = {k: float(np.concatenate(v).mean()) for k, v in means.items()}
    documents = judged.by_document({**means, **spread, **judged.between(system)})
    return Personalisation(
        score=whole["perseval"], low=math.nan, high=math.nan, degress=whole["degress"], egises=1 - whole["degress"],
        edp=whole["edp"], distance=whole["distance"], users=judged.by_user(by), documents=documents,
        left_out=judged.left_out,
    )  # fmt: skip


def check_options(
    *,
    alpha: float = 3.0,
    beta: float = 1.0,
    gamma: float = 4.0,
    acp: str = "relative",
    digits: int | None = 4,
    resamples: int = 1000,
    simplified: bool = False,
    documents: Mapping[str, str] | None = None,
) -> None:
    """Refuse options out of their range."""
    for name, value in (("alpha", alpha), ("beta", beta), ("gamma", gamma)):
        if not 0 <= value <= 10:
            raise ValueError(f"{name}={value}; a number from 0 to 10 is accepted")
    if acp not in PENALTIES:
        raise unknown("acp", acp, PENALTIES)
    if digits is not None and not 1 <= digits <= 15:
        raise ValueError(f"digits={digits}; 1 to 15, or None, are accepted")
    if resamples < 1:
        raise ValueError(f"resamples={resamples}; at least 1 is needed")
    if not simplified and documents is None:
        raise ValueError("no texts of documents are given: give them, or simplified=True, which does not weigh by them")


def told(distance: Distance) -> None:
    """Warn of what is known of a distance."""
    if distance.warning:
        warnings.warn(f"{distance.name}: {distance.warning}", stacklevel=3)


def warn_of_scale(reports: Iterable[Personalisation]) -> None:
    """Warn where the readers of many documents are served (nearly) alike, which ACP does not see."""
    spreads = [np.asarray(r.documents["spread"]) for r in reports]
    narrow, n = max(int(((s > 0) & (s < NARROW)).sum()) for s in spreads), len(spreads[0])
    if narrow > OFTEN * n:
        warnings.warn(
            f"in {narrow} of {n} documents the readers' distances differ by less than {NARROW}; the published penalty "
            "of unequal service (ACP) does not know scale and is as large there as elsewhere: acp='absolute' is not",
            stacklevel=3,
        )
