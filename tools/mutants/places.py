"""Where a module can be mutated, by mutmut's operators, and a seeded draw of such places."""

from __future__ import annotations

import ast
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import libcst as cst
import libcst.matchers as m
from libcst.metadata import CodeRange, MetadataWrapper, PositionProvider
from mutmut.mutation.mutators import mutation_operators

# `x = None` for every assignment dies of the first use of x: it says nothing about what a test checks
_OPERATORS = [(kind, operator) for kind, operator in mutation_operators if operator.__name__ != "operator_assignment"]

# arguments that only guard (zip's) or that no machine without an accelerator can tell
_GUARDS = ("strict", "device")
_SILENT = ("warn", "debug", "info", "warning", "error", "exception", "print", "TypeVar", "ParamSpec")
_named = m.Name() | m.Attribute()
_SKIPPED = (
    m.Annotation()
    | m.Decorator()
    | m.Raise()
    | m.Assert()
    | m.Expr(m.SimpleString() | m.ConcatenatedString())
    | m.FunctionDef(name=m.Name("__repr__") | m.Name("__str__"))
    | m.FunctionDef(decorators=[m.AtLeastN(m.Decorator(m.Name("overload")), n=1)])
    | m.If(test=m.Name("TYPE_CHECKING"))
    | m.Assign(targets=[m.AssignTarget(m.Name("__all__"))])
    | m.Subscript(value=m.Name("Literal"))
    | m.Call(func=m.OneOf(*(m.Name(n) | m.Attribute(attr=m.Name(n)) for n in _SILENT)))
    | m.Arg(keyword=m.OneOf(*map(m.Name, _GUARDS)))
    | m.Param(name=m.Name("seed"))
)


@dataclass(frozen=True, eq=False)
class Place:
    """One fault: a node of a module and what stands there instead.

    Attributes
    ----------
    file : Path
    line : int
        Where the node begins.
    statement : range
        Lines of the statement around it, of which a test must execute one.
    scope : str
        Name of the function around it, if any.
    operator : str
        Name of the operator.
    """

    file: Path
    line: int
    statement: range
    scope: str
    operator: str
    module: cst.Module
    node: cst.CSTNode
    instead: cst.CSTNode

    def source(self) -> str:
        """The whole module with the fault in it."""
        mutated = self.module.deep_replace(self.node, self.instead)
        assert isinstance(mutated, cst.Module)
        return mutated.code


@dataclass(frozen=True)
class Mutant:
    """A module with one fault: ``before`` became ``after`` at ``line`` of ``file``, in the function ``scope``."""

    file: Path
    line: int
    statement: range
    scope: str
    before: str
    after: str
    source: str


def places(file: Path) -> list[Place]:
    """All faults of the mathematics of a file: none in texts, types, checks, messages and what only guards."""
    finder = _Finder(file)
    wrapper = MetadataWrapper(cst.parse_module(file.read_text()))
    finder.module = wrapper.module
    wrapper.visit(finder)
    return finder.found


def draw(found: Sequence[Place], seed: int) -> Iterator[Mutant]:
    """Mutants in a seeded order: every line has the same chance, then every operator that applies to it."""
    chance = random.Random(seed)
    lines: dict[tuple[Path, int], dict[str, list[Place]]] = defaultdict(lambda: defaultdict(list))
    for place in found:
        lines[place.file, place.line][place.operator].append(place)
    while lines:
        for line in chance.sample(sorted(lines), len(lines)):
            operators = lines[line]
            name = chance.choice(sorted(operators))
            place = operators[name].pop(chance.randrange(len(operators[name])))
            if not operators[name]:
                del operators[name]
            if not operators:
                del lines[line]
            if mutant := _mutant(place):
                yield mutant


def _mutant(place: Place) -> Mutant | None:
    """None where the mutant does not parse, or means the same."""
    original, source = place.module.code, place.source()
    try:
        if ast.dump(ast.parse(source)) == ast.dump(ast.parse(original)):
            return None
    except SyntaxError:
        return None
    a, b = original.splitlines(), source.splitlines()
    while a and b and a[0] == b[0]:
        a, b = a[1:], b[1:]
    while a and b and a[-1] == b[-1]:
        a, b = a[:-1], b[:-1]
    before, after = (" ".join(line.strip() for line in lines) for lines in (a, b))
    return Mutant(place.file, place.line, place.statement, place.scope, before, after, source)


class _Finder(cst.CSTVisitor):
    METADATA_DEPENDENCIES = (PositionProvider,)
    module: cst.Module

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file, self.found = file, []
        self.statement: range | None = None
        self.scopes = [""]

    def on_visit(self, node: cst.CSTNode) -> bool:
        if m.matches(node, _SKIPPED):
            return False
        where = self.get_metadata(PositionProvider, node, None)
        if not isinstance(where, CodeRange):
            return super().on_visit(node)
        lines = range(where.start.line, where.end.line + 1)
        if isinstance(node, cst.SimpleStatementLine):
            self.statement = lines
        if isinstance(node, cst.FunctionDef):
            self.scopes.append(node.name.value)
        for kind, operator in _OPERATORS:
            for instead in operator(node) if isinstance(node, kind) else ():
                if not _drops_a_guard(node, instead):
                    name, statement = operator.__name__, self.statement or lines
                    place = Place(self.file, lines[0], statement, self.scopes[-1], name, self.module, node, instead)
                    self.found.append(place)
        return super().on_visit(node)

    def on_leave(self, original_node: cst.CSTNode) -> None:
        if isinstance(original_node, cst.SimpleStatementLine):
            self.statement = None
        if isinstance(original_node, cst.FunctionDef) and self.scopes[-1] == original_node.name.value:
            self.scopes.pop()
        super().on_leave(original_node)


def _drops_a_guard(node: cst.CSTNode, instead: cst.CSTNode) -> bool:
    if not (isinstance(node, cst.Call) and isinstance(instead, cst.Call)):
        return False
    gone = [a for a in node.args if not any(a is b for b in instead.args)]
    return any(a.keyword is not None and a.keyword.value in _GUARDS for a in gone)
