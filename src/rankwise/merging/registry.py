"""The table of merging methods: adding one is writing a function and registering it.

A method merges one tensor of all models::

    @register("name", title="Name", paper="arXiv …", parameters={"weight": Parameter(1.0, per_model=True), …})
    def name(base, experts, *, dtype, weight, …) -> Tensor

``base`` is the tensor θ₀ of the base model (``None`` where there is none), ``experts`` those of the experts, all of one
shape in the dtype they are stored in; arithmetic is in float32, the result in ``dtype``. Per-model parameters come as
a list, a value an expert.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch import Tensor

from rankwise.nearest import unknown

__all__ = ["METHODS", "MergeMethod", "Parameter", "register"]

Scalar: TypeAlias = float | int | bool | str
MergeFunction = Callable[..., Tensor]


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One option of a method.

    Attributes
    ----------
    default : float, int, bool, str or None
        What is taken where nothing is given; ``None`` where it must be given.
    per_model : bool
        Whether every expert has its own value.
    low, high : float, optional
        Bounds of a number; ``low_open``: the lower one itself is refused.
    choices : tuple of str
        Accepted words; empty for numbers and switches.
    theirs : optional
        What mergekit takes where a configuration says nothing, if that is something else.

    Examples
    --------
    >>> from rankwise.merging import Parameter
    >>> Parameter(default=0.2, low=0.0, high=1.0).checked("density", 1.5)
    Traceback (most recent call last):
    ValueError: density=1.5 is outside [0, 1]
    """

    default: Scalar | None
    per_model: bool = False
    low: float | None = None
    high: float | None = None
    low_open: bool = False
    choices: tuple[str, ...] = ()
    theirs: Scalar | None = None

    def checked(self, name: str, value: object) -> Scalar:
        """The value, of the parameter's kind; a wrong one is an error that says what is accepted."""
        if self.choices:
            if isinstance(value, bool) and {"l1", "none"} <= set(self.choices):
                value = "l1" if value else "none"  # mergekit's rescale is a switch
            if value not in self.choices:
                raise unknown(name, str(value)[:80], self.choices)
            return str(value)
        if isinstance(self.default, bool):
            if not isinstance(value, bool):
                raise ValueError(f"{name}={value!r}: true or false is needed")
            return value
        if isinstance(value, bool) or not isinstance(value, float | int | str):
            raise ValueError(f"{name}={value!r}: a number is needed")
        try:
            number = float(value)
        except ValueError as error:
            raise ValueError(f"{name}={value!r}: a number is needed") from error
        too_low = self.low is not None and (number < self.low or (self.low_open and number == self.low))
        if number != number or too_low or (self.high is not None and number > self.high):
            left = "(" if self.low_open or self.low is None else "["
            low = "-inf" if self.low is None else f"{self.low:g}"
            high = "inf)" if self.high is None else f"{self.high:g}]"
            raise ValueError(f"{name}={value} is outside {left}{low}, {high}")
        return number


@dataclass(frozen=True, kw_only=True)
class MergeMethod:
    """A registered method.

    Attributes
    ----------
    name, title, paper : str
        What configurations call it, what people call it, and where it comes from.
    function : callable
        What merges a tensor of all models, see the module.
    parameters : dict of Parameter
        Its options, by name.
    needs_base : bool
        Whether it works on task vectors, so that a base is needed.
    least, most : int
        How few and how many experts it makes sense for.
    low_rank : bool
        It takes adapters' tensors as `rankwise.merging.LowRank`, never dense.
    seeded : bool
        It draws random numbers: it takes ``seed``.
    matrix : bool
        It treats matrices in its own way, others (norms, biases, embeddings) plainly: it takes ``matrix``.
    whole : bool
        It holds a tensor's task vectors whole, in float32, where others take a block of rows at a time.
    check : callable, optional
        Looks through a tensor's options before anything is merged; raises `ValueError`.
    survey, rations : callables, optional
        For options that share something out between tensors. ``survey(base, experts, **options)`` gives a number of
        each matrix, or None where it is not asked for; ``rations`` takes ``(number, smaller side, experts)`` of all of
        them, and gives what each is to be merged with besides its options.

    Examples
    --------
    >>> from rankwise.merging import METHODS
    >>> METHODS["ties"].paper, METHODS["ties"].needs_base, METHODS["ties"].parameters["density"].default
    ('arXiv 2306.01708', True, 0.2)
    """

    name: str
    title: str
    paper: str
    function: MergeFunction
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    needs_base: bool = True
    least: int = 1
    most: int | None = None
    low_rank: bool = False
    seeded: bool = False
    matrix: bool = False
    whole: bool = False
    check: Callable[[Mapping[str, Any]], None] | None = None
    survey: Callable[..., float | None] | None = None
    rations: Callable[[Sequence[tuple[float, int, int]]], list[dict[str, int]]] | None = None


METHODS: dict[str, MergeMethod] = {}


def register(
    name: str, *, title: str, paper: str, parameters: Mapping[str, Parameter], **options: Any
) -> Callable[[MergeFunction], MergeFunction]:
    """Enter a function into `METHODS`; see the module for what it takes and returns.

    Examples
    --------
    >>> import torch
    >>> from rankwise.merging import METHODS, merge, register
    >>> @register("halfway", title="Halfway", paper="mine", parameters={}, most=1)
    ... def halfway(base, experts, *, dtype):
    ...     return ((base.float() + experts[0].float()) / 2).to(dtype)
    >>> merge([{"w": torch.ones(2)}], base={"w": torch.zeros(2)}, method="halfway")["w"].tolist()
    [0.5, 0.5]
    >>> _ = METHODS.pop("halfway")
    """

    def enter(function: MergeFunction) -> MergeFunction:
        METHODS[name] = MergeMethod(
            name=name,
            title=title,
            paper=paper,
            function=function,
            parameters=parameters,
            **options,
        )
        return function

    return enter


# methods of mergekit that are not built here, so that a configuration that asks for one is answered
ELSEWHERE = {
    "nuslerp", "multislerp", "karcher", "sce", "nearswap", "arcee_fusion", "ram", "ramplus_tl"
}  # fmt: skip


ALSO = {"resm": "rtsvm"}  # what a paper's later version calls its method


def find(name: str) -> MergeMethod:
    """The method of that name.

    Raises
    ------
    ValueError
        No such method; mergekit's that are not built here are told apart from typing errors.
    """
    if name in ELSEWHERE:
        here = ", ".join(sorted(METHODS))
        raise ValueError(f"merge_method '{name}' is not built here; mergekit has it. Accepted: {here}")
    name = ALSO.get(name, name)
    if name not in METHODS:
        raise unknown("merge_method", name, METHODS)
    return METHODS[name]


def weights(default: float = 1.0) -> dict[str, Parameter]:
    """The parameter every method has: ``weight``, a number an expert."""
    return {"weight": Parameter(default=default, per_model=True)}


def density(default: float) -> dict[str, Parameter]:
    """Share of entries kept; an expert of density 0 adds nothing."""
    return {"density": Parameter(default=default, per_model=True, low=0.0, high=1.0, theirs=1.0)}


def lambda_(default: float = 1.0) -> dict[str, Parameter]:
    """λ, the global scale; ``lambda`` in configuration files."""
    return {"scale": Parameter(default=default)}


def switch(name: str, default: bool) -> dict[str, Parameter]:
    """True or false."""
    return {name: Parameter(default=default)}


def rescale(*choices: str) -> dict[str, Parameter]:
    """How what is left of a task vector is scaled up again; the first is the default."""
    return {
        "rescale": Parameter(default=choices[0], choices=choices, theirs="l1" if "expectation" in choices else None)
    }


def checked_options(method: MergeMethod, given: Mapping[str, object], experts: int) -> dict[str, object]:
    """A method's arguments from options: defaults filled in, one value for all experts spread over them.

    Raises
    ------
    ValueError
        An unknown option, a value out of range, a list of another length.
    """
    for name in given:
        if name not in method.parameters:
            raise unknown(f"option of {method.name}", name, method.parameters)
    out: dict[str, object] = {}
    for name, parameter in method.parameters.items():
        value = given.get(name, parameter.default)
        if value is None:
            raise ValueError(f"{method.name} needs '{name}'")
        if not parameter.per_model:
            out[name] = parameter.checked(name, value)
            continue
        values = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value] * experts
        if len(values) != experts:
            raise ValueError(f"{name} has {len(values)} values for {experts} experts")
        out[name] = [parameter.checked(name, v) for v in values]
    if method.check is not None:
        method.check(out)
    return out
