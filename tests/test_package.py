import subprocess
import sys

HEAVY = (
    "torch",
    "numpy",
    "scipy",
    "transformers",
    "peft",
    "accelerate",
    "sklearn",
    "pandas",
    "matplotlib",
    "pydantic",
    "typer",
    "rich",
)


def python(code):
    return subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)


def test_import_loads_nothing_heavy():
    done = python(f"import sys, rankwise; print([m for m in {HEAVY!r} if m in sys.modules])")
    assert done.stdout.strip() == "[]", done


def test_methods_are_registered_whichever_is_imported_first():
    for code in (
        "import rankwise, peft",
        "import peft, rankwise",
        "import rankwise.tuning, peft",
        "import peft, rankwise.tuning",
        "import rankwise.optim, transformers; transformers.Trainer; import rankwise.tuning",
        "import rankwise; from transformers import Trainer; import peft",
        "import rankwise, importlib.util; importlib.util.find_spec('peft'); import peft",
    ):
        check = "from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as m\n"
        check += "assert {'S2LORA', 'BITFIT'} <= {t.value for t in m}"
        done = python(f"{code}\n{check}")
        assert done.returncode == 0, done.stderr


def test_registering_twice_or_reloading_does_nothing():
    done = python(
        "import importlib, rankwise.tuning.registration as r\nr.register()\nimportlib.reload(r)\nr.register()"
    )
    assert done.returncode == 0, done.stderr


def test_a_method_that_peft_has_itself_stays_and_is_announced():
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from aenum import extend_enum\nimport peft\nfrom peft import PeftType, VeraConfig\n"
            "from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as m\n"
            "extend_enum(PeftType, 'S2LORA', 'S2LORA'); m[PeftType.S2LORA] = VeraConfig\n"
            "import rankwise\nassert m[PeftType.S2LORA] is VeraConfig",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "PEFT already has a method 's2lora'" in done.stderr
