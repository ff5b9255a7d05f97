"""A command called within this process: what it said, or what it was refused with."""

from typer.testing import CliRunner

from rankwise.cli.main import app


def called(*words):
    return CliRunner().invoke(app, [*map(str, words)])


def refused(*words):
    done = called(*words)
    assert isinstance(done.exception, ValueError), done.exception
    return str(done.exception)
