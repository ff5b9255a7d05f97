"""The recipe of Equilibrium-Ranking: questions, demonstrations, dealt scores, and claims that each can fail."""

import numpy as np
import pytest
import torch

from rankwise.bench.prompting import equilibrium as recipe
from rankwise.data.world import countries


def test_every_question_has_four_capitals_of_a_continent_and_the_gold_one_is_right():
    questions, gold, _ = recipe.drawn(3, recipe.QUESTIONS, 6)
    asked = countries()[recipe.KNOWN : recipe.KNOWN + recipe.QUESTIONS]
    continent = {c.capital.strip(): c.continent for c in countries()}
    assert len(questions) == 150
    for q, g, c in zip(questions, gold, asked, strict=True):
        assert q.question == f"What is the capital of {c.name}?"
        assert q.candidates[g] == c.capital.strip()
        assert len(set(q.candidates)) == 4
    alike = [len({continent[x] for x in q.candidates}) == 1 for q in questions]
    assert np.mean(alike) > 0.95
    assert set(gold) == {0, 1, 2, 3}
    assert recipe.drawn(3, 5, 6)[0] == recipe.drawn(3, 5, 6)[0] != recipe.drawn(4, 5, 6)[0]


def test_demonstrations_are_of_known_countries_that_are_not_asked_for():
    _, _, prompts = recipe.drawn(0, 5, 6)
    known = {c.name: c.capital for c in countries()[: recipe.KNOWN]}
    shown = [part.split("\n") for part in prompts.correct.split("\n\n")[:-1]]
    assert len(shown) == 6
    for question, answer in shown:
        name = question.removeprefix("Question: What is the capital of ").removesuffix("?")
        assert answer == f"Correct answer: {known[name]}"
        assert f"Incorrect answer: {known[name]}\n" not in prompts.incorrect.split(name)[1].split("\n\n")[0] + "\n"
    judged = [part.split("\n") for part in prompts.judge.split("\n\n")[:-1]]
    for question, proposed, verdict in judged:
        name = question.removeprefix("Question: What is the capital of ").removesuffix("?")
        assert (verdict == "Correct: Yes") == (proposed == f"Proposed answer: {known[name]}")
    assert [v for _, _, v in judged].count("Correct: Yes") == 3
    assert prompts.plain.endswith("Question: {question}\nAnswer:")


@pytest.mark.parametrize("k", [2, 3, 4])
def test_dealt_scores_are_always_another_candidates(k):
    for seed in range(20):
        order = recipe.derangement(k, np.random.default_rng(seed), 5)
        assert sorted(order) == list(range(5))
        assert (order[:k] != np.arange(k)).all()
        assert (order[k:] == np.arange(k, 5)).all()


def run(judges=True, generates=True, contrasts=True, questions=8):
    """Scores of which each side knows the right candidate, the first, or takes the second for it."""
    shape = (questions, 4)

    def logp(knows):
        p = np.full(shape, 0.1)
        p[:, 0 if knows else 1] = 0.7
        return np.log(p)

    wrong = np.log((1 - np.exp(logp(contrasts))) / 3)
    yes = logp(judges)
    return {
        "questions": ["?"] * questions, "candidates": [["a", "b", "c", "d"]] * questions, "gold": [0] * questions,
        "generator": np.stack([logp(contrasts), wrong], 1).tolist(),
        "discriminator": np.stack([yes, np.log(1 - np.exp(yes))], 2).tolist(), "plain": logp(generates).tolist(),
    }  # fmt: skip


def test_the_right_candidates_share_is_a_policys_or_a_softmax():
    table, scores = recipe.table(run())
    assert scores.mask.all()
    gold = np.zeros(8, int)
    assert recipe.right(table["g"], gold).tolist() == [1] * 8
    np.testing.assert_allclose(recipe.log_share(table["g"], gold, False), np.log(0.7), atol=1e-6)
    policy = torch.tensor([[0.6, 0.3, 0.3, -torch.inf]])
    np.testing.assert_allclose(recipe.log_share(policy, np.array([0]), True), np.log(0.5), atol=1e-6)


def test_fewer_candidates_are_masked():
    short = run(questions=2)
    short["candidates"] = [["a", "b", "c", "d"], ["a", "b"]]
    assert recipe.table(short)[1].mask.tolist() == [[True] * 4, [True, True, False, False]]


def test_dealing_moves_whole_pairs_of_verdicts_within_a_question():
    scores = recipe.table(run())[1]
    dealt = recipe.dealt_anew(scores, 0)
    assert torch.equal(dealt.generator, scores.generator)
    assert not torch.equal(dealt.discriminator, scores.discriminator)
    torch.testing.assert_close(dealt.discriminator.sort(1).values, scores.discriminator.sort(1).values)


@pytest.fixture
def once(monkeypatch):
    monkeypatch.setattr(recipe, "DEALT", 1)


def failed(**changes):
    return [c.text for c in recipe.judge({"seed 0": run(**changes)}, seeds=1).claims if not c.held and c.control]


@pytest.mark.usefixtures("once")
def test_controls_fail_where_the_requests_are_not_told_apart_or_the_verdicts_are_chance():
    assert failed() == []
    assert ["correct against incorrect" in text for text in failed(contrasts=False)] == [True]
    assert ["above chance" in text for text in failed(judges=False)] == [True]


def claims(dealt=0.5, **changes):
    shift = 0.001 * np.arange(5)
    share = {"equilibrium": 0.8, "er-g": 0.8, "g": 0.6, "d": 0.6, "mi": 0.7, "sc": 0.6} | changes
    share = {m: v + (shift if m == "equilibrium" else 0 * shift) for m, v in share.items()}
    logp = {m: np.log(v) for m, v in share.items()}
    return [c.text for c in recipe._claims(share, logp, np.full(5, dealt)) if not c.held]


@pytest.mark.parametrize(("changes", "words"), [
    ({}, []), ({"mi": 0.9}, ["the best of"]), ({"d": 0.9}, ["the best of", "beats the discriminator"]),
    ({"g": 0.9, "sc": 0.9}, ["the best of", "beats the generator", "more probability"]),
    ({"sc": 0.45}, ["correct against incorrect"]), ({"d": 0.3}, ["above chance"]), ({"dealt": 0.7}, ["dealt anew"]),
])  # fmt: skip
def test_each_claim_can_fail(changes, words):
    found = claims(**changes)
    assert len(found) == len(words)
    assert all(w in t for w, t in zip(words, found, strict=True))


@pytest.mark.usefixtures("once")
def test_every_method_has_a_row():
    rows = recipe.judge({"seed 0": run()}, seeds=1).rows
    assert [r[0] for r in rows[:6]] == list(recipe.TITLES.values())
    assert rows[2][1:] == ["100.0±0.0", "-0.357±0.000", "-"]
