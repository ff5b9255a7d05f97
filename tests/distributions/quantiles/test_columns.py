import json

import numpy as np
import pytest

from rankwise.distributions.quantiles.cells import Cells
from rankwise.distributions.quantiles.columns import MOST_VALUES, Columns


def cells(**columns) -> Cells:
    n = len(next(iter(columns.values())))
    return Cells(path="t.csv", unit="line", numbers=list(range(2, n + 2)), columns=columns, semicolons=False)


def of(table: Cells, rows=None) -> Columns:
    rows = np.arange(len(table)) if rows is None else np.asarray(rows)
    return Columns.of(table, list(table.columns), rows)


TABLE = cells(
    size=[str(v) for v in range(39)] + [None],
    town=["a"] * 18 + ["b"] * 17 + ["c"] + [None] * 4,
    day=[f"2020-01-{d:02d}" for d in range(1, 32)] + [f"2020-02-{d:02d}" for d in range(1, 10)],
)


def test_numbers_and_dates_are_standardised_and_absent_ones_the_median():
    X = of(TABLE).matrix(TABLE)
    size = np.r_[np.arange(39.0), 19.0]
    np.testing.assert_allclose(X[:, 0], (size - size.mean()) / size.std())
    np.testing.assert_allclose(X[:, -1], (np.arange(40) - 19.5) / np.arange(40).std())


def test_words_have_an_indicator_where_enough_rows_have_them_and_the_others_share_one():
    columns = of(TABLE)
    assert columns.columns[1].values == ["", "a", "b"]
    X = columns.matrix(TABLE)[:, 1:5]
    assert X.sum(0).tolist() == [4, 18, 17, 1]
    assert (X.sum(1) == 1).all()


def test_a_value_that_the_fit_did_not_see_is_as_a_rare_one():
    columns = of(TABLE)
    new = cells(size=["1", "1"], town=["c", "never seen"], day=["2020-01-01"] * 2)
    X = columns.matrix(new)
    np.testing.assert_array_equal(X[0], X[1])
    assert X[0, 1:5].tolist() == [0, 0, 0, 1]
    assert columns.unseen(new) == [
        "column 'town': 2 of 2 rows hold values that were rare or absent in the fit ('c', 'never seen'); they share "
        "one indicator"
    ]
    assert columns.unseen(TABLE) == []


def test_values_and_medians_are_of_the_rows_that_are_fitted_alone():
    rows = np.arange(18)  # town a alone
    columns = of(TABLE, rows)
    assert columns.columns[1].values == ["a"]
    assert columns.columns[0].fill == 8.5


def test_a_column_of_names_is_left_out_and_one_that_counts_rows_is_noted():
    n = 60
    table = cells(id=[f"r{i}" for i in range(n)], row=[str(i + 7) for i in range(n)], x=[str(i % 7) for i in range(n)])
    columns = of(table)
    assert [c.name for c in columns.columns] == ["row", "x"]
    assert columns.notes == [
        "column 'id' is left out: 60 different values in 60 rows, none of them in enough to learn from",
        "column 'row' counts the rows; if it is a name and no quantity, leave it out",
    ]
    with pytest.raises(ValueError, match="no column is left to predict from; column 'id' is left out"):
        Columns.of(table, ["id"], np.arange(n))


def test_no_more_than_so_many_values_have_an_indicator():
    column = of(cells(x=[f"w{i % 80}" for i in range(1600)])).columns[0]
    assert len(column.values) == MOST_VALUES
    assert column.rare == pytest.approx(1 - MOST_VALUES / 80)


@pytest.mark.parametrize("later", [["12", "34"], [12, 34], [12.0, 34.0]], ids=str)
def test_a_column_of_codes_is_one_in_a_file_of_digits_alone(later):
    codes = (["12", "34", "A1"] * 20)[:40]
    columns = of(cells(x=codes))
    np.testing.assert_array_equal(columns.matrix(cells(x=later)), columns.matrix(cells(x=["12", "34"])))
    assert columns.unseen(cells(x=later)) == []


def test_a_later_cell_of_another_kind_is_refused_with_its_place():
    columns = of(TABLE)
    with pytest.raises(ValueError, match="line 2: column 'size' holds 'large', not a finite number"):
        columns.matrix(cells(size=["large"], town=["a"], day=["2020-01-01"]))
    with pytest.raises(ValueError, match="lacks columns that the model was fitted on: size, day"):
        columns.matrix(cells(town=["a"]))


def test_columns_that_are_constant_or_empty_are_numbers_all_the_same():
    X = of(cells(flat=["3"] * 30, none=[None] * 30, x=[str(i % 5) for i in range(30)])).matrix(
        cells(flat=["4"], none=["a"], x=["2"])
    )
    assert np.isfinite(X).all()


def test_json_gives_the_same_columns_back():
    columns = of(TABLE)
    again = Columns.from_json(json.loads(json.dumps(columns.as_json())), "columns.json")
    assert again == columns
    np.testing.assert_array_equal(again.matrix(TABLE), columns.matrix(TABLE))


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "code"}, {"reading": "__import__"}, {"scale": 0}, {"scale": float("nan")}, {"fill": "x"}, {"name": 3},
        {"values": ["a"] * 1000}, {"values": [[]]}, {"values": 7}, {"more": 1}, {"centre": None}, {"rare": np.inf},
    ],
    ids=str,
)  # fmt: skip
def test_another_description_is_refused_by_file(change):
    said = of(TABLE).as_json()
    said["columns"][0] |= change
    with pytest.raises(ValueError, match=r"columns\.json does not describe columns"):
        Columns.from_json(said, "columns.json")
    with pytest.raises(ValueError, match=r"columns\.json does not describe columns"):
        Columns.from_json({"columns": 3, "notes": []}, "columns.json")


def test_fifty_values_have_an_indicator_and_no_more():
    for kinds, kept in ((50, 50), (51, 50)):
        column = of(cells(x=[f"w{i % kinds:02d}" for i in range(40 * kinds)])).columns[0]
        assert len(column.values) == kept
        assert column.rare == pytest.approx(1 - kept / kinds)
    said = of(TABLE).as_json()
    said["columns"][1]["values"] = [str(i) for i in range(50)]
    assert Columns.from_json(said, "c.json").columns[1].width == 51
    said["columns"][1]["values"].append("50")
    with pytest.raises(ValueError, match="'town' has 51 values"):
        Columns.from_json(said, "c.json")


def test_a_column_says_how_it_becomes_numbers():
    size, town, day = of(TABLE).as_json()["columns"]
    values = np.r_[np.arange(39.0), 19.0]
    assert size == {
        "name": "size", "kind": "number", "reading": "point", "fill": 19.0, "centre": pytest.approx(values.mean()),
        "scale": pytest.approx(values.std()), "values": [], "rare": 0.0,
    }  # fmt: skip
    assert town == {
        "name": "town", "kind": "words", "reading": "", "fill": 0.0, "centre": 0.0, "scale": 1.0,
        "values": ["", "a", "b"], "rare": pytest.approx(1 / 40),
    }  # fmt: skip
    assert (day["kind"], day["reading"], day["fill"]) == ("date", "ISO8601", 18262 + 19.5)
    assert [c.width for c in of(TABLE).columns] == [1, 4, 1]
    assert of(TABLE).width == 6
    assert of(TABLE).matrix(TABLE).shape == (40, 6)


@pytest.mark.parametrize(("n", "enough"), [(20, 2), (60, 3), (100, 5), (200, 10), (900, 10)])
def test_a_value_is_learned_from_so_many_rows(n, enough):
    column = ["many"] * (n - 2 * enough + 1) + ["some"] * enough + ["few"] * (enough - 1)
    assert of(cells(x=column)).columns[0].values == ["many", "some"]


def test_new_values_are_told_where_they_are_many_more_than_in_the_fit():
    columns = of(cells(x=["a"] * 45 + ["b"] * 45 + [f"r{i}" for i in range(10)]))
    assert columns.columns[0].rare == pytest.approx(0.1)
    few = cells(x=["a"] * 80 + ["new"] * 20)
    more = cells(x=["a"] * 79 + ["new"] * 11 + ["newer"] * 7 + ["newest"] * 2 + ["last"])
    assert columns.unseen(few) == []  # a tenth of the rows more
    assert columns.unseen(more) == [
        "column 'x': 21 of 100 rows hold values that were rare or absent in the fit ('new', 'newer', 'newest'); they "
        "share one indicator"
    ]


def test_a_column_that_does_not_vary_is_not_divided_by_rounding():
    columns = of(cells(x=["3"] * 30, y=["0"] * 30, z=[None] * 30, w=["1e-9", "2e-9"] * 15))
    assert [(c.fill, c.scale) for c in columns.columns[:2]] == [(3.0, 1.0), (0.0, 1.0)]
    assert columns.columns[-1].scale == pytest.approx(5e-10)
    assert columns.columns[2].kind == "words"
    assert columns.notes == []


@pytest.mark.parametrize(
    ("values", "counts"), [([7, 8, 9], True), ([7, 8], False), ([7, 8, 10], False), ([9, 8, 7], False)]
)
def test_a_column_counts_rows_where_each_is_one_more(values, counts):
    notes = of(cells(x=[str(v) for v in values] + [], y=["1"] * len(values))).notes
    assert any("counts the rows" in note for note in notes) == counts
