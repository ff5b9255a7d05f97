"""A node's page: a search in the browser, whose clicks feed the ranking.

Only this machine reaches it unless told otherwise. What peers sent is text and stays text. A click is taken from this
page alone: the browser must say that it comes from here, and the form must carry a token that no other page can read;
a name other than this machine's is refused, so that no foreign name can be pointed here.
"""

from __future__ import annotations

import ipaddress
import secrets
import socket
from collections import deque
from typing import TYPE_CHECKING

from aiohttp import web
from aiohttp.typedefs import Handler
from jinja2 import Environment

if TYPE_CHECKING:
    from rankwise.ranking.g_rank import Found
    from rankwise.ranking.peers.community import GRankCommunity

WHY = {
    "clicks": "clicked by you and by peers like you",
    "library": "in your library",
    "related": "clicked after a similar query",
    "popular": "clicked by many nodes",
}
LONGEST = 200  # letters of a title that are shown
POLICY = "default-src 'none'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ query or "Search" }}</title>
<style nonce="{{ nonce }}">
 body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 44rem; margin: 2rem auto;
        padding: 0 1rem }
 h1 { font-size: 1.5rem }
 form.ask { display: flex; gap: .5rem } form.ask input { flex: 1; min-width: 0; font: inherit; padding: .5rem }
 button { font: inherit; padding: .4rem .9rem; cursor: pointer }
 ol { list-style: none; padding: 0 } li { display: flex; gap: 1rem; align-items: center; padding: .6rem 0;
      border-bottom: 1px solid #ddd } li div { flex: 1; min-width: 0; overflow-wrap: anywhere }
 small, .note { color: #595959 } .bad { color: #a40000 }
 footer { margin-top: 2rem }
</style></head><body>
<h1>Search among peers</h1>
<form class="ask" action="/" method="get" role="search">
 <input name="q" value="{{ query }}" maxlength="200" aria-label="Query" placeholder="title, artist or tag" autofocus>
 <button>Search</button></form>
{% if error %}<p class="bad" role="alert">{{ error }}</p>{% endif %}
{% if clicked %}<p class="note" role="status">Noted: your next search, and your peers', will know.</p>{% endif %}
{% if query and not found and not error %}<p>Nothing found: no item has these words, and no peer clicked on
anything yet.</p>{% endif %}
<ol>{% for one in found %}
 <li><div><bdi>{{ one.title }}</bdi>{% if one.artist %} · <bdi>{{ one.artist }}</bdi>{% endif %}<br>
 <small>{{ one.why }}{% if one.unknown %}; not in your library{% endif %}</small></div>
 <form action="/click" method="post"><input type="hidden" name="token" value="{{ token }}">
 <input type="hidden" name="once" value="{{ nonce }}">
 <input type="hidden" name="q" value="{{ query }}"><input type="hidden" name="item" value="{{ one.id }}">
 <button aria-label="Choose {{ one.title }}">Choose</button></form></li>{% endfor %}</ol>
<footer class="note">{{ peers }} peer{{ "" if peers == 1 else "s" }} connected · {{ "{:,}".format(clicks) }}
click{{ "" if clicks == 1 else "s" }} of
{{ "{:,}".format(nodes) }} node{{ "" if nodes == 1 else "s" }} known · {{ "{:,}".format(refused) }} packets
refused{% if trouble %}<br><span class="bad">news of peers are lost: {{ trouble }}</span>{% endif %}</footer>
</body></html>
"""
_TEMPLATE = Environment(autoescape=True).from_string(_PAGE)


class Page:
    """The page of one node.

    Parameters
    ----------
    community : GRankCommunity
        The node.

    Examples
    --------
    >>> from rankwise.ranking.peers.page import WHY
    >>> sorted(WHY)
    ['clicks', 'library', 'popular', 'related']
    """

    def __init__(self, community: GRankCommunity) -> None:
        self.community = community
        self.token = secrets.token_urlsafe()
        self._chosen: deque[tuple[str, str]] = deque(maxlen=100)  # so that a double click is one
        self.names = {"localhost", socket.gethostname().lower()}
        app = web.Application(client_max_size=8_192, middlewares=[self._guard])
        app.add_routes(
            [web.get("/", self._show, name="show"), web.post("/click", self._click), web.get("/state", self._state)]
        )
        self._runner = web.AppRunner(app, access_log=None)

    async def start(self, host: str, port: int) -> str:
        """Listen; returns the address to open in a browser."""
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()
        host, port = self._runner.addresses[0][:2]
        shown = f"[{host}]" if ":" in host else host
        return f"http://{'localhost' if host in ('0.0.0.0', '::') else shown}:{port}/"

    async def stop(self) -> None:
        """Stop listening."""
        await self._runner.cleanup()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if not self._is_here(request.host):
            raise web.HTTPForbidden(text="this page is reached by the name or the address of its own machine")
        if request.method == "POST" and request.headers.get("Origin") != f"http://{request.host}":
            raise web.HTTPForbidden(text="clicks are taken from this page alone")
        response = await handler(request)
        response.headers.update({
            "X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin", "Cache-Control": "no-store",
            "Cross-Origin-Resource-Policy": "same-origin",
        })  # fmt: skip
        return response

    def _is_here(self, host: str) -> bool:
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        try:
            return bool(ipaddress.ip_address(name.strip("[]")))
        except ValueError:
            return name.lower() in self.names

    async def _show(self, request: web.Request) -> web.Response:
        query, error, found = request.query.get("q", ""), "", []
        try:
            found = self.community.search(query) if query else []
        except ValueError as wrong:
            error = str(wrong)
        state, nonce = self.community.state, secrets.token_urlsafe(12)
        text = _TEMPLATE.render(
            query=query, error=error, found=[self._row(f) for f in found], nonce=nonce, token=self.token,
            clicked="clicked" in request.query,
            peers=len(self.community.get_peers()), clicks=len(state), nodes=len(state.nodes()),
            refused=self.community.refused.total(), trouble=self.community.trouble,
        )  # fmt: skip
        policy = f"{POLICY}; style-src 'nonce-{nonce}'"
        return web.Response(text=text, content_type="text/html", headers={"Content-Security-Policy": policy})

    def _row(self, found: Found) -> dict[str, object]:
        item = self.community.state.library.get(found.item)
        title, artist = (_short(item.title or item.id), _short(item.artist)) if item else (found.item, "")
        return {"id": found.item, "title": title, "artist": artist, "why": WHY[found.why], "unknown": item is None}

    async def _click(self, request: web.Request) -> web.Response:
        try:
            form = await request.post()
        except (ValueError, LookupError) as wrong:
            raise web.HTTPBadRequest(text="this is no form of the page: search again") from wrong
        query, item, token, once = (str(form.get(name, "")) for name in ("q", "item", "token", "once"))
        if not secrets.compare_digest(token.encode(), self.token.encode()):
            raise web.HTTPForbidden(text="this form is of an earlier start of the node: search again")
        try:
            if not once or (once, item) not in self._chosen:
                self.community.click(query, item)
            self._chosen.append((once, item))
        except ValueError as wrong:
            raise web.HTTPBadRequest(text=str(wrong)) from wrong
        except OSError as wrong:
            raise web.HTTPInsufficientStorage(text=str(wrong)) from wrong
        raise web.HTTPSeeOther(request.app.router["show"].url_for().with_query(q=query, clicked="1"))

    async def _state(self, request: web.Request) -> web.Response:
        state = self.community.state
        return web.json_response({
            "node": state.node, "clicks": len(state), "nodes": len(state.nodes()),
            "peers": len(self.community.get_peers()), "refused": dict(self.community.refused),
            "trouble": self.community.trouble,
        })  # fmt: skip


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
