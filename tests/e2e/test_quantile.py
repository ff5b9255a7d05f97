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
        "quantile", "fit", root / "concrete.csv", "--target", "compressive_strength", "--out", root / "out", "--models",
        "gaussian,forest",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return root, done.stdout


def test_fit_prints_scores_and_coverage_in_eighty_columns_and_writes_page_and_plot(run):
    root, printed = run
    for word in ("aggregate", "gaussian", "forest", "average", "95%", "coverage", "report.html"):
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
    assert (found.diff(axis=1).iloc[:, 1:] >= 0).all(axis=None)
    again = rankwise("quantile", "report", root / "out", "--data", root / "concrete.csv", "--json")
    assert json.loads(again.stdout)["test_rows"] == 1030


def test_a_wrong_target_is_one_line_that_names_the_nearest(run):
    done = rankwise("quantile", "fit", run[0] / "concrete.csv", "--target", "strength", "--out", run[0] / "x")
    assert done.returncode == 2
    assert "compressive_strength" in done.stderr
    assert not (run[0] / "x").exists()
