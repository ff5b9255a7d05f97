"""The results of a job as a terminal table and as Markdown."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table
from rich.text import Text

from rankwise.reading import printable

if TYPE_CHECKING:
    from rankwise.compression.plans import Component, Plan
    from rankwise.jobs.cache import CacheReport
    from rankwise.jobs.compress import Compression
    from rankwise.jobs.learning.job import Learned
    from rankwise.merging import Merge
    from rankwise.prompting import DepthTest
    from rankwise.prompting.answers import RankedAnswers
    from rankwise.ranking import Leaderboard


@dataclass(frozen=True, kw_only=True)
class Metric:
    """How a task's score is shown: in words, on an axis, and as the number people know."""

    words: str
    axis: str
    shown: Callable[[float], float]
    with_spread: bool = True


_ACCURACY = Metric(words="accuracy in per cent", axis="accuracy (%)", shown=lambda s: 100 * s)
METRICS = {
    "classification": _ACCURACY,
    "text-to-label": _ACCURACY,
    "regression": Metric(words="Pearson correlation × 100", axis="correlation × 100", shown=lambda s: 100 * s),
    "causal-lm": Metric(words="perplexity", axis="perplexity", shown=lambda s: math.exp(-s), with_spread=False),
    "asr": Metric(words="word error rate in per cent", axis="WER (%)", shown=lambda s: 100 * (1 - s)),
}
SHORT = {
    "speech:child": "child",
    "speech:adult": "adult",
    "speech:accents": "accents",
    "sentiment:movies": "movies",
    "sentiment:tweets": "tweets",
    "sentiment:amazon": "amazon",
    "sentiment:nyt": "nyt",
}


def comparison(results: dict) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the comparison: cost on the left, scores on the right, a row a method."""
    metric = METRICS[results["config"]["task"]]
    domains = [results["in_domain"], *results["out_of_domain"]]
    header = ["method", "trained", "adapter", "memory", "time", *[SHORT.get(d, d) for d in domains]]
    rows = []
    if "zero_shot" in results:
        scores = [score(_single(results["zero_shot"][d]["score"]), metric) for d in domains]
        rows.append(["zero-shot", "0", "-", "-", "-", *scores])
    for m in results["methods"]:
        if not m["trials"]:
            rows.append([m["title"], "-", "-", "-", m["status"], *["-"] * len(domains)])
            continue
        cost = m["cost"]
        rows.append(
            [
                m["title"] + ("" if m["status"] == "done" else " *"),
                count(cost["trainable_parameters"]),
                size(cost["adapter_bytes"]),
                size(cost["peak_memory_bytes"]),
                f"{m['seconds']['mean'] + cost['setup_seconds']:.0f}s",
                *[score(m["scores"][d], metric) for d in domains],
            ]
        )
    return header, rows


def compressed(plan: Plan) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a compression plan, a row a projection and stack: ranks, what is factorised, parameters."""
    groups: dict[str, list[Component]] = {}
    for c in plan.components:
        groups.setdefault(re.sub(r"^.*\.\d+\.", "", c.name), []).append(c)
    rows = []
    for name, parts in groups.items():
        ranks = [c.rank for c in parts]
        rows.append(
            [
                name,
                f"{parts[0].shape[0]}x{parts[0].shape[1]}",
                f"{min(ranks)} to {max(ranks)} of {parts[0].full_rank}",
                f"{sum(c.low_rank for c in parts)} of {len(parts)}",
                count(sum(c.parameters_before for c in parts)),
                count(sum(c.parameters for c in parts)),
            ]
        )
    return ["projection", "shape", "ranks kept", "factorised", "before", "after"], rows


def every_rank(plan: Plan) -> tuple[list[str], list[list[str]]]:
    """The same, a row a matrix."""
    rows = [
        [c.name, f"{c.shape[0]}x{c.shape[1]}", f"{c.rank} of {c.full_rank}", "factors" if c.low_rank else "dense",
         size(c.bytes_before), size(c.bytes)]
        for c in plan.components
    ]  # fmt: skip
    return ["matrix", "shape", "rank kept", "stored as", "before", "after"], rows


def compression_summary(done: Compression) -> tuple[list[str], list[list[str]]]:
    """Header and rows: the whole model before and after."""
    p, a, b = done.plan, done.before, done.after
    rows = [
        ["directions removed", "-", f"{100 * p.applied_reduction:.1f}% (threshold {100 * p.reduction:.1f}%)"],
        ["parameters", count(p.parameters_before), count(p.parameters)],
        [f"bytes ({done.dtype})", size(p.bytes_before), size(p.bytes)],
    ]
    if a and b:
        rows += [
            ["perplexity", f"{a['perplexity']:.2f}", f"{b['perplexity']:.2f}"],
            ["tokens/s, forward", f"{a['tokens_per_second']:.0f}", f"{b['tokens_per_second']:.0f}"],
            ["tokens/s, decoding", f"{a['decoded_per_second']:.1f}", f"{b['decoded_per_second']:.1f}"],
        ]
    rows.append(["seconds to compress", "-", f"{done.seconds:.1f}"])
    return ["model", "before", "after"], rows


def caches(done: CacheReport) -> tuple[list[str], list[list[str]]]:
    """A row a ratio: what the cache takes, and what follows from it."""
    header = ["ratio", "cache", "of whole", "resident", "perplexity", "same next token", "tokens/s"]
    rows = []
    for r in done.rows:
        cost = [f"{r.perplexity:.2f}", f"{r.agreement:.1%}", f"{r.tokens_per_second:.1f}"]
        rows.append([f"{100 * r.ratio:.3g}%", size(r.bytes), f"{r.bytes / done.whole:.2f}", size(r.resident), *cost])
    return header, rows


def merge_tensors(ready: Merge) -> tuple[list[str], list[list[str]]]:
    """Header and rows: the tensors of a merge by name, layers together."""
    groups: dict[tuple[str, str, str, str], int] = {}
    for t in ready.tensors:
        name = re.sub(r"\.\d+\.", ".*.", t.name)
        how = "copied" if t.copied else "matrix" if t.matrix and ready.method.matrix else "merged"
        key = (name, "×".join(map(str, t.shape)), str(t.dtype).removeprefix("torch."), how)
        groups[key] = groups.get(key, 0) + 1
    return ["tensor", "shape", "dtype", "how", "times"], [[*key, str(n)] for key, n in groups.items()]


def merge_summary(ready: Merge, workers: int | None = None) -> tuple[list[str], list[list[str]]]:
    """Header and rows: what a merge reads, writes and holds, so many tensors at once."""
    c = ready.cost(workers)
    rows = [
        ["method", f"{ready.method.title} ({ready.method.paper})"],
        ["models", ", ".join(s.label for s in ready.sources.values())],
        ["tensors", str(c["tensors"])],
        ["read", size(c["read_bytes"])],
        ["written", size(c["written_bytes"])],
        [f"memory for tensors, {c['workers']} at once", size(c["memory_bytes"])],
    ]
    return ["merge", ""], rows


def corpora(test: DepthTest, names: Sequence[str], texts: Sequence[list[str]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: two corpora, their sizes, lengths and depths."""
    rows = []
    for name, own, depths in zip(names, texts, (test.depths_f, test.depths_g), strict=True):
        words = sum(len(t.split()) for t in own) / len(own)
        cells = [f"{q:.3f}" for q in np.quantile(depths, [0.05, 0.5, 0.95])]
        rows.append([name, str(len(own)), f"{words:.1f}", *cells])
    return ["corpus", "texts", "words a text", "depth: 5%", "median", "95%"], rows


def personalised(board: Leaderboard) -> tuple[list[str], list[list[str]]]:
    """Header and rows: systems by PerSEval, with what the other orders say."""
    rows = []
    for name in board.systems:
        r = board.reports[name]
        between = f"{r.low:.4f} to {r.high:.4f}" if r.low == r.low else "-"
        cells = [f"{r.score:.4f}", between, f"{r.egises:.4f}", f"{r.distance:.4f}"]
        rows.append([name, *cells, f"{board.ranks['accuracy'][name]:g}", f"{board.borda[name]:g}"])
    return ["system", "PerSEval", "95%", "EGISES", "distance", "by accuracy", "Borda"], rows


def streamed(done: Learned) -> tuple[list[str], list[list[str]]]:
    """Header and rows: accuracy on every task after each, and what the task changed."""
    rows = [["nothing", *[f"{100 * v:.1f}" for v in done.before], "", "", ""]]
    for name, accuracies, drift in zip(done.tasks, done.table, done.drift, strict=True):
        changed = [f"{drift['rank']:.1f}", f"{drift['norm']:.3g}", f"{drift['drift']:.3g}"]
        rows.append([name, *[f"{100 * v:.1f}" for v in accuracies], *changed])
    return ["after", *done.tasks, "rank", "size", "drift"], rows


def extreme_texts(
    test: DepthTest, names: Sequence[str], texts: Sequence[list[str]], n: int, *, width: int | None = 44
) -> tuple[list[str], list[list[str]]]:
    """Header and rows: the most central and the most outlying texts of both corpora, with their depths."""
    rows = []
    for name, own, depths in zip(names, texts, (test.depths_f, test.depths_g), strict=True):
        order = np.argsort(-depths, kind="stable")
        for kind, picked in (("central", order[:n]), ("outlying", order[::-1][:n])):
            rows += [[name, kind, f"{depths[i]:.3f}", _shortened(own[i], width)] for i in picked]
    return ["corpus", "", "depth", "text"], rows


def answers(ranked: RankedAnswers, *, width: int | None = 30) -> tuple[list[str], list[list[str]]]:
    """Header and rows: candidates from best to worst, with their scores under every method."""
    rows = [
        [_shortened(c, width), *[f"{by_candidate[c]:.3g}" for by_candidate in ranked.scores.values()]]
        for c in ranked.order
    ]
    return [_shortened(ranked.question, width), *ranked.scores], rows


def quantile_scores(about: dict) -> tuple[list[str], list[list[str]]]:
    """Weighted interval score, CRPS and calibration error of every forecast (`rankwise.jobs.quantile.Fitted`)."""
    best = about["scores"]["aggregate"]
    return ["forecast", "weighted interval score", "to aggregate's", "CRPS", "calibration error"], [
        [name, f"{value:.4g}", f"{value / best:.3f}", f"{about['crps'][name]:.4g}", f"{about['calibration'][name]:.3f}"]
        for name, value in about["scores"].items()
    ]


def quantile_intervals(about: dict) -> tuple[list[str], list[list[str]]]:
    """Coverage and mean width of every central interval."""
    return ["interval", "coverage", "mean width", "interval score"], [
        [f"{100 * r['nominal']:.0f}%", f"{100 * r['coverage']:.1f}%", f"{r['width']:.4g}", f"{r['interval_score']:.4g}"]
        for r in about["intervals"]
    ]


def _shortened(text: str, most: int | None) -> str:
    return text if most is None or len(text) <= most else text[: most - 1] + "…"


def terminal(header: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "") -> Table:
    """A rich table that fits 80 columns: text left, numbers right. Cells are shown as they are, never as markup."""
    table = Table(
        title=_plain(title) if title else None,
        title_justify="left",
        box=None,
        pad_edge=False,
        header_style="bold",
        padding=(0, 1, 0, 0),
    )
    for i, name in enumerate(header):
        text = i == 0 or not any(row[i][:1].isdigit() or row[i][:1] in "-+" for row in rows)
        table.add_column(_plain(name), justify="left" if text else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(_plain, row))
    return table


def _plain(text: str) -> Text:
    return Text(printable(text))


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same as a Markdown table."""
    lines = [_row(header), "|---|" + "---:|" * (len(header) - 1)]
    return "\n".join(lines + [_row(row) for row in rows]) + "\n"


def _row(cells: Sequence[str]) -> str:
    """A line of a Markdown table; what would end a cell is escaped."""
    return "| " + " | ".join(re.sub(r"\s*\n\s*", " ", c).replace("|", "\\|") for c in cells) + " |"


def count(n: float) -> str:
    """A number of parameters in four characters or so: ``83.7k``; a dash for NaN."""
    if math.isnan(n):
        return "-"
    for unit, scale in (("M", 1e6), ("k", 1e3)):
        if n >= scale:
            return f"{n / scale:.1f}{unit}"
    return f"{n:.0f}"


def size(n: float) -> str:
    """Bytes in binary units; a dash for NaN."""
    if math.isnan(n):
        return "-"
    for unit, scale in (("GB", 2**30), ("MB", 2**20), ("KB", 2**10)):
        if n >= scale:
            return f"{n / scale:.1f}{unit}" if n < 10 * scale else f"{n / scale:.0f}{unit}"
    return f"{n:.0f}B"


def score(spread: dict, metric: Metric) -> str:
    """Mean and spread over seeds, as the metric is shown."""
    if spread["mean"] is None or spread["mean"] != spread["mean"]:
        return "-"
    if not metric.with_spread:
        return f"{metric.shown(spread['mean']):.2f}"
    std = 100 * spread["std"]
    return f"{metric.shown(spread['mean']):.1f}" + (f"±{std:.{0 if std >= 9.95 else 1}f}" if spread["n"] > 1 else "")


def _single(value: float) -> dict:
    return {"mean": value, "std": 0.0, "n": 1}
