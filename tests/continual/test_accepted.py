"""Numbers of settings: what lies on a border is taken, what lies beyond is refused by name."""

import math

import pytest

from rankwise.continual import Settings, UnlearningSettings


@pytest.mark.parametrize(
    ("kind", "name", "taken", "refused"),
    [
        (Settings, "alpha", (0, 1), (-0.1, 1.1, math.nan, None)),
        (Settings, "confident", (None, 0, 1), (-0.1, 1.1)),
        (Settings, "lr", (0,), (-1e-9, math.inf, math.nan)),
        (Settings, "n_aug", (2,), (1,)),
        (Settings, "chunk", (1,), (0,)),
        (Settings, "seed", (0,), (-1,)),
        (UnlearningSettings, "dropout", (0,), (-0.1, 1, 1.1, None)),
        (UnlearningSettings, "nu", (1,), (0, 1.1)),
        (UnlearningSettings, "top", (0,), (-1, math.inf)),
        (UnlearningSettings, "rank", (None, 1), (0,)),
        (UnlearningSettings, "max_length", (2,), (1,)),
        (UnlearningSettings, "encoder_steps", (0,), (-1,)),
    ],
)
def test_numbers_are_taken_up_to_their_borders_and_refused_by_name_beyond(kind, name, taken, refused):
    for value in taken:
        assert getattr(kind(**{name: value}), name) == value
    for value in refused:
        with pytest.raises(ValueError, match=f"{name}={value}"):
            kind(**{name: value})
