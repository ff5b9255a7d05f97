"""Which secret goes where, and that none is ever part of a message."""

import httpx
import pytest

from prompting.loopback import Loopback
from rankwise.prompting.server_address import address
from rankwise.prompting.server_model import ServerModel

FAR, NEAR, OPENAI = "http://gpu.example:8000/v1", "http://127.0.0.1:8000/v1", "https://api.openai.com/v1"


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch):
    for name in ("OPENAI_API_KEY", "RANKWISE_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("variable", "url", "sent"),
    [
        ("OPENAI_API_KEY", OPENAI, True),
        ("OPENAI_API_KEY", NEAR, True),
        ("OPENAI_API_KEY", "http://localhost:8000/v1", True),
        ("OPENAI_API_KEY", "http://[::1]:8000/v1", True),
        ("OPENAI_API_KEY", "https://gpu.example/v1", False),
        ("OPENAI_API_KEY", "https://api.openai.com.evil.example/v1", False),
        ("OPENAI_API_KEY", "http://api.openai.com/v1", False),
        ("OPENAI_API_KEY", FAR, False),
        ("RANKWISE_API_KEY", OPENAI, True),
        ("RANKWISE_API_KEY", "https://gpu.example/v1", True),
        ("RANKWISE_API_KEY", NEAR, True),
        ("RANKWISE_API_KEY", FAR, False),
        ("RANKWISE_API_KEY", "http://127.0.0.1.evil.example/v1", False),
    ],
)
def test_a_key_of_the_environment_goes_only_where_it_is_meant_to(monkeypatch, variable, url, sent):
    monkeypatch.setenv(variable, "sk-secret")
    found = address(url)
    assert (found.headers == {"Authorization": "Bearer sk-secret"}) is sent
    assert bool(found.keyless) is not sent
    assert "sk-secret" not in repr(found)


def test_a_named_variable_and_a_given_key_are_refused_over_plain_http_elsewhere(monkeypatch):
    monkeypatch.setenv("MY_KEY", " sk-mine\n")
    assert address("https://gpu.example/v1", key_variable="MY_KEY").headers == {"Authorization": "Bearer sk-mine"}
    for options in ({"key_variable": "MY_KEY"}, {"api_key": "sk-mine"}):
        assert address(NEAR, **options).headers
        with pytest.raises(ValueError, match="not sent over plain http to gpu"):
            address(FAR, **options)
    with pytest.raises(ValueError, match="no OTHER_KEY"):
        address(NEAR, key_variable="OTHER_KEY")
    with pytest.raises(ValueError, match="give one of them"):
        address(NEAR, key_variable="MY_KEY", api_key="a")
    monkeypatch.setenv("RANKWISE_API_KEY", "sk-other")
    assert address(NEAR, api_key="").headers == {}  # none is wanted


@pytest.mark.parametrize("key", ["sk-sec\r\nret", "sk-sec ret", "sk-secrét", "sk-\x00sec"])
def test_a_key_with_characters_that_no_key_has_is_refused_without_being_shown(key):
    with pytest.raises(ValueError, match="characters that no key has") as caught:
        ServerModel("m", NEAR, api_key=key)
    assert "sec" not in str(caught.value).replace("secret", "")


def test_a_password_in_the_address_is_sent_but_never_shown(monkeypatch):
    monkeypatch.setenv("RANKWISE_API_KEY", "sk-other")
    with Loopback() as server:
        url = server.url.replace("http://", "http://me:pass%20word@")
        model = ServerModel("m", url)
        model.generate(["a"])
        sent = server.requests[0]["headers"]["Authorization"]
        assert (
            httpx.BasicAuth("me", "pass word")
            .auth_flow(httpx.Request("GET", "http://x"))
            .__next__()
            .headers["Authorization"]
            == sent
        )
        server.troubles = [(400, b"who is pass word, " + sent.encode())]
        with pytest.raises(ValueError, match="refused") as caught:
            model.generate(["a"])
        for secret in ("pass", sent.split()[1]):
            assert secret not in str(caught.value)
        assert "pass" not in str(model.identity())
    with pytest.raises(ConnectionError) as caught:
        ServerModel("m", "http://me:hidden@127.0.0.1:9/v1").generate(["a"])
    assert "hidden" not in str(caught.value)
    with pytest.raises(ValueError, match="not sent over plain http") as caught:
        ServerModel("m", "http://me:hidden@gpu.example/v1")
    assert "hidden" not in str(caught.value)
    with pytest.raises(ValueError, match="both a key and a password"):
        ServerModel("m", "https://me:hidden@gpu.example/v1", api_key="a")


def test_what_the_server_says_is_shown_without_the_key_and_without_control_characters():
    with Loopback() as server:
        server.troubles = [(401, b"wrong key sk-secret \x1b[2J\x07 given")]
        with pytest.raises(ValueError, match=r"wrong key \[key\]") as caught:
            ServerModel("m", server.url, api_key="sk-secret").generate(["a"])
    assert not {"\x1b", "\x07"} & set(str(caught.value))


def test_why_a_key_was_not_sent_is_said_when_the_server_wants_one(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setattr("rankwise.prompting.server_address._local", lambda host: False)
    with Loopback() as server:
        server.troubles = [401]
        with pytest.raises(ValueError, match=r"OPENAI_API_KEY goes to api\.openai\.com alone: set RANKWISE_API_KEY"):
            ServerModel("m", server.url).generate(["a"])
        assert "Authorization" not in server.requests[0]["headers"]


def test_a_key_for_this_machine_does_not_pass_through_a_proxy(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    with Loopback() as server:
        assert ServerModel("m", server.url, api_key="sk-secret").generate(["a"])[0].text == "b"


@pytest.mark.parametrize(
    "url",
    ["localhost:8000", "ftp://h/v1", "http:///v1", "http://h/v1?key=secret", "https://h/v1#x", "http://h:99999999/v1"],
)
def test_addresses_that_are_none_are_named(url):
    with pytest.raises(ValueError, match=r"address|leave it out") as caught:
        ServerModel("m", url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "local", "kept"),
    [
        ("http://127.0.0.1:8000/v1", True, "http://127.0.0.1:8000/v1/"),
        ("http://127.9.9.9/v1/", True, "http://127.9.9.9/v1/"),
        ("http://[::1]/v1", True, "http://[::1]/v1/"),
        ("http://localhost/v1//", True, "http://localhost/v1/"),
        ("http://a.localhost/v1", True, "http://a.localhost/v1/"),
        ("http://alocalhost/v1", False, "http://alocalhost/v1/"),
        ("http://10.0.0.1", False, "http://10.0.0.1/"),
        ("https://me:pass@gpu.example:1/v1", False, "https://gpu.example:1/v1/"),
        ("http://h:65535/v1", False, "http://h:65535/v1/"),
    ],
)
def test_an_address_ends_in_a_slash_without_a_password(url, local, kept):
    found = address(url)
    assert (found.url, found.local) == (kept, local)
    assert "pass" not in repr(found)


@pytest.mark.parametrize("url", ["http://h:65536/v1", "http://h:0/v1", "https:///v1", "", "h", 3])
def test_ports_and_hosts_are_what_there_is(url):
    with pytest.raises(ValueError, match="address"):
        address(url)


def test_all_that_is_secret_is_struck_out_and_what_is_said_is_cut():
    found = address("https://me:hidden@gpu.example/v1")
    encoded = found.headers["Authorization"].removeprefix("Basic ")
    assert found.secrets == ("hidden", encoded)
    assert found.clean(f"hidden {encoded} hidden \x1b") == "[key] [key] [key] ".rstrip() + found.clean(" \x1b")
    assert found.clean("x" * 600) == "x" * 500
    assert found.clean("x" * 9 + "hidden", 12) == "x" * 9 + "[ke"  # struck out before it is cut
    assert address("https://me@gpu.example/v1").secrets != ("",)
    assert address("https://gpu.example/v1").secrets == ()
    assert address("https://gpu.example/v1", api_key=" sk-a\n").secrets == ("sk-a",)


def test_the_own_variable_comes_before_openais(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-theirs")
    monkeypatch.setenv("RANKWISE_API_KEY", "sk-ours")
    for url in (OPENAI, NEAR, "https://gpu.example/v1"):
        assert address(url).headers == {"Authorization": "Bearer sk-ours"}
        assert address(url).keyless == ""
    assert address(FAR).keyless == "RANKWISE_API_KEY is not sent over plain http to another machine"
    assert address(FAR).headers == {}
    monkeypatch.delenv("RANKWISE_API_KEY")
    assert address(OPENAI).headers == {"Authorization": "Bearer sk-theirs"}
    told = "OPENAI_API_KEY goes to api.openai.com alone: set RANKWISE_API_KEY, or name the variable"
    assert address(FAR).keyless == address("https://gpu.example/v1").keyless == told
    monkeypatch.delenv("OPENAI_API_KEY")
    assert (address(FAR).keyless, address(FAR).headers) == ("", {})
    assert address(FAR, api_key="").headers == {}
    monkeypatch.setenv("EMPTY", "")
    with pytest.raises(ValueError, match="no EMPTY"):
        address(NEAR, key_variable="EMPTY")
    with pytest.raises(ValueError, match="both api_key and key_variable"):
        address(NEAR, key_variable="EMPTY", api_key="")


def test_a_password_alone_keeps_the_environments_key_at_home(monkeypatch):
    monkeypatch.setenv("RANKWISE_API_KEY", "sk-other")
    found = address("https://me:hidden@gpu.example/v1")
    assert found.headers["Authorization"].startswith("Basic ")
    assert found.keyless == ""
    assert address("https://me:hidden@gpu.example/v1", api_key="").headers == found.headers
