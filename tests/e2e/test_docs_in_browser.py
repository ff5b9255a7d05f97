"""The pages as a reader meets them, at a desk and on a phone: opened in headless Chromium."""

import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from browser import needs_chromium, opened
from rankwise.catalogue import ready

ROOT = Path(__file__).parents[2]
WIDTHS = {"desktop": 1280, "phone": 390}
METHODS = [f"methods/{e.id}/" for e in ready()]
FIRST = ["", "gallery/", "methods/", "how-to/adapt/", *METHODS]

pytestmark = [pytest.mark.slow, needs_chromium]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The address of the built pages."""
    pytest.importorskip("mkdocs", reason="pip install '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    with opened() as browser:
        yield browser


@pytest.fixture(scope="module", params=WIDTHS)
def page(request, browser):
    """A page of this width; what it complained of and asked for is noted on it."""
    page = browser.new_page(viewport={"width": WIDTHS[request.param], "height": 850})
    page.said, page.asked = [], []
    page.on("console", lambda m: page.said.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: page.said.append(str(e)))
    page.on("request", lambda r: page.asked.append(r.url))
    yield page
    page.close()


@pytest.mark.parametrize("where", FIRST, ids=lambda where: where.strip("/") or "front")
def test_a_page_fits_shows_its_pictures_and_equations_and_complains_of_nothing(site, page, where, tmp_path):
    page.said.clear()
    page.asked.clear()
    answer = page.goto(site + where)
    assert answer.ok
    page.evaluate("for (const i of document.images) i.loading = 'eager'")
    page.wait_for_load_state("networkidle")
    page.screenshot(path=str(tmp_path / "page.png"), full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    widths = page.evaluate("[...document.querySelectorAll('article img')].map(i => i.naturalWidth)")
    assert all(w > 0 for w in widths)
    assert widths or where not in ("", "gallery/")
    # an equation is as high as its fractions and sums, one in a sentence at least as its letters (n has 7 pixels)
    heights, within = (
        page.evaluate(f"[...document.querySelectorAll('article {m}')].map(m => m.getBoundingClientRect().height)")
        for m in (".equation math", "span > math")
    )
    assert all(h > 10 for h in heights)
    assert all(h > 4 for h in within)
    assert heights or where not in METHODS
    assert "\\frac" not in page.locator("article").inner_text()
    assert page.said == []
    assert [u for u in page.asked if not u.startswith((site, "data:"))] == []
