"""What the recipes of the prompting family compute by themselves."""

import numpy as np
import pytest
import torch

from rankwise.bench.prompting import dq_lore, moving_digits
from rankwise.bench.shared import frozen
from rankwise.bench.shared.frozen import Difference, difference, label_logp, polarity, silent, sources
from rankwise.bench.speed import prompting as prompting_speed
from rankwise.data import sentiment
from rankwise.prompting.examples import Example
from rankwise.prompting.language_model import Score


def test_a_difference_is_the_paired_mean_with_an_interval_of_resampled_queries():
    rng = np.random.default_rng(0)
    b = rng.normal(size=400)
    a = b + 0.3 + rng.normal(size=400)
    found = difference(a, b)
    assert found.mean == pytest.approx((a - b).mean())
    error = (a - b).std() / np.sqrt(400)  # a normal interval is nearly the bootstrap's for a mean of 400
    assert (found.low, found.high) == pytest.approx((found.mean - 1.96 * error, found.mean + 1.96 * error), abs=0.01)
    same = difference(np.ones(5), np.zeros(5), scale=100)
    assert (same.low, same.mean, same.high) == (1, 1, 1)
    assert same.error == 0
    assert found.error == pytest.approx((a - b).std(ddof=1) / 20)
    assert str(same) == "+100 [+100, +100], sees 0"
    shown = Difference(mean=1.0, low=0.5, high=1.5, error=0.25, scale=10)
    assert str(shown) == "+10 [+5, +15], sees 7"  # 2.8 standard errors
    assert difference(a, b) == found
    assert difference(a, b, seed=1) != found


class Likes:
    """Gives every label the score it is told, by the query that stands last in the prompt."""

    name, context = "likes", None

    def __init__(self, scores):
        self.scores, self.given = scores, []

    def score(self, prompts, continuations, *, on_result=None):
        self.given += zip(prompts, continuations, strict=True)
        rows = [next(s for q, s in self.scores.items() if p.endswith(f"Question: {q}\nAnswer:")) for p in prompts]
        return [[Score(logprobs=(x / 2, x / 2)) for x in row] for row in rows]


def test_log_probabilities_of_labels_are_normalised_over_them():
    model = Likes({"one": [0.0, -1.0], "two": [-3.0, -3.0 + np.log(3)]})
    queries = [Example(question="one", answer="no"), Example(question="two", answer="yes")]
    shots = [[Example(question="shown", answer="no")], []]
    found = label_logp(model, queries, shots, ["yes", "no"], instruction="Say.")
    whole = 1 + np.e
    np.testing.assert_allclose(np.exp(found), [[np.e / whole, 1 / whole], [1 / 4, 3 / 4]])
    assert "shown" in model.given[0][0]
    assert "shown" not in model.given[1][0]
    assert model.given[0][1] == [" yes", " no"]


def test_sentences_have_the_polarity_and_source_they_are_given_for():
    whole = sentiment("movies").split().test
    labels = dict(zip(whole.texts, whole.labels, strict=True))
    examples = polarity("movies", "test", 40)
    assert len(examples) == 40
    assert all(e.answer == ("negative", "positive")[int(labels[e.question])] for e in examples)
    found = sources("validation", 42)
    assert [e.answer for e in found] == [n for n in ("film", "newspaper", "tweet", "shop") for _ in range(10)]


def test_random_directions_project_on_as_many_directions_as_lore_and_keep_small_products_small():
    selector = dq_lore.RandomDirections(None, None, 2, candidates=5, rank=3)
    g = torch.Generator().manual_seed(1)
    query, candidates = torch.randn(2, 8, generator=g), torch.randn(2, 5, 8, generator=g)
    X = torch.cat([candidates, query[:, None]], 1).double()
    X = X - X.mean(1, keepdim=True)
    found = selector._scores(query, candidates)
    assert found.shape == (2, 5)
    assert torch.equal(found, selector._scores(query, candidates))
    # all 8 directions would give the inner products themselves
    every = dq_lore.RandomDirections(None, None, 2, candidates=5, rank=8)._scores(query, candidates)
    torch.testing.assert_close(every, (X[:, :-1] @ X[:, -1, :, None])[..., 0])
    assert not torch.allclose(found, every)


def prompt(query, *examples):
    shown = [({"role": "user", "content": [{"path": p}]}, {"role": "assistant", "content": c}) for p, c in examples]
    return [*(m for pair in shown for m in pair), {"role": "user", "content": [{"path": query}]}]


def test_the_nearest_example_gives_its_label_and_a_confidence_that_knows_none_of_them():
    model = moving_digits.NearestExample(moving_digits.Encoder(), floor=0.6)
    vectors = {"q": [1.0, 0], "near": [0.8, 0.6], "far": [0.0, 1], "other": [-1.0, 0]}
    model.vector = lambda path: np.array(vectors[path])
    told = []
    said = model.generate(
        [prompt("q", ("far", "7"), ("near", "5")), prompt("q", ("other", "6"))], on_result=lambda i, g: told.append(i)
    )
    assert [g.text for g in said] == ["5", "6"]
    weights = np.exp(moving_digits.SHARPNESS * np.array([0.0, 0.8, 0.6]))
    assert np.exp(said[0].logprobs[0]) == pytest.approx(weights[1] / weights.sum())
    assert np.exp(said[1].logprobs[0]) < 1e-10
    assert told == [0, 1]
    assert said[0].prompt_tokens == model.count_tokens(prompt("q", ("far", "7"), ("near", "5"))) == 3
    both = model.generate([prompt("q", ("near", "5"), ("near", "5"))])[0]
    assert np.exp(both.logprobs[0]) == pytest.approx(2 * weights[1] / (2 * weights[1] + weights[2]))


def test_the_encoder_gives_unit_vectors():
    vectors = moving_digits.Encoder().eval()(torch.rand(3, 64, 64))
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    assert vectors.shape == (3, 32)


def test_a_ratio_of_speed_is_theirs_over_ours():
    assert prompting_speed._row("a", 0.5, "b", 1000.0) == ["a", "0.500s", "b", "1000.0s", "2,000.0x"]


def test_without_a_listener_events_go_nowhere_and_a_listener_hears_them():
    heard = []
    assert silent(None)("trial", "train", 0, 1, 0.5) is None
    silent(lambda *event: heard.append(event))("trial", "train", 0, 1, 0.5)
    assert heard == [("trial", "train", 0, 1, 0.5)]


def test_the_frozen_model_keeps_what_it_says_in_the_recipes_folder(monkeypatch, tmp_path):
    loaded = []
    monkeypatch.setattr(frozen, "load", lambda name, **options: loaded.append((name, options)))
    monkeypatch.setattr(frozen, "load_tokenizer", lambda name: None)
    monkeypatch.setattr(frozen, "TransformersModel", lambda model, tokenizer, *, batch_size: "inner")
    monkeypatch.setattr(frozen, "Recorded", lambda inner, path: (inner, path))
    frozen._loaded.cache_clear()
    for folder in (tmp_path, tmp_path / "other"):
        assert frozen.smollm2(folder) == ("inner", folder / "record.jsonl")
    frozen._loaded.cache_clear()
    assert loaded == [("smollm2", {"task": "causal-lm", "dtype": torch.bfloat16})]
