"""Pictures in the hub's layout, written here with pyarrow alone."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rankwise.data import read_images


def png(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def noise(n, seed=0, side=8):
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3)).astype(np.uint8)


def table(pixels, labels=None, *, image="img", label="label", names=None):
    columns = {image: [{"bytes": png(p), "path": f"{i}.png"} for i, p in enumerate(pixels)]}
    if labels is not None:
        columns[label] = labels
    made = pa.table(columns)
    if names:
        features = {"info": {"features": {label: {"names": names, "_type": "ClassLabel"}}}}
        made = made.replace_schema_metadata({"huggingface": json.dumps(features)})
    return made


@pytest.fixture
def hub(tmp_path):
    """A folder in the hub's layout: a train split of two shards and a test split."""
    (tmp_path / "data").mkdir()
    pixels = noise(10)
    for shard, rows in enumerate((range(6), range(6, 10))):
        part = table(pixels[list(rows)], [i % 2 for i in rows], names=["even", "odd"])
        pq.write_table(part, tmp_path / "data" / f"train-0000{shard}-of-00002.parquet")
    pq.write_table(table(noise(3, 1), [0, 1, 1], names=["even", "odd"]), tmp_path / "data/test-00000-of-00001.parquet")
    return tmp_path


def test_shards_of_a_split_are_read_in_order_with_the_files_own_class_names(hub):
    train = read_images(hub, split="train")
    assert train.label_names == ["even", "odd"]
    assert train.labels.tolist() == [0, 1] * 5
    np.testing.assert_array_equal(np.stack([train[i] for i in range(10)]), noise(10))
    assert len(read_images(hub, split="test")) == 3


def test_a_split_has_to_be_named_where_there_are_several(hub):
    with pytest.raises(ValueError, match=r"has the splits test, train; name one"):
        read_images(hub)
    with pytest.raises(ValueError, match=r"no split 'val', it has test, train"):
        read_images(hub, split="val")


def test_a_missing_shard_is_named(hub):
    (hub / "data/train-00001-of-00002.parquet").unlink()
    with pytest.raises(ValueError, match="split 'train' has 1 of 2 shards"):
        read_images(hub, split="train")
    assert len(read_images(hub / "data/train-00000-of-00002.parquet")) == 6  # asked for by itself


def test_two_configurations_that_hold_one_split_are_refused(hub):
    (hub / "other").mkdir()
    (hub / "other/test.parquet").write_bytes((hub / "data/test-00000-of-00001.parquet").read_bytes())
    with pytest.raises(ValueError, match="split 'test' lies in data and in other"):
        read_images(hub, split="test")


def test_the_folder_of_cifar10_gets_its_class_names(tmp_path):
    pq.write_table(table(noise(4), [0, 9, 3, 3]), tmp_path / "train-00000-of-00001.parquet")
    images = read_images("cifar10", data=tmp_path, split="train")
    assert [images.label_names[i] for i in images.labels] == ["airplane", "truck", "cat", "cat"]


@pytest.mark.parametrize("label", ["label", "labels", "fine_label"])
@pytest.mark.parametrize("image", ["img", "image"])
def test_the_usual_columns_are_found(tmp_path, image, label):
    pq.write_table(table(noise(4), [0, 1, 2, 0], image=image, label=label), tmp_path / "a.parquet")
    images = read_images(tmp_path / "a.parquet")
    assert images.labels.tolist() == [0, 1, 2, 0]
    assert images.label_names == ["0", "1", "2"]


def test_other_columns_are_named_by_the_user_and_their_absence_is_told(tmp_path):
    pq.write_table(table(noise(3), ["b", "a", "b"], image="scan", label="kind"), tmp_path / "a.parquet")
    images = read_images(tmp_path / "a.parquet", image_column="scan", label_column="kind")
    assert images.label_names == ["a", "b"]
    assert images.labels.tolist() == [1, 0, 1]
    assert read_images(tmp_path / "a.parquet", image_column="scan").labels is None
    with pytest.raises(ValueError, match="image_column names it"):
        read_images(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="did you mean kind"):
        read_images(tmp_path / "a.parquet", image_column="scan", label_column="kinds")


def test_rows_without_picture_or_label_are_named(tmp_path):
    rows = [{"bytes": png(p), "path": None} for p in noise(3)]
    pq.write_table(pa.table({"image": [*rows, None]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a.parquet, row 4: column 'image' is empty"):
        read_images(tmp_path / "a.parquet")
    pq.write_table(pa.table({"image": rows, "label": ["a", "", "b"]}), tmp_path / "c.parquet")
    with pytest.raises(ValueError, match=r"c.parquet, row 2: column 'label' is empty"):
        read_images(tmp_path / "c.parquet")
    twice = pa.Table.from_arrays([pa.array(rows)] * 2, names=["image", "image"])
    pq.write_table(twice, tmp_path / "d.parquet")
    with pytest.raises(ValueError, match=r"d.parquet: column 'image' stands 2 times"):
        read_images(tmp_path / "d.parquet")
    pq.write_table(pa.table({"image": rows, "label": [1, None, 0]}), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"b.parquet, row 2: column 'label' is empty"):
        read_images(tmp_path / "b.parquet")


def test_bytes_that_are_no_picture_are_named(tmp_path):
    rows = [{"bytes": png(p), "path": None} for p in noise(3)]
    rows[1] = {"bytes": b"<html>not found</html>", "path": "x.png"}
    pq.write_table(pa.table({"image": rows}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"1 of 3 pictures are bad: .*a.parquet, row 2 cannot be read as a picture"):
        read_images(tmp_path / "a.parquet")


def test_a_label_beyond_the_classes_is_refused_and_a_test_set_of_minus_ones_has_no_labels(tmp_path):
    pq.write_table(table(noise(3), [0, 2, 1], names=["a", "b"]), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="picture 1: label 2, there are classes 0 to 1"):
        read_images(tmp_path / "a.parquet")
    pq.write_table(table(noise(3), [-1, -1, -1], names=["a", "b"]), tmp_path / "b.parquet")
    assert read_images(tmp_path / "b.parquet").labels is None


@pytest.mark.parametrize("labels", [[0, 1, 2**40], pa.array([0, 1, 2**63 + 1], pa.uint64())])
def test_an_identifier_is_no_class(tmp_path, labels):
    pq.write_table(table(noise(3), labels), tmp_path / "a.parquet")
    with pytest.raises(
        ValueError, match=r"label [\d,]+(; without names there are classes 0 to 99,999| is no class index)"
    ):
        read_images(tmp_path / "a.parquet")


@pytest.mark.parametrize("labels", [[0.0, 1.0, 0.0], [True, False, True], [[0], [1], [0, 1]]])
def test_labels_that_are_no_integers_or_texts_are_refused(tmp_path, labels):
    pq.write_table(table(noise(3), labels), tmp_path / "a.parquet")
    with pytest.raises(
        ValueError, match=r"row 1: column 'label' holds (float|bool|list); a label is an integer or text"
    ):
        read_images(tmp_path / "a.parquet")


def test_a_file_without_a_splits_name_is_split_by_content(tmp_path):
    pq.write_table(table(noise(60), [0, 1] * 30), tmp_path / "mine.parquet")
    parts = [read_images(tmp_path / "mine.parquet", split=s) for s in ("train", "validation", "test")]
    assert sum(map(len, parts)) == 60
    assert "has no splits" in parts[0].notes[-1]
    assert not set(parts[0].digests) & set(parts[2].digests)


def test_pictures_beside_the_file_are_read_and_those_elsewhere_are_not(tmp_path):
    (tmp_path / "set").mkdir()
    for place in (tmp_path, tmp_path / "set"):
        (place / "a.png").write_bytes(png(noise(1)[0]))
    pq.write_table(pa.table({"image": ["a.png"]}), tmp_path / "set/one.parquet")
    np.testing.assert_array_equal(read_images(tmp_path / "set/one.parquet")[0], noise(1)[0])
    pq.write_table(pa.table({"image": ["../a.png"]}), tmp_path / "set/two.parquet")
    with pytest.raises(ValueError, match=r"\.\./a.png does not lie beside the parquet file"):
        read_images(tmp_path / "set/two.parquet")
    pq.write_table(pa.table({"image": ["https://example.org/a.png"]}), tmp_path / "set/three.parquet")
    with pytest.raises(ValueError, match=r"row 1: https://example.org/a.png is an address"):
        read_images(tmp_path / "set/three.parquet")


def test_a_file_that_is_no_parquet_is_refused(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(ValueError, match=r"a.parquet cannot be read as parquet"):
        read_images(tmp_path / "a.parquet")


class Hub:
    """What huggingface_hub would say, of files that lie here."""

    def __init__(self, monkeypatch, folder, *, revision=None, online=True):
        self.folder, self.revision, self.online, self.fetched = folder, revision, online, []
        monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda _, *a, **k: self.listed(*a, **k))
        monkeypatch.setattr("huggingface_hub.snapshot_download", self.download)

    def listed(self, name, *, repo_type, revision):
        assert (name, repo_type) == ("owner/set", "dataset")
        if not self.online:
            raise ConnectionError("no net\nand more")
        inside = [str(p.relative_to(self.folder)) for p in sorted(self.folder.rglob("*.*"))]
        return inside if revision == self.revision else ["README.md"]

    def download(self, name, *, repo_type, revision=None, allow_patterns=None, local_files_only=False):
        if local_files_only and self.folder is None:
            raise FileNotFoundError("not cached")
        self.fetched.append((revision, allow_patterns))
        return str(self.folder)


@pytest.mark.parametrize("revision", [None, "refs/convert/parquet"])
def test_of_a_hub_id_only_the_split_is_fetched(hub, monkeypatch, revision):
    there = Hub(monkeypatch, hub, revision=revision)
    assert len(read_images("owner/set", split="train")) == 10
    shards = [f"data/train-0000{n}-of-00002.parquet" for n in (0, 1)]
    assert there.fetched == [(revision, shards)]
    with pytest.raises(ValueError, match="owner/set has the splits test, train; name one"):
        read_images("owner/set")
    assert len(there.fetched) == 1


def test_without_the_net_the_cache_serves_or_one_line_says_so(hub, monkeypatch):
    Hub(monkeypatch, hub, online=False)
    assert len(read_images("owner/set", split="test")) == 3
    Hub(monkeypatch, None, online=False)
    with pytest.raises(OSError, match=r"owner/set is no folder here and cannot be fetched from the hub: no net$"):
        read_images("owner/set", split="test")


def test_a_data_set_without_parquet_is_refused(tmp_path, monkeypatch):
    (tmp_path / "README.md").write_text("none")
    Hub(monkeypatch, tmp_path, revision="no such")
    with pytest.raises(ValueError, match="owner/set has no parquet files on the hub"):
        read_images("owner/set", split="test")
