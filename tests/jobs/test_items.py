"""Metrics of what every item got, against other libraries and by hand."""

import math

import numpy as np
import pytest
from sklearn.metrics import f1_score

from rankwise.jobs.items import metrics


def test_classes_are_scored_as_scikit_learn_does():
    rng = np.random.default_rng(0)
    label, said = rng.integers(0, 3, 40), rng.integers(0, 4, 40)
    label[0], said[:2] = 2, 3
    found = metrics({"label": label.tolist(), "said": said.tolist(), "nll": [0.25] * 20 + [0.75] * 20})
    assert found["accuracy"] == found["score"] == np.mean(label == said)
    assert found["macro_f1"] == pytest.approx(f1_score(label, said, average="macro", labels=[0, 1, 2]))
    assert found["loss"] == 0.5
    assert "loss" not in metrics({"label": [0, 1], "said": [0, 0]})


def test_values_are_scored_by_their_correlation_which_is_zero_where_one_does_not_vary():
    rng = np.random.default_rng(0)
    value, said = rng.normal(size=(2, 30))
    found = metrics({"value": value.tolist(), "said": said.tolist()})
    assert found["pearson"] == found["score"] == pytest.approx(np.corrcoef(value, said)[0, 1])
    assert found["loss"] == pytest.approx(np.mean((value - said) ** 2))
    assert found["rmse"] == pytest.approx(math.sqrt(found["loss"]))
    assert metrics({"value": [1.0, 2.0], "said": [0.0, 0.0]})["score"] == 0


def test_a_loss_is_a_token_s_however_the_texts_differ_in_length():
    found = metrics({"nll": [1.0, 8.0], "tokens": [1, 2]})
    assert found == {"score": -3.0, "loss": 3.0, "perplexity": math.exp(3)}
    assert math.isnan(metrics({"nll": [None, 1.0], "tokens": [1, 1]})["loss"])  # as a NaN stands in a file
    assert metrics({"nll": [1e6], "tokens": [1]})["perplexity"] == math.exp(700)


def test_error_rates_are_those_of_the_whole_corpus():
    found = metrics(
        {"errors": [1, 0], "words": [1, 3], "letter_errors": [2, 1], "letters": [4, 8], "nll": [2, 2], "tokens": [3, 5]}
    )
    assert found == {"score": 0.75, "wer": 0.25, "cer": 0.25, "loss": 0.5}
