import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from rankwise.merging.shards import ShardWriter, Slot, checkpoint_entries, entries, split

TENSORS = {
    "a": torch.randn(3, 4),
    "b": torch.randn(5).bfloat16(),
    "c": torch.tensor(7),
    "d": torch.zeros(0, 3),
    "e": torch.tensor([True, False]),
    "f": torch.randn(2, 2, 2).half(),
}


def slots():
    return [Slot(n, t.dtype, tuple(t.shape)) for n, t in TENSORS.items()]


def test_what_safetensors_writes_is_read(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = checkpoint_entries(tmp_path)
    assert set(found) == set(TENSORS)
    for name, entry in found.items():
        assert entry.shape == tuple(TENSORS[name].shape)
        assert torch.equal(entry.read(), TENSORS[name])


@pytest.mark.parametrize("shard_size", [10**9, 30])
def test_what_is_written_in_any_order_safetensors_reads(tmp_path, shard_size):
    writer = ShardWriter(tmp_path, slots(), shard_size=shard_size)
    for name in reversed(TENSORS):
        writer.write(name, TENSORS[name])
    writer.close(finished=True)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert (len(files) > 1) == (shard_size == 30)
    held = {k: v for f in files for k, v in load_file(f).items()}
    assert all(torch.equal(held[n], t) for n, t in TENSORS.items())
    assert not (tmp_path / "written.txt").exists()
    if shard_size == 30:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in TENSORS.values())
        assert all(torch.equal(e.read(), TENSORS[n]) for n, e in checkpoint_entries(tmp_path).items())


def test_an_interrupted_writer_knows_what_is_on_disk(tmp_path):
    writer = ShardWriter(tmp_path, slots(), shard_size=30)
    for name in ("b", "a"):
        writer.write(name, TENSORS[name])
    writer.close(finished=False)
    with (tmp_path / "written.txt").open("a") as stream:
        stream.write("c")  # a line cut short by the kill
    again = ShardWriter(tmp_path, slots(), shard_size=30)
    assert again.done == {"a", "b"}
    for name in set(TENSORS) - again.done:
        again.write(name, TENSORS[name])
    again.close(finished=True)
    assert all(torch.equal(e.read(), TENSORS[n]) for n, e in checkpoint_entries(tmp_path).items())


def test_after_a_restart_of_the_machine_everything_is_written_anew(tmp_path, monkeypatch):
    writer = ShardWriter(tmp_path, slots(), shard_size=30)
    writer.write("a", TENSORS["a"])
    writer.close(finished=False)
    monkeypatch.setattr("rankwise.merging.shards.boot", lambda: "another")
    again = ShardWriter(tmp_path, slots(), shard_size=30)
    assert again.done == set()
    again.close(finished=False)


def test_shards_are_filled_in_order_and_large_tensors_stand_alone():
    sizes = [Slot(str(i), torch.uint8, (n,)) for i, n in enumerate((4, 4, 9, 1, 3))]
    assert [[s.name for s in shard] for shard in split(sizes, 8)] == [["0", "1"], ["2"], ["3", "4"]]


BYTES = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def write_raw(path, header, data=b"", length=None):
    text = json.dumps(header).encode() if isinstance(header, dict) else header
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)


@pytest.mark.parametrize(
    ("header", "length", "message"),
    [
        (BYTES | {"b": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, None, "overlap or gap"),
        (BYTES | {"b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, None, "overlap or gap"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, None, "overlap or gap"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, None, "end at byte .*is the file whole"),
        ({"a": {"dtype": "F32", "shape": [100], "data_offsets": [0, 400]}}, None, "end at byte .*is the file whole"),
        ({}, None, "end at byte .*is the file whole"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 400]}}, None, "do not fit"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}, None, "no numbers"),
        ({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, None, "no numbers"),
        ({"a": {"dtype": "F32", "shape": [True, 2], "data_offsets": [0, 8]}}, None, "no numbers"),
        ({"a": {"dtype": "F32", "shape": ["2"], "data_offsets": [0, 8]}}, None, "no numbers"),
        ({"a": {"dtype": "F32", "shape": [0, 10**60], "data_offsets": [0, 0]}}, None, "no numbers"),
        ({"a": {"dtype": "F32", "shape": [1] * 1000, "data_offsets": [0, 4]}}, None, "no numbers"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0]}}, None, "not a valid safetensors"),
        ({"a": [1]}, None, "not a valid safetensors"),
        (b"[" * 200_000, None, "nests deeper"),
        (b"[]", None, "an object is needed"),
        ({"a": {"dtype": "PICKLE", "shape": [2], "data_offsets": [0, 8]}}, None, "dtype PICKLE"),
        ({"a": {"shape": [2]}}, None, "not a valid safetensors"),
        (b"\x80\x04cos\nsystem", None, "not a valid safetensors"),
        (b"{}", 10**12, "would have"),
    ],
)
def test_malicious_or_broken_files_are_refused(tmp_path, header, length, message):
    write_raw(tmp_path / "model.safetensors", header, bytes(8), length)
    with pytest.raises(ValueError, match=message):
        entries(tmp_path / "model.safetensors")


def test_an_index_may_not_point_outside_its_folder_or_to_nothing(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    for target, message in (("../../etc/passwd", "outside its folder"), ("model-1.safetensors", "not there")):
        index.write_text(json.dumps({"weight_map": {"a": target}}))
        with pytest.raises(ValueError, match=message):
            checkpoint_entries(tmp_path)
    save_file({"b": torch.ones(1)}, tmp_path / "model-1.safetensors")
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    with pytest.raises(ValueError, match="do not hold: a"):
        checkpoint_entries(tmp_path)
    for broken in (
        "[]",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map": {"a": {}}}',
        "[" * 9999,
    ):
        index.write_text(broken)
        with pytest.raises(ValueError, match=r"index\.json"):
            checkpoint_entries(tmp_path)


def test_of_a_single_file_and_an_index_the_single_file_is_read_as_transformers_does(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    assert torch.equal(checkpoint_entries(tmp_path)["a"].read(), torch.ones(2))


def test_unsigned_integers_are_read(tmp_path):
    held = {str(d): torch.tensor([1, 2]).to(d) for d in (torch.uint16, torch.uint32, torch.uint64)}
    save_file(held, tmp_path / "model.safetensors")
    assert {n: e.read().tolist() for n, e in checkpoint_entries(tmp_path).items()} == {n: [1, 2] for n in held}


def test_pickled_weights_are_not_opened(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(ValueError, match=r"pytorch_model.bin is pickled and is not opened"):
        checkpoint_entries(tmp_path)


def test_a_full_disk_is_met_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(OSError, match="40 bytes are to be written and 10 are free"):
        ShardWriter(tmp_path, [Slot("a", torch.uint8, (40,))], shard_size=100)
    assert not list(tmp_path.iterdir())
