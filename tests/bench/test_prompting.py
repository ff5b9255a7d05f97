"""What the recipes of the prompting family compute by themselves."""

import numpy as np
import pytest
import torch

from rankwise.bench.prompting import depth_prompts, dq_lore, equilibrium, moving_digits, videoicl
from rankwise.bench.shared import frozen
from rankwise.bench.shared.frozen import Difference, Labelled, classified, difference, polarity, silent, sources
from rankwise.bench.speed import prompting as prompting_speed
from rankwise.data import sentiment
from rankwise.data.world import countries
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
    assert str(same) == "+100 [+100, +100]"
    assert difference(a, b) == found
    assert difference(a, b, seed=1) != found


def test_a_row_shows_accuracy_with_its_standard_error_and_the_mean_log_probability():
    found = Labelled(right=np.array([1.0, 0.0, 1.0, 1.0]), logp=np.array([-0.1, -2.0, -0.3, -0.2]))
    assert found.row() == ["75.0±21.7", "-0.650"]  # √(0.75 · 0.25 / 4)


class Likes:
    """Gives every label the score it is told, by the query that stands last in the prompt."""

    name, context = "likes", None

    def __init__(self, scores):
        self.scores, self.given = scores, []

    def score(self, prompts, continuations, *, on_result=None):
        self.given += zip(prompts, continuations, strict=True)
        rows = [next(s for q, s in self.scores.items() if p.endswith(f"Question: {q}\nAnswer:")) for p in prompts]
        return [[Score(logprobs=(x / 2, x / 2)) for x in row] for row in rows]


def test_the_likeliest_label_is_the_answer_and_log_probabilities_are_over_the_labels():
    model = Likes({"one": [0.0, -1.0], "two": [-3.0, -3.0 + np.log(3)]})
    queries = [Example(question="one", answer="no"), Example(question="two", answer="yes")]
    shots = [[Example(question="shown", answer="no")], []]
    found = classified(model, queries, shots, ["yes", "no"], instruction="Say.")
    assert found.right.tolist() == [0, 0]
    np.testing.assert_allclose(found.logp, [np.log(1 / (1 + np.e)), np.log(1 / 4)])
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


@pytest.mark.parametrize("k", [2, 3, 4])
def test_dealt_scores_are_always_another_candidates(k):
    for seed in range(20):
        order = equilibrium._derangement(k, np.random.default_rng(seed), 5)
        assert sorted(order) == list(range(5))
        assert (order[:k] != np.arange(k)).all()
        assert (order[k:] == np.arange(k, 5)).all()


@pytest.mark.parametrize("made", [equilibrium._capitals, equilibrium._continents])
def test_every_question_has_four_candidates_and_the_gold_one_is_right(made):
    questions, gold = made()
    attribute = "capital" if made is equilibrium._capitals else "continent"
    assert len(questions) == equilibrium.QUESTIONS
    for q, g, c in zip(questions, gold, countries(), strict=False):
        assert c.name in q.question
        assert len(set(q.candidates)) == len(q.candidates)
        assert q.candidates[g] == getattr(c, attribute)
    assert sum(len(q.candidates) == 4 for q in questions) >= 149  # Belgrade is the capital of two of the data's states
    assert len(set(gold.tolist())) == 4


def test_right_is_the_share_of_questions_whose_best_candidate_is_gold():
    table = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.4]])
    assert equilibrium._right(table, np.array([1, 1, 1])).tolist() == [1, 0, 1]
    cells = equilibrium._cells(np.array([1.0, 1, 1, 0]), np.array([1.0, 1, 0, 0]))
    assert cells[0] == "75.0±21.7"
    assert cells[1].startswith("+25 [")


def test_a_rationale_lists_three_rated_words_of_each_kind_at_most():
    rated = {"good": 2.0, "fine": 1.0, "nice": 1.5, "great": 3.0, "bad": -2.0, "mild": 0.5}
    told = dq_lore.explained(Example(question="Good good fine, nice GREAT; bad mild.", answer="x"), rated)
    assert told.rationale == "negative words: bad; positive words: good, fine, nice."
    assert (told.question, told.answer) == ("Good good fine, nice GREAT; bad mild.", "x")
    assert not dq_lore.explained(Example(question="mild", answer="x"), rated).rationale


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


def test_the_loop_stops_at_the_first_round_above_the_threshold_and_keeps_the_surest():
    sure = np.array([[0.2, 0.6, 0.9], [0.3, 0.1, 0.2], [0.95, 0.1, 0.99]])
    kept, calls = videoicl.stopped(sure, 0.5)
    assert (kept.tolist(), calls.tolist()) == ([1, 0, 0], [2, 3, 1])
    kept, calls = videoicl.stopped(sure, 0.9)  # above, not at
    assert (kept.tolist(), calls.tolist()) == ([2, 0, 0], [3, 3, 1])
    assert videoicl.stopped(sure, 1.0)[0].tolist() == [2, 0, 2]


def test_a_policy_pays_for_the_rounds_it_played():
    sure = np.array([[0.2, 0.6, 0.9, 0.1], [0.3, 0.1, 0.2, 0.1]])
    right = np.array([[0.0, 1, 0, 0], [1.0, 0, 0, 0]])
    played = videoicl.Played(
        right=right, sure=sure, tokens=np.array([[1.0, 2, 4, 8]] * 2), none=right[:, 0], together=right[:, 0],
        together_tokens=right[:, 0],
    )  # fmt: skip
    found = played.policy(0.5)
    assert [x.tolist() for x in found] == [[1, 1], [2, 4], [3, 15]]
    dealt = played.policy(0.5, sure[::-1])
    assert [x.tolist() for x in dealt] == [[0, 0], [4, 2], [15, 3]]


def test_area_under_the_curve_is_scikit_learns_and_one_half_without_two_classes():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    score, right = rng.integers(0, 5, 60).astype(float), rng.integers(0, 2, 60).astype(float)
    assert videoicl._auc(score, right) == pytest.approx(roc_auc_score(right, score))
    assert videoicl._auc(score, np.ones(60)) == videoicl._auc(score, np.zeros(60)) == 0.5


def test_a_row_of_a_policy_shows_what_it_cost():
    right, calls = np.array([1.0, 0, 1, 1]), np.array([1.0, 2, 2, 1])
    assert videoicl._row("tweets", "loop", right, calls, 10 * calls) == ["tweets", "loop", "75.0±21.7", "1.50", "15"]
    assert videoicl._row("tweets", "none", right, None, None)[3:] == ["-", "-"]


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


def gap(low, high):
    return Difference(mean=(low + high) / 2, low=low, high=high)


def test_claims_on_depths_hold_when_every_interval_says_so():
    better, worse = [("a", gap(0.1, 0.3)), ("b", gap(0.1, 0.2))], [("a", gap(-0.2, 0.1))]
    above = [("a", 0.6, 0.5)]
    assert [c.held for c in depth_prompts._claims(better, worse, above)] == [True, True, True]
    assert [c.held for c in depth_prompts._claims([*better, *worse], worse, above)] == [False, True, True]
    assert [c.held for c in depth_prompts._claims(better, [*worse, *better], above)] == [True, False, True]
    assert [c.held for c in depth_prompts._claims(better, worse, [("a", 0.5, 0.5)])] == [True, True, False]


def test_claims_on_dq_lore_compare_with_every_rival_in_every_domain():
    helped = {"random": Labelled(right=np.ones(2), logp=np.array([-1.0, -1])),
              "no examples": Labelled(right=np.ones(2), logp=np.array([-2.0, -2]))}  # fmt: skip
    rivals = {"BM25": {"movies": gap(0.1, 0.2), "amazon": gap(0.1, 0.3)}}
    assert [c.held for c in dq_lore._claims(rivals, {"movies": helped})] == [True, True]
    rivals["random directions"] = {"movies": gap(0.1, 0.2), "amazon": gap(-0.1, 0.3)}
    found = dq_lore._claims(rivals, {"movies": {"random": helped["no examples"], "no examples": helped["random"]}})
    assert [(c.held, c.control) for c in found] == [(True, False), (False, True), (False, True)]


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
    assert frozen.smollm2(tmp_path) == ("inner", tmp_path / "record.jsonl")
    assert loaded == [("smollm2", {"task": "causal-lm", "dtype": torch.bfloat16})]
