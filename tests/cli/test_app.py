"""What every command prints, and what it says when it is cut short."""

import io
import subprocess
import sys

import pytest
import typer
from rich.console import Console
from rich.table import Table

from command import ENV
from rankwise.cli import app as shared
from rankwise.report.tables import markdown, terminal

HOSTILE = ["w3 [/b]", "[yes]", "[red]x", "a\x1b]0;title\x07b", "\x9b2Jgone", ":smile:", "x[link=http://a]y"]
SHOWN = ["w3 [/b]", "[yes]", "[red]x", "a]0;titleb", "2Jgone", ":smile:", "x[link=http://a]y"]


def printed(thing, console=shared.Plain, **options):
    out = io.StringIO()
    console(file=out, width=80, force_terminal=True, color_system=None, **options).print(thing)
    return out.getvalue()


@pytest.mark.parametrize(("text", "shown"), list(zip(HOSTILE, SHOWN, strict=True)))
def test_text_is_printed_as_it_is_but_for_control_characters(text, shown):
    assert printed(text) == shown + "\n"
    own = Table(text, box=None)
    own.add_row(text)
    assert printed(own).split("\n")[0].strip() == shown
    assert printed(own).split("\n")[1].strip() == shown


@pytest.mark.parametrize("console", [shared.Plain, Console])
def test_a_table_shows_every_cell_as_it_is_in_any_console(console):
    out = printed(terminal([HOSTILE[0], "b"], [[t, "1"] for t in HOSTILE], title=HOSTILE[1]), console)
    assert all(s in out for s in SHOWN)
    assert "\x9b" not in out
    assert "\x07" not in out


def test_a_markdown_table_keeps_its_columns_whatever_a_cell_holds():
    header, row = markdown(["a|b", "c"], [["x\ny", "1|2"]]).splitlines()[::2]
    assert (header, row) == ("| a\\|b | c |", "| x y | 1\\|2 |")


def interrupted(monkeypatch, capsys, *, promise):
    commands = typer.Typer(cls=shared.Commands)

    @commands.command()
    def work():
        if promise:
            shared.continues()
        raise KeyboardInterrupt

    commands.command()(lambda: None)
    monkeypatch.setattr(shared, "_continues", False)
    with pytest.raises(SystemExit) as left:
        commands(["work"])
    return left.value.code, capsys.readouterr().err


def test_an_interrupt_promises_to_continue_only_where_the_command_did(monkeypatch, capsys):
    assert interrupted(monkeypatch, capsys, promise=False) == (130, "interrupted\n")
    assert interrupted(monkeypatch, capsys, promise=True) == (130, "interrupted; the same command continues\n")


def test_the_installed_command_says_that_it_was_interrupted():
    code = (
        "import os, signal, rankwise.models.spectra as s\n"
        "s.layer_spectra = lambda *a, **k: os.kill(os.getpid(), signal.SIGINT)\n"
        "from rankwise.cli.main import run\nrun()"
    )
    done = subprocess.run([sys.executable, "-c", code, "inspect", "minilm"], capture_output=True, text=True, env=ENV)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (130, "interrupted")


def test_an_error_shows_a_path_with_brackets(tmp_path):
    path = tmp_path / "[/b] x.csv"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "rankwise",
            "quantile",
            "fit",
            str(path),
            "--response",
            "y",
            "--out",
            str(tmp_path / "o"),
        ],
        capture_output=True,
        text=True,
        env=ENV,
    )
    assert done.returncode == 2
    assert "[/b] x.csv" in done.stderr
