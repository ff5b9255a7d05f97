"""Each corruption against what its description says, in closed form or by another library."""

import io
import math

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage, stats

from rankwise.data import Images
from rankwise.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt, corrupted
from rankwise.data.corruptions.blur import disk
from rankwise.data.corruptions.sampling import magnified, sampled, streaked
from rankwise.data.corruptions.weather import pane, plasma


def smooth(n, side=32, seed=0):
    """Pictures with structure of several sizes, as photographs have it."""
    rng = np.random.default_rng(seed)
    field = sum(ndimage.gaussian_filter(rng.normal(size=(n, side, side, 3)), (0, s, s, 0)) * s for s in (1, 2, 5))
    field = (field - field.min()) / (field.max() - field.min())
    return np.rint(field * 255).astype(np.uint8)


def level(value, n=1, side=64):
    return np.full((n, side, side, 3), value, np.uint8)


def generators(n, seed=0):
    return [np.random.default_rng([seed, i]) for i in range(n)]


@pytest.fixture(scope="module")
def pictures():
    return smooth(24)


# --- what holds of all


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_picture_is_corrupted_alike_alone_in_a_batch_and_in_another_order(name, pictures):
    whole = corrupt(pictures, name, severity=4, seed=3)
    np.testing.assert_array_equal(corrupt(pictures[7], name, severity=4, seed=3, rows=[7]), whole[7])
    order = np.random.default_rng(0).permutation(24)
    np.testing.assert_array_equal(corrupt(pictures[order], name, severity=4, seed=3, rows=order), whole[order])


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_what_is_worked_on_at_a_time_changes_nothing(name, pictures, monkeypatch):
    whole = corrupt(pictures, name, severity=2)
    monkeypatch.setattr("rankwise.data.corruptions.table.AT_ONCE", 5 * pictures[0].size)
    np.testing.assert_array_equal(corrupt(pictures, name, severity=2), whole)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_pictures_need_not_be_square_and_stay_as_they_are(name):
    wide = smooth(2, 48)[:, :20]
    before = wide.copy()
    found = corrupt(wide, name, severity=5)
    assert found.shape == wide.shape
    assert found.dtype == np.uint8
    assert (found != wide).any()
    np.testing.assert_array_equal(wide, before)


DRAWN = sorted(
    set(CORRUPTIONS) - {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"}
)


@pytest.mark.parametrize("name", DRAWN)
def test_seed_and_row_decide_the_draws_and_equal_pictures_are_not_corrupted_alike(name):
    same = np.repeat(smooth(1), 2, 0)
    found = corrupt(same, name, severity=5, seed=0)
    assert (found[0] != found[1]).any()
    assert (corrupt(same, name, severity=5, seed=1) != found).any()


@pytest.mark.parametrize("name", sorted(set(CORRUPTIONS) - set(DRAWN)))
def test_what_draws_nothing_does_not_depend_on_the_seed(name, pictures):
    np.testing.assert_array_equal(
        corrupt(pictures, name, severity=3, seed=0), corrupt(pictures, name, severity=3, seed=1)
    )


# glass, frost and elastic trade one parameter for another from severity to severity, as they were released
GROWING = sorted(set(CORRUPTIONS) - {"glass_blur", "frost", "elastic_transform"})


@pytest.mark.parametrize("name", GROWING)
def test_a_higher_severity_lies_farther_from_the_clean_picture(name, pictures):
    far = [np.abs(corrupt(pictures, name, severity=s).astype(float) - pictures).mean() for s in SEVERITIES]
    far = np.array(far)
    assert far[0] > 0
    assert (np.diff(far) > (-0.01 * far[:-1] if name == "motion_blur" else 0)).all(), far  # its 3 and 4 are nearly one


@pytest.mark.parametrize("severity", [0, 6, -1, 2.5, True])
def test_a_severity_beyond_one_to_five_is_refused(severity, pictures):
    with pytest.raises(ValueError, match="1 \\(mild\\) to 5"):
        corrupt(pictures, "fog", severity=severity)


def test_other_names_shapes_types_and_rows_are_refused(pictures):
    with pytest.raises(ValueError, match="did you mean gaussian_noise"):
        corrupt(pictures, "gausian_noise", severity=1)
    for wrong in (pictures / 255, pictures[..., :1], pictures[0, 0], pictures[:, :4]):
        with pytest.raises(ValueError, match="pictures of shape"):
            corrupt(wrong, "fog", severity=1)
    for rows in ([1, 2], np.arange(24) / 2, np.arange(24) - 1):
        with pytest.raises(ValueError, match="24 whole numbers from 0 on"):
            corrupt(pictures, "fog", severity=1, rows=rows)
    for seed in (-1, None, 0.5):
        with pytest.raises(ValueError, match="a whole number from 0 on"):
            corrupt(pictures, "fog", severity=1, seed=seed)


def test_no_pictures_are_no_pictures():
    assert corrupt(np.zeros((0, 8, 8, 3), np.uint8), "fog", severity=1).shape == (0, 8, 8, 3)


def test_a_corrupted_collection_keeps_labels_and_the_sides_of_the_split():
    images = Images.of(smooth(40, 8), labels=np.arange(40) % 2)
    noisy = corrupted(images, "fog", severity=2, seed=5)
    np.testing.assert_array_equal(noisy[3], corrupt(images[3], "fog", severity=2, seed=5, rows=[3]))
    assert noisy.fingerprint() != images.fingerprint()
    for clean, other in zip(images.split(), noisy.split(), strict=True):
        np.testing.assert_array_equal(clean.labels, other.labels)
        assert clean.digests == other.groups


# --- noise


@pytest.mark.parametrize(("severity", "scale"), zip(SEVERITIES, [0.04, 0.06, 0.08, 0.09, 0.10], strict=True))
def test_gaussian_noise_has_mean_0_and_the_tables_deviation(severity, scale):
    found = corrupt(level(128, 8), "gaussian_noise", severity=severity) / 255
    assert found.mean() == pytest.approx(128 / 255, abs=1e-3)
    assert found.std() == pytest.approx(math.hypot(scale, 1 / 255 / 12**0.5), rel=0.02)
    assert stats.kurtosis(found.ravel()) == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("value", [60, 100, 128])
@pytest.mark.parametrize(("severity", "photons"), zip(SEVERITIES, [500, 250, 100, 75, 50], strict=True))
def test_shot_noise_is_poisson_mean_kept_variance_mean_over_photons(severity, photons, value):
    found = corrupt(level(value, 8), "shot_noise", severity=severity) / 255
    assert found.mean() == pytest.approx(value / 255, rel=0.01)
    assert found.var() == pytest.approx(value / 255 / photons + 1 / 255**2 / 12, rel=0.04)


def test_shot_noise_leaves_black_black():
    assert not corrupt(level(0), "shot_noise", severity=5).any()


@pytest.mark.parametrize(("severity", "share"), zip(SEVERITIES, [0.01, 0.02, 0.03, 0.05, 0.07], strict=True))
def test_impulse_noise_sets_a_share_of_the_values_half_to_0_half_to_255(severity, share):
    found = corrupt(level(77, 16), "impulse_noise", severity=severity)
    assert set(np.unique(found)) == {0, 77, 255}
    for extreme in (0, 255):
        assert (found == extreme).mean() == pytest.approx(share / 2, rel=0.06)
    red, green = found[..., 0] != 77, found[..., 1] != 77
    assert (red & green).mean() == pytest.approx(share**2, abs=1e-3)  # channels by themselves


# --- blur

BLURS = ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur"]


@pytest.mark.parametrize("name", [*BLURS, "elastic_transform", "pixelate"])
@pytest.mark.parametrize("severity", SEVERITIES)
def test_averages_and_displacements_keep_a_constant_picture(name, severity):
    np.testing.assert_array_equal(corrupt(level(93), name, severity=severity), level(93))


@pytest.mark.parametrize(("radius", "softness"), [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)])
def test_the_disk_sums_to_one_and_is_as_wide_as_its_radius(radius, softness):
    kernel = disk(radius, softness)
    assert kernel.sum() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(kernel, kernel[::-1].T)
    if softness <= 0.2:  # hardly softened: pixels within the radius, alike
        at = np.arange(len(kernel)) - len(kernel) // 2
        inside = at[:, None] ** 2 + at**2 <= radius**2
        np.testing.assert_allclose(kernel[inside], 1 / inside.sum(), atol=1e-5)


def test_defocus_spreads_a_point_as_the_disk_says():
    point = np.zeros((1, 33, 33, 3), np.uint8)
    point[0, 16, 16] = 255
    found = corrupt(point, "defocus_blur", severity=5)[0, 14:19, 14:19, 0]
    expected = np.zeros((5, 5))
    expected[1:4, 1:4] = 255 / 9  # radius 1.5: the eight neighbours too
    np.testing.assert_allclose(found, expected, atol=0.51)


def test_glass_exchanges_pixels_so_that_none_is_lost():
    image = smooth(1)
    found = corrupt(image, "glass_blur", severity=1)  # the Gaussian of 0.05 pixels is none
    assert (found != image).mean() > 0.3
    np.testing.assert_array_equal(np.sort(found.reshape(-1, 3), 0), np.sort(image.reshape(-1, 3), 0))
    moved = [tuple(p) for p in image.reshape(-1, 3)]
    assert sorted(moved) == sorted(tuple(p) for p in found.reshape(-1, 3))  # whole pixels, not channels


def test_a_streak_is_half_a_gaussian_in_the_direction_of_its_angle():
    points = np.zeros((3, 21, 21, 1), np.float32)
    points[:, 10, 10] = 1
    found = streaked(points, 4, 2.0, np.array([0.0, 90.0, 180.0]))[..., 0]
    weights = np.exp(-(np.arange(9) ** 2) / 8)
    weights /= weights.sum()
    # each pixel looks along the angle: light arrives at those that lie before it
    np.testing.assert_allclose(found[0, 10, 10:1:-1], weights, atol=1e-6)
    np.testing.assert_allclose(found[1, 10:1:-1, 10], weights, atol=1e-6)
    np.testing.assert_allclose(found[2, 10, 10:19], weights, atol=1e-6)
    assert found.sum((1, 2)) == pytest.approx([1, 1, 1])


def test_motion_blurs_along_the_line_and_hardly_across():
    """Angles lie within 45 degrees of the horizontal, so that columns mix more than rows."""
    noise = np.random.default_rng(0).integers(0, 256, (200, 32, 32, 1)).astype(np.uint8).repeat(3, -1)
    found = corrupt(noise, "motion_blur", severity=5)[..., 0].astype(float)
    assert np.abs(np.diff(found, axis=2)).mean() < 0.75 * np.abs(np.diff(found, axis=1)).mean()


@pytest.mark.parametrize("factor", [1.0, 1.06, 1.25, 1.75, 2.25])
@pytest.mark.parametrize("side", [24, 32, 33])
def test_enlarging_is_scipys_zoom_of_the_middle(factor, side):
    image = np.random.default_rng(0).random((side, side)).astype(np.float32)
    inner = math.ceil(side / factor)
    first = (side - inner) // 2
    outer = ndimage.zoom(image[first : first + inner, first : first + inner], factor, order=1)
    trim = (len(outer) - side) // 2
    expected = outer[trim : trim + side, trim : trim + side]
    np.testing.assert_allclose(magnified(image[None, :, :, None], factor)[0, ..., 0], expected, atol=1e-5)


def test_zoom_blur_is_the_mean_of_enlargements_by_a_hundredth_each():
    image = smooth(1)
    x = image[0].astype(float) / 255
    layers = [x] + [
        np.stack([magnified(x[None, ..., c : c + 1].astype(np.float32), 1 + k / 100)[0, ..., 0] for c in range(3)], -1)
        for k in range(7)  # 1, 1.01, … 1.06
    ]
    expected = np.mean(layers, 0) * 255
    np.testing.assert_allclose(corrupt(image, "zoom_blur", severity=1)[0], expected, atol=0.51)


# --- weather


def test_plasma_lies_between_0_and_1_and_is_rougher_the_slower_its_range_decays():
    fine, coarse = plasma(32, 1.75, generators(20)), plasma(32, 3, generators(20))
    for found in (fine, coarse):
        assert found.shape == (20, 32, 32)
        np.testing.assert_allclose(found.min((1, 2)), 0)
        np.testing.assert_allclose(found.max((1, 2)), 1)
    assert np.abs(np.diff(fine, axis=1)).mean() > 1.3 * np.abs(np.diff(coarse, axis=1)).mean()


def test_plasma_without_noise_below_the_first_squares_is_the_mean_of_neighbours():
    """With a range that vanishes at once the field is what interpolation makes of the first four points."""
    field = plasma(8, 1e6, generators(1))[0].astype(float)
    around = np.pad(field, ((0, 1), (0, 1)), mode="wrap")
    middles = (around[0:8:4, 0:8:4] + around[0:8:4, 4:9:4] + around[4:9:4, 0:8:4] + around[4:9:4, 4:9:4]) / 4
    np.testing.assert_allclose(field[2:8:4, 2:8:4], middles, atol=1e-6)


def test_plasma_strays_as_far_from_its_neighbours_on_edges_as_in_squares():
    field = plasma(32, 2, generators(40)).astype(float)
    up, left = np.roll(field, 1, 1), np.roll(field, 1, 2)
    down, right = np.roll(field, -1, 1), np.roll(field, -1, 2)
    edges = field - (up + down + left + right) / 4
    diagonal = (np.roll(up, 1, 2) + np.roll(up, -1, 2) + np.roll(down, 1, 2) + np.roll(down, -1, 2)) / 4
    squares = (field - diagonal)[:, 1::2, 1::2].std()
    assert edges[:, ::2, 1::2].std() == pytest.approx(squares, rel=0.1)
    assert edges[:, 1::2, ::2].std() == pytest.approx(squares, rel=0.1)


@pytest.mark.parametrize(("severity", "thick"), zip(SEVERITIES, [0.2, 0.5, 0.75, 1, 1.5], strict=True))
def test_fog_maps_the_largest_value_to_itself_under_the_thickest_cloud(severity, thick):
    found = corrupt(level(200, side=32), "fog", severity=severity)[0, ..., 0] / 255
    most = 200 / 255
    assert found.max() == pytest.approx((most + thick) * most / (most + thick), abs=2e-3)
    assert found.min() == pytest.approx(most * most / (most + thick), abs=2e-3)  # where there is no cloud


@pytest.mark.parametrize(
    ("severity", "mix"), zip(SEVERITIES, [(1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)], strict=True)
)
def test_frost_is_a_sum_of_scene_and_ice(severity, mix):
    scene, ice = mix
    black = corrupt(level(0, 4), "frost", severity=severity).astype(float)
    lit = corrupt(level(60, 4), "frost", severity=severity).astype(float)
    np.testing.assert_allclose(lit - black, scene * 60, atol=1.01)
    thicker = corrupt(level(0, 4), "frost", severity=2).astype(float)
    np.testing.assert_allclose(black / ice, thicker / 0.3, atol=4)


def test_a_pane_is_bluish_and_as_uneven_as_photographs_of_frost():
    found = pane(64, 64, generators(60))
    grey = found.mean(-1)
    assert 0.55 < grey.mean() < 0.65
    assert grey.std((1, 2)) == pytest.approx(0.08, abs=0.01)
    assert (found[..., 2].mean() > found[..., 1].mean() > found[..., 0].mean()) is np.True_
    centred = grey - grey.mean((1, 2), keepdims=True)
    near, far = (np.mean(centred[:, :, :-k] * centred[:, :, k:]) / centred.var() for k in (1, 16))
    assert near > 0.7  # 0.87 to 0.96 there
    assert far < 0.5


def test_snow_whitens_the_scene_as_the_formula_says_and_falls_turned_by_half_a_circle():
    dark = corrupt(level(50, 8, 32), "snow", severity=1).astype(float)
    grey = 50 / 255
    floor = 0.95 * grey + 0.05 * max(grey, 1.5 * grey + 0.5)
    assert dark.min() == pytest.approx(255 * floor, abs=0.51)  # between the flakes
    flakes = dark - dark.min()
    shown = flakes[dark < 255].size / flakes.size
    assert shown > 0.9
    np.testing.assert_array_equal(dark, dark[:, ::-1, ::-1])
    assert (flakes[..., 0] == flakes[..., 2]).all()  # white


@pytest.mark.parametrize(("severity", "more"), zip(SEVERITIES, [0.05, 0.1, 0.15, 0.2, 0.3], strict=True))
def test_brightness_adds_to_hsvs_value_and_keeps_hue_and_saturation(severity, more):
    import colorsys

    image = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3)).astype(np.uint8)
    image[0, 0, 0] = 0
    found = corrupt(image, "brightness", severity=severity)[0]
    for before, after in zip(image.reshape(-1, 3), found.reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(before / 255))
        expected = colorsys.hsv_to_rgb(hue, saturation, min(value + more, 1))
        np.testing.assert_allclose(after, np.array(expected) * 255, atol=0.51)


# --- digital


@pytest.mark.parametrize(("severity", "keep"), zip(SEVERITIES, [0.75, 0.5, 0.4, 0.3, 0.15], strict=True))
def test_contrast_shrinks_deviations_from_each_channels_mean(severity, keep):
    image = smooth(3)
    found = corrupt(image, "contrast", severity=severity).astype(float)
    mean = image.mean((1, 2), keepdims=True)
    np.testing.assert_allclose(found.mean((1, 2), keepdims=True), mean, atol=0.3)
    np.testing.assert_allclose(found - mean, keep * (image - mean), atol=0.51)


@pytest.mark.parametrize(("severity", "quality"), zip(SEVERITIES, [80, 65, 58, 50, 40], strict=True))
def test_jpeg_is_pillows_at_the_tables_quality(severity, quality):
    image = smooth(1)[0]
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=quality)
    np.testing.assert_array_equal(corrupt(image, "jpeg_compression", severity=severity), np.asarray(Image.open(stream)))


@pytest.mark.parametrize(("severity", "small"), zip(SEVERITIES, [30, 28, 27, 24, 20], strict=True))
def test_pixelate_leaves_as_many_values_as_small_pixels_each_a_mean_of_a_box(severity, small):
    ramp = np.repeat(np.arange(0, 256, 8, dtype=np.uint8)[None, None, :, None], 32, 1).repeat(3, -1)
    found = corrupt(ramp, "pixelate", severity=severity)[0, :, :, 0]
    assert (found == found[0]).all()
    assert len(np.unique(found)) == small
    ratio = 32 / small
    for column, value in enumerate(found[0]):
        place = int((column + 0.5) / ratio)
        # pixels whose middle lies in the small pixel's box
        inside = [v for i, v in enumerate(ramp[0, 0, :, 0]) if place * ratio <= i + 0.5 < (place + 1) * ratio]
        assert value == pytest.approx(np.mean(inside), abs=0.51)


def test_bilinear_values_are_scipys():
    x = np.random.default_rng(0).random((2, 9, 12, 3)).astype(np.float32)
    rows, columns = np.random.default_rng(1).uniform(-6, 16, (2, 2, 9, 12))
    for edge_twice, mode in ((True, "reflect"), (False, "mirror")):
        found = sampled(x, rows, columns, edge_twice=edge_twice)
        for n in range(2):
            for c in range(3):
                expected = ndimage.map_coordinates(x[n, ..., c], [rows[n], columns[n]], order=1, mode=mode)
                np.testing.assert_allclose(found[n, ..., c], expected, atol=1e-5)


def test_elastic_moves_a_straight_ramp_by_an_affine_map_at_severity_1():
    """There is no field of displacements then: away from the borders a plane stays a plane, with another slope."""
    plane = (40 + 2 * np.mgrid[:32, :32][0] + 3 * np.mgrid[:32, :32][1])[None, ..., None].repeat(3, -1).astype(np.uint8)
    found = corrupt(plane, "elastic_transform", severity=1, seed=2)[0, 10:22, 10:22, 0].astype(float)
    rows, columns = np.mgrid[:12, :12].reshape(2, -1)
    design = np.stack([np.ones(144), rows, columns], 1)
    slope, residual, *_ = np.linalg.lstsq(design, found.ravel(), rcond=None)
    assert residual[0] / 144 < 0.2
    assert np.abs(slope[1:] - [2, 3]).max() > 0.02
    assert np.abs(slope[1:] - [2, 3]).max() < 2


@pytest.mark.parametrize("severity", SEVERITIES)
def test_elastic_displaces_by_pixels_not_by_the_picture(severity):
    """A narrow line stays within what the table lets it move."""
    reach = [0.08, 0.12, 0.14, 0.15, 0.13][severity - 1] * 32
    line = np.zeros((20, 32, 32, 3), np.uint8)
    line[:, :, 16] = 255
    found = corrupt(line, "elastic_transform", severity=severity)[:, 11:22, :, 0]
    columns = np.abs(np.where(found > 60)[2] - 16)
    assert columns.max() <= math.ceil(2 * reach) + 1
    assert columns.max() > 1
