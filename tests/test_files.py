"""Writing and reusing: whole or not at all, never over a stranger's, never two at once."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress

import pytest

from rankwise import files
from rankwise.files import (
    MARKER,
    amended,
    cached,
    check_claim,
    check_file,
    check_output,
    claimed,
    content_of,
    differences,
    drafted,
    fingerprint,
    locked,
    whole_file,
    whole_folder,
    write_json,
    write_text,
)


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def make(target, text="1", *, made_by="compress", **options):
    with whole_folder(target, made_by=made_by, **options) as draft:
        (draft / "x").write_text(text)


# files


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_json_holds_no_nan(tmp_path):
    write_json(tmp_path / "a.json", {"x": math.nan, "y": [1, math.inf]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": None, "y": [1, None]}


def test_a_file_gets_the_mode_that_the_umask_gives(tmp_path):
    before = os.umask(0o022)
    try:
        write_text(tmp_path / "a.txt", "a")
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("way", ["whole", "cached"])
def test_files_of_a_folder_get_the_mode_that_the_umask_gives_whoever_wrote_them(tmp_path, way):
    before = os.umask(0o022)
    try:
        if way == "whole":
            with whole_folder(tmp_path / "out", made_by="export") as draft:
                (draft / "weights").touch(mode=0o600)
        else:
            cached(tmp_path / "out", lambda draft: (draft / "weights").touch(mode=0o600))
    finally:
        os.umask(before)
    assert (tmp_path / "out/weights").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_only_regular_files_are_replaced(tmp_path, kind):
    path = tmp_path / "there"
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    with pytest.raises(ValueError, match="only a regular file is written or replaced"):
        write_text(path, "text")
    assert path.exists()


def test_a_device_is_never_replaced():
    before = os.stat("/dev/full")
    with pytest.raises(ValueError, match="only a regular file"):
        write_text(files.Path("/dev/full"), "text")
    assert os.stat("/dev/full").st_rdev == before.st_rdev


def test_a_link_to_a_file_stays_a_link_and_its_target_is_replaced(tmp_path):
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("real.txt")
    write_text(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "new"


def test_what_a_killed_write_left_is_taken_over(tmp_path):
    (tmp_path / ".a.txt.rankwise-draft").write_text("half of something much longer")
    write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


def test_two_writers_of_one_file_take_turns(tmp_path):
    path, done = tmp_path / "a.txt", []

    def write(text):
        with whole_file(path) as draft:
            draft.write_text(text)
            time.sleep(0.05)
        done.append(text)

    threads = [threading.Thread(target=write, args=(c * 1000,)) for c in "abcd"]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(done) == 4
    assert path.read_text() == done[-1]


def test_an_input_is_not_written_over(tmp_path):
    (tmp_path / "rows.csv").write_text("a")
    with pytest.raises(ValueError, match="read by the same command"):
        check_file(tmp_path / "rows.csv", inputs=[tmp_path / "." / "rows.csv"])


def test_a_file_that_is_appended_to_has_one_holder(tmp_path):
    path = tmp_path / "answers.record"
    with locked(path), pytest.raises(ValueError, match="another command is writing"), locked(path):
        pass
    with locked(path):
        pass  # free again


# folders: whole or not at all


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "out"
    with whole_folder(target, made_by="compress") as draft:
        (draft / "x").write_text("1")
        assert not target.exists()

    def fail():
        with whole_folder(target, made_by="compress") as draft:
            (draft / "x").write_text("2")
            assert (target / "x").read_text() == "1"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (target / "x").read_text() == "1"
    assert names(tmp_path) == ["out"]


def test_a_reader_never_misses_a_folder_that_is_replaced(tmp_path):
    target, stop, missed = tmp_path / "out", threading.Event(), []
    make(target)

    def read():
        while not stop.is_set():
            if not (target / "x").exists():
                missed.append(time.time())

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(60):
        make(target, str(i))
    stop.set()
    reader.join()
    assert not missed
    assert names(tmp_path) == ["out"]


def test_without_an_exchange_of_names_the_folder_is_replaced_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    make(tmp_path / "out", "1")
    make(tmp_path / "out", "2")
    assert (tmp_path / "out" / "x").read_text() == "2"
    assert names(tmp_path) == ["out"]


def test_a_link_to_a_folder_stays_a_link(tmp_path):
    make(tmp_path / "real", "1")
    (tmp_path / "link").symlink_to("real")
    make(tmp_path / "link", "2")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "x").read_text() == "2"


def test_an_empty_folder_may_be_filled(tmp_path):
    (tmp_path / "out").mkdir()
    make(tmp_path / "out")
    assert (tmp_path / "out" / "x").read_text() == "1"


# folders: what is never replaced


def test_a_folder_of_somebody_else_is_refused_before_the_work(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years")
    with pytest.raises(ValueError, match=r"thesis\.tex, which rankwise did not write"):
        check_output(tmp_path / "out", made_by="compress")
    with pytest.raises(ValueError, match=r"thesis\.tex"):
        make(tmp_path / "out")
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("change", ["added", "edited", "linked", "in a folder"])
def test_files_added_or_changed_since_are_not_lost(tmp_path, change):
    out = tmp_path / "out"
    make(out)
    if change == "added":
        (out / "notes.txt").write_text("mine")
    elif change == "edited":
        (out / "x").write_text("2")
    elif change == "linked":
        (out / "x").unlink()
        (out / "x").symlink_to("/etc/hostname")
    else:
        (out / "more").mkdir()
        (out / "more" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="added or changed since it was made"):
        make(out, "3")


def test_a_folder_of_another_command_is_refused(tmp_path):
    make(tmp_path / "out", made_by="merge")
    with pytest.raises(ValueError, match="was made by `rankwise merge`, not `rankwise compress`"):
        make(tmp_path / "out")


@pytest.mark.parametrize("where", [".", "..", "~", "/", "sub/.."])
def test_the_working_folder_home_and_those_above_are_never_replaced(tmp_path, monkeypatch, where):
    (tmp_path / "work" / "sub").mkdir(parents=True)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    with pytest.raises(ValueError, match="never replaced"):
        check_output(files.Path(where), made_by="compress")


def test_a_folder_that_holds_an_input_is_refused(tmp_path):
    make(tmp_path / "data")
    with pytest.raises(ValueError, match="which is read"):
        check_output(tmp_path / "data", made_by="compress", inputs=[tmp_path / "data" / "x"])
    check_output(tmp_path / "data", made_by="compress", inputs=["owner/model", "text:nyt"])  # no paths


def test_a_file_or_an_unwritable_place_is_refused_for_a_folder(tmp_path):
    (tmp_path / "file").write_text("a")
    with pytest.raises(ValueError, match="is a file: a folder is written"):
        check_output(tmp_path / "file", made_by="compress")
    with pytest.raises(ValueError, match="cannot be made"):
        check_output(tmp_path / "file" / "out", made_by="compress")


def test_a_mount_point_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("os.path.ismount", lambda p: str(p).endswith("out"))
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="mount point"):
        check_output(tmp_path / "out", made_by="compress")


def test_what_is_added_afterwards_joins_the_folder_in_one_step(tmp_path):
    out = tmp_path / "out"
    make(out)
    with amended(out) as draft:
        (draft / "deep").mkdir()
        write_text(draft / "deep" / "report.html", "page")
        assert (draft / "x").read_text() == "1"
        assert names(out) == [MARKER, "x"]
    assert (out / "deep" / "report.html").read_text() == "page"
    assert names(tmp_path) == ["out"]
    make(out, "2")
    assert names(out) == [MARKER, "x"]


def test_an_addition_that_fails_leaves_the_folder_as_it_was(tmp_path):
    make(tmp_path / "out")
    with pytest.raises(ValueError, match="no page"), amended(tmp_path / "out"):
        raise ValueError("no page")
    make(tmp_path / "out", "2")
    assert names(tmp_path) == ["out"]


def test_nothing_is_added_to_a_folder_that_somebody_else_made_or_changed(tmp_path):
    out = tmp_path / "out"
    make(out)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds notes\.txt, added or changed"), amended(out):
        pass
    (tmp_path / "theirs").mkdir()
    with pytest.raises(ValueError, match="was not made by rankwise"), amended(tmp_path / "theirs"):
        pass
    assert names(tmp_path) == ["out", "theirs"]


# drafts


@contextmanager
def another_process(code):
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait()


def holding(target, *, told="[1]"):
    return (
        "import time\nfrom pathlib import Path\nfrom rankwise.files import drafted\n"
        f"with drafted(Path({str(target)!r}), made_by='merge', told={told}) as draft:\n"
        "    (draft / 'half').write_text('kept')\n    print('ready', flush=True)\n    time.sleep(60)\n"
    )


def test_two_commands_never_share_a_draft(tmp_path):
    target = tmp_path / "out"
    with another_process(holding(target)), pytest.raises(ValueError, match="another command is writing"):
        make(target, made_by="merge")


def test_a_killed_draft_goes_on_where_it_was_and_only_where_all_is_the_same(tmp_path):
    target = tmp_path / "out"
    with another_process(holding(target)) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with drafted(target, made_by="merge", told=[1]) as draft:
        assert (draft / "half").read_text() == "kept"
    assert names(target) == [MARKER, "half"]
    with another_process(holding(target)) as process:
        process.kill()
        process.wait()
    with drafted(target, made_by="merge", told=[2]) as draft:
        assert not (draft / "half").exists()
        (draft / "x").write_text("1")
    assert names(target) == [MARKER, "x"]
    assert names(tmp_path) == ["out"]


def test_a_draft_cut_short_by_an_interrupt_or_a_full_disk_is_kept_and_one_with_an_error_is_not(tmp_path):
    def cut(error):
        with drafted(tmp_path / "out", made_by="merge", told=[1]) as draft:
            (draft / "half").write_text("kept")
            raise error

    for error, left in [(KeyboardInterrupt(), 1), (OSError(28, "full"), 1), (ValueError("NaN"), 0)]:
        with pytest.raises(type(error)):
            cut(error)
        assert len(names(tmp_path)) == left


def test_a_folder_in_the_place_of_the_draft_is_not_emptied(tmp_path):
    (tmp_path / ".out.rankwise-draft").mkdir()
    (tmp_path / ".out.rankwise-draft" / "mine").write_text("mine")
    with pytest.raises(ValueError, match="in the way and rankwise did not make it"):
        make(tmp_path / "out")


def test_what_a_kill_in_the_moment_of_replacing_left_is_cleared(tmp_path):
    make(tmp_path / ".out.rankwise-old-1")
    (tmp_path / ".out.rankwise-old-2").mkdir()
    (tmp_path / ".out.rankwise-old-2" / "mine").write_text("mine")
    make(tmp_path / "out")
    assert names(tmp_path) == [".out.rankwise-old-2", "out"]


# folders that grow


def test_a_run_folder_goes_on_with_the_same_settings_and_names_those_that_differ(tmp_path):
    run = tmp_path / "run"
    with claimed(run, made_by="adapt", told={"steps": 1, "data": "abc"}) as folder:
        (folder / "trial").write_text("done")
    with claimed(run, made_by="adapt", told={"data": "abc", "steps": 1}) as folder:
        assert (folder / "trial").read_text() == "done"
    with (
        pytest.raises(ValueError, match=r"belongs to other settings or data \(data differ\)"),
        claimed(run, made_by="adapt", told={"steps": 1, "data": "abd"}),
    ):
        pass
    with pytest.raises(ValueError, match="made by `rankwise adapt`"), claimed(run, made_by="bench", told={}):
        pass


def test_settings_can_be_checked_in_part_before_a_run_folder_is_claimed(tmp_path):
    run, told = tmp_path / "run", {"steps": 1, "data": "abc"}
    check_claim(run, made_by="adapt", told=told)
    assert not run.exists()
    with claimed(run, made_by="adapt", told=told):
        check_claim(run, made_by="adapt", told={"steps": 1})
        with pytest.raises(ValueError, match=r"\(steps differ\)"):
            check_claim(run, made_by="adapt", told={"steps": 2})
    with pytest.raises(ValueError, match=r"\(data differ\)"), claimed(run, made_by="adapt", told={"steps": 1}):
        pass
    with pytest.raises(ValueError, match="made by `rankwise adapt`"):
        check_claim(run, made_by="bench", told={})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/x").touch()
    with pytest.raises(ValueError, match="did not write"):
        check_claim(tmp_path / "mine", made_by="adapt", told={})


def test_a_run_folder_has_one_process(tmp_path):
    run = tmp_path / "run"
    with (
        claimed(run, made_by="adapt", told={}),
        pytest.raises(ValueError, match="another command is writing"),
        claimed(run, made_by="adapt", told={}),
    ):
        pass


def test_a_folder_with_other_things_is_no_run_folder(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="did not write"), claimed(tmp_path / "run", made_by="adapt", told={}):
        pass


# caches


def test_a_cache_is_filled_once_however_many_ask(tmp_path):
    filled = []

    def fill(draft):
        filled.append(draft)
        time.sleep(0.05)
        (draft / "x").write_text("1")

    threads = [threading.Thread(target=cached, args=(tmp_path / "a" / "cache", fill)) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(filled) == 1
    assert names(tmp_path / "a") == ["cache"]
    assert names(tmp_path / "a" / "cache") == ["x"]


def test_a_cache_that_could_not_be_filled_is_not_there(tmp_path):
    def fail(draft):
        (draft / "x").write_text("1")
        raise ValueError("wrong hash")

    with pytest.raises(ValueError, match="wrong hash"):
        cached(tmp_path / "cache", fail)
    assert names(tmp_path) == []


# fingerprints


def test_content_is_known_by_what_it_is_and_not_by_its_name_or_date(tmp_path):
    for name, text in [("a", "1"), ("b", "1"), ("c", "2")]:
        (tmp_path / name).write_text(text)
    os.utime(tmp_path / "b", (1, 1))
    assert content_of(tmp_path / "a") == content_of(tmp_path / "b") != content_of(tmp_path / "c")
    before = content_of(tmp_path / "a"), content_of(tmp_path)
    stamp = (tmp_path / "a").stat()
    (tmp_path / "a").write_text("3")
    os.utime(tmp_path / "a", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # same size, same date
    assert content_of(tmp_path / "a") != before[0]
    assert content_of(tmp_path) != before[1]


def test_a_fingerprint_does_not_depend_on_the_order_of_keys():
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1}) != fingerprint({"a": 1, "b": [3]})


def test_differing_keys_are_named_from_both_sides():
    assert differences({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4}) == ["b", "c"]


# what an attacker, or an accident, puts in the way


def test_a_link_in_the_place_of_the_draft_or_of_an_old_result_is_not_followed(tmp_path):
    make(tmp_path / "elsewhere")
    for name in (".out.rankwise-draft", ".out.rankwise-old-1"):
        (tmp_path / name).symlink_to(tmp_path / "elsewhere")
        if name.endswith("draft"):
            with pytest.raises(ValueError, match="in the way"):
                make(tmp_path / "out")
        else:
            make(tmp_path / "out")
        assert names(tmp_path / "elsewhere") == [MARKER, "x"]
        (tmp_path / name).unlink(missing_ok=True)


def test_only_what_is_left_of_the_same_output_is_cleared(tmp_path):
    make(tmp_path / ".a.rankwise-old-1")
    make(tmp_path / "*")
    assert names(tmp_path) == ["*", ".a.rankwise-old-1"]


def test_a_folder_of_a_strangers_is_refused_without_reading_it(tmp_path, monkeypatch):
    (tmp_path / "out" / "deep").mkdir(parents=True)
    (tmp_path / "out" / "deep" / "x").write_text("mine")
    monkeypatch.setattr(files, "content_of", None)
    monkeypatch.setattr(files, "_files", None)
    with pytest.raises(ValueError, match="holds deep, which rankwise did not write"):
        check_output(tmp_path / "out", made_by="merge")


def merge_while_notes_are_taken(out, *, begun):
    with drafted(out, made_by="merge", told=[1]) as draft:
        assert (draft / "x").exists() == begun
        (draft / "x").write_text("new")
        (out / "notes.txt").write_text("mine")


def test_what_somebody_adds_while_the_command_runs_is_not_removed_and_the_draft_is_kept(tmp_path):
    out = tmp_path / "out"
    make(out, made_by="merge")
    for attempt in (1, 2):
        with pytest.raises(OSError, match=r"holds notes\.txt, added"):
            merge_while_notes_are_taken(out, begun=attempt == 2)
        (tmp_path / "notes.txt").unlink(missing_ok=True)
        (out / "notes.txt").rename(tmp_path / "notes.txt")
    with drafted(out, made_by="merge", told=[1]):
        pass
    assert (out / "x").read_text() == "new"
    assert names(tmp_path) == ["notes.txt", "out"]


def test_rankwises_own_marks_are_no_content(tmp_path):
    for name, marks in (("a", ()), ("b", (MARKER, files.DRAFT))):
        (tmp_path / name).mkdir()
        for inside in ("x", *marks):
            (tmp_path / name / inside).write_text("1")
    assert content_of(tmp_path / "a") == content_of(tmp_path / "b")


def test_a_mark_that_was_cut_short_is_not_among_the_files(tmp_path):
    cut = tmp_path / ".out.rankwise-draft" / "..rankwise.json.rankwise-draft"
    with suppress(KeyboardInterrupt), drafted(tmp_path / "out", made_by="test", told=1) as draft:
        (draft / "a").write_text("a")
        raise KeyboardInterrupt
    assert cut.parent.is_dir()
    cut.write_text('{"made_')
    with drafted(tmp_path / "out", made_by="test", told=1) as draft:
        assert (draft / "a").is_file()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [".rankwise.json", "a"]
    assert list(json.loads((tmp_path / "out" / ".rankwise.json").read_text())["files"]) == ["a"]
