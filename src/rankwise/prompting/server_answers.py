"""What a server's answers say: continuations with their log-probabilities, and the scores of an echoed text.

An echoed text is ``[begin] prompt continuation [generated]``, token by token. A continuation's tokens are those that
reach beyond the prompt's last character, found by the tokens' own texts; ``text_offset`` is not used, since servers
count a begin-of-text token in it or not. Where the texts do not join to what was sent (bytes of a character shown as
U+FFFD or as nothing, spaces stripped, numbers instead of texts), the prompt's tokens alone are compared instead: the
continuation begins where the two lists part.
"""

from __future__ import annotations

from dataclasses import dataclass

from rankwise.prompting.language_model import Generation, Score

NO_LOGPROBS = (
    "the server returned no log-probabilities: switch them on (vLLM: they are; llama.cpp: n_probs; hosted services: a "
    "model that has them)"
)


class NotSupported(ValueError):
    """An answer that is whole but lacks what is needed: asking again will not help.

    Examples
    --------
    >>> from rankwise.prompting.server_answers import NotSupported, chat
    >>> try:
    ...     chat({"choices": [{"message": {"content": "Oslo"}}]})
    ... except NotSupported as error:
    ...     print(str(error).partition(":")[0])
    the server returned no log-probabilities
    """


@dataclass(frozen=True, kw_only=True)
class Echo:
    """A text read by the server, without what it generated after it.

    Examples
    --------
    >>> from rankwise.prompting.server_answers import begins, echo
    >>> found = {"tokens": ["The capital is", " Oslo", "."], "token_logprobs": [None, -0.3, -0.1]}
    >>> answer = {"choices": [{"text": "The capital is Oslo.", "logprobs": found}]}
    >>> whole = echo(answer, "The capital is Oslo")
    >>> whole.tokens, begins(whole, "The capital is", "The capital is Oslo")
    (('The capital is', ' Oslo'), 1)
    """

    tokens: tuple[str, ...]
    logprobs: tuple[float | None, ...]


def chat(answer: dict) -> Generation:
    """Of ``/chat/completions``."""
    choice = answer["choices"][0]
    found = (choice.get("logprobs") or {}).get("content")
    text = choice["message"]["content"] or ""
    if found is None:
        raise NotSupported(NO_LOGPROBS)
    return Generation(
        text=text,
        tokens=tuple(str(t["token"]) for t in found),
        logprobs=tuple(float(t["logprob"]) for t in found),
        top_logprobs=tuple(
            max([float(t["logprob"]), *(float(a["logprob"]) for a in t.get("top_logprobs") or ())]) for t in found
        ),
        special=tuple(_special(str(t["token"])) for t in found),
        prompt_tokens=_counted(answer, "prompt_tokens") or 0,
    )


def completion(answer: dict) -> Generation:
    """Of ``/completions``."""
    choice = answer["choices"][0]
    found, text = choice.get("logprobs"), str(choice["text"])
    if found is None:
        raise NotSupported(NO_LOGPROBS)
    tops = found.get("top_logprobs") or [{}] * len(found["tokens"])
    return Generation(
        text=text,
        tokens=tuple(map(str, found["tokens"])),
        logprobs=tuple(map(float, found["token_logprobs"])),
        top_logprobs=tuple(
            max([float(p), *map(float, (top or {}).values())])
            for p, top in zip(found["token_logprobs"], tops, strict=True)
        ),
        special=tuple(_special(str(t)) for t in found["tokens"]),
        prompt_tokens=_counted(answer, "prompt_tokens") or 0,
    )


def echo(answer: dict, sent: str) -> Echo:
    """Of ``/completions`` with ``echo``, whose prompt was ``sent``.

    Raises
    ------
    NotSupported
        The server did not read the text back: it generated something, or told of generated tokens alone.
    """
    choice = answer["choices"][0]
    found = choice.get("logprobs") or {}
    tokens, logprobs = found.get("tokens") or [], found.get("token_logprobs") or []
    generated = _counted(answer, "completion_tokens")
    read = len(tokens) - (1 if generated is None else generated)
    joined = "".join(map(str, tokens))
    whole = sent in joined or (len(logprobs) > 0 and logprobs[0] is None)  # nothing stands before the first token
    if not str(choice.get("text", "")).startswith(sent) or read < 1 or not whole or len(tokens) != len(logprobs):
        raise NotSupported(
            "the server does not read a text back: scores need echo with log-probabilities on /completions (vLLM and "
            "llama-cpp-python have it, llama.cpp's own server and hosted chat services do not)"
        )
    counted = _counted(answer, "prompt_tokens")
    if counted is not None and read < counted - 1:  # a begin-of-text token may be counted and not shown
        raise NotSupported(f"the server read {counted} tokens and told of {read}: its echo leaves some out")
    kept = logprobs[:read]
    return Echo(tokens=tuple(map(str, tokens[:read])), logprobs=tuple(None if p is None else float(p) for p in kept))


def begins(whole: Echo, prompt: str, sent: str) -> int | None:
    """The first token that reaches beyond the prompt, by the tokens' texts; None where they do not join to ``sent``."""
    joined = "".join(whole.tokens)
    if not joined.endswith(sent):
        return None
    reached = len(prompt) + len(joined) - len(sent)  # in front: what the server put before the text
    end = 0
    for i, token in enumerate(whole.tokens):
        end += len(token)
        if end > reached:  # an empty token before it is the beginning of a character that this one ends
            return None if i and not whole.tokens[i - 1] else i
    return None


def parts(whole: Echo, alone: Echo) -> int:
    """The first token in which a text parts from the prompt alone."""
    pairs = zip(whole.tokens, alone.tokens, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(whole.tokens), len(alone.tokens)))


def score(whole: Echo, first: int, continuation: str) -> Score:
    """Of the tokens from ``first`` on.

    Raises
    ------
    NotSupported
        There is none, or one without a log-probability.
    """
    found = [p for p in whole.logprobs[first:] if p is not None]
    if not found or len(found) < len(whole.logprobs) - first:
        raise NotSupported(
            f"the server's tokens {whole.tokens[-8:]} do not tell where {continuation[:40]!r} begins: not scored"
        )
    return Score(logprobs=tuple(found))


def _counted(answer: dict, what: str) -> int | None:
    found = (answer.get("usage") or {}).get(what)
    return int(found) if isinstance(found, int | float) else None


def _special(token: str) -> bool:
    """By its looks, all that the wire tells: ``<|im_end|>``, ``</s>``, or nothing at all."""
    return token == "" or (token.startswith("<") and token.endswith(">") and len(token) > 2)
