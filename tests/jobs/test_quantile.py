import shutil
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from skops import io

from rankwise.jobs.quantile import base_models, fit_table, judge_table, load_fit, predict_table

FAST = {"models": ["gaussian", "linear"], "quantiles": (0.05, 0.25, 0.5, 0.75, 0.95)}


def table(n: int = 240) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    out = pd.DataFrame({"size": rng.normal(size=n), "town": rng.choice(["a", "b"], n)})
    out["price"] = 3 * out["size"] + 5 * (out["town"] == "a") + rng.normal(size=n)
    out.loc[3, "size"] = np.nan
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantile")
    table().to_csv(folder / "rows.csv", index=False)
    return folder, fit_table(folder / "rows.csv", "price", folder / "out", **FAST)


def test_words_and_gaps_are_used_and_scores_are_of_held_out_rows(run):
    _, fitted = run
    assert fitted.about["rows"] == 192
    assert len(fitted.observed) == fitted.about["test_rows"] == 48
    assert list(fitted.about["scores"]) == ["aggregate", "average", "gaussian", "linear"]
    alone = 2 * np.abs(table()["price"] - table()["price"].median()).mean() / 2
    assert fitted.about["scores"]["aggregate"] < 0.5 * alone  # the town alone is worth 5


def test_a_folder_gives_the_same_model_back_and_no_draft_stays(run):
    folder, fitted = run
    again = load_fit(folder / "out")
    np.testing.assert_allclose(again.quantiles, fitted.quantiles)
    assert again.about == fitted.about
    assert sorted(p.name for p in folder.iterdir()) == ["out", "rows.csv"]


def test_predictions_follow_the_rows_of_the_file(run, tmp_path):
    folder, fitted = run
    table().drop(columns="price").iloc[::-1].to_parquet(tmp_path / "new.parquet")
    found = predict_table(load_fit(folder / "out"), tmp_path / "new.parquet")
    assert list(found) == ["q0.05", "q0.25", "q0.5", "q0.75", "q0.95"]
    straight = predict_table(fitted, folder / "rows.csv")
    np.testing.assert_allclose(found.to_numpy()[::-1], straight.to_numpy(), rtol=1e-5)


def test_another_file_is_judged_on_its_own_rows(run, tmp_path):
    table(400).iloc[240:].to_json(tmp_path / "later.jsonl", orient="records", lines=True)
    judged = judge_table(run[1], tmp_path / "later.jsonl")
    assert judged.about["test_rows"] == 160
    assert judged.about["scores"] != run[1].about["scores"]


def test_calibration_on_all_rows_is_kept_with_the_model(run, tmp_path):
    options = FAST | {"models": ["linear"], "conformal": "cv+"}
    fitted = fit_table(run[0] / "rows.csv", "price", tmp_path / "out", **options)
    assert sum(map(len, fitted.model.scores_)) == 192
    straight = predict_table(fitted, run[0] / "rows.csv")
    pd.testing.assert_frame_equal(predict_table(load_fit(tmp_path / "out"), run[0] / "rows.csv"), straight)


def test_bad_input_is_named(run, tmp_path):
    folder, fitted = run
    with pytest.raises(ValueError, match=r"'prize'.*price"):
        fit_table(folder / "rows.csv", "prize", tmp_path / "x", **FAST)
    with pytest.raises(ValueError, match=r"'town' holds 'a|'town' holds 'b"):
        fit_table(folder / "rows.csv", "town", tmp_path / "x", **FAST)
    with pytest.raises(ValueError, match="no such file"):
        fit_table(folder / "absent.csv", "price", tmp_path / "x", **FAST)
    with pytest.raises(ValueError, match="boosting"):
        base_models(["bosting"])
    table(10).to_csv(tmp_path / "few.csv")
    with pytest.raises(ValueError, match="10 rows; at least 20"):
        fit_table(tmp_path / "few.csv", "price", tmp_path / "x", **FAST)
    table()[["price"]].to_csv(tmp_path / "less.csv")
    with pytest.raises(ValueError, match=r"lacks columns.*size, town"):
        predict_table(fitted, tmp_path / "less.csv")
    assert not (tmp_path / "x").exists()


def test_columns_of_a_type_that_was_not_asked_for_are_refused(run, tmp_path):
    shutil.copytree(run[0] / "out", tmp_path / "out")
    (tmp_path / "out" / "columns.skops").write_bytes(io.dumps(Counter("ab")))
    with pytest.raises(ValueError, match=r"columns.skops is refused"):
        load_fit(tmp_path / "out")
    (tmp_path / "out" / "columns.skops").unlink()
    with pytest.raises(ValueError, match=r"columns.skops is missing"):
        load_fit(tmp_path / "out")
