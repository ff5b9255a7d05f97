"""One grammar for all commands: names, types, defaults, help, exit codes, and how soon a mistake is answered."""

import json
import subprocess
import sys
import time
from typing import get_args

import pytest
import torch
import typer

from command import ENV, rankwise
from rankwise import __version__
from rankwise.cli import main
from rankwise.cli.app import app, names, numbers

# Options that more than one command has: one meaning each, of one type (text is a name or a path).
SHARED = {
    "--json": bool,  # one JSON value on standard output
    "--out": "text",  # what is written
    "--dtype": "text",  # of the weights that are written
    "--model": "text",  # a pretrained model: a bundled name, a folder, a hub id
    "--data": "text",  # rows or texts that are read
    "--target": "text",  # the layers that are meant
    "--seed": int,  # decides every draw
    "--steps": int,  # of training
    "--learning-rate": float,  # at its start
    "--resamples": int,  # draws for an interval
    "--seeds": int,  # how many runs
    "--batch-size": int,  # examples a step
    "--text": "text",  # one text to work on
    "--max-new-tokens": int,  # room for an answer
    "--name": "text",  # what a part of a folder is called
    "--max-length": int,  # tokens of a text
    "--leave-out": "text",  # columns that are not used
    "--method": "text",  # one of several ways to the same
    "--limit": int,  # how many pictures or texts at most
    "--distance": "text",  # how far two texts are
    "--style": "text",  # how a prompt is written
    "--server": "text",  # address of an OpenAI-compatible server, and what belongs to it
    "--key-variable": "text",
    "--timeout": float,
    "--concurrency": int,
    "--max-completion-tokens": bool,
    "--extra-body": "text",
    "--network": "text",  # which of a method's networks
    "--encoder": "text",  # what reads texts for detectors
    "--split": "text",  # which part of data that has several
    "--epochs": int,  # passes over data
    "--rank": int,  # of adapters
    "--preset": "text",  # settings that belong together, by name
    "--jobs": int,  # processes at once
    "--scheduler": "text",  # address of a Dask scheduler
}
FREE_TEXTS = {"--text", "--audio", "--choices"}  # given once for each; every other list is comma-separated
MISTAKES = {
    "adapt": ["--data", "none.csv", "--out", "x"],
    "export": ["none", "--out", "x"],
    "predict": ["none", "--text", "a"],
    "inspect": ["minilm", "--threshold", "3"],
    "compress": ["--model", "smollm2", "--out", ".", "--ratio", "0.3"],
    "tokens": ["none.png", "--model", "owner/model", "--out", "x"],
    "cache": ["--model", "smollm2", "--ratios", "0,1.5"],
    "distill": ["--data", "none", "--out", "x"],
    "enhance": ["none.jpg", "--with", "none", "--out", "x"],
    "enhance-fit": ["none", "none", "--out", "x"],
    "distill-train": ["none", "--data", "digits"],
    "methods": ["--family", "tunning"],
    "pretrain": ["vit-cifar", "--out", "x"],
    "bench": ["evaa"],
    "merge": ["none.yaml", "--out", "x"],
    "select": ["--pool", "none.csv", "--queries", "none.csv", "--out", "x.jsonl"],
    "answer": ["--questions", "none.jsonl"],
    "compare": ["none.txt", "none.txt"],
    "perseval": ["none.jsonl", "--out", "x"],
    "peer": ["--library", "none.csv", "--out", "x"],
    "rank fit": ["none.csv", "--out", "x"],
    "rank score": ["none", "none.svm"],
    "rank evaluate": ["none.csv", "none.txt"],
    "continual learn": ["none.yaml", "--out", "x"],
    "continual adapt": ["--images", "none", "--out", "x.csv"],
    "continual forget": ["--data", "none.jsonl", "--name", "a", "--model", "owner/model", "--out", "x"],
    "continual relearn": ["none", "--name", "a"],
    "continual ask": ["none", "--text", "a"],
    "dynamics subspaces": ["none.csv", "--out", "x"],
    "dynamics icl": ["--class-count", "50", "--out", "x"],
    "dynamics laziness": ["--before", "minilm", "--after", "minilm", "--data", "none.csv"],
    "quantile fit": ["none.csv", "--response", "y", "--out", "x"],
    "quantile predict": ["none", "none.csv"],
    "quantile report": ["none"],
}
HEAVY = ("torch", "transformers", "peft", "sklearn", "lightgbm", "lifelines", "matplotlib")


def commands(group=None, name=""):
    for word, command in (group or typer.main.get_command(app)).commands.items():
        here = f"{name} {word}".strip()
        if hasattr(command, "commands"):
            yield from commands(command, here)
        else:
            yield here, command


ALL = dict(commands())


def options(command):
    return [p for p in command.params if p.param_type_name == "option"]


def kind(option):
    annotation = option.type_descriptor.annotation
    kinds = {k for k in (annotation, *get_args(annotation)) if k is not type(None)}
    return next((k for k in (bool, int, float) if k in kinds), "text")


def test_what_several_commands_have_has_one_meaning_and_one_type():
    found = {}
    for command in ALL.values():
        for option in options(command):
            found.setdefault(option.opts[0], []).append(kind(option))
    assert {o for o, kinds in found.items() if len(kinds) > 1} <= set(SHARED)
    for name, kinds in found.items():
        assert set(kinds) == {SHARED.get(name, kinds[0])}, name


@pytest.mark.parametrize("name", ALL)
def test_options_are_long_words_with_a_sentence_each_and_lists_are_one_word(name):
    for option in options(ALL[name]):
        assert all(o.startswith("--") or o == "-k" for o in option.opts)
        assert option.help
        assert option.help.strip().endswith("."), option.opts
        assert not option.multiple or option.opts[0] in FREE_TEXTS


@pytest.mark.parametrize("name", ALL)
def test_every_command_prints_json_and_names_its_output_out(name):
    opts = {o for option in options(ALL[name]) for o in option.opts}
    assert "--json" in opts
    assert not opts & {"--output", "-o", "--format", "--force", "--overwrite"}


@pytest.mark.parametrize("name", ALL)
def test_help_has_examples_and_defaults_and_fits_into_80_columns(name):
    done = rankwise(*name.split(), "--help")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    text = " ".join(done.stdout.replace("│", " ").split())
    assert text.count(f"rankwise {name} ") >= 3 or name == "methods"  # usage, and two examples
    for option in options(ALL[name]):
        if option.default not in (None, False, "", []) and option.opts[0] != "--json":
            assert option.show_default, option.opts


@pytest.mark.parametrize("name", ALL)
def test_a_mistake_is_one_line_before_anything_heavy_is_imported(name, tmp_path):
    code = (
        "import sys, rankwise.cli.main as m\n"
        f"sys.argv = ['rankwise', *{[*name.split(), *MISTAKES[name]]!r}]\n"
        "try:\n    m.run()\nfinally:\n"
        f"    print([h for h in {HEAVY!r} if h in sys.modules])"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENV, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("error: ")
    assert done.stdout.strip() == "[]"
    assert time.perf_counter() - start < 60  # a hang, not a speed: nothing heavy was imported
    assert list(tmp_path.iterdir()) == []


def test_nothing_asked_is_help_and_no_success():
    for words in ([], ["quantile"]):
        done = rankwise(*words)
        assert done.returncode == 2
        assert "Usage:" in done.stdout + done.stderr
    assert rankwise("bench").returncode == 2
    assert "--list" in rankwise("bench").stderr


def test_the_version_is_said_and_completion_is_offered():
    assert rankwise("--version").stdout == f"rankwise {__version__}\n"
    assert "--install-completion" in rankwise("--help").stdout


def test_no_color_is_heeded(monkeypatch):
    from rankwise.cli.app import Plain

    monkeypatch.setenv("NO_COLOR", "1")
    assert Plain(force_terminal=True).no_color


@pytest.mark.parametrize("error", [TypeError("ours"), KeyError("ours"), RuntimeError("ours")])
def test_a_fault_of_our_own_shows_its_traceback_and_where_to_report_it(error, monkeypatch, capsys):
    def fails():
        raise error

    monkeypatch.setattr(main, "app", fails)
    with pytest.raises(SystemExit) as left:
        main.run()
    said = capsys.readouterr().err
    assert left.value.code == 1
    assert "Traceback" in said
    assert "raise error" in said
    assert "report" in said


def test_too_little_memory_is_no_fault_of_our_own(monkeypatch, capsys):
    def fails():
        raise MemoryError("Unable to allocate 9 TiB")

    monkeypatch.setattr(main, "app", fails)
    with pytest.raises(SystemExit) as left:
        main.run()
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert "not enough memory" in said
    assert "CUDA" not in said


def test_too_little_memory_of_a_gpu_is_said_with_the_way_round_it(monkeypatch, capsys):
    def fails():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 TiB")

    monkeypatch.setattr(main, "app", fails)
    with pytest.raises(SystemExit) as left:
        main.run()
    assert left.value.code == 2
    assert "CUDA_VISIBLE_DEVICES= before the command" in capsys.readouterr().err


def test_lists_are_comma_separated():
    assert names(" a, b,,c ") == ["a", "b", "c"]
    assert numbers("1e-4,3", "--x") == [1e-4, 3.0]
    with pytest.raises(ValueError, match="--x 'a' is no list of numbers"):
        numbers("a", "--x")


def test_the_list_of_recipes_is_json_where_that_is_asked():
    told = json.loads(rankwise("bench", "--list", "--json").stdout)
    assert {"recipe", "part", "about"} == set(told[0])
