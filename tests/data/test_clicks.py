"""Judged documents and click logs in every form, against scikit-learn's reader and what was written."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_svmlight_file

from rankwise.data.clicks import read_click_log, read_judged, read_ultra

LINES = "# from 2008\n2 qid:7 1:0.5 3:-1e-1 # docid = GX001 inc = 1\n0 qid:7 2:1\n\n1 qid:b 1:2 # d9\n"
LOG = "query,doc,position,click,session\n7,GX001,2,1,s\n7,2,1,0,s\n7,GX001,1,1,t\nb,d9,1,false,s\n"


def written(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_svmlight_lines_are_read_as_scikit_learn_reads_them_with_names_of_documents(tmp_path):
    path = written(tmp_path / "docs.svm", LINES)
    docs = read_judged(path)
    X, y, qid = load_svmlight_file(str(written(tmp_path / "n.svm", LINES.replace("qid:b", "qid:8"))), query_id=True,
                                   zero_based=True)  # fmt: skip
    assert np.array_equal(docs.features, X.toarray())
    assert np.array_equal(docs.relevance, y)
    assert docs.query.tolist() == ["7", "7", "b"]
    assert qid.tolist() == [7, 7, 8]
    assert docs.document.tolist() == ["GX001", "2", "d9"]
    assert docs.with_features(6).features.shape == (3, 6)
    with pytest.raises(ValueError, match="4 features, numbered from 0, and 2 are known"):
        docs.with_features(2)


def test_lightgbms_groups_stand_beside_and_have_to_add_up(tmp_path):
    path = written(tmp_path / "rank.train", "0 1:1\n1 1:2\n2 1:3\n")
    with pytest.raises(ValueError, match="no qid, and there is no file of group sizes"):
        read_judged(path)
    written(tmp_path / "rank.train.query", "1\n2\n")
    assert read_judged(path).query.tolist() == ["1", "2", "2"]
    written(tmp_path / "rank.train.query", "1\n3\n")
    with pytest.raises(ValueError, match=r"add up to 4, and .* has 3 rows"):
        read_judged(path)


def test_lightgbms_own_example_is_read():
    path = Path(__file__).parents[3] / "shared/data/lightgbm-rank/rank.test"
    if not path.is_file():
        pytest.skip("shared data are absent")
    docs = read_judged(path)
    assert len(set(docs.query.tolist())) == 50
    assert set(docs.relevance) <= {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("x qid:1 1:1", "line 1: the grade is 'x'"),
        ("1 qid:1 a:1", "line 1: 'a:1' is no feature"),
        ("1 qid:1 1:nan", "line 1: feature 1 is 'nan'"),
        ("1 qid:1 1:1 1:2", "a feature stands there twice"),
        ("# nothing", "has no documents"),
        ("", "has no documents"),
        ("1 qid:1 1:1 # a\n1 qid:1 1:1 # a", "document a of query 1 stands there twice"),
        ("1 qid:1 1:1\n1 1:1", "some lines have a qid"),
        ("1 qid:1 999999999:1", "documents of"),
    ],
)
def test_lines_that_are_none_are_refused_with_their_number(tmp_path, line, said):
    extra = "\n0 qid:2 1:1" if "999999999" in line else ""
    with pytest.raises(ValueError, match=said):
        read_judged(written(tmp_path / "docs.svm", line + extra))


def test_a_log_is_lists_of_documents_with_the_features_of_a_file(tmp_path):
    docs = read_judged(written(tmp_path / "docs.svm", LINES))
    log = read_click_log(written(tmp_path / "log.csv", LOG), docs)
    assert log.document.tolist() == [0, 1, 0, 2]
    assert log.clicks.tolist() == [1, 0, 1, 0]
    assert log.position.tolist() == [2, 1, 1, 1]
    assert log.showing.tolist() == [0, 0, 1, 2]
    assert log.query.tolist() == ["7", "7", "7", "b"]


def test_features_may_be_columns_and_the_file_parquet(tmp_path):
    table = pd.DataFrame({"query": [1, 1, 1], "doc": ["a", "b", "a"], "position": [1, 2, 1], "click": [1, 0, 0],
                          "timestamp": [5, 5, 6], "bm25": [0.5, 1.5, 0.5], "age": [1, 2, 1]})  # fmt: skip
    table.to_parquet(tmp_path / "log.parquet")
    log = read_click_log(tmp_path / "log.parquet")
    assert log.features.tolist() == [[0.5, 1.0], [1.5, 2.0]]
    assert log.document.tolist() == [0, 1, 0]
    assert log.showing.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (",click", ",clicked", "unknown column 'click'; did you mean clicked"),
        ("2,1,s", "2,2,s", "line 2: 'click' is 2, 0 or 1 is accepted"),
        ("2,1,s", "0,1,s", "line 2: 'position' is 0, a whole number from 1 on"),
        ("2,1,s", ",1,s", "line 2: 'position' is empty"),
        ("2,1,s", "1.5,1,s", "line 2: 'position' is 1.5"),
        (",t", ",s", "line 4: query 7, session s has position 1 twice: .* session or timestamp"),
        ("b,d9", "b,d8", "unknown document of query b 'd8'; did you mean d9"),
        ("b,d9", "q7,d9", "not among the features: unknown query 'q7'"),
        ("2,1,s\n7,2,1", "3,1,s\n7,2,1", "query 7, session s has position 3 and no position 2: every place"),
    ],
)
def test_logs_that_are_wrong_are_refused_with_the_line(tmp_path, old, new, said):
    docs = read_judged(written(tmp_path / "docs.svm", LINES))
    with pytest.raises(ValueError, match=said):
        read_click_log(written(tmp_path / "log.csv", LOG.replace(old, new)), docs)


def test_a_log_without_features_or_with_changing_ones_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no column of features"):
        read_click_log(written(tmp_path / "log.csv", "query,doc,position,click\n1,a,1,0\n"))
    with pytest.raises(ValueError, match="document a of query 1 has another 'x' than before"):
        read_click_log(written(tmp_path / "log.csv", "query,doc,position,click,session,x\n1,a,1,0,s,1\n1,a,1,0,t,2\n"))
    with pytest.raises(ValueError, match="has no rows"):
        read_click_log(written(tmp_path / "log.csv", "query,doc,position,click,x\n"))


def test_ultras_format_is_read_in_the_order_of_its_lists_without_padding_and_removed_features(tmp_path):
    written(tmp_path / "settings.json", '{"feature_size": 3, "max_label": 4, "removed_feature_ids": [2]}')
    written(tmp_path / "train/train.feature", "d0 1:1 2:9 3:3\nd1 1:2\nd2 3:4\n")
    written(tmp_path / "train/train.init_list", "q1 2 0 -1\nq2 1\n")
    written(tmp_path / "train/train.labels", "q1 3 0 0\nq2 1\n")
    docs = read_ultra(tmp_path, "train")
    assert docs.features.tolist() == [[0, 4], [1, 3], [2, 0]]
    assert docs.relevance.tolist() == [3, 0, 1]
    assert docs.query.tolist() == ["q1", "q1", "q2"]
    assert docs.document.tolist() == ["d2", "d0", "d1"]
    for labels, said in (("q1 3 0\nq2 1\n", "query q1 has 3 documents and 2 labels"),
                         ("q1 3 0 nan\nq2 1\n", "line 1: is not a finite number: 'nan'")):  # fmt: skip
        written(tmp_path / "train/train.labels", labels)
        with pytest.raises(ValueError, match=said):
            read_ultra(tmp_path, "train")


def ultra(folder):
    """Two parts of a folder in ULTRA's format, of two features."""
    written(folder / "settings.json", '{"feature_size": 2}')
    for part, query, grade in (("train", "q1", 2), ("test", "q2", 1)):
        written(folder / part / f"{part}.feature", "d0 1:1 2:3\nd1 1:2\n")
        written(folder / part / f"{part}.init_list", f"{query} 1 0 -1\n")
        written(folder / part / f"{part}.labels", f"{query} {grade} 0 0\n")
    return folder


def test_a_folder_of_ultras_is_all_of_its_parts_and_one_of_them_itself(tmp_path):
    docs, part = read_judged(ultra(tmp_path)), read_judged(tmp_path / "test")
    assert docs.query.tolist() == ["q1", "q1", "q2", "q2"]
    assert docs.document.tolist() == ["d1", "d0"] * 2
    assert docs.features.tolist() == [[2, 0], [1, 3]] * 2
    assert docs.relevance.tolist() == [2, 0, 1, 0]
    assert part.query.tolist() == ["q2", "q2"]
    assert part.relevance.tolist() == [1, 0]
    log = read_click_log(written(tmp_path / "log.csv", "query,doc,position,click\nq2,d0,1,1\nq1,d1,1,0\n"), docs)
    assert log.document.tolist() == [3, 0]


def test_folders_that_are_none_of_ultras_and_documents_that_stand_twice_are_refused(tmp_path):
    ultra(tmp_path / "a")
    written(tmp_path / "b/settings.json", '{"feature_size": 2}')
    with pytest.raises(ValueError, match="holds none of ULTRA's folders train, valid, test"):
        read_judged(tmp_path / "b")
    written(tmp_path / "a/test/test.init_list", "q2 1 1 -1\n")
    with pytest.raises(ValueError, match="document d1 of query q2 stands there twice"):
        read_judged(tmp_path / "a")
    written(tmp_path / "a/test/test.init_list", "q2 -1 -1 -1\n")
    with pytest.raises(ValueError, match="lists no documents"):
        read_judged(tmp_path / "a/test")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ('{"feature_size": 0}', "feature_size is 0, a whole number from 1 on"),
        ('{"feature_size": 2}', "there is a feature 3, and feature_size is 2"),
        ('{"feature_size": 3, "removed_feature_ids": [4]}', r"removed_feature_ids is \[4\], a list of 1 to 3"),
        ('{"feature_size": 3, "removed_feature_ids": "2"}', "removed_feature_ids is '2'"),
        ('{"feature_size": 3, "removed_feature_ids": [true]}', r"removed_feature_ids is \[True\]"),
    ],
)
def test_settings_of_ultra_that_the_files_do_not_bear_out_are_refused(tmp_path, settings, said):
    written(tmp_path / "settings.json", settings)
    written(tmp_path / "train/train.feature", "d0 1:1 3:3\n")
    written(tmp_path / "train/train.init_list", "q1 0\n")
    written(tmp_path / "train/train.labels", "q1 3\n")
    with pytest.raises(ValueError, match=said):
        read_ultra(tmp_path, "train")


def test_whole_numbers_that_a_gap_made_decimal_name_the_documents_of_the_features(tmp_path):
    docs = read_judged(written(tmp_path / "docs.svm", "1 qid:7 1:1 # 10\n0 qid:7 1:2 # 11\n"))
    table = pd.DataFrame({"query": [7.0, 7.0], "doc": [11.0, 10.0], "position": [1.0, 2.0], "click": [1.0, 0.0]})
    table.to_parquet(tmp_path / "log.parquet")
    log = read_click_log(tmp_path / "log.parquet", docs)
    assert log.document.tolist() == [1, 0]
    assert log.query.tolist() == ["7", "7"]


def test_a_feature_that_is_no_number_is_said_with_its_column(tmp_path):
    with pytest.raises(
        ValueError, match="line 2: 'bm25' is not a finite number: 'high'; every column beside query, doc, position"
    ):
        read_click_log(written(tmp_path / "log.csv", "query,doc,position,click,bm25\n1,a,1,0,high\n"))
