"""One recipe a method: its paper's headline claim measured on real data, with a control that can fail."""

from __future__ import annotations

RECIPES = {
    "s2lora": "S2-LoRA against AdaLoRA, LoRA and BitFit on four domains of sentiment",
    "eva": "EVA against LoRA: convergence, final score, and what its parts contribute",
    "speed": "speed ratios: streaming and truncated SVD, EVA's start, S2-LoRA's training step",
}
