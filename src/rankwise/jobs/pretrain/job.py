"""Training one of the small vision models and writing it with its card."""

from __future__ import annotations

import math
import shutil
import time
from pathlib import Path
from typing import Any

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

- **Data**: {data}. CIFAR-10 is free for research use; these weights are for research and tests.
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
    train, test = (read_images("cifar10", split=s, data=data).stacked() for s in ("train", "test"))
    if len(train) < batch_size:
        raise ValueError(f"{train.name} has {len(train)} images: fewer than batch_size={batch_size}")
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
        shutil.rmtree(checkpoints)
        accuracy = models.accuracy(model.half().float(), *_tensors(test), tokenizer=tokenizer, classes=test.label_names)
        _write(draft, model, tokenizer)
        card = {
            "name": name,
            "data": f"CIFAR-10, {len(train):,} training images",
            "tested": len(test),
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
    return card


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
