import subprocess
import sys

import pytest

import rankwise.distributions as family


@pytest.mark.parametrize("name", family.__all__)
def test_every_public_name_is_there(name):
    assert getattr(family, name).__name__ == name


def test_an_absent_library_names_the_extra():
    code = "import sys; sys.modules['lifelines'] = None; from rankwise.distributions import PGWFitter"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "PGWFitter needs: pip install 'rankwise[distributions]'" in done.stderr
    with pytest.raises(AttributeError, match="no attribute 'PGW'"):
        _ = family.PGW
