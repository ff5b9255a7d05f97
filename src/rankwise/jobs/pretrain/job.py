"""Training one of the small vision models and writing it with its card."""

from __future__ import annotations

import math
import shutil
import time
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPTokenizer, TrainerCallback, ViTImageProcessorPil, set_seed
from transformers.trainer_callback import PrinterCallback

from rankwise.data import read_images
from rankwise.data.images import Images, Stack
from rankwise.events import OnEvent, environment
from rankwise.files import content_of, drafted, write_json, write_text
from rankwise.jobs.checkpoints import MarkComplete, last_checkpoint
from rankwise.jobs.early import check_pretraining
from rankwise.jobs.pretrain import models
from rankwise.jobs.pretrain.training import MEAN, STD, Loss, Pretraining
from rankwise.models.loading import quiet_loading

_CARD = """---
license: other
library_name: transformers
---

# {name}

{about}

- **Data**: {data}. CIFAR-10 itself is free for research use; these weights are for research and tests.
- **Command**: `{command}`
- **Result**: {accuracy:.1f} % of the {tested:,} test images ({how}).
- **Cost**: {minutes:.0f} minutes on {environment[threads]} thread(s).
- **Weights**: {parameters:,} parameters, float16, SHA-256 `{sha256}`.
"""
_ABOUT = {
    "vit-cifar10": "A vision transformer that names one of ten classes, trained from scratch on 32 x 32 pixels.",
    "clip-cifar10": "A CLIP trained from scratch on images of 32 x 32 pixels, and on captions that name the class and "
    'how the picture looks ("a backlit photo of a dog").',
}


def pretrain(
    name: str,
    out: Path,
    *,
    data: str | Path | None = None,
    epochs: int = 20,
    batch_size: int = 128,
    seed: int = 0,
    command: str = "",
    on_event: OnEvent | None = None,
) -> dict[str, Any]:
    """Train a small vision model from scratch and write it as `transformers` reads it, with a card.

    A run that was cut short goes on after the last whole pass over the data when it is given again.

    Parameters
    ----------
    name : {"vit-cifar10", "clip-cifar10"}
        A `ViTForImageClassification` or a `CLIPModel`.
    out : Path
        Folder, made when the model is trained: weights in float16, image processor, tokenizer (CLIP), ``card.json`` and
        ``README.md``.
    data : str or Path, optional
        Folder with CIFAR-10 in the hub's layout; fetched from the hub by default.
    epochs, batch_size : int
        Passes over the training images, images a step.
    seed : int
        Decides weights, order, crops, flips, looks and captions.
    command : str
        What was typed, for the card.

    Returns
    -------
    dict
        The card: data, command, minutes, accuracy in per cent, parameters, the hash of the weights.

    Raises
    ------
    ValueError
        Another name, a number out of range, images that are not CIFAR-10's, an output folder that holds something else.
    FloatingPointError
        The loss became NaN or infinite.
    """
    check_pretraining(name, out, data=data, epochs=epochs, batch_size=batch_size, seed=seed)
    train, test = _images(data, batch_size)
    told = {"name": name, "epochs": epochs, "batch": batch_size, "seed": seed, "data": train.fingerprint()}
    with drafted(out, made_by="pretrain", told=told, inputs=[] if data is None else [data]) as draft:
        set_seed(seed)
        model, tokenizer, loss = _untrained(name, train)
        checkpoints = draft / "checkpoints"
        trainer = Pretraining(
            model, *_tensors(train), loss, checkpoints, epochs=epochs, batch_size=batch_size, seed=seed
        )
        watch = _Watch(name, checkpoints / "seconds", on_event)
        trainer.remove_callback(PrinterCallback)
        for callback in (watch, MarkComplete()):
            trainer.add_callback(callback)
        trainer.train(resume_from_checkpoint=last_checkpoint(checkpoints))
        accuracy = models.accuracy(model.half().float(), *_tensors(test), tokenizer=tokenizer, classes=test.label_names)
        _write(draft, model, tokenizer)
        card = {
            "name": name,
            "data": f"{_called(train)}, {len(train):,} training images",
            "tested": len(test),
            "notes": list(dict.fromkeys([*train.notes, *test.notes])),
            "command": command or f"rankwise pretrain {name} --epochs {epochs} --batch-size {batch_size} --seed {seed}",
            "accuracy": accuracy,
            "how": "by the classifier" if tokenizer is None else 'zero-shot, by the caption "a photo of a ..."',
            "seconds": watch.seconds,
            "parameters": sum(p.numel() for p in model.parameters()),
            "sha256": content_of(draft / "model.safetensors"),
            "environment": environment("bf16 autocast", 1),
        }
        write_json(draft / "card.json", card)
        write_text(draft / "README.md", _CARD.format(about=_ABOUT[name], minutes=watch.seconds / 60, **card))
        shutil.rmtree(checkpoints)  # last: what failed until here goes on from them
    return card


def _images(data: str | Path | None, batch_size: int) -> tuple[Images, Images]:
    """Train and test pictures as arrays, after all that could stop hours of training at their end."""
    parts = {s: read_images("cifar10", split=s, data=data) for s in ("train", "test")}
    for split, images in parts.items():
        if images.labels is None or not len(images):
            raise ValueError(f"{images.name}, {split}: no {'pictures' if not len(images) else 'labels'}")
    train, test = (images.stacked() for images in parts.values())
    (height, width, _), tested = train[0].shape, test[0].shape
    least, step = models.LEAST, models.PATCH
    if (height, width) != tested[:2]:
        raise ValueError(f"{train.name}: train is of {width} x {height} pixels, test of {tested[1]} x {tested[0]}")
    if height != width or height % step or height < least:
        raise ValueError(
            f"{train.name}: pictures of {width} x {height} pixels; squares are needed whose side is a multiple of "
            f"{step}, at least {least}"
        )
    if len(train) < batch_size:
        raise ValueError(f"{train.name} has {len(train)} images: fewer than batch_size={batch_size}")
    if len(set(cast(Any, train.labels).tolist())) < 2:
        raise ValueError(f"{train.name}: all training pictures are of one class")
    return train, test


def _called(train: Images) -> str:
    """What the card says of the pictures: not that they are CIFAR-10's where they cannot be."""
    side = train[0].shape[0]
    if (len(train), side) == (50_000, 32):
        return "CIFAR-10"
    return f"pictures of {side} x {side} pixels of CIFAR-10's classes"


def _untrained(name: str, images: Images) -> tuple[Any, CLIPTokenizer | None, Loss]:
    classes, side = list(images.label_names), images[0].shape[0]
    if name == "vit-cifar10":
        return models.vit(classes, side), None, models.vit_loss
    tokenizer = models.caption_tokenizer(classes)
    return models.clip(tokenizer, side), tokenizer, models.CaptionLoss(tokenizer, classes)


def _tensors(images: Images) -> tuple[Tensor, Tensor]:
    """All pixels, ``(n, height, width, 3)``, uint8, and all labels."""
    assert isinstance(images.store, Stack)
    assert images.labels is not None
    return torch.from_numpy(images.store.array), torch.from_numpy(images.labels)


def _write(folder: Path, model: Any, tokenizer: CLIPTokenizer | None) -> None:
    """Weights in float16, image processor and tokenizer."""
    model.set_attn_implementation("sdpa")
    with quiet_loading():
        model.half().save_pretrained(folder)
    vision = model.config if tokenizer is None else model.config.vision_config
    size = {"height": vision.image_size, "width": vision.image_size}
    options: dict[str, Any] = {"size": size, "image_mean": list(MEAN), "image_std": list(STD)}
    if tokenizer is None:
        ViTImageProcessorPil(**options).save_pretrained(folder)
    else:
        CLIPImageProcessorPil(**options, do_center_crop=False).save_pretrained(folder)
        tokenizer.save_pretrained(folder)


class _Watch(TrainerCallback):
    """Progress; a loss that is no number; and seconds of training, over all parts of a run that was cut short."""

    def __init__(self, name: str, kept: Path, on_event: OnEvent | None) -> None:
        self.name, self.kept, self.loss = name, kept, float("nan")
        self.note = on_event or (lambda *_: None)
        self.earlier = float(kept.read_text()) if kept.is_file() else 0.0
        self.start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Of training so far."""
        return self.earlier + time.perf_counter() - self.start

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Refuse a loss that is no number."""
        self.loss = (logs or {}).get("loss", self.loss)
        if not math.isfinite((logs or {}).get("loss", 0.0)):
            raise FloatingPointError(f"{self.name}: the loss became {self.loss} at step {state.global_step}")

    def on_step_end(self, args, state, control, **kwargs):
        """Tell of a step."""
        self.note(self.name, "train", state.global_step, state.max_steps, self.loss)

    def on_save(self, args, state, control, **kwargs):
        """Keep the seconds."""
        write_text(self.kept, str(self.seconds))
