import csv
import json

import numpy as np
import pytest
import soundfile

from rankwise.data import load, read_audio, read_manifest

RATE = 16_000
TONE = (0.3 * np.sin(np.arange(RATE) / 20)).astype(np.float32)


@pytest.fixture
def folder(tmp_path):
    soundfile.write(tmp_path / "good.wav", TONE, RATE)
    soundfile.write(tmp_path / "stereo.wav", np.stack([TONE, -0.5 * TONE], 1), RATE)
    soundfile.write(tmp_path / "phone.wav", TONE[:8000], 8000)
    soundfile.write(tmp_path / "long.wav", np.tile(TONE, 40), RATE)
    soundfile.write(tmp_path / "none.wav", TONE[:0], RATE)
    soundfile.write(tmp_path / "silent.wav", 0 * TONE, RATE)
    (tmp_path / "noise.wav").write_bytes(b"this is not audio at all")
    return tmp_path


def manifest(folder, rows, name="manifest.csv"):
    with (folder / name).open("w", newline="") as stream:
        csv.writer(stream).writerows([("path", "text"), *rows])
    return folder / name


BAD = [
    ("missing.wav", "hello", r"row 2, missing.wav: no such file"),
    ("noise.wav", "hello", r"row 2, noise.wav: cannot be read as audio"),
    ("none.wav", "hello", r"row 2, none.wav: has no samples"),
    ("silent.wav", "hello", r"row 2, silent.wav: is silent"),
    ("long.wav", "hello", r"row 2, long.wav: lasts 40.0 s; at most 30 s"),
    ("good.wav", "...", r"row 2, good.wav: the transcript '...' is empty after normalisation"),
    ("", "hello", r"row 2, \(empty\): no audio file is named"),
]


@pytest.mark.parametrize(("name", "text", "match"), BAD)
def test_bad_rows_are_named_by_row_and_file(folder, name, text, match):
    path = manifest(folder, [(name, text), ("good.wav", "fine")])
    with pytest.raises(ValueError, match=match):
        read_manifest(path, normalize=lambda t: t.strip("."))


def test_skip_bad_names_and_counts_what_it_leaves_out(folder):
    path = manifest(folder, [*[(n, t) for n, t, _ in BAD], ("good.wav", "fine")])
    corpus = load(str(path), task="asr", normalize=lambda t: t.strip("."), skip_bad=True)
    assert [a.name for a in corpus.audio] == ["good.wav"]
    assert f"skipped {len(BAD)} of {len(BAD) + 1} rows" in corpus.notes[-1]
    assert all(f"row {i}, " in corpus.notes[-1] for i in range(2, len(BAD) + 2))
    only_bad = manifest(folder, [("missing.wav", "x")], "bad.csv")
    with pytest.raises(ValueError, match="no usable row"):
        read_manifest(only_bad, skip_bad=True)


def test_stereo_and_other_rates_are_converted_and_said(folder):
    corpus = read_manifest(manifest(folder, [("stereo.wav", "one"), ("phone.wav", "two")]))
    assert any("1 recording mixed from 2 channels to mono" in n for n in corpus.notes)
    assert any("resampled from 8000 Hz to 16000 Hz, nothing above half" in n for n in corpus.notes)
    np.testing.assert_allclose(read_audio(folder / "stereo.wav"), 0.25 * TONE, atol=1e-4)
    assert len(read_audio(folder / "phone.wav")) == RATE


def test_a_folder_with_a_jsonl_manifest_and_groups(folder):
    rows = [{"path": "good.wav", "text": "a", "group": "s1"}, {"path": "good.wav", "text": "b", "group": "s1"}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    corpus = load(str(folder), task="asr")
    assert corpus.groups == ["s1", "s1"]
    assert sum(len(part) > 0 for part in corpus.split()) == 1


def test_what_is_no_manifest_says_so(folder):
    with pytest.raises(ValueError, match=r"has no manifest\.csv"):
        load(str(folder), task="asr")
    with pytest.raises(ValueError, match="did you mean speech:child"):
        load("speech-child", task="asr")
    with pytest.raises(ValueError, match="did you mean child"):
        load("speech:chld", task="asr")
    with pytest.raises(ValueError, match="no such manifest"):
        load("nowhere.csv", task="asr")
