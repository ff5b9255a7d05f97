"""Second-moment statistics of the inputs of linear layers, gathered in a few forward passes.

Layers that read the identical tensor (query, key and value of a block; gate and up) share one statistic, found by
tensor identity in a probe of one row. Padded and unlabelled positions are dropped, and padding is not computed: each
batch is run in chunks of similar length. The forward pass ends at the last input that is wanted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rankwise.files import whole_folder
from rankwise.spectral import StreamingSVD

Batch = Mapping[str, Tensor]
_CHUNK_ROWS = 8


class ActivationSpectra:
    """Streaming spectra of layer inputs.

    Attributes
    ----------
    leader : dict of str to str
        For every layer, the layer whose statistic it shares (itself, when it is the first reader of its input).
    streams : dict of str to StreamingSVD
        One a leader, in the order of execution.
    batches : int
        Batches seen.
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

    def save(self, folder: Path) -> None:
        """Write ``eva_state.safetensors`` into ``folder``: everything needed to reuse or merge the statistics."""
        tensors, notes = {}, {"batches": str(self.batches)}
        for name, stream in self.streams.items():
            for key, value in stream.state().items():
                if isinstance(value, Tensor):
                    tensors[f"{name}|{key}"] = value.contiguous()
                elif value is not None:
                    notes[f"{name}|{key}"] = repr(value)
        notes |= {f"leader|{k}": v for k, v in self.leader.items()}
        with whole_folder(Path(folder), made_by="ActivationSpectra.save") as draft:
            save_file(tensors, draft / "eva_state.safetensors", metadata=notes)

    @classmethod
    def load(cls, folder: Path) -> ActivationSpectra:
        """Read what `save` wrote."""
        import ast

        streams: dict[str, StreamingSVD] = {}
        with safe_open(Path(folder) / "eva_state.safetensors", framework="pt") as opened:
            notes = opened.metadata()
            leader = {k.partition("|")[2]: v for k, v in notes.items() if k.startswith("leader|")}
            for key, value in notes.items():
                name, _, attribute = key.partition("|")
                if attribute and name != "leader":
                    streams.setdefault(name, StreamingSVD(1)).__dict__[attribute] = ast.literal_eval(value)
            for key in opened.keys():  # noqa: SIM118  (not a dict)
                name, _, attribute = key.partition("|")
                streams[name].__dict__[attribute] = opened.get_tensor(key)
        ordered = {n: streams[n] for n in dict.fromkeys(leader.values())}
        spectra = cls(leader, ordered)
        spectra.batches = int(notes["batches"])
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
        Run in evaluation mode (its mode is restored).
    dataloader : iterable of dict of Tensor
        Keyword arguments of the model. ``attention_mask`` and, for token labels, ``labels`` choose the rows.
    layers : dict of str to nn.Module
        Linear layers whose inputs are wanted.
    n_components : int
        Components each statistic will be asked for.
    center, engine
        See `rankwise.spectral.StreamingSVD`.
    max_batches : int
        The most batches read (a process).
    settled : callable, optional
        Asked after 1, 2, 4, 8, … batches (all processes together) which of the leaders still read have enough; their
        statistics are read no further, and the forward pass ends at the last one left.
    label_mask_value : int, optional
        Positions with this label are dropped; ``None`` keeps them.

    Raises
    ------
    ValueError
        An empty loader, NaN activations (the layer is named), a model on the meta device.
    """
    parameter = next(model.parameters())
    if parameter.device.type == "meta":
        raise ValueError("the model is on the meta device: load its weights before gathering activations")
    training, spectra, batches = model.training, None, iter(dataloader)
    wanted: list[str] = []
    model.eval()
    try:
        for step in range(1, max_batches + 1):
            batch = next(batches, None)
            if not _anywhere(batch is not None):
                break
            if batch is not None:
                batch = {k: v.to(parameter.device) for k, v in batch.items() if isinstance(v, Tensor)}
                if spectra is None:
                    leader = _leaders(model, layers, {k: v[:1] for k, v in batch.items()})
                    names = list(dict.fromkeys(leader.values()))
                    spectra = ActivationSpectra(
                        leader, {n: StreamingSVD(n_components, center=center, engine=engine) for n in names}
                    )
                    wanted = names
                _accumulate(model, batch, spectra, wanted, layers, label_mask_value)
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
    finally:
        model.train(training)
    if spectra is None:
        raise ValueError("the dataloader is empty: no activations to decompose")
    return _checked(spectra.all_reduced())


@torch.no_grad()
def input_norms(
    model: nn.Module, dataloader: Iterable[Batch], layers: Mapping[str, nn.Module], *, max_batches: int = 8
) -> dict[str, Tensor]:
    """``‖X_·j‖₂`` of every input feature of each layer, ``(in,)`` float64, over the unpadded positions of some batches.

    Raises
    ------
    ValueError
        An empty loader, a layer that did not run, or activations with NaN (the layer is named).
    """
    squares: dict[str, Tensor] = {}
    mask: list[Tensor | None] = [None]

    def add(name: str) -> Callable:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x, keep = args[0], mask[0]
            rows = x[keep] if keep is not None and x.shape[:-1] == keep.shape else x.reshape(-1, x.shape[-1])
            squares[name] = squares.get(name, 0) + rows.double().square().sum(0)

        return hook

    device, training = next(model.parameters()).device, model.training
    model.eval()
    try:
        with _hooks({layer: add(n) for n, layer in layers.items()}):
            for _, batch in zip(range(max_batches), dataloader, strict=False):
                batch = {k: v.to(device) for k, v in batch.items() if isinstance(v, Tensor) and k != "labels"}
                mask[0] = _row_mask(batch, None)
                model(**batch)
    finally:
        model.train(training)
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
        if not math.isfinite(stream.total_variance):
            raise ValueError(f"activations of layer {name} have NaN or Inf entries")
    return spectra


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _anywhere(flag: bool) -> bool:
    """Whether any process says so."""
    if not _distributed():
        return flag
    value = torch.tensor(int(flag))
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value)


def _leaders(model: nn.Module, layers: Mapping[str, nn.Module], row: Batch) -> dict[str, str]:
    """Who reads whose input, in order of execution, by identity of the tensors of one forward pass."""
    inputs: list[tuple[Tensor, str]] = []  # holds the tensors, so that no address is reused
    leader: dict[str, str] = {}

    def note(name: str) -> Callable:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0]
            same = (n for t, n in inputs if (t.data_ptr(), t.shape, t.stride()) == (x.data_ptr(), x.shape, x.stride()))
            leader[name] = next(same, name)
            inputs.append((x, name))

        return hook

    with _hooks({layers[n]: note(n) for n in layers}):
        model(**row)
    if not leader:
        raise ValueError("none of the targeted layers ran in the forward pass")
    return {n: leader[n] for n in layers if n in leader}


class _Finished(Exception):
    """Everything wanted of this forward pass has been read."""


def _accumulate(
    model: nn.Module,
    batch: Batch,
    spectra: ActivationSpectra,
    wanted: list[str],
    layers: Mapping[str, nn.Module],
    label_mask_value: int | None,
) -> None:
    keep: list[Tensor | None] = [None]

    def add(name: str) -> Callable:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x, mask = args[0], keep[0]
            rows = x[mask] if mask is not None and x.shape[:-1] == mask.shape else x.reshape(-1, x.shape[-1])
            spectra.streams[name].partial_fit(rows.float())
            seen.add(name)
            if len(seen) == len(wanted):
                raise _Finished

        return hook

    with _hooks({layers[n]: add(n) for n in wanted}):
        for chunk in _chunks(batch):
            seen: set[str] = set()
            keep[0] = _row_mask(chunk, label_mask_value)
            try:
                model(**{k: v for k, v in chunk.items() if k != "labels"})
            except _Finished:
                continue


def _row_mask(batch: Batch, label_mask_value: int | None) -> Tensor | None:
    mask, labels = batch.get("attention_mask"), batch.get("labels")
    mask = None if mask is None else mask.bool()
    if label_mask_value is not None and labels is not None and labels.dim() == 2:
        labelled = labels != label_mask_value
        mask = labelled if mask is None else mask & labelled
    return mask


def _chunks(batch: Batch) -> Iterator[Batch]:
    """The batch in pieces of similar length, each cut to its longest row (right padding only)."""
    mask = batch.get("attention_mask")
    if mask is None or mask.dim() != 2 or bool(mask.all()) or not bool(mask[:, 0].all()):
        yield batch
        return
    lengths = mask.shape[1] - mask.flip(1).long().argmax(1)
    for rows in lengths.argsort().split(_CHUNK_ROWS):
        longest = int(lengths[rows].max())
        yield {k: v[rows, :longest] if v.shape == mask.shape else v[rows] for k, v in batch.items()}


@contextmanager
def _hooks(hooks: Mapping[nn.Module, Callable]) -> Iterator[None]:
    with ExitStack() as stack:
        for module, hook in hooks.items():
            stack.callback(module.register_forward_pre_hook(hook).remove)
        yield
