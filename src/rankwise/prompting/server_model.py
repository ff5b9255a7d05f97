"""Any OpenAI-compatible server as a `LanguageModel`, on this machine or hosted.

Chat messages go to ``/chat/completions``, plain texts to ``/completions``, both with log-probabilities. Scores come
from ``/completions`` with ``echo``: the server reads prompt and continuation and returns the log-probability of every
token; one more token, the least that every server accepts, is generated and thrown away.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from rankwise.prompting import server_answers as answers
from rankwise.prompting.language_model import (
    Generation,
    OnResult,
    Prompt,
    Sampling,
    Score,
    check_prompts,
    check_requests,
)

if TYPE_CHECKING:
    from rankwise.prompting.server_requests import Post

__all__ = ["ServerModel"]

_OURS = {"model", "prompt", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stop",
         "logprobs", "top_logprobs", "echo", "n", "stream"}  # fmt: skip
_MAY_BE_LEFT_OUT = {"temperature", "top_p", "seed"}
_PROBE: list[dict[str, object]] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
                                   {"role": "user", "content": "c"}]  # fmt: skip


class ServerModel:
    """A model behind an HTTP interface.

    Parameters
    ----------
    model : str
        The name the server knows it by.
    base_url : str
        Up to the version, e.g. ``http://localhost:8000/v1``. A user's name and password may stand in it.
    api_key : str, optional
        Sent as a bearer token, over https or to this machine alone, and never written anywhere. By default what
        ``key_variable`` holds; an empty one sends none.
    key_variable : str, optional
        The environment's variable with the key. By default ``RANKWISE_API_KEY``; for api.openai.com and this machine
        also ``OPENAI_API_KEY``, which is sent nowhere else.
    concurrency : int
        How many requests are under way at once.
    timeout : float
        Seconds from sending a request to the last byte of its answer.
    retries : int
        How often a request that failed is tried again where that can help, see `rankwise.prompting.server_requests`.
    max_completion_tokens : bool
        Send the limit of tokens to write under this name, as OpenAI's newer chat models want it, not as ``max_tokens``.
    extra_body : mapping, optional
        What else goes into every request, e.g. ``{"top_k": 20}``; ``None`` as the value of ``temperature``, ``top_p``
        or ``seed`` leaves that out for servers that refuse it, and their own default then decides.
    render : callable, optional
        Chat messages to the text the model sees (``tokenizer.apply_chat_template``): what `score` of messages needs.
    count : callable, optional
        Tokens of a text; by default a third of its bytes, which is more than most tokenizers make of English.
    context : int, optional
        Tokens of prompt and continuation together that the server takes.

    Raises
    ------
    ConnectionError
        From every method, when no server answers or the last try failed: what the server said, and what came before is
        with ``on_result``.
    ValueError
        An address or key that is none (see `rankwise.prompting.server_address`), options out of range; a server that
        returns no log-probabilities, refuses a request, or answers something else.

    Examples
    --------
    >>> from rankwise.prompting import Recorded, ServerModel
    >>> model = ServerModel("Qwen2.5-7B-Instruct", "http://localhost:8000/v1", concurrency=8, context=32_768)
    >>> model.count_tokens("What is the capital of Norway?")  # an estimate, without count=
    10
    >>> # model.generate([...]), model.score([...], [[...]]); Recorded(model, path) never asks twice
    """

    def __init__(
        self,
        model: str,
        base_url: str = "http://localhost:8000/v1",
        *,
        api_key: str | None = None,
        key_variable: str | None = None,
        concurrency: int = 4,
        timeout: float = 120.0,
        retries: int = 5,
        max_completion_tokens: bool = False,
        extra_body: Mapping[str, object] | None = None,
        render: Callable[[Prompt], str] | None = None,
        count: Callable[[str], int] | None = None,
        context: int | None = None,
    ) -> None:
        try:
            from rankwise.prompting.server_address import address
            from rankwise.prompting.server_requests import Requests
        except ImportError as error:
            raise ImportError(
                "servers are asked through httpx and tenacity: pip install 'rankwise[prompting]'"
            ) from error
        if concurrency < 1 or not timeout > 0 or retries < 0:
            raise ValueError(
                f"concurrency={concurrency}, timeout={timeout}, retries={retries}; at least 1, above 0, at least 0"
            )
        self.name, self.context, self.render, self.count = model, context, render, count
        self.max_completion_tokens, self.extra_body = max_completion_tokens, _checked(extra_body or {})
        self._address = address(base_url, api_key=api_key, key_variable=key_variable)
        self._requests = Requests(address=self._address, concurrency=concurrency, timeout=timeout, retries=retries)

    def identity(self) -> object:
        """See `LanguageModel`: the address and name, what goes into every request, and what the template makes."""
        template = self.render(_PROBE) if self.render else None
        return {"server": self._address.url, "model": self.name, "extra": self.extra_body, "template": template}

    def count_tokens(self, prompt: Prompt) -> int:
        """See `LanguageModel`."""
        text = prompt if isinstance(prompt, str) else "\n".join(str(m["content"]) for m in prompt)
        return self.count(text) if self.count else -(-len(text.encode()) // 3)

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling | None = None, *, on_result: OnResult | None = None
    ) -> list[Generation]:
        """See `LanguageModel`."""
        check_prompts(prompts)
        sampling = sampling or Sampling()
        limit = "max_completion_tokens" if self.max_completion_tokens else "max_tokens"
        options = {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": sampling.seed}
        if sampling.stop:
            options["stop"] = list(sampling.stop)

        async def ask(post: Post, prompt: Prompt) -> Generation:
            if isinstance(prompt, str):
                text = {"prompt": prompt, "max_tokens": sampling.max_new_tokens, "logprobs": 1}
                return await post("completions", self._body({**options, **text}), answers.completion)
            turns = {"messages": list(prompt), limit: sampling.max_new_tokens, "logprobs": True, "top_logprobs": 1}
            return await post("chat/completions", self._body({**options, **turns}), answers.chat)

        return self._requests.all(ask, prompts, on_result)

    def score(
        self,
        prompts: Sequence[Prompt],
        continuations: Sequence[Sequence[str]],
        *,
        on_result: OnResult | None = None,
    ) -> list[list[Score]]:
        """See `LanguageModel`. The server tokenises prompt and continuation together; the token in which the prompt
        ends, should it reach over, counts to the continuation."""
        check_requests(prompts, continuations)
        texts = [self._text(p) for p in prompts]
        if "" in texts:
            raise ValueError(
                f"prompt {texts.index('')} is empty: the first token of a continuation needs one before it"
            )

        async def ask(post: Post, request: tuple[str, Sequence[str]]) -> list[Score]:
            prompt, given = request
            alone: answers.Echo | None = None
            out = []
            for continuation in given:
                whole = await self._echoed(post, prompt + continuation)
                first = answers.begins(whole, prompt, prompt + continuation)
                if first is None:
                    alone = alone or await self._echoed(post, prompt)
                    first = answers.parts(whole, alone)
                out.append(answers.score(whole, first, continuation))
            return out

        return self._requests.all(ask, list(zip(texts, continuations, strict=True)), on_result)

    async def _echoed(self, post: Post, text: str) -> answers.Echo:
        body = self._body({"prompt": text, "max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0.0})
        return await post("completions", body, lambda answer: answers.echo(answer, text))

    def _body(self, options: Mapping[str, object]) -> dict[str, object]:
        body = {"model": self.name, **options, **self.extra_body}
        return {k: v for k, v in body.items() if v is not None}

    def _text(self, prompt: Prompt) -> str:
        if isinstance(prompt, str):
            return prompt
        if self.render is None:
            raise ValueError(
                "scores of chat messages need render=, e.g. the tokenizer's apply_chat_template; or ask in plain text "
                "(style='text', --style text)"
            )
        return self.render(prompt)


def _checked(extra: Mapping[str, object]) -> dict[str, object]:
    taken = [k for k, v in extra.items() if k in _OURS and not (v is None and k in _MAY_BE_LEFT_OUT)]
    if taken:
        raise ValueError(
            f"extra_body holds {', '.join(taken)}, set by rankwise itself; null for "
            f"{', '.join(sorted(_MAY_BE_LEFT_OUT))} leaves that out"
        )
    return dict(extra)
