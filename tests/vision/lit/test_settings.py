"""Settings are checked once, by name."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from rankwise.vision import LitSettings
from rankwise.vision.lit.settings import PRESETS


def test_the_published_values():
    s = PRESETS["published"]
    assert (s.lr_network, s.lr_prompts, s.weight_decay, s.batch_network, s.batch_prompts) == (2e-5, 5e-6, 1e-3, 8, 16)
    assert (s.first_steps, s.warm_steps, s.network_steps, s.prompt_steps) == (8000, 1000, 2100, 1000)
    assert (s.size_network, s.size_prompts, s.scale, s.clip_weight) == (512, 256, 100, 320)
    assert s.identity_weight == 0.9 * 25
    assert s.alphas == (1, 1, 1, 1, 0.5)
    steps = s.first_steps + s.warm_steps + s.rounds * (s.network_steps + s.prompt_steps)
    assert steps >= 49_000  # about 50,000 in all


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"network": "lihgt"}, "did you mean light"),
        ({"start": "zeros"}, "unknown start"),
        ({"size_network": 31}, "size_network=31; a whole number of at least 32"),
        ({"rounds": -1}, "rounds=-1"),
        ({"rounds": 1.5}, r"rounds=1\.5; a whole number"),
        ({"batch_prompts": True}, "batch_prompts=True"),
        ({"lr_network": 0.0}, "lr_network=0.0; a number above 0"),
        ({"scale": float("inf")}, "scale=inf"),
        ({"identity_weight": float("nan")}, "identity_weight=nan"),
        ({"alphas": (1, 2)}, "five numbers"),
        ({"seed": 2**32}, "seed="),
        ({"alphas": 3}, "five numbers"),
        ({"alphas": (1, 1, 1, 1, "1")}, "five numbers"),
        ({"lr_network": "1e-3"}, "lr_network='1e-3'"),
        ({"clip_weight": None}, "clip_weight=None"),
        ({"rounds": "3"}, "rounds='3'"),
        ({"augment": "no"}, "augment='no'; True or False"),
        ({"released": 0}, "released=0; True or False"),
        ({"least": 1.1}, r"least=1\.1; a number from 0 to 1"),
        ({"least": float("nan")}, "least=nan"),
    ],
)
def test_a_value_out_of_range_is_named(changes, said):
    with pytest.raises(ValueError, match=said):
        LitSettings(**changes)


def test_whole_numbers_of_numpys_are_whole_numbers():
    assert json.loads(json.dumps(asdict(LitSettings(rounds=np.int64(2)))))["rounds"] == 2
