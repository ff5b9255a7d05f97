import dataclasses

import pytest

from rankwise import archive
from rankwise.data.sentiment import _ARCHIVE


def test_a_wrong_hash_is_refused_and_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path))
    wrong = dataclasses.replace(_ARCHIVE, sha256="0" * 64)
    with pytest.raises(ValueError, match="not using it"):
        archive.members(wrong, ["x"], folder="data/x")
    assert not list(tmp_path.rglob("*.txt"))


def test_a_missing_package_says_what_pip_said(tmp_path, monkeypatch):
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path))
    missing = archive.Archive(package="rankwise-no-such-package", version="1.0", sha256="")
    with pytest.raises(OSError, match=r"pip could not fetch rankwise-no-such-package==1\.0"):
        archive.members(missing, ["x"], folder="data/x")


def test_a_missing_member_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"has no member vaderSentiment-3.3.2/nothing"):
        archive.members(_ARCHIVE, ["vaderSentiment-3.3.2/nothing"], folder="data/x")
    assert not (tmp_path / "data/x").exists()
