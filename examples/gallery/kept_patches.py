"""Which patches does a small ViT need to read a digit? It is trained for some seconds, and pruned without training."""

from pathlib import Path

import torch
from transformers import ViTConfig, ViTForImageClassification

from rankwise.compression import zero_tprune
from rankwise.data import read_images
from rankwise.report.plots.shared import save
from rankwise.report.plots.tokens import kept_patches

torch.manual_seed(0)
train, test = read_images("digits", split="train"), read_images("digits", split="test")
pixels, labels = (torch.from_numpy(part) for part in (train.store.array, train.labels))
as_input = lambda x: torch.nn.functional.interpolate(x.permute(0, 3, 1, 2) / 127.5 - 1, 32, mode="bilinear")  # noqa: E731
config = ViTConfig(hidden_size=48, num_hidden_layers=4, num_attention_heads=3, intermediate_size=96, image_size=32,
                   patch_size=4, num_labels=10)  # fmt: skip
model = ViTForImageClassification(config)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
for _ in range(400):
    rows = torch.randint(len(train), (64,))
    model(pixel_values=as_input(pixels[rows]), labels=labels[rows]).loss.backward()
    optimizer.step()
    optimizer.zero_grad()

digit = as_input(torch.from_numpy(test[3][None]))
with zero_tprune(model.eval(), target_flops=0.5) as pruned:
    layers = pruned.tokens(digit)
kept = {k.layer: k.patches[0].tolist() for k in layers}
similar = {k.layer: k.similar[0].tolist() for k in layers}
shown = (digit[0].permute(1, 2, 0).numpy() + 1) / 2
save(kept_patches(shown, (8, 8), kept, similar, title="the digit"), Path("kept_patches.png"))
