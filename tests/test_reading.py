"""What others wrote: one clear line for what is broken, too large, too deep or too slow."""

import json
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from rankwise import reading
from rankwise.reading import json_lines, matching, parse_json, printable, read_json, read_tensors, read_text, read_yaml


@pytest.fixture
def file(tmp_path):
    def write(content, name="a.txt"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_text_is_bounded_and_utf_8_and_the_place_of_another_byte_is_said(file, tmp_path):
    assert read_text(file("\ufeffGröße")) == "Größe"
    with pytest.raises(ValueError, match="more than 3 bytes"):
        read_text(file("abcd"), most=3)
    with pytest.raises(ValueError, match=r"line 2, column 3: not UTF-8 \(byte 0xff\)"):
        read_text(file(b"a\nbc\xff"))
    with pytest.raises(ValueError, match="no such file"):
        read_text(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no regular file"):
        read_text(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not valid JSON"),
        ("[1]", "an object is needed, found a list"),
        ("[" * 200_000, "nests deeper"),
        ('{"a":' * 150 + "1" + "}" * 150, "nests deeper than 100"),
        ('{"a": ' + "9" * 5000 + "}", "is not valid JSON"),
        ("3", "an object is needed, found int"),
    ],
)
def test_json_is_an_object_of_bounded_depth(file, text, said):
    path = file(text, "config.json")
    with pytest.raises(ValueError, match=rf"config\.json.*{said}"):
        read_json(path)


def test_depth_up_to_the_bound_is_read():
    value = parse_json("[" * 100 + "]" * 100, "here", list)
    assert json.dumps(value) == "[" * 100 + "]" * 100
    with pytest.raises(ValueError, match="deeper"):
        parse_json("[" * 101 + "]" * 101, "here", list)


def nine_levels():
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    return "\n".join(rows)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (nine_levels(), "unfolds to more than"),
        ("a: &a [*a]", "refers to itself"),
        ("[" * 5000, r"nests too deeply|not valid YAML"),
        ("a: !!python/object/apply:os.system [id]", "not valid YAML"),
        ("steps: 1\nsteps: 2", "gives 'steps' twice"),
        ("a: {b: 1, b: 2}", "gives 'b' twice"),
        ("a: [", "not valid YAML"),
        ("\x00", "not valid YAML"),
    ],
)
def test_yaml_is_bounded_and_runs_nothing(file, text, said):
    start = time.perf_counter()
    with pytest.raises(ValueError, match=said):
        read_yaml(file(text, "run.yaml"))
    assert time.perf_counter() - start < 20  # it would be hours, or the machine's memory


def test_yaml_aliases_within_the_bound_are_followed(file):
    found = read_yaml(file("a: &a {x: 1}\nb: *a\nc: {<<: *a, y: 2}"))
    assert found == {"a": {"x": 1}, "b": {"x": 1}, "c": {"x": 1, "y": 2}}
    assert read_yaml(file("")) is None


def test_json_lines_give_their_numbers_and_name_the_broken_one(file, monkeypatch):
    path = file('\ufeff{"a": 1}\n\n{"a": "x\u2028y"}\n', "rows.jsonl")
    assert list(json_lines(path)) == [(1, {"a": 1}), (3, {"a": "x\u2028y"})]
    with pytest.raises(ValueError, match=r"line 2 is not valid JSON"):
        list(json_lines(file('{"a": 1}\n{"a": ', "rows.jsonl")))
    with pytest.raises(ValueError, match=r"line 1: an object is needed, found a list"):
        list(json_lines(file("[1]\n", "rows.jsonl")))
    with pytest.raises(ValueError, match=r"line 2, column 1: not UTF-8"):
        list(json_lines(file(b'{"a": 1}\n\xff', "rows.jsonl")))
    monkeypatch.setattr(reading, "MOST_LINE", 10)
    with pytest.raises(ValueError, match="line 1 has more than"):
        list(json_lines(file('{"a": "long enough"}\n', "rows.jsonl")))


def compressed(suffix, data):
    import bz2
    import gzip
    import lzma

    import pyarrow

    zstd = lambda d: pyarrow.compress(d, codec="zstd", asbytes=True)  # noqa: E731
    return {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}[suffix.lower()](data)


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst", ".GZ"])
def test_compressed_text_is_read_and_a_broken_or_a_folded_one_is_named(file, suffix, monkeypatch):
    path = file(compressed(suffix, "Größe\n".encode() * 1000), f"a.txt{suffix}")
    assert read_text(path) == "Größe\n" * 1000
    rows = file(compressed(suffix, b'{"a": 1}\n{"a": 2}\n'), f"rows.jsonl{suffix}")
    assert [row for _, row in json_lines(rows)] == [{"a": 1}, {"a": 2}]
    for broken in (path.read_bytes()[:-5], b"plain text"):
        with pytest.raises(ValueError, match=r"b\.txt\.\w+ cannot be decompressed"):
            read_text(file(broken, f"b.txt{suffix}"))
    monkeypatch.setattr(reading, "UNFOLDS_TO", (10_000, 2))
    bomb = file(compressed(suffix, b"0" * 50_000_000), f"bomb.txt{suffix}")
    with pytest.raises(ValueError, match=r"bomb\.txt\.\w+ unfolds to more than [\d,]+ bytes"):
        read_text(bomb)


def test_tensors_come_whole_or_the_file_is_named(tmp_path, file):
    save_file({"w": torch.arange(3.0)}, tmp_path / "a.safetensors")
    assert torch.equal(read_tensors(tmp_path / "a.safetensors")["w"], torch.tensor([0.0, 1.0, 2.0]))
    for broken in (b"", b"\xff" * 64, (tmp_path / "a.safetensors").read_bytes()[:-1]):
        with pytest.raises(ValueError, match=r"b\.safetensors cannot be read as safetensors"):
            read_tensors(file(broken, "b.safetensors"))


def test_patterns_match_whole_names():
    names = ["layers.0.q", "layers.10.q", "layers.0.qk"]
    assert matching(r".*\.0\.q", names, source="here") == ["layers.0.q"]
    assert matching("q|k", names, source="here") == []
    assert matching("layers.0.q", names, source="here") == ["layers.0.q"]


def test_a_pattern_that_backtracks_for_ever_is_refused(monkeypatch):
    monkeypatch.setattr(reading, "SECONDS", 0.5)
    with pytest.raises(ValueError, match=r"adapter_config\.json: the pattern .* takes too long"):
        matching(r"(a+)+b", ["a" * 60], source="adapter_config.json")
    with pytest.raises(ValueError, match="is no regular expression"):
        matching("(a", ["a"], source="here")


def test_terminal_text_has_no_control_codes():
    assert printable("\x1b]0;title\x07a\x1b[2Jb\u202ec\tä\n[/b]\x9b") == "]0;titlea[2Jbc\tä\n[/b]"


@given(st.text())
def test_printable_text_is_a_subsequence_and_stays_as_it_is(text):
    once = printable(text)
    assert printable(once) == once
    rest = iter(text)
    assert all(c in rest for c in once)


@pytest.mark.parametrize(
    "value",
    [
        *["!!int ''", "!!int", "!!timestamp x", "!!bool x", "!!float x", "!!omap [a]", "!!map x", "!x y", "2001-99-99"],
        *["9" * 900, "1" + ":1" * 200_000, "0x" + "f" * 900_000, "2001-01-01 00:00:00 +99:99"],
    ],
)
def test_a_yaml_value_that_is_not_what_its_tag_says_is_one_error_that_names_the_file(file, value):
    start = time.perf_counter()
    if value == "9" * 900:
        assert read_yaml(file(f"a: {value}", "run.yaml")) == {"a": int(value)}
        return
    with pytest.raises(ValueError, match=r"run\.yaml"):
        read_yaml(file(f"a: {value}", "run.yaml"))
    assert time.perf_counter() - start < 2


def test_a_header_of_gigabytes_is_not_read(tmp_path, file, monkeypatch):
    save_file({"w": torch.ones(3)}, tmp_path / "a.safetensors")
    assert reading.tensor_shapes(tmp_path / "a.safetensors") == {"w": (3,)}
    monkeypatch.setattr(reading, "MOST_HEADER", 10)
    for read in (read_tensors, reading.tensor_shapes):
        with pytest.raises(ValueError, match=r"a\.safetensors cannot be read as safetensors: a header of"):
            read(tmp_path / "a.safetensors")


@pytest.mark.parametrize("text", [r'{"a": "\ud800"}', r'{"\udfff": 1}', r'{"a": ["x\uD83D"]}'])
def test_half_of_a_character_is_refused(text):
    with pytest.raises(ValueError, match="half of a character"):
        parse_json(text, "a.json")


def test_two_halves_are_a_character():
    assert parse_json(r'{"a": "\ud83d\ude00"}', "a.json") == {"a": "\U0001f600"}
