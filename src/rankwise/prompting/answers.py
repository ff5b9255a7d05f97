"""Choosing among candidate answers with a language model: prompts and scores for Equilibrium-Ranking and its baselines.

For a question x and candidates y three kinds of log-probability are asked for:

* ``generator`` ``(2, K)``: of y, when a correct (0) or an incorrect (1) answer is asked for;
* ``discriminator`` ``(K, 2)``: of *yes* and *no*, when asked whether y is correct;
* ``plain`` ``(K,)``: of y when nothing is said.

Candidates of a question share their prompt, which the local model computes once.

Source: Jacob et al., "The Consensus Game", ICLR 2024, arXiv 2310.09139, sections 2 and 4.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rankwise.nearest import unknown
from rankwise.prompting.equilibrium import CORRECT, EquilibriumRanker, baselines
from rankwise.prompting.language_model import LanguageModel, Prompt, Sampling
from rankwise.prompting.names import RANKERS

__all__ = ["AnswerPrompts", "Choices", "rank_answers", "score_answers"]

_GAP = re.compile(r"\{(question|candidate)\}")


@dataclass(frozen=True, kw_only=True)
class AnswerPrompts:
    """What is asked about a question, in words of one's own: demonstrations help a small model to understand a verdict.

    With ``style="chat"`` each is a user's turn, with ``style="text"`` the whole prompt, which the answer continues
    after a space. ``{question}`` and ``{candidate}`` stand for what they say.

    Attributes
    ----------
    correct, incorrect, plain : str
        Which a candidate follows: a correct answer, an incorrect one, an answer.
    judge : str
        Which a verdict on a candidate follows.
    verdicts : tuple of str
        The verdict on a right and on a wrong candidate.

    Raises
    ------
    ValueError
        A prompt that does not name the question, or the candidate where there is one; verdicts that are not two.

    Examples
    --------
    >>> from rankwise.prompting import AnswerPrompts
    >>> shown = "Question: Capital of Norway?\\nWrong answer: Bergen\\n\\n"
    >>> prompts = AnswerPrompts(incorrect=shown + "Question: {question}\\nWrong answer:")
    >>> prompts.judge.splitlines()[-1]
    'Is this answer correct? Reply with Yes or No.'
    >>> AnswerPrompts(judge="Is it right?")
    Traceback (most recent call last):
    ValueError: judge: {question} and {candidate} are needed in the prompt, found 'Is it right?'
    """

    correct: str = "{question}\nGive a correct answer."
    incorrect: str = "{question}\nGive an incorrect answer."
    plain: str = "{question}"
    judge: str = "{question}\nProposed answer: {candidate}\nIs this answer correct? Reply with Yes or No."
    verdicts: tuple[str, str] = ("Yes", "No")

    def __post_init__(self) -> None:
        for name in ("correct", "incorrect", "plain", "judge"):
            needed = ("question", "candidate") if name == "judge" else ("question",)
            text = getattr(self, name)
            if not isinstance(text, str) or set(_GAP.findall(text)) != set(needed):
                gaps = " and ".join(f"{{{n}}}" for n in needed)
                raise ValueError(f"{name}: {gaps} are needed in the prompt, found {text!r:.80}")
        said = self.verdicts
        words = isinstance(said, list | tuple) and all(isinstance(v, str) and v.strip() for v in said)
        if not words or len(said) != 2 or said[0].strip() == said[1].strip():
            raise ValueError(f"verdicts={said!r:.80}: two texts are needed, for a right and for a wrong candidate")
        object.__setattr__(self, "verdicts", tuple(v.strip() for v in said))

    @classmethod
    def usual(cls, style: str) -> AnswerPrompts:
        """What is asked where nothing is given: the defaults, in plain text between ``Question:`` and ``Answer:``."""
        chat = cls()
        if style == "chat":
            return chat
        text: dict[str, Any] = {
            name: f"Question: {getattr(chat, name)}\nAnswer:" for name in ("correct", "incorrect", "plain", "judge")
        }
        return cls(**text)


@dataclass(frozen=True, kw_only=True)
class Choices:
    """A question and the answers to choose among.

    Attributes
    ----------
    question : str
        What is asked.
    candidates : tuple of str
        The answers to choose among: at least one; equal ones count once.

    Examples
    --------
    >>> from rankwise.prompting import Choices
    >>> Choices(question="What is the capital of Norway?", candidates=["Oslo", "Bergen", "Oslo "]).candidates
    ('Oslo', 'Bergen')
    """

    question: str
    candidates: tuple[str, ...]

    def __post_init__(self) -> None:
        if isinstance(self.candidates, str) or not all(isinstance(c, str) for c in self.candidates):
            raise ValueError(f"candidates {self.candidates!r:.80} of {self.question[:60]!r}: a list of texts is needed")
        object.__setattr__(self, "candidates", tuple(dict.fromkeys(c.strip() for c in self.candidates)))
        if not self.question.strip():
            raise ValueError("the question is empty")
        if not self.candidates or "" in self.candidates:
            raise ValueError(f"candidates {list(self.candidates)} of {self.question[:60]!r}: at least one, none empty")


class Unanswerable(ValueError):
    """A question among many to which there is no answer, whatever the others are.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> from rankwise.prompting.answers import Unanswerable, propose_answers
    >>> small = SimpleNamespace(name="small", context=16, count_tokens=lambda prompt: 10)
    >>> try:
    ...     propose_answers(small, "Why?")
    ... except Unanswerable as error:
    ...     print(error)
    'Why?' leaves no room for an answer in 16 tokens
    """


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Log-probabilities for B questions of at most K candidates, float64; padding is masked.

    Attributes
    ----------
    generator, discriminator, plain : Tensor
        ``(B, 2, K)``, ``(B, K, 2)``, ``(B, K)``.
    mask : Tensor
        ``(B, K)``, true where there is a candidate.

    Examples
    --------
    >>> import torch
    >>> from rankwise.prompting.answers import Scores
    >>> logp = torch.tensor([[0.7, 0.3]], dtype=torch.float64).log()  # one question with two candidates
    >>> scores = Scores(
    ...     generator=torch.stack([logp, logp.flip(1)], 1),
    ...     discriminator=torch.stack([logp, logp.flip(1)], 2),
    ...     plain=logp,
    ...     mask=torch.ones(1, 2, dtype=torch.bool),
    ... )
    >>> {method: int(row.argmax()) for method, row in scores.table().items()}
    {'equilibrium': 0, 'er-g': 0, 'g': 0, 'd': 0, 'mi': 0, 'sc': 0}
    """

    generator: Tensor
    discriminator: Tensor
    plain: Tensor
    mask: Tensor

    def table(self, ranker: EquilibriumRanker | None = None) -> dict[str, Tensor]:
        """``(B, K)`` scores of every one of `RANKERS`, higher is better, -inf where there is no candidate."""
        ranker = ranker or EquilibriumRanker()
        ranking = ranker.rank(self.generator, self.discriminator, self.mask)
        out = ~self.mask
        plain = self.plain.masked_fill(out, -math.inf)
        found = baselines(self.generator.masked_fill(out[:, None], -math.inf), self.discriminator, plain)
        found |= {"equilibrium": ranking.policy_d[:, :, CORRECT], "er-g": ranking.policy_g[:, CORRECT]}
        return {m: found[m if m in found else m.upper()].masked_fill(out, -math.inf) for m in RANKERS}


@dataclass(frozen=True, kw_only=True)
class RankedAnswers:
    """Candidates from best to worst, and their scores under the method and under all others.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> from rankwise.prompting import Choices, Score, rank_answers
    >>> def score(prompts, given):  # of a model that likes short texts; TransformersModel and ServerModel are real ones
    ...     return [[Score(logprobs=(-float(len(text)),)) for text in texts] for texts in given]
    >>> model = SimpleNamespace(name="toy", context=None, score=score)
    >>> question = Choices(question="Capital of Norway?", candidates=("Trondheim", "Oslo"))
    >>> (ranked,) = rank_answers(model, [question], method="g")
    >>> ranked.best, ranked.order
    ('Oslo', ['Oslo', 'Trondheim'])
    """

    question: str
    order: list[str]
    scores: dict[str, dict[str, float]]

    @property
    def best(self) -> str:
        """The answer."""
        return self.order[0]


def rank_answers(
    model: LanguageModel,
    questions: Sequence[Choices],
    *,
    method: str = "equilibrium",
    ranker: EquilibriumRanker | None = None,
    length: str = "sum",
    style: str = "chat",
    prompts: AnswerPrompts | None = None,
) -> list[RankedAnswers]:
    """Rank every question's candidates.

    Parameters
    ----------
    model : LanguageModel
        The model that scores, e.g. `TransformersModel` or `ServerModel`.
    questions : sequence of Choices
        The questions, each with its candidates.
    method : {"equilibrium", "er-g", "g", "d", "mi", "sc"}
        ER-D and ER-G of the consensus game; the generator, the discriminator, their product, correct against incorrect.
    ranker : EquilibriumRanker, optional
        The solver of ``equilibrium`` and ``er-g``; one with the default options where none is given.
    length : {"sum", "mean"}
        A candidate's log-probability: of all its tokens, or per token.
    style : {"chat", "text"}
        Turns of a chat, or plain text for models without a chat template.
    prompts : AnswerPrompts, optional
        What is asked, in words of one's own.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> from rankwise.prompting import Choices, Score, rank_answers
    >>> def score(prompts, given):  # of a model that likes short texts; TransformersModel and ServerModel are real ones
    ...     return [[Score(logprobs=(-float(len(text)),)) for text in texts] for texts in given]
    >>> model = SimpleNamespace(name="toy", context=None, score=score)
    >>> questions = [Choices(question="Capital of Norway?", candidates=("Trondheim", "Oslo"))]
    >>> rank_answers(model, questions, method="mi", style="text")[0].best
    'Oslo'
    """
    if method not in RANKERS:
        raise unknown("method", method, RANKERS)
    table = score_answers(model, questions, length=length, style=style, prompts=prompts).table(ranker)
    out = []
    for b, q in enumerate(questions):
        K = len(q.candidates)
        order = table[method][b, :K].argsort(descending=True, stable=True).tolist()
        scores = {m: dict(zip(q.candidates, t[b, :K].tolist(), strict=True)) for m, t in table.items()}
        out.append(RankedAnswers(question=q.question, order=[q.candidates[k] for k in order], scores=scores))
    return out


def score_answers(
    model: LanguageModel, questions: Sequence[Choices], *, length: str = "sum", style: str = "chat",
    prompts: AnswerPrompts | None = None,
) -> Scores:  # fmt: skip
    """All log-probabilities that the methods need, in one call of the model.

    Raises
    ------
    ValueError
        No questions, an unknown ``length`` or ``style``, or a score that is not a number.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> from rankwise.prompting import Choices, Score, score_answers
    >>> def score(prompts, given):  # of a model that likes short texts; TransformersModel and ServerModel are real ones
    ...     return [[Score(logprobs=(-float(len(text)),)) for text in texts] for texts in given]
    >>> model = SimpleNamespace(name="toy", context=None, score=score)
    >>> scores = score_answers(model, [Choices(question="Capital of Norway?", candidates=("Trondheim", "Oslo"))])
    >>> scores.generator.shape, scores.discriminator.shape, scores.plain.tolist()
    (torch.Size([1, 2, 2]), torch.Size([1, 2, 2]), [[-9.0, -4.0]])
    """
    if not questions:
        raise ValueError("there are no questions")
    if length not in ("sum", "mean"):
        raise unknown("length", length, ("sum", "mean"))
    if style not in ("chat", "text"):
        raise unknown("style", style, ("chat", "text"))
    requests = [r for q in questions for r in _requests(q, style, prompts)]
    scored = model.score([prompt for prompt, _ in requests], [given for _, given in requests])
    found = [[s.total if length == "sum" else s.mean for s in scores] for scores in scored]
    if any(math.isnan(x) for row in found for x in row):
        raise ValueError(f"{model.name} gave a log-probability that is not a number")
    B, K = len(questions), max(len(q.candidates) for q in questions)
    generator, discriminator, plain = (torch.zeros(s, dtype=torch.float64) for s in ((B, 2, K), (B, K, 2), (B, K)))
    mask, rows = torch.zeros(B, K, dtype=torch.bool), iter(found)
    for b, q in enumerate(questions):
        k = len(q.candidates)
        mask[b, :k] = True
        generator[b, :, :k] = torch.tensor([next(rows), next(rows)], dtype=torch.float64)
        plain[b, :k] = torch.tensor(next(rows), dtype=torch.float64)
        discriminator[b, :k] = torch.tensor([next(rows) for _ in range(k)], dtype=torch.float64)
    return Scores(generator=generator, discriminator=discriminator, plain=plain, mask=mask)


def fits(model: LanguageModel, question: Choices, *, style: str = "chat", prompts: AnswerPrompts | None = None) -> bool:
    """Whether all that is asked about a question goes into the model's context, as far as that is known."""
    if model.context is None:
        return True
    requests = _requests(question, style, prompts)
    return max(model.count_tokens(p) + max(map(model.count_tokens, given)) for p, given in requests) <= model.context


def propose_answers(
    model: LanguageModel,
    question: str,
    *,
    samples: int = 8,
    max_new_tokens: int = 32,
    temperature: float = 1.0,
    top_p: float = 0.9,
    style: str = "chat",
    prompts: AnswerPrompts | None = None,
) -> tuple[str, ...]:
    """Candidates for an open question: the greedy answer and ``samples`` draws, each once, first lines only.

    Raises
    ------
    Unanswerable
        The model wrote nothing at all, or the question leaves no room for an answer.
    """
    prompt, stop = _turn((prompts or AnswerPrompts.usual(style)).plain, style, question=question), ("\n",)
    if model.context is not None and model.count_tokens(prompt) + max_new_tokens > model.context:
        raise Unanswerable(f"{question[:60]!r} leaves no room for an answer in {model.context} tokens")
    found = model.generate([prompt], Sampling(max_new_tokens=max_new_tokens, stop=stop))
    for seed in range(samples):
        drawn = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, stop=stop, seed=seed)
        found += model.generate([prompt], drawn)
    answers = tuple(dict.fromkeys(g.text.strip() for g in found if g.text.strip()))
    if not answers:
        raise Unanswerable(f"{model.name} wrote no answer to {question[:60]!r}: give candidates")
    return answers


def _requests(question: Choices, style: str, prompts: AnswerPrompts | None) -> list[tuple[Prompt, list[str]]]:
    """Prompts and their continuations: the candidates for the generator, correct, incorrect and plain; a verdict on
    each candidate."""
    asked = prompts or AnswerPrompts.usual(style)
    gap = " " if style == "text" else ""
    answers, words = [gap + c for c in question.candidates], [gap + w for w in asked.verdicts]
    ways = (asked.correct, asked.incorrect, asked.plain)
    generator = [(_turn(way, style, question=question.question), answers) for way in ways]
    judged = [_turn(asked.judge, style, question=question.question, candidate=c) for c in question.candidates]
    return generator + [(prompt, words) for prompt in judged]


def _turn(prompt: str, style: str, **said: str) -> Prompt:
    text = _GAP.sub(lambda gap: said[gap[1]].strip(), prompt)
    return [{"role": "user", "content": text}] if style == "chat" else text
