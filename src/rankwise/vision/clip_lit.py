"""CLIP-LIT: a photograph against the light gets its light back, by a small network that never saw a pair.

Dark pictures, well-lit ones of other things, and a CLIP that stays as it is. Two prompts are learned that tell the two
kinds apart; a network learns to make pictures of the second kind, by light alone; then the prompts learn to tell its
results from well-lit pictures too, and so on, round after round:

    S(I) = softmax(100 cos(Φ_image(I), [Φ_text(T_backlit), Φ_text(T_well-lit)]))[0]
    I_t = clamp(I_b / i, 0, 1),  i = network(I_b) ≥ 0, one channel               the network
    network:  320 mean S(I_t) + 22.5 L_id(I_t, I_b)                               prompts fixed
    prompts:  200 Σ h(a, b; m),  h = mean max(0, S(b) - S(a) + m)                 backlit > results > well-lit

L_id compares five stages of an image tower; in the warm-up it stands alone. The parts are in `rankwise.vision.lit`.

Source: Liang, Li, Zhou, Feng & Loy, ICCV 2023, arXiv 2303.17569, and its released code. Where they differ, or we do:
L_id is a mean over the batch, in the code a sum (``released=True``); the code's "best" network and prompts are the last
ones, since it keeps references: here they are copies, and training goes on from them. Stages are layers of the CLIP's
own ViT, or of a ResNet (``identity="RN101/openai"``, as published, by open-clip). Pictures of a step are drawn with
replacement. A start whose last ReLU is off is found in the warm-up, and drawn anew.

What people get wrong: which pictures are dark is said by where they are given, never by a file's name. And a network
that trains at 512 pixels is not the same function on a whole photograph: here it sees a bounded copy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from rankwise.events import OnEvent
from rankwise.files import whole_folder, write_json
from rankwise.models import load as load_model
from rankwise.models import load_image_processor, load_tokenizer
from rankwise.nearest import unknown
from rankwise.reading import read_json, read_tensors
from rankwise.vision.lit.illumination import illumination_of
from rankwise.vision.lit.network import IlluminationNet, enhanced
from rankwise.vision.lit.pictures import opened, several
from rankwise.vision.lit.prompts import LearnedPrompts, sixteen
from rankwise.vision.lit.settings import PRESETS, LitSettings
from rankwise.vision.lit.towers import MEAN, STD, ImageTower, open_clip_stages, resized
from rankwise.vision.lit.training import Training, frozen, made, scores

__all__ = ["BacklitEnhancer"]

MADE_BY = "enhance-fit"


class BacklitEnhancer:
    """Learns from dark and well-lit pictures, not of the same things, to give pictures light.

    Parameters
    ----------
    clip : str or CLIPModel
        A CLIP with a ViT: a bundled name, a folder, a hub id (``openai/clip-vit-base-patch32``, as published), or
        loaded. It is only read, where the model is. None where nothing is to be learned or scored.
    tokens : sequence of int, optional
        What both prompts start from, with the first and the last token; by default sixteen X, as the model's tokenizer
        has them. Needed with a loaded model.
    mean, std : sequence of float, optional
        Of colours: by default as the model's image processor says, and with a loaded model OpenAI's.
    identity : str or callable
        What compares content: ``"vit"``, layers of the same CLIP; a ResNet of open-clip and its weights,
        ``"RN101/openai"``; or a function of pictures ``(batch, 3, H, W)`` that gives five tensors.
    preset : {"published", "small"} or LitSettings
        The published settings, for a CLIP of ordinary size and hours of a GPU; or ours, for the bundled CLIP and
        minutes of a CPU.
    **changes
        Fields of `LitSettings`, instead of the preset's.

    Raises
    ------
    ValueError
        No CLIP, an unknown preset or setting, or one out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.vision import BacklitEnhancer
    >>> rng = np.random.default_rng(0)
    >>> well = rng.integers(0, 256, (4, 40, 40, 3)).astype(np.uint8)
    >>> enhancer = BacklitEnhancer("clip-cifar10", preset="small", rounds=1, size_network=32, size_prompts=32,
    ...                            first_steps=2, warm_steps=1, network_steps=2, prompt_steps=2)
    >>> enhancer.fit(well // 4, well).enhance(well[0] // 4).shape
    (40, 40, 3)
    >>> [sorted(row) for row in enhancer.history][0]
    ['dark', 'result', 'round', 'well']
    """

    def __init__(
        self,
        clip: Any = "clip-cifar10",
        *,
        tokens: Sequence[int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        identity: str | Callable[[Tensor], Sequence[Tensor]] = "vit",
        preset: str | LitSettings = "published",
        **changes: Any,
    ) -> None:
        if not isinstance(preset, LitSettings) and preset not in PRESETS:
            raise unknown("preset", str(preset), PRESETS)
        if strange := next((name for name in changes if name not in LitSettings.__dataclass_fields__), None):
            raise unknown("setting", strange, LitSettings.__dataclass_fields__)
        if isinstance(identity, str) and identity != "vit" and "/" not in identity:
            raise ValueError(f"identity='{identity}'; 'vit', or a ResNet and its weights as in RN101/openai")
        self.settings = replace(PRESETS[preset] if isinstance(preset, str) else preset, **changes)
        if clip is not None and not isinstance(clip, str):
            _check_clip(clip, type(clip).__name__)
            if tokens is None:
                raise ValueError("a loaded CLIP comes without its tokenizer: give the prompts' start, tokens=[…]")
        _check_told(tokens, mean, std)
        self.identity: str | Callable[[Tensor], Sequence[Tensor]] | None = identity
        self._clip, self._tower = clip, None
        self._told: dict[str, Any] = {"tokens": tokens, "mean": mean, "std": std}
        self.network: IlluminationNet | None = None
        self.prompts: LearnedPrompts | None = None
        self.history: list[dict[str, float]] = []
        self.starts = 0

    @property
    def tower(self) -> ImageTower:
        """The CLIP's image tower over pictures in [0, 1]; the CLIP is loaded when it is first asked for."""
        if self._tower is None:
            clip, told = self._clip, self._told
            if clip is None:
                raise ValueError("no CLIP is known: BacklitEnhancer.load(folder, clip=…) gives one")
            if isinstance(clip, str):
                processor: Any = load_image_processor(clip)
                told["mean"], told["std"] = told["mean"] or processor.image_mean, told["std"] or processor.image_std
                told["tokens"] = told["tokens"] or sixteen(load_tokenizer(clip))
                clip = _check_clip(load_model(clip), clip)
            self._tower = ImageTower(
                clip, told["mean"] or MEAN, told["std"] or STD, antialias=not self.settings.released
            )
        return self._tower

    def _learned(self) -> tuple[IlluminationNet, LearnedPrompts]:
        if self.network is None or self.prompts is None:
            raise ValueError("nothing is learned yet: fit(dark, well_lit), or BacklitEnhancer.load(folder)")
        return self.network, self.prompts

    # --- learning

    def fit(
        self, dark: Any, well_lit: Any, *, checkpoint: str | Path | None = None, on_event: OnEvent | None = None
    ) -> BacklitEnhancer:
        """Learn prompts and network.

        Parameters
        ----------
        dark, well_lit : str, Path, ndarray or sequence
            Pictures against the light, and well-lit ones, not of the same things: folders (what files are called says
            nothing), arrays ``(N, H, W, 3)``, or lists of files, arrays and pictures.
        checkpoint : str or Path, optional
            File that holds the training before each round; one that is there, of the same settings and pictures, is
            gone on from.
        on_event : callable, optional
            Told of every step.

        Returns
        -------
        BacklitEnhancer
            Itself.

        Raises
        ------
        ValueError
            A folder without pictures, pictures that cannot be read or are too small, one that is in both, training
            that diverges or finds no start.
        """
        stages = self.identity
        if stages is None:
            raise ValueError("contents were compared by a function, which is not kept: give identity=… anew")
        if isinstance(stages, str):
            same = stages == "vit"
            stages = None if same else open_clip_stages(stages, antialias=not self.settings.released)
        note = on_event or (lambda *_: None)
        tower = self.tower
        training = Training(tower, self._told["tokens"], settings=self.settings, stages=stages, note=note)
        training.run(dark, well_lit, checkpoint=None if checkpoint is None else Path(checkpoint))
        self.network, self.prompts = training.network.eval(), training.prompts
        self.history, self.starts = training.history, training.starts
        return self

    # --- using

    @torch.inference_mode()
    def score(self, pictures: Any) -> NDArray[np.float64]:
        """``S`` of each picture, ``(pictures,)``: how backlit it is, from 0 to 1.

        Parameters
        ----------
        pictures : str, Path, ndarray or sequence
            As for `fit`.

        Raises
        ------
        ValueError
            Nothing is learned yet, or pictures that are none.
        """
        _, prompts = self._learned()
        tower = self.tower
        held = [
            resized(opened(picture, name=name).pixels, tower.size, antialias=tower.antialias)
            for name, picture in several(pictures, "scored")
        ]
        with frozen(tower.clip):
            return scores(tower, prompts, torch.cat(held), self.settings.scale).double().numpy()

    @torch.inference_mode()
    def illumination(self, picture: Any) -> NDArray[np.float32]:
        """The map that a picture is divided by, ``(height, width)``; see `enhance`."""
        return self._map(self._on_device(opened(picture).pixels), self._learned()[0])[0, 0].cpu().numpy()

    @torch.inference_mode()
    def enhance(self, picture: Any) -> Any:
        """A picture with its light, in the form in which it came; of any size.

        Parameters
        ----------
        picture : str, Path, ndarray or PIL.Image.Image
            A file, turned upright as EXIF says; an array ``(H, W)``, ``(H, W, 3)`` or, with an alpha channel that is
            kept, ``(H, W, 4)``, of uint8, uint16 or floats from 0 to 1; or a picture of Pillow's.

        Returns
        -------
        ndarray or PIL.Image.Image
            Of a file an array of its depth.

        Raises
        ------
        ValueError
            Nothing is learned yet; a picture of fewer than 32 pixels on a side, of another kind, or damaged.
        """
        return self.enhance_by(self._learned()[0], picture)

    @torch.inference_mode()
    def enhance_by(self, network: Callable[[Tensor], Tensor], picture: Any) -> Any:
        """As `enhance`, by another map of ``(1, 3, h, w)``, e.g. one that is smoothed over frames."""
        given = opened(picture)
        pixels = self._on_device(given.pixels)
        return given.back(enhanced(pixels, self._map(pixels, network)))

    def _map(self, pixels: Tensor, network: Callable[[Tensor], Tensor]) -> Tensor:
        return illumination_of(pixels, network, most=self.settings.most, least=self.settings.least)

    def _on_device(self, pixels: Tensor) -> Tensor:
        return pixels.to(next(self._learned()[0].parameters()).device)

    # --- keeping

    def save(self, folder: str | Path) -> Path:
        """Network and prompts as safetensors, settings and what was seen as JSON: a folder, replaced as a whole.

        Raises
        ------
        ValueError
            Nothing is learned yet, or the folder holds something else.
        """
        self._learned()
        with whole_folder(Path(folder), made_by=MADE_BY) as draft:
            self.write(draft)
        return Path(folder)

    def write(self, folder: str | Path) -> None:
        """The files of `save`, into a folder that is there."""
        network, prompts = self._learned()
        tensors = {f"network.{k}": v.cpu().contiguous() for k, v in network.state_dict().items()}
        tensors["prompts.rows"] = prompts.rows.detach().cpu().contiguous()
        name = self._clip if isinstance(self._clip, str) else None
        told = {
            "settings": asdict(self.settings),
            "clip": name,
            "identity": self.identity if isinstance(self.identity, str) else None,  # a function
            **{k: None if v is None else list(v) for k, v in self._told.items()},
            "history": self.history,
            "starts": self.starts,
        }
        save_file(tensors, Path(folder) / "enhancer.safetensors")
        write_json(Path(folder) / "enhancer.json", told)

    @classmethod
    def load(cls, folder: str | Path, *, clip: Any = None) -> BacklitEnhancer:
        """What `save` wrote. Enhancing needs no CLIP; scoring does.

        Parameters
        ----------
        folder : str or Path
            The folder.
        clip : str or CLIPModel, optional
            The CLIP, where it was given loaded, or lies elsewhere now.

        Raises
        ------
        ValueError
            Files that are missing, damaged, or do not fit each other.
        """
        path = Path(folder)
        told, tensors = read_json(path / "enhancer.json"), read_tensors(path / "enhancer.safetensors")
        settings = _settings(told.get("settings"), path)
        found = cls(
            told.get("clip") if clip is None else clip,
            tokens=told.get("tokens") or (),
            mean=told.get("mean"),
            std=told.get("std"),
            preset=settings,
        )
        found.identity = told.get("identity")
        found.history, found.starts = list(told.get("history", [])), int(told.get("starts", 1))
        found.network = made(settings).eval()
        _fill(found.network, tensors, path)
        found.prompts = LearnedPrompts(tensors["prompts.rows"])
        return found


def _check_told(tokens: Any, mean: Any, std: Any) -> None:
    if tokens is not None and (isinstance(tokens, str) or not all(isinstance(t, Integral) for t in tokens)):
        raise ValueError(f"tokens={tokens!r}; whole numbers are needed, as a tokenizer gives them")
    for name, colours, least in (("mean", mean, -math.inf), ("std", std, 0.0)):
        if colours is not None and not (
            len(colours) == 3 and all(isinstance(c, int | float) and least < c < math.inf for c in colours)
        ):
            raise ValueError(f"{name}={colours!r}; three numbers{' above 0' if name == 'std' else ''}, one a colour")


def _check_clip(clip: Any, name: str) -> Any:
    if getattr(getattr(clip, "config", None), "model_type", None) != "clip" or not hasattr(clip, "visual_projection"):
        raise ValueError(f"{name} is no CLIP of transformers (CLIPModel): such as clip-cifar10, or a hub id of one")
    return clip


def _settings(told: Any, path: Path) -> LitSettings:
    known = {f.name for f in fields(LitSettings)}
    if not isinstance(told, dict) or not set(told) <= known:
        raise ValueError(f"{path / 'enhancer.json'} has no settings, or of another version")
    try:
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in told.items()}
        return LitSettings(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path / 'enhancer.json'}: {error}") from error


def _fill(network: IlluminationNet, tensors: dict[str, Tensor], path: Path) -> None:
    weights = {k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")}
    if not all(bool(v.isfinite().all()) for v in tensors.values()):
        raise ValueError(f"{path / 'enhancer.safetensors'} holds weights that are not finite")
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{path / 'enhancer.safetensors'} is of another network than enhancer.json says") from error
    rows = tensors.get("prompts.rows")
    if rows is None or rows.dim() != 3 or len(rows) != 2:
        raise ValueError(f"{path / 'enhancer.safetensors'} holds no pair of prompts")
