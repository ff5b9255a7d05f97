import lzma
import pickle
import shutil

import numpy as np
import pytest

from rankwise.data import frames
from rankwise.data.frames import REGRESSION, SURVIVAL, regression, survival


def test_lung_is_the_published_trial():
    lung = survival("lung")
    assert lung["event"].mean() == pytest.approx(0.71, abs=0.02)  # 165 of 228 before rows with gaps are left out
    assert lung["time"].max() == pytest.approx(1022 / 365.25)
    assert survival("melanoma").shape == (205, 6)
    assert survival("melanoma")["event"].sum() == 57
    assert survival("veteran")["event"].sum() == 128


@pytest.mark.parametrize("name", SURVIVAL)
def test_survival_tables_are_numeric_and_complete(name):
    df = survival(name)
    assert np.isfinite(df.to_numpy()).all()
    assert set(df["event"]) == {0.0, 1.0}
    assert (df["time"] > 0).all()


@pytest.mark.parametrize("name", REGRESSION)
def test_regression_tables_are_numeric_and_complete(name):
    X, y = regression(name)
    assert np.isfinite(X.to_numpy()).all()
    assert len(X) == len(y) > 300
    assert y.name not in X.columns


def test_unknown_tables_name_the_nearest():
    with pytest.raises(ValueError, match="did you mean lung"):
        survival("lungs")
    with pytest.raises(ValueError, match="did you mean boston"):
        regression("bostn")


def test_a_pickle_that_was_put_into_the_cache_is_not_read(tmp_path, monkeypatch):
    class Planted:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    real = frames.members
    folder = shutil.copytree(real(frames._ARCHIVE, [], folder="data/frames-0.2.10"), tmp_path / "cache")
    monkeypatch.setattr(frames, "members", lambda *_, **__: folder)
    assert len(frames.survival("lung")) == 213
    with lzma.open(folder / "lung.pkl.compress", "wb") as stream:
        pickle.dump(Planted(), stream)
    with pytest.raises(ValueError, match="is not what the package holds"):
        frames.survival("lung")
    assert not (tmp_path / "ran").exists()
