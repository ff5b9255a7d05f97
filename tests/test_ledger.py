import time

import torch
from torch import nn

from rankwise.ledger import Cost, count_parameters, measure


def test_shared_parameters_count_once():
    a, b = nn.Linear(3, 4), nn.Linear(3, 4)
    b.weight = a.weight
    assert count_parameters(nn.ModuleList([a, b])) == 12 + 4 + 4
    a.weight.requires_grad_(False)
    assert count_parameters(nn.ModuleList([a, b]), trainable=True) == 8


def test_peak_memory_and_time_of_a_block_are_seen():
    cost = Cost(seconds=10.0)
    with measure(cost):
        blocks = [torch.ones(20_000_000) for _ in range(3)]  # 240 MB, touched
        time.sleep(0.05)  # the memory is looked at every 10 ms
        del blocks
    assert 150_000_000 < cost.peak_memory_bytes < 400_000_000
    assert 10.05 < cost.seconds < 20
    before = cost.peak_memory_bytes
    with measure(cost):
        pass
    assert cost.peak_memory_bytes == before  # a smaller block lowers no peak


def test_the_trainable_share_is_of_the_base_models_parameters():
    cost = Cost(trainable_parameters=5, total_parameters=100, seconds=2.0)
    assert cost.trainable_share == 0.05
    assert cost.as_dict()["trainable_share"] == 0.05
    assert cost.as_dict()["seconds"] == 2.0
    assert Cost().trainable_share == 0
