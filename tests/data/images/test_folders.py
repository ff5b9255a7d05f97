"""Folders as they are found: classes, splits, odd files, links."""

import os

import numpy as np
import pytest
from PIL import Image

from rankwise.data import read_images


def make(root, *names):
    """Picture files, each of a colour of its own."""
    for n, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (n * 7 % 256, n * 31 % 256, 5)).save(path, "PNG")
    return root


def test_a_folder_a_class_in_the_order_of_the_alphabet(tmp_path):
    images = read_images(make(tmp_path, "dog/1.png", "cat/b.png", "cat/a.JPG", "dog/old/2.png"))
    assert images.label_names == ["cat", "dog"]
    assert images.keys == ["cat/a.JPG", "cat/b.png", "dog/1.png", "dog/old/2.png"]
    assert images.labels.tolist() == [0, 0, 1, 1]
    assert images.notes == []


def test_classes_that_are_numbers_stand_in_their_order_which_is_told(tmp_path):
    images = read_images(make(tmp_path, *(f"{n}/a.png" for n in range(12))))
    assert images.label_names == [str(n) for n in range(12)]
    assert "in the order of numbers" in images.notes[0]


@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("training", "valid", "testing"), ("Train", "dev", "eval")]
)
def test_a_folder_a_split_above_the_classes(tmp_path, names):
    train, validation, test = names
    make(tmp_path, f"{train}/cat/1.png", f"{train}/dog/1.png", f"{train}/emu/1.png", f"{train}/dog/2.png")
    make(tmp_path, f"{validation}/dog/1.png", f"{test}/emu/1.png", f"{test}/dog/1.png")
    assert read_images(tmp_path, split="train").labels.tolist() == [0, 1, 1, 2]
    found = read_images(tmp_path, split="validation")
    assert found.labels.tolist() == [1]  # of the classes of all splits
    assert found.label_names == ["cat", "dog", "emu"]
    assert found.notes == [f"{tmp_path}: no pictures of cat, emu among these"]
    assert len(read_images(tmp_path, split=test)) == 2
    with pytest.raises(ValueError, match="has the splits test, train, validation; name one"):
        read_images(tmp_path)
    assert read_images(tmp_path / train).label_names == ["cat", "dog", "emu"]


def test_a_plain_folder_has_no_labels_with_or_without_splits(tmp_path):
    images = read_images(make(tmp_path / "plain", "b.png", "a.png"))
    assert images.labels is None
    assert images.keys == ["a.png", "b.png"]
    make(tmp_path / "split", "train/a.png", "train/b.png", "test/c.png")
    assert read_images(tmp_path / "split", split="test").keys == ["test/c.png"]


def test_train_may_be_a_class_beside_others_and_two_splits_beside_others_are_ambiguous(tmp_path):
    make(tmp_path, "train/1.png", "truck/1.png")
    assert read_images(tmp_path).label_names == ["train", "truck"]
    make(tmp_path, "test/1.png")
    with pytest.raises(ValueError, match=r"has test and train beside truck: splits or classes\?"):
        read_images(tmp_path)


def test_a_folder_without_splits_is_split_by_content(tmp_path):
    make(tmp_path, *(f"{c}/{n}.png" for c in "ab" for n in range(40)))
    parts = [read_images(tmp_path, split=s) for s in ("train", "val", "test")]
    assert sum(map(len, parts)) == 80
    assert [len(p) for p in parts] == [len(p) for p in read_images(tmp_path).split()]
    assert f"{len(parts[1])} of 80 pictures" in parts[1].notes[-1]
    with pytest.raises(ValueError, match="unknown split 'trian'"):
        read_images(tmp_path, split="trian")


def test_folders_that_are_no_classes(tmp_path):
    make(tmp_path, "2024/1.png", "2025/1.png", "top.png")
    with pytest.raises(ValueError, match="pictures beside the folders 2024, 2025; labelled=False"):
        read_images(tmp_path)
    images = read_images(tmp_path, labelled=False)
    assert images.labels is None
    assert len(images) == 3


def test_one_folder_alone_is_hardly_a_class(tmp_path):
    make(tmp_path, "archive/cat/1.png", "archive/dog/1.png")
    with pytest.raises(ValueError, match="one folder of pictures only, 'archive'; name that one"):
        read_images(tmp_path)
    assert read_images(tmp_path / "archive").label_names == ["cat", "dog"]


def test_a_class_without_pictures_is_refused(tmp_path):
    make(tmp_path, "cat/1.png", "dog/1.png")
    (tmp_path / "emu").mkdir()
    (tmp_path / "fox").mkdir()
    (tmp_path / "fox/notes.txt").write_text("none yet")
    with pytest.raises(ValueError, match="no pictures of the classes emu, fox"):
        read_images(tmp_path)


def test_classes_that_are_known_keep_their_indices(tmp_path):
    make(tmp_path, "dog/1.png")
    images = read_images(tmp_path, class_names=["cat", "dog"])
    assert images.labels.tolist() == [1]
    make(tmp_path, "dgo/1.png")
    with pytest.raises(ValueError, match="unknown class 'dgo'; did you mean dog"):
        read_images(tmp_path, class_names=["cat", "dog"])
    with pytest.raises(ValueError, match="two classes are called 'dog'"):
        read_images(make(tmp_path / "new", "dog/1.png"), class_names=["dog", "dog"])


def test_names_that_look_alike_are_told(tmp_path):
    images = read_images(make(tmp_path, "Cat/1.png", "cat/1.png"))
    assert images.notes == [f"{tmp_path}: 'Cat' and 'cat' are different classes"]
    images = read_images(make(tmp_path / "accents", "caf\u00e9/1.png", "cafe\u0301/1.png"))
    assert "are different classes" in images.notes[0]


def test_files_that_are_no_pictures_are_told_and_hidden_ones_passed_over(tmp_path):
    make(tmp_path, "cat/1.png", "dog/1.png")
    for name in (
        "cat/Thumbs.db",
        "README.md",
        "dog/1.xml",
        ".DS_Store",
        "cat/._1.png",
        "__MACOSX/cat/1.png",
        ".git/x.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    images = read_images(tmp_path)
    assert len(images) == 2
    assert images.notes == [f"{tmp_path}: not read, no pictures by their names: README.md, cat/Thumbs.db, dog/1.xml"]


def test_bad_pictures_are_named_before_work_starts(tmp_path):
    make(tmp_path, *(f"cat/{n}.png" for n in range(9)), "dog/1.png")
    for n in range(7):
        (tmp_path / f"cat/{n}.png").write_bytes(b"" if n else b"no picture")
    with pytest.raises(ValueError, match=r"7 of 10 pictures are bad: .*cat/0.png cannot be read.*; and 2 more"):
        read_images(tmp_path)


def test_a_picture_cut_short_is_named_when_it_is_asked_for_or_checked(tmp_path):
    make(tmp_path, "a.png")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "b.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:3000])
    images = read_images(tmp_path)
    assert images[0].shape == (8, 8, 3)
    for use in (lambda: images[1], images.check, images.stacked, lambda: list(images.batches(2))):
        with pytest.raises(ValueError, match=r"b.png cannot be read as a picture"):
            use()


def test_a_file_that_vanished_is_named(tmp_path):
    images = read_images(make(tmp_path, "a.png", "b.png"))
    (tmp_path / "b.png").unlink()
    with pytest.raises(ValueError, match=r"b.png"):
        images[1]


def test_links_within_are_followed_and_links_out_or_to_folders_refused(tmp_path):
    make(tmp_path / "set", "cat/1.png", "dog/1.png")
    make(tmp_path, "secret.png")
    os.symlink(tmp_path / "set/cat/1.png", tmp_path / "set/dog/2.png")
    assert len(read_images(tmp_path / "set")) == 3
    os.symlink(tmp_path / "secret.png", tmp_path / "set/dog/3.png")
    with pytest.raises(ValueError, match=r"links to folders or out of it: dog/3.png"):
        read_images(tmp_path / "set")
    (tmp_path / "set/dog/3.png").unlink()
    os.symlink(tmp_path / "set", tmp_path / "set/dog/loop")
    with pytest.raises(ValueError, match="links to folders or out of it: dog/loop"):
        read_images(tmp_path / "set")
    os.symlink(tmp_path / "set", tmp_path / "alias")
    (tmp_path / "set/dog/loop").unlink()
    assert len(read_images(tmp_path / "alias")) == 3  # the folder itself may be one


def test_a_folder_without_pictures_says_what_it_has(tmp_path):
    (tmp_path / "data_batch_1").write_bytes(b"pickled")
    with pytest.raises(ValueError, match="has no pictures; it has data_batch_1"):
        read_images(tmp_path)


def test_options_that_do_not_apply_are_refused(tmp_path):
    make(tmp_path, "cat/1.png", "dog/1.png")
    with pytest.raises(ValueError, match="no use for label_column"):
        read_images(tmp_path, label_column="label")
    with pytest.raises(ValueError, match="digits has no use for class_names"):
        read_images("digits", class_names=["a"])
    with pytest.raises(ValueError, match="is for cifar10"):
        read_images("mnist", data=tmp_path)
    with pytest.raises(ValueError, match="has no folders of classes"):
        read_images(tmp_path / "cat", labelled=True)


def test_names_are_told_from_paths_and_hub_ids(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="unknown pictures 'digit'; did you mean digits"):
        read_images("digit")
    with pytest.raises(ValueError, match=r"no such file or folder: pictures/a.parquet"):
        read_images("pictures/a.parquet")
    with pytest.raises(ValueError, match=r"no such file or folder: '.*/gone'"):
        read_images("cifar10", data=tmp_path / "gone")
    monkeypatch.chdir(make(tmp_path, "digits/a.png", "digits/b.png"))
    assert len(read_images("./digits")) == 2
    assert len(read_images("digits")) == 1797
    with pytest.raises(ValueError, match=r"a.png: pictures are read from a folder or a parquet file; read_image"):
        read_images("digits/a.png")
    with pytest.raises(ValueError, match="no such file or folder: ''"):
        read_images("")
    with pytest.raises(ValueError, match="no such file or folder: 'mnist'"):
        read_images("cifar10", data="mnist")


def test_links_to_nothing_pipes_and_names_that_are_no_text_are_refused(tmp_path):
    make(tmp_path / "link", "a.png")
    os.symlink("gone.png", tmp_path / "link/b.png")
    make(tmp_path / "pipe", "a.png")
    os.mkfifo(tmp_path / "pipe/b.png")
    make(tmp_path / "bytes", "a.png")
    with open(os.fsencode(tmp_path / "bytes") + b"/\xff.png", "wb") as stream:
        stream.write((tmp_path / "bytes/a.png").read_bytes())
    for name, odd in (("link", "b.png"), ("pipe", "b.png"), ("bytes", r"\\udcff.png")):
        with pytest.raises(ValueError, match=f"links to nothing, no regular files or names that are no text: '{odd}'"):
            read_images(tmp_path / name)


def test_a_library_that_fills_up_files_cut_short_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", True)
    assert "LOAD_TRUNCATED_IMAGES" in read_images(make(tmp_path, "a.png")).notes[0]


def test_what_a_command_wrote_among_the_pictures_is_passed_over_and_is_no_class(tmp_path):
    make(tmp_path, "cat/1.png", "dog/1.png", "kept/01.png")
    (tmp_path / "kept" / ".rankwise.json").write_text("{}")
    images = read_images(tmp_path)
    assert images.label_names == ["cat", "dog"]
    assert images.keys == ["cat/1.png", "dog/1.png"]
    assert read_images(tmp_path / "kept").keys == ["01.png"]  # named, it is read
