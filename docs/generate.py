"""Write what is generated: the list of methods, the evidence page, and the README's tables, from the bench results."""

from __future__ import annotations

import json
from pathlib import Path

from rankwise import bench
from rankwise.catalogue import CATALOGUE
from rankwise.report.tables import markdown

HERE = Path(__file__).parent
RECIPES = tuple(module for recipe in bench.RECIPES.values() for module in recipe.parts.values())
FIGURES = {
    "videoicl": "![share of right answers against the model's confidence](img/videoicl_reliability.png)\n",
    "flexible_survival": "![hazards of four trials](img/flexible_survival.png)\n",
    "kde_gaussian": "![critical bandwidths, and fluctuations across them](img/kde_gaussian.png)\n",
    "singular_manifolds": "![samples by noise level](img/singular_manifolds.png)\n\n"
    "![distance to the truth by noise level](img/singular_levels.png)\n",
    "rtsvm": "![what summing two experts costs against the overlap of their subspaces](img/rtsvm_interference.png)\n",
    "s2lora_speech": "![AdaLoRA's ranks and S2-LoRA's mass by layer](img/s2lora_speech_ranks.png)\n\n"
    "In so few steps the L1 term made no coefficient zero: S2-LoRA's effective rank is full everywhere, and what is "
    "compared is the coefficients' mass.\n",
}


def methods() -> str:
    """The catalogue as a table."""
    rows = [[e.name, e.family, e.status, f"[{e.arxiv}](https://arxiv.org/abs/{e.arxiv})", e.claim] for e in CATALOGUE]
    return "# The 27 methods\n\n" + markdown(["method", "family", "status", "paper", "claim"], rows)


def evidence() -> str:
    """Every recipe's table, claims and verdicts, as its JSON says."""
    parts = [
        "# Evidence\n\nWhat the papers claim, measured here on real data with a control that can fail. Differences are "
        "paired by seed (p is the one-sided exact sign-flip p-value) or by query (with bootstrap intervals). A claim "
        "that did not hold is listed as such.\n"
    ]
    for recipe in RECIPES:
        path = HERE / "evidence" / f"{recipe}.json"
        if not path.exists():
            continue
        e = json.loads(path.read_text(encoding="utf-8"))
        env = e["environment"]
        claims = [["**held**" if c["held"] else "**not held**", c["text"], c["found"]] for c in e["claims"]]
        parts += [
            f"## {e['title']}\n\n`{e['command']}`\n\n{e['setting']}.\n",
            markdown(e["header"], e["rows"]),
            markdown(["verdict", "claim", "found"], claims),
            *_remark(e["claims"]),
            *([FIGURES[recipe]] if recipe in FIGURES else []),
            f"torch {env['torch']}, peft {env['peft']}, {env['device']}, {env['threads']} thread(s).\n",
        ]
    return "\n".join(parts)


def _remark(claims: list[dict]) -> list[str]:
    """What a failed control means for the rest."""
    if all(c["held"] for c in claims if c["control"]):
        return []
    return [
        "A control did not hold: in this setting (few steps, the spread of a small model) the recipe cannot tell its "
        "variants apart, so the verdicts above neither confirm nor refute the paper.\n"
    ]


def readme(text: str) -> str:
    """The README with the demonstration's table and each recipe's count of verdicts between their marks."""
    table = (HERE / "evidence" / "demo.md").read_text(encoding="utf-8")
    rows = []
    for recipe in (r for r in RECIPES if (HERE / "evidence" / f"{r}.json").exists()):
        e = json.loads((HERE / "evidence" / f"{recipe}.json").read_text(encoding="utf-8"))
        rows.append([e["title"], f"`{e['command']}`", _held(e["claims"], False), _held(e["claims"], True)])
    found = markdown(["recipe", "command", "claims held", "controls held"], rows)
    for mark, content in (("demo", table), ("claims", found)):
        before, _, rest = text.partition(f"<!-- {mark} -->")
        after = rest.partition(f"<!-- end {mark} -->")[2] if f"<!-- end {mark} -->" in rest else rest
        text = f"{before}<!-- {mark} -->\n{content}<!-- end {mark} -->{after}"
    return text


def _held(claims: list[dict], control: bool) -> str:
    verdicts = [c["held"] for c in claims if c["control"] == control]
    return f"{sum(verdicts)} of {len(verdicts)}" if verdicts else "-"


if __name__ == "__main__":
    readme_path = HERE.parent / "README.md"
    readme_path.write_text(readme(readme_path.read_text(encoding="utf-8")), encoding="utf-8")
    (HERE / "methods.md").write_text(methods(), encoding="utf-8")
    (HERE / "evidence.md").write_text(evidence(), encoding="utf-8")
