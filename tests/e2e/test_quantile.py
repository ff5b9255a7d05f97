"""``rankwise quantile`` on a real table, as a person would run it."""

import json

import pandas as pd
import pytest

from command import rankwise
from rankwise.data.frames import regression


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("quantile")
    X, y = regression("concrete")
    X.assign(compressive_strength=y).to_csv(root / "concrete.csv", index=False)
    done = rankwise(
        "quantile", "fit", root / "concrete.csv", "--response", "compressive_strength", "--out", root / "out",
        "--models", "gaussian,forest",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return root, done.stdout


def test_fit_prints_scores_and_coverage_in_eighty_columns_and_writes_page_and_plot(run):
    root, printed = run
    for word in ("calibrated", "aggregate", "gaussian", "forest", "average", "95%", "coverage", "report.html"):
        assert word in printed
    assert max(len(line) for line in printed.splitlines() if str(root) not in line) <= 80
    assert {"fan.png", "report.html", "results.json", "test.csv", "model"} <= {p.name for p in (root / "out").iterdir()}
    assert "data:image/png" in (root / "out" / "report.html").read_text()


def test_the_aggregate_is_better_than_the_average_and_intervals_cover(run):
    results = json.loads((run[0] / "out" / "results.json").read_text())
    assert results["scores"]["aggregate"] < results["scores"]["average"]
    wide = results["intervals"][0]
    assert wide["nominal"] == pytest.approx(0.95)
    assert 0.88 < wide["coverage"] <= 1  # 165 rows calibrate, 206 judge: three standard deviations are 6.8 points


def test_predict_writes_ascending_quantiles_and_report_judges_another_file(run):
    root, _ = run
    done = rankwise("quantile", "predict", root / "out", root / "concrete.csv", "--out", root / "p.csv")
    assert done.returncode == 0, done.stderr
    found = pd.read_csv(root / "p.csv")
    assert len(found) == 1030
    refused = rankwise("quantile", "predict", root / "out", root / "concrete.csv", "--out", root / "concrete.csv")
    assert refused.returncode == 2
    assert "concrete.csv is read by the same command" in refused.stderr
    assert (found.diff(axis=1).iloc[:, 1:] >= 0).all(axis=None)
    again = rankwise("quantile", "report", root / "out", "--data", root / "concrete.csv", "--json")
    assert json.loads(again.stdout)["test_rows"] == 1030


def test_a_wrong_target_is_one_line_that_names_the_nearest(run):
    done = rankwise("quantile", "fit", run[0] / "concrete.csv", "--response", "strength", "--out", run[0] / "x")
    assert done.returncode == 2
    assert "compressive_strength" in done.stderr
    assert not (run[0] / "x").exists()


def test_the_working_folder_is_never_the_output(run, tmp_path):
    (tmp_path / "rows.csv").write_text("size,price\n" + "1,2\n" * 30)
    (tmp_path / "thesis.txt").write_text("years")
    done = rankwise("quantile", "fit", "rows.csv", "--response", "price", "--out", ".", cwd=tmp_path)
    assert done.returncode == 2
    assert "is the working folder" in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rows.csv", "thesis.txt"]


def test_a_semicolon_file_with_names_decimal_commas_and_markup_is_fitted_and_noted(tmp_path):
    rows = [f"[bold]{i}[/b]\x1b[2J;{i % 17},5;{3 * (i % 17) + i % 5},25;{1 + i % 28:02d}.03.2024" for i in range(120)]
    (tmp_path / "rows.csv").write_text("name;size;price;day\n" + "\n".join(rows))
    done = rankwise(
        "quantile", "fit", tmp_path / "rows.csv", "--response", "price", "--out", tmp_path / "out",
        "--models", "linear",
        "--levels", "0.1,0.5,0.9", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "note: column 'name' is left out: 77 different values in 77 rows" in done.stderr
    assert json.loads(done.stdout)["columns"] == ["size", "day"]
    again = rankwise("quantile", "predict", tmp_path / "out", tmp_path / "rows.csv", "--out", tmp_path / "p.parquet")
    assert again.returncode == 0, again.stderr
    assert list(pd.read_parquet(tmp_path / "p.parquet")) == ["q0.1", "q0.5", "q0.9"]
