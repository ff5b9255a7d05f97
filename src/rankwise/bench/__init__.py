"""One recipe a method: its paper's headline claim measured on real data, with a control that can fail.

A recipe is a module below this package with a ``RECIPE`` record and a function ``run(out, *, seeds, on_event)`` that
returns `rankwise.bench.shared.evidence.Evidence`; or, in its place, ``measure`` and ``judge``, between which lies a
small file (`rankwise.bench.shared.measured`). Records are read from the source without importing it, so that listing
them costs nothing.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from importlib import import_module
from inspect import Parameter, signature
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from rankwise.events import OnEvent

if TYPE_CHECKING:
    from rankwise.bench.shared.evidence import Evidence
    from rankwise.bench.shared.measured import Rows


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a module measures; written with literals only.

    Attributes
    ----------
    name, part : str
        As in ``rankwise bench NAME --part PART``; the name is a method's id in the catalogue where it is about one.
    about : str
        One line.
    smoke : mapping
        For a try of under a minute that needs no network: arguments of ``run`` and, in capitals, sizes of the module.
    control : bool
        Whether one of its claims is a control; comparisons of speed have none.
    spreads : bool
        Whether its runs can go to several processes, or to a cluster.
    figures : tuple of (str, str)
        What a picture shows, and its file in ``docs/img``.
    remark : str
        What to know when reading the result.
    """

    name: str
    part: str
    about: str
    smoke: Mapping[str, object] = field(default_factory=dict)
    control: bool = True
    spreads: bool = False
    figures: tuple[tuple[str, str], ...] = ()
    remark: str = ""


@dataclass(frozen=True)
class Located:
    """A recipe and the module that holds it: ``rankwise.bench.`` and ``place`` with points."""

    recipe: Recipe
    place: Path

    @property
    def module(self) -> str:
        """To import."""
        return ".".join(["rankwise.bench", *self.place.parts])

    def check(self, seeds: int | None, *, spread: bool = False, data: Path | None = None) -> None:
        """Refuse a number of seeds where nothing is drawn, processes where runs go one after another, unread data."""
        if spread and not self.recipe.spreads:
            raise ValueError(
                f"the runs of {self.recipe.name} ({self.recipe.part}) go one after another: leave out --jobs and "
                "--scheduler, or name another part with --part"
            )
        taken = _options(import_module(self.module))
        if seeds is not None and "seeds" not in taken:
            raise ValueError(
                f"{self.recipe.name} ({self.recipe.part}) draws nothing: --seeds does not apply to it; "
                "leave it out, or name another part with --part"
            )
        if data is not None:
            if "data" not in taken:
                raise ValueError(
                    f"{self.recipe.name} ({self.recipe.part}) reads no data of yours: --data does not apply to it; "
                    "leave it out, or name another part with --part"
                )
            if not data.is_dir():
                raise ValueError(f"no such folder of data: {data}")

    def run(
        self, folder: Path, *, seeds: int | None, smoke: bool, data: Path | None = None, on_event: OnEvent | None = None
    ) -> Evidence:
        """Run it and keep ``evidence.json`` in ``folder``; runs that this code finished there before are read back.

        ``data`` is a folder of what cannot be fetched, for recipes that read such a thing.
        """
        import rankwise
        from rankwise.bench.clock import whole_time
        from rankwise.files import claimed, content_of

        self.check(seeds, data=data)
        module = import_module(self.module)
        small = self.recipe.smoke if smoke else {}
        options = {k: v for k, v in small.items() if k.islower()} | ({} if seeds is None else {"seeds": seeds})
        options |= {} if data is None else {"data": data}
        here = Path(__file__).parent
        code = [content_of(str(module.__file__)), *(content_of(str(p)) for p in sorted((here / "shared").glob("*.py")))]
        told = {"recipe": self.module, "smoke": smoke, "code": code, "version": rankwise.__version__}
        told |= {} if data is None else {"data": str(data.resolve())}
        with claimed(folder, made_by="bench", told=told):
            with self._sized(module, smoke), whole_time(folder, options) as took:
                evidence = self._measured(module, folder, smoke=smoke, on_event=on_event, **options)
                evidence.seconds, evidence.calls = took()
            evidence.write(folder / "evidence.json")
        return evidence

    def rescored(self, rows: Rows) -> Evidence:
        """Judge kept runs once more; nothing is measured.

        Raises
        ------
        ValueError
            Runs of another recipe, or of a form that this release does not judge; a recipe that keeps none.
        """
        module = import_module(self.module)
        if not hasattr(module, "judge"):
            timed = self.place.parts[0] == "speed"
            why = "measures times, which have no items to keep" if timed else "does not keep its runs"
            raise ValueError(f"{self.recipe.name} ({self.recipe.part}) {why}: it cannot be rescored")
        if rows.told["recipe"] != self.module:
            raise ValueError(f"these are runs of {rows.told['recipe']}, not of {self.module}")
        try:
            with self._sized(module, bool(rows.told["smoke"])):
                return module.judge(rows.runs, **rows.told["asked"])
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{self.recipe.name} ({self.recipe.part}) cannot judge these runs: they have another form than this "
                f"release keeps, or the recipe is at fault: {error!r}"
            ) from error

    def _measured(
        self, module: ModuleType, folder: Path, *, smoke: bool, on_event: OnEvent | None, **options: Any
    ) -> Evidence:
        if not hasattr(module, "judge"):
            return module.run(folder / "runs", on_event=on_event, **options)
        import rankwise
        from rankwise.bench.shared.measured import ROWS, kept

        taken = _options(module)
        asked = {"seeds": options.get("seeds", taken["seeds"].default)} if "seeds" in taken else {}
        told = {"recipe": self.module, "version": rankwise.__version__, "smoke": smoke, "asked": asked}
        return kept(module, folder / "runs", folder / ROWS, told=told, on_event=on_event, **options)

    def _sized(self, module: ModuleType, smoke: bool) -> AbstractContextManager[object]:
        """Within the block the module has the sizes of its record, where it is a try."""
        sizes: dict[str, Any] = {k: v for k, v in self.recipe.smoke.items() if smoke and k.isupper()}
        return patch.multiple(module, **sizes) if sizes else nullcontext()


def recipes() -> dict[str, dict[str, Located]]:
    """Every recipe's parts, by name and part, in the order of families, then names."""
    found: dict[str, dict[str, Located]] = {}
    here = Path(__file__).parent
    for path in sorted(here.rglob("*.py")):
        if (recipe := _record(path)) is not None:
            place = path.relative_to(here).with_suffix("")
            found.setdefault(recipe.name, {})[recipe.part] = Located(recipe, place)
    return found


def _options(module: ModuleType) -> Mapping[str, Parameter]:
    """What a recipe takes."""
    return signature(module.measure if hasattr(module, "judge") else module.run).parameters


def _record(path: Path) -> Recipe | None:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if (
            isinstance(node, ast.Assign)
            and ast.unparse(node.targets[0]) == "RECIPE"
            and isinstance(node.value, ast.Call)
        ):
            return Recipe(**{str(k.arg): ast.literal_eval(k.value) for k in node.value.keywords})
    return None
