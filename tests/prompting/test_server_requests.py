"""Which answers are worth asking again, how long one waits before, and what the errors say."""

import email.utils
import time
from types import SimpleNamespace

import httpx
import pytest

from prompting.loopback import Loopback, said
from rankwise.prompting import server_requests
from rankwise.prompting.language_model import Sampling
from rankwise.prompting.server_model import ServerModel

AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 506, 599)
NEVER = (300, 307, 399, 400, 401, 403, 404, 405, 410, 413, 422, 424, 426, 428, 430, 451, 499, 501, 505)


@pytest.fixture(autouse=True)
def _no_keys_no_waits(monkeypatch):
    for name in ("OPENAI_API_KEY", "RANKWISE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(server_requests, "_WAIT", lambda state: 0.0)


@pytest.fixture(scope="module")
def running():
    with Loopback() as server:
        yield server


@pytest.fixture
def server(running):
    running.requests.clear()
    running.troubles = []
    yield running
    running.troubles = []


@pytest.mark.parametrize("status", AGAIN)
def test_a_status_that_may_pass_is_asked_again(server, status):
    server.troubles = [status]
    assert ServerModel("m", server.url).generate(["a"])[0].text == "b"
    assert len(server.requests) == 2


@pytest.mark.parametrize("status", NEVER)
def test_a_status_that_will_not_pass_is_told_at_once(server, status):
    server.troubles = [status]
    with pytest.raises(ValueError, match=f"v1/completions refused: {status} ") as caught:
        ServerModel("m", server.url).generate(["a"])
    assert len(server.requests) == 1
    assert ("it points to elsewhere" in str(caught.value)) == (300 <= status < 400)


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_it_is_asked_as_often_as_is_said_and_no_more(server, retries):
    server.troubles = [503] * 9
    times = "once" if retries == 0 else f"{retries + 1} times"
    with pytest.raises(ConnectionError, match=rf"v1/completions failed {times}, at last: status 503"):
        ServerModel("m", server.url, retries=retries).generate(["a"])
    assert len(server.requests) == retries + 1


def test_waits_double_from_half_a_second_to_thirty_with_up_to_half_a_second_more(monkeypatch):
    monkeypatch.undo()
    for attempt in range(1, 12):
        least = min(0.5 * 2 ** (attempt - 1), 30)
        waits = [server_requests._WAIT(SimpleNamespace(attempt_number=attempt)) for _ in range(200)]
        assert min(least, 29.5) <= min(waits)
        assert max(waits) <= min(least + 0.5, 30)
        assert least == 30 or max(waits) > least + 0.25


def after(asked):
    return server_requests._retry_after(httpx.Headers({} if asked is None else {"Retry-After": asked}), "where")


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [("1.5", 1.5), (" 3 ", 3.0), ("0", 0.0), ("-2", 0.0), ("nan", 0.0), ("soon", 0.0), ("", 0.0), (None, 0.0),
     ("600", 600.0)],
)  # fmt: skip
def test_a_server_says_how_many_seconds_to_wait(asked, seconds):
    assert after(asked) == seconds


def test_a_server_says_until_when_to_wait_and_not_for_longer_than_ten_minutes():
    now = time.time()
    assert after(email.utils.formatdate(now + 100, usegmt=True)) == pytest.approx(100, abs=2)
    assert after(email.utils.formatdate(now - 100, usegmt=True)) == 0
    for longer in ("600.5", "inf", email.utils.formatdate(now + 700, usegmt=True)):
        with pytest.raises(ValueError, match=r"where asks to wait .* s: come back then"):
            after(longer)


def test_a_longer_wait_that_the_server_asks_for_takes_the_place_of_the_own_one(server, monkeypatch):
    for own, asked, least in ((0.3, "0", 0.3), (0.0, "0.3", 0.3), (0.3, None, 0.3)):
        monkeypatch.setattr(server_requests, "_WAIT", lambda state, own=own: own)
        server.troubles, start = [(503, b"{}", {"Retry-After": asked} if asked else {})], time.monotonic()
        ServerModel("m", server.url).generate(["a"])
        assert least <= time.monotonic() - start < least + 0.5


def test_why_no_key_was_sent_is_said_where_one_is_wanted_and_a_version_where_one_is_missing(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setattr("rankwise.prompting.server_address._local", lambda host: False)
    for status in (401, 403, 404, 400):
        server.troubles = [status]
        with pytest.raises(ValueError, match="refused") as caught:
            ServerModel("m", server.url).generate(["a"])
        assert ("set RANKWISE_API_KEY" in str(caught.value)) == (status in (401, 403))


def test_long_answers_are_cut_in_errors(server):
    for trouble, most in (((400, b"x" * 900), 500), (("again", b"x" * 900), 200)):
        status, body = trouble
        server.troubles = [(503 if status == "again" else status, body)]
        with pytest.raises((ValueError, ConnectionError)) as caught:
            ServerModel("m", server.url, retries=0).generate(["a"])
        assert f"{'x' * most}" in str(caught.value)
        assert "x" * (most + 1) not in str(caught.value)


def test_what_is_whole_before_a_failure_is_handed_on_and_nothing_is_sent_after_it(server):
    server.troubles = [None, None, 400]
    seen = {}
    with pytest.raises(ValueError, match="refused: 400"):
        ServerModel("m", server.url, concurrency=1).generate(
            ["a"] * 6, on_result=lambda i, found: seen.update({i: found.text})
        )
    assert seen == {0: "b", 1: "b"}
    assert len(server.requests) == 3


def test_an_answer_cut_short_is_asked_for_again_and_one_of_another_form_is_not(server):
    server.troubles = ["cut short", (200, b"\n")]
    assert ServerModel("m", server.url).generate(["a"])[0].text == "b"
    assert len(server.requests) == 3
    for body in (b'{"choices": [}', b'{"a": 1} ]'):
        server.troubles = [(200, body)]
        with pytest.raises(ValueError, match="answered in another form"):
            ServerModel("m", server.url).generate(["a"])


def test_connections_that_break_are_tried_again_and_named_in_the_end(server):
    server.troubles = ["hang up", "hang up"]
    assert ServerModel("m", server.url, retries=2).generate(["a"])[0].text == "b"
    server.troubles = ["hang up", "hang up"]
    with pytest.raises(ConnectionError, match="failed 2 times, at last: RemoteProtocolError"):
        ServerModel("m", server.url, retries=1).generate(["a"])


CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]


def test_requests_hold_what_was_asked_for_and_nothing_else(server, monkeypatch):
    content = [{"token": "b", "logprob": -0.5}]
    answers = {
        "/v1/chat/completions": {"choices": [{"message": {"content": "b"}, "logprobs": {"content": content}}]},
        "/v1/completions": said("b"),
    }
    monkeypatch.setattr(server, "answer", lambda path, body: answers[path])
    sampling = Sampling(max_new_tokens=7, temperature=0.5, top_p=0.75, stop=("\n", "."), seed=3)
    model = ServerModel("m", server.url, concurrency=1)
    model.generate(["Why?", CHAT], sampling)
    model.generate([CHAT])
    sent = [{k: v for k, v in r.items() if k not in ("path", "headers")} for r in server.requests]
    drawn = {"model": "m", "temperature": 0.5, "top_p": 0.75, "stop": ["\n", "."], "seed": 3}
    greedy = {"model": "m", "temperature": 0.0, "top_p": 1.0, "seed": 0}
    assert sent == [
        {**drawn, "prompt": "Why?", "max_tokens": 7, "logprobs": 1},
        {**drawn, "messages": CHAT, "max_tokens": 7, "logprobs": True, "top_logprobs": 1},
        {**greedy, "messages": CHAT, "max_tokens": 64, "logprobs": True, "top_logprobs": 1},
    ]
    assert {r["headers"]["Accept-Encoding"] for r in server.requests} == {"identity"}
    assert not any("Authorization" in r["headers"] for r in server.requests)


def test_scores_ask_for_the_text_back_and_for_one_more_token(server, monkeypatch):
    def back(path, body):
        logprobs = {"tokens": [*body["prompt"], "!"], "token_logprobs": [None, *[-0.25] * len(body["prompt"])]}
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": 1}
        return {"choices": [{"text": body["prompt"] + "!", "logprobs": logprobs}], "usage": usage}

    monkeypatch.setattr(server, "answer", back)
    model = ServerModel("m", server.url, concurrency=1, render=lambda turns: f"<{turns[-1]['content']}>")
    (first, second), (third,) = model.score(["ab", CHAT], [["c", "de"], ["fgh"]])
    assert (first.logprobs, second.logprobs, third.logprobs) == ((-0.25,), (-0.25,) * 2, (-0.25,) * 3)
    sent = [{k: v for k, v in r.items() if k not in ("path", "headers")} for r in server.requests]
    asked = {"model": "m", "max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0.0}
    assert sent == [{**asked, "prompt": p} for p in ("abc", "abde", "<Why?>fgh")]
    assert {r["path"] for r in server.requests} == {"/v1/completions"}


def test_a_model_says_where_it_asks_and_what_it_asks_with():
    expected = {"server": "http://localhost:8000/v1/", "model": "m", "extra": {}, "template": None}
    assert ServerModel("m").identity() == expected
    rendered = ServerModel("m", render=lambda turns: " ".join(f"{m['role']}:{m['content']}" for m in turns))
    assert rendered.identity()["template"] == "user:a assistant:b user:c"
    requests = ServerModel("m")._requests
    assert (requests.concurrency, requests.timeout, requests.retries) == (4, 120.0, 5)


def test_a_token_is_estimated_at_three_bytes():
    model = ServerModel("m")
    assert [model.count_tokens("x" * n) for n in (0, 1, 3, 4, 6)] == [0, 1, 1, 2, 2]
    assert model.count_tokens("é" * 3) == 2
    assert ServerModel("m", count=len).count_tokens(CHAT) == len("Be brief.\nWhy?")
