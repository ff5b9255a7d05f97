"""What is kept of requests, and its folder: stock PEFT adapters, arrays as safetensors, the rest as JSON; no pickle.

o3.json                      model, encoder, settings, and what there is of every request
log.json                     what was asked when, of which data by hash, and what came of it
request-N/adapter_*          the block, as `PeftModel.from_pretrained` reads it
request-N/detector.safetensors, encoder.safetensors where the encoder was tuned, texts.json where texts are kept
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file
from torch import nn

from rankwise.continual.training import Schedule
from rankwise.continual.unlearning.blocks import Factors, shape_of
from rankwise.continual.unlearning.detector import Detector
from rankwise.continual.unlearning.rows import Row
from rankwise.continual.unlearning.settings import UnlearningSettings
from rankwise.files import write_json
from rankwise.models.names import BUNDLED
from rankwise.nearest import unknown
from rankwise.reading import read_json, read_tensors

VERSION = 1
_PREFIX = "base_model.model."


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request that is forgotten.

    Attributes
    ----------
    name : str
    number : int
        How many there were before it, those taken back included: decides its draws.
    data : str
        SHA-256 of its rows.
    rows : int
    losses : list of float
        Of each step.
    factors : Factors
        Its block; of a shared adapter what that was after it.
    detector : Detector
    encoder : Factors or None
        The encoder's block, where it was tuned.
    texts : list of Row or None

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> from rankwise.continual.unlearning.detector import Detector
    >>> from rankwise.continual.unlearning.state import Request
    >>> detector = Detector.fit(np.random.default_rng(0).normal(size=(20, 2, 8)))
    >>> block = {"q_proj": (torch.zeros(2, 64), torch.zeros(64, 2))}
    >>> request = Request(name="a", number=0, data="", rows=20, losses=[], factors=block, detector=detector)
    >>> request.bytes() - detector.bytes()
    1024
    """

    name: str
    number: int
    data: str
    rows: int
    losses: list[float]
    factors: Factors
    detector: Detector
    encoder: Factors | None = None
    texts: list[Row] | None = None

    def bytes(self) -> int:
        """Of block and detector."""
        held = [f for factors in (self.factors, self.encoder or {}) for pair in factors.values() for f in pair]
        return sum(f.numel() * f.element_size() for f in held) + self.detector.bytes()

    def check(self, layers: Mapping[str, nn.Module], depth: int, width: int, source: str) -> None:
        """Refuse what does not belong to a model with these layers and an encoder of this size."""
        where = f"{source}, request-{self.number}"
        for name, (A, B) in self.factors.items():
            if name not in layers:
                raise ValueError(f"{where}: the model has no layer {name}")
            out, inside = shape_of(layers[name])
            if A.shape[1:] != (inside,) or B.shape != (out, len(A)):
                raise ValueError(
                    f"{where}: {name} has factors {tuple(A.shape)}, {tuple(B.shape)}, its weight is {(out, inside)}"
                )
        seen = self.detector.statistics.mean.shape
        if seen != (depth, width):
            raise ValueError(f"{where}: its detector is of {seen} layers and width, the encoder has {(depth, width)}")


@dataclass(kw_only=True)
class State:
    """All that an unlearner keeps.

    Examples
    --------
    >>> from rankwise.continual import UnlearningSettings
    >>> from rankwise.continual.unlearning.state import State
    >>> parts = {"model": "smollm2", "identity": "", "encoder": "minilm", "settings": UnlearningSettings()}
    >>> State(**parts, requests=[], log=[], number=0).taken_back("req-1")
    Traceback (most recent call last):
    ValueError: unknown request 'req-1'; ...none: nothing is forgotten...
    """

    model: str
    identity: str
    encoder: str
    settings: UnlearningSettings
    requests: list[Request]
    log: list[dict[str, Any]]
    number: int
    encoder_identity: str = ""

    def taken_back(self, name: str) -> State:
        """Without a request, which the log says; nothing is measured, so that no model is needed."""
        names = [r.name for r in self.requests]
        if name not in names:
            raise unknown("request", name, names or ["none: nothing is forgotten"])
        left = without(self.requests, names.index(name), shared=self.settings.adapter == "shared")
        when = datetime.now(UTC).isoformat(timespec="seconds")
        return replace(self, requests=left, log=[*self.log, {"what": "relearn", "name": name, "when": when}])


def without(requests: Sequence[Request], at: int, *, shared: bool) -> list[Request]:
    """The other requests; of a shared adapter only the last can go."""
    if shared and at != len(requests) - 1:
        raise ValueError(
            f"'{requests[at].name}' cannot be taken back: later requests were trained on the same adapter; take back "
            f"'{requests[-1].name}' first, or use adapter='blocks'"
        )
    return [r for i, r in enumerate(requests) if i != at]


def identity(layers: Mapping[str, nn.Module]) -> str:
    """By which a model is known again: a row of every adapted layer."""
    total = hashlib.sha256()
    for name, layer in layers.items():
        weight: Any = layer.weight
        row = weight.detach()[0].cpu().contiguous()
        total.update(f"{name}{tuple(weight.shape)}{row.dtype}".encode() + row.view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def beside(name: str, folder: Path) -> str:
    """A model's folder by its way from the state's, so that both can be moved together; other names as they are."""
    own = name not in BUNDLED and Path(name).is_dir()
    return os.path.relpath(Path(name).resolve(), folder.resolve()) if own else name


def found(name: str, folder: Path) -> str:
    """What `beside` named."""
    return os.path.normpath(folder.resolve() / name) if name.startswith("..") else name


def said(settings: UnlearningSettings) -> dict[str, Any]:
    """Settings as plain data."""
    return asdict(settings) | {"refusals": [*settings.refusals]}


def write(folder: Path, state: State) -> None:
    """Into a draft folder."""
    for r in state.requests:
        own = folder / f"request-{r.number}"
        own.mkdir(exist_ok=True)  # a draft that was cut short while this was written
        _write_adapter(own, r.factors, state)
        save_arrays({n: np.ascontiguousarray(a) for n, a in r.detector.arrays().items()}, own / "detector.safetensors")
        if r.encoder is not None:
            save_file(_flat(r.encoder), own / "encoder.safetensors")
        if r.texts is not None:
            write_json(own / "texts.json", {"rows": [[t.prompt, t.answer, list(t.choices)] for t in r.texts]})
    about = [{k: getattr(r, k) for k in ("name", "number", "data", "rows", "losses")} for r in state.requests]
    parts = {"model": state.model, "identity": state.identity, "encoder": state.encoder, "number": state.number}
    parts["encoder_identity"] = state.encoder_identity
    write_json(folder / "o3.json", {"version": VERSION, **parts, "settings": said(state.settings), "requests": about})
    write_json(folder / "log.json", {"log": state.log})


def read(folder: Path) -> State:
    """A folder that `write` filled.

    Raises
    ------
    ValueError
        Nothing of the kind, or files that were not written so; one line that names the file.
    """
    if not (folder / "o3.json").is_file():
        raise ValueError(f"{folder} holds no requests of `rankwise continual forget`: o3.json is missing")
    told = read_json(folder / "o3.json")
    try:
        if told["version"] != VERSION:
            raise ValueError(f"version {told['version']} is not {VERSION}, which is read here")
        given = told["settings"]
        schedule = Schedule(**given["schedule"] | {"betas": tuple(given["schedule"]["betas"])})
        settings = UnlearningSettings(**given | {"schedule": schedule})
        about = [(r, _number(r["number"])) for r in told["requests"]]
        names = [r["name"] for r, _ in about]
        if len(set(names)) < len(names) or len({n for _, n in about}) < len(about):
            raise ValueError("a request is there twice")
        texts = {"model": str, "identity": str, "encoder": str, "number": int}
        plain = {k: t(told[k]) for k, t in texts.items()}
        reads = str(told.get("encoder_identity", ""))  # an earlier version kept none
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{folder}/o3.json is not what rankwise writes: {error}") from error
    requests = [_request(folder / f"request-{n}", r, settings) for r, n in about]
    log = read_json(folder / "log.json").get("log")
    if not isinstance(log, list):
        raise ValueError(f"{folder}/log.json holds no log")
    return State(settings=settings, requests=requests, log=log, encoder_identity=reads, **plain)


def _request(folder: Path, about: dict[str, Any], settings: UnlearningSettings) -> Request:
    arrays = {n: t.numpy() for n, t in read_tensors(folder / "detector.safetensors").items()}
    encoder = texts = None
    try:
        detector = Detector.of(arrays, settings.score)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder}/detector.safetensors is not what rankwise writes: {error}") from error
    factors = _read_factors(folder / "adapter_model.safetensors", _PREFIX, (".lora_A.weight", ".lora_B.weight"))
    if (folder / "encoder.safetensors").is_file():
        encoder = _read_factors(folder / "encoder.safetensors", "", ("|A", "|B"))
    try:
        if (folder / "texts.json").is_file():
            texts = [Row(str(p), str(a), tuple(map(str, c))) for p, a, c in read_json(folder / "texts.json")["rows"]]
        return Request(
            name=str(about["name"]), number=int(about["number"]), data=str(about["data"]), rows=int(about["rows"]),
            losses=[float(x) for x in about["losses"]], factors=factors, detector=detector, encoder=encoder,
            texts=texts,
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder}: what is kept of this request is not what rankwise writes: {error!r}") from error


def _number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"the number of a request is {value!r}")
    return value


def _flat(factors: Factors) -> dict[str, Any]:
    return {
        f"{n}|{side}": f.cpu().contiguous() for n, pair in factors.items() for side, f in zip("AB", pair, strict=True)
    }


def _write_adapter(folder: Path, factors: Factors, state: State) -> None:
    """The block as PEFT's LoRA, whose full weight is this one's at a scale of 1."""
    rank = len(next(iter(factors.values()))[0])
    sides = zip(("A", "B"), (0, 1), strict=True)
    tensors = {
        f"{_PREFIX}{n}.lora_{side}.weight": pair[i].cpu().contiguous()
        for side, i in sides
        for n, pair in factors.items()
    }
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    alpha: Any = rank * state.settings.scaling  # PEFT takes any number
    LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=sorted(factors), task_type="CAUSAL_LM",
        base_model_name_or_path=None if state.model.startswith("..") else state.model or None, inference_mode=True,
    ).save_pretrained(str(folder))  # fmt: skip


def _read_factors(path: Path, prefix: str, ends: tuple[str, str]) -> Factors:
    found = read_tensors(path)
    names = [
        n.removeprefix(prefix).removesuffix(ends[0]) for n in found if n.startswith(prefix) and n.endswith(ends[0])
    ]
    try:
        factors = {n: (found[f"{prefix}{n}{ends[0]}"], found[f"{prefix}{n}{ends[1]}"]) for n in names}
    except KeyError as error:
        raise ValueError(f"{path}: {error} is missing") from error
    if not factors or 2 * len(factors) != len(found):
        raise ValueError(f"{path} holds other tensors than a block's")
    for name, pair in factors.items():
        if any(f.dim() != 2 or not f.is_floating_point() or not bool(torch.isfinite(f).all()) for f in pair):
            raise ValueError(f"{path}: {name} has factors that are no finite matrices")
    return factors
