"""Counts that are kept up to date, also when clicks are taken back; a log that is asked only for what it may hold."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from rankwise.ranking import Click, GRank
from rankwise.ranking.peers.log import MemoryLog
from rankwise.ranking.peers.tallies import Tallies

CLICKS = st.tuples(st.sampled_from(["own", "ann", "bob"]), st.sampled_from("pqrst"), st.sampled_from("xyz"))


@settings(max_examples=200, deadline=None)
@given(st.lists(CLICKS, max_size=40), st.lists(st.integers(0, 1000), max_size=40), st.integers(1, 4))
def test_frequent_queries_are_those_of_a_count_after_every_click_and_every_taking_back(clicks, back, k):
    tallies, held = Tallies("own", k=k, cap=None), []

    def agree():
        asked = {node: Counter(q for n, q, _ in held if n == node) for node in tallies.nodes}
        top = {n: set(sorted(c, key=lambda q, c=c: (-c[q], q))[:k]) for n, c in asked.items()}
        assert tallies.terms.tolist() == [len(top["own"] & top[n]) for n in tallies.nodes]

    for n, click in enumerate(clicks):
        tallies.add([Click(click[0], n, *click[1:])])
        held.append(click)
        agree()
    for at in back:
        if held:
            click = held.pop(at % len(held))
            tallies.add([Click(click[0], 0, *click[1:])], times=-1)
            agree()


class Asked(MemoryLog):
    """A log that remembers what it was asked for."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def held(self, node, counters):
        self.asked.append((node, list(counters)))
        return super().held(node, counters)


def test_the_log_is_asked_only_for_clicks_that_are_there():
    log = Asked()
    peer = GRank("own", log=log)
    ann = [Click("ann", n, "blues", f"item{n}") for n in range(6)]
    assert peer.merge([ann[0], ann[1], ann[4]]) == 3
    assert log.asked == []
    assert peer.merge(ann) == 3
    assert log.asked == [("ann", [0, 1, 4])]
    again = GRank("own", log=log)
    log.asked.clear()
    assert again.merge([*ann, Click("ann", 6, "blues", "x")]) == 1
    assert log.asked == [("ann", [0, 1, 2, 3, 4, 5])]
