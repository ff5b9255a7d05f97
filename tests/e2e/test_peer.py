"""``rankwise peer`` in a terminal: it starts, is searched, is killed, and goes on where it was."""

import json
import os
import re
import signal
import subprocess
from contextlib import contextmanager

import httpx
import pytest

pytest.importorskip("ipv8")
from command import ENV, RANKWISE, rankwise


@pytest.fixture
def library(tmp_path):
    path = tmp_path / "items.csv"
    path.write_text("id,title,artist,tags\ns1,Slow Water,Ann,blues;live\ns2,Water Wheel,Bob,rock\n")
    return path


@contextmanager
def running(library, out, *args):
    """A node; yields its process and what it said when it was there."""
    words = [RANKWISE, "peer", "--library", library, "--out", out, "--host", "127.0.0.1", "--port", "0", "--page", "0"]
    process = subprocess.Popen(
        [*map(str, words), "--json", *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV
    )
    try:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        yield process, json.loads(line)
    finally:
        process.kill()
        process.communicate()


def choose(page, query, item):
    token = re.search(r'name="token" value="([^"]+)"', httpx.get(page, params={"q": query}).text)[1]
    data = {"token": token, "q": query, "item": item}
    assert httpx.post(page + "click", data=data, headers={"Origin": page.rstrip("/")}).status_code == 303


def test_a_killed_node_has_lost_no_click_and_is_the_same_node(tmp_path, library):
    with running(library, tmp_path / "node") as (process, told):
        assert told["event"] == "started"
        for item in ("s2", "s2", "s1"):
            choose(told["page"], "water", item)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    with running(library, tmp_path / "node") as (process, again):
        assert (again["node"], again["clicks"], again["items"]) == (told["node"], 3, 2)
        choose(again["page"], "water", "s2")
        process.send_signal(signal.SIGTERM)
        rest, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
        assert json.loads(rest) == {
            "event": "stopped", "node": told["node"], "clicks": 4, "nodes": 1, "refused": {}
        }  # fmt: skip


def test_two_nodes_learn_from_each_other_through_their_pages(tmp_path, library):
    with (
        running(library, tmp_path / "a") as (_, first),
        running(library, tmp_path / "b", "--peers", first["address"]) as (_, second),
    ):
        choose(first["page"], "water", "s2")
        choose(second["page"], "water", "s2")
        for _ in range(200):
            httpx.get(second["page"], params={"q": "water"})  # each search asks a peer
            told = httpx.get(second["page"] + "state").json()
            if told["clicks"] == 2:
                break
        assert (told["clicks"], told["nodes"], told["peers"]) == (2, 2, 1)


def test_what_a_person_is_told_fits_a_terminal_and_ends_on_interrupt(tmp_path, library):
    words = ["peer", "--library", library, "--out", tmp_path / "n", "--host", "127.0.0.1", "--port", "0", "--page", "0"]
    process = subprocess.Popen([RANKWISE, *map(str, words)], stdout=subprocess.PIPE, text=True, env=ENV)
    lines = [process.stdout.readline() for _ in range(5)]
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert [line.split()[0] for line in lines] == ["node", "peers", "page", "library", "stop"]
    assert max(map(len, "".join([*lines, rest]).replace(str(tmp_path), "").splitlines())) <= 80
    assert "kept" in rest


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--peers", "localhost:8090"], "is no IPv4 address and port"),
        (["--peers", "192.0.2.7"], "is no IPv4 address and port"),
        (["--peers", "192.0.2.7:-1"], "is no IPv4 address and port"),
        (["--peers", "192.0.2.7:0"], "is no IPv4 address and port"),
        (["--host", "::1"], "host='::1' is IPv6"),
        (["--port", "70000"], "port=70000"),
        (["--page", "-1"], "page=-1"),
        (["--cap", "0"], "cap=0"),
        (["--swap", "2"], "swap=2"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(tmp_path, library, args, said):
    done = rankwise("peer", "--library", library, "--out", tmp_path / "node", *args)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "node").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path, library):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years")
    done = rankwise("peer", "--library", library, "--out", tmp_path / "mine")
    assert done.returncode == 2
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
