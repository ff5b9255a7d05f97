"""The Trainer that both models share: batches cut, flipped and normalised as a whole; Muon beside AdamW."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from rankwise.parallel import on_one_gpu

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of CIFAR-10's training images, by channel
MUON, ADAMW = 0.02, 2e-3  # learning rates
SMOOTHING = 0.1
WEIGHTS = "weights.safetensors"

Loss = Callable[[Any, Tensor, Tensor], Tensor]  # model, images in [0, 1], labels


class Rows(Dataset):
    """The indices of a data set: whole batches are cut out of one array by `Pretraining`."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        return index


class MuonAdamW(torch.optim.Optimizer):
    """Muon for the matrices inside the blocks, AdamW for everything else, as one optimiser with one schedule."""

    def __init__(self, model: nn.Module) -> None:
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        inner = [p for n, p in named if p.ndim == 2 and ".layers." in f".{n}"]
        rest = [p for n, p in named if not (p.ndim == 2 and ".layers." in f".{n}")]
        self.parts = [
            torch.optim.Muon(inner, lr=MUON, momentum=0.95, weight_decay=0.01),
            torch.optim.AdamW(rest, lr=ADAMW, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        super().__init__([{"params": inner}, {"params": rest}], {})
        self.param_groups = list(chain.from_iterable(part.param_groups for part in self.parts))

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of both."""
        loss = None if closure is None else closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Both states."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = list(chain.from_iterable(part.param_groups for part in self.parts))


def normalised(images: Tensor) -> Tensor:
    """Images in [0, 1] on the scale that the models read."""
    mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (MEAN, STD))
    return (images - mean) / std


def jittered(images: Tensor, margin: int = 4) -> Tensor:
    """Each image shifted by up to ``margin`` pixels (mirrored edges) and flipped left to right in half of the cases."""
    count, _, height, width = images.shape
    padded = F.pad(images, (margin,) * 4, mode="reflect")
    down, right = torch.randint(0, 2 * margin + 1, (2, count, 1))
    rows, columns = down + torch.arange(height), right + torch.arange(width)
    columns = torch.where(torch.rand(count, 1) < 0.5, columns.flip(-1), columns)
    which = torch.arange(count)[:, None, None]
    return padded.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


class Pretraining(Trainer):
    """A Trainer over one array of images and one of labels.

    Parameters
    ----------
    model : nn.Module
        What is trained, in place.
    images : Tensor
        ``(n, height, width, 3)``, uint8.
    labels : Tensor
        ``(n,)``.
    loss : callable
        Of the model, a batch of jittered images in [0, 1], ``(batch, 3, height, width)``, and its labels.
    folder : Path
        Of the checkpoints.
    epochs, batch_size, seed : int
        Passes over the images, images a step, and what decides order, cuts and flips.
    """

    def __init__(
        self,
        model: Any,
        images: Tensor,
        labels: Tensor,
        loss: Loss,
        folder: Path,
        *,
        epochs: int,
        batch_size: int,
        seed: int,
    ) -> None:
        self.loss = loss
        given = TrainingArguments(
            output_dir=str(folder),
            num_train_epochs=epochs,
            per_device_train_batch_size=batch_size,
            dataloader_drop_last=True,
            warmup_steps=max(1, round(0.1 * epochs * (len(labels) // batch_size))),
            lr_scheduler_type="linear",
            bf16=True,
            use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=False,
            remove_unused_columns=False,
            save_strategy="epoch",
            save_total_limit=1,
            logging_strategy="epoch",
            disable_tqdm=True,
            log_level="error",
            report_to=[],
            seed=seed,
        )

        def collate(rows: list[int]) -> dict[str, Tensor]:
            pixels = images[rows].permute(0, 3, 1, 2).float() / 255
            return {"images": jittered(pixels), "labels": labels[rows]}

        super().__init__(model=model, args=on_one_gpu(given), train_dataset=Rows(len(labels)), data_collator=collate)
        self.model_accepts_loss_kwargs = False

    def create_optimizer(self, *_: Any) -> torch.optim.Optimizer:
        """Muon and AdamW."""
        if self.optimizer is None:
            self.optimizer = MuonAdamW(cast(nn.Module, self.model))
        return self.optimizer

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any) -> Any:
        """The loss given."""
        with torch.autocast(inputs["images"].device.type, torch.bfloat16):
            value = self.loss(model, inputs["images"], inputs["labels"])
        return (value, None) if return_outputs else value

    # what `save_pretrained` writes has other names than the model, which the Trainer then does not find

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        assert output_dir is not None
        assert self.model is not None
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in self.model.state_dict().items()}, Path(output_dir) / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        assert self.model is not None
        self.model.load_state_dict(load_file(Path(resume_from_checkpoint) / WEIGHTS))
