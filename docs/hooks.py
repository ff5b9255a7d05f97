"""What the site does to its pages: verdicts out of the recorded evidence, equations as MathML."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import generate
from latex2mathml.converter import convert

from rankwise.bench import recipes
from rankwise.catalogue import ready


def on_config(config: Any) -> None:
    """A fenced block of the language ``math`` is an equation; every ready method's page is in the navigation."""
    fences = [{"name": "math", "class": "math", "format": equation}]
    config.mdx_configs.setdefault("pymdownx.superfences", {})["custom_fences"] = fences
    section = next(part["Methods"] for part in config.nav if "Methods" in part)
    section += [{e.name: f"methods/{e.id}.md"} for e in ready()]


def on_page_markdown(markdown: str, **_: object) -> str:
    """``<!-- evidence NAME -->`` becomes that recipe's claims and verdicts, ``$x$`` in a sentence an equation."""
    markdown = re.sub(r"<!-- evidence ([\w-]+) -->", lambda m: _claims(m[1]), markdown)
    parts = re.split(r"(```.*?```|`[^`]*`)", markdown, flags=re.DOTALL)  # every second one is code, and stays
    within = re.compile(r"\$([^$\n]+(?:\n[^$\n]+)?)\$")
    # a span, since Markdown would make a block of an equation that begins a line
    parts[::2] = [within.sub(lambda m: f"<span>{convert(m[1])}</span>", part) for part in parts[::2]]
    return "".join(parts)


def _claims(name: str) -> str:
    if name not in recipes():
        raise ValueError(f"no recipe {name}")
    parts = []
    for located in recipes()[name].values():
        if e := generate.recorded(located):
            link = f"../evidence.md#{generate.anchor(located)}"
            parts.append(f"`{e['command']}` ([all numbers]({link}))\n\n{generate.verdicts(e)}")
    return "\n".join(parts) or "Not measured yet."


def equation(source: str, *_: object, **__: object) -> str:
    """MathML of LaTeX; what ``\\qquad`` parts may stand below each other where a page is narrow."""
    parts = [convert(part.strip(), display="block") for part in source.split(r"\qquad")]
    return f'<div class="equation">{"".join(parts)}</div>'
