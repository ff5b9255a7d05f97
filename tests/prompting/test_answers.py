import math

import pytest
import torch

from rankwise.prompting import EquilibriumRanker
from rankwise.prompting.answers import Choices, Scores, propose_answers, rank_answers, score_answers
from rankwise.prompting.language_model import Score
from rankwise.prompting.transformers_model import TransformersModel


class Scorer:
    """Planted log-probabilities: two tokens a word."""

    name, context = "scorer", None

    def __init__(self, yes=None):
        self.seen, self.yes = [], yes or {}

    def score(self, prompts, continuations, *, on_result=None):
        out = []
        for prompt, given in zip(prompts, continuations, strict=True):
            text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
            self.seen.append((prompt, tuple(given)))
            if "Proposed answer" in text:
                p = self.yes.get(text.split("Proposed answer: ")[1].split("\n")[0], 0.5)
                out.append([Score(logprobs=(math.log(p),)), Score(logprobs=(math.log(1 - p),))])
            else:
                out.append([Score(logprobs=(-0.5,) * (2 * len(c.split()))) for c in given])
        return out


QUESTIONS = [
    Choices(question="Capital of France?", candidates=("Paris", "a city in the north", "Paris ")),
    Choices(question="Two and two?", candidates=("three", "four", "five")),
]


def test_scores_of_ragged_questions_stand_where_they_belong():
    found = score_answers(Scorer({"Paris": 0.9, "four": 0.8}), QUESTIONS)
    assert found.mask.tolist() == [[True, True, False], [True, True, True]]  # equal candidates count once
    assert found.plain[0, :2].tolist() == [-1, -5]
    assert found.discriminator[0, 0].exp().tolist() == pytest.approx([0.9, 0.1])
    assert found.discriminator[1, 1].exp().tolist() == pytest.approx([0.8, 0.2])
    per_token = score_answers(Scorer(), QUESTIONS, length="mean")
    assert per_token.plain[0, :2].tolist() == [-0.5, -0.5]


def test_prompts_ask_for_correct_incorrect_and_plain_answers_and_for_a_verdict():
    model = Scorer()
    score_answers(model, QUESTIONS[:1])
    texts = [p[-1]["content"] for p, _ in model.seen]
    assert texts[0].endswith("Give a correct answer.")
    assert texts[1].endswith("Give an incorrect answer.")
    assert texts[2] == "Capital of France?"
    assert [g for _, g in model.seen[3:]] == [("Yes", "No")] * 2
    text = Scorer()
    score_answers(text, QUESTIONS[:1], style="text")
    assert text.seen[0][0].endswith("\nAnswer:")
    assert text.seen[0][1][0] == " Paris"  # the space belongs to the answer


def test_the_discriminator_decides_where_the_generator_does_not():
    questions = [Choices(question="q", candidates=("a", "b", "c"))]
    ranked = rank_answers(Scorer({"b": 0.9, "c": 0.2}), questions)[0]
    assert ranked.order == ["b", "a", "c"]
    assert ranked.best == "b"
    assert set(ranked.scores) == {"equilibrium", "er-g", "g", "d", "mi", "sc"}
    assert ranked.scores["d"]["b"] == pytest.approx(math.log(0.9))


def test_a_batch_is_its_questions_one_by_one():
    model = Scorer({"Paris": 0.7, "four": 0.4, "five": 0.45})
    together = score_answers(model, QUESTIONS).table(EquilibriumRanker(iterations=300, tol=0))
    for b, q in enumerate(QUESTIONS):
        alone = score_answers(model, [q]).table(EquilibriumRanker(iterations=300, tol=0))
        for method, scores in alone.items():
            torch.testing.assert_close(together[method][b, : len(q.candidates)], scores[0])


def test_padding_never_wins():
    scores = Scores(
        generator=torch.zeros(1, 2, 3), discriminator=torch.zeros(1, 3, 2), plain=torch.zeros(1, 3),
        mask=torch.tensor([[True, True, False]]),
    )  # fmt: skip
    for table in scores.table().values():
        assert table[0, 2] == -math.inf
        assert table[0, :2].isfinite().all()


def test_bad_input():
    with pytest.raises(ValueError, match="at least one"):
        Choices(question="q", candidates=())
    with pytest.raises(ValueError, match="none empty"):
        Choices(question="q", candidates=("a", " "))
    with pytest.raises(ValueError, match="did you mean equilibrium"):
        rank_answers(Scorer(), QUESTIONS, method="equilibrum")
    with pytest.raises(ValueError, match="no questions"):
        score_answers(Scorer(), [])
    with pytest.raises(ValueError, match="length"):
        score_answers(Scorer(), QUESTIONS, length="max")

    class Broken(Scorer):
        def score(self, prompts, continuations, *, on_result=None):
            return [[Score(logprobs=(math.nan,)) for _ in c] for c in continuations]

    with pytest.raises(ValueError, match="not a number"):
        score_answers(Broken(), QUESTIONS)


@pytest.fixture(scope="module")
def smollm2():
    return TransformersModel("smollm2")


def test_the_real_model_knows_a_capital(smollm2):
    question = Choices(question="What is the capital of France?", candidates=("Paris", "Madrid", "Rome", "Oslo"))
    ranked = rank_answers(smollm2, [question], ranker=EquilibriumRanker(iterations=500))[0]
    assert ranked.best == "Paris"


def test_candidates_are_proposed_for_an_open_question(smollm2):
    answers = propose_answers(smollm2, "What is the capital of France?", samples=2, max_new_tokens=10)
    assert "Paris" in answers[0]
    assert len(answers) == len(set(answers))
    assert all("\n" not in a for a in answers)
