"""A fitted click ranker in a folder, and back: ``ranker.json`` and ``ranker.safetensors``, nothing that runs.

Kept is what `predict` and ``propensity_`` need; a loaded ranker scores the same, and is not trained on.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from rankwise.files import whole_folder, write_json
from rankwise.nearest import unknown
from rankwise.ranking.click_baselines import IPWRanker, LabelRanker, PairDebiasRanker, RegressionEMRanker
from rankwise.ranking.click_ranker import ClickRanker, NaiveRanker, mlp
from rankwise.ranking.dla import DualLearningRanker
from rankwise.reading import read_json, read_tensors

__all__ = ["load_ranker", "save_ranker"]

RANKERS: dict[str, Callable[..., ClickRanker]] = {
    cls.__name__: cls
    for cls in (DualLearningRanker, NaiveRanker, IPWRanker, RegressionEMRanker, PairDebiasRanker, LabelRanker)
}
FORMAT = 1


def save_ranker(ranker: ClickRanker, folder: str | Path) -> None:
    """Write a fitted ranker of built-in layers; the folder appears when it is whole.

    Raises
    ------
    ValueError
        A ranker that is a module of one's own, or is not fitted; a folder that holds something else.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from rankwise.ranking import NaiveRanker, load_ranker, save_ranker
    >>> ranker = NaiveRanker("linear", steps=3).fit(np.eye(2), [0, 1], query=[0, 0])
    >>> with tempfile.TemporaryDirectory() as parent:
    ...     save_ranker(ranker, Path(parent, "ranker"))
    ...     again = load_ranker(Path(parent, "ranker"))
    >>> bool((again.predict(np.eye(2)) == ranker.predict(np.eye(2))).all())
    True
    """
    if not hasattr(ranker, "net_"):
        raise ValueError(f"this {type(ranker).__name__} is not fitted yet: fit it first")
    if not isinstance(ranker.ranker, str):
        raise ValueError("the ranker is a module of your own: save its state_dict, or use 'dnn' or 'linear'")
    with whole_folder(Path(folder), made_by="save_ranker") as draft:
        write_ranker(ranker, draft)


def write_ranker(ranker: ClickRanker, folder: Path) -> None:
    """The files of `save_ranker` into a folder that is there."""
    arrays = {f"net.{k}": v.detach().cpu() for k, v in ranker.net_.state_dict().items()}
    arrays |= {"center": torch.as_tensor(ranker.center_), "scale": torch.as_tensor(ranker.scale_)}
    if (propensity := getattr(ranker, "propensity_", None)) is not None:
        arrays["propensity"] = torch.as_tensor(np.array(propensity))
    said = {
        "format": FORMAT, "method": type(ranker).__name__, "ranker": ranker.ranker, "hidden": list(ranker.hidden),
        "norm": any(isinstance(m, torch.nn.LayerNorm) for m in ranker.net_.modules()),
        "features": ranker.n_features_in_, "list_size": ranker.list_size,
    }  # fmt: skip
    save_file({k: v.contiguous() for k, v in arrays.items()}, folder / "ranker.safetensors")
    write_json(folder / "ranker.json", said)


def load_ranker(folder: str | Path) -> ClickRanker:
    """Read what `save_ranker` wrote.

    Raises
    ------
    ValueError
        Not such a folder, or a broken one.
    """
    folder = Path(folder)
    if not (folder / "ranker.json").is_file():
        raise ValueError(f"{folder} holds no ranker: ranker.json is missing")
    said, arrays = read_json(folder / "ranker.json"), read_tensors(folder / "ranker.safetensors")
    try:
        return _loaded(said, arrays)
    except (KeyError, TypeError, RuntimeError, ValueError) as error:
        raise ValueError(f"{folder} holds a broken ranker: {error}") from error


def _loaded(said: dict[str, Any], arrays: dict[str, torch.Tensor]) -> ClickRanker:
    if said["format"] != FORMAT:
        raise ValueError(f"format {said['format']}, and {FORMAT} is read")
    if said["method"] not in RANKERS:
        raise unknown("method", str(said["method"]), RANKERS)
    hidden, d = tuple(int(h) for h in said["hidden"]), int(said["features"])
    ranker = RANKERS[said["method"]](str(said["ranker"]), hidden=hidden, list_size=int(said["list_size"]))
    ranker.center_, ranker.scale_ = (arrays[k].double().numpy() for k in ("center", "scale"))
    if ranker.center_.shape != (d,) or ranker.scale_.shape != (d,):
        raise ValueError(f"scales of {ranker.center_.shape} for {d} features")
    ranker.n_features_in_ = d
    with torch.device("meta"):  # only what the file holds is allocated
        ranker.net_ = mlp(d, () if ranker.ranker == "linear" else hidden, norm=bool(said["norm"]))
    net = {k.removeprefix("net."): v.float() for k, v in arrays.items() if k.startswith("net.")}
    ranker.net_.load_state_dict(net, assign=True)
    if "propensity" in arrays:
        vars(ranker)["propensity_"] = arrays["propensity"].double().numpy()
    return ranker
