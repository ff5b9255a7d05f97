import dataclasses
import gzip
import hashlib
import io
import tarfile
import zipfile

import pytest

from rankwise import archive
from rankwise.archive import Archive, extract, members


def packed(path, entries, mode="w:gz"):
    """A tar of ``(name, content)``; a `tarfile.TarInfo` instead of a name is taken as it is."""
    with tarfile.open(path, mode) as opened:
        for name, content in entries:
            member = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            member.size = len(content)
            opened.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def served(tmp_path, monkeypatch):
    """An archive that the index would give, with its record."""
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path / "cache"))
    path = packed(tmp_path / "thing-1.0.tar.gz", [("thing-1.0/data.txt", b"the data"), ("thing-1.0/setup.py", b"1/0")])
    settings = {"no-index": "1", "find-links": str(tmp_path)}
    monkeypatch.setattr("rankwise.package_index.pip_settings", lambda: settings)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return Archive(package="thing", version="1.0", sha256=sha256, source=True)


def test_members_are_extracted_once_under_their_last_name(served, tmp_path, monkeypatch):
    folder = members(served, ["thing-1.0/data.txt"], folder="data/thing")
    assert [p.name for p in folder.iterdir()] == ["data.txt"]
    assert (folder / "data.txt").read_text() == "the data"
    monkeypatch.setattr(archive, "fetch", None)
    assert members(served, ["thing-1.0/data.txt"], folder="data/thing") == folder


def test_a_wrong_hash_is_refused_before_anything_is_opened_and_nothing_is_kept(served, tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "extract", None)
    with pytest.raises(ValueError, match="not using it"):
        members(dataclasses.replace(served, sha256="0" * 64), ["x"], folder="data/x")
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


def test_a_missing_package_or_member_is_named(served, tmp_path):
    with pytest.raises(OSError, match=r"could not fetch no-such-package==1\.0"):
        members(dataclasses.replace(served, package="no-such-package"), ["x"], folder="data/x")
    with pytest.raises(ValueError, match=r"thing-1\.0\.tar\.gz has no member thing-1\.0/nothing"):
        members(served, ["thing-1.0/nothing"], folder="data/x")
    assert not (tmp_path / "cache" / "data" / "x").exists()


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_members_of_both_kinds_and_of_nested_archives(tmp_path, kind):
    inner = packed(tmp_path / "inner.tar.gz", [("deep/a.txt", b"inside")]).read_bytes()
    path = tmp_path / "outer"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as opened:
            opened.writestr("p/inner.tar.gz", inner)
    else:
        packed(path, [("p/inner.tar.gz", inner)])
    (tmp_path / "out").mkdir()
    extract(path, ["p/inner.tar.gz::deep/a.txt"], tmp_path / "out")
    assert [(p.name, p.read_bytes()) for p in (tmp_path / "out").iterdir()] == [("a.txt", b"inside")]


@pytest.mark.parametrize("kind", ["zip", "tar", "nested"])
def test_a_member_that_unfolds_a_thousandfold_is_not_written_out(tmp_path, kind):
    bomb, path, name = bytes(30_000_000), tmp_path / "outer", "bomb"
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
            opened.writestr("bomb", bomb)
    elif kind == "tar":
        packed(path, [("bomb", bomb)])
    else:
        packed(path, [("in.tar.gz", packed(tmp_path / "in", [("bomb", bomb)]).read_bytes())])
        name = "in.tar.gz::bomb"
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="bomb unfolds to more than"):
        extract(path, [name], tmp_path / "out")
    assert sum(p.stat().st_size for p in (tmp_path / "out").iterdir()) < archive.MOST_RATIO * path.stat().st_size + 1


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_links_devices_and_folders_are_no_members(tmp_path, kind):
    member = tarfile.TarInfo("data.txt")
    member.type, member.linkname = kind, "/etc/passwd"
    path = packed(tmp_path / "outer", [(member, b"")])
    with pytest.raises(ValueError, match=r"data\.txt is no regular file"):
        extract(path, ["data.txt"], tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"nothing", gzip.compress(b"no tar", mtime=0), b"PK\x03\x04" + bytes(60)],
    ids=["empty", "text", "gzip", "zip"],
)
def test_what_is_no_archive_is_one_line(tmp_path, content):
    (tmp_path / "outer").write_bytes(content)
    with pytest.raises(ValueError, match="outer"):
        extract(tmp_path / "outer", ["x"], tmp_path)


def test_an_archive_cut_short_is_one_line(tmp_path):
    path = packed(tmp_path / "outer", [("a", bytes(range(256)) * 100)])
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot be read as an archive"):
        extract(path, ["a"], tmp_path)
