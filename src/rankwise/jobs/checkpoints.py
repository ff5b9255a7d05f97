"""Checkpoints of `transformers.Trainer` that a kill cannot leave half-written unnoticed."""

from __future__ import annotations

import shutil
from pathlib import Path

from transformers import TrainerCallback

from rankwise.reading import check_regular


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end; half-written ones are removed."""
    if not folder.is_dir():
        return None
    found = sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]))
    whole = [p for p in found if (p / "complete").is_file()]
    for path in found:
        if path not in whole:
            shutil.rmtree(path)
    for path in whole[-1].rglob("*") if whole else ():
        if not path.is_dir():
            check_regular(path)
    return str(whole[-1]) if whole else None


class MarkComplete(TrainerCallback):
    """A checkpoint counts once this mark is in it: it is written last."""

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            (Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / "complete").touch()
