import json

import pytest

from rankwise.data import load, read_file


def write(tmp_path, name, text, encoding="utf-8"):
    path = tmp_path / name
    path.write_bytes(text.encode(encoding))
    return path


def test_csv_jsonl_tsv_and_parquet_give_the_same_corpus(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"text": "good, really", "label": "pos"}, {"text": 'bad "quote"\nline', "label": "neg"}]
    csv = write(tmp_path, "a.csv", 'text,label\n"good, really",pos\n"bad ""quote""\nline",neg\n')
    tsv = write(tmp_path, "a.tsv", 'text\tlabel\ngood, really\tpos\n"bad ""quote""\nline"\tneg\n')
    jsonl = write(tmp_path, "a.jsonl", "\n".join(map(json.dumps, rows)))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for path in (csv, tsv, jsonl, tmp_path / "a.parquet"):
        corpus = read_file(path)
        assert corpus.texts == [r["text"] for r in rows]
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


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("a.csv", "txt,label\nx,1\n", r"a\.csv, line 2: unknown column 'text'; did you mean txt"),
        ("a.csv", "text,label\nx,1\n ,2\n", r"line 3: column 'text' is empty"),
        ("a.csv", "text,label\nx,1\ny,\n", r"line 3: column 'label' is empty"),
        ("a.csv", "text,label\nx,1\ny,1\n", r"one class only \('1'\)"),
        ("a.csv", "text,label\n", "has no rows"),
        ("a.csv", "text,label\nx,1,7\n", "line 2: more cells"),
        ("a.jsonl", '{"text": "x", "label": 1}\n{"text": \n', "line 2 is not valid JSON"),
        ("a.jsonl", "[1]\n", "line 1: an object is needed, found a list"),
        ("a.txt", "x", "unknown file type"),
    ],
)
def test_complaints_name_file_line_and_column(tmp_path, name, text, match):
    with pytest.raises(ValueError, match=match):
        read_file(write(tmp_path, name, text))


def test_other_encodings_are_refused_with_the_place(tmp_path):
    path = write(tmp_path, "a.csv", "text,label\nfine,1\ncafé,2\n", encoding="latin-1")
    with pytest.raises(ValueError, match=r"a\.csv, line 3, column 4: not UTF-8 \(byte 0xe9\)"):
        read_file(path)


def test_not_a_number_and_broken_parquet_are_named(tmp_path):
    with pytest.raises(ValueError, match="line 2: column 'label' is not a number: 'high'"):
        read_file(write(tmp_path, "a.csv", "text,label\nx,high\n"), regression=True)
    with pytest.raises(ValueError, match="cannot be read as parquet"):
        read_file(write(tmp_path, "a.parquet", "nope"))


def test_missing_files_and_names_are_told_apart(tmp_path):
    with pytest.raises(ValueError, match="no such data file"):
        load(str(tmp_path / "none.csv"))
    with pytest.raises(ValueError, match="sentiment:movies"):
        load("sentimentmovies")
