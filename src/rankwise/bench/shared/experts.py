"""Three abilities of one encoder, for merging: MiniLM with one head, and a word in front that says what is asked.

*sentiment* of movie snippets (two classes), *source* of a sentence (movies, editorials, tweets, reviews), and word
*order* of editorials (as written, or shuffled; without punctuation). All experts share the head's eight classes and its
start, so that their weights differ by what they learned alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import set_seed

from rankwise.data import sentiment
from rankwise.data.corpus import Corpus
from rankwise.events import OnEvent
from rankwise.files import whole_folder, write_json
from rankwise.jobs.tasks import Example, TextTask, batches
from rankwise.jobs.trial import Training, TrialResult, train
from rankwise.models import load, load_tokenizer
from rankwise.reading import read_json

CLASSES = ["negative", "positive", "movies", "nyt", "tweets", "amazon", "shuffled", "intact"]
OWN = {"sentiment": slice(0, 2), "source": slice(2, 6), "order": slice(6, 8)}  # classes of each ability
TASKS = tuple(OWN)
State = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """One ability's encoded rows."""

    train: list[Example]
    validation: list[Example]
    test: list[Example]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all runs share."""

    task: TextTask
    rows: Mapping[str, Rows]
    blocks: int
    rates: Sequence[float]
    steps: int
    out: Path
    on_event: OnEvent

    def base(self, seed: int) -> nn.Module:
        """The first blocks of MiniLM with a fresh head of that seed."""
        set_seed(seed)
        model = load("minilm", task="classification", num_labels=len(CLASSES), dropout=0.0)
        encoder = model.get_submodule("bert.encoder")
        encoder.layer = cast(nn.ModuleList, encoder.get_submodule("layer"))[: self.blocks]
        return model

    def trained(self, name: str, examples: Callable[[], list[Example]], *, seed: int, rate: float, steps: int) -> State:
        """Weights after training on examples; read back where they are."""
        folder = self.out / f"{name}-lr{rate:g}-seed{seed}"
        if not folder.is_dir():
            model, label = self.base(seed), f"{name} lr={rate:g} seed={seed}"
            train(
                model,
                examples(),
                training=Training(steps=steps, batch_size=16, max_length=self.task.max_length, checkpoint_steps=10_000),
                learning_rate=rate,
                seed=seed,
                task=self.task,
                folder=self.out / f".{folder.name}",
                result=TrialResult(method="full", learning_rate=rate, seed=seed),
                on_step=lambda step, total, loss: self.on_event(label, "train", step, total, loss),
            )
            with whole_folder(folder, made_by="bench") as draft:
                save_file({k: v.contiguous() for k, v in model.state_dict().items()}, draft / "model.safetensors")
            self.on_event(label, "done", steps, steps, float("nan"))
        return load_file(folder / "model.safetensors")

    def best_rate(self, name: str, examples: Callable[[], list[Example]], tasks: Sequence[str], *, steps: int) -> float:
        """The learning rate of the best validation accuracy on the first seed."""
        path = self.out / f"{name}-rate.json"
        if not path.exists():
            scores = {}
            for rate in self.rates:
                state = self.trained(name, examples, seed=0, rate=rate, steps=steps)
                scores[rate] = float(self.accuracies(state, "validation", tasks).mean())
            write_json(path, {"rate": max(scores, key=lambda r: scores[r]), "scores": scores})
        return read_json(path)["rate"]

    @torch.no_grad()
    def predicted(self, state: State, task: str, split: str) -> str:
        """Of every row of one ability, shortest first, the class among the ability's own: a digit each."""
        model, own, said = self.base(0).eval(), OWN[task], ""
        model.load_state_dict(state)
        for batch in batches(self.task, self._ordered(task, split), 32):
            batch.pop("labels")
            said += digits((model(**batch).logits[:, own].argmax(-1) + own.start).tolist())
        return said

    def truth(self, task: str, split: str) -> str:
        """The right classes, beside `predicted`."""
        return digits(self.task.collate(self._ordered(task, split))["labels"].tolist())

    def accuracies(self, state: State, split: str, tasks: Sequence[str] = TASKS) -> np.ndarray:
        """Of every ability."""
        return np.array([right(self.predicted(state, t, split), self.truth(t, split)) for t in tasks])

    def _ordered(self, task: str, split: str) -> list[Example]:
        return sorted(getattr(self.rows[task], split), key=self.task.length)


def digits(classes: Sequence[int]) -> str:
    """A character a class."""
    return "".join(map(str, classes))


def right(said: str, truth: str) -> float:
    """Share of rows whose class is the right one."""
    return float(np.mean([a == b for a, b in zip(said, truth, strict=True)]))


def bench(
    out: Path,
    *,
    limits: tuple[int, int, int],
    blocks: int,
    rates: Sequence[float],
    steps: int,
    on_event: OnEvent | None = None,
) -> Bench:
    """The data, encoded: of an ability so many rows at most to train, to validate and to test."""
    task = TextTask(kind="classification", tokenizer=load_tokenizer("minilm"), max_length=40)
    rows = {}
    for name, corpus in corpora().items():
        parts = zip(("train", "validation", "test"), corpus.split(), limits, strict=True)
        rows[name] = Rows(**{split: task.encode(part.head(limit)) for split, part, limit in parts})
    return Bench(
        task=task, rows=rows, blocks=blocks, rates=rates, steps=steps, out=out, on_event=on_event or (lambda *_: None)
    )


def corpora() -> dict[str, Corpus]:
    """Texts of every ability, the word in front, by name; their labels are numbers of `CLASSES`."""
    rated = {d: sentiment(d, task="rating") for d in CLASSES[2:6]}
    size = [c.split().train for c in rated.values()]
    each = min(map(len, size))
    parts = [replace(c, labels=[2 + i] * len(c)).head(2 * each) for i, c in enumerate(rated.values())]
    source = Corpus(
        name="source",
        texts=[t for p in parts for t in p.texts],
        labels=[y for p in parts for y in p.labels],
        groups=[g for p in parts for g in p.groups],
    )
    asked = {"sentiment": sentiment("movies"), "source": source, "order": _order(rated["nyt"])}
    return {n: replace(c, texts=[f"{n}: {t}" for t in c.texts], label_names=list(CLASSES)) for n, c in asked.items()}


def _order(corpus: Corpus) -> Corpus:
    """Every other sentence with its words shuffled; six words at least, so that no order is right by chance."""
    corpus = corpus.where(lambda i: len(re.findall(r"\w+", corpus.texts[i])) >= 6)
    random = np.random.default_rng(0)
    texts = []
    for i, text in enumerate(corpus.texts):
        words = re.findall(r"\w[\w'-]*", text)
        texts.append(" ".join(words if i % 2 else [words[j] for j in random.permutation(len(words))]))
    return replace(corpus, name="order", texts=texts, labels=[6 + i % 2 for i in range(len(texts))])


def clearest(b: Bench, states: Mapping[str, State], share: float = 0.7) -> list[Example]:
    """The mixture without what each ability's expert finds hardest: the share of smallest loss."""
    kept: list[Example] = []
    for name in TASKS:
        examples = b.rows[name].train
        loss, _ = _per_example(b, states[name], examples)
        kept += [examples[i] for i in np.argsort(loss)[: int(share * len(examples))]]
    return kept


def agreeing(b: Bench, start: State, share: float = 0.7) -> list[Example]:
    """The mixture without what pulls the head most against the mean gradient of the other abilities."""
    gradients = {n: _per_example(b, start, b.rows[n].train)[1] for n in TASKS}
    kept: list[Example] = []
    for name in TASKS:
        others = sum(gradients[n].mean(0) for n in TASKS if n != name)
        agreement = (gradients[name] * others).sum((1, 2)).numpy()
        examples = b.rows[name].train
        kept += [examples[i] for i in np.argsort(-agreement)[: int(share * len(examples))]]
    return kept


@torch.no_grad()
def _per_example(b: Bench, state: State, examples: list[Example]) -> tuple[np.ndarray, Tensor]:
    """Loss of every example, and the gradient of the head's weight ``(examples, classes, d)``."""
    model = b.base(0).eval()
    model.load_state_dict(state)
    seen: list[Tensor] = []
    head = model.get_submodule("classifier")
    hook = head.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    losses, gradients = [], []
    for batch in batches(b.task, examples, 64):
        labels = batch.pop("labels")
        logits = model(**batch).logits
        losses.append(nn.functional.cross_entropy(logits, labels, reduction="none"))
        error = logits.softmax(-1) - nn.functional.one_hot(labels, logits.shape[-1])
        gradients.append((error[:, :, None] * seen.pop()[:, None, :]).half())
    hook.remove()
    return torch.cat(losses).numpy(), torch.cat(gradients)
