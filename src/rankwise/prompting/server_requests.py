"""Many requests to one server: a few at a time, tried again where that can help, bounded in size and time.

What is tried again: no answer, an answer cut short, status 408, 409, 425, 429 and 5xx, after waits of 0.5 s, 1 s, 2 s …
(at most 30 s) with jitter, or as long as the server's ``Retry-After`` asks for. What asking again cannot mend is told
at once: a refusal, an exhausted quota, a page for people, an answer of another form, and a server that was never
reached. When one request fails for good, or the user interrupts, no further one is sent; those under way are waited
for, since they are being paid for, and what is whole by then is handed on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import anyio
import httpx
import tenacity
from anyio.from_thread import start_blocking_portal

from rankwise.prompting.language_model import OnResult
from rankwise.prompting.server_address import Address
from rankwise.reading import parse_json

Result = TypeVar("Result")
Parse = Callable[[dict], Result]
MOST_BYTES = 64_000_000  # of an answer
LONGEST_WAIT = 600.0  # seconds that a server may ask to wait
CONNECTING = 10.0  # seconds
_WAIT = tenacity.wait_exponential_jitter(initial=0.5, max=30, jitter=0.5)
_AGAIN = {408, 409, 425, 429}
_NEVER = {501, 505}
_SPENT = ("insufficient_quota", "credit_balance_exhausted", "spend_limit", "usage_limit", "billing")


class Unanswered(ConnectionError):
    """A request that may succeed when it is sent again, ``after`` so many seconds at the earliest.

    Examples
    --------
    >>> from rankwise.prompting.server_requests import Unanswered
    >>> error = Unanswered("status 503", after=2.0)
    >>> isinstance(error, ConnectionError), error.after
    (True, 2.0)
    """

    def __init__(self, message: str, after: float = 0.0) -> None:
        super().__init__(message)
        self.after = after


@dataclass(kw_only=True)
class Requests:
    """How to ask a server.

    Attributes
    ----------
    address : Address
        Where the server is, and what requests to it carry.
    concurrency : int
        How many requests are under way at once.
    timeout : float
        Seconds from a request's first byte to its answer's last one.
    retries : int
        How often a request that failed is tried again.

    Examples
    --------
    >>> from rankwise.prompting.server_address import address
    >>> from rankwise.prompting.server_requests import Requests
    >>> async def ask(post, number):  # await post("completions", body, parse) would ask the server
    ...     return 2 * number
    >>> requests = Requests(address=address("http://localhost:8000/v1"), concurrency=2, timeout=1.0, retries=0)
    >>> requests.all(ask, [1, 2, 3], None)
    [2, 4, 6]
    """

    address: Address
    concurrency: int
    timeout: float
    retries: int
    _reached: bool = field(default=False, init=False)
    _stop: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _under_way: int = field(default=0, init=False)

    def all(
        self, ask: Callable[[Post, Any], Awaitable[Result]], given: Sequence, on_result: OnResult | None
    ) -> list[Result]:
        """``ask(post, x)`` for every x, in order, where ``await post(path, body, parse)`` asks the server.

        Raises
        ------
        ConnectionError
            When the last try failed.
        ValueError
            When trying again cannot help.
        KeyboardInterrupt
            After those under way have ended; interrupted again, at once.
        """
        self._stop = asyncio.Event()
        with start_blocking_portal() as portal:
            running = portal.start_task_soon(self._all, ask, given, on_result)
            try:
                return running.result()
            except KeyboardInterrupt:
                portal.call(self._stop.set)
                logging.getLogger("rankwise").warning(
                    "interrupted: no further request is sent; waiting for the %d under way (interrupt again to drop "
                    "them)",
                    self._under_way,
                )
                with suppress(Exception):
                    running.result()
                raise

    async def _all(self, ask: Callable, given: Sequence, on_result: OnResult | None) -> list:
        found: dict[int, Any] = {}
        failed: list[Exception] = []
        left = iter(range(len(given)))

        async def work() -> None:
            for i in left:
                if self._stop.is_set():
                    return
                try:
                    self._under_way += 1
                    found[i] = await ask(post, given[i])
                    if on_result:
                        on_result(i, found[i])
                except Exception as error:
                    failed.append(error)
                    self._stop.set()
                finally:
                    self._under_way -= 1

        self._under_way = 0
        # a key for this machine does not pass through a proxy
        options: dict[str, Any] = {
            "timeout": httpx.Timeout(None, connect=CONNECTING),
            "trust_env": not self.address.local,
        }
        headers = {**self.address.headers, "Accept-Encoding": "identity"}
        async with httpx.AsyncClient(base_url=self.address.url, headers=headers, **options) as client:

            async def post(path: str, body: dict, parse: Parse) -> Any:
                return await self._tried(client, path, body, parse)

            async with anyio.create_task_group() as workers:
                for _ in range(min(self.concurrency, len(given))):
                    workers.start_soon(work)
        for error in failed:  # the first one stopped the others
            raise error
        return [found[i] for i in sorted(found)]

    async def _tried(self, client: httpx.AsyncClient, path: str, body: dict, parse: Parse) -> Any:
        async def pause(seconds: float) -> None:
            with anyio.move_on_after(seconds):
                await self._stop.wait()

        def waits(state: tenacity.RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            return max(_WAIT(state), error.after if isinstance(error, Unanswered) else 0.0)

        trying = tenacity.AsyncRetrying(
            stop=lambda state: self._stop.is_set() or state.attempt_number > self.retries,
            wait=waits,
            sleep=pause,
            retry=tenacity.retry_if_exception_type(Unanswered),
            reraise=True,
        )
        try:
            return await trying(self._once, client, path, body, parse)
        except Unanswered as error:
            n = trying.statistics["attempt_number"]
            times = "once" if n == 1 else f"{n} times"
            raise ConnectionError(f"{self.address.url}{path} failed {times}, at last: {error}") from error

    async def _once(self, client: httpx.AsyncClient, path: str, body: dict, parse: Parse) -> Any:
        where = f"{self.address.url}{path}"
        if self._stop.is_set():
            raise Unanswered("interrupted")
        try:
            with anyio.fail_after(self.timeout):
                status, headers, text = await self._answered(client, path, body)
        except TimeoutError as error:
            raise Unanswered(f"no whole answer within {self.timeout:g} s") from error
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            if not self._reached:
                raise ConnectionError(f"no server answers at {self.address.url}: {self._said(error)}") from error
            raise Unanswered(self._said(error)) from error
        except httpx.TransportError as error:
            raise Unanswered(self._said(error)) from error
        self._reached = True
        return self._read(where, status, headers, text, parse)

    def _read(self, where: str, status: int, headers: httpx.Headers, text: str, parse: Parse) -> Any:
        """What an answer says; an error says whether asking again may help."""
        said = self.address.clean(text)
        if status == 429 and any(word in text for word in _SPENT):
            raise ValueError(f"{where} refused, and will until someone pays: {status} {said}")
        if (status in _AGAIN or status >= 500) and status not in _NEVER:
            raise Unanswered(f"status {status}: {said[:200]}", _retry_after(headers, where))
        if status != 200:
            raise ValueError(f"{where} refused: {status} {said}{self._hint(status, headers)}")
        if text.lstrip()[:1] == "<":
            raise ValueError(
                f"{where} answered with a page for people, not the API{self._hint(404, headers)}: {said[:80]!r}"
            )
        try:
            answer = parse_json(text, where)
        except ValueError as error:
            if text.rstrip()[-1:] in ("}", "]") or "nests" in str(error):
                raise ValueError(f"{where} answered in another form: {self.address.clean(str(error))}") from error
            raise Unanswered(f"an answer cut short: {said[:200]!r}") from error
        if answer.get("error"):
            raise ValueError(f"{where} answered with an error: {said}")
        try:
            return parse(answer)
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise ValueError(f"{where} answered in another form ({error!r}): {said[:200]!r}") from error

    async def _answered(self, client: httpx.AsyncClient, path: str, body: dict) -> tuple[int, httpx.Headers, str]:
        data = bytearray()
        async with client.stream("POST", path, json=body) as answer:
            if answer.headers.get("Content-Encoding", "identity") != "identity":
                raise ValueError(f"{self.address.url}{path} answered compressed, which was not asked for")
            async for piece in answer.aiter_raw():
                data += piece
                if len(data) > MOST_BYTES:
                    raise ValueError(f"{self.address.url}{path} answered more than {MOST_BYTES:,} bytes: not read on")
        return answer.status_code, answer.headers, data.decode("utf-8", "replace")

    def _hint(self, status: int, headers: httpx.Headers) -> str:
        if 300 <= status < 400:
            return f"; it points to {self.address.clean(headers.get('Location', 'elsewhere'))}: give that address"
        if status in (401, 403) and self.address.keyless:
            return f"; {self.address.keyless}"
        if status == 404 and not self.address.url.endswith("/v1/"):
            return f"; addresses mostly end in /v1: {self.address.url}v1?"
        return ""

    def _said(self, error: Exception) -> str:
        return self.address.clean(f"{type(error).__name__} {error}".strip(), 200)


Post = Callable[[str, dict, Parse], Awaitable[Any]]


def _retry_after(headers: httpx.Headers, where: str) -> float:
    """Seconds that the server asks to wait: a number, or a date."""
    asked = headers.get("Retry-After", "").strip()
    try:
        seconds = float(asked)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(asked).timestamp() - time.time()
        except (ValueError, TypeError):
            return 0.0
    if seconds > LONGEST_WAIT:
        raise ValueError(f"{where} asks to wait {seconds:,.0f} s: come back then")
    return max(0.0, seconds) if seconds == seconds else 0.0
