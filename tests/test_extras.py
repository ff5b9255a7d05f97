"""Each extra alone imports what it promises: everything else that is installed here is hidden."""

import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions

import pytest
from packaging.requirements import Requirement

PROMISED = {
    "": ["rankwise.catalogue", "rankwise.cli.main", "rankwise.files", "rankwise.reading", "rankwise.spectral"],
    "tuning": ["rankwise.tuning", "rankwise.tuning.s2lora", "rankwise.tuning.eva", "rankwise.tuning.export"],
    "models": ["rankwise.models", "rankwise.optim", "rankwise.compression", "rankwise.merging"],
    "data": ["rankwise.data", "rankwise.data.files"],
    "images": ["rankwise.data.images.parquet", "rankwise.data.corruptions", "sklearn.datasets", "huggingface_hub"],
    "speech": ["rankwise.data.audio", "rankwise.data.synthesis"],
    "prompting": ["rankwise.prompting", "rankwise.prompting.dq_lore", "rankwise.prompting.server_model"],
    "distributions": ["rankwise.distributions", "rankwise.distributions.PGWFitter"],
    "peers": ["rankwise.ranking.peers.node", "rankwise.ranking.peers.page"],
    "report": ["rankwise.report.page", "rankwise.report.tables"],
}

HIDING = """
import sys
hidden = {hidden!r}
class Hider:
    def __init__(self, inner):
        self.inner = inner
    def __getattr__(self, name):
        return getattr(self.inner, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in hidden else self.inner.find_spec(name, path, target)
sys.meta_path[:] = [Hider(finder) for finder in sys.meta_path]
from importlib import import_module
for name in {wanted!r}:
    module, _, last = name.rpartition(".")
    getattr(import_module(module), last) if last[0].isupper() else import_module(name)
"""


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(extra):
    """Names of the distributions that ``rankwise[extra]`` brings, with theirs."""
    found, waiting = set(), [("rankwise", frozenset({extra} if extra else ()))]
    while waiting:
        name, extras = waiting.pop()
        if (canonical(name), extras) in found:
            continue
        found.add((canonical(name), extras))
        try:
            requires = distribution(name).requires or []
        except PackageNotFoundError:
            continue
        for requirement in map(Requirement, requires):
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": e}) for e in (extras or {""})):
                waiting.append((requirement.name, frozenset(requirement.extras)))
    return {name for name, _ in found}


@pytest.mark.parametrize("extra", PROMISED)
def test_an_extra_alone_imports_what_it_promises(extra):
    allowed = needed(extra) | {"pip", "setuptools"}
    hidden = {
        module
        for module, owners in packages_distributions().items()
        if not any(canonical(owner) in allowed for owner in owners)
    }
    assert "pytest" in hidden  # the test can tell: what is not needed is hidden
    code = HIDING.format(hidden=hidden, wanted=PROMISED[extra])
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
