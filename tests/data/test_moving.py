import numpy as np

from rankwise.data.moving import digits, write_moving
from rankwise.prompting.video import read_frames


def test_digits_are_five_hundred_of_each():
    images, labels = digits()
    assert images.shape == (5000, 28, 28)
    assert np.bincount(labels).tolist() == [500] * 10
    assert images.max() == 255


def test_a_moving_digit_stays_whole_within_the_picture(tmp_path):
    image = np.full((28, 28), 255, np.uint8)
    found = read_frames(write_moving(tmp_path / "v.mp4", image, seed=3), fps=4)
    assert found.images.shape == (12, 64, 64, 3)
    bright = (found.images[..., 0] > 150).sum((1, 2))
    np.testing.assert_allclose(bright, 28 * 28, rtol=0.05)
    places = [tuple(np.argwhere(f[..., 0] > 150).mean(0).round().astype(int)) for f in found.images]
    assert len(set(places)) > 8
    again = write_moving(tmp_path / "w.mp4", image, seed=3)
    np.testing.assert_array_equal(read_frames(again, fps=4).images, found.images)
