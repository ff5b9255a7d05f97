import json
import os
import signal
import threading
import time

import pytest

from prompting.loopback import Loopback, interruptible, said  # noqa: F401
from rankwise.prompting import server_requests
from rankwise.prompting.language_model import Recorded, Sampling
from rankwise.prompting.server_model import ServerModel
from rankwise.prompting.transformers_model import TransformersModel


@pytest.fixture(scope="module")
def local():
    return TransformersModel("smollm2")


@pytest.fixture(autouse=True)
def _no_keys_no_waits(monkeypatch):
    for name in ("OPENAI_API_KEY", "RANKWISE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(server_requests, "_WAIT", lambda state: 0.01)


@pytest.fixture
def server(local):
    with Loopback(local) as running:
        yield running


@pytest.fixture
def dumb():
    """Answers "b" to everything."""
    with Loopback() as running:
        yield running


CHAT = [{"role": "user", "content": "What is the capital of France?"}]


def test_the_real_model_answers_the_same_behind_a_server(local, server):
    model = ServerModel("smollm2", server.url, api_key="secret")
    sampling = Sampling(max_new_tokens=12)
    for prompt in (CHAT, "The capital of France is"):
        mine, theirs = local.generate([prompt], sampling)[0], model.generate([prompt], sampling)[0]
        assert "Paris" in theirs.text
        assert theirs.text == mine.text
        assert theirs.logprobs == pytest.approx(mine.logprobs)
        assert theirs.top_logprobs == pytest.approx(mine.top_logprobs)
        assert theirs.special == mine.special
        assert theirs.prompt_tokens == mine.prompt_tokens
    assert server.requests[0]["headers"]["Authorization"] == "Bearer secret"


@pytest.mark.parametrize("echoes", ["plain", "begin", "bytes", "nothing", "ids"])
def test_scores_over_echo_equal_local_ones_however_the_server_tells_its_tokens(local, echoes):
    prompts = ["The capital of France is", CHAT, "Wörter wie 日本 und 🙂", "日本語で:"]
    given = [[" Paris.", " London."], ["Paris", "The moon"], [" sind", " にほん"], ["東京", "🙂 ja"]]
    with Loopback(local, echoes=echoes) as server:
        mine, theirs = (
            local.score(prompts, given),
            ServerModel("m", server.url, render=local.render).score(prompts, given),
        )
        asked = len(server.requests)
    for a, b in zip(mine, theirs, strict=True):
        for x, y in zip(a, b, strict=True):
            assert y.logprobs == pytest.approx(x.logprobs, abs=1e-3)
            assert y.mean == pytest.approx(x.mean, abs=1e-3)
    assert asked <= 8 + len(prompts)  # the prompt alone once, where texts do not tell


def test_scores_of_messages_need_a_template_and_of_empty_prompts_are_refused(dumb):
    with pytest.raises(ValueError, match="render="):
        ServerModel("m", dumb.url).score([CHAT], [["Paris"]])
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        ServerModel("m", dumb.url).score(["a", ""], [["b"], ["c"]])
    assert not dumb.requests


def echoing(text, tokens, logprobs, **usage):
    return {"choices": [{"text": text, "logprobs": {"tokens": tokens, "token_logprobs": logprobs}}], "usage": usage}


@pytest.mark.parametrize(
    "answer",
    [
        {"choices": [{"text": "a b"}]},
        said("b"),  # generated, though echo was asked for
        echoing("a b c", [" c"], [-0.5], prompt_tokens=2, completion_tokens=1),  # the text, but generated tokens alone
        echoing("a b c", [" c"], [-0.5]),
        echoing("a b", [], []),
        echoing("a b c", ["a", " b", " c"], [None, -1.0, -0.5], prompt_tokens=9, completion_tokens=1),
    ],
)
def test_a_server_that_does_not_echo_gives_no_score(dumb, monkeypatch, answer):
    monkeypatch.setattr(dumb, "answer", lambda path, body: answer)
    with pytest.raises(ValueError, match="echo"):
        ServerModel("m", dumb.url).score(["a"], [[" b"]])
    assert len(dumb.requests) == 1  # nor is it asked again


def test_a_server_that_ignores_echo_for_the_real_model_gives_no_score(local):
    with Loopback(local, echoes="ignored") as server, pytest.raises(ValueError, match="does not read a text back"):
        ServerModel("smollm2", server.url).score(["The capital of France is"], [[" Paris", " Rome"]])


def test_tokens_that_do_not_tell_where_a_continuation_begins_give_no_score(dumb, monkeypatch):
    def numbered(path, body):
        return echoing(
            body["prompt"] + "!", ["#1", "#2", "!"], [None, -1.0, -0.5], prompt_tokens=2, completion_tokens=1
        )

    monkeypatch.setattr(dumb, "answer", numbered)
    with pytest.raises(ValueError, match="do not tell where ' b' begins"):
        ServerModel("m", dumb.url).score(["a"], [[" b"]])


def test_trouble_that_may_pass_is_tried_again(dumb):
    dumb.troubles = [503, "cut short", "hang up", 429, 408]
    model = ServerModel("m", dumb.url, concurrency=1)
    assert model.generate(["a"])[0].text == "b"
    assert len(dumb.requests) == 6


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        (400, "refused: 400"),
        (401, "refused: 401"),
        (501, "refused: 501"),
        ((302, b"", {"Location": "https://login.example/"}), "points to https://login.example/"),
        ((429, b'{"error": {"type": "insufficient_quota"}}'), "until someone pays"),
        ((429, b'{"error": {"code": "project_spend_limit_exceeded"}}'), "until someone pays"),
        ((200, b'{"error": "model is not loaded"}'), "answered with an error.*not loaded"),
        ((200, b'{"choices": []}'), "another form"),
        ((200, b'{"object": "list"}'), "another form"),
        ((200, b"[1, 2]"), "another form"),
        ((200, b'{"choices": [{"text": "b"}]}'), "no log-probabilities"),
        ("login page", "page for people"),
        ("deep", "nests deeper"),
        ((429, b"{}", {"Retry-After": "7200"}), "asks to wait 7,200 s"),
        ((200, b"\x1f\x8b", {"Content-Encoding": "gzip"}), "compressed"),
    ],
)
def test_what_asking_again_cannot_mend_is_said_at_once(dumb, trouble, message):
    dumb.troubles = [trouble]
    with pytest.raises(ValueError, match=message):
        ServerModel("m", dumb.url).generate(["a"])
    assert len(dumb.requests) == 1


def test_the_server_decides_how_long_to_wait(dumb):
    for after, least in (("0.4", 0.4), ("soon", 0.9), ("never", 0)):
        if after == "soon":
            after = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 2))  # whole seconds: 1 to 2
        dumb.troubles = [(429, b"{}", {"Retry-After": after})]
        start = time.monotonic()
        assert ServerModel("m", dumb.url).generate(["a"])[0].text == "b"
        assert least <= time.monotonic() - start < least + 3


def test_a_missing_version_in_the_address_is_guessed(dumb):
    dumb.troubles = [404]
    with pytest.raises(ValueError, match=r"refused: 404.*end in /v1: http://127\.0\.0\.1:\d+/v1\?"):
        ServerModel("m", dumb.url.removesuffix("/v1")).generate(["a"])
    dumb.troubles = ["login page"]
    with pytest.raises(ValueError, match=r"/v1\?"):
        ServerModel("m", dumb.url.removesuffix("/v1")).generate(["a"])
    dumb.troubles = [404]
    with pytest.raises(ValueError, match="404") as caught:
        ServerModel("m", dumb.url).generate(["a"])
    assert "/v1?" not in str(caught.value)


def test_a_server_that_is_not_there_is_named_within_seconds(monkeypatch):
    monkeypatch.undo()  # with the real waits
    start = time.monotonic()
    with pytest.raises(ConnectionError, match=r"no server answers at http://127\.0\.0\.1:9/v1/"):
        ServerModel("m", "http://127.0.0.1:9/v1").generate(["a"] * 20)
    assert time.monotonic() - start < 5


def test_a_server_that_goes_away_loses_nothing_and_is_asked_nothing_twice(local, server, tmp_path):
    prompts = [f"{n} is a" for n in ("Rome", "Oslo", "Lima", "Bern")]
    model = ServerModel("smollm2", server.url, concurrency=1, retries=1)
    server.troubles = [None, None, 500, 500]
    with pytest.raises(ConnectionError, match=r"failed 2 times.*500"), Recorded(model, tmp_path / "r.jsonl") as kept:
        kept.generate(prompts, Sampling(max_new_tokens=2))
    before = len(server.requests)
    found = Recorded(model, tmp_path / "r.jsonl").generate(prompts, Sampling(max_new_tokens=2))
    assert len(server.requests) - before == 2
    assert [g.tokens for g in found] == [g.tokens for g in local.generate(prompts, Sampling(max_new_tokens=2))]


def test_a_server_that_comes_back_after_refused_connections_is_waited_for(dumb):
    model = ServerModel("m", dumb.url, retries=50)
    assert model.generate(["a"])
    dumb.server.server_close()  # refuses; a second later another one listens there

    def again():
        other = Loopback()
        other.server.server_close()
        time.sleep(0.3)
        from http.server import ThreadingHTTPServer

        other.server = ThreadingHTTPServer(dumb.server.server_address, other.server.RequestHandlerClass)
        other.server.serve_forever(0.02)

    threading.Thread(target=again, daemon=True).start()
    assert model.generate(["a"])[0].text == "b"


@pytest.mark.parametrize("trouble", ["slow body", "slow head"])
def test_the_time_limit_holds_however_slowly_bytes_come(dumb, trouble):
    dumb.troubles, start = [trouble], time.monotonic()
    with pytest.raises(ConnectionError, match=r"failed once, at last: no whole answer within 0\.5 s"):
        ServerModel("m", dumb.url, timeout=0.5, retries=0).generate(["a"])
    assert time.monotonic() - start < 4  # the head alone would take five


def test_an_answer_of_any_size_is_not_read_to_its_end(dumb, monkeypatch):
    monkeypatch.setattr(server_requests, "MOST_BYTES", 1_000_000)
    dumb.troubles = ["huge"]
    with pytest.raises(ValueError, match="more than 1,000,000 bytes"):
        ServerModel("m", dumb.url).generate(["a"])


def test_no_more_requests_are_under_way_than_wanted_and_results_keep_their_order():
    with Loopback(delay=0.05) as server:
        server.answer = lambda path, body: said(body["prompt"])
        found = ServerModel("m", server.url, concurrency=3).generate([f"p{i}" for i in range(12)])
        assert [g.text for g in found] == [f"p{i}" for i in range(12)]
        assert server.most == 3


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_sends_nothing_more_and_keeps_what_is_under_way(tmp_path, caplog):
    with Loopback(delay=0.4) as server:
        model = Recorded(ServerModel("m", server.url, concurrency=4), tmp_path / "r.jsonl")
        threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            model.generate([f"p{i}" for i in range(60)])
        assert len(server.requests) == 4
        time.sleep(0.6)
        assert len(server.requests) == 4
    assert len((tmp_path / "r.jsonl").read_text().splitlines()) == 4
    assert "waiting for the 4 under way" in caplog.text


@pytest.mark.usefixtures("interruptible")
def test_a_second_interrupt_drops_what_is_under_way():
    with Loopback(delay=5) as server:
        for after in (0.2, 0.5):
            threading.Timer(after, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            ServerModel("m", server.url, concurrency=2).generate(["a", "b", "c"])
        assert time.monotonic() - start < 3
        assert len(server.requests) == 2


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_ends_the_waiting_before_a_retry(dumb, monkeypatch):
    monkeypatch.setattr(server_requests, "_WAIT", lambda state: 30.0)
    dumb.troubles = [500] * 5
    threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        ServerModel("m", dumb.url).generate(["a"])
    assert time.monotonic() - start < 3
    assert len(dumb.requests) == 1


def test_the_newer_name_of_the_limit_and_further_settings_go_into_the_request(dumb):
    model = ServerModel("m", dumb.url, max_completion_tokens=True, extra_body={"top_k": 5, "seed": None})
    answer = {"choices": [{"message": {"content": "b"}, "logprobs": {"content": [{"token": "b", "logprob": -0.5}]}}]}
    dumb.troubles = [(200, json.dumps(answer).encode())]
    assert model.generate([CHAT], Sampling(max_new_tokens=7))[0].top_logprobs == (-0.5,)
    sent = dumb.requests[0]
    assert (sent["max_completion_tokens"], sent["top_k"]) == (7, 5)
    assert not {"max_tokens", "seed"} & sent.keys()
    for extra in ({"temperature": 2}, {"max_tokens": 1}, {"messages": None}):
        with pytest.raises(ValueError, match=f"extra_body holds {next(iter(extra))}"):
            ServerModel("m", dumb.url, extra_body=extra)
    for options in ({"concurrency": 0}, {"timeout": 0}, {"retries": -1}):
        with pytest.raises(ValueError, match="at least 1, above 0"):
            ServerModel("m", dumb.url, **options)


def test_another_address_extra_setting_or_template_is_another_model(local):
    plain = ServerModel("m", "http://localhost:1/v1", api_key="a")
    assert plain.identity() == ServerModel("m", "http://localhost:1/v1/", api_key="b", timeout=3).identity()
    others = [
        ServerModel("m", "http://localhost:2/v1"),
        ServerModel("n", "http://localhost:1/v1"),
        ServerModel("m", "http://localhost:1/v1", extra_body={"top_k": 1}),
        ServerModel("m", "http://localhost:1/v1", render=local.render),
    ]
    assert all(o.identity() != plain.identity() for o in others)


def test_tokens_are_estimated_from_above_or_counted_by_the_users_tokenizer(local):
    text = "An estimate that is a little too high is the safe one."
    model = ServerModel("m")
    assert model.count_tokens(text) >= local.count_tokens(text)
    assert ServerModel("m", count=len).count_tokens(text) == len(text)
    assert model.count_tokens(CHAT) > 5
