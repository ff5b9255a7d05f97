"""Real peers and the simulated network: the same rules, written twice, show the same lists."""

import pytest

pytest.importorskip("ipv8")
from rankwise.bench.shared.loopback import on_loopback
from rankwise.ranking import simulate


@pytest.mark.parametrize("click", ["position", "first"])
def test_real_peers_show_the_lists_that_the_simulation_shows(tmp_path, click):
    options = {"nodes": 5, "searches": 8, "seed": 4, "click": click}
    lists = simulate(**options, swap=0.0, keep=True).lists
    assert (on_loopback(tmp_path, **options) == lists).all()
    other = simulate(**options | {"gossip": "none"}, swap=0.0, keep=True).lists
    assert (other != lists).any()  # gossip matters, so the peers' gossip was seen


@pytest.mark.slow
def test_twenty_real_peers_reach_the_simulations_curve(tmp_path):
    options = {"nodes": 20, "searches": 40, "seed": 0, "click": "position"}
    assert (on_loopback(tmp_path, **options) == simulate(**options, swap=0.0, keep=True).lists).all()
