"""A small ViT, trained on digits for some seconds, meets them corrupted: errors along the stream, adapting and not."""

from pathlib import Path

import torch
from transformers import ViTConfig, ViTForImageClassification

from rankwise.continual import Augmentation, TestTimeAdapter
from rankwise.data import read_images
from rankwise.data.corruptions import corrupt
from rankwise.report.plots.continual import along_streams
from rankwise.report.plots.shared import save
from rankwise.tuning import VidaConfig

torch.manual_seed(0)
train, test = read_images("digits", split="train"), read_images("digits", split="test")
as_input = lambda x: torch.nn.functional.interpolate(  # noqa: E731
    torch.from_numpy(x).permute(0, 3, 1, 2) / 255, 32, mode="bilinear"
)
config = ViTConfig(hidden_size=48, num_hidden_layers=4, num_attention_heads=3, intermediate_size=96, image_size=32,
                   patch_size=4, num_labels=10)  # fmt: skip
model = ViTForImageClassification(config)
pixels, labels = as_input(train.store.array), torch.from_numpy(train.labels)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
for _ in range(400):
    rows = torch.randint(len(train), (64,))
    model(pixel_values=pixels[rows], labels=labels[rows]).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
model.eval()

kinds, truth = {"gaussian_noise": 5, "contrast": 2, "fog": 1, "brightness": 4}, torch.from_numpy(test.labels)
parts = [(as_input(corrupt(test.store.array, k, severity=s)), torch.randperm(len(test)).split(20))
         for _ in range(4) for k, s in kinds.items()]  # fmt: skip
with torch.no_grad():
    errors = {"source": [float((model(x).logits.argmax(1) != truth).float().mean()) for x, _ in parts]}
# rates for a model of this size; a digit that is flipped is none, so that views are not
adapter = TestTimeAdapter(
    model, adapter=VidaConfig(r=1, r_high=16), preset="ours", lr=3e-3, lr_vida=3e-3, restore=0.0, theta=0.2,
    augmentation=Augmentation(flip=0),
)  # fmt: skip
errors["ViDA"], uncertainty = [], []
for x, order in parts:
    wrong = 0
    for rows in order:
        wrong += int((adapter.predict(x[rows]).argmax(1) != truth[rows]).sum())
        uncertainty.append(adapter.last.uncertainty)
    errors["ViDA"].append(wrong / len(x))
figure = along_streams(errors, [k.replace("_", " ") for k in kinds], uncertainty=uncertainty, theta=0.2)
save(figure, Path("corrupted_stream.png"))
