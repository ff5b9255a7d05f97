"""Worked examples, and prompts made of them that fit into a model's context."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rankwise.data.tables import Table, read_table
from rankwise.nearest import unknown
from rankwise.prompting.language_model import Message, Prompt, TextGenerator
from rankwise.prompting.names import STYLES
from rankwise.reading import json_lines

__all__ = ["Columns", "Example", "extract_answer", "few_shot", "read_examples"]

ANSWER = "The answer is"


@dataclass(frozen=True, kw_only=True)
class Example:
    """A question with its answer and, for reasoning tasks, how one gets there; whatever else is known of it is kept.

    Examples
    --------
    >>> from rankwise.prompting import Example
    >>> Example(question="How many legs have two cats?", answer="8", rationale="A cat has four legs.").solution
    'A cat has four legs. The answer is 8.'
    """

    question: str
    answer: str
    rationale: str = ""
    more: Mapping[str, object] = field(default_factory=dict, hash=False)

    @property
    def solution(self) -> str:
        """What the model should write: the answer alone, or the rationale and ``The answer is …``."""
        return f"{self.rationale.strip()} {ANSWER} {self.answer}." if self.rationale.strip() else self.answer


@dataclass(frozen=True, kw_only=True)
class FewShot:
    """A prompt, the examples in it in their order, and those dropped because they did not fit.

    Examples
    --------
    >>> from rankwise.prompting import Example, few_shot
    >>> built = few_shot("Capital of Peru?", [Example(question="Capital of Norway?", answer="Oslo")], style="text")
    >>> print(built.prompt)
    Question: Capital of Norway?
    Answer: Oslo
    <BLANKLINE>
    Question: Capital of Peru?
    Answer:
    >>> len(built.examples), len(built.dropped)
    (1, 0)
    """

    prompt: Prompt
    examples: list[Example]
    dropped: list[Example]


class TooLong(ValueError):
    """A question that does not fit into the model's context.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> from rankwise.prompting import few_shot
    >>> from rankwise.prompting.examples import TooLong
    >>> small = SimpleNamespace(context=64, count_tokens=lambda prompt: 50)
    >>> try:
    ...     few_shot("Why?", [], model=small, max_new_tokens=20)
    ... except TooLong as error:
    ...     print(error)
    the question 'Why?' does not fit into 64 tokens with 20 left for its answer
    """


@dataclass(frozen=True, kw_only=True)
class Columns:
    """What the columns, or keys, of examples are called.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from rankwise.prompting import Columns, read_examples
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "pool.csv")
    ...     _ = path.write_text("prompt,gold\\nCapital of Norway?,Oslo\\n")
    ...     read_examples(path, columns=Columns(question="prompt", answer="gold"))[0].answer
    'Oslo'
    """

    question: str = "question"
    answer: str = "answer"
    rationale: str = "rationale"


def read_examples(path: str | Path, *, answers: bool = True, columns: Columns | None = None) -> list[Example]:
    """Examples from a table (csv, tsv, JSON lines or list, parquet); other columns are kept in ``more``.

    Parameters
    ----------
    path : path
        JSON lines where its ending names no kind of table.
    answers : bool
        Whether every line needs an answer (a pool does, queries do not).
    columns : Columns, optional
        What they are called; a rationale may be absent.

    Raises
    ------
    ValueError
        No such file, no lines, or a line without what is needed (its number).

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from rankwise.prompting import read_examples
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "pool.jsonl")
    ...     _ = path.write_text('{"question": "Capital of Norway?", "answer": "Oslo", "source": "atlas"}\\n')
    ...     (example,) = read_examples(path)
    >>> example.answer, example.more
    ('Oslo', {'source': 'atlas'})
    """
    found = []
    table = table_of(Path(path))
    for number, row in table.rows:
        try:
            found.append(as_example(row, answers=answers, columns=columns))
        except ValueError as error:
            raise ValueError(f"{table.at(number)}: {error}") from error
    if not found:
        raise ValueError(f"{path} has no examples: a question and its answer a line are needed")
    return found


def table_of(path: Path) -> Table:
    """A file's rows; JSON lines where its ending names no kind of table."""
    if path.suffix.lower() in ("", ".txt"):
        return Table(path=path, unit="line", rows=json_lines(path))
    return read_table(path)


def as_example(given: Example | Mapping, *, answers: bool = True, columns: Columns | None = None) -> Example:
    """An `Example` of a mapping; other keys are kept in ``more``.

    Raises
    ------
    ValueError
        No mapping, a question or answer that is absent, empty, or a list or mapping.
    """
    if isinstance(given, Example):
        return given
    if not isinstance(given, Mapping):
        raise ValueError(f"{given!r} is no mapping with question and answer")
    c = columns or Columns()
    texts = {k: _cell(k, given.get(k)) for k in (c.question, c.answer, c.rationale)}
    needed = (c.question, c.answer) if answers else (c.question,)
    if absent := [k for k in needed if k not in given]:
        keys = ", ".join(map(str, given)) or "no keys"
        raise ValueError(f"no {' and no '.join(absent)} among {keys}: say what they are called, or rename them")
    if empty := [k for k in needed if not texts[k]]:
        raise ValueError(f"{' and '.join(empty)} is empty")
    question, answer, rationale = texts.values()
    more = {str(k): v for k, v in given.items() if k not in texts}
    return Example(question=question, answer=answer, rationale=rationale, more=more)


def few_shot(
    question: str,
    examples: Sequence[Example],
    *,
    model: TextGenerator | None = None,
    max_new_tokens: int = 64,
    instruction: str = "",
    style: str = "chat",
    least_similar_first: bool = True,
) -> FewShot:
    """A prompt of examples and a question, without those examples that do not fit.

    Parameters
    ----------
    question : str
        The question that the model is to answer.
    examples : sequence of Example
        In the order in which they go into the prompt.
    model : TextGenerator, optional
        Whose context limits the prompt; without one, or where it knows none, nothing is dropped.
    max_new_tokens : int
        Tokens to leave room for, for the answer.
    instruction : str
        What comes before everything: the system turn of a chat. Empty for none.
    style : {"chat", "text"}
        Turns of user and assistant, or ``Question: … Answer: …`` as plain text.
    least_similar_first : bool
        Whether the first example is the one to drop first; else the last.

    Raises
    ------
    TooLong
        A question that does not fit even without examples.
    ValueError
        An unknown style, no text, or something else than examples.

    Examples
    --------
    >>> from rankwise.prompting import Example, few_shot
    >>> examples = [Example(question="Capital of Norway?", answer="Oslo")]
    >>> [turn["role"] for turn in few_shot("Capital of Peru?", examples, instruction="Be brief.").prompt]
    ['system', 'user', 'assistant', 'user']
    """
    if style not in STYLES:
        raise unknown("style", style, STYLES)
    if not isinstance(question, str) or not all(isinstance(e, Example) for e in examples):
        raise ValueError("a question is a text, and examples are a list of Example")
    build = _chat if style == "chat" else _text
    kept, dropped = list(examples), []
    limit = model.context - max_new_tokens if model is not None and model.context is not None else None
    while limit is not None and model is not None and model.count_tokens(build(question, kept, instruction)) > limit:
        if not kept:
            raise TooLong(
                f"the question {question[:60]!r} does not fit into {model.context} tokens with {max_new_tokens} left "
                "for its answer"
            )
        dropped.append(kept.pop(0 if least_similar_first else -1))
    return FewShot(prompt=build(question, kept, instruction), examples=kept, dropped=dropped)


def extract_answer(text: str, answers: Iterable[str] = ()) -> str:
    """What follows the last ``The answer is``, to the end of its line and without one final period; where the words are
    absent, the first line with something in it. What `Example.solution` writes comes back whole, if it is one line.

    Parameters
    ----------
    text : str
        What the model wrote.
    answers : iterable of str
        Those that may come, e.g. a pool's, of any number of lines: the longest that stands there is returned, in its
        own spelling, whatever follows it and however it is written in capitals.

    Examples
    --------
    >>> from rankwise.prompting import extract_answer
    >>> extract_answer("A cat has four legs. The answer is 8.\\nQuestion: …")
    '8'
    >>> extract_answer("The answer is OSLO!", ["Oslo"])
    'Oslo'
    """
    parts = re.split(rf"(?i){ANSWER}:?", text)
    said = parts[-1].strip()
    for answer in sorted(answers, key=len, reverse=True):
        if re.match(rf"(?i){re.escape(answer.strip())}(?!\w)", said):
            return answer
    line = next((line.strip() for line in said.splitlines() if line.strip()), "")
    return line.removesuffix(".") if len(parts) > 1 else line


def as_row(example: Example) -> dict[str, object]:
    """As a mapping, with whatever else is known of it and without an empty rationale."""
    own = {"question": example.question, "answer": example.answer, "rationale": example.rationale}
    return {k: v for k, v in own.items() if v or k != "rationale"} | dict(example.more)


def _cell(key: str, value: object) -> str:
    if isinstance(value, Mapping | list | tuple | bytes):
        raise ValueError(f"{key} is a {type(value).__name__}: a text is needed")
    return "" if value is None or value != value else str(value)  # a missing number is none


def _chat(question: str, examples: Sequence[Example], instruction: str) -> list[Message]:
    turns: list[Message] = [{"role": "system", "content": instruction}] if instruction else []
    for e in examples:
        turns.append({"role": "user", "content": e.question})
        turns.append({"role": "assistant", "content": e.solution})
    return [*turns, {"role": "user", "content": question}]


def _text(question: str, examples: Sequence[Example], instruction: str) -> str:
    shots = [f"Question: {e.question}\nAnswer: {e.solution}" for e in examples]
    return "\n\n".join([*([instruction] if instruction else []), *shots, f"Question: {question}\nAnswer:"])
