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
    cost = Cost()
    with measure(cost):
        blocks = [torch.ones(20_000_000) for _ in range(3)]  # 240 MB, touched
        total = sum(float(b.sum()) for b in blocks)
    assert total > 0
    assert cost.peak_memory_bytes > 150_000_000
    assert cost.seconds > 0
    assert Cost(trainable_parameters=5, total_parameters=100).as_dict()["trainable_share"] == 0.05
