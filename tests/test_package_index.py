"""Files of a release, through the indexes that pip is configured for, without a build; a small index on loopback."""

import base64
import hashlib
import io
import json
import subprocess
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rankwise import package_index
from rankwise.package_index import fetch, is_file_of, pip_settings, shown


def sdist(marker):
    """A source archive whose ``setup.py`` leaves a file where it runs."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, text in [("thing-1.0/setup.py", f"open({str(marker)!r}, 'w')"), ("thing-1.0/data.txt", "the data")]:
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return packed.getvalue()


@pytest.fixture
def index(monkeypatch, tmp_path):
    """Pages by path; everything that was asked for; pip's settings point here and nowhere else."""
    pages, asked = {}, []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers.get("Authorization"), self.headers.get("Accept")))
            status, kind, body = pages.get(self.path, (404, "text/plain", b"none"))
            self.send_response(status)
            self.send_header("Content-Type" if status < 300 or status > 399 else "Location", kind)
            self.end_headers()
            for piece in [body] if isinstance(body, bytes) else body():
                self.wfile.write(piece)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for key in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX", "PIP_PROXY", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(key, raising=False)
    (tmp_path / "pip.conf").write_text(f"[global]\nindex-url = http://127.0.0.1:{server.server_port}/simple\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    settings = pip_settings() | {"extra-index-url": "", "find-links": ""}  # nothing of this machine's own
    settings["index-url"] = f"http://127.0.0.1:{server.server_port}/simple"
    monkeypatch.setattr(package_index, "pip_settings", lambda: settings)
    yield pages, asked, settings
    server.shutdown()


def page(kind, url, sha256=None):
    if kind == "html":
        mark = f"#sha256={sha256}" if sha256 else ""
        return 200, "text/html", f'<html><a href="{url}{mark}">thing</a></html>'.encode()
    body = {"files": [{"filename": "x", "url": url, "hashes": {"sha256": sha256} if sha256 else {}}]}
    return 200, "application/vnd.pypi.simple.v1+json", json.dumps(body).encode()


@pytest.mark.parametrize("kind", ["html", "json"])
@pytest.mark.parametrize("stated", [True, False])
def test_the_file_itself_is_fetched_and_nothing_of_it_runs(index, tmp_path, kind, stated):
    pages, asked, _ = index
    data = sdist(tmp_path / "ran")
    sha256 = hashlib.sha256(data).hexdigest()
    pages["/simple/thing/"] = page(kind, "../../files/thing-1.0.tar.gz", sha256 if stated else None)
    pages["/files/thing-1.0.tar.gz"] = (200, "application/gzip", data)
    assert fetch("Thing", "1.0", sha256, tmp_path / "got", source=True) == "thing-1.0.tar.gz"
    assert (tmp_path / "got").read_bytes() == data
    assert not (tmp_path / "ran").exists()
    assert [path for path, *_ in asked] == ["/simple/thing/", "/files/thing-1.0.tar.gz"]
    assert asked[0][2].startswith("application/vnd.pypi.simple.v1+json")


def test_a_file_with_another_hash_is_refused_and_one_that_is_stated_to_have_it_is_not_even_fetched(index, tmp_path):
    pages, asked, _ = index
    data = sdist(tmp_path / "ran")
    pages["/simple/thing/"] = page("json", "/thing-1.0.tar.gz")
    pages["/thing-1.0.tar.gz"] = (200, "application/gzip", data)
    with pytest.raises(ValueError, match=rf"thing-1\.0\.tar\.gz has SHA-256 {hashlib.sha256(data).hexdigest()}"):
        fetch("thing", "1.0", "0" * 64, tmp_path / "got", source=True)
    asked.clear()
    pages["/simple/thing/"] = page("json", "/thing-1.0.tar.gz", "1" * 64)
    with pytest.raises(ValueError, match="not using it"):
        fetch("thing", "1.0", "0" * 64, tmp_path / "got", source=True)
    assert [path for path, *_ in asked] == ["/simple/thing/"]
    assert not (tmp_path / "ran").exists()


def test_a_second_index_serves_what_the_first_has_not(index, tmp_path):
    pages, _, settings = index
    sha256 = hashlib.sha256(b"wheel").hexdigest()
    settings["extra-index-url"] = settings["index-url"].replace("simple", "other")
    pages["/other/thing/"] = page("html", "thing-1.0-py3-none-any.whl", sha256)
    pages["/other/thing/thing-1.0-py3-none-any.whl"] = (200, "application/zip", b"wheel")
    fetch("thing", "1.0", sha256, tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == b"wheel"


@pytest.mark.parametrize("how", ["folder", "page", "index"])
def test_folders_and_pages_of_this_machine_serve_too(index, tmp_path, how):
    _, asked, settings = index
    sha256 = hashlib.sha256(b"wheel").hexdigest()
    kept = tmp_path / "kept-ä" / "thing"
    kept.mkdir(parents=True)
    (kept / "thing-1.0-py3-none-any.whl").write_bytes(b"wheel")
    settings["no-index"] = "" if how == "index" else "true"
    settings["find-links"] = str(kept)
    if how != "folder":
        (kept / "index.html").write_text(f'<a href="thing-1.0-py3-none-any.whl#sha256={sha256}">x</a>')
    if how == "page":
        settings["find-links"] = (kept / "index.html").as_uri()
    if how == "index":
        settings["index-url"], settings["find-links"] = kept.parent.as_uri(), ""
    fetch("thing", "1.0", sha256, tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == b"wheel"
    assert not asked


def test_credentials_go_to_their_own_host_and_into_no_message(index, tmp_path):
    pages, asked, settings = index
    settings["index-url"] = settings["index-url"].replace("//", "//me:secret@")
    sha256 = hashlib.sha256(b"wheel").hexdigest()
    pages["/simple/thing/"] = page("json", "/thing-1.0-py3-none-any.whl", sha256)
    pages["/thing-1.0-py3-none-any.whl"] = (200, "application/zip", b"wheel")
    fetch("thing", "1.0", sha256, tmp_path / "got")
    basic = "Basic " + base64.b64encode(b"me:secret").decode()
    assert [key for _, key, _ in asked] == [basic, basic]
    elsewhere = f"http://localhost:{settings['index-url'].split(':')[-1].split('/')[0]}/elsewhere"
    pages["/thing-1.0-py3-none-any.whl"] = (302, elsewhere, b"")
    pages["/elsewhere"] = (200, "application/zip", b"wheel")
    asked.clear()
    fetch("thing", "1.0", sha256, tmp_path / "got")
    assert asked[-1][:2] == ("/elsewhere", None)
    pages.clear()
    with pytest.raises(OSError, match="404") as failed:
        fetch("thing", "1.0", sha256, tmp_path / "got")
    assert "secret" not in str(failed.value)


def test_an_index_can_neither_fill_the_disk_nor_hold_the_program(index, tmp_path, monkeypatch):
    pages, _, _ = index

    def drip():
        for _ in range(100):
            yield b"x" * 1000
            time.sleep(0.05)

    pages["/simple/thing/"] = page("json", "/thing-1.0-py3-none-any.whl")
    pages["/thing-1.0-py3-none-any.whl"] = (200, "application/zip", drip)
    monkeypatch.setattr(package_index, "FILE_SECONDS", 0.5)
    start = time.perf_counter()
    with pytest.raises(OSError, match="not read within"):
        fetch("thing", "1.0", "0" * 64, tmp_path / "got")
    assert time.perf_counter() - start < 3
    monkeypatch.setattr(package_index, "MOST_FILE", 1500)
    with pytest.raises(OSError, match="more than 1,500 bytes"):
        fetch("thing", "1.0", "0" * 64, tmp_path / "got")


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[" * 100_000,
        b'{"files": 3}',
        b'{"files": [3]}',
        b'{"files": [{}]}',
        b'{"files": [{"url": 3}]}',
        b"\xff",
        b"",
    ],
)
def test_a_broken_page_is_one_line_that_names_it(index, tmp_path, body):
    pages, _, _ = index
    pages["/simple/thing/"] = (200, "application/json", body)
    with pytest.raises(OSError, match=r"could not fetch thing==1\.0"):
        fetch("thing", "1.0", "0" * 64, tmp_path / "got")


def test_a_page_of_the_net_cannot_name_a_file_of_this_machine(index, tmp_path):
    pages, _, _ = index
    (tmp_path / "thing-1.0-py3-none-any.whl").write_bytes(b"wheel")
    pages["/simple/thing/"] = page("html", (tmp_path / "thing-1.0-py3-none-any.whl").as_uri())
    with pytest.raises(OSError, match="links to a file of this machine"):
        fetch("thing", "1.0", hashlib.sha256(b"wheel").hexdigest(), tmp_path / "got")


def test_the_release_is_told_from_its_neighbours():
    assert is_file_of("Some_Thing-1.0.tar.gz", "some.thing", "1.0", source=True)
    assert is_file_of("some_thing-1.0-py3-none-any.whl", "some-thing", "1.0", source=False)
    for name in ("some_thing-1.0.1.tar.gz", "some_thing-extra-1.0.tar.gz", "some_thing-1.0-py3-none-any.whl", "x"):
        assert not is_file_of(name, "some-thing", "1.0", source=True)
    for name in ("some_thing-1.0.1-py3-none-any.whl", "some_thing-1.0.tar.gz", "some_thing-1.0.zip"):
        assert not is_file_of(name, "some-thing", "1.0", source=False)


def test_settings_are_those_of_pip_and_a_variable_wins(monkeypatch, tmp_path):
    (tmp_path / "pip.conf").write_text(
        "[global]\nindex-url = https://a/simple\nextra-index-url =\n  https://b\n  https://c\ntimeout = 3\n"
        "[download]\ntimeout = 4\n[install]\ntimeout = 5\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.setenv("PIP_INDEX_URL", "https://d/simple")
    found = pip_settings()
    assert found["index-url"] == "https://d/simple"
    assert found["extra-index-url"].split() == ["https://b", "https://c"]
    assert found["timeout"] == "4"
    monkeypatch.setattr("sys.executable", "/bin/false")  # no pip here
    assert pip_settings()["index-url"] == "https://d/simple"


def test_a_pip_that_does_not_answer_is_one_error_and_holds_nobody_up(monkeypatch):
    def asleep(command, *, timeout, **options):
        assert timeout <= 60
        assert options["stdin"] == subprocess.DEVNULL  # so that it cannot ask either
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr("rankwise.package_index.subprocess.run", asleep)
    with pytest.raises(OSError, match="gives no answer within 60 seconds"):
        pip_settings()


def test_a_shown_address_has_no_password():
    assert shown("https://me:secret@host/simple") == "https://host/simple"
    assert shown("https://host/a@b") == "https://host/a@b"
