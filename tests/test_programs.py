"""Where another program is said to read, or to agree with, what is made here, a test or a recipe runs that program."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# how a program is called on the pages, and what a file that runs it says
RUN = {
    "peft": "from peft import",
    "transformers": "from transformers import",
    "accelerate": "from accelerate import|import accelerate|PartialState",
    "mergekit": "mergekit[.-]|from mergekit",
    "lifelines": "import lifelines|from lifelines",
    "scikit-survival": "from sksurv",
    "scikit-learn": "from sklearn",
    "MAPIE": "from mapie",
    "galore-torch": "from galore_torch",
    "CTranslate2": "import ctranslate2|from ctranslate2",
    "LightGBM": "import lightgbm|from lightgbm",
}
# programs that nothing here runs: what is said of them stands where it is said by whose word, or helps after an error
TOLD = {
    r"vLLM|llama[.-]cpp(?:-python)?": ("docs/how-to/prompt.md", "src/rankwise/prompting/server_answers.py"),
    r"LM Studio|Ollama|whisper\.cpp|text-generation-inference|TensorRT|ONNX|MLX": (),
    "faster-whisper": ("src/rankwise/bench/tuning/whisper.py",),  # why it is not compared
}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "src").rglob("*.py"))]


@pytest.mark.parametrize("program", RUN)
def test_a_program_that_is_named_is_run(program):
    files = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "src/rankwise/bench").rglob("*.py")]
    files.remove(Path(__file__))
    assert any(re.search(RUN[program], f.read_text(encoding="utf-8")) for f in files)


@pytest.mark.parametrize("programs", TOLD)
def test_nothing_is_promised_of_a_program_that_is_not_run(programs):
    found = {
        p.relative_to(ROOT).as_posix()
        for p in PAGES
        if p.name != "changelog.md" and re.search(rf"\b(?:{programs})\b", p.read_text(encoding="utf-8"), re.IGNORECASE)
    }
    assert found == set(TOLD[programs])


def test_what_other_servers_do_is_said_by_their_word():
    text = (ROOT / "docs/how-to/prompt.md").read_text(encoding="utf-8")
    (sentence,) = [s for s in re.split(r"(?<=\.) ", text.replace("\n", " ")) if "vLLM" in s]
    assert sentence.startswith("By their documentation ")
