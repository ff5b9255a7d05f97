"""The pages say what the code does: names, commands and options exist, and what is generated is what stands there."""

import ast
import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from rankwise.catalogue import ready
from rankwise.cli.main import app

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
HEADINGS = ["What it is for", "How it works", "Use", "When not to use it", "Evidence"]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]


def shown(path):
    return str(path.relative_to(ROOT))


def blocks(text, *languages):
    """Fenced blocks of these languages; an empty one is a block without."""
    found = re.findall(r"^```([\w-]*)[^\n]*\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    return [block for language, block in found if language in languages]


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_regenerating_finds_no_difference(generate):
    stale = [shown(p) for p, text in generate.generated().items() if p.read_text(encoding="utf-8") != text]
    assert stale == [], "run python docs/generate.py"


def test_every_ready_method_has_its_page_with_the_same_headings():
    pages = {p.stem for p in (DOCS / "methods").glob("*.md")} - {"index"}
    assert pages == {e.id for e in ready()}
    for e in ready():
        text = (DOCS / "methods" / f"{e.id}.md").read_text(encoding="utf-8")
        assert re.findall(r"^## (.*)$", text, flags=re.MULTILINE) == HEADINGS, e.id
        assert blocks(text, "math"), f"{e.id} has no equation"
        assert f"<!-- evidence {e.id} -->" in text


def test_every_page_is_in_the_navigation_once():
    def pages(node):
        if isinstance(node, str):
            return [node]
        return [page for part in (node.values() if isinstance(node, dict) else node) for page in pages(part)]

    listed = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    listed += [f"methods/{e.id}.md" for e in ready()]  # the hook adds them
    there = {p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md") if p.parent != DOCS / "evidence"}
    assert sorted(listed) == sorted(there)


def test_every_gallery_script_is_shown_whole_with_its_picture(generate):
    page = (DOCS / "gallery.md").read_text(encoding="utf-8")
    for path in generate.scripts():
        code = path.read_text(encoding="utf-8").partition('"""\n\n')[2].rstrip()
        assert code in page, path.name
        assert f"](img/gallery/{path.stem}.png)" in page
        assert f'"{path.stem}.png"' in code  # what it writes is what is shown
        assert (DOCS / "img" / "gallery" / f"{path.stem}.png").stat().st_size < 200_000


def test_every_extra_is_named_where_it_is_installed():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    named = set(extras) - {"all", "dev", "docs"}
    table = re.findall(r"^\| `(\w+)` \|", (DOCS / "index.md").read_text("utf-8"), flags=re.MULTILINE)
    assert set(table) == named
    install = (ROOT / "README.md").read_text("utf-8").partition("## Install")[2].partition("\n## ")[0]
    assert named <= set(re.findall(r"`([\w-]+)`", install))


@pytest.mark.parametrize("path", PAGES, ids=shown)
def test_links_and_pictures_of_a_page_are_there(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"^(<{7}|={7}|>{7})", text, flags=re.MULTILINE)  # left by a merge
    text = re.sub(r"```.*?^```|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", PAGES, ids=shown)
def test_python_on_a_page_parses_and_imports_what_there_is(path):
    for block in blocks(path.read_text(encoding="utf-8"), "python"):
        for node in ast.walk(ast.parse(block.replace("…", "..."))):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("rankwise"):
                module = import_module(str(node.module))
                for name in node.names:
                    below = hasattr(module, "__path__") and find_spec(f"{node.module}.{name.name}")
                    assert hasattr(module, name.name) or below, f"{node.module}.{name.name}"


@pytest.mark.parametrize("path", PAGES, ids=shown)
def test_commands_on_a_page_exist_with_their_options(path):
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for block in blocks(text, "", "bash") for line in block.splitlines()]
    for typed in [*lines, *re.findall(r"`(rankwise [^`\n]*)`", text)]:
        found = re.match(r"(?:[A-Z_]+=\S+ )*rankwise +(.*)", typed.strip())
        if found:
            command, options = get_command(app), []
            for word in shlex.split(found[1].replace("…", ""), comments=True):
                below = getattr(command, "commands", {})
                if below:
                    assert word in below or word.startswith("--"), typed
                    command = below.get(word, command)
                options += [word.partition("=")[0]] if re.match(r"--?[a-z]", word) else []
            known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
            assert set(options) <= known, f"{typed}: {sorted(set(options) - known)}"


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="pip install '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "methods" / "s2lora" / "index.html").read_text(encoding="utf-8")
    assert "<math" in page  # equations are rendered
    assert "<!-- evidence" not in page
    for built in tmp_path.rglob("*.html"):
        said = re.sub(r"<(script|style|code|pre)\b.*?</\1>", "", built.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert not re.search(r"\$[^$]*\$", said), f"an equation within a sentence is not rendered: {built}"
    other = (tmp_path / "how-to" / "adapt" / "index.html").read_text(encoding="utf-8")
    assert all(f'href="../../methods/{e.id}/"' in other for e in ready())  # in the navigation


@pytest.mark.slow
@pytest.mark.parametrize("id", [e.id for e in ready()])
def test_what_a_method_page_shows_can_be_pasted(id, tmp_path):
    code = "\n".join(blocks((DOCS / "methods" / f"{id}.md").read_text(encoding="utf-8"), "python"))
    assert code
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_ten_lines_of_the_readme_print_what_stands_below_them(tmp_path):
    part = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Ten lines")[2]
    done = subprocess.run(
        [sys.executable, "-c", blocks(part, "python")[0]], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith(blocks(part, "")[0].strip())
