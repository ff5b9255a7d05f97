"""A family's names by rule: what its modules list in ``__all__`` is the family's, imported when it is asked for.

So a new method's file is all that its family needs, and a family costs nothing until one of its names is used.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

_LISTED = re.compile(r"^__all__ = (\[.*?\])$", re.MULTILINE | re.DOTALL)


def names(package: str, folder: Path) -> dict[str, str]:
    """The public names of a package's modules and the module of each, by name."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*.py")):
        if path.name != "__init__.py" and (listed := _LISTED.search(path.read_text(encoding="utf-8"))):
            module = ".".join([package, *path.relative_to(folder).with_suffix("").parts])
            for name in ast.literal_eval(listed[1]):
                if name in found:
                    raise ImportError(f"{package}: both {found[name]} and {module} offer {name}")
                found[name] = module
    return dict(sorted(found.items()))


def namespace(
    package: str, folder: str, *, needs: str | dict[str, str] = ""
) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """``__all__``, ``__getattr__`` and ``__dir__`` of a package.

    Parameters
    ----------
    package : str
        Its ``__name__``.
    folder : str
        Its ``__path__[0]``.
    needs : str or dict of str to str
        The extra that an import error names; by the package that is missing, where parts of a family need several.

    Examples
    --------
    >>> from rankwise import optim
    >>> from rankwise.family import namespace
    >>> public, get, _ = namespace(optim.__name__, optim.__path__[0])
    >>> "GaLoreAdamW" in public, get("GaLoreAdamW") is optim.GaLoreAdamW
    (True, True)
    """
    home = names(package, Path(folder))

    def get(name: str) -> Any:
        if name in home:
            try:
                return getattr(import_module(home[name]), name)
            except ModuleNotFoundError as error:
                missing = (error.name or "").partition(".")[0]
                extra = needs if isinstance(needs, str) else needs.get(missing, "")
                if not extra or missing == "rankwise":
                    raise
                raise ImportError(f"{name} needs: pip install 'rankwise[{extra}]' ({error})") from error
        if not name.startswith("_") and (Path(folder) / f"{name}.py").is_file():
            return import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return list(home), get, lambda: list(home)
