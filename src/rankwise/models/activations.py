"""Second-moment statistics of the inputs of linear layers, gathered in a few forward passes.

Layers that read the identical tensor (query, key and value of a block; gate and up) share one statistic, found by
tensor identity in a probe of one row. The forward pass ends at the last input that is wanted. Which positions count,
and what a batch may be, is in `rankwise.models.passes`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn

from rankwise.files import whole_folder
from rankwise.models.passes import Batch, Passes, evaluating
from rankwise.reading import read_tensors, tensor_file
from rankwise.spectral import StreamingSVD

__all__ = ["ActivationSpectra", "Batch", "gather", "input_norms"]

_STATE = "eva_state.safetensors"


class ActivationSpectra:
    """Streaming spectra of layer inputs.

    Attributes
    ----------
    leader : dict of str to str
        For every layer, the layer whose statistic it shares (itself, when it is the first reader of its input).
    streams : dict of str to StreamingSVD
        One a leader, in the order of execution.
    batches : int
        How many batches were read.

    Examples
    --------
    >>> import torch
    >>> from rankwise.models.activations import gather
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> batches = [{"input": torch.randn(32, 8)} for _ in range(4)]
    >>> spectra = gather(model, batches, {"0": model[0], "2": model[2]}, n_components=3)
    >>> spectra.batches, spectra.stream("2").n_features, spectra.stream("0").explained_variance_ratio().shape
    (4, 4, torch.Size([3]))
    """

    def __init__(self, leader: dict[str, str], streams: dict[str, StreamingSVD]) -> None:
        self.leader, self.streams, self.batches = leader, streams, 0

    def stream(self, layer: str) -> StreamingSVD:
        """The statistic of a layer's input."""
        return self.streams[self.leader[layer]]

    def merge(self, other: ActivationSpectra) -> ActivationSpectra:
        """Fold in the statistics of another shard of the data. Returns self."""
        if self.leader != other.leader:
            raise ValueError("spectra of different layers cannot be merged")
        for name, stream in self.streams.items():
            stream.merge(other.streams[name])
        self.batches += other.batches
        return self

    def all_reduced(self) -> ActivationSpectra:
        """The statistics of all ``torch.distributed`` processes together: a copy where there are several, else self."""
        if not _distributed():
            return self
        copy = ActivationSpectra(self.leader, {})
        for name, stream in self.streams.items():
            merged = StreamingSVD(stream.n_components)
            merged.__dict__.update(stream.state())
            copy.streams[name] = merged.all_reduce()
        copy.batches = self.batches
        return copy

    def save(self, folder: str | Path) -> None:
        """Write ``eva_state.safetensors`` into ``folder``: everything needed to reuse or merge the statistics."""
        states = {n: s.state() for n, s in self.streams.items()}
        tensors = {f"{n}|{k}": v.contiguous() for n, s in states.items() for k, v in s.items() if isinstance(v, Tensor)}
        settings = {n: {k: v for k, v in s.items() if not isinstance(v, Tensor)} for n, s in states.items()}
        told = {"batches": self.batches, "leader": self.leader, "streams": settings}
        with whole_folder(Path(folder), made_by="ActivationSpectra.save") as draft:
            save_file(tensors, draft / _STATE, metadata={"spectra": json.dumps(told)})

    @classmethod
    def load(cls, folder: str | Path) -> ActivationSpectra:
        """Read what `save` wrote.

        Raises
        ------
        ValueError
            A file that is damaged, or that something else wrote.
        """
        path = Path(folder) / _STATE
        tensors = read_tensors(path)
        try:
            with tensor_file(path) as opened:
                told = json.loads((opened.metadata() or {})["spectra"])
            spectra = cls(told["leader"], {})
            for name in dict.fromkeys(spectra.leader.values()):
                stream, empty = StreamingSVD(1), StreamingSVD(1).state().keys()
                own = {k.rpartition("|")[2]: v for k, v in tensors.items() if k.rpartition("|")[0] == name}
                stream.__dict__.update({k: v for k, v in (told["streams"][name] | own).items() if k in empty})
                spectra.streams[name] = stream
            spectra.batches = int(told["batches"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path} does not hold activation spectra ({error}); gather them again") from error
        return spectra


@torch.no_grad()
def gather(
    model: nn.Module,
    dataloader: Iterable[Batch],
    layers: Mapping[str, nn.Module],
    *,
    n_components: int,
    center: bool = True,
    engine: Literal["auto", "exact", "incremental"] = "auto",
    max_batches: int = 32,
    settled: Callable[[ActivationSpectra, list[str]], set[str]] | None = None,
    label_mask_value: int | None = -100,
    on_batch: Callable[[int], None] | None = None,
) -> ActivationSpectra:
    """Stream batches through the frozen model and collect the inputs' statistics.

    Parameters
    ----------
    model : nn.Module
        Run in evaluation mode (every module's mode is restored).
    dataloader : iterable of dict
        Keyword arguments of the model; those that are no tensors are passed on as they are. ``attention_mask`` and, for
        token labels, ``labels`` choose the rows. The first ``max_batches`` are read: their order should be random.
    layers : dict of str to nn.Module
        Linear layers whose inputs are wanted.
    n_components : int
        Components each statistic will be asked for.
    center, engine
        Options of every statistic, see `rankwise.spectral.StreamingSVD`.
    max_batches : int
        Batches that each process reads at most.
    settled : callable, optional
        Asked after 1, 2, 4, 8, … batches (all processes together) which of the leaders still read have enough; their
        statistics are read no further, and the forward pass ends at the last one left.
    label_mask_value : int, optional
        Positions with this label are dropped; ``None`` keeps them.

    Raises
    ------
    ValueError
        An empty loader, NaN activations or a layer that never ran (the layer is named), a model on the meta device.
    TypeError
        Batches that are no mappings.

    Examples
    --------
    >>> import torch
    >>> from transformers import BertConfig, BertModel
    >>> from rankwise.models import linear_layers
    >>> from rankwise.models.activations import gather
    >>> config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    >>> model = BertModel(config)
    >>> batches = [{"input_ids": torch.randint(1000, (8, 12))} for _ in range(2)]
    >>> spectra = gather(model, batches, linear_layers(model), n_components=4)
    >>> len(spectra.leader), len(spectra.streams)  # query, key and value read one input
    (6, 4)
    """
    passes, batches = Passes(model, label_mask_value), iter(dataloader)
    spectra, calls = None, {}
    wanted: list[str] = []
    with evaluating(model):
        for step in range(1, max_batches + 1):
            batch = next(batches, None)
            if not _anywhere(batch is not None):
                break
            if batch is not None:
                if spectra is None:
                    leader, calls = passes.probe(batch, layers)
                    wanted = list(dict.fromkeys(leader.values()))
                    spectra = ActivationSpectra(
                        leader, {n: StreamingSVD(n_components, center=center, engine=engine) for n in wanted}
                    )
                readers = {layers[n]: _into(spectra.streams[n]) for n in wanted}
                passes.run(batch, readers, {layers[n]: calls[n] or math.inf for n in wanted})
            if spectra is None:
                break
            spectra.batches = step
            if on_batch is not None:
                on_batch(step)
            if settled is not None and step & (step - 1) == 0:
                enough = settled(spectra.all_reduced(), wanted)
                wanted = [n for n in wanted if n not in enough]
                if not wanted:
                    break
    if spectra is None:
        raise ValueError("the dataloader is empty: no activations to decompose")
    return _checked(spectra.all_reduced())


def _into(stream: StreamingSVD) -> Callable[[Tensor], None]:
    def reader(rows: Tensor) -> None:
        stream.partial_fit(rows.float())

    return reader


@torch.no_grad()
def input_norms(
    model: nn.Module, dataloader: Iterable[Batch], layers: Mapping[str, nn.Module], *, max_batches: int = 8
) -> dict[str, Tensor]:
    """``‖X_·j‖₂`` of every input feature of each layer, ``(in,)`` float64, over the unpadded positions of some batches.

    Parameters
    ----------
    model, dataloader
        A model and batches of its inputs, as `gather` takes them.

    Raises
    ------
    ValueError
        An empty loader, a layer that did not run, or activations with NaN (the layer is named).

    Examples
    --------
    >>> import torch
    >>> from rankwise.models.activations import input_norms
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 4))
    >>> norms = input_norms(model, [{"input": torch.tensor([[3.0, 0.0], [4.0, 1.0]])}], {"0": model[0]})
    >>> norms["0"].tolist()
    [5.0, 1.0]
    """
    squares: dict[str, Tensor] = {}

    def add(name: str) -> Callable[[Tensor], None]:
        def reader(rows: Tensor) -> None:
            squares[name] = squares.get(name, 0) + rows.double().square().sum(0)

        return reader

    passes, readers = Passes(model), {layer: add(n) for n, layer in layers.items()}
    with evaluating(model):
        for _, batch in zip(range(max_batches), dataloader, strict=False):
            passes.run(batch, readers)
    if not squares:
        raise ValueError("the dataloader is empty: no activations to measure")
    for name in layers:
        if name not in squares:
            raise ValueError(f"layer {name} did not run in the forward pass")
        if not torch.isfinite(squares[name]).all():
            raise ValueError(f"activations of layer {name} have NaN or Inf entries")
    return {n: squares[n].sqrt() for n in layers}


def _checked(spectra: ActivationSpectra) -> ActivationSpectra:
    for name, stream in spectra.streams.items():
        if stream.n_samples == 0:
            raise ValueError(
                f"layer {name} did not run, or no position of its input counts: give data that reaches it, or leave it "
                "out"
            )
        if not math.isfinite(stream.total_variance):
            raise ValueError(f"activations of layer {name} have NaN or Inf entries")
    return spectra


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _anywhere(flag: bool) -> bool:
    """Whether any process says so."""
    if not _distributed():
        return flag
    flags = [flag] * dist.get_world_size()
    dist.all_gather_object(flags, flag)
    return any(flags)
