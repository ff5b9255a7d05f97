"""Tasks on disk: ``tasks.json`` says what there are, ``task-N.safetensors`` holds the factors of each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from rankwise.continual.learning.content import content_of_values
from rankwise.continual.learning.tasks import LearnedTask
from rankwise.files import whole_file, write_json
from rankwise.reading import read_json, read_tensors
from rankwise.tuning.codyra import KeptRank


def write_tasks(folder: Path, tasks: Sequence[LearnedTask], *, number: int, first: str) -> None:
    """Factors that are not there yet, by their content, and the list of all last.

    Parameters
    ----------
    folder : Path
        What is there of these tasks is kept.
    tasks : sequence of LearnedTask
        In their order.
    number : int
        How many were ever learned.
    first : str
        Content of the weights that they began with.
    """
    for task in tasks:
        path, flat = folder / _file(task.number), {f"{n}|A": A for n, (A, _) in task.factors.items()}
        flat |= {f"{n}|B": B for n, (_, B) in task.factors.items()}
        if not _holds(path, flat):
            with whole_file(path) as draft:
                save_file(flat, draft)
    told = [
        {"name": t.name, "classes": t.classes, "number": t.number, "losses": t.losses,
         "ranks": {n: tuple(kept) for n, kept in t.ranks.items()}}
        for t in tasks
    ]  # fmt: skip
    write_json(folder / "tasks.json", {"number": number, "first": first, "tasks": told})


def read_tasks(folder: Path) -> tuple[int, str, list[LearnedTask]]:
    """How many tasks were ever learned, the content of the first weights, and the tasks."""
    if not (folder / "tasks.json").is_file():
        raise ValueError(f"{folder} holds no tasks of a CodyraLearner: tasks.json is missing")
    told, history = read_json(folder / "tasks.json"), []
    try:
        for task in told["tasks"]:
            flat = read_tensors(folder / _file(int(task["number"])))
            task["factors"] = {n: (flat[f"{n}|A"], flat[f"{n}|B"]) for n in task["ranks"]}
            task["ranks"] = {n: KeptRank(*kept) for n, kept in task["ranks"].items()}
            history.append(LearnedTask(**task | {"classes": tuple(task["classes"])}))
        return int(told["number"]), str(told["first"]), history
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder}/tasks.json is not what a CodyraLearner writes: {error!r}") from error


def _holds(path: Path, flat: dict[str, Tensor]) -> bool:
    """Whether these tensors are there already; those of another learner, or damaged ones, are not."""
    try:
        return path.is_file() and content_of_values(read_tensors(path)) == content_of_values(flat)
    except ValueError:
        return False


def _file(number: int) -> str:
    """Of the factors of a task."""
    return f"task-{number}.safetensors"
