"""One small protocol for frozen language models, and a record that makes long work resume.

A *prompt* is a text, or a list of chat messages ``{"role": …, "content": …}``, which the model's own chat template
turns into text. Two things are asked of a model:

* `TextGenerator.generate`: continue, and say how likely each token was and how likely the likeliest would have been;
* `LanguageModel.score`: the log-probability of given continuations.

Prompt and continuation are tokenised together, and a continuation's tokens are those from where the tokens of both part
from the prompt's: a token that reaches over the end of the prompt counts to the continuation. A space between the two
belongs to the continuation (``" Paris"`` after ``"The capital of France is"``; none after a chat template's last line).
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from pydantic import TypeAdapter

from rankwise.files import check_file, content_of, fingerprint, locked
from rankwise.reading import byte_lines, parse_json

__all__ = ["Generation", "LanguageModel", "Recorded", "Sampling", "Score", "TextGenerator"]

Message = dict[str, Any]  # of which the content is a text, or a list of parts
Prompt = str | Sequence[Message]


@dataclass(frozen=True, kw_only=True)
class Generation:
    """A continuation and how sure the model was.

    Attributes
    ----------
    text : str
        What was written, without special tokens, cut before a stop string.
    tokens : tuple of str
        Its tokens, special ones included.
    logprobs : tuple of float
        The natural log-probability of each token, before temperature and truncation of the distribution.
    top_logprobs : tuple of float
        The log-probability of the likeliest token in each place.
    special : tuple of bool
        True for the end of text and other special tokens.
    prompt_tokens : int
        How many tokens the prompt had.

    Examples
    --------
    >>> from rankwise.prompting import Generation
    >>> from rankwise.prompting.iterative import confidence
    >>> found = Generation(text="Lima", tokens=("Lima", "</s>"), logprobs=(-0.5, 0.0), top_logprobs=(-0.5, 0.0),
    ...                    special=(False, True), prompt_tokens=9)
    >>> round(confidence(found), 3)  # of what the model wrote, without the end of text
    0.607
    """

    text: str
    tokens: tuple[str, ...]
    logprobs: tuple[float, ...]
    top_logprobs: tuple[float, ...]
    special: tuple[bool, ...]
    prompt_tokens: int


@dataclass(frozen=True, kw_only=True)
class Score:
    """Log-probability of a continuation: of each of its tokens, of which there is one at least.

    Examples
    --------
    >>> from rankwise.prompting import Score
    >>> score = Score(logprobs=(-0.5, -1.5))
    >>> score.total, score.mean
    (-2.0, -1.0)
    """

    logprobs: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.logprobs:
            raise ValueError("a score without a token: nothing was scored")

    @property
    def total(self) -> float:
        """``log P(continuation | prompt)``."""
        return math.fsum(self.logprobs)

    @property
    def mean(self) -> float:
        """Per token."""
        return self.total / len(self.logprobs)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to generate.

    Attributes
    ----------
    max_new_tokens : int
        Tokens that are written at most.
    temperature : float
        What log-probabilities are divided by before a token is drawn; 0 takes the likeliest token.
    top_p : float
        Tokens are drawn from the likeliest ones that together have this probability; in (0, 1], 1 leaves all in.
    stop : tuple of str
        Texts before which a continuation ends.
    seed : int
        Decides the draws; sampled generations of one prompt differ by it alone.

    Examples
    --------
    >>> from rankwise.prompting import Sampling
    >>> Sampling(max_new_tokens=16, temperature=0.7, top_p=0.9, stop=("\\n",), seed=1).stop
    ('\\n',)
    >>> Sampling(temperature=-1)
    Traceback (most recent call last):
    ValueError: temperature=-1 and top_p=1.0; ≥ 0 and in (0, 1] are accepted
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens}; at least 1 is needed")
        if not (self.temperature >= 0 and 0 < self.top_p <= 1):
            raise ValueError(f"temperature={self.temperature} and top_p={self.top_p}; ≥ 0 and in (0, 1] are accepted")


OnResult = Callable[[int, object], None]


class TextGenerator(Protocol):
    """What decoders ask of a model.

    ``on_result(i, result)`` is called as soon as the result of prompt i is there, in any order, so that nothing is
    lost when a later one fails.

    Examples
    --------
    >>> from rankwise.prompting import Generation, Sampling
    >>> class Echo:
    ...     name, context = "echo", None
    ...     def generate(self, prompts, sampling=Sampling(), *, on_result=None):
    ...         said = {"logprobs": (0.0,), "top_logprobs": (0.0,), "special": (False,), "prompt_tokens": 1}
    ...         return [Generation(text=str(p), tokens=(str(p),), **said) for p in prompts]
    ...     def count_tokens(self, prompt):
    ...         return len(str(prompt))
    ...     def identity(self):
    ...         return "echo, first version"
    >>> Echo().generate(["Hello"])[0].text
    'Hello'
    """

    name: str
    context: int | None
    """Tokens that a prompt and its continuation may have together, if known."""

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling = ..., *, on_result: OnResult | None = None
    ) -> list[Generation]:
        """One continuation a prompt."""
        ...

    def count_tokens(self, prompt: Prompt) -> int:
        """Tokens of a prompt, its template included; an estimate where the tokenizer is not known."""
        ...

    def identity(self) -> object:
        """All besides prompts and options that decides what is said, as a JSON value: weights, tokenizer, template."""
        ...


class LanguageModel(TextGenerator, Protocol):
    """What selectors and rankers ask of a model besides.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> from rankwise.prompting import Choices, Score, rank_answers
    >>> def score(prompts, given):  # of a model that likes short texts; TransformersModel and ServerModel are real ones
    ...     return [[Score(logprobs=(-float(len(text)),)) for text in texts] for texts in given]
    >>> model = SimpleNamespace(name="toy", context=None, score=score)
    >>> question = Choices(question="Capital of Norway?", candidates=("Trondheim", "Oslo"))
    >>> rank_answers(model, [question], method="g")[0].best
    'Oslo'
    """

    def score(
        self,
        prompts: Sequence[Prompt],
        continuations: Sequence[Sequence[str]],
        *,
        on_result: OnResult | None = None,
    ) -> list[list[Score]]:
        """Of prompt i, the scores of ``continuations[i]``."""
        ...


def check_prompts(prompts: Sequence[Prompt]) -> None:
    """Refuse one prompt where a list of them is needed, and messages that are none.

    Raises
    ------
    ValueError
        Which it is.
    """
    if isinstance(prompts, str) or any(isinstance(p, Mapping) for p in prompts):
        kind = "text" if isinstance(prompts, str) else "chat"
        raise ValueError(f"one {kind} was given where a list of prompts is needed: put it into a list")
    for i, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            continue
        turns = list(prompt) if isinstance(prompt, Sequence) else []
        if not turns or not all(isinstance(m, Mapping) and {"role", "content"} <= m.keys() for m in turns):
            raise ValueError(
                f"prompt {i} is neither a text nor a list of messages with role and content: {prompt!r:.80}"
            )


def check_requests(prompts: Sequence[Prompt], continuations: Sequence[Sequence[str]]) -> None:
    """The same, and a list of continuations, none of them empty, for every prompt.

    Raises
    ------
    ValueError
        Which is missing.
    """
    check_prompts(prompts)
    if isinstance(continuations, str) or len(prompts) != len(continuations):
        raise ValueError(f"{len(prompts)} prompts need as many lists of continuations, found {continuations!r:.80}")
    for i, given in enumerate(continuations):
        if isinstance(given, str):
            raise ValueError(f"the continuations of prompt {i} are one text, {given[:40]!r}: put it into a list")
        if "" in given:
            raise ValueError(f"continuation {list(given).index('')} of prompt {i} is empty")


Result = TypeVar("Result")
_FORM = 2  # of what is recorded: results under another number are not found


class Recorded:
    """A model whose results are kept in a file: what is in it is not asked again.

    Results are appended one JSON line each as they come; a last line cut short by a kill is dropped. A result is found
    again where the model's `identity`, the prompt (files in it by their content) and the options are the same. From the
    first question asked on, the file is held for this object until it is closed or gone.

    Parameters
    ----------
    model : TextGenerator or LanguageModel
        Who is asked what the file does not hold.
    path : path
        The record, a ``.jsonl`` file; made where there is none.

    Attributes
    ----------
    asked, found : int
        How many results came from the model, and how many from the file.

    Raises
    ------
    ValueError
        The file is no record, or another command holds it when something has to be asked.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from types import SimpleNamespace
    >>> from rankwise.prompting import Recorded, Score
    >>> def score(prompts, given, *, on_result):
    ...     for i, texts in enumerate(given):
    ...         on_result(i, [Score(logprobs=(-float(len(text)),)) for text in texts])
    >>> model = SimpleNamespace(name="toy", context=None, identity=lambda: "toy", score=score)
    >>> with tempfile.TemporaryDirectory() as folder, Recorded(model, Path(folder, "asked.jsonl")) as recorded:
    ...     for _ in range(2):
    ...         found = recorded.score(["Capital of Norway?"], [[" Oslo"]])
    >>> found[0][0].total, recorded.asked, recorded.found
    (-5.0, 1, 1)
    """

    def __init__(self, model: TextGenerator, path: str | Path) -> None:
        self.model, self.path = model, Path(path)
        self.name, self.context = model.name, model.context
        self.asked = self.found = 0
        self._lock, self._held = threading.Lock(), ExitStack()
        self._holds = False
        check_file(self.path)
        self._known = _read(self.path)[0]

    def __enter__(self) -> Recorded:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let another command have the file."""
        self._held.close()
        self._holds = False

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling | None = None, *, on_result: OnResult | None = None
    ) -> list[Generation]:
        """See `LanguageModel`."""
        check_prompts(prompts)
        sampling = sampling or Sampling()

        def ask(missing: list[int], keep: OnResult) -> list[Generation]:
            return self.model.generate([prompts[i] for i in missing], sampling, on_result=keep)

        def generation(stored: object) -> Generation:
            return self._restored(Generation, stored)

        keys = self._keys("generate", prompts, [asdict(sampling)] * len(prompts))
        return [generation(s) for s in self._ask(keys, ask, lambda g: asdict(g), generation, on_result)]

    def score(
        self,
        prompts: Sequence[Prompt],
        continuations: Sequence[Sequence[str]],
        *,
        on_result: OnResult | None = None,
    ) -> list[list[Score]]:
        """See `LanguageModel`."""
        check_requests(prompts, continuations)

        def ask(missing: list[int], keep: OnResult) -> list[list[Score]]:
            return cast(LanguageModel, self.model).score(
                [prompts[i] for i in missing], [continuations[i] for i in missing], on_result=keep
            )

        def scores(stored: object) -> list[Score]:
            return [Score(logprobs=s) for s in self._restored(list[tuple[float, ...]], stored)]

        keys = self._keys("score", prompts, [list(c) for c in continuations])
        stored = self._ask(keys, ask, lambda found: [list(s.logprobs) for s in found], scores, on_result)
        return [scores(s) for s in stored]

    def count_tokens(self, prompt: Prompt) -> int:
        """See `LanguageModel`."""
        return self.model.count_tokens(prompt)

    def identity(self) -> object:
        """See `LanguageModel`: the model's own."""
        return self.model.identity()

    def _restored(self, kind: type[Result], stored: object) -> Result:
        try:
            return _checker(kind).validate_python(stored)
        except ValueError as error:
            said = str(error).splitlines()
            raise ValueError(f"{self.path} holds a result of another form ({' '.join(said[1:3])})") from error

    def _keys(self, what: str, prompts: Sequence[Prompt], options: Sequence[object]) -> list[str]:
        model = fingerprint(self.identity())
        try:
            return [fingerprint([_FORM, model, what, _by_content(p), o]) for p, o in zip(prompts, options, strict=True)]
        except TypeError as error:
            raise ValueError(f"a prompt cannot be recognised again, so it is not recorded: {error}") from error

    def _hold(self) -> None:
        """Make sure that nobody else writes, and know what was written until now."""
        if not self._holds:
            self._held.enter_context(locked(self.path))
            self._holds = True
            self._known, whole = _read(self.path)
            with self.path.open("r+b") as stream:
                stream.truncate(whole)

    def _ask(self, keys: list[str], ask, encode, decode, on_result: OnResult | None) -> list:
        if not self._known.keys() >= set(keys):
            self._hold()
        places: dict[str, list[int]] = {}  # a request that occurs twice is asked once
        for i, key in enumerate(keys):
            if key not in self._known:
                places.setdefault(key, []).append(i)
            elif on_result:
                on_result(i, decode(self._known[key]))
        self.found += len(keys) - len(places)
        missing = [at[0] for at in places.values()]
        if missing:
            with self.path.open("a", encoding="utf-8") as stream:

                def keep(i: int, result: object) -> None:
                    key, value = keys[missing[i]], encode(result)
                    with self._lock:
                        stream.write(json.dumps({"key": key, "result": value}, ensure_ascii=False) + "\n")
                        stream.flush()
                        self._known[key] = value
                        self.asked += 1
                    if on_result:
                        for place in places[key]:
                            on_result(place, result)

                for i, result in enumerate(ask(missing, keep) or ()):
                    if keys[missing[i]] not in self._known:  # a model that tells nothing while it works
                        keep(i, result)
        return [self._known[k] for k in keys]


def _read(path: Path) -> tuple[dict[str, object], int]:
    """The results in the file, and how many of its bytes are whole lines: a kill may have cut the last one short."""
    known: dict[str, object] = {}
    whole = 0
    for number, line in byte_lines(path) if os.path.lexists(path) else ():
        if not line.endswith(b"\n"):
            break
        entry = parse_json(line.decode("utf-8", "replace"), f"{path}, line {number}")
        if not {"key", "result"} <= entry.keys():
            raise ValueError(f"{path}, line {number} is not a recorded result")
        known[str(entry["key"])] = entry["result"]
        whole += len(line)
    return known, whole


def _by_content(prompt: Prompt) -> object:
    """A prompt as a JSON value in which files are known by what they hold, not by their names."""
    if isinstance(prompt, str):
        return prompt

    def part(given: object) -> object:
        if not isinstance(given, Mapping):
            return given
        path = given.get("path")
        if isinstance(path, str | Path):
            return {**given, "path": content_of(path) if Path(path).is_file() else str(path)}
        return dict(given)

    return [
        {**m, "content": [part(p) for p in m["content"]]} if isinstance(m["content"], list | tuple) else dict(m)
        for m in prompt
    ]


@cache
def _checker(kind: Any) -> TypeAdapter[Any]:
    """Reads values of that kind out of plain data, and refuses others."""
    return TypeAdapter(kind)
