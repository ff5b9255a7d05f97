"""What does a CLIP still know after five tasks in a row, with directions pruned while it learns, and with all kept?"""

from pathlib import Path

from rankwise.continual import CodyraLearner, Schedule
from rankwise.data import read_images
from rankwise.models import load, load_image_processor, load_tokenizer
from rankwise.report.plots.continual import accuracy_matrices
from rankwise.report.plots.shared import save
from rankwise.tuning import CodyraConfig

prepare, parts = load_image_processor("clip-cifar10"), {}
for part in ("train", "test"):
    images = read_images("digits", split=part)
    rows = [prepare(images.pil(i), return_tensors="pt")["pixel_values"][0] for i in range(len(images))]
    parts[part] = [{"pixel_values": x, "labels": int(y)} for x, y in zip(rows, images.labels, strict=True)]


def pair(part, k):
    """The digits 2k and 2k + 1."""
    return [row | {"labels": row["labels"] % 2} for row in parts[part] if row["labels"] // 2 == k]


words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
names, tables = [words[2 * k : 2 * k + 2] for k in range(5)], {}
for title, kappa in (("all directions kept", 0.0), ("pruned by CoDyRA", 0.06)):
    learner = CodyraLearner(
        load("clip-cifar10"), CodyraConfig(max_kappa=kappa, kappa_steps=20), tokenizer=load_tokenizer("clip-cifar10"),
        schedule=Schedule(steps=40, batch_size=16, learning_rate=2e-3),
    )  # fmt: skip
    tables[title] = []
    for k in range(5):
        learner.learn(pair("train", k), name=str(k), classes=names[k])
        tables[title].append([learner.accuracy(pair("test", j), names[j]) for j in range(5)])
save(accuracy_matrices(tables, [" ".join(n) for n in names]), Path("tasks_in_a_row.png"))
