"""What methods that adapt while they predict share: reading a batch, one step, undoing it all, keeping the state.

A method's file says which parameters move and how; batches, safety, reset and files are here, once.
"""

from __future__ import annotations

import json
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor, nn

from rankwise.continual.accepted import refuse_adapters
from rankwise.continual.settings import Settings
from rankwise.files import differences, whole_folder, write_json
from rankwise.nearest import unknown
from rankwise.reading import read_json, read_tensors

MADE_BY = "continual adapt"  # what writes folders of a state
LABELS = ("labels", "label")  # of a batch, never read
Inputs = Tensor | dict[str, Tensor]


class StreamAdapter(ABC):
    """A model that adapts to what it predicts, batch after batch, without labels.

    Parameters
    ----------
    model : nn.Module
        A classifier: called with pixels, or with a batch's entries, it gives logits ``(batch, classes)`` or an object
        that has ``logits``. It is changed in place; `release` undoes that.
    mean, std : sequence of float, optional
        Of the pixels' colours, where the model takes ``(value - mean) / std``, as its image processor says; by default
        pixels are values in [0, 1].
    preset : str or Settings
        Where the settings start from.
    **changes
        Fields of `Settings`, instead of the preset's, as far as the method reads them.

    Attributes
    ----------
    settings : Settings
    seen : int
        Batches so far.
    skipped : int
        Those that changed nothing, because a loss or gradient was not finite.

    Raises
    ------
    ValueError
        A preset or setting that is unknown, out of range or of another method; a model that has adapters outside of a
        PEFT model, or whose parameters that are to move are not float32 or float64. The model is then as it was.

    Examples
    --------
    >>> import torch
    >>> from transformers import ViTConfig, ViTForImageClassification
    >>> from rankwise.continual import Tent
    >>> config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
    ...                    image_size=8, patch_size=4, num_labels=3)
    >>> adapter = Tent(ViTForImageClassification(config))
    >>> loader = torch.utils.data.DataLoader(torch.rand(8, 3, 8, 8), batch_size=4)
    >>> [logits.shape for _, logits in adapter.stream(loader)]
    [torch.Size([4, 3]), torch.Size([4, 3])]
    """

    __test__ = False  # names that start with Test are no test classes: pytest passes them over
    presets: ClassVar[Mapping[str, Settings]]
    reads: ClassVar[frozenset[str]]  # the settings that the method has a use for

    adds: ClassVar[bool] = False  # whether it puts parameters of its own in

    @torch.inference_mode(False)  # what is kept moves later, wherever this was made
    def __init__(
        self,
        model: nn.Module,
        *,
        mean: Iterable[float] | None = None,
        std: Iterable[float] | None = None,
        preset: str | Settings = "cifar10c",
        **changes: Any,
    ) -> None:
        self.settings = self._settings(preset, changes)
        self.normalised = _colours(mean, std)
        self._check(model)
        self._flags = {n: p.requires_grad for n, p in model.named_parameters()}
        self._mode = {n: m.training for n, m in model.named_modules()}
        self._given = model
        self.model = self._prepared(model)
        self._norms = _use_batch_statistics(self.model)
        self.trained = self._trained(self.model)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in self.trained)
        self.source = {n: p.detach().clone() for n, p in self.trained.items()}
        self.optimizer = self.settings.optimizer_of(self._groups())
        self.generator = torch.Generator()
        self.seen = self.skipped = 0
        self.reset()

    # --- what a method says

    @abstractmethod
    def _trained(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The parameters of a model that move, by name."""

    @abstractmethod
    def _step(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Logits that are the prediction, and the loss whose gradient is to be followed."""

    def _check(self, model: nn.Module) -> None:
        """Refuse a model that this method cannot serve, before anything of it is changed."""
        if not isinstance(model, PeftModel):
            refuse_adapters(
                model,
                hint=", or release() what adapts it now; a model with ViDA's own is given whole, as the PeftModel",
            )
        if any(p.is_inference() for p in model.parameters()):
            raise ValueError(
                "the model was made within torch.inference_mode(), where nothing can move: make it outside"
            )
        trained = self._trained(model)
        if not trained and not self.adds:
            raise ValueError(f"{type(self).__name__} finds nothing to train in a {type(model).__name__}")
        for name, parameter in trained.items():
            if parameter.dtype not in (torch.float32, torch.float64):
                kind = str(parameter.dtype).removeprefix("torch.")
                raise ValueError(
                    f"{name} is {kind}, in which the small steps of a stream are lost: give model.float(), and "
                    "precision='bf16' to compute in bfloat16" + (", or train='adapters'" if self.adds else "")
                )

    def _prepared(self, model: nn.Module) -> nn.Module:
        return model

    def _groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.trained.values()), "lr": self.settings.lr}]

    def _after(self) -> None:  # noqa: B027  (a method may need none)
        """What follows the optimiser's step."""

    def _predicted(self, inputs: Inputs) -> Tensor:
        """Logits without any change."""
        return self.logits(self.model, inputs)

    def _kept(self) -> dict[str, Tensor]:
        """Tensors of the state beyond the trained parameters, as they are."""
        return {}

    def _told(self) -> dict[str, Any]:
        """Numbers of the state, for JSON."""
        return {}

    def _take(self, told: Mapping[str, Any]) -> None:  # noqa: B027  (nor this)
        """Set what `_told` said."""

    # --- what people call

    @torch.inference_mode(False)  # gradients are needed, whoever calls
    def predict(self, batch: Any, *, adapt: bool = True) -> Tensor:
        """Logits of a batch, made before the step that it causes.

        Parameters
        ----------
        batch : Tensor, mapping or sequence
            Pixels ``(batch, 3, height, width)``; a mapping as a model of transformers takes it, whose labels are not
            read; or a sequence whose first entry is one of these.
        adapt : bool
            ``False`` predicts with what is learned and changes nothing.

        Returns
        -------
        Tensor
            ``(batch, classes)``, float32.

        Raises
        ------
        ValueError
            An empty batch, values that are not finite, or pixels outside of [0, 1] without ``mean`` and ``std``.
        """
        inputs = self._read(batch)
        if self.settings.episodic and adapt:
            self.reset()
        if not adapt:
            with torch.no_grad():
                return self._predicted(inputs)
        with torch.enable_grad():
            said, loss = self._step(inputs)
        if not (torch.isfinite(said).all() and torch.isfinite(loss)):
            return self._recovered(inputs)
        self.seen += 1
        loss.backward()
        if all(p.grad is None or torch.isfinite(p.grad).all() for p in self.trained.values()):
            self.optimizer.step()
            self._after()
        else:
            self._skip("a gradient")
        self.optimizer.zero_grad(set_to_none=True)
        return said.detach()

    def stream(self, batches: Iterable[Any]) -> Iterator[tuple[Any, Tensor]]:
        """Each batch of a `DataLoader`, or of anything else, with its logits; the model goes on adapting."""
        for batch in batches:
            yield batch, self.predict(batch)

    @torch.no_grad()
    def reset(self) -> None:
        """Parameters, optimiser and draws as at the beginning."""
        for name, parameter in self.trained.items():
            parameter.copy_(self.source[name])
        self.optimizer.state.clear()
        self.optimizer.zero_grad(set_to_none=True)
        self.generator.manual_seed(self.settings.seed)

    def release(self) -> nn.Module:
        """The model as it was given: weights, flags, mode, normalisation. The adapter is of no use after it."""
        self.reset()
        for module, kept in self._norms:
            for name, value in kept.items():
                setattr(module, name, value)
        model = self._unprepared(self.model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(self._flags[name])
        for name, module in model.named_modules():
            module.training = self._mode[name]
        return model

    def _unprepared(self, model: nn.Module) -> nn.Module:
        return model

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that the next batch depends on, but for the numbers in ``state.json``; by plain names."""
        state = {f"model.{n}": p.detach() for n, p in self.trained.items()}
        state |= {f"source.{n}": t for n, t in self.source.items()} | self._kept()
        for name, parameter in self.trained.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if value is not None:
                    state[f"optimizer.{name}.{key}"] = torch.as_tensor(value)
        return state | {"generator": self.generator.get_state()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state.

        Raises
        ------
        ValueError
            It is of another model; a tensor that differs is named.
        """
        mine = {k: v for k, v in self.state_dict().items() if not k.startswith("optimizer.")}
        theirs = {k: v for k, v in state.items() if not k.startswith("optimizer.")}
        for key in {**mine, **theirs}:
            if key not in mine or key not in theirs or mine[key].shape != theirs[key].shape:
                raise ValueError(f"the state is of another model or method: {key} differs")
        for key, value in theirs.items():
            # adapters start from draws, or a warm-up, and are taken over; the backbone is the model itself
            if key.startswith("source.") and "vida_" not in key and not torch.equal(mine[key].cpu(), value.cpu()):
                raise ValueError(f"the state is of a model with other weights: {key.removeprefix('source.')} differs")
        moments = {}  # all is checked before anything is taken over
        for name, parameter in self.trained.items():
            start = f"optimizer.{name}."
            if kept := {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}:
                moments[parameter] = self._moments(name, parameter, kept)
        try:
            self.generator.set_state(state["generator"])
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"the state's generator is damaged: {error}") from error
        for key, value in theirs.items():
            if key != "generator":
                mine[key].copy_(value)
        self.optimizer.state.clear()
        self.optimizer.state.update(moments)

    def _moments(self, name: str, parameter: Tensor, kept: dict[str, Tensor]) -> dict[str, Tensor]:
        """The optimiser's state of one parameter, checked."""
        adam = isinstance(self.optimizer, torch.optim.Adam)
        if set(kept) != ({"step", "exp_avg", "exp_avg_sq"} if adam else {"momentum_buffer"}):
            raise ValueError(f"the optimiser's state of {name} has {', '.join(sorted(kept))}: it is damaged")
        for key, value in kept.items():
            if value.shape != (() if key == "step" else parameter.shape) or not torch.isfinite(value).all():
                raise ValueError(f"the optimiser's {key} of {name} is damaged")
        return {k: v.clone() if k == "step" else v.clone().to(parameter) for k, v in kept.items()}

    def save(self, folder: str | Path) -> Path:
        """The state as ``state.safetensors`` and ``state.json``; an earlier one there is replaced as a whole."""
        with whole_folder(Path(folder), made_by=MADE_BY) as draft:
            self.write(draft)
        return Path(folder)

    def write(self, folder: Path) -> None:
        """The two files of `save`, in a folder that is there."""
        tensors = {k: v.detach().cpu().clone().contiguous() for k, v in self.state_dict().items()}
        save_file(tensors, folder / "state.safetensors")
        write_json(folder / "state.json", self._numbers() | self._told())

    def load(self, folder: str | Path) -> Self:
        """Go on from what `save` wrote for the same model and settings.

        Raises
        ------
        ValueError
            No such state, or one of another model, method or settings.
        """
        folder = Path(folder)
        if not (folder / "state.json").is_file():
            raise ValueError(f"{folder} holds no state: state.json is missing")
        told, mine = read_json(folder / "state.json"), self._numbers()
        if told.get("method") != mine["method"]:
            raise ValueError(f"{folder} is of another method, {told.get('method')}; this is {mine['method']}")
        if told.get("settings") != mine["settings"]:
            which = differences(mine["settings"], told.get("settings"))
            raise ValueError(f"{folder} is of other settings: {', '.join(which)}")
        try:
            self.load_state_dict(read_tensors(folder / "state.safetensors"))
            self.seen, self.skipped = int(told["seen"]), int(told["skipped"])
            self._take(told)
        except (KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"{folder}: the state is damaged ({error})") from error
        return self

    def _numbers(self) -> dict[str, Any]:
        return {
            "method": type(self).__name__,
            "settings": json.loads(json.dumps(asdict(self.settings))),  # tuples become lists, as in the file
            "seen": self.seen,
            "skipped": self.skipped,
        }

    # --- what methods use

    def logits(self, model: Callable[..., Any], inputs: Inputs) -> Tensor:
        """``(batch, classes)``, float32."""
        with self.autocast(inputs):
            out = model(**inputs) if isinstance(inputs, dict) else model(inputs)
        found = out if isinstance(out, Tensor) else getattr(out, "logits", None)
        if not isinstance(found, Tensor) or found.dim() != 2 or found.shape[1] < 2:
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(out).__name__
            raise ValueError(f"the model gives {shape}; logits (batch, classes) of at least two classes are needed")
        return found.float()

    def autocast(self, inputs: Inputs) -> torch.autocast:
        """Bfloat16 for what is computed, where the settings say so."""
        device = _first(inputs).device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.settings.precision == "bf16")

    def views(self, inputs: Inputs, number: int) -> Iterator[Inputs]:
        """Augmented copies of the pictures, several views at once, one after another along the batch."""
        pixels = _pixels(inputs)
        plain = pixels if self.normalised is None else pixels * self._to(pixels, 1) + self._to(pixels, 0)
        at_once = max(1, self.settings.chunk // len(pixels))
        for start in range(0, number, at_once):
            seen = self.settings.augmentation(plain.float(), min(at_once, number - start), generator=self.generator)
            if self.normalised is not None:
                seen = (seen - self._to(seen, 0)) / self._to(seen, 1)
            flat = seen.flatten(0, 1).to(pixels.dtype)
            yield flat if isinstance(inputs, Tensor) else {"pixel_values": flat}

    def _to(self, like: Tensor, which: int) -> Tensor:
        assert self.normalised is not None
        return self.normalised[which].to(like)

    def _read(self, batch: Any) -> Inputs:
        while isinstance(batch, list | tuple) and batch:
            batch = batch[0]
        if isinstance(batch, Mapping) or hasattr(batch, "keys"):
            found: Any = {k: v for k, v in dict(batch).items() if isinstance(v, Tensor) and k not in LABELS}
        else:
            found = batch
        if not isinstance(found, Tensor | dict) or not len(found) or not len(_first(found)):
            raise ValueError(
                f"a batch is {type(batch).__name__} without rows; pixels, or a mapping of tensors, is needed"
            )
        device = next(iter(self.trained.values())).device
        found = _ordinary(found, device) if isinstance(found, Tensor) else {
            k: _ordinary(v, device) for k, v in found.items()
        }  # fmt: skip
        pixels = found if isinstance(found, Tensor) else found.get("pixel_values")
        if pixels is not None and pixels.is_floating_point():
            low, high = float(pixels.min()), float(pixels.max())
            if not (math.isfinite(low) and math.isfinite(high)):
                raise ValueError("the batch has values that are not finite")
            if self.normalised is None and pixels.dim() == 4 and (low < -1e-3 or high > 1 + 1e-3):
                raise ValueError(
                    f"pixels lie between {low:.3g} and {high:.3g}: of values outside of [0, 1] mean and std are needed "
                    "(image_mean and image_std of the image processor)"
                )
        if len(_first(found)) == 1 and self._norms:
            warnings.warn(
                "batch norms take the statistics of a single picture; larger batches are better", stacklevel=3
            )
        return found

    def _skip(self, what: str) -> None:
        self.skipped += 1
        warnings.warn(f"{what} is not finite at batch {self.seen + 1}: nothing was learned from it", stacklevel=4)

    def _recovered(self, inputs: Inputs) -> Tensor:
        """The beginning's prediction, where what was learned gives numbers that are not finite: it is given up."""
        self._skip("a prediction or loss")
        self.reset()
        with torch.no_grad():
            said = self._predicted(inputs)
        if not torch.isfinite(said).all():
            raise ValueError("the model as it was given predicts numbers that are not finite for this batch")
        self.seen += 1
        return said

    @classmethod
    def _settings(cls, preset: str | Settings, changes: Mapping[str, Any]) -> Settings:
        if isinstance(preset, str):
            if preset not in cls.presets:
                raise unknown("preset", preset, cls.presets)
            preset = cls.presets[preset]
        for name in changes:
            if name not in (accepted := [f.name for f in fields(preset)]):
                raise unknown("setting", name, accepted)
            if name not in cls.reads:
                raise ValueError(f"{cls.__name__} has no use for {name}; it reads {', '.join(sorted(cls.reads))}")
        return replace(preset, **changes)


def rows(inputs: Inputs) -> int:
    """How many a batch has."""
    return len(_first(inputs))


def _first(inputs: Inputs) -> Tensor:
    return inputs if isinstance(inputs, Tensor) else next(iter(inputs.values()))


def _ordinary(values: Tensor, device: torch.device) -> Tensor:
    """A tensor that gradients may pass, on the device: of one made in inference mode, a copy."""
    return (values.clone() if values.is_inference() else values).to(device)


def _pixels(inputs: Inputs) -> Tensor:
    found = inputs if isinstance(inputs, Tensor) else inputs.get("pixel_values")
    if found is None or found.dim() != 4 or found.shape[1] != 3 or not found.is_floating_point():
        shape = (
            "no pixel_values" if found is None else f"{tuple(found.shape)}, {str(found.dtype).removeprefix('torch.')}"
        )
        raise ValueError(
            f"views are drawn of pictures (batch, 3, height, width), and the batch is {shape}; where there are none, "
            "uncertainty='mc_dropout' needs no views"
        )
    return found


def _colours(mean: Iterable[float] | None, std: Iterable[float] | None) -> tuple[Tensor, Tensor] | None:
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        raise ValueError("mean and std belong together: give both, or neither")
    found = torch.tensor(list(mean)), torch.tensor(list(std))
    if any(t.shape != (3,) for t in found) or not bool((found[1] > 0).all()):
        raise ValueError(f"mean={found[0].tolist()}, std={found[1].tolist()}: three numbers each, std above 0")
    return found[0].view(3, 1, 1), found[1].view(3, 1, 1)


def _use_batch_statistics(model: nn.Module) -> list[tuple[nn.Module, dict[str, Any]]]:
    """Batch norms normalise by the batch; the rest runs as in evaluation. What they had is returned."""
    model.eval()
    changed = []
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            names = ("track_running_stats", "running_mean", "running_var")
            changed.append((module, {n: getattr(module, n) for n in names}))
            module.track_running_stats = False
            module.running_mean = module.running_var = None
    return changed
