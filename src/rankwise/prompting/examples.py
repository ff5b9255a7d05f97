"""Worked examples, and prompts made of them that fit into a model's context."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rankwise.prompting.language_model import LanguageModel, Message, Prompt
from rankwise.reading import json_lines

ANSWER = "The answer is"


@dataclass(frozen=True, kw_only=True)
class Example:
    """A question with its answer and, for reasoning tasks, how one gets there."""

    question: str
    answer: str
    rationale: str = ""

    @property
    def solution(self) -> str:
        """What the model should write: the answer alone, or the rationale and ``The answer is …``."""
        return f"{self.rationale.strip()} {ANSWER} {self.answer}." if self.rationale.strip() else self.answer


@dataclass(frozen=True, kw_only=True)
class FewShot:
    """A prompt, the examples in it in their order, and those dropped because they did not fit."""

    prompt: Prompt
    examples: list[Example]
    dropped: list[Example]


def read_examples(path: Path, *, answers: bool = True) -> list[Example]:
    """Examples from JSON lines with ``question``, ``answer`` and, if there is one, ``rationale``.

    Parameters
    ----------
    path : Path
    answers : bool
        Whether every line needs an answer (a pool does, queries do not).

    Raises
    ------
    ValueError
        No such file, no lines, or a line without what is needed (its number).
    """
    found = []
    for number, row in json_lines(path):
        try:
            found.append(as_example(row, answers=answers))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    if not found:
        raise ValueError(f"{path} has no examples: a JSON object with question and answer a line is needed")
    return found


def as_example(given: Example | dict, *, answers: bool = True) -> Example:
    """An `Example` of a mapping; other keys are ignored."""
    if isinstance(given, Example):
        return given
    needed = ("question", "answer") if answers else ("question",)
    if not isinstance(given, dict):
        raise ValueError(f"{given!r} is no mapping with {' and '.join(needed)}")
    missing = [k for k in needed if given.get(k) in (None, "")]
    if missing:
        raise ValueError(f"no {' and no '.join(missing)} among {', '.join(map(str, given)) or 'no keys'}")
    return Example(
        question=str(given["question"]),
        answer=str(given.get("answer", "")),
        rationale=str(given.get("rationale") or ""),
    )


def few_shot(
    question: str,
    examples: Sequence[Example],
    *,
    model: LanguageModel | None = None,
    max_new_tokens: int = 64,
    instruction: str = "",
    style: str = "chat",
    least_similar_first: bool = True,
) -> FewShot:
    """A prompt of examples and a question, without those examples that do not fit.

    Parameters
    ----------
    question : str
    examples : sequence of Example
        In the order in which they go into the prompt.
    model : LanguageModel, optional
        Whose context limits the prompt; without one, or where it knows none, nothing is dropped.
    max_new_tokens : int
        Room to leave for the answer.
    instruction : str
        Before everything: the system turn of a chat.
    style : {"chat", "text"}
        Turns of user and assistant, or ``Question: … Answer: …`` as plain text.
    least_similar_first : bool
        Whether the first example is the one to drop first; else the last.

    Raises
    ------
    ValueError
        An unknown style, or a question that does not fit even without examples.
    """
    if style not in ("chat", "text"):
        raise ValueError(f"style={style!r}; 'chat' and 'text' are accepted")
    build = _chat if style == "chat" else _text
    kept, dropped = list(examples), []
    limit = model.context - max_new_tokens if model is not None and model.context is not None else None
    while limit is not None and model is not None and model.count_tokens(build(question, kept, instruction)) > limit:
        if not kept:
            raise ValueError(
                f"the question does not fit into {model.context} tokens with {max_new_tokens} left for its answer"
            )
        dropped.append(kept.pop(0 if least_similar_first else -1))
    return FewShot(prompt=build(question, kept, instruction), examples=kept, dropped=dropped)


def extract_answer(text: str) -> str:
    """What follows the last ``The answer is``, to the end of its sentence; else the first line with something in it."""
    parts = re.split(r"(?i)the answer is:?", text)
    if len(parts) > 1:
        return re.split(r"\.(?:\s|$)|\n", parts[-1].strip(), maxsplit=1)[0].strip().rstrip(".")
    return next((line.strip().rstrip(".") for line in text.splitlines() if line.strip()), "")


def as_row(example: Example) -> dict[str, str]:
    """As a mapping, without an empty rationale."""
    return {k: v for k, v in asdict(example).items() if v or k != "rationale"}


def _chat(question: str, examples: Sequence[Example], instruction: str) -> list[Message]:
    turns: list[Message] = [{"role": "system", "content": instruction}] if instruction else []
    for e in examples:
        turns.append({"role": "user", "content": e.question})
        turns.append({"role": "assistant", "content": e.solution})
    return [*turns, {"role": "user", "content": question}]


def _text(question: str, examples: Sequence[Example], instruction: str) -> str:
    shots = [f"Question: {e.question}\nAnswer: {e.solution}" for e in examples]
    return "\n\n".join([*([instruction] if instruction else []), *shots, f"Question: {question}\nAnswer:"])
