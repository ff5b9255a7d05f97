"""Any OpenAI-compatible server as a `LanguageModel`: vLLM, llama.cpp, LM Studio, hosted ones.

Chat messages go to ``/chat/completions``, plain texts to ``/completions``, both with log-probabilities. Scores come
from ``/completions`` with ``echo``: the server reads prompt and continuation and returns the
log-probability of every token.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from rankwise.prompting.language_model import Generation, OnResult, Prompt, Sampling, Score

Result = TypeVar("Result")


class ServerModel:
    """A model behind an HTTP interface.

    Parameters
    ----------
    model : str
        The name the server knows it by.
    base_url : str
        Up to the version, e.g. ``http://localhost:8000/v1``.
    api_key : str, optional
        By default the environment's ``OPENAI_API_KEY``; sent as a bearer token, never written anywhere.
    concurrency : int
        Requests in flight.
    timeout : float
        Seconds a request may take.
    retries : int
        Further tries after no answer, an answer that is no JSON of the expected form, or status 408, 409, 429 or 5xx;
        waits of 0.5 s, 1 s, 2 s … (at most 30 s) with jitter between them.
    render : callable, optional
        Chat messages to the text the model sees (``tokenizer.apply_chat_template``): what `score` of messages needs.
    count : callable, optional
        Tokens of a text; by default a third of its bytes, which is more than most tokenizers make of English.
    context : int, optional
        Tokens of prompt and continuation together that the server takes.

    Raises
    ------
    ConnectionError
        From every method, when the last try failed: what the server said, and what came before is with ``on_result``.
    ValueError
        A server that returns no log-probabilities, or refuses the request (status 4xx).
    """

    def __init__(
        self,
        model: str,
        base_url: str = "http://localhost:8000/v1",
        *,
        api_key: str | None = None,
        concurrency: int = 4,
        timeout: float = 120.0,
        retries: int = 5,
        render: Callable[[Prompt], str] | None = None,
        count: Callable[[str], int] | None = None,
        context: int | None = None,
    ) -> None:
        try:
            import httpx
            import tenacity  # noqa: F401
        except ImportError as error:
            raise ImportError(
                "servers are asked through httpx and tenacity: pip install 'rankwise[prompting]'"
            ) from error
        if not base_url.startswith(("http://", "https://")):
            raise ValueError(f"base_url={base_url!r} is no http:// or https:// address")
        key = api_key or os.environ.get("OPENAI_API_KEY")
        self.name, self.context = model, context
        self.concurrency, self.retries, self.render, self.count = concurrency, retries, render, count
        self._client = httpx.Client(
            base_url=base_url.rstrip("/") + "/",
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=timeout,
            limits=httpx.Limits(max_connections=concurrency),
        )

    def count_tokens(self, prompt: Prompt) -> int:
        """See `LanguageModel`."""
        text = prompt if isinstance(prompt, str) else self._text(prompt, "\n")
        return self.count(text) if self.count else -(-len(text.encode()) // 3)

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling | None = None, *, on_result: OnResult | None = None
    ) -> list[Generation]:
        """See `LanguageModel`."""
        sampling = sampling or Sampling()
        options: dict[str, object] = {
            "model": self.name,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed,
        }
        if sampling.stop:
            options["stop"] = list(sampling.stop)

        def ask(prompt: Prompt) -> Generation:
            if isinstance(prompt, str):
                return self._post("completions", {**options, "prompt": prompt, "logprobs": 1}, _completion)
            body = {**options, "messages": list(prompt), "logprobs": True, "top_logprobs": 1}
            return self._post("chat/completions", body, _chat)

        return self._all(ask, prompts, on_result)

    def score(
        self,
        prompts: Sequence[Prompt],
        continuations: Sequence[Sequence[str]],
        *,
        on_result: OnResult | None = None,
    ) -> list[list[Score]]:
        """See `LanguageModel`. The server tokenises prompt and continuation together; the token in which the prompt
        ends, should it reach over, counts to the continuation."""

        def ask(request: tuple[Prompt, Sequence[str]]) -> list[Score]:
            prompt, given = request
            if not isinstance(prompt, str):
                if self.render is None:
                    raise ValueError(
                        "scores of chat messages need render=, e.g. the tokenizer's apply_chat_template; or ask in "
                        "plain text (style='text', --style text)"
                    )
                prompt = self.render(prompt)
            if "" in given:
                raise ValueError(f"continuation {list(given).index('')} of {prompt[:60]!r} is empty")
            return [self._scored(prompt, text) for text in given]

        return self._all(ask, list(zip(prompts, continuations, strict=True)), on_result)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _scored(self, prompt: str, continuation: str) -> Score:
        body = {"model": self.name, "prompt": prompt + continuation, "max_tokens": 0, "echo": True, "logprobs": 1,
                "temperature": 0.0}  # fmt: skip

        def parse(answer: dict) -> Score:
            found = answer["choices"][0].get("logprobs")
            if not found or len(found["token_logprobs"]) < 2:
                raise _NoLogprobs(
                    f"{self.name} returns no log-probabilities of the prompt: its server has to support echo with "
                    "logprobs on /completions (vLLM and llama-cpp-python do)"
                )
            places = zip(found["text_offset"], found["tokens"], found["token_logprobs"], strict=True)
            return Score(logprobs=tuple(float(p) for at, token, p in places if at + len(token) > len(prompt)))

        return self._post("completions", body, parse)

    def _all(self, ask: Callable[..., Result], requests: Sequence, on_result: OnResult | None) -> list[Result]:
        """Every request's result. When one fails for good no new ones start, but those under way are kept."""
        failed = threading.Event()

        def one(i: int):
            if failed.is_set():
                return None
            try:
                found = ask(requests[i])
            except BaseException:
                failed.set()
                raise
            if on_result:
                on_result(i, found)
            return found

        with ThreadPoolExecutor(self.concurrency) as pool:
            futures = [pool.submit(one, i) for i in range(len(requests))]
        for future in futures:
            if error := future.exception():
                raise error
        return [f.result() for f in futures]  # type: ignore[misc]

    def _post(self, path: str, body: dict, parse: Callable[[dict], Result]) -> Result:
        import httpx
        from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

        def attempt() -> Result:
            answer = self._client.post(path, json=body)
            if answer.status_code in (408, 409, 429) or answer.status_code >= 500:
                raise ConnectionError(f"status {answer.status_code}: {answer.text[:200]}")
            if answer.status_code != 200:
                raise ValueError(f"{self._client.base_url}{path} refused: {answer.status_code} {answer.text[:500]}")
            try:
                return parse(answer.json())
            except _NoLogprobs:
                raise
            except (KeyError, IndexError, TypeError, AttributeError, UnicodeDecodeError) as error:
                raise ConnectionError(f"an answer of another form ({error!r}): {answer.text[:200]}") from error
            except ValueError as error:
                raise ConnectionError(f"an answer that is no JSON: {answer.text[:200]}") from error

        trying = Retrying(
            stop=stop_after_attempt(self.retries + 1),
            wait=wait_exponential_jitter(initial=0.5, max=30, jitter=0.5),
            retry=retry_if_exception_type((ConnectionError, httpx.TransportError)),
            reraise=True,
        )
        try:
            return trying(attempt)
        except (ConnectionError, httpx.TransportError) as error:
            raise ConnectionError(
                f"{self._client.base_url}{path} failed {self.retries + 1} times, at last: {error!r}"
            ) from error

    @staticmethod
    def _text(messages: Prompt, joined: str) -> str:
        return joined.join(str(m["content"]) for m in messages if isinstance(m, dict))


class _NoLogprobs(ValueError):
    """An answer that is whole but for its log-probabilities: asking again will not help."""


def _chat(answer: dict) -> Generation:
    choice = answer["choices"][0]
    found = (choice.get("logprobs") or {}).get("content")
    text = choice["message"]["content"] or ""
    if found is None:
        raise _NoLogprobs(_NONE)
    return Generation(
        text=text,
        tokens=tuple(str(t["token"]) for t in found),
        logprobs=tuple(float(t["logprob"]) for t in found),
        top_logprobs=tuple(
            max([float(t["logprob"]), *(float(a["logprob"]) for a in t["top_logprobs"])]) for t in found
        ),
        special=tuple(_special(str(t["token"])) for t in found),
        prompt_tokens=int((answer.get("usage") or {}).get("prompt_tokens", 0)),
    )


def _completion(answer: dict) -> Generation:
    choice = answer["choices"][0]
    found, text = choice.get("logprobs"), str(choice["text"])
    if found is None:
        raise _NoLogprobs(_NONE)
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
        prompt_tokens=int((answer.get("usage") or {}).get("prompt_tokens", 0)),
    )


_NONE = (
    "the server returned no log-probabilities: switch them on (vLLM: they are; llama.cpp: n_probs; hosted services: a "
    "model that has them)"
)


def _special(token: str) -> bool:
    """By its looks, all that the wire tells: ``<|im_end|>``, ``</s>``, or nothing at all."""
    return token == "" or (token.startswith("<") and token.endswith(">") and len(token) > 2)
