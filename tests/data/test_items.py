"""Libraries from csv files: what is read, and what is refused by line."""

import pytest

from rankwise.data.items import Item, read_items


def written(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "items.csv"
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("between", [",", ";", "\t"])
def test_columns_come_in_any_order_with_any_separator_and_others_are_passed_over(tmp_path, between):
    rows = [["Tags", "year", "ID", "title"], ['"blues; live"', "1999", "s1", '"Slow, Water"'], ["", "", "s2", ""]]
    text = "\n".join(between.join(row) for row in rows)
    if between == ";":
        assert read_items(written(tmp_path, text))[0].tags == ("blues", "live")
    first, second = read_items(written(tmp_path, "\ufeff" + text))
    assert first == Item(id="s1", title="Slow, Water", tags=("blues", "live"))
    assert second == Item(id="s2")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,title\nx,y\n", "unknown column 'id'.*name, title"),
        ("id,title\n", "no item below its header"),
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("id,title\na,x\na,y\n", "line 3: the id 'a' is there twice"),
        ("id,title\n,x\n", "line 2: the id ''"),
        ("id,title\na,x,y\n", "line 2: as many columns"),
        ("id,title\na\n", "line 2: as many columns"),
        ('id,"title\na,x\n', "unexpected end of data"),
        ('id,title\na,"x\n', "unexpected end of data"),
        ("sep=,\n", "is empty"),
        ("id\n" + "x" * 201, "1 to 200 bytes"),
    ],
)
def test_what_is_no_library_is_named_with_its_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_items(written(tmp_path, text))


def test_a_file_that_is_not_utf8_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"(?i)utf-8"):
        read_items(written(tmp_path, "id,title\na,Größe\n", "latin-1"))


def test_what_spreadsheets_add_is_passed_over_and_lines_are_counted_with_it(tmp_path):
    text = "\ufeffsep=;\r\nid;title\r\ns1;Slow\r\n;\r\n\r\ns2;Water\r\n;\r\n"
    assert [item.id for item in read_items(written(tmp_path, text))] == ["s1", "s2"]
    with pytest.raises(ValueError, match="line 6: the id 's1' is there twice"):
        read_items(written(tmp_path, text.replace("s2", "s1")))
    with pytest.raises(ValueError, match="line 3: as many columns"):
        read_items(written(tmp_path, text.replace("Slow", "Slow;Ann")))
