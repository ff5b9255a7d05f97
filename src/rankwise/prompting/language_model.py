"""One small protocol for frozen language models, and a record that makes long work resume.

A *prompt* is a text, or a list of chat messages ``{"role": …, "content": …}``, which the model's own chat template
turns into text. Two things are asked of a model:

* `TextGenerator.generate`: continue, and say how likely each token was and how likely the likeliest would have been;
* `LanguageModel.score`: the log-probability of given continuations.

Where prompt and continuation meet, tokens never merge: the continuation is tokenised by itself, so a space between the
two belongs to it (``" Paris"`` after ``"The capital of France is"``; no space after a chat template's last line).
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, TypeVar, cast

Message = dict[str, object]
Prompt = str | Sequence[Message]


@dataclass(frozen=True, kw_only=True)
class Generation:
    """A continuation and how sure the model was.

    Attributes
    ----------
    text : str
        Without special tokens, cut before a stop string.
    tokens : tuple of str
    logprobs : tuple of float
        Natural log-probability of each token, before temperature and truncation of the distribution.
    top_logprobs : tuple of float
        That of the likeliest token in each place.
    special : tuple of bool
        True for the end of text and other special tokens.
    prompt_tokens : int
    """

    text: str
    tokens: tuple[str, ...]
    logprobs: tuple[float, ...]
    top_logprobs: tuple[float, ...]
    special: tuple[bool, ...]
    prompt_tokens: int


@dataclass(frozen=True, kw_only=True)
class Score:
    """Log-probability of a continuation: of each token, and how many tokens it has."""

    logprobs: tuple[float, ...]

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
    temperature : float
        0 is greedy.
    top_p : float
        Nucleus.
    stop : tuple of str
        Texts before which a continuation ends.
    seed : int
        Of the draws; sampled generations of one prompt differ by it alone.
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


class LanguageModel(TextGenerator, Protocol):
    """What selectors and rankers ask of a model besides."""

    def score(
        self,
        prompts: Sequence[Prompt],
        continuations: Sequence[Sequence[str]],
        *,
        on_result: OnResult | None = None,
    ) -> list[list[Score]]:
        """Of prompt i, the scores of ``continuations[i]``."""
        ...


Result = TypeVar("Result")


class Recorded:
    """A model whose results are kept in a file: what is in it is not asked again.

    Results are appended one JSON line each as they come; a last line cut short by a kill is dropped. A result's key is
    a hash of the model's name, the prompt and the options.

    Parameters
    ----------
    model : TextGenerator or LanguageModel
    path : Path
        A ``.jsonl`` file; made where there is none.

    Attributes
    ----------
    asked, found : int
        Results that came from the model, and from the file.
    """

    def __init__(self, model: TextGenerator, path: Path) -> None:
        self.model, self.path = model, path
        self.name, self.context = model.name, model.context
        self.asked = self.found = 0
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._known = _read(path)

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling | None = None, *, on_result: OnResult | None = None
    ) -> list[Generation]:
        """See `LanguageModel`."""
        sampling = sampling or Sampling()

        def ask(missing: list[int], keep: OnResult) -> None:
            self.model.generate([prompts[i] for i in missing], sampling, on_result=keep)

        keys = [self._key("generate", p, asdict(sampling)) for p in prompts]
        stored = self._ask(keys, ask, lambda g: asdict(g), lambda s: Generation(**_tuples(s)), on_result)
        return [Generation(**_tuples(s)) for s in stored]

    def score(
        self,
        prompts: Sequence[Prompt],
        continuations: Sequence[Sequence[str]],
        *,
        on_result: OnResult | None = None,
    ) -> list[list[Score]]:
        """See `LanguageModel`."""

        def ask(missing: list[int], keep: OnResult) -> None:
            cast(LanguageModel, self.model).score(
                [prompts[i] for i in missing], [continuations[i] for i in missing], on_result=keep
            )

        def scores(stored: list) -> list[Score]:
            return [Score(logprobs=tuple(s)) for s in stored]

        keys = [self._key("score", p, list(c)) for p, c in zip(prompts, continuations, strict=True)]
        stored = self._ask(keys, ask, lambda found: [list(s.logprobs) for s in found], scores, on_result)
        return [scores(s) for s in stored]

    def count_tokens(self, prompt: Prompt) -> int:
        """See `LanguageModel`."""
        return self.model.count_tokens(prompt)

    def _key(self, what: str, prompt: Prompt, options: object) -> str:
        text = prompt if isinstance(prompt, str) else list(prompt)
        said = json.dumps([self.name, what, text, options], ensure_ascii=False, sort_keys=True, default=str)
        return hashlib.sha256(said.encode()).hexdigest()

    def _ask(self, keys: list[str], ask, encode, decode, on_result: OnResult | None) -> list:
        first = {}  # a request that occurs twice is asked once
        for i, key in enumerate(keys):
            if key not in self._known:
                first.setdefault(key, i)
        self.found += len(keys) - len(first)
        missing = list(first.values())
        if on_result:
            for i, key in enumerate(keys):
                if key in self._known:
                    on_result(i, decode(self._known[key]))
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
                        for place, other in enumerate(keys):
                            if other == key:
                                on_result(place, result)

                ask(missing, keep)
        return [self._known[k] for k in keys]


def _read(path: Path) -> dict[str, object]:
    """The results in the file; a line that a kill cut short is removed from it."""
    if not path.exists():
        return {}
    known, whole = {}, 0
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.endswith(b"\n"):
                break
            try:
                entry = json.loads(line)
                known[entry["key"]] = entry["result"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}, line {number} is not a recorded result: {error}") from error
            whole += len(line)
    if whole < path.stat().st_size:
        with path.open("r+b") as stream:
            stream.truncate(whole)
    return known


def _tuples(stored: dict) -> dict:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()}
