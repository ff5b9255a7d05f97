import json
from pathlib import Path

import pytest

from rankwise import reading
from rankwise.data import load, read_file
from rankwise.data.tables import number, read_table, write_rows

ROWS = [{"text": "good, really", "label": "pos"}, {"text": 'bad "quote"\nline', "label": "neg"}]
CSV = 'text,label\n"good, really",pos\n"bad ""quote""\nline",neg\n'


def write(tmp_path, name, text, encoding="utf-8"):
    path = tmp_path / name
    path.write_bytes(text.encode(encoding) if isinstance(text, str) else text)
    return path


def parquet(rows):
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), out)
    return out.getvalue().to_pybytes()


def folded(suffix, data):
    import bz2
    import gzip
    import lzma

    import pyarrow

    zstd = lambda d: pyarrow.compress(d, codec="zstd", asbytes=True)  # noqa: E731
    return {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd}[suffix](data)


SAME = {
    "a.csv": CSV,
    "a.CSV": CSV,
    "bom.csv": "\ufeff" + CSV,
    "spaces.csv": CSV.replace("text,label", "\ntext , label "),
    "returns.csv": CSV.replace("\n", "\r\n").replace("\r\nline", "\nline"),
    "a.tsv": 'text\tlabel\ngood, really\tpos\n"bad ""quote""\nline"\tneg\n',
    "semicolons.csv": 'text;label\ngood, really;pos\n"bad ""quote""\nline";neg\n',
    "bars.csv": 'text|label\ngood, really|pos\n"bad ""quote""\nline"|neg\n',
    "a.jsonl": "\n".join(map(json.dumps, ROWS)),
    "a.ndjson": "\n\n".join(map(json.dumps, ROWS)),
    "a.json": json.dumps(ROWS),
    "a.parquet": parquet(ROWS),
    **{f"a.csv.{s}": folded(s, CSV.encode()) for s in ("gz", "bz2", "xz", "zst")},
    "a.JSONL.GZ": folded("gz", "\n".join(map(json.dumps, ROWS)).encode()),
    "a.json.xz": folded("xz", json.dumps(ROWS).encode()),
}


@pytest.mark.parametrize("name", list(SAME))
def test_every_kind_of_file_gives_the_same_corpus(tmp_path, name):
    corpus = read_file(write(tmp_path, name, SAME[name]))
    assert corpus.texts == [r["text"] for r in ROWS]
    assert corpus.labels == [1, 0]
    assert corpus.label_names == ["neg", "pos"]


def test_other_columns_regression_and_unlabelled_text(tmp_path):
    path = write(tmp_path, "a.csv", "body,stars\nfine,4.5\npoor,1\n")
    assert read_file(path, text_column="body", label_column="stars", regression=True).labels == [4.5, 1.0]
    assert read_file(path, text_column="body", label_column=None).labels == []
    assert load(str(path), task="causal-lm", text_column="body").texts == ["fine", "poor"]


def test_a_group_column_keeps_documents_together(tmp_path):
    path = write(tmp_path, "a.csv", "text,label,group\n" + "".join(f"t{i},{i % 2},g{i % 7}\n" for i in range(100)))
    splits = read_file(path).split()
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 100
    assert not set(splits.train.groups) & set(splits.test.groups)
    numbered = write(tmp_path, "a.jsonl", "\n".join(json.dumps({"text": t, "label": t, "group": 0}) for t in "ab"))
    assert read_file(numbered).groups == ["0", "0"]


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("a.csv", "txt,label\nx,1\n", r"a\.csv, line 2: unknown column 'text'; did you mean txt"),
        ("a.csv", "text,label\nx,1\n ,2\n", r"line 3: column 'text' is empty"),
        ("a.csv", "text,label\nx,1\ny,\n", r"line 3: column 'label' is empty"),
        ("a.csv", 'text,label\n"x\n\n",1\n\ny\n', r"line 6: column 'label' is empty"),
        ("a.csv", "text,label\nx,1\ny,1\n", r"one class only \('1'\)"),
        ("a.csv", "text,label\n", "has no rows"),
        ("a.csv", "", "has no rows"),
        ("a.csv", "text,label\nx,1,7\n", "line 2: 3 cells, more than the 2 columns"),
        ("a.csv", 'text,label\nx,1\n"y,2\nz,3\n', "line 3: unexpected end of data; a cell that begins with a quote"),
        ("a.csv", 'text,label\n"x" y,1\n', "line 2: ',' expected after '\"'"),
        ("a.csv", "text,label,text\nx,1,y\n", "column 'text' stands 2 times in the header"),
        ("a.csv", "text;label;label\nx;1;2\n", "column 'label' stands 2 times in the header"),
        ("a.jsonl", '{"text": "x", "label": 1}\n{"text": \n', r"line 2 is not valid JSON"),
        ("a.jsonl", "[1]\n", "line 1: an object is needed"),
        ("a.jsonl", '{"text": ["x"], "label": 1}\n', "line 1: column 'text' holds list, text or a number is needed"),
        ("a.json", '{"text": "x"}', r"a\.json: a list is needed"),
        ("a.json", "[[1]]", "row 1: an object is needed"),
        ("a.json", json.dumps([{"text": "x", "label": 1}, {"text": "y", "label": None}]), "row 2: column 'label' is"),
        ("a.txt", "x", "unknown file type"),
        ("a.txt.gz", "x", "unknown file type '.txt'"),
        ("a.parquet.gz", "x", "parquet is compressed inside"),
        ("a.csv.gz", "text,label\n", "cannot be decompressed"),
        ("a.csv", "text,label\nx,a b\ny,A b\nz,nan\n", "line 4: column 'label' is 'nan', which stands for a missing"),
        ("a.csv", "text,label\nx,1\ny,1.0\n", "writes one number as '1' and as '1.0'"),
        ("a.csv", "text,label\n" + "".join(f"t{i},name {i}\n" for i in range(50)), "50 classes in 50 rows"),
        ("a.csv", "text,label\n" + "".join(f"t{i},{i / 7}\n" for i in range(60)), "numbers are for the task"),
    ],
)
def test_complaints_name_file_line_and_column(tmp_path, name, text, match):
    with pytest.raises(ValueError, match=match):
        read_file(write(tmp_path, name, text))


@pytest.mark.parametrize("missing", ["nan", "NaN", "NA", "N/A", "null", "None", "<NA>", "#N/A"])
def test_what_tools_write_for_a_missing_label_is_no_class(tmp_path, missing):
    with pytest.raises(ValueError, match=rf"line 3: column 'label' is '{missing}'"):
        read_file(write(tmp_path, "a.csv", f"text,label\nx,1\ny,{missing}\nz,2\n"))
    with pytest.raises(ValueError, match=r"row 2: column 'label' is empty"):
        read_file(
            write(tmp_path, "a.parquet", parquet([{"text": "x", "label": 1.0}, {"text": "y", "label": float("nan")}]))
        )


def test_a_class_may_be_called_none(tmp_path):
    assert read_file(write(tmp_path, "a.csv", "text,label\nx,none\ny,joy\n")).label_names == ["joy", "none"]


@pytest.mark.parametrize(
    ("label", "said"),
    [("high", "'high'"), ("nan", "'nan'"), ("inf", "'inf'"), ("-Infinity", "'-Infinity'"), ("1e39", "'1e39'"),
     ("1_000", "'1_000'"), ('"4,5"', "'4,5'; write a decimal point"), ('"1,234.5"', "'1,234.5'"), ("٣", "'٣'")],
)  # fmt: skip
def test_a_label_of_regression_is_a_finite_number(tmp_path, label, said):
    with pytest.raises(ValueError, match=rf"a\.csv, line 3: column 'label' is not a finite number: {said}$"):
        read_file(write(tmp_path, "a.csv", f"text,label\nx,1\ny,{label}\n"), regression=True)


def test_numbers_are_read_as_python_writes_them():
    for text in ("1", "-2.5", "+.5", "3.", "1e-3", "6.02E+23"):
        assert number(text) == float(text)


def test_decimal_commas_are_read_where_the_separator_is_another(tmp_path):
    corpus = read_file(write(tmp_path, "a.csv", "text;label\nx;4,5\ny;-1\nz;,25\n"), regression=True)
    assert corpus.labels == [4.5, -1.0, 0.25]
    assert "commas in 'label' are decimal points" in corpus.notes[0]
    points = read_file(write(tmp_path, "b.csv", "text;label\nx;4.5\ny;1\n"), regression=True)
    assert (points.labels, points.notes) == ([4.5, 1.0], [])
    with pytest.raises(ValueError, match=r"line 3: column 'label' has a decimal comma in '1,5' and a point in '1.234'"):
        read_file(write(tmp_path, "c.csv", "text;label\nx;1.234\ny;1,5\n"), regression=True)


@pytest.mark.parametrize(("name", "mark"), [("a.csv", ";"), ("a.csv", "|"), ("a.tsv", "\t")])
def test_a_point_that_may_group_or_divide_is_refused_where_commas_may_be_decimal(tmp_path, name, mark):
    def labels(*written):
        text = "".join(f"t{i}{mark}{label}\n" for i, label in enumerate(written))
        return read_file(write(tmp_path, name, f"text{mark}label\n{text}"), regression=True).labels

    with pytest.raises(ValueError, match=r"line 3: column 'label' holds '1.234', which may be 1234 or 1.234; write"):
        labels("950", "1.234", "-12.500")
    assert labels("950", "1234", "-12500") == [950, 1234, -12500]
    assert labels("950", "1,234", "-12,5") == [950, 1.234, -12.5]
    for settles, value in (("0.125", 0.125), ("2.5", 2.5), ("1.2345", 1.2345), ("1.25e2", 125)):
        assert labels("950", "1.234", settles) == [950, 1.234, value]
    by_commas = write(tmp_path, "b.csv", "text,label\nx,950\ny,1.234\n")
    assert read_file(by_commas, regression=True).labels == [950, 1.234]


def test_rows_refuse_what_would_be_shifted_or_renamed(tmp_path):
    with pytest.raises(ValueError, match="line 2: 3 cells, more than the 2 columns"):
        list(read_table(write(tmp_path, "a.csv", "x,y\n1,2,3\n4,5,6\n")).rows)
    with pytest.raises(ValueError, match="column 'x' stands 2 times"):
        list(read_table(write(tmp_path, "b.csv", "x,x\n1,2\n")).rows)


def test_a_cell_may_be_longer_than_the_csv_modules_bound(tmp_path):
    import csv

    before = csv.field_size_limit()
    long = "word " * 100_000
    assert read_file(write(tmp_path, "a.csv", f"text,label\n{long},1\ny,2\n")).texts[0] == long.strip()
    assert csv.field_size_limit() == before


def test_a_file_that_unfolds_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "UNFOLDS_TO", (100_000, 2))
    monkeypatch.setattr("rankwise.data.tables.UNFOLDS_TO", (100_000, 2))
    bomb = folded("xz", b"text,label\n" + b"x,1\n" * 2_000_000)
    with pytest.raises(ValueError, match=r"a\.csv\.xz unfolds to more than"):
        read_file(write(tmp_path, "a.csv.xz", bomb))
    with pytest.raises(ValueError, match=r"a\.parquet unfolds to more than"):
        read_file(write(tmp_path, "a.parquet", parquet([{"text": "x", "label": 1}] * 200_000)))


def test_classes_that_are_numbers_stand_in_their_order(tmp_path):
    path = write(tmp_path, "a.csv", "text,label\n" + "".join(f"t{i},{i % 11}\n" for i in range(40)))
    corpus = read_file(path)
    assert corpus.label_names == [str(i) for i in range(11)]
    assert corpus.labels == [i % 11 for i in range(40)]
    mixed = write(tmp_path, "b.csv", "text,label\nx,10\ny,9\nz,a\n")
    assert read_file(mixed).label_names == ["10", "9", "a"]


def test_classes_are_those_of_the_training_file_where_it_is_known(tmp_path):
    test = write(tmp_path, "test.csv", "text,label\nx,c\ny,a\n")
    assert read_file(test, classes=["a", "b", "c"]).labels == [2, 0]
    with pytest.raises(ValueError, match=r"test\.csv, line 2, column 'label': unknown class 'c'; accepted: a, b"):
        read_file(test, classes=["a", "b"])
    one = write(tmp_path, "one.csv", "text,label\nx,b\n")
    assert read_file(one, classes=["a", "b"]).labels == [1]


def test_odd_classes_are_told(tmp_path):
    rows = "".join(f"t{i},{'Yes' if i % 2 else 'no'}\n" for i in range(9))
    notes = read_file(write(tmp_path, "a.csv", f"text,label\n{rows}u,yes\nv,rare\n")).notes
    assert "2 of 4 classes have one row only: rare, yes" in notes[0]
    assert "Yes and yes are different classes" in notes[1]


def test_chats_become_text_by_the_template(tmp_path):
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    path = write(tmp_path, "a.jsonl", json.dumps({"messages": chat}) + "\n")
    template = lambda messages: " | ".join(f"{m['role']}: {m['content']}" for m in messages)  # noqa: E731
    assert load(str(path), task="causal-lm", chat=template).texts == ["user: Hi | assistant: Hello"]
    with pytest.raises(ValueError, match="line 1: column 'messages' holds a chat, which only causal-lm reads"):
        load(str(path), task="classification", chat=template)
    for broken in ([{"role": "user"}], ["hi"], [{"role": "user", "content": [{"type": "image"}]}]):
        path = write(tmp_path, "b.jsonl", json.dumps({"messages": broken}))
        with pytest.raises(ValueError, match="every message needs a role and a content"):
            load(str(path), task="causal-lm", chat=template)
    with pytest.raises(ValueError, match="column 'messages' is empty"):
        load(str(write(tmp_path, "c.json", '[{"messages": []}]')), task="causal-lm", chat=template)


def test_other_encodings_are_refused_with_the_place(tmp_path):
    path = write(tmp_path, "a.csv", "text,label\nfine,1\ncafé,2\n", encoding="latin-1")
    with pytest.raises(ValueError, match=r"a\.csv, line 3, column 4: not UTF-8 \(byte 0xe9\)"):
        read_file(path)
    with pytest.raises(ValueError, match=r"a\.csv, line 3, column 4: not UTF-8"):
        list(read_table(path).rows)


def test_broken_parquet_is_named(tmp_path):
    for broken in (b"nope", parquet(ROWS)[:-20], b""):
        with pytest.raises(ValueError, match=r"a\.parquet cannot be read as parquet"):
            read_file(write(tmp_path, "a.parquet", broken))


def test_missing_files_and_names_are_told_apart(tmp_path):
    with pytest.raises(ValueError, match="no such data file"):
        load(str(tmp_path / "none.csv"))
    with pytest.raises(ValueError, match="is no regular file"):
        load(str(tmp_path))
    with pytest.raises(ValueError, match="sentiment:movies"):
        load("sentimentmovies")


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json", "a.parquet"])
def test_rows_are_written_as_they_are_read(tmp_path, name):
    write_rows(tmp_path / name, ROWS)
    assert [row for _, row in read_table(tmp_path / name).rows] == ROWS


def test_the_sample_of_a_sorted_file_is_not_its_beginning(tmp_path):
    rows = "".join(f"text {i},{int(i >= 500)}\n" for i in range(1000))
    corpus = read_file(write(tmp_path, "a.csv", f"text,label\n{rows}")).head(100)
    assert len(corpus) == 100
    assert 30 <= sum(corpus.labels) <= 70


def test_what_a_corpus_is_changes_with_its_rows_and_not_with_its_place(tmp_path):
    (tmp_path / "b").mkdir()
    one, moved = (read_file(write(p, "a.csv", CSV)) for p in (tmp_path, tmp_path / "b"))
    assert one.fingerprint() == moved.fingerprint()
    for changed in (CSV.replace("pos", "POS"), CSV.replace("good", "god"), CSV + "more,pos\n"):
        assert read_file(write(tmp_path, "a.csv", changed)).fingerprint() != one.fingerprint()
    assert isinstance(one.name, str)
    assert Path(one.name).name == "a.csv"


def test_a_line_of_gigabytes_is_one_error_and_no_memory(tmp_path, monkeypatch):
    from rankwise.data import tables

    monkeypatch.setattr(tables, "MOST_LINE", 1000)
    for content in ("x" * 1000, "text,label\n" + "x" * 1000, "text,label\n" + '"' + "x\n" * 2000 + '",a\n'):
        (tmp_path / "a.csv").write_text(content)
        with pytest.raises(ValueError, match=r"a\.csv, line \d"):
            read_file(tmp_path / "a.csv")
