import fcntl
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.model_selection import train_test_split

from rankwise.distributions.quantiles import kept as quantile_kept
from rankwise.distributions.quantiles.metrics import weighted_interval_score
from rankwise.files import content_of
from rankwise.jobs.quantile import base_models, fit_table, judge_table, load_fit, predict_table

FAST = {"models": ["linear"], "quantiles": (0.05, 0.25, 0.5, 0.75, 0.95)}


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
    return folder, fit_table(folder / "rows.csv", "price", folder / "out", **FAST | {"models": ["gaussian", "linear"]})


def test_words_and_gaps_are_used_and_scores_are_of_held_out_rows(run):
    _, fitted = run
    assert fitted.about["rows"] == 192
    assert len(fitted.observed) == fitted.about["test_rows"] == 48
    assert list(fitted.about["scores"]) == ["calibrated", "aggregate", "average", "gaussian", "linear"]
    alone = 2 * np.abs(table()["price"] - table()["price"].median()).mean() / 2
    assert fitted.about["scores"]["aggregate"] < 0.5 * alone  # the town alone is worth 5


def test_columns_are_told_by_rows_that_neither_judge_nor_calibrate(run):
    fitted = run[1]
    train, _ = train_test_split(np.arange(240), test_size=0.2, random_state=0)
    rows = train[fitted.model.fitting_rows(192)]
    assert len(rows) == 154
    size = table()["size"].iloc[rows]
    assert fitted.columns.columns[0].fill == pytest.approx(size.median())
    assert fitted.columns.columns[0].centre == pytest.approx(size.fillna(size.median()).mean())


def test_forecasts_are_compared_in_order_and_before_calibration(run, tmp_path):
    folder, fitted = run
    judged = judge_table(fitted, folder / "rows.csv")
    model, tau = fitted.model, np.array(FAST["quantiles"])
    before = model.predict_uncalibrated(fitted.columns.matrix(_cells(folder / "rows.csv")))
    y = judged.observed
    assert judged.about["scores"]["aggregate"] == pytest.approx(weighted_interval_score(y, before, tau))
    assert judged.about["scores"]["calibrated"] == pytest.approx(weighted_interval_score(y, judged.quantiles, tau))
    X = fitted.columns.matrix(_cells(folder / "rows.csv"))
    raw = model.bases_[0].predict(X, list(tau))[:, ::-1]  # as crossed as can be
    model.bases_[0].predict = lambda X, quantiles: raw
    crossed = judge_table(fitted, folder / "rows.csv").about["scores"]["gaussian"]
    del model.bases_[0].predict
    assert crossed == pytest.approx(judged.about["scores"]["gaussian"])


def _cells(path: Path):
    from rankwise.distributions.quantiles.cells import read_cells

    return read_cells(path)


def test_a_folder_gives_the_same_model_back_and_no_draft_stays(run):
    folder, fitted = run
    again = load_fit(folder / "out")
    np.testing.assert_allclose(again.quantiles, fitted.quantiles, rtol=1e-12)
    assert again.about == fitted.about
    assert again.columns == fitted.columns
    assert sorted(p.name for p in folder.iterdir()) == ["out", "rows.csv"]
    marker = json.loads((folder / "out" / ".rankwise.json").read_text())
    assert marker["told"]["data"] == content_of(folder / "rows.csv")
    assert {p.suffix for p in (folder / "out").rglob("*") if p.is_file()} == {".json", ".csv", ".safetensors"}


def test_predictions_follow_the_rows_of_the_file(run, tmp_path):
    folder, fitted = run
    table().drop(columns="price").iloc[::-1].to_parquet(tmp_path / "new.parquet")
    found = predict_table(load_fit(folder / "out"), tmp_path / "new.parquet")
    assert list(found) == ["q0.05", "q0.25", "q0.5", "q0.75", "q0.95"]
    straight = predict_table(fitted, folder / "rows.csv")
    np.testing.assert_allclose(found.to_numpy()[::-1], straight.to_numpy(), rtol=1e-5)
    assert found.attrs["notes"] == []


def test_another_file_is_judged_on_its_own_rows(run, tmp_path):
    table(400).iloc[240:].to_json(tmp_path / "later.jsonl", orient="records", lines=True)
    judged = judge_table(run[1], tmp_path / "later.jsonl")
    assert judged.about["test_rows"] == 160
    assert judged.about["scores"] != run[1].about["scores"]


def test_calibration_on_all_rows_is_kept_with_the_model(run, tmp_path):
    fitted = fit_table(run[0] / "rows.csv", "price", tmp_path / "out", **FAST | {"conformal": "cv+"})
    assert sum(map(len, fitted.model.scores_)) == 192
    straight = predict_table(fitted, run[0] / "rows.csv")
    pd.testing.assert_frame_equal(predict_table(load_fit(tmp_path / "out"), run[0] / "rows.csv"), straight)


def test_bad_input_is_named(run, tmp_path):
    folder, fitted = run
    with pytest.raises(ValueError, match=r"'prize'.*price"):
        fit_table(folder / "rows.csv", "prize", tmp_path / "x", **FAST)
    with pytest.raises(ValueError, match=r"line 2: column 'town' holds 'a', not|column 'town' holds 'b', not"):
        fit_table(folder / "rows.csv", "town", tmp_path / "x", **FAST)
    with pytest.raises(ValueError, match="no such data file"):
        fit_table(folder / "absent.csv", "price", tmp_path / "x", **FAST)
    with pytest.raises(ValueError, match="boosting"):
        base_models(["bosting"])
    with pytest.raises(ValueError, match="linear, linear; at least one, each once"):
        base_models(["linear", "linear"])
    with pytest.raises(ValueError, match="unknown column to leave out 'sise'; did you mean size"):
        fit_table(folder / "rows.csv", "price", tmp_path / "x", **FAST, leave_out=["sise"])
    table(10).to_csv(tmp_path / "few.csv")
    with pytest.raises(ValueError, match="10 rows; at least 20"):
        fit_table(tmp_path / "few.csv", "price", tmp_path / "x", **FAST)
    table()[["price"]].to_csv(tmp_path / "less.csv")
    with pytest.raises(ValueError, match=r"lacks columns.*size, town"):
        predict_table(fitted, tmp_path / "less.csv")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["few.csv", "less.csv"]


def places(folder: Path) -> dict[str, Path]:
    (folder / "thesis").mkdir()
    (folder / "thesis" / "chapter.txt").write_text("years")
    (folder / "a file").write_text("kept")
    return {
        "the working folder": Path(),
        "home": Path.home(),
        "above home": Path.home().parent,
        "the folder of the input": folder,
        "with other things": folder / "thesis",
        "a file": folder / "a file",
        "a device": Path("/dev/null"),
    }


@pytest.mark.parametrize(
    "place",
    ["the working folder", "home", "above home", "the folder of the input", "with other things", "a file", "a device"],
)
def test_a_place_that_holds_something_else_is_refused_before_the_work(run, tmp_path, monkeypatch, place):
    shutil.copy(run[0] / "rows.csv", tmp_path / "rows.csv")
    out = places(tmp_path)[place]
    monkeypatch.setattr("rankwise.jobs.quantile.read_cells", lambda path: pytest.fail("work was begun"))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"replaced|a folder is written|give another name"):
        fit_table(tmp_path / "rows.csv", "price", out, **FAST)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years"


def test_an_earlier_fit_is_replaced_and_one_that_was_added_to_is_not(run, tmp_path):
    first = fit_table(run[0] / "rows.csv", "price", tmp_path / "out", **FAST)
    second = fit_table(run[0] / "rows.csv", "price", tmp_path / "out", **FAST | {"seed": 1})
    assert not np.array_equal(first.observed, second.observed)
    np.testing.assert_allclose(load_fit(tmp_path / "out").observed, second.observed)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds notes\.txt, added or changed"):
        fit_table(run[0] / "rows.csv", "price", tmp_path / "out", **FAST)


@pytest.fixture
def cut_short(monkeypatch):
    """Fits of bases, which stop at the fourth."""
    made, fit = [], quantile_kept.fit_base

    def stops(e, *given):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(type(e).__name__)
        return fit(e, *given)

    monkeypatch.setattr(quantile_kept, "fit_base", stops)

    def goes_on():
        made.clear()
        monkeypatch.setattr(quantile_kept, "fit_base", lambda e, *given: (made.append(1), fit(e, *given))[1])
        return made

    return goes_on


@pytest.mark.parametrize("changed", ["nothing", "data", "options"])
def test_fits_of_a_run_cut_short_are_used_where_data_and_options_are_the_same(run, tmp_path, cut_short, changed):
    shutil.copy(run[0] / "rows.csv", tmp_path / "rows.csv")
    with pytest.raises(KeyboardInterrupt):
        fit_table(tmp_path / "rows.csv", "price", tmp_path / "out", **FAST)
    assert not (tmp_path / "out").exists()
    made, options = cut_short(), dict(FAST)
    if changed == "data":  # the same rows and size, one figure another
        text = (tmp_path / "rows.csv").read_text()
        (tmp_path / "rows.csv").write_text(text[:-3] + str((int(text[-3]) + 1) % 10) + text[-2:])
    elif changed == "options":
        options["seed"] = 5
    again = fit_table(tmp_path / "rows.csv", "price", tmp_path / "out", **options)
    assert len(made) == (3 if changed == "nothing" else 6)  # of five folds and one on all rows
    fresh = fit_table(tmp_path / "rows.csv", "price", tmp_path / "fresh", **options)
    np.testing.assert_array_equal(again.quantiles, fresh.quantiles)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fresh", "out", "rows.csv"]


def test_two_commands_with_one_output_do_not_mix(run, tmp_path):
    draft = tmp_path / ".out.rankwise-draft"
    draft.mkdir()
    with (draft / ".rankwise-draft").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another command is writing"):
            fit_table(run[0] / "rows.csv", "price", tmp_path / "out", **FAST)


def test_a_folder_of_an_earlier_version_is_refused_in_one_line(run, tmp_path):
    shutil.copytree(run[0] / "out", tmp_path / "out")
    (tmp_path / "out" / "columns.skops").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"out is of an earlier version, .* run code: fit again$"):
        load_fit(tmp_path / "out")


CHANGES = {
    "columns.json": [{"columns": [], "notes": []}, {"columns": 3}, []],
    "results.json": [{}, {"target": "price"}, []],
}


@pytest.mark.parametrize(("name", "k"), [(n, k) for n, said in CHANGES.items() for k in range(len(said))])
def test_a_changed_folder_is_refused_by_name(run, tmp_path, name, k):
    shutil.copytree(run[0] / "out", tmp_path / "out")
    (tmp_path / "out" / name).write_text(json.dumps(CHANGES[name][k]))
    with pytest.raises(ValueError, match="out"):
        load_fit(tmp_path / "out")


def test_results_that_are_no_numbers_or_texts_are_refused(run, tmp_path):
    for key, value in (("scores", {"aggregate": "<b>"}), ("notes", [3]), ("rows", "many"), ("intervals", [{}]),
                       ("target_reading", "pickle")):  # fmt: skip
        shutil.copytree(run[0] / "out", tmp_path / key)
        about = json.loads((tmp_path / key / "results.json").read_text()) | {key: value}
        (tmp_path / key / "results.json").write_text(json.dumps(about))
        with pytest.raises(ValueError, match=f"{key} is broken"):
            load_fit(tmp_path / key)
    with pytest.raises(ValueError, match="holds no fit of `rankwise quantile fit`"):
        load_fit(tmp_path)


def with_names(n: int, seed: int) -> pd.DataFrame:
    """A table whose rows have names, a date in German form, a decimal comma, and towns of which some are rare."""
    rng = np.random.default_rng(seed)
    size, town = rng.normal(size=n).round(2), rng.zipf(1.6, n).clip(max=500)
    return pd.DataFrame({
        "id": [f"customer {seed} {i}" for i in range(n)],
        "day": pd.Series(pd.date_range("2020-01-01", periods=n)).dt.strftime("%d.%m.%Y"),
        "size": [f"{v:.2f}".replace(".", ",") for v in 1000 * size],
        "town": [f"t{v}" for v in town],
        "price": (3 * size + np.sqrt(town) + rng.normal(size=n)).round(4),
    })  # fmt: skip


@pytest.mark.parametrize("conformal", ["cqr", "cv+"])
def test_intervals_of_a_linear_model_cover_their_level_where_rows_have_names(tmp_path, conformal):
    covered = []
    for seed in range(3):
        with_names(1500, seed).to_csv(tmp_path / "later.csv", index=False)
        with_names(500, seed + 50).to_csv(tmp_path / "rows.csv", index=False)
        fitted = fit_table(
            tmp_path / "rows.csv", "price", tmp_path / "out", models=["linear"], quantiles=(0.05, 0.5, 0.95), seed=seed,
            conformal=conformal,
        )  # fmt: skip
        assert [c.name for c in fitted.columns.columns] == ["day", "size", "town"]
        assert "column 'id' is left out" in fitted.about["notes"][0]
        covered.append(judge_table(fitted, tmp_path / "later.csv").about["intervals"][0]["coverage"])
    assert np.mean(covered) == pytest.approx(0.9, abs=0.06)  # 240 rows calibrate: three standard deviations


def test_a_semicolon_file_with_decimal_commas_and_grouped_thousands_is_read_as_numbers(tmp_path):
    rng = np.random.default_rng(0)
    size, price = rng.uniform(100, 9000, 200), rng.uniform(0, 1, 200)
    price = 10 * size + 100 * price
    plain = pd.DataFrame({"size": size.round(2), "price": price.round(1)})
    plain.to_csv(tmp_path / "plain.csv", index=False)
    written = plain.map(lambda v: f"{v:,.2f}".translate(str.maketrans(",.", ".,")))
    written.to_csv(tmp_path / "european.csv", index=False, sep=";")
    fits = [fit_table(tmp_path / f"{n}.csv", "price", tmp_path / n, **FAST) for n in ("plain", "european")]
    np.testing.assert_allclose(fits[1].quantiles, fits[0].quantiles, rtol=1e-9)
    assert judge_table(fits[1], tmp_path / "european.csv").about["scores"] == pytest.approx(
        judge_table(fits[0], tmp_path / "plain.csv").about["scores"]
    )


def test_sorted_files_are_split_at_random(run, tmp_path):
    ordered = table(400).sort_values("price")
    ordered.to_csv(tmp_path / "rows.csv", index=False)
    fitted = fit_table(tmp_path / "rows.csv", "price", tmp_path / "out", **FAST)
    assert np.quantile(fitted.observed, [0.1, 0.9]) == pytest.approx(np.quantile(ordered["price"], [0.1, 0.9]), abs=2.5)
    assert fitted.about["intervals"][0]["coverage"] > 0.8


def test_codes_are_the_same_codes_in_a_file_of_digits_alone(tmp_path):
    rng = np.random.default_rng(0)
    code = rng.choice(["12", "34", "A1"], 300)
    rows = pd.DataFrame({"code": code, "price": 10.0 * (code == "12") + rng.normal(size=300)})
    rows.to_csv(tmp_path / "rows.csv", index=False)
    fitted = fit_table(tmp_path / "rows.csv", "price", tmp_path / "out", **FAST)
    pd.DataFrame({"code": [12, 34]}).to_csv(tmp_path / "digits.csv", index=False)
    median = predict_table(fitted, tmp_path / "digits.csv")["q0.5"]
    assert median[0] == pytest.approx(10, abs=1.5)
    assert median[1] == pytest.approx(0, abs=1.5)


def test_files_are_added_before_the_folder_appears(run, tmp_path):
    def page(fitted, folder):
        assert not (tmp_path / "out").exists()
        (folder / "page.html").write_text(fitted.about["target"])

    fit_table(run[0] / "rows.csv", "price", tmp_path / "out", **FAST, page=page)
    assert (tmp_path / "out" / "page.html").read_text() == "price"
    fit_table(run[0] / "rows.csv", "price", tmp_path / "out", **FAST)  # the page is one of its files: replaced
    assert not (tmp_path / "out" / "page.html").exists()


def test_few_rows_of_calibration_are_noted(tmp_path):
    table(60).to_csv(tmp_path / "rows.csv", index=False)
    fitted = fit_table(tmp_path / "rows.csv", "price", tmp_path / "out", **FAST | {"quantiles": (0.01, 0.5, 0.99)})
    assert any("10 rows of calibration guarantee intervals down to alpha" in n for n in fitted.about["notes"])
