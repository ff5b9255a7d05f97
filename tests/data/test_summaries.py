"""Files of summaries: both forms say the same, and what is wrong is named by its line."""

import json
import os
import zipfile
from pathlib import Path

import pandas as pd
import pytest

from rankwise.data.personal import ASPECTS, aclsum, opinosis, pens
from rankwise.data.summaries import Summaries, read_summaries

DATA = Path(os.environ.get("RANKWISE_DATA", Path(__file__).parents[3] / "shared" / "data"))
DOCUMENT = {
    "doc_id": "N1",
    "doc_text": "The states sue.",
    "doc_summ": "Title",
    "m_summary_dict": {"ann": {"user": "states sue", "T5": "a suit"}, "bob": {"user": "a new rule", "T5": "a suit"}},
}
TABLE = (
    "doc_id,uid,doc_summ,doc_text,user,T5\n"
    "N1,ann,Title,The states sue.,states sue,a suit\nN1,bob,Title,The states sue.,a new rule,a suit\n"
)


def written(tmp_path, text, name="data.jsonl"):
    path = tmp_path / name
    path.write_text(text if isinstance(text, str) else "".join(json.dumps(row) + "\n" for row in text), "utf-8")
    return path


def test_the_authors_lines_and_a_table_say_the_same(tmp_path):
    lines = read_summaries(written(tmp_path, [DOCUMENT]))
    assert lines.documents == {"N1": "Title The states sue."}
    assert lines.users == {"N1": {"ann": "states sue", "bob": "a new rule"}}
    assert lines.systems == {"T5": {"N1": {"ann": "a suit", "bob": "a suit"}}}
    assert read_summaries(written(tmp_path, TABLE, "data.csv")) == lines
    assert Summaries.of_rows(pd.read_csv(tmp_path / "data.csv")) == lines
    rows = pd.read_csv(tmp_path / "data.csv").to_dict("records")
    assert read_summaries(written(tmp_path, rows, "rows.jsonl")) == lines


@pytest.mark.parametrize("name", ["one.jsonl", "one.json"])
@pytest.mark.parametrize("value", [DOCUMENT, [DOCUMENT]])
def test_one_value_over_many_lines_is_read_as_the_authors_sample_is(tmp_path, name, value):
    assert read_summaries(written(tmp_path, json.dumps(value, indent=1), name)).documents == {
        "N1": "Title The states sue."
    }


def test_cells_that_are_empty_are_summaries_that_are_absent(tmp_path):
    found = read_summaries(written(tmp_path, "doc_id;uid;user;T5\nN1;ann;states sue;\nN1;bob;a rule;suit\n", "a.csv"))
    assert found.systems == {"T5": {"N1": {"ann": "", "bob": "suit"}}}
    assert found.documents == {"N1": ""}
    frame = pd.DataFrame({"doc_id": [1, 1], "uid": [7, 8], "user": ["a", "b"], "T5": [None, "c"]})
    assert Summaries.of_rows(frame).systems == {"T5": {"1": {"7": "", "8": "c"}}}
    gap = pd.DataFrame({"doc_id": [1.0], "uid": [7.0], "user": ["a"], "T5": ["b"]})
    assert Summaries.of_rows(gap).users == {"1": {"7": "a"}}


def test_systems_are_chosen_by_name(tmp_path):
    found = read_summaries(written(tmp_path, TABLE.replace("T5", "T6"), "a.csv"))
    assert list(found.only(["T6"]).systems) == ["T6"]
    with pytest.raises(ValueError, match="did you mean T6"):
        found.only(["T7"])
    with pytest.raises(ValueError, match="systems are T6, T6; each once"):
        found.only(["T6", "T6"])


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([DOCUMENT, DOCUMENT], "line 2: document N1 stands there before"),
        ([{**DOCUMENT, "doc_id": None}], "line 1: 'doc_id' is None"),
        ([{**DOCUMENT, "doc_id": True}], "'doc_id' is True"),
        ([{k: v for k, v in DOCUMENT.items() if k != "doc_id"}], "line 1: .*doc_id"),
        ([{**DOCUMENT, "m_summary_dict": []}], "object of texts a reader"),
        ([{**DOCUMENT, "m_summary_dict": {"ann": "x"}}], "object of texts a reader"),
        ([{**DOCUMENT, "m_summary_dict": {"ann": {"user": 3}}}], "'user' of reader ann is int"),
        ([{**DOCUMENT, "doc_text": ["x"]}], "document's text is list"),
        ([{**DOCUMENT, "m_summary_dict": {"ann": {"user": "x"}}}], "has no system"),
        ([{**DOCUMENT, "m_summary_dict": {"ann": {"user": "x", " ": "y"}}}], "has no name"),
        (
            '{"doc_id": "N1", "m_summary_dict": {"ann": {"user": "a", "T5": "b"}, "ann": {"user": "c"}}}',
            "'ann' stands twice",
        ),
        ([], "has no summaries"),
        ("{", "not valid JSON"),
        ("[3]", "line 1.* object is needed, found int|found a list"),
    ],
)
def test_a_broken_line_is_named(tmp_path, rows, said):
    with pytest.raises(ValueError, match=said) as refused:
        read_summaries(written(tmp_path, rows))
    assert "data.jsonl" in str(refused.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            TABLE + "N1,ann,Title,The states sue.,again,a suit\n",
            "line 4: document N1 and reader ann stand there",
        ),
        (TABLE.replace("uid", "reader"), "line 2: .*uid"),
        (TABLE + "N1,cid,Title,Another text.,x,y\n", "line 4: document N1 has another text"),
        (TABLE + ",cid,,,x,y\n", "line 4: 'doc_id' is ''"),
        ("doc_id,uid,user\nN1,ann,x\n", "no system"),
        (",doc_id,uid,user,T5\n0,N1,ann,x,y\n", "line 2: a column or key has no name"),
        ("doc_id,uid,user,T5\n", "no summaries"),
    ],
)
def test_a_broken_row_is_named(tmp_path, text, said):
    with pytest.raises(ValueError, match=said):
        read_summaries(written(tmp_path, text, "data.csv"))


def test_other_types_of_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="file type"):
        read_summaries(written(tmp_path, "x", "data.txt"))


def test_opinosis_is_read_from_its_archive_or_its_folder(tmp_path):
    files = {
        "topics/battery.txt.data": b"It lasts .\n\n It\x92s fine .\n",
        "summaries-gold/battery/battery.1.gold": b"lasts\nlong",
        "summaries-gold/battery/battery.2.gold": b"fine",
    }
    with zipfile.ZipFile(tmp_path / "OpinosisDataset1.0_0.zip", "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
            (tmp_path / "open" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "open" / name).write_bytes(data)
    for folder in (tmp_path, tmp_path / "open"):
        (found,) = opinosis(folder)
        assert (found.id, found.sentences) == ("battery", ["It lasts .", "It’s fine ."])
        assert found.wrote == {"1": "lasts long", "2": "fine"}
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="does not hold Opinosis"):
        opinosis(tmp_path / "empty")
    (tmp_path / "empty" / "Opinosis.zip").write_text("no archive")
    with pytest.raises(ValueError, match="cannot be read as an archive"):
        opinosis(tmp_path / "empty")


def test_headlines_are_in_the_order_of_their_lines_and_the_first_of_a_pair_counts(tmp_path):
    header = "userid\tclicknewsID\tposnewID\trewrite_titles\n"
    rows = header + 'NT1\tN0\tN1,N2,N1\t"states ""sue"";;;;again"\nNT2\tN0\tN1\train\n'
    (tmp_path / "personalized_test.tsv").write_text(rows)
    (tmp_path / "hyps_A.txt").write_text("one\ntwo\nthree\n")
    found = pens(tmp_path)
    assert found.users == {"N1": {"NT1": 'states "sue"', "NT2": "rain"}}
    assert found.systems == {"A": {"N1": {"NT1": "one", "NT2": "three"}}}
    (tmp_path / "hyps_A.txt").write_text("one\ntwo\n")
    with pytest.raises(ValueError, match="2 lines where 3 headlines"):
        pens(tmp_path)
    (tmp_path / "personalized_test.tsv").write_text(rows.replace(";;again", ""))
    with pytest.raises(ValueError, match="is not of PENS, or broken"):
        pens(tmp_path)
    (tmp_path / "personalized_test.tsv").write_text(rows.replace("posnewID", "x"))
    with pytest.raises(ValueError, match="is not of PENS, or broken"):
        pens(tmp_path)
    with pytest.raises(ValueError, match="does not hold PENS"):
        pens(tmp_path / "nowhere")


def test_papers_are_summarised_and_marked_by_three_readers():
    papers = aclsum()
    assert len({p.id for p in papers}) == 250
    assert all(set(p.wrote) == set(p.marked) == set(ASPECTS) and all(p.wrote.values()) for p in papers)
    assert all(max(m, default=0) < len(p.sentences) for p in papers for m in p.marked.values())
    assert sum(len(m) > 0 for p in papers for m in p.marked.values()) > 700
