import threading

import pytest
import tenacity

from prompting.loopback import Loopback
from rankwise.prompting.language_model import Recorded, Sampling
from rankwise.prompting.server_model import ServerModel
from rankwise.prompting.transformers_model import TransformersModel


@pytest.fixture(scope="module")
def local():
    return TransformersModel("smollm2")


@pytest.fixture
def server(local, monkeypatch):
    monkeypatch.setattr(tenacity.nap.time, "sleep", lambda seconds: None)
    with Loopback(local) as running:
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


def test_scores_over_echo_equal_local_ones(local, server):
    model = ServerModel("smollm2", server.url, render=local.render)
    prompts, given = ["The capital of France is", CHAT], [[" Paris.", " London."], ["Paris", "The moon"]]
    mine, theirs = local.score(prompts, given), model.score(prompts, given)
    for a, b in zip(mine, theirs, strict=True):
        for x, y in zip(a, b, strict=True):
            assert y.logprobs == pytest.approx(x.logprobs, abs=1e-3)
    with pytest.raises(ValueError, match=r"continuation 1 of .* is empty"):
        model.score(["The capital"], [[" of", ""]])
    with pytest.raises(ValueError, match="render="):
        ServerModel("smollm2", server.url).score([CHAT], [["Paris"]])


def test_trouble_midway_is_tried_again(local, server):
    server.troubles = [503, "rubbish", "hang up", 429, "empty"]
    model = ServerModel("smollm2", server.url, concurrency=1)
    assert "Paris" in model.generate(["The capital of France is"], Sampling(max_new_tokens=4))[0].text
    assert len(server.requests) == 6


def test_a_server_that_stays_down_loses_nothing_and_is_asked_nothing_twice(local, server, tmp_path):
    prompts = [f"{n} is a" for n in ("Rome", "Oslo", "Lima", "Bern")]
    model = ServerModel("smollm2", server.url, concurrency=1, retries=1)
    server.troubles = [None, None, 500, 500]
    with pytest.raises(ConnectionError, match=r"failed 2 times.*500"):
        Recorded(model, tmp_path / "r.jsonl").generate(prompts, Sampling(max_new_tokens=2))
    before = len(server.requests)
    found = Recorded(model, tmp_path / "r.jsonl").generate(prompts, Sampling(max_new_tokens=2))
    assert len(server.requests) - before == 2
    assert [g.tokens for g in found] == [g.tokens for g in local.generate(prompts, Sampling(max_new_tokens=2))]


def test_refusals_and_missing_probabilities_are_told_at_once(local, server, monkeypatch):
    model = ServerModel("smollm2", server.url)
    server.troubles = [400]
    with pytest.raises(ValueError, match="refused: 400"):
        model.generate(["a"])
    for answer in ({"choices": [{"text": "b"}]}, {"choices": [{"message": {"content": "b"}}]}):
        monkeypatch.setattr(server, "answer", lambda path, body, answer=answer: answer)
        with pytest.raises(ValueError, match="no log-probabilities"):
            model.generate(["a" if "text" in answer["choices"][0] else CHAT])
    monkeypatch.setattr(server, "answer", lambda path, body: {"choices": [{"text": "b"}]})
    with pytest.raises(ValueError, match="echo"):
        model.score(["a"], [[" b"]])
    assert len(server.requests) == 4  # none was tried again


def test_a_server_that_is_not_there_is_named():
    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1:9"):
        ServerModel("m", "http://127.0.0.1:9/v1", retries=0).generate(["a"])
    with pytest.raises(ValueError, match="http://"):
        ServerModel("m", "localhost:8000")


def test_a_slow_server_runs_into_the_time_limit(local, server, monkeypatch):
    monkeypatch.setattr(server, "answer", lambda path, body: threading.Event().wait(0.6))
    with pytest.raises(ConnectionError, match="Timeout"):
        ServerModel("m", server.url, timeout=0.2, retries=0).generate(["a"])


def test_tokens_are_estimated_from_above_or_counted_by_the_users_tokenizer(local):
    text = "An estimate that is a little too high is the safe one."
    model = ServerModel("m")
    assert model.count_tokens(text) >= local.count_tokens(text)
    assert ServerModel("m", count=len).count_tokens(text) == len(text)
    assert model.count_tokens(CHAT) > 5
