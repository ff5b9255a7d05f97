"""Write what is generated: the list of methods, the evidence page, and the README's tables.

``python docs/generate.py`` writes; a test calls `generated` and finds no difference.
"""

from __future__ import annotations

import json
from pathlib import Path

from rankwise.bench import Located, recipes
from rankwise.catalogue import CATALOGUE, FAMILIES, Entry, ready
from rankwise.report.tables import markdown

HERE = Path(__file__).parent
ROOT = HERE.parent


def generated() -> dict[Path, str]:
    """Every generated file and its text."""
    return {
        HERE / "methods" / "index.md": methods(),
        HERE / "evidence.md": evidence(),
        ROOT / "README.md": readme((ROOT / "README.md").read_text(encoding="utf-8")),
    }


def methods() -> str:
    """The catalogue by family: what is ready, then what is planned."""
    parts = ["# Methods\n"]
    for family in FAMILIES:
        rows = [
            [f"[{e.name}]({e.id}.md)", f"`{e.path}`", _code(e.command), e.replaces, _paper(e), e.claim]
            for e in ready()
            if e.family == family
        ]
        if rows:
            parts.append(f"## {family.capitalize()}\n")
            parts.append(markdown(["method", "object", "command", "instead of", "paper", "claim"], rows))
    planned = [[e.name, e.family, _paper(e), e.claim] for e in CATALOGUE if e.status == "planned"]
    if planned:
        parts += ["## Planned\n", markdown(["method", "family", "paper", "claim"], planned)]
    return "\n".join(parts)


def evidence() -> str:
    """Every recipe's table, claims and verdicts, as its JSON says."""
    parts = [
        "# Evidence\n\nWhat the papers claim, measured here on real data with a control that can fail. Differences are "
        "paired by seed (p is the one-sided exact sign-flip p-value) or by query (with bootstrap intervals). A claim "
        "that did not hold is listed as such.\n"
    ]
    found = [(located, recorded(located)) for parts in recipes().values() for located in parts.values()]
    held = [(located, e) for located, e in found if e]
    rows = [
        [f"[{e['title']}](#{anchor(located)})", _code(e["command"]), *(_held(e["claims"], c) for c in (False, True))]
        for located, e in held
    ]
    parts.append(markdown(["recipe", "command", "claims held", "controls held"], rows))
    for located, e in held:
        env = e["environment"]
        parts += [
            f"## {e['title']} {{ #{anchor(located)} }}\n\n`{e['command']}`\n\n{e['setting']}.\n",
            markdown(e["header"], e["rows"]),
            verdicts(e),
            *_remark(e["claims"]),
            *[f"![{text}](img/{file})\n" for text, file in located.recipe.figures],
            *([f"{located.recipe.remark}\n"] if located.recipe.remark else []),
            f"torch {env['torch']}, {env['device']}, {env['threads']} thread(s).\n",
        ]
    return "\n".join(parts)


def recorded(located: Located) -> dict:
    """The recorded evidence of a recipe; empty where there is none."""
    path = HERE / "evidence" / located.place.with_suffix(".json")
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def verdicts(e: dict) -> str:
    """A table of claims."""
    claims = [["**held**" if c["held"] else "**not held**", c["text"], c["found"]] for c in e["claims"]]
    return markdown(["verdict", "claim", "found"], claims)


def anchor(located: Located) -> str:
    """Of a recipe on the evidence page."""
    return "-".join(located.place.parts).replace("_", "-")


def readme(text: str) -> str:
    """The README with the demonstration, the methods that are ready, and what they work on, between the marks."""
    by_family = [
        [f"[{e.name}](docs/methods/{e.id}.md)", e.family, f"`{e.object}`", _code(e.command), e.replaces]
        for e in ready()
    ]
    fits = [[e.name, e.models, e.tasks, e.result] for e in ready()]
    tables = {
        "demo": (HERE / "evidence" / "demo.md").read_text(encoding="utf-8"),
        "methods": markdown(["method", "family", "object", "command", "instead of"], by_family),
        "compatibility": markdown(["method", "works on", "for", "result"], fits),
    }
    for mark, content in tables.items():
        before, opened, rest = text.partition(f"<!-- {mark} -->")
        _, closed, after = rest.partition(f"<!-- end {mark} -->")
        if not opened or not closed:
            raise ValueError(f"README.md has no place for {mark}")
        text = f"{before}<!-- {mark} -->\n{content}<!-- end {mark} -->{after}"
    return text


def _code(command: str) -> str:
    return f"`{command}`" if command else "-"


def _paper(e: Entry) -> str:
    return f"[{e.arxiv}](https://arxiv.org/abs/{e.arxiv})"


def _held(claims: list[dict], control: bool) -> str:
    verdicts = [c["held"] for c in claims if c["control"] == control]
    return f"{sum(verdicts)} of {len(verdicts)}" if verdicts else "-"


def _remark(claims: list[dict]) -> list[str]:
    """What a failed control means for the rest."""
    if all(c["held"] for c in claims if c["control"]):
        return []
    return [
        "A control did not hold: in this setting (few steps, the spread of a small model) the recipe cannot tell its "
        "variants apart, so the verdicts above neither confirm nor refute the paper.\n"
    ]


if __name__ == "__main__":
    for path, text in generated().items():
        path.write_text(text, encoding="utf-8")
