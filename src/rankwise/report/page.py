"""One self-contained HTML page: the table, the plots, and the command that made them. No script, no outside file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment
from matplotlib.figure import Figure

from rankwise.files import write_text
from rankwise.report.plots.compression import singular_spectra, thin_caches
from rankwise.report.plots.shared import as_data_uri, heat_maps, save
from rankwise.report.plots.tuning import loss_curves, score_versus_parameters
from rankwise.report.tables import METRICS, caches, comparison, compression_summary, every_rank, markdown

if TYPE_CHECKING:
    from rankwise.jobs.cache import CacheReport
    from rankwise.jobs.compress import Compression
    from rankwise.jobs.distill import Distilled
    from rankwise.jobs.tokens import TokenReport

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
 body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
 h1 { font-size: 1.5rem; margin-bottom: .2rem } h2 { font-size: 1.1rem; margin-top: 2rem }
 table { border-collapse: collapse; font-variant-numeric: tabular-nums }
 th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #ddd } th { border-bottom: 2px solid #444 }
 th:first-child, td:first-child { text-align: left } .wide { overflow-x: auto }
 pre { background: #f5f5f5; padding: .7rem; overflow-x: auto; font-size: .85rem }
 .note { color: #666; font-size: .9rem }
 figure { margin: .5rem 0; display: inline-block; vertical-align: top } img { max-width: 100% }
 @media (prefers-color-scheme: dark) { body { background: #fff } }
</style></head><body>
<h1>{{ title }}</h1>
<p class="note">{{ subtitle }}</p>
<pre>{{ command }}</pre>
<div class="wide"><table id="results"><thead><tr>{% for h in header %}<th>{{ h }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}</tbody></table></div>
<p class="note">{{ caption }}</p>
{% for note in notes %}<p class="note">{{ note }}</p>{% endfor %}
{% for section, figures in sections %}<h2>{{ section }}</h2>
{% for name, uri in figures %}<figure><img class="plot" alt="{{ name }}" src="{{ uri }}"></figure>
{% endfor %}{% endfor %}
{% if details %}<h2>{{ details_title }}</h2><pre>{{ details }}</pre>{% endif %}
</body></html>
"""


def render(
    path: Path,
    *,
    title: str,
    subtitle: str,
    command: str,
    header: list[str],
    rows: list[list[str]],
    caption: str = "",
    notes: list[str] | None = None,
    sections: list[tuple[str, list[tuple[str, Figure]]]],
    details: str = "",
    details_title: str = "Configuration",
) -> None:
    """Write a page; every text is escaped, every figure is inlined as PNG."""
    inlined = [(name, [(alt, as_data_uri(f)) for alt, f in figures]) for name, figures in sections if figures]
    template = Environment(autoescape=True).from_string(_PAGE)
    write_text(
        path,
        template.render(
            title=title,
            subtitle=subtitle,
            command=command,
            header=header,
            rows=rows,
            caption=caption,
            notes=notes or [],
            sections=inlined,
            details=details,
            details_title=details_title,
        ),
    )


def write_figure(folder: Path, name: str, figure: Callable[[], Figure], *, section: str, **page: Any) -> None:
    """A plot as ``name.png`` and, with its table, on ``report.html``; ``page`` as for `render`."""
    save(figure(), folder / f"{name}.png")
    render(folder / "report.html", sections=[(section, [(name, figure())])], **page)


def write_run(folder: Path, results: dict, command: str) -> None:
    """``report.html``, ``table.md`` and the plots of a finished job, from its results alone."""
    import yaml

    header, rows = comparison(results)
    maps = []
    for m in results["methods"]:
        done = [t for t in m["trials"] if t["status"] == "done"]
        if done and done[0]["ranks"]:
            figure = heat_maps({f"{m['title']}: rank": done[0]["ranks"]}, label="rank")
            maps.append((f"ranks of {m['name']}", figure))
        if done and done[0]["mass"]:
            figure = heat_maps({f"{m['title']}: coefficient mass": done[0]["mass"]}, label="Σ|λ|")
            maps.append((f"coefficient mass of {m['name']}", figure))
    environment = results["environment"]
    seeds, metric = results["config"]["seeds"], METRICS[results["config"]["task"]]
    write_text(folder / "table.md", markdown(header, rows))
    save(score_versus_parameters(results), folder / "score_versus_parameters.png")
    render(
        folder / "report.html",
        title=f"{results['model']['name']} adapted to {results['in_domain']}",
        subtitle=(
            f"{results['model']['parameters']:,} parameters, {len(results['model']['targets'])} adapted layers, budget "
            f"{results['budget']:,} trainable parameters; {environment['device']}, {environment['precision']}, "
            f"torch {environment['torch']}, peft {environment['peft']}, rankwise {environment['rankwise']}"
        ),
        command=command,
        header=header,
        rows=rows,
        caption=(
            f"{metric.words}, mean{' ± standard deviation' if seeds > 1 else ''} over {seeds} "
            f"seed{'s' if seeds > 1 else ''} on held-out documents; trained: adapter parameters without the task head; "
            "memory: peak of training above the loaded model; time: training and initialisation of one run."
        ),
        notes=[
            *results.get("notes", []),
            *[f"{m['title']}: {m['message']}" for m in results["methods"] if m["message"]],
        ],
        sections=[
            ("Score against parameters", [("score versus parameters", score_versus_parameters(results))]),
            ("Training loss", [("loss curves", loss_curves(results))]),
            ("Where the rank went", maps),
        ],
        details=yaml.safe_dump(results["config"], sort_keys=False),
    )


def write_compression(folder: Path, done: Compression, model: str, command: str) -> None:
    """``report.html`` of a compression: before and after, the rank of every matrix, spectra and rank map."""
    from rankwise.compression.ranks import normalized_spectrum

    header, rows = compression_summary(done)
    matrices = markdown(*every_rank(done.plan))
    spectra = [(c.name, normalized_spectrum(c.spectrum).cpu().numpy()) for c in done.plan.components]
    kept = {c.name: c.rank / c.full_rank for c in done.plan.components}
    stored = {c.name: c.parameters / c.parameters_before for c in done.plan.components}
    render(
        folder / "report.html",
        title=f"{model} compressed",
        subtitle=f"{sum(c.low_rank for c in done.plan.components)} of {len(done.plan.components)} matrices factorised, "
        f"method {done.plan.method}, {done.bytes_on_disk:,} bytes of weights on disk",
        command=command,
        header=header,
        rows=rows,
        caption="Directions removed are not memory: a matrix gets smaller only below rank out·in / (out + in).",
        sections=[
            (
                "Ranks",
                [("ranks", heat_maps({"rank kept (share)": kept, "entries kept (share)": stored}, label=""))],
            ),
            ("Spectra", [("spectra", singular_spectra(spectra))]),
        ],
        details=matrices,
        details_title="Every matrix",
        notes=[done.plan.note] if done.plan.note else None,
    )


def write_tokens(folder: Path, done: TokenReport, command: str) -> None:
    """``report.html`` and a picture each, of `rankwise.jobs.tokens.prune_pictures`."""
    from rankwise.jobs.tokens import HEADER
    from rankwise.report.plots.tokens import kept_patches

    def drawn(i: int) -> Figure:
        seen = done.seen[i]
        said = seen.before if seen.before == seen.after else f"{seen.before}, then {seen.after}"
        return kept_patches(done.pixels[i], done.grid, seen.kept, seen.similar, title=said)

    for i in range(len(done.seen)):
        save(drawn(i), folder / f"{i + 1:02}.png")
    render(
        folder / "report.html",
        title=f"Tokens that {done.model} goes on with",
        subtitle=f"{done.share:.0%} of the dense cost; the same said of {done.agreement:.0%} of pictures",
        command=command,
        header=HEADER,
        rows=done.rows(),
        caption="Pale blue: left as unimportant. Orange: left because a more important patch is like it.",
        sections=[("Patches, block by block", [(s.image, drawn(i)) for i, s in enumerate(done.seen)])],
    )


def write_caches(folder: Path, done: CacheReport, command: str) -> None:
    """``report.html`` and ``cache.png``, of `rankwise.jobs.cache.measure_caches`."""
    header, rows = caches(done)
    write_figure(
        folder,
        "cache",
        lambda: thin_caches(done.as_dict()["rows"], done.whole),
        section="What is saved, and what it costs",
        title=f"Key caches of {done.model} with fewer channels",
        subtitle=done.told(),
        command=command,
        header=header,
        rows=rows,
        caption="cache: the sum over the tensors' storages; resident: what the process takes for a copy of it.",
    )


def write_distilled(folder: Path, done: Distilled, command: str) -> None:
    """``report.html`` and ``tiles.png``, of `rankwise.jobs.distill.distill_pictures`."""
    from rankwise.report.plots.distilled import tile_sheet

    few = done.few
    header, rows = done.table()
    write_figure(
        folder,
        "tiles",
        lambda: tile_sheet(few.images.permute(0, 2, 3, 1).numpy(), few.label_names),
        section="The pictures",
        title=f"{done.pictures:,} pictures as {len(few):,}",
        subtitle=f"{few.ipc} for each of {len(few.label_names)} classes; labels by {few.told['base']} with adapters of "
        f"rank {few.told['rank']} and {few.told['head_rank']}",
        command=command,
        header=header,
        rows=rows,
        caption="Each picture is made of the squares that a teacher named best. The base itself is not counted: who "
        "trains a student needs it too.",
        notes=few.notes,
    )
