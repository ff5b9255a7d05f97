import pytest
import torch

from rankwise.data import Corpus
from rankwise.jobs.tasks import TextTask
from rankwise.models import load_tokenizer

TOKENIZER = load_tokenizer("minilm")
TEXTS = ["a quiet triumph of warmth", "dull", "a film that never ends and never begins"]


def task(**options):
    names = options.pop("label_names", ("negative", "positive"))
    settings = {"max_length": 12, "question": " verdict:", **options}
    return TextTask(kind="text-to-label", tokenizer=TOKENIZER, label_names=names, **settings)


def corpus():
    return Corpus(name="x", texts=TEXTS, labels=[1, 0, 0], groups=list("abc"), label_names=["negative", "positive"])


def test_the_answer_stands_last_and_is_all_that_is_learnt():
    t = task()
    rows = t.encode(corpus())
    assert all(len(r["input_ids"]) <= 12 for r in rows)
    assert [r["input_ids"][-1] for r in rows] == [t.label_tokens[y] for y in (1, 0, 0)]
    batch = t.collate(rows)
    learnt = batch["labels"] != -100
    assert learnt.sum(1).tolist() == [1, 1, 1]
    assert batch["labels"][learnt].tolist() == [t.label_tokens[y] for y in (1, 0, 0)]
    ends = batch["attention_mask"].sum(1) - 1
    assert learnt.int().argmax(1).tolist() == ends.tolist()


class Oracle(torch.nn.Module):
    """A model that says "positive" after every text."""

    def __init__(self, token):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(TOKENIZER.vocab_size))
        self.token = token

    def forward(self, input_ids, attention_mask):
        logits = self.bias.expand(*input_ids.shape, -1).clone()
        logits[..., self.token] = 5.0
        return type("Output", (), {"logits": logits})


def test_accuracy_compares_the_labels_only():
    t = task()
    scores = t.evaluate(Oracle(t.label_tokens[1]), t.encode(corpus()))
    assert scores["accuracy"] == pytest.approx(1 / 3)
    assert t.evaluate(Oracle(t.label_tokens[0]), t.encode(corpus()))["accuracy"] == pytest.approx(2 / 3)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="same token"):
        _ = task(label_names=("good one", "good two")).label_tokens
    with pytest.raises(ValueError, match="leaves no room"):
        task(max_length=3).encode(corpus())
