"""A page of pictures before and after, with a line between them that a person drags. One file, nothing from outside."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment
from numpy.typing import NDArray

from rankwise.files import write_text

WIDEST = 1000  # pixels of a side of a picture on the page
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
 body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 64rem; margin: 2rem auto;
        padding: 0 1rem }
 h1 { font-size: 1.5rem; margin-bottom: .2rem } .note { color: #595959; font-size: .9rem }
 pre { background: #f5f5f5; padding: .7rem; overflow-x: auto; font-size: .85rem }
 table { border-collapse: collapse; font-variant-numeric: tabular-nums }
 th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #ddd } th { border-bottom: 2px solid #444 }
 th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere } .wide { overflow-x: auto }
 figure { margin: 1.5rem 0 } figcaption { overflow-wrap: anywhere; color: #595959; font-size: .9rem }
 .pair { --cut: 50%; position: relative; display: inline-block; max-width: 100%; line-height: 0;
         touch-action: pan-y; cursor: ew-resize }
 .pair img { display: block; max-width: 100%; max-height: 80vh }
 .pair img.before { position: absolute; inset: 0; width: 100%; height: 100%;
                    clip-path: inset(0 calc(100% - var(--cut)) 0 0) }
 .pair::after { content: ""; position: absolute; top: 0; bottom: 0; left: var(--cut); width: 3px; margin-left: -1.5px;
                background: #fff; box-shadow: 0 0 3px #000; pointer-events: none }
 .pair input { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0; pointer-events: none }
 .pair:focus-within { outline: 3px solid #0072b2 }
</style></head><body>
<h1>{{ title }}</h1>
<p class="note">{{ subtitle }}</p>
<pre>{{ command }}</pre>
{% for name, before, after in pairs %}<figure><div class="pair">
<img class="after" alt="{{ name }}, enhanced" src="{{ after }}">
<img class="before" alt="{{ name }}, as it was" src="{{ before }}">
<input type="range" min="0" max="100" step="0.1" value="50" aria-label="How much of {{ name }} is shown as it was">
</div><figcaption>{{ name }}: as it was on the left, enhanced on the right; drag the line</figcaption></figure>
{% endfor %}<div class="wide"><table id="results"><thead><tr>{% for h in header %}<th>{{ h }}</th>{% endfor %}</tr>
</thead><tbody>
{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}</tbody></table></div>
{% for note in notes %}<p class="note">{{ note }}</p>{% endfor %}
<script>
 for (const pair of document.querySelectorAll(".pair")) {
   const line = pair.querySelector("input");
   const show = () => pair.style.setProperty("--cut", line.value + "%");
   const here = (e) => {
     const box = pair.getBoundingClientRect();
     line.value = 100 * (e.clientX - box.left) / box.width;
     show();
   };
   line.addEventListener("input", show);
   pair.addEventListener("pointerdown", (e) => {
     e.preventDefault();
     line.focus({ preventScroll: true });
     pair.setPointerCapture(e.pointerId);
     here(e);
   });
   pair.addEventListener("pointermove", (e) => { if (e.buttons) here(e); });
   show();
 }
</script></body></html>
"""


def render_pairs(
    path: Path,
    *,
    title: str,
    subtitle: str,
    command: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    pairs: Sequence[tuple[str, NDArray[Any], NDArray[Any]]],
    notes: Sequence[str] = (),
) -> None:
    """Write a page; every text is escaped, every picture inlined, larger ones smaller.

    Parameters
    ----------
    path : Path
        The file.
    title, subtitle, command : str
        What stands above.
    header, rows
        Of the table below.
    pairs : sequence of (str, ndarray, ndarray)
        Name, before, after: ``(height, width, 3)`` each, uint8 or uint16.
    notes : sequence of str
        What stands at the end.
    """
    inlined = [(name, inline(before), inline(after)) for name, before, after in pairs]
    page = Environment(autoescape=True).from_string(_PAGE)
    told = {"title": title, "subtitle": subtitle, "command": command, "header": header, "rows": rows, "notes": notes}
    write_text(path, page.render(pairs=inlined, **told))


def inline(pixels: NDArray[Any]) -> str:
    """A picture as a JPEG data address, no side longer than `WIDEST`."""
    from PIL import Image

    shown = pixels if pixels.dtype == np.uint8 else (pixels // 257).astype(np.uint8)
    image = Image.fromarray(np.ascontiguousarray(shown))
    image.thumbnail((WIDEST, WIDEST))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
