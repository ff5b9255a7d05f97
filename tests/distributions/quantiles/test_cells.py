import datetime as dt
import json
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from rankwise.distributions.quantiles.cells import (
    Cells,
    days_of,
    evidence_of,
    kind_of,
    numbers_of,
    read_cells,
    target_of,
    word_of,
)


def cells(semicolons: bool = False, **columns) -> Cells:
    n = len(next(iter(columns.values())))
    numbers = list(range(2, n + 2))
    return Cells(path="t.csv", unit="line", numbers=numbers, columns=columns, semicolons=semicolons)


def kind(column: list, semicolons: bool = False, **others) -> tuple[str, str]:
    table = cells(semicolons, x=column, **others)
    return kind_of(table, "x", evidence_of(table, list(table.columns)))


def values(column: list, reading: str) -> list[float]:
    return numbers_of(cells(x=column), "x", reading).tolist()


@pytest.mark.parametrize(
    ("column", "reading", "expected"),
    [
        (["1", "2.5", "-3e2", ".5", "4."], "point", [1, 2.5, -300, 0.5, 4]),
        (["1,5", "2", "-0,25", ",5"], "comma", [1.5, 2, -0.25, 0.5]),
        (["1.234,5", "12.345.678", "7"], "comma", [1234.5, 12345678, 7]),
        (["1 234,5", "1\u202f234\u00a0567", "8"], "comma", [1234.5, 1234567, 8]),
        (["1'234,5", "1’234"], "comma", [1234.5, 1234]),
        (["1,234.5", "12,345,678", "999"], "point", [1234.5, 12345678, 999]),
        ([1, 2.5, Decimal("3.5"), None, "4.5"], "point", [1, 2.5, 3.5, np.nan, 4.5]),
    ],
)
def test_numbers_are_read_as_they_are_written(column, reading, expected):
    column = [float(c) if isinstance(c, Decimal) else c for c in column]
    assert kind(column) == ("number", reading)
    np.testing.assert_array_equal(values(column, reading), expected)


@pytest.mark.parametrize(
    ("column", "semicolons", "others", "reading"),
    [
        (["1.234", "2.500"], False, {}, "point"),  # in a file separated by commas
        (["1,234", "2,500"], True, {}, "comma"),  # by semicolons
        (["1,234", "2,500"], False, {"y": ["0.5", "1.25"]}, "point"),  # thousands, as points are decimal elsewhere
        (["1.234", "2.500"], True, {"y": ["0,5", "1,25"]}, "comma"),  # thousands
        (["1.234", "2.500"], True, {"y": ["0.5", "1.25"]}, "point"),
        (["1.234", "0.500"], True, {}, "point"),  # no group of thousands begins with 0
        (["1,234", "-0,500"], False, {"y": ["0.5", "1.25"]}, "comma"),
    ],
)
def test_a_mark_that_may_group_or_divide_is_settled_by_the_file(column, semicolons, others, reading):
    assert kind(column, semicolons, **others) == ("number", reading)


@pytest.mark.parametrize(("column", "semicolons"), [(["1,234", "2,500"], False), (["1.234", "2.500"], True)])
def test_a_mark_that_may_group_or_divide_is_refused_where_nothing_settles_it(column, semicolons):
    with pytest.raises(ValueError, match=r"t.csv, line 2: column 'x' holds '1.234', which may be 1234 or 1.234; write"):
        kind(column, semicolons)
    for separator in (True, False):
        with pytest.raises(ValueError, match=r"line 2: column 'x' holds '1.234', which may be"):
            kind(column, separator, y=["0.5", "7"], z=["0,5", "7"])  # points here, commas there


@pytest.mark.parametrize(
    ("column", "reading", "first"),
    [
        (["2020-01-31", "2021-12-01"], "ISO8601", "2020-01-31"),
        (["2020-01-31T06:00:00+02:00", "2021-12-01 04:00"], "ISO8601", "2020-01-31 04:00"),
        (["31.01.2020", "01.12.2021"], "%d.%m.%Y", "2020-01-31"),
        (["31/01/2020", "01/12/2021"], "%d/%m/%Y", "2020-01-31"),
        (["01/31/2020", "12/01/2021"], "%m/%d/%Y", "2020-01-31"),
        (["2020/01/31", "2021/12/01"], "ISO8601", "2020-01-31"),
        (["31.01.20", "01.12.21"], "%d.%m.%y", "2020-01-31"),
        (["31 Jan 2020", "1 Dec 2021"], "%d %b %Y", "2020-01-31"),
        (["January 31, 2020", "December 1, 2021"], "%B %d, %Y", "2020-01-31"),
        (["31.01.2020 18:00", "01.12.2021 06:30"], "%d.%m.%Y %H:%M", "2020-01-31 18:00"),
        (["01/31/2020 06:00 PM", "12/01/2021 06:30 AM"], "%m/%d/%Y %I:%M %p", "2020-01-31 18:00"),
        ([dt.date(2020, 1, 31), dt.date(2021, 12, 1)], "ISO8601", "2020-01-31"),
        ([dt.datetime(2020, 1, 31, 6), dt.datetime(2021, 12, 1)], "ISO8601", "2020-01-31 06:00"),
        ([dt.datetime(2020, 1, 31, tzinfo=dt.UTC), None], "ISO8601", "2020-01-31"),
        ([pd.Timestamp("2020-01-31"), None], "ISO8601", "2020-01-31"),
    ],
    ids=str,
)
def test_dates_in_any_form_are_days(column, reading, first):
    assert kind(column) == ("date", reading)
    expected = (pd.Timestamp(first) - pd.Timestamp(0)) / pd.Timedelta(days=1)
    assert days_of(cells(x=column), "x", reading)[0] == pytest.approx(expected, abs=1e-9)


def test_a_day_that_may_be_a_month_is_refused():
    with pytest.raises(ValueError, match=r"line 2: column 'x' holds '03/04/2020', whose day and month may be either"):
        kind(["03/04/2020", "05/06/2021"])
    assert kind(["03/04/2020", "05/16/2021"]) == ("date", "%m/%d/%Y")
    assert kind(["04/04/2020", "05/05/2021"])[0] == "date"  # either way the same days


def test_a_later_date_of_another_form_is_refused_with_its_place():
    with pytest.raises(ValueError, match=r"line 3: column 'x' holds '2021-12-01', not a date as 31.12.2020"):
        days_of(cells(x=["31.01.2020", "2021-12-01"]), "x", "%d.%m.%Y")
    with pytest.raises(ValueError, match=r"line 2: column 'x' holds 'soon', not a date as 2020-12-31"):
        days_of(cells(x=["soon"]), "x", "ISO8601")


def test_digits_of_several_lengths_are_numbers_though_some_begin_with_zero():
    assert kind(["007", "12"]) == ("number", "point")
    assert kind(["0.07", "0.12"]) == ("number", "point")


@pytest.mark.parametrize(
    "column",
    [
        ["red", "blue", None],
        ["007", "012", "123"],  # codes of one length
        ["A1", "12", "34"],
        ["1", "2", "3+"],  # few of them
        [True, False, None],
        [None, None],
        ["Q1 2020", "Q2 2020"],
        [True, 3, 4],
    ],
    ids=str,
)
def test_codes_and_words_are_words(column):
    assert kind(column) == ("words", "")


def test_many_numbers_and_a_few_other_cells_are_no_words():
    column = [str(i / 2) for i in range(60)] + ["?"]
    with pytest.raises(ValueError, match=r"line 62: column 'x' holds '\?', and 60 of 61 other cells are numbers"):
        kind(column)
    with pytest.raises(ValueError, match=r"holds 'n.v.'"):
        kind([f"{i},5" for i in range(60)] + ["n.v."])


def test_a_number_that_is_none_is_refused_with_its_place():
    with pytest.raises(ValueError, match=r"line 3: column 'x' holds '1,5', not a finite number"):
        values(["1", "1,5"], "point")
    for value in (float("inf"), 10**400, -(10**400), "1e400", "1" * 400, 1e39):
        with pytest.raises(ValueError, match=r"line 3: column 'x' holds .*, not a finite number"):
            values(["1", value], "point")


def test_the_target_is_read_like_any_column_and_has_no_gaps():
    table = cells(y=["1.234,5", "7"], x=["a", "b"])
    assert target_of(table, "y")[0].tolist() == [1234.5, 7]
    assert target_of(table, "y")[1] == "comma"
    with pytest.raises(ValueError, match=r"line 2: column 'y' holds '1.234,5', not a finite number"):
        target_of(table, "y", "point")
    with pytest.raises(ValueError, match=r"unknown column 'z'"):
        target_of(table, "z")
    with pytest.raises(ValueError, match=r"line 3: column 'y' is empty; a number is needed"):
        target_of(cells(y=["1", None]), "y")
    with pytest.raises(ValueError, match=r"line 2: column 'x' holds 'a', not a finite number"):
        target_of(table, "x")


@pytest.mark.parametrize("kind_", ["csv", "semicolons", "tsv", "jsonl", "json", "parquet"])
def test_every_kind_of_file_gives_the_same_cells(tmp_path, kind_):
    rows = [{"code": "12", "size": 1.5, "day": "2020-01-31"}, {"code": "A1", "size": None, "day": "2021-12-01"}]
    table, path = pd.DataFrame(rows), tmp_path / f"t.{'csv' if kind_ == 'semicolons' else kind_}"
    match kind_:
        case "csv" | "tsv" | "semicolons":
            table.to_csv(path, index=False, sep={"csv": ",", "tsv": "\t", "semicolons": ";"}[kind_])
        case "parquet":
            table.to_parquet(path)
        case _:
            path.write_text("\n".join(map(json.dumps, rows)) if kind_ == "jsonl" else json.dumps(rows))
    found = read_cells(path)
    assert found.columns["code"] == ["12", "A1"]
    assert found.columns["size"] in ([1.5, None], ["1.5", None])
    assert found.columns["day"] == ["2020-01-31", "2021-12-01"]
    assert found.semicolons == (kind_ in ("semicolons", "tsv"))


def test_gaps_and_late_keys_of_rows_are_absent_cells(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"a": 1}\n{"b": " NA ", "a": "  x "}\n{"b": "c"}\n')
    assert read_cells(tmp_path / "t.jsonl").columns == {"a": [1, "x", None], "b": [None, None, "c"]}
    pd.DataFrame({"a": [Decimal("1.5"), Decimal("NaN")]}).to_parquet(tmp_path / "t.parquet")
    assert read_cells(tmp_path / "t.parquet").columns == {"a": [1.5, None]}
    (tmp_path / "t.jsonl").write_text('{"a": [1]}\n')
    with pytest.raises(ValueError, match=r"line 1, column 'a' holds list; text, a number or a date is needed"):
        read_cells(tmp_path / "t.jsonl")
    (tmp_path / "t.csv").write_text("a,b\n")
    with pytest.raises(ValueError, match="has no rows"):
        read_cells(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("cell", "word"), [(None, ""), (12.0, "12"), (12, "12"), ("12", "12"), (12.5, "12.5"), (True, "True"), (-0.0, "0")]
)
def test_a_cell_is_the_same_word_however_a_file_writes_it(cell, word):
    assert word_of(cell) == word


def test_places_are_those_of_the_file(tmp_path):
    table = cells(x=["1", "2"])
    assert len(table) == 2
    assert table.at(1) == "t.csv, line 3"
    (tmp_path / "t.csv").write_text("a,b\n1,x\n\n2,y\n")
    found = read_cells(tmp_path / "t.csv")
    assert (found.unit, found.numbers[0], found.semicolons) == ("line", 2, False)
    assert found.path == tmp_path / "t.csv"
    pd.DataFrame({"a": [1, 2]}).to_parquet(tmp_path / "t.parquet")
    assert read_cells(tmp_path / "t.parquet").unit == "row"


@pytest.mark.parametrize("bound", [3e38, -3e38])
def test_numbers_are_those_that_float32_holds(bound):
    near = 0.999 * bound
    assert values([near, str(near)], "point") == [near, near]
    for value in (bound, str(bound)):
        with pytest.raises(ValueError, match="not a finite number"):
            values([value], "point")
    with pytest.raises(ValueError, match="'x' holds 'aaa"):
        values(["a" * 200], "point")


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (["007", "012"], True), (["00", "10"], True), (["0", "1"], False), (["7", "8"], False), (["07", "123"], False),
        (["0a", "12"], False), (["²0", "00"], False),
    ],
)  # fmt: skip
def test_codes_are_digits_of_one_length_of_which_some_begin_with_zero(column, expected):
    assert (kind(column) == ("words", "") and all(c.isdigit() for c in column) and column[0] != "²0") == expected


@pytest.mark.parametrize("n", [20, 21, 22])
def test_a_column_is_nearly_of_numbers_where_more_than_twenty_differ_and_half_are(n):
    column = [str(i) for i in range(n)] + ["x"]
    if n > 20:
        with pytest.raises(ValueError, match=f"line {n + 2}: column 'x' holds 'x', and {n} of {n + 1} other cells"):
            kind(column)
        with pytest.raises(ValueError, match=f"{n} of {2 * n} other cells"):
            kind([str(i) for i in range(n)] + ["x"] * n)
        assert kind([str(i) for i in range(n)] + ["x"] * (n + 1)) == ("words", "")
    else:
        assert kind(column) == ("words", "")


def test_how_a_file_writes_numbers_is_read_from_the_columns_that_tell():
    table = cells(a=["1.5", "2"], b=["1,5", "2"], c=["1.234"], d=["x"], e=[1.5], f=["7"])
    assert evidence_of(table, ["a"]) == {"point"}
    assert evidence_of(table, ["b"]) == {"comma"}
    assert evidence_of(table, ["a", "b"]) == {"point", "comma"}
    assert evidence_of(table, ["c", "d", "e", "f", "absent"]) == set()


@pytest.mark.parametrize(
    ("text", "reading"),
    [
        ("31.01.2020", "%d.%m.%Y"), ("31-01-2020", "%d-%m-%Y"), ("01-31-2020", "%m-%d-%Y"), ("31/01/20", "%d/%m/%y"),
        ("01/31/20", "%m/%d/%y"), ("31 January 2020", "%d %B %Y"), ("Jan 31, 2020", "%b %d, %Y"),
        ("31-Jan-2020", "%d-%b-%Y"), ("31-Jan-20", "%d-%b-%y"), ("Jan 2020", "%b %Y"), ("January 2020", "%B %Y"),
        ("31.01.2020 18:00:30", "%d.%m.%Y %H:%M:%S"), ("31.01.2020 06:00:30 PM", "%d.%m.%Y %I:%M:%S %p"),
    ],
)  # fmt: skip
def test_every_form_of_a_date_is_its_day(text, reading):
    assert kind([text]) == ("date", reading)
    day = 18262 + (30 if "31" in text else 0) + (0.75 + 30 / 86400 if ":30" in text else 0)
    assert days_of(cells(x=[text, None]), "x", reading)[0] == pytest.approx(day, abs=1e-9)
    assert np.isnan(days_of(cells(x=[text, None]), "x", reading)[1])
