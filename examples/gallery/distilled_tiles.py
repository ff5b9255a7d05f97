"""What is left of a training set? Six pictures for each digit, each of the four squares that a teacher names best."""

from pathlib import Path

from rankwise.data import read_images
from rankwise.report.plots.distilled import tile_sheet
from rankwise.report.plots.shared import save
from rankwise.vision import Distiller, Views

images = read_images("digits", split="train")
# the pictures alone: without ranks nothing of the labels is learned
distiller = Distiller("clip-cifar10", "a photo of {}", rank=0, head_rank=0, ipc=6, crops=2, candidates=60,
                      views=Views(flip=False))  # fmt: skip
few = distiller.fit(images)
save(tile_sheet(few.images.permute(0, 2, 3, 1).numpy(), few.label_names), Path("distilled_tiles.png"))
