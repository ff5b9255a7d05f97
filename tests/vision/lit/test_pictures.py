"""Pictures of every kind, there and back."""

import numpy as np
import pytest
import torch
from PIL import Image

from rankwise.data.images import write_image
from rankwise.vision.lit.pictures import opened, several, squares

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (40, 50, 3)).astype(np.uint8)


def there_and_back(picture):
    found = opened(picture)
    assert found.pixels.shape[:2] == (1, 3)
    return found.back(found.pixels)


@pytest.mark.parametrize(
    "array",
    [
        COLOURS,
        COLOURS[..., 0],
        np.concatenate([COLOURS, COLOURS[..., :1]], -1),
        RNG.integers(0, 65536, (40, 50, 3)).astype(np.uint16),
        RNG.random((40, 50, 3), np.float32),
        RNG.random((40, 50)),
    ],
    ids=["colours", "grey", "alpha", "16 bit", "float", "grey doubles"],
)
def test_an_array_comes_back_as_it_was(array):
    back = there_and_back(array)
    assert back.dtype == array.dtype
    assert np.allclose(back, array, atol=1e-7)


def test_alpha_is_not_light():
    picture = np.concatenate([COLOURS, np.full((40, 50, 1), 7, np.uint8)], -1)
    found = opened(picture)
    assert found.back(found.pixels * 0)[..., 3].max() == 7
    assert found.back(found.pixels * 0)[..., :3].max() == 0


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK", "1", "I;16"])
def test_pictures_of_pillows_come_back_as_pictures(mode):
    grey = Image.fromarray(RNG.integers(0, 65536, (40, 50)).astype(np.uint16))
    picture = grey if mode == "I;16" else Image.fromarray(COLOURS).convert(mode)
    back = there_and_back(picture)
    assert back.size == picture.size
    assert back.mode == {"P": "RGB", "CMYK": "RGB", "1": "L"}.get(mode, mode)
    if mode in ("RGB", "RGBA", "L", "I;16"):
        assert np.array_equal(np.asarray(back), np.asarray(picture))


def test_a_file_keeps_its_depth_and_is_turned_upright(tmp_path):
    deep = RNG.integers(0, 65536, (40, 50, 3)).astype(np.uint16)
    write_image(tmp_path / "deep.png", deep)
    assert np.array_equal(there_and_back(tmp_path / "deep.png"), deep)
    image = Image.fromarray(COLOURS)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(there_and_back(str(tmp_path / "turned.png")), np.rot90(COLOURS, -1))


@pytest.mark.parametrize(
    ("picture", "said"),
    [
        (COLOURS[:31], "50 x 31 pixels; at least 32"),
        (COLOURS[None], r"shape \(1, 40, 50, 3\)"),
        (np.zeros((40, 50, 2), np.uint8), r"shape \(40, 50, 2\)"),
        (COLOURS.astype(np.int32), "int32"),
        (COLOURS.astype(float), "values from 0 to 255"),
        (np.full((40, 50), np.nan), "values from"),
        (None, "NoneType"),
        (Image.fromarray(COLOURS[..., 0]).convert("F"), "mode F"),
    ],
)
def test_what_has_no_agreed_meaning_is_refused_by_name(picture, said):
    with pytest.raises(ValueError, match=said):
        opened(picture)


def test_a_damaged_file_and_a_missing_one_are_named(tmp_path):
    Image.fromarray(COLOURS).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:400])
    with pytest.raises(ValueError, match=r"cut\.jpg cannot be read"):
        opened(tmp_path / "cut.jpg")
    with pytest.raises(ValueError, match="no such file"):
        opened(tmp_path / "none.jpg")


def test_a_folder_a_list_and_a_stack_give_the_same(tmp_path):
    for i in range(2):
        Image.fromarray(COLOURS).save(tmp_path / f"normal_output_{i}.png")  # names say nothing
    folder, listed, stack = (
        squares(given, [32], "dark")[0]
        for given in (tmp_path, [COLOURS, tmp_path / "normal_output_0.png"], np.stack([COLOURS] * 2))
    )
    assert torch.equal(folder, listed)
    assert torch.equal(folder, stack)


def test_no_pictures_are_refused_and_small_ones_named(tmp_path):
    with pytest.raises(ValueError, match="has no pictures"):
        squares(tmp_path, [32], "dark")
    with pytest.raises(ValueError, match="is no folder"):
        squares(tmp_path / "none", [32], "dark")
    with pytest.raises(ValueError, match="no dark pictures"):
        squares([], [32], "dark")
    with pytest.raises(ValueError, match="are a int"):
        list(several(3, "dark"))
    Image.fromarray(COLOURS[:20, :20]).save(tmp_path / "tiny.png")
    with pytest.raises(ValueError, match=r"tiny\.png has 20 x 20 pixels"):
        squares(tmp_path, [32], "dark")
