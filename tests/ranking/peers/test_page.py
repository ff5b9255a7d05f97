"""A node's page: it finds and takes clicks, escapes what peers send, and listens to nobody else's page."""

import asyncio
import re
import threading
from contextlib import contextmanager

import httpx
import pytest

pytest.importorskip("ipv8")
from browser import needs_chromium, opened
from rankwise.data.items import Item
from rankwise.ranking import Click, PeerNode

EVIL = "<img src=x onerror=alert(1)>\"'&"
ITEMS = [Item(id="s1", title="Slow Water", artist="Ann"), Item(id="s2", title=EVIL, tags=("water",))]


@contextmanager
def page(folder, **options):
    """A node's page, served by a thread; yields its address and the node."""
    started, told, found = threading.Event(), None, {}

    async def serve():
        nonlocal told
        told = asyncio.Event()
        node = PeerNode(folder, ITEMS, host="127.0.0.1", port=0, page=0, swap=0, **options)
        async with node:
            found["node"], found["loop"] = node, asyncio.get_running_loop()
            started.set()
            await told.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert started.wait(30)
    try:
        yield found["node"].page_at, found["node"]
    finally:
        found["loop"].call_soon_threadsafe(told.set)
        thread.join(30)


def form(text, item):
    """What a browser would send when the button beside an item is pressed."""
    token = re.search(r'name="token" value="([^"]+)"', text)[1]
    return {"token": token, "q": "water", "item": item}


def test_a_click_on_the_page_feeds_the_next_list(tmp_path):
    with page(tmp_path / "node") as (at, node):
        shown = httpx.get(at, params={"q": "Water"})
        assert shown.text.index("Slow Water") < shown.text.index("&lt;img")
        done = httpx.post(at + "click", data=form(shown.text, "s2"), headers={"Origin": at.rstrip("/")})
        assert done.status_code == 303
        assert node.community.state.state[0][2:4] == ("water", "s2")
        assert node.community.state.state[0].signature
        again = httpx.get(at + done.headers["Location"].lstrip("/")).text
        assert again.index("&lt;img") < again.index("Slow Water")
        assert "Noted" in again
        assert httpx.get(at + "state").json()["clicks"] == 1


def test_what_peers_send_is_text_and_stays_text(tmp_path):
    with page(tmp_path / "node", isolation=1) as (at, node):
        node.community.state.merge([Click("eve", 0, "water", EVIL)])
        found = httpx.get(at, params={"q": "water"})
        assert "<img" not in found.text
        assert found.text.count("&lt;img src=x onerror=alert(1)&gt;") >= 2
        assert "<script" not in httpx.get(at, params={"q": "<script>alert(1)</script>"}).text
        policy = found.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "script" not in policy
        assert found.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    ("headers", "token"),
    [
        ({}, True),
        ({"Origin": "null"}, True),
        ({"Origin": "http://evil.example"}, True),
        ({"Origin": "https://{host}"}, True),
        ({"Origin": "http://{host}"}, False),
    ],
)
def test_a_click_from_another_page_is_refused(tmp_path, headers, token):
    with page(tmp_path / "node") as (at, node):
        data = form(httpx.get(at, params={"q": "water"}).text, "s1")
        if not token:
            data["token"] = "guess"
        host = at.split("/")[2]
        done = httpx.post(at + "click", data=data, headers={k: v.format(host=host) for k, v in headers.items()})
        assert done.status_code == 403
        assert len(node.community.state) == 0


@pytest.mark.parametrize(
    ("host", "status"), [("evil.example", 403), ("localhost", 200), ("127.0.0.1:5", 200), ("", 403)]
)
def test_a_foreign_name_that_points_here_is_refused(tmp_path, host, status):
    with page(tmp_path / "node") as (at, _):
        assert httpx.get(at, headers={"Host": host}).status_code == status


@pytest.mark.parametrize("item", ["none", "", "s1\x00"])
def test_an_item_that_nobody_has_is_no_click(tmp_path, item):
    with page(tmp_path / "node") as (at, node):
        data = form(httpx.get(at, params={"q": "water"}).text, item)
        done = httpx.post(at + "click", data=data, headers={"Origin": at.rstrip("/")})
        assert done.status_code == 400
        assert "neither in the library" in done.text
        assert len(node.community.state) == 0


def test_a_query_that_cannot_be_asked_is_answered_with_why(tmp_path):
    with page(tmp_path / "node") as (at, _):
        assert "holds no word" in httpx.get(at, params={"q": "?!"}).text
        assert "at most 200 are taken" in httpx.get(at, params={"q": "x" * 500}).text
        assert "Nothing found" in httpx.get(at, params={"q": "zebra"}).text
        assert httpx.post(at + "click", content=b"x" * 20_000, headers={"Origin": at.rstrip("/")}).status_code in (
            403,
            413,
        )
        assert httpx.get(at + "other").status_code == 404
        assert httpx.put(at).status_code == 405


def test_the_page_is_reached_from_this_machine_alone_by_default(tmp_path):
    with page(tmp_path / "node") as (at, _):
        assert at.startswith("http://127.0.0.1:")


@needs_chromium
@pytest.mark.parametrize("width", [1280, 390])
def test_a_person_searches_and_chooses_in_a_browser(tmp_path, width):
    with page(tmp_path / "node") as (at, node), opened() as browser:
        tab = browser.new_page(viewport={"width": width, "height": 800})
        said = []
        tab.on("console", lambda message: said.append(message.text))
        tab.on("dialog", lambda dialog: said.append(dialog.message))
        ready = "document.activeElement.name === 'q'"  # who is quicker than the focus is told so on the console
        tab.goto(at)
        tab.wait_for_function(ready)
        tab.fill("input[name=q]", "water")
        tab.keyboard.press("Enter")
        tab.wait_for_selector("li")
        tab.wait_for_function(ready)
        assert tab.locator("li").count() == 2
        assert tab.locator("img").count() == 0
        tab.click("li:nth-child(2) button")
        tab.wait_for_selector("[role=status]")
        assert EVIL in tab.locator("li").first.inner_text()
        assert len(node.community.state) == 1
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert said == []


@needs_chromium
def test_another_site_in_the_same_browser_can_neither_click_nor_read(tmp_path):
    from http.server import BaseHTTPRequestHandler, HTTPServer

    with page(tmp_path / "node") as (at, node):
        body = (
            f'<form method="post" action="{at}click"><input name="q" value="water"><input name="item" value="s1">'
            f"</form><script>fetch('{at}state').then(r => r.text()).then(t => document.title = t)"
            ".catch(() => document.title = 'blocked'); setTimeout(() => document.forms[0].submit(), 500)</script>"
        ).encode()

        class Evil(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        server = HTTPServer(("127.0.0.1", 0), Evil)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            with opened() as browser:
                tab = browser.new_page()
                tab.goto(f"http://localhost:{server.server_port}/")
                tab.wait_for_function("document.title != ''")
                assert tab.title() == "blocked"
                tab.wait_for_url(at + "click")
                assert "this page alone" in tab.content()
                assert len(node.community.state) == 0
        finally:
            server.shutdown()


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("application/x-www-form-urlencoded", b"q=%FF&item=\xff"),
        ("application/x-www-form-urlencoded; charset=none", b"q=a"),
        ("multipart/form-data; boundary=x", b"q=a"),
        ("multipart/form-data", b"q=a"),
    ],
)
def test_a_form_that_is_none_is_said_to_be_none(tmp_path, kind, content):
    with page(tmp_path / "node") as (at, _):
        headers = {"Origin": at.rstrip("/"), "Content-Type": kind}
        done = httpx.post(at + "click", content=content, headers=headers)
        assert (done.status_code, done.text) == (400, "this is no form of the page: search again")


def test_of_a_very_long_title_its_beginning_is_shown(tmp_path, monkeypatch):
    long = Item(id="s1", title="Water " + "very long " * 5_000, artist="A" * 5_000)
    monkeypatch.setitem(globals(), "ITEMS", [long])
    with page(tmp_path / "node") as (at, _):
        shown = httpx.get(at, params={"q": "water"}).text
        assert "Water very long" in shown
        assert len(shown) < 5_000


def test_a_double_click_counts_once_and_the_next_list_counts_anew(tmp_path):
    with page(tmp_path / "node") as (at, node):
        for clicks in (1, 2):
            text = httpx.get(at, params={"q": "water"}).text
            data = form(text, "s2") | {"once": re.search(r'name="once" value="([^"]+)"', text)[1]}
            for _ in range(2):
                assert httpx.post(at + "click", data=data, headers={"Origin": at.rstrip("/")}).status_code == 303
            assert len(node.community.state) == clicks
