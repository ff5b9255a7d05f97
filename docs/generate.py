"""Write what is generated: methods, evidence, gallery, the commands' options, and the README's tables.

``python docs/generate.py`` writes; a test calls `generated` and finds no difference.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from typer.main import get_command

from rankwise.bench import Located, recipes
from rankwise.bench.shared.evidence import Claim, Verdict
from rankwise.bench.shared.evidence import verdicts as judged
from rankwise.catalogue import CATALOGUE, FAMILIES, Entry, ready
from rankwise.cli.main import app
from rankwise.family import names
from rankwise.report.tables import markdown

HERE = Path(__file__).parent
ROOT = HERE.parent


def generated() -> dict[Path, str]:
    """Every generated file and its text."""
    return {
        HERE / "methods" / "index.md": methods(),
        HERE / "evidence.md": evidence(),
        HERE / "evidence.json": evidence_rows(),
        HERE / "gallery.md": gallery(),
        HERE / "command-line.md": filled(HERE / "command-line.md", {"commands": commands()}),
        ROOT / "README.md": filled(ROOT / "README.md", readme_tables()),
        **stubs(),
    }


def stubs() -> dict[Path, str]:
    """What each family offers, for editors and type checkers, which do not see names that are looked up late."""
    source = ROOT / "src" / "rankwise"
    found = {}
    for init in sorted(source.rglob("__init__.py")):
        if "= namespace(" not in init.read_text(encoding="utf-8"):
            continue
        package = ".".join(init.parent.relative_to(source.parent).parts)
        public = names(package, init.parent)
        order = sorted(public, key=lambda name: (public[name], not name.isupper(), name[0].islower(), name))
        lines = [f"from {public[name]} import {name} as {name}" for name in order]
        found[init.with_suffix(".pyi")] = "\n".join([*lines, ""])
    return found


def methods() -> str:
    """The catalogue by family: what is ready, then what is planned."""
    parts = ["# Methods\n"]
    for family in FAMILIES:
        rows = [
            [
                f"[{e.name}]({e.id}.md), {_paper(e)}",
                "<br>".join(filter(None, [f"`{e.path}`", e.command and f"`{e.command}`"])),
                e.replaces,
                e.claim,
            ]
            for e in ready()
            if e.family == family
        ]
        if rows:
            parts.append(f"## {family.capitalize()}\n")
            parts.append(_words(["method, paper", "object, command", "instead of", "claim"], rows))
    planned = [[e.name, e.family, _paper(e), e.claim] for e in CATALOGUE if e.status == "planned"]
    if planned:
        parts += ["## Planned\n", _words(["method", "family", "paper", "claim"], planned)]
    return "\n".join(parts)


def evidence() -> str:
    """One table of what was found, then every recipe's table, claims and verdicts, as its JSON says."""
    parts = [
        "# Evidence\n\nWhat the papers claim, measured here on real data with a control that can fail. Differences are "
        "paired by seed (p is the one-sided exact sign-flip p-value; *sees* is the smallest difference that so many "
        "pairs would have shown, 2.8 standard errors) or by query (with bootstrap intervals, which decide as a whole). "
        "A claim that did not hold is listed as such; where a control did not hold, the recipe cannot tell. The first "
        "claim of each recipe stands here, with the minutes of its whole run, over all calls where it was cut short "
        "(*or more* stands where only its last call was timed); the same for programs is in "
        "[evidence.json](evidence.json).\n"
    ]
    held = measured()
    rows = []
    for located, e in held:
        found = _verdicts(e)
        first = next((i for i, c in enumerate(e["claims"]) if not c["control"]), 0)
        rows.append(
            [
                f"[{e['title']}](#{anchor(located)})<br>{_code(e['command'])}",
                e["claims"][first]["text"],
                f"**{found[first]}**",
                e["claims"][first]["found"],
                _minutes(e),
                ", ".join(str(found.count(verdict)) for verdict in get_args(Verdict)),
            ]
        )
    header = ["recipe, command", "claim", "verdict", "found", "minutes", "held, not, cannot tell"]
    parts.append(_words(header, rows))
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
            *_rows(located),
        ]
    return "\n".join(parts)


def _rows(located: Located) -> list[str]:
    """Where the file with what was measured is, if it is recorded too, and how it is judged once more."""
    file = Path("evidence", located.place.with_suffix(".jsonl.gz"))
    command = (
        f"rankwise bench {located.recipe.name} --part {located.recipe.part} --rescore {located.place.name}.jsonl.gz"
    )
    told = f"[What was measured, item by item]({file.as_posix()}); the verdicts once more: `{command}`\n"
    return [told] if (HERE / file).exists() else []


def measured() -> list[tuple[Located, dict]]:
    """Every recipe whose evidence is recorded, by family."""
    found = [(located, recorded(located)) for parts in recipes().values() for located in parts.values()]
    return [(located, e) for located, e in found if e]


def evidence_rows() -> str:
    """A JSON list with an entry a claim."""
    rows = [
        {
            "recipe": located.recipe.name,
            "part": located.recipe.part,
            "family": located.place.parts[0],
            "title": e["title"],
            "claim": c["text"],
            "control": c["control"],
            "verdict": verdict,
            "found": c["found"],
            "paper": c.get("paper", ""),
            "command": e["command"],
            "seconds": round(e["seconds"], 1),
            "calls": e.get("calls"),
            "link": f"evidence.md#{anchor(located)}",
        }
        for located, e in measured()
        for c, verdict in zip(e["claims"], _verdicts(e), strict=True)
    ]
    return json.dumps(rows, indent=1, ensure_ascii=False) + "\n"


def recorded(located: Located) -> dict:
    """The recorded evidence of a recipe; empty where there is none."""
    path = HERE / "evidence" / located.place.with_suffix(".json")
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def verdicts(e: dict) -> str:
    """A table of claims; what the paper reports is a column where it reports something."""
    claims, papers = e["claims"], any(c.get("paper") for c in e["claims"])
    rows = [
        [f"**{verdict}**", c["text"], c["found"], *([c.get("paper", "")] if papers else [])]
        for c, verdict in zip(claims, _verdicts(e), strict=True)
    ]
    return _words(["verdict", "claim", "found", *(["the paper, in its setting"] if papers else [])], rows)


def _verdicts(e: dict) -> list[str]:
    return [*judged([Claim(**{k: v for k, v in c.items() if k != "verdict"}) for c in e["claims"]])]


def _minutes(e: dict) -> str:
    minutes = f"{e['seconds'] / 60:.0f}" if e["seconds"] >= 60 else "under 1"
    return minutes if "calls" in e else f"{minutes} or more"


def anchor(located: Located) -> str:
    """Of a recipe on the evidence page."""
    return "-".join(located.place.parts).replace("_", "-")


def gallery() -> str:
    """Every script of ``examples/gallery`` with its question and its picture."""
    parts = [
        "# Gallery\n\nPictures, each with all of the script that makes it, in seconds to a minute on two cores. "
        "`make gallery` makes them all.\n"
    ]
    for path in scripts():
        source = path.read_text(encoding="utf-8")
        question = " ".join((ast.get_docstring(ast.parse(source)) or "").split())
        code = source.partition('"""\n\n')[2].rstrip()
        parts += [
            f"## {path.stem.replace('_', ' ').capitalize()}\n\n{question}\n",
            f"![{question}](img/gallery/{path.stem}.png)\n",
            f'```python title="examples/gallery/{path.name}"\n{code}\n```\n',
        ]
    return "\n".join(parts)


def scripts() -> list[Path]:
    """Of the gallery."""
    return sorted((ROOT / "examples" / "gallery").glob("*.py"))


def commands() -> str:
    """Every command: what it does, examples, arguments and options with their defaults."""
    parts = []
    for name, command in _commands("rankwise", get_command(app)):
        about, examples = _help(command.help or "")
        rows = [[_flags(p), _default(p), getattr(p, "help", None) or ""] for p in command.params if p.name != "help"]
        parts.append(f"## {name}\n\n{about}\n")
        parts += ["```bash\n" + "\n".join(examples) + "\n```\n"] if examples else []
        parts += [_words(["option", "default", "what it is"], rows)] if rows else []
    return "\n".join(parts)


def _commands(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """The commands below one; a group only where it has options of its own."""
    below = getattr(command, "commands", None)
    if below is None or any(p.name != "help" for p in command.params):
        yield name, command
    for word, child in (below or {}).items():
        yield from _commands(f"{name} {word}", child)


def _help(text: str) -> tuple[str, list[str]]:
    """Sentences and example commands of a docstring."""
    example = re.compile(r"^\s*(?:Example: |\* )?(rankwise .*)$", re.MULTILINE)
    about = re.sub(r"^\s*Examples?:\s*$", "", example.sub("", text), flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", about).strip(), example.findall(text)


def _flags(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.name.upper()}`"
    return ", ".join(f"`{flag}`" for flag in (*parameter.opts, *parameter.secondary_opts))


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    shown = getattr(parameter, "show_default", None)
    value = shown if isinstance(shown, str) else parameter.default
    if value in (True, "true") or value in (False, "false"):
        return "on" if value in (True, "true") else "off"
    return f"`{value}`" if value not in (None, "", [], ()) else ""


def filled(path: Path, tables: dict[str, str]) -> str:
    """A file with each table between its marks."""
    text = path.read_text(encoding="utf-8")
    for mark, content in tables.items():
        before, opened, rest = text.partition(f"<!-- {mark} -->")
        _, closed, after = rest.partition(f"<!-- end {mark} -->")
        if not opened or not closed:
            raise ValueError(f"{path.name} has no place for {mark}")
        text = f"{before}<!-- {mark} -->\n{content}<!-- end {mark} -->{after}"
    return text


def readme_tables() -> dict[str, str]:
    """The demonstration's result, methods in a row, the methods that are ready, and what they work on."""
    found = [
        [f"[{e.name}](docs/methods/{e.id}.md)", e.family, f"`{e.path}`", _code(e.command), e.replaces] for e in ready()
    ]
    fits = [[e.name, e.models, e.tasks, e.result] for e in ready()]
    chain = recorded(recipes()["compose"]["chain"])
    return {
        "demo": (HERE / "evidence" / "demo.md").read_text(encoding="utf-8"),
        "chain": f"{markdown(chain['header'], chain['rows'])}\n*{chain['setting']}.*\n",
        "methods": _words(["method", "family", "object", "command", "instead of"], found),
        "compatibility": _words(["method", "works on", "tasks", "export"], fits),
    }


def _words(header: list[str], rows: list[list[str]]) -> str:
    """A table of words: every column begins at the left."""
    return markdown(header, rows).replace("---:|", "---|", len(header) - 1)


def _code(command: str) -> str:
    return f"`{command}`" if command else "-"


def _paper(e: Entry) -> str:
    return f"[{e.arxiv}](https://arxiv.org/abs/{e.arxiv})"


def _remark(claims: list[dict]) -> list[str]:
    """What a failed control means for the rest."""
    if all(c["held"] for c in claims if c["control"]):
        return []
    return [
        "A control did not hold: in this setting (few steps, the spread of a small model) the recipe cannot tell its "
        "variants apart, and what it found neither confirms nor refutes the paper.\n"
    ]


if __name__ == "__main__":
    for path, text in generated().items():
        path.write_text(text, encoding="utf-8")
