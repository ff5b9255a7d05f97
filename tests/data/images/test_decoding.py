"""Pictures as people have them: turned, grey, transparent, deep, broken."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from rankwise.data.images import read_image, write_image
from rankwise.data.images.decoding import MOST_PIXELS, changed


@pytest.fixture
def photo():
    rng = np.random.default_rng(0)
    return np.kron(rng.integers(0, 256, (3, 5, 3)), np.ones((8, 8, 1), int)).astype(np.uint8)  # 24 x 40


def saved(path, image, **options):
    image.save(path, **options)
    return path


def exif(**tags):
    found = Image.Exif()
    found.update({{"orientation": 0x0112, "model": 0x0110, "date": 0x0132}[k]: v for k, v in tags.items()})
    return found


# --- as it is seen


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_exif_says(tmp_path, photo, orientation, kind):
    options = {"lossless": True} if kind == "webp" else {}
    path = saved(tmp_path / f"a.{kind}", Image.fromarray(photo), exif=exif(orientation=orientation), **options)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert expected.shape[:2] == ((40, 24) if orientation > 4 else (24, 40))
    np.testing.assert_array_equal(read_image(path), expected)


def test_a_number_that_is_no_orientation_and_damaged_exif_leave_a_good_picture_as_it_is(tmp_path, photo):
    upright = read_image(saved(tmp_path / "a.jpg", Image.fromarray(photo)))
    for n, wrong in enumerate(
        (exif(orientation=0), exif(orientation=99), b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0zz")
    ):
        path = saved(tmp_path / f"{n}.jpg", Image.fromarray(photo), exif=wrong)
        np.testing.assert_array_equal(read_image(path), upright)


def test_grey_black_and_white_and_palettes_become_rgb(tmp_path, photo):
    grey = photo[..., 0]
    np.testing.assert_array_equal(read_image(saved(tmp_path / "l.png", Image.fromarray(grey)))[..., 2], grey)
    bit = grey > 128
    np.testing.assert_array_equal(read_image(saved(tmp_path / "1.png", Image.fromarray(bit)))[..., 1], bit * 255)
    palette = Image.fromarray(photo).quantize(256)
    np.testing.assert_array_equal(read_image(saved(tmp_path / "p.png", palette)), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_over_white(tmp_path, mode):
    image = Image.new("RGBA", (2, 1), (200, 100, 0, 0))
    image.putpixel((1, 0), (200, 200, 200, 51))  # a fifth
    found = read_image(saved(tmp_path / "a.png", image.convert(mode)))
    assert found[0, 0].tolist() == [255, 255, 255]  # whatever colour hides below
    assert found[0, 1] == pytest.approx([0.2 * 200 + 0.8 * 255] * 3, abs=1)


def test_a_palettes_transparent_colour_is_white_too(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    found = read_image(saved(tmp_path / "a.png", image, transparency=0))
    assert found[0].tolist() == [[255, 255, 255], [40, 50, 60]]
    found = read_image(saved(tmp_path / "b.png", Image.new("RGB", (1, 1), (1, 2, 3)), transparency=(1, 2, 3)))
    assert found[0].tolist() == [[255, 255, 255]]


def test_cmyk_is_read_and_told(tmp_path):
    path = saved(tmp_path / "a.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)), quality=100)
    assert read_image(path)[4, 4] == pytest.approx([255, 0, 0], abs=3)
    assert "CMYK" in changed(path)[0]


@pytest.mark.parametrize("kind", ["gif", "webp", "png", "tif"])
def test_of_many_frames_or_pages_the_first_is_taken_and_told(tmp_path, kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "webp" else {}
    path = saved(tmp_path / f"a.{kind}", frames[0], save_all=True, append_images=frames[1:], **options)
    assert read_image(path)[0, 0].tolist() == [255, 0, 0]
    assert "the first is taken" in changed(path)[0]
    assert changed(saved(tmp_path / f"one.{kind}", frames[0])) == []


# --- sixteen bits


def deep_png(pixels, *, colour=2):
    """A PNG file of 16 bits a value, unfiltered, written here by hand."""
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    out = b"\x89PNG\r\n\x1a\n"
    for name, data in (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ):
        out += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return out


@pytest.fixture
def deep():
    return np.random.default_rng(0).integers(0, 65536, (6, 9, 3)).astype(np.uint16)


def test_sixteen_bits_are_kept_or_scaled_not_cut(tmp_path, deep):
    (tmp_path / "a.png").write_bytes(deep_png(deep))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", bits=16), deep)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.rint(deep / 257))
    (tmp_path / "g.png").write_bytes(deep_png(deep[..., 0], colour=0))
    np.testing.assert_array_equal(read_image(tmp_path / "g.png", bits=16)[..., 2], deep[..., 0])
    np.testing.assert_array_equal(read_image(tmp_path / "g.png")[..., 1], np.rint(deep[..., 0] / 257))


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_grey_tiff_files_of_16_bits_are_scaled(tmp_path, deep, mode):
    grey = deep[..., 0].astype("<u2" if mode == "I;16" else ">u2")
    path = saved(tmp_path / "a.tif", Image.frombytes(mode, (9, 6), grey.tobytes()))
    np.testing.assert_array_equal(read_image(path)[..., 0], np.rint(deep[..., 0] / 257))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("strips", [1, 3])
def test_colour_tiff_files_of_16_bits_are_kept(tmp_path, deep, order, strips):
    """Written by hand: Pillow writes none."""
    height, width = deep.shape[:2]
    data, rows = deep.astype(f"{order}u2").tobytes(), height // strips
    size, entries = len(data) // strips, 10
    after = 8 + 2 + 12 * entries + 4
    bits, offsets, counts = after, after + 6, after + 6 + 4 * strips
    start = counts + 4 * strips

    def short(tag, value):
        return struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0)

    def many(tag, kind, count, where):
        return struct.pack(f"{order}HHII", tag, kind, count, where)

    places = [start + i * size for i in range(strips)]
    tags = [short(256, width), short(257, height), many(258, 3, 3, bits), short(259, 1), short(262, 2)]
    tags += [many(273, 4, strips, offsets if strips > 1 else places[0]), short(277, 3), short(278, rows)]
    tags += [many(279, 4, strips, counts if strips > 1 else size), short(284, 1)]
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, entries)
    lists = struct.pack(f"{order}3H", 16, 16, 16) + struct.pack(f"{order}{strips}I", *places)
    lists += struct.pack(f"{order}{strips}I", *[size] * strips)
    (tmp_path / "a.tif").write_bytes(head + b"".join(tags) + b"\0" * 4 + lists + data)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", bits=16), deep)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), np.rint(deep / 257))


def test_transparency_of_16_bits_is_laid_over_white(tmp_path):
    pixels = np.array([[[1000, 2000, 3000, 0], [1000, 2000, 3000, 65535], [0, 0, 0, 32768]]], np.uint16)
    (tmp_path / "a.png").write_bytes(deep_png(pixels, colour=6))
    found = read_image(tmp_path / "a.png", bits=16)[0]
    assert found.tolist() == [[65535] * 3, [1000, 2000, 3000], [32767] * 3]


def test_eight_bits_fill_the_range_of_sixteen(tmp_path, photo):
    path = saved(tmp_path / "a.png", Image.fromarray(photo))
    np.testing.assert_array_equal(read_image(path, bits=16), photo.astype(np.uint16) * 257)
    with pytest.raises(ValueError, match="bits=12; 8 or 16"):
        read_image(path, bits=12)


def test_floats_and_long_integers_have_no_range_and_are_refused(tmp_path):
    for mode, said in (("F", "floats"), ("I", "32-bit integers")):
        with pytest.raises(ValueError, match=f"{mode}.tif holds {said}, which have no agreed range"):
            read_image(saved(tmp_path / f"{mode}.tif", Image.new(mode, (4, 4))))


# --- broken


@pytest.mark.parametrize("kind", ["jpg", "png", "gif", "tif", "webp", "bmp"])
def test_a_file_cut_short_is_named(tmp_path, kind):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    path = saved(tmp_path / f"whole.{kind}", Image.fromarray(noise))
    data = path.read_bytes()
    for share in (0.02, 0.3, 0.6):
        (tmp_path / f"cut.{kind}").write_bytes(data[: int(len(data) * share)])
        with pytest.raises(ValueError, match=rf"cut.{kind} cannot be read as a picture"):
            read_image(tmp_path / f"cut.{kind}")


@pytest.mark.parametrize(
    "data", [b"", b"<html></html>", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"\xff\xd8\xff"]
)
def test_what_is_no_picture_is_refused_whatever_its_name(tmp_path, data):
    (tmp_path / "a.jpg").write_bytes(data)
    with pytest.raises(ValueError, match=r"a.jpg cannot be read as a picture"):
        read_image(tmp_path / "a.jpg")


def test_a_picture_under_a_wrong_name_is_read(tmp_path, photo):
    saved(tmp_path / "a.jpg", Image.fromarray(photo), format="PNG")
    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg"), photo)


@pytest.mark.parametrize("side", [13_500, 60_000])
def test_a_bomb_is_refused_before_it_unfolds(tmp_path, side):
    assert side**2 > MOST_PIXELS
    (tmp_path / "a.png").write_bytes(
        deep_png(np.zeros((1, 1), np.uint16), colour=0).replace(
            struct.pack(">II", 1, 1), struct.pack(">II", side, side)
        )
    )
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(ValueError, match=r"a.png has .*(178,000,000|than Pillow is told to read)"):
        read_image(tmp_path / "a.png")


def test_folders_and_missing_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(ValueError, match="no regular file"):
        read_image(tmp_path)


# --- writing


def test_what_is_written_without_loss_is_read_again(tmp_path, photo, deep):
    for name in ("a.png", "a.tif", "A.TIFF"):
        np.testing.assert_array_equal(read_image(write_image(tmp_path / name, photo)), photo)
    np.testing.assert_array_equal(read_image(write_image(tmp_path / "d.png", deep), bits=16), deep)
    grey = write_image(tmp_path / "g.png", deep[..., 0])
    np.testing.assert_array_equal(read_image(grey, bits=16)[..., 1], deep[..., 0])
    with Image.open(grey) as image:
        assert image.mode == "I;16"


def test_exif_and_profile_of_the_original_are_kept_but_for_the_turn(tmp_path, photo):
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    tags = exif(orientation=6, model="a camera", date="2026:01:02 03:04:05")
    tags.get_ifd(0x8769)[0xA002] = 40
    like = saved(tmp_path / "like.jpg", Image.fromarray(photo), exif=tags, icc_profile=profile)
    seen = read_image(like)
    for name in ("out.jpg", "out.png", "out.webp", "out.tif"):
        out = write_image(tmp_path / name, seen, like=like)
        with Image.open(out) as image:
            image.load()
            assert image.getexif()[0x0110] == "a camera"
            assert image.getexif().get(0x0112, 1) == 1
            assert image.info["icc_profile"] == profile
        assert read_image(out).shape == seen.shape == (40, 24, 3)
        if name != "out.tif":
            with Image.open(out) as image:
                assert image.getexif().get_ifd(0x8769)[0xA002] == 24
    deep = write_image(tmp_path / "deep.png", seen.astype(np.uint16) * 257, like=like)
    with Image.open(deep) as image:
        assert image.getexif()[0x0110] == "a camera"
        assert image.info["icc_profile"] == profile


def test_what_cannot_be_written_is_refused_and_what_is_there_stays(tmp_path, photo, deep):
    (tmp_path / "a.jpg").write_text("mine")
    with pytest.raises(ValueError, match=r"16 bits a value are written as .png"):
        write_image(tmp_path / "a.jpg", deep)
    for wrong in (photo / 255, photo[None], photo[..., :2], photo.astype(int)):
        with pytest.raises(ValueError, match=r"\(height, width, 3\), uint8 or uint16, is needed"):
            write_image(tmp_path / "a.jpg", wrong)
    with pytest.raises(ValueError, match="no pixels"):
        write_image(tmp_path / "a.jpg", photo[:0])
    with pytest.raises(ValueError, match="quality=0; 1 to 100"):
        write_image(tmp_path / "a.jpg", photo, quality=0)
    with pytest.raises(ValueError, match=r"unknown file type to write '.gif'"):
        write_image(tmp_path / "a.gif", photo)
    with pytest.raises(ValueError, match="is read by the same command"):
        write_image(tmp_path / "a.jpg", photo, like=tmp_path / "a.jpg")
    assert (tmp_path / "a.jpg").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jpg"]


def test_a_quality_is_jpegs(tmp_path, photo):
    stream = io.BytesIO()
    Image.fromarray(photo).save(stream, "JPEG", quality=30)
    assert write_image(tmp_path / "a.jpg", photo, quality=30).read_bytes() == stream.getvalue()
