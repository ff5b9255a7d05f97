"""The release check: wheel and source archive build, and the wheel works alone with the least it needs.

    python tools/release.py [folder]

Builds into ``dist`` (or the folder), makes a fresh virtual environment, installs the wheel without any extra under the
constraints of the project, and runs ``import rankwise``, ``rankwise --version`` and ``rankwise methods`` there.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(*command: str | Path, where: Path | None = None) -> str:
    """The command's output; what it said, should it fail."""
    done = subprocess.run([str(c) for c in command], cwd=where or ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def main() -> None:
    """Build and try."""
    target = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "dist")
    run(sys.executable, "-m", "build", "--outdir", target)
    wheel, source = max(target.glob("*.whl")), max(target.glob("*.tar.gz"))
    print(f"built     {wheel.name}, {source.name}")
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch) / "env"
        venv.create(home, with_pip=True)
        pip = [home / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        run(*pip, "--constraint", ROOT / "constraints.txt", wheel)
        elsewhere = Path(scratch)  # not in the source tree, whose package would be found first
        print("version   " + run(home / "bin" / "rankwise", "--version", where=elsewhere).strip())
        run(home / "bin" / "python", "-W", "error", "-c", "import rankwise", where=elsewhere)
        rows = run(home / "bin" / "rankwise", "methods", where=elsewhere).strip().splitlines()
        print(f"methods   {len(rows) - 1} listed")
        typed = "import rankwise, pathlib; print((pathlib.Path(rankwise.__file__).parent / 'py.typed').exists())"
        held = run(home / "bin" / "python", "-c", typed, where=elsewhere)
        if held.strip() != "True":
            sys.exit("py.typed is not in the wheel")
    print("released  the wheel works with the least it needs")


if __name__ == "__main__":
    main()
