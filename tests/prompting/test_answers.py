import math

import pytest
import torch

from rankwise.prompting import EquilibriumRanker
from rankwise.prompting.answers import (
    AnswerPrompts,
    Choices,
    Scores,
    Unanswerable,
    fits,
    propose_answers,
    rank_answers,
    score_answers,
)
from rankwise.prompting.language_model import Generation, Sampling, Score
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


def test_prompts_are_these_texts():
    question = Choices(question="Capital?", candidates=("Paris", "Rome"))
    asked = {"chat": Scorer(), "text": Scorer()}
    for style, model in asked.items():
        score_answers(model, [question], style=style)
    judge = "Is this answer correct? Reply with Yes or No."
    texts = [
        "Capital?\nGive a correct answer.",
        "Capital?\nGive an incorrect answer.",
        "Capital?",
        f"Capital?\nProposed answer: Paris\n{judge}",
        f"Capital?\nProposed answer: Rome\n{judge}",
    ]
    given = [("Paris", "Rome")] * 3 + [("Yes", "No")] * 2
    assert asked["chat"].seen == [([{"role": "user", "content": t}], g) for t, g in zip(texts, given, strict=True)]
    assert asked["text"].seen == [
        (f"Question: {t}\nAnswer:", tuple(f" {x}" for x in g)) for t, g in zip(texts, given, strict=True)
    ]
    default = Scorer()
    rank_answers(default, [question])
    assert default.seen == asked["chat"].seen


class Written:
    """Writes texts one after the other, and counts a token a character."""

    name = "written"

    def __init__(self, *texts, context=None):
        self.texts, self.context, self.asked = list(texts), context, []

    def generate(self, prompts, sampling=None, *, on_result=None):
        self.asked += [(prompt, sampling) for prompt in prompts]
        return [
            Generation(text=self.texts.pop(0), tokens=(), logprobs=(), top_logprobs=(), special=(), prompt_tokens=1)
            for _ in prompts
        ]

    def count_tokens(self, prompt):
        return len(prompt if isinstance(prompt, str) else prompt[-1]["content"])


def test_an_open_questions_candidates_are_the_greedy_answer_and_draws_each_once():
    model = Written("b ", "a", " ", " b", "c", "a", "", "d", "d")
    assert propose_answers(model, "Why?") == ("b", "a", "c", "d")
    chat = [{"role": "user", "content": "Why?"}]
    drawn = [Sampling(max_new_tokens=32, temperature=1.0, top_p=0.9, stop=("\n",), seed=s) for s in range(8)]
    assert model.asked == [(chat, s) for s in (Sampling(max_new_tokens=32, stop=("\n",)), *drawn)]
    model = Written("b", "b", "a")
    options = {"samples": 2, "max_new_tokens": 5, "temperature": 0.5, "top_p": 0.25, "style": "text"}
    assert propose_answers(model, "Why?", **options) == ("b", "a")
    other = [Sampling(max_new_tokens=5, temperature=0.5, top_p=0.25, stop=("\n",), seed=s) for s in range(2)]
    text = "Question: Why?\nAnswer:"
    assert model.asked == [(text, s) for s in (Sampling(max_new_tokens=5, stop=("\n",)), *other)]
    assert propose_answers(Written("b"), "Why?", samples=0) == ("b",)
    with pytest.raises(Unanswerable, match=r"written wrote no answer to 'Why\?'"):
        propose_answers(Written(" ", "\n"), "Why?", samples=1)


def test_a_question_is_asked_where_it_leaves_room_for_an_answer():
    assert propose_answers(Written("b", context=4 + 5), "Why?", samples=0, max_new_tokens=5) == ("b",)
    with pytest.raises(Unanswerable, match="no room for an answer in 8 tokens"):
        propose_answers(Written("b", context=8), "Why?", samples=0, max_new_tokens=5)


def test_a_question_fits_where_its_longest_prompt_and_continuation_do():
    question = Choices(question="q", candidates=("a", "long answer"))
    judged = len("q\nProposed answer: long answer\nIs this answer correct? Reply with Yes or No.") + len("Yes")
    assert fits(Written(context=None), question)
    assert fits(Written(context=judged), question)
    assert not fits(Written(context=judged - 1), question)
    assert not fits(Written(context=judged), question, style="text")  # "Question: … Answer:" is longer
    longer = Choices(question="q", candidates=("a" * 90, "b"))
    generator = len("q\nProposed answer: \nIs this answer correct? Reply with Yes or No.") + 90 + len("Yes")
    incorrect = len("q\nGive an incorrect answer.") + 90
    assert fits(Written(context=max(generator, incorrect)), longer)
    assert not fits(Written(context=max(generator, incorrect) - 1), longer)


def test_ranked_answers_hold_every_methods_scores_of_the_questions_own_candidates():
    model = Scorer({"Paris": 0.7, "four": 0.8})
    ranked = rank_answers(model, QUESTIONS, method="g", length="mean")
    table = score_answers(model, QUESTIONS, length="mean").table()
    for b, (found, question) in enumerate(zip(ranked, QUESTIONS, strict=True)):
        assert found.question == question.question
        assert sorted(found.order) == sorted(question.candidates)
        for method, scores in table.items():
            assert list(found.scores[method]) == list(question.candidates)
            assert list(found.scores[method].values()) == scores[b, : len(question.candidates)].tolist()
    assert ranked[1].order == ["three", "four", "five"]  # equals in the order given
    assert rank_answers(model, QUESTIONS, method="g")[0].order == ["Paris", "a city in the north"]


def test_the_table_is_the_rankers_policies_and_the_baselines():
    scores = score_answers(Scorer({"Paris": 0.7, "four": 0.8, "five": 0.4}), QUESTIONS)
    ranker = EquilibriumRanker(iterations=50, tol=0)
    table, played = scores.table(ranker), ranker.rank(scores.generator, scores.discriminator, scores.mask)
    for method, expected in (("equilibrium", played.policy_d[:, :, 0]), ("er-g", played.policy_g[:, 0])):
        assert torch.equal(table[method][scores.mask], expected[scores.mask])
    torch.testing.assert_close(table["d"][scores.mask].exp(), scores.discriminator[..., 0][scores.mask].exp())
    torch.testing.assert_close(table["g"].exp().sum(1), torch.ones(2, dtype=torch.float64))  # padding has no share
    torch.testing.assert_close(table["g"][0, 0] - table["g"][0, 1], scores.plain[0, 0] - scores.plain[0, 1])
    torch.testing.assert_close(table["mi"], table["g"] + table["d"])
    assert (table["sc"][scores.mask] == 0).all()  # the scorer does not tell correct from incorrect
    assert set(scores.table()) == set(table)
    default = EquilibriumRanker().rank(scores.generator, scores.discriminator, scores.mask)
    assert torch.equal(scores.table()["er-g"][scores.mask], default.policy_g[:, 0][scores.mask])


@pytest.mark.parametrize("candidates", ["Paris", ("Paris", 3), ("a", "")])
def test_candidates_are_a_list_of_texts(candidates):
    with pytest.raises(ValueError, match="candidates"):
        Choices(question="q", candidates=candidates)
    with pytest.raises(ValueError, match="question is empty"):
        Choices(question=" ", candidates=("a",))


def test_one_number_that_is_none_is_enough_and_an_unknown_style_is_refused():
    class Broken(Scorer):
        def score(self, prompts, continuations, *, on_result=None):
            out = super().score(prompts, continuations)
            out[-1][-1] = Score(logprobs=(math.nan,))
            return out

    with pytest.raises(ValueError, match="scorer gave a log-probability that is not a number"):
        score_answers(Broken(), QUESTIONS)
    with pytest.raises(ValueError, match="did you mean text"):
        score_answers(Scorer(), QUESTIONS, style="txt")


OWN = AnswerPrompts(
    correct="Say it: {question}",
    incorrect="Err: {question}",
    plain="Just: {question}",
    judge="Is {candidate} right for {question}?",
    verdicts=["right ", "wrong"],
)


@pytest.mark.parametrize(("style", "gap"), [("chat", ""), ("text", " ")])
def test_prompts_of_ones_own_are_asked_as_they_are(style, gap):
    model = Scorer()
    question = Choices(question="Is {candidate} {0} a word? ", candidates=("{question}", "no"))
    score_answers(model, [question], style=style, prompts=OWN)
    asked = [p if style == "text" else p[0]["content"] for p, _ in model.seen]
    said = "Is {candidate} {0} a word?"  # what a question or candidate says is not filled in again
    assert asked[:3] == [f"Say it: {said}", f"Err: {said}", f"Just: {said}"]
    assert asked[3:] == [f"Is {c} right for {said}?" for c in ("{question}", "no")]
    assert [given for _, given in model.seen] == [(f"{gap}{{question}}", f"{gap}no")] * 3 + [
        (f"{gap}right", f"{gap}wrong")
    ] * 2


def test_the_usual_prompts_are_what_is_asked_where_none_are_given():
    for style in ("chat", "text"):
        plain, usual = Scorer(), Scorer()
        score_answers(plain, QUESTIONS, style=style)
        score_answers(usual, QUESTIONS, style=style, prompts=AnswerPrompts.usual(style))
        assert plain.seen == usual.seen
    assert AnswerPrompts.usual("text").plain == "Question: {question}\nAnswer:"
    assert AnswerPrompts.usual("chat") == AnswerPrompts()


def test_prompts_of_ones_own_decide_the_answer_the_candidates_drawn_and_whether_they_fit():
    class Own(Scorer):
        def score(self, prompts, continuations, *, on_result=None):
            liked = [p[0]["content"].startswith("Err") for p in prompts]
            return [
                [Score(logprobs=(-1.0 * (i if not wrong else -i - 5),)) for i in range(len(given))]
                for wrong, given in zip(liked, continuations, strict=True)
            ]

    question = Choices(question="q", candidates=("a", "b"))
    assert rank_answers(Own(), [question], method="sc", prompts=OWN)[0].order == ["a", "b"]

    class Counted:
        name, context, asked = "counted", 40, ()

        def count_tokens(self, prompt):
            return len(prompt if isinstance(prompt, str) else prompt[0]["content"])

        def generate(self, prompts, sampling=None, *, on_result=None):
            self.asked = (*self.asked, *prompts)
            said = {"logprobs": (), "top_logprobs": (), "special": (), "prompt_tokens": 1}
            return [Generation(text="yes", tokens=(), **said)]

    model = Counted()
    assert not fits(model, question)
    assert fits(model, question, prompts=OWN)
    assert propose_answers(model, "q", samples=0, prompts=OWN) == ("yes",)
    assert model.asked[0][0]["content"] == "Just: q"


@pytest.mark.parametrize(("given", "said"), [
    ({"correct": "Say it."}, r"correct: \{question\} are needed|correct: \{question\}"),
    ({"plain": "{question} {candidate}"}, "plain"),
    ({"judge": "{question}?"}, r"judge: \{question\} and \{candidate\}"),
    ({"incorrect": 3}, "incorrect"),
    ({"verdicts": ("Yes", "Yes ")}, "two texts are needed"),
    ({"verdicts": (True, False)}, "two texts are needed"),
    ({"verdicts": "Yes"}, "two texts are needed"),
    ({"verdicts": ("Yes", "No", "?")}, "two texts are needed"),
])  # fmt: skip
def test_prompts_that_do_not_name_what_they_are_about_are_refused(given, said):
    with pytest.raises(ValueError, match=said):
        AnswerPrompts(**given)
