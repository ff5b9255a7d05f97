import subprocess
import sys

import numpy as np
import pytest
import soundfile

from rankwise.data.synthesis import DOMAINS, reverberated, speech, with_noise

FEW = (
    "import sys, rankwise.data.synthesis as s; few = s.sentences()[:6]; s.sentences = lambda: few; "
    "s.synthesise('child', sys.argv[1])"
)


def test_the_same_speech_comes_out_every_time(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        subprocess.run([sys.executable, "-c", FEW, str(tmp_path / name)], check=True)
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert len(files) == 7
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)
    samples, rate = soundfile.read(tmp_path / "a/0000.flac")
    assert rate == 16_000
    assert np.abs(samples).max() == pytest.approx(0.5, abs=1e-3)


def test_sentences_documents_and_voices_never_cross_the_split():
    splits = speech("child").split()
    assert [len(s) for s in splits] == [579, 115, 92]
    for field in ("texts", "groups"):
        train, validation, test = (set(getattr(s, field)) for s in splits)
        assert not train & validation
        assert not (train | validation) & test
    for domain in DOMAINS.values():
        names = [v.name for side in domain.voices.values() for v in side]
        assert len(set(names)) == len(names)


def test_noise_has_the_stated_ratio_and_a_pink_spectrum():
    rng, clean = np.random.default_rng(0), np.sin(np.arange(32_000) / 5)
    noise = with_noise(clean, snr=12.0, rng=rng) - clean
    assert 10 * np.log10(np.mean(clean**2) / np.mean(noise**2)) == pytest.approx(12.0, abs=1e-6)
    power = np.abs(np.fft.rfft(noise)) ** 2
    assert power[100:200].mean() / power[1000:2000].mean() == pytest.approx(10, rel=0.3)


def test_the_tail_decays_by_60_db_and_has_the_stated_energy():
    click = np.zeros(16_000)
    click[0] = 1.0
    wet = reverberated(click, rt60=0.4, direct=10.0, rng=np.random.default_rng(0))
    assert wet[0] == pytest.approx(1.0)
    assert np.sum(wet[1:] ** 2) == pytest.approx(0.1, rel=1e-6)
    level = [10 * np.log10(np.mean(wet[int(t * 16_000) :][:800] ** 2)) for t in (0.05, 0.25)]
    assert level[0] - level[1] == pytest.approx(30, abs=2)
