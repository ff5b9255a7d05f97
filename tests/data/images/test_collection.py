import numpy as np
import pytest
from PIL import Image

from rankwise.data import Images, read_images
from rankwise.data.images import Stack


def noise(n, side=8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3)).astype(np.uint8)


@pytest.fixture
def images():
    return Images.of(noise(100), labels=np.arange(100) % 4, label_names=list("abcd"), name="mine")


@pytest.fixture
def files(tmp_path):
    """The same pictures twice: as files, and as an array."""
    pixels = noise(20)
    for n, picture in enumerate(pixels):
        Image.fromarray(picture).save(tmp_path / f"{n:02}.png")
    return read_images(tmp_path), pixels


def test_batches_cover_every_picture_once_in_order_or_shuffled_by_the_seed(images):
    plain = list(images.batches(32))
    assert [len(b.pixels) for b in plain] == [32, 32, 32, 4]
    np.testing.assert_array_equal(np.concatenate([b.pixels for b in plain]), noise(100))
    shuffled = list(images.batches(32, seed=1))
    rows = np.concatenate([b.rows for b in shuffled])
    assert sorted(rows) == list(range(100))
    assert (rows != np.arange(100)).any()
    for batch in shuffled:
        np.testing.assert_array_equal(batch.pixels, noise(100)[batch.rows])
        np.testing.assert_array_equal(batch.labels, batch.rows % 4)
    again = np.concatenate([b.rows for b in images.batches(7, seed=1)])
    np.testing.assert_array_equal(again, rows)
    assert (np.concatenate([b.rows for b in images.batches(32, seed=2)]) != rows).any()


def test_files_and_array_give_the_same_batches_parts_and_fingerprint(files):
    lazy, pixels = files
    held = lazy.stacked()
    assert isinstance(held.store, Stack)
    assert held.fingerprint() == lazy.fingerprint()
    np.testing.assert_array_equal(held.store.array, pixels)
    for one, other in zip(lazy.batches(6, seed=3), held.batches(6, seed=3), strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)
        assert one.labels is None
    assert held.head(5).keys == lazy.head(5).keys
    assert held.split().test.keys == lazy.split().test.keys
    assert held.stacked() is held


def test_the_fingerprint_is_of_content_not_of_place(files, tmp_path_factory):
    lazy, pixels = files
    other = tmp_path_factory.mktemp("other")
    for n, picture in enumerate(pixels):
        Image.fromarray(picture).save(other / f"{n:02}.png")
    assert read_images(other).fingerprint() == lazy.fingerprint()
    Image.fromarray(255 - pixels[7]).save(other / "07.png")
    assert read_images(other).fingerprint() != lazy.fingerprint()


@pytest.mark.parametrize("change", ["labels", "names", "order", "pixel", "groups"])
def test_the_fingerprint_changes_with_what_is_learnt_from(images, change):
    pixels, labels, names = noise(100), np.arange(100) % 4, list("abcd")
    if change == "labels":
        labels[3] = 0
    if change == "names":
        names = list("abce")
    if change == "order":
        pixels, labels = pixels[::-1], labels[::-1]
    if change == "pixel":
        pixels[50, 0, 0, 0] ^= 1
    other = Images.of(pixels, labels=labels, label_names=names, name="other")
    if change == "groups":
        other = Images(name="other", store=other.store, labels=other.labels, label_names=names, groups=["x"] * 100)
    assert other.fingerprint() != images.fingerprint()


def test_head_takes_pictures_by_content_nested_and_from_all_sides_of_the_split(images):
    few, more = images.head(10), images.head(40)
    assert set(few.digests) <= set(more.digests)
    assert more.head(10).fingerprint() == few.fingerprint()
    assert len(images.head(12).split().train) > 4  # not those of the lowest hashes, which are the test part
    assert images.head(None) is images.head(1000) is images
    assert len(set(more.labels.tolist())) == 4
    with pytest.raises(ValueError, match="limit=0"):
        images.head(0)


def test_equal_pictures_and_groups_stay_on_one_side(images):
    twice = Images.of(np.concatenate([noise(100), noise(100)]))
    parts = [set(part.digests) for part in twice.split()]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 100
    scenes = Images(name="s", store=images.store, keys=[f"{i // 5}_{i % 5}.jpg" for i in range(100)])
    grouped = scenes.grouped(lambda key: key.split("_")[0])
    sides = [set(part.groups) for part in grouped.split()]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 20


def test_parts_keep_what_belongs_to_a_picture(images):
    some = images.taken([5, 3, 98])
    np.testing.assert_array_equal(some[1], noise(100)[3])
    assert some.labels.tolist() == [1, 3, 2]
    assert len(images.where(lambda i: i % 10 == 0)) == 10


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.arange(100) % 5, "picture 4: label 4, there are classes 0 to 3"),
        (np.arange(100) % 4 - 1, "picture 0: label -1"),
        (np.arange(99) % 4, "100 integers are needed"),
        (np.arange(100) % 4 / 1, "100 integers are needed"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, said):
    with pytest.raises(ValueError, match=said):
        Images.of(noise(100), labels=labels, label_names=list("abcd"))


@pytest.mark.parametrize("array", [noise(3) / 255, noise(3).transpose(0, 3, 1, 2), noise(3)[0, 0]])
def test_arrays_that_are_no_pictures_are_refused(array):
    with pytest.raises(ValueError, match=r"pictures are \(N, height, width, 3\), uint8"):
        Images.of(array)


def test_grey_arrays_get_three_channels():
    assert Images.of(noise(3)[..., 0])[1].tolist() == noise(3)[1][..., :1].repeat(3, -1).tolist()


def test_pictures_of_several_sizes_are_named_unless_a_side_is_given(tmp_path):
    Image.new("RGB", (20, 10), "red").save(tmp_path / "a.png")
    Image.new("RGB", (9, 30), "blue").save(tmp_path / "b.png")
    images = read_images(tmp_path)
    for use in (images.stacked, lambda: list(images.batches(2))):
        with pytest.raises(ValueError, match=r"20 x 10 pixels and, b.png, 9 x 30 pixels; give a side"):
            use()
    assert images.stacked(16).store.array.shape == (2, 16, 16, 3)
    assert next(images.batches(2, side=16)).pixels[1, 5, 5].tolist() == [0, 0, 255]
    assert [b.pixels.shape for b in images.batches(1)] == [(1, 10, 20, 3), (1, 30, 9, 3)]


def test_scaling_takes_the_middle_square_with_antialiasing():
    stripes = np.zeros((1, 64, 128, 3), np.uint8)
    stripes[:, :, ::2] = 255
    stripes[:, :, :32] = stripes[:, :, 96:] = 9  # beyond the middle square
    found = next(Images.of(stripes).batches(1, side=8)).pixels[0]
    assert found.shape == (8, 8, 3)
    np.testing.assert_allclose(found, 128, atol=5)


def test_what_does_not_fit_into_memory_is_refused_beforehand(images, monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Free", (), {"available": 1000})())
    with pytest.raises(ValueError, match=r"100 pictures of 4 x 4 pixels need 0.0 GB"):
        images.stacked(4)


def test_rows_beyond_the_end_are_an_index_error(images):
    np.testing.assert_array_equal(images[-1], noise(100)[99])
    for row in (100, -101):
        with pytest.raises(IndexError, match="of 100"):
            images[row]
    assert sum(1 for _ in images) == 100


def test_pillow_gets_the_same_pixels(images):
    np.testing.assert_array_equal(np.asarray(images.pil(7)), images[7])


@pytest.mark.parametrize(("name", "count", "side"), [("digits", 1797, 8), ("mnist", 5000, 28)])
def test_the_bundled_digits_fill_the_range_and_have_ten_classes(name, count, side):
    images = read_images(name)
    assert images.store.array.shape == (count, side, side, 3)
    assert (images.store.array.min(), images.store.array.max()) == (0, 255)
    assert np.bincount(images.labels).min() > 100
    assert images.label_names == [str(d) for d in range(10)]
    assert sum(len(read_images(name, split=s)) for s in ("train", "validation", "test")) == count


def test_the_text_of_a_collection_is_short(images):
    assert repr(images) == "Images('mine', 100 pictures, 4 classes)"


def test_what_batches_and_arrays_take_is_said(images):
    for options in ({"size": 0}, {"size": 4, "side": 0}, {"size": 4, "seed": -1}):
        with pytest.raises(ValueError, match="at least 1 picture, 1 pixel and seed 0"):
            next(images.batches(**options))
    with pytest.raises(ValueError, match="size=0; at least 1 pixel"):
        images.stacked(0)
    with pytest.raises(ValueError, match="mine has no keys to group by"):
        images.grouped(str)
    with pytest.raises(TypeError, match=r"images.taken"):
        images[1:3]
    assert Images.of(noise(2), labels=np.array([0, 1], np.uint8)).labels.dtype == np.int64
    assert len(Images.of(noise(0), labels=[]).split().train) == 0


def test_torchs_loader_takes_them(images):
    from torch.utils.data import DataLoader

    batch = next(iter(DataLoader(images, batch_size=4, num_workers=1)))
    assert batch.shape == (4, 8, 8, 3)
