"""The simulated network shows the lists of real `GRank` objects, and everything around it is what it says."""

from itertools import combinations

import numpy as np
import pytest

from rankwise.bench.speed.peers import looped
from rankwise.ranking import Click, GRank, ndcg, positional_distance, simulate
from rankwise.ranking.peers.gossip import BURST, Attack, Gossip
from rankwise.ranking.peers.network import Network
from rankwise.ranking.peers.shown import Clicks, Worth, listed, swapped
from rankwise.ranking.peers.simulation import begin
from rankwise.ranking.peers.world import TAGS, World, make_world

SMALL = {"nodes": 12, "searches": 24, "items": 40, "terms": 9}


def world(nodes=8, attackers=0, seed=0, **sizes) -> World:
    sizes = {"items": 60, "terms": 12, "tastes": 4, "owned": 0.1} | sizes
    return make_world(nodes=nodes, attackers=attackers, seed=seed, **sizes)


# --- the same lists


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"isolation": 1.0, "click": "first", "swap": 0.5},
        {"released": True},
        {"click": "position", "gossip": "push", "isolation": 0.3},
        {"attack": "inflation", "attackers": 3, "cap": 5},
        {"attack": "targeted", "attackers": 4, "gossip": "push"},
    ],
    ids=lambda how: ", ".join(f"{k} {v}" for k, v in how.items()) or "as in the paper",
)
def test_every_list_is_the_one_that_real_objects_give(how):
    size = {"nodes": 8, "searches": 300, "seed": 3}
    theirs = looped(**size, **how)
    how = {("similarity" if k == "released" else k): ("released" if k == "released" else v) for k, v in how.items()}
    ours = simulate(**size, **how, keep=True, every=100)
    np.testing.assert_array_equal(ours.lists, theirs)
    assert (theirs >= 0).all(-1).mean() > 0.3


def test_isolation_and_similarity_change_lists_and_a_seed_decides_them():
    lists = {
        name: simulate(**SMALL, keep=True, **how).lists
        for name, how in {
            "paper": {}, "again": {}, "F": {"isolation": 1.0}, "released": {"similarity": "released"},
            "equal": {"similarity": "equal"}, "shuffled": {"similarity": "shuffled"}, "k": {"k": 1},
            "seed": {"seed": 1}, "swap": {"swap": 0.5}, "cap": {"cap": 1}, "click": {"click": "first"},
            "gossip": {"gossip": "none"},
        }.items()
    }  # fmt: skip
    assert np.array_equal(lists["paper"], lists["again"])
    others = [name for name in lists if name not in ("paper", "again")]
    assert all(not np.array_equal(lists["paper"], lists[name]) for name in others)


def test_similarities_of_a_network_are_those_of_objects_for_both_formulas():
    w = world(nodes=5)
    for name in ("paper", "released"):
        network = Network(w, most=100, k=3, isolation=0, cap=None, similarity=name, seed=0)
        begin(network)
        network.tell(np.array([0, 1, 1]), np.array([3, 0, 4]))
        for i in range(5):
            known = GRank(f"n{i}", k=3, released=name == "released")
            logs = {j: [(w.terms[q], w.library[w.columns[q, w.first[j, q]]].id) for q in w.order[j]] for j in range(5)}
            met = {0: [3], 1: [0, 4]}.get(i, [])
            told = {j: (12 if j == i or j in met else 2 if j == w.friend[i] else 0) for j in range(5)}
            known.merge(Click(f"n{j}", c, *pair) for j in logs for c, pair in enumerate(logs[j][: told[j]]))
            expected = [known.similarity(f"n{j}") for j in range(5)]
            assert network.similarities()[i].tolist() == expected


def test_a_shuffled_node_takes_every_other_for_another_and_itself_for_itself():
    w = world(nodes=6, attackers=2)
    kept = {s: Network(w, most=100, k=3, isolation=0, cap=None, similarity=s, seed=0) for s in ("paper", "shuffled")}
    for network in kept.values():
        begin(network)
        for i in range(6):
            network.tell(np.full(7, i), np.delete(np.arange(8), i))
    right, wrong = (kept[s].similarities() for s in ("paper", "shuffled"))
    assert (np.diag(wrong[:, :6]) == 1).all()
    for i in range(6):
        others = np.delete(np.arange(8), i)
        assert sorted(right[i, others]) == sorted(wrong[i, others])
        assert (right[i, others] != wrong[i, others]).any()
    taken = kept["shuffled"]._taken_for
    assert all((np.delete(taken[i], i) != np.delete(np.arange(8), i)).all() for i in range(6))


# --- the world


def test_a_world_is_as_the_paper_describes_it():
    w = make_world(nodes=100, attackers=10, items=253, terms=39, tastes=4, owned=0.1, seed=0)
    assert (len(w.library), len(w.terms), w.owns.shape) == (253, 39, (110, 253))
    assert all(len(set(item.tags)) == TAGS for item in w.library)
    for q, term in enumerate(w.terms):
        carry = [i for i, item in enumerate(w.library) if term in item.tags]
        assert carry
        assert w.columns[q][w.columns[q] >= 0].tolist() == carry
    clicked = w.columns[np.arange(39), w.first]
    assert (clicked >= 0).all()
    assert w.owns[np.arange(110)[:, None], clicked].all()
    assert (w.owns.sum(1) >= 25).all()
    assert (w.owns.sum(1) <= 25 + 39).all()
    assert [sorted(row) for row in w.order.tolist()] == [list(range(39))] * 110
    assert all(w.friend[i] < i for i in range(1, 100))
    assert w.friend[0] > 0
    assert np.bincount(w.taste).tolist() == [25] * 4
    assert w.asks.sum(1) == pytest.approx([1] * 4)
    assert np.sort(w.asks, 1)[:, ::-1] == pytest.approx(np.tile(w.asks.max() / np.arange(1, 40), (4, 1)))
    assert set(np.unique(w.grades)) == {0, 1, 2, 3, 4}
    assert (w.grades.max(-1) > 0).all()
    assert (w.grades[:, w.columns < 0] == 0).all()


def test_a_taste_likes_the_items_of_its_home_best():
    w = make_world(nodes=4, attackers=0, items=2000, terms=39, tastes=4, owned=0.1, seed=0)
    here = w.columns >= 0
    best = w.grades.argmax(0)[here]
    home = [w.grades[t][here][best == t].mean() for t in range(4)]
    away = [w.grades[t][here][best != t].mean() for t in range(4)]
    assert np.subtract(home, away).min() > 1


def test_before_anything_begins_a_node_knows_its_own_clicks_and_a_tenth_of_a_friends():
    w = world(nodes=8, terms=12)
    network = Network(w, most=100, k=3, isolation=0, cap=None, similarity="paper", seed=0)
    begin(network)
    known = network.seen.sum((1, 3))
    for i in range(8):
        assert known[i, i] == 12
        assert known[i, w.friend[i]] == 2  # a tenth, rounded up
        assert known[i].sum() == 14
        first = w.order[w.friend[i], :2]
        assert (network.seen[i, first, w.friend[i]].sum(1) == 1).all()


# --- lists


def test_lists_are_by_score_then_by_column_and_only_what_may_be_shown():
    scores = np.array([[0.0, 2.0, 0.0, 2.0, 5.0, 0.0]])
    otherwise = np.array([[1.0, 1.0, np.inf, np.inf, 1.0, 1.0]])
    assert listed(scores, otherwise, 6).tolist() == [[4, 1, 3, 0, 5, -1]]
    assert listed(scores, otherwise, 2).tolist() == [[4, 1]]


def test_a_swap_exchanges_two_places_that_hold_something_as_often_as_it_should():
    rng, shown = np.random.default_rng(0), np.tile([3, 1, 2, 0, -1], (20_000, 1))
    moved = swapped(shown, 0.3, rng.random((20_000, 3)))
    assert (moved[:, 4] == -1).all()
    assert (np.sort(moved, 1) == [-1, 0, 1, 2, 3]).all()
    changed = (moved != shown).sum(1)
    assert set(changed) == {0, 2}
    assert (changed > 0).mean() == pytest.approx(0.3, abs=0.015)
    pairs = [tuple(np.flatnonzero(row)) for row in (moved != shown)[changed > 0]]
    often = [pairs.count(pair) / len(pairs) for pair in combinations(range(4), 2)]
    assert often == pytest.approx([1 / 6] * 6, abs=0.02)
    assert shown[0].tolist() == [3, 1, 2, 0, -1]
    assert np.array_equal(swapped(shown, 0.0, rng.random((20_000, 3))), shown)
    lone = np.tile([3, -1], (50, 1))
    assert np.array_equal(swapped(lone, 1.0, rng.random((50, 3))), lone)


def test_positional_distance_by_hand_and_zero_exactly_for_equal_order():
    # common: c a b against a b c: c is 2 places off, a and b one each
    assert positional_distance("cab", "abxc") == 4
    assert positional_distance("ab", "xaybz") == 0
    assert positional_distance("ba", "xaybz") == 2
    assert positional_distance("ab", "xy") == 0
    assert positional_distance([], "xy") == 0


def test_distances_of_a_network_are_positional_distances_and_unclicked_items_stand_behind_by_id():
    w = world(items=30, terms=5)
    worth, rng = Worth(w, 10), np.random.default_rng(0)
    counts = rng.integers(0, 3, w.columns.shape) * (w.columns >= 0)
    ranks = worth.ranks(counts)
    rows, terms = [], rng.integers(5, size=50)
    for q in terms:
        here = np.flatnonzero(w.columns[q] >= 0)
        shown = rng.permutation(here)[: rng.integers(1, 11)]
        rows.append([*shown, *[-1] * (10 - len(shown))])
    found = worth.distance(terms, np.array(rows), ranks)
    for q, row, distance in zip(terms, rows, found, strict=True):
        here = np.flatnonzero(w.columns[q] >= 0)
        order = sorted(here, key=lambda c: (-counts[q, c], c))
        assert distance == positional_distance([c for c in row if c >= 0], order)
    assert found.max() > 0


def test_ndcg_of_a_network_is_the_familys_of_the_grades():
    w = world(items=60, terms=4)
    worth, rng = Worth(w, 10), np.random.default_rng(0)
    for q in range(4):
        here = np.flatnonzero(w.columns[q] >= 0)
        shown = rng.permutation(here)[:10]
        score = np.zeros(len(here))
        score[np.searchsorted(here, shown)] = np.arange(len(shown), 0, -1)
        row = np.full((1, 10), -1)
        row[0, : len(shown)] = shown
        for taste in range(4):
            got = worth.ndcg(np.array([taste]), np.array([q]), row)
            expected = ndcg(w.grades[taste, q, here], score, query=np.zeros(len(here)))
            assert len(here) >= 10
            assert got == pytest.approx(expected)


# --- clicks


def shares(model, grades):
    """How often each place of one list is clicked."""
    w = world(nodes=4)
    q, column = 0, np.arange(4)
    w.grades[0, q, column] = grades
    clicks, rng = Clicks(model, w, 6), np.random.default_rng(0)
    shown = np.tile([0, 1, 2, 3, -1, -1], (40_000, 1))
    zeros = np.zeros(40_000, int)
    place = clicks.places(zeros, zeros, shown, rng.random(40_000))
    return np.bincount(place, minlength=6) / 40_000


def test_clicks_go_to_the_first_place_or_by_interest_or_by_interest_and_position():
    grades = np.array([0, 4, 1, 1])
    assert shares("first", grades).tolist() == [1, 0, 0, 0, 0, 0]
    liked = np.array([0.1, 1.0, 0.16, 0.16, 0, 0])
    looked = np.array([0.68, 0.61, 0.48, 0.34, 0.28, 0.20])
    assert shares("interest", grades) == pytest.approx(liked / liked.sum(), abs=0.01)
    assert shares("position", grades) == pytest.approx(liked * looked / (liked * looked).sum(), abs=0.01)


# --- gossip


def test_who_asks_and_who_is_told():
    pull, push = (
        Gossip(kind, nodes=6, attackers=0, offline=0, accepting=1, asked=True, seed=0) for kind in ("pull", "push")
    )
    for _ in range(50):
        receivers, senders = pull.round(joined=False, attacking=False, cut=False)
        told, telling = push.round(joined=False, attacking=False, cut=False)
        assert receivers.tolist() == list(range(6)) == telling.tolist()
        assert senders.tolist() == told.tolist()  # the same meetings
        assert (receivers != senders).all()
        assert set(senders) <= set(range(6))


def test_attackers_are_met_from_when_they_joined_and_push_to_two_once_they_attack():
    pull, push = (
        Gossip(kind, nodes=4, attackers=3, offline=0, accepting=1, asked=True, seed=0) for kind in ("pull", "push")
    )
    before = np.concatenate([pull.round(joined=False, attacking=False, cut=False)[1] for _ in range(50)])
    since = np.concatenate([pull.round(joined=True, attacking=False, cut=False)[1] for _ in range(50)])
    assert (set(before), set(since)) == (set(range(4)), set(range(7)))
    waiting = [push.round(joined=True, attacking=False, cut=False) for _ in range(50)]
    attacking = [push.round(joined=True, attacking=True, cut=False) for _ in range(400)]
    assert all((senders < 4).all() and (receivers < 4).all() for receivers, senders in waiting)
    spam = np.array([(senders >= 4).sum() for _, senders in attacking])
    assert spam.mean() == pytest.approx(3 * 2 * 4 / 6, abs=0.3)  # two each, two thirds of them to honest nodes
    assert all((receivers < 4).all() for receivers, _ in attacking)


def test_who_is_cut_off_neither_hears_nor_tells():
    pull = Gossip("pull", nodes=6, attackers=0, offline=2, accepting=1, asked=True, seed=0)
    for _ in range(30):
        assert len(pull.round(joined=False, attacking=False, cut=False)[0]) == 6
        receivers, senders = pull.round(joined=False, attacking=False, cut=True)
        assert {4, 5}.isdisjoint({*receivers, *senders})


def test_nodes_that_accept_nothing_still_receive_what_they_asked_for():
    pulling = simulate(**SMALL, accepting=0.0, keep=True)
    np.testing.assert_array_equal(pulling.lists, simulate(**SMALL, keep=True).lists)
    assert pulling.hears.all()
    pushed = simulate(**SMALL, accepting=0.0, gossip="push", keep=True)
    np.testing.assert_array_equal(pushed.lists, simulate(**SMALL, gossip="none", keep=True).lists)
    assert not pushed.hears.any()


def test_where_half_do_not_even_receive_what_they_asked_for_these_stay_behind():
    half = simulate(nodes=40, searches=100, accepting=0.5, asked=False)
    alone = simulate(nodes=40, searches=100, gossip="none")
    assert half.hears.sum() == 20
    late = half.late("ndcg")
    assert late[half.hears].mean() > late[~half.hears].mean() + 0.2
    np.testing.assert_array_equal(half.ndcg[:, ~half.hears], alone.ndcg[:, ~half.hears])


# --- attacks


def test_no_attackers_are_no_attack():
    baseline = simulate(**SMALL, keep=True)
    for attack in BURST:
        none = simulate(**SMALL, attack=attack, attackers=0, keep=True)
        np.testing.assert_array_equal(none.lists, baseline.lists)
        np.testing.assert_array_equal(none.ndcg, baseline.ndcg)


@pytest.mark.parametrize("attack", list(BURST))
def test_until_attackers_join_nothing_differs(attack):
    baseline = simulate(**SMALL, keep=True)
    attacked = simulate(**SMALL, attack=attack, attackers=6, keep=True)
    joined = SMALL["searches"] // 4
    np.testing.assert_array_equal(attacked.lists[: joined + 1], baseline.lists[: joined + 1])
    assert (attacked.lists != baseline.lists).any()
    assert (attacked.reached[: SMALL["searches"] // 2] == 0).all()
    assert attacked.reached[-1] > 0


def test_a_targeted_attacker_clicks_what_stands_last_after_one_term():
    w = world(nodes=4, attackers=5)
    attack, counts = Attack("targeted", w, 0), np.zeros(w.columns.shape, int)
    counts[:, 0] = 3
    nodes, terms, columns = attack.burst(Worth(w, 10).ranks(counts))
    assert np.bincount(nodes).tolist() == [0] * 4 + [100] * 5
    for node in range(4, 9):
        (term,) = set(terms[nodes == node])
        (column,) = set(columns[nodes == node])
        assert column == np.flatnonzero(w.columns[term] >= 0)[-1] == attack.target[term]
    assert (attack.target[np.setdiff1d(np.arange(12), terms)] == -1).all()


def test_an_inflating_attacker_clicks_anything_that_carries_the_term():
    w = world(nodes=4, attackers=2)
    attack = Attack("inflation", w, 0)
    nodes, terms, columns = attack.burst(Worth(w, 10).ranks(np.zeros(w.columns.shape, int)))
    assert np.bincount(nodes).tolist() == [0] * 4 + [1000] * 2
    assert (w.columns[terms, columns] >= 0).all()
    assert len(set(zip(terms, columns, strict=True))) == (w.columns >= 0).sum()
    assert (attack.target == -1).all()


def test_the_default_number_of_attackers():
    def number(**how):
        return len(simulate(nodes=20, searches=2, items=12, terms=4, **how).world.first) - 20

    assert [number(), number(attack="inflation"), number(attack="targeted"), number(attack="epic")] == [0, 2, 2, 60]


@pytest.mark.parametrize("attack", ["inflation", "targeted"])
def test_more_attackers_do_more_harm(attack):
    late = [
        np.mean(
            [simulate(nodes=30, searches=80, seed=s, attack=attack, attackers=n).late("ndcg").mean() for s in range(8)]
        )
        for n in (0, 6, 30)
    ]
    assert late[0] > late[1] > late[2]


# --- what a simulation says


def test_rows_are_means_over_rounds_and_the_last_may_be_shorter():
    fine, coarse = simulate(**SMALL, attack="targeted"), simulate(**SMALL, attack="targeted", every=7)
    assert coarse.rounds.tolist() == [7, 14, 21, 24]
    for what in ("ndcg", "counted", "of_taste", "distance", "led"):
        blocks = np.split(getattr(fine, what), [7, 14, 21])
        assert getattr(coarse, what) == pytest.approx(np.stack([b.mean(0) for b in blocks]))
    assert coarse.late("ndcg") == pytest.approx(coarse.ndcg[2:].mean(0))
    assert coarse.late("ndcg", share=0.01) == pytest.approx(coarse.ndcg[3])
    np.testing.assert_array_equal(coarse.holding, fine.holding[[6, 13, 20, 23]])


def test_what_is_said_of_the_lists_is_so_of_the_lists():
    s = simulate(**SMALL, keep=True, swap=0.5)
    w = s.world
    for t in (0, 11, 23):
        for i in range(12):
            q, grade = (
                s.terms[t, i],
                dict(zip(w.columns[s.terms[t, i]], w.grades[s.world.taste[i], s.terms[t, i]], strict=True)),
            )
            gains = [2 ** grade[x] - 1 if x >= 0 else 0 for x in s.lists[t, i]]
            best = sorted((2 ** grade[x] - 1 for x in w.columns[q] if x >= 0), reverse=True)[:10]
            discount = 1 / np.log2(np.arange(10) + 2)
            assert s.ndcg[t, i] == pytest.approx(gains @ discount / (best @ discount[: len(best)]))


def test_who_holds_the_most_clicked_items_and_which_lists_are_led_by_what_is_pushed():
    size = {"nodes": 12, "searches": 24, "seed": 2, "click": "first", "swap": 0.0}
    s = simulate(**size, attack="targeted", attackers=40, similarity="equal", keep=True)
    w = s.world
    column = [{i: c for c, i in enumerate(row)} for row in w.columns.tolist()]
    counts, has = np.zeros(w.columns.shape, int), w.owns[:12].copy()
    np.add.at(counts, (np.arange(39), w.first[:12]), 1)
    attack, worth = Attack("targeted", w, 2), Worth(w, 10)
    for t in range(24):
        if t == 12:
            attack.burst(worth.ranks(counts))
        clicked = s.lists[t, :, 0]
        led = [clicked[i] == w.columns[s.terms[t, i], attack.target[s.terms[t, i]]] for i in range(12)]
        pushed = attack.target[s.terms[t]] >= 0
        assert s.led[t].tolist() == (np.array(led) & pushed).tolist()
        for i, (q, item) in enumerate(zip(s.terms[t], clicked, strict=True)):
            counts[q, column[q][item]] += 1
            has[i, item] = True
        most = [min((-counts[q, c], i) for i, c in of.items() if i >= 0)[1] for q, of in enumerate(column)]
        assert s.holding[t] == pytest.approx(np.median([has[:, item].mean() for item in most]))
    assert 0 < s.led[12:].mean() < 1
    assert 0 < s.holding[0] <= s.holding[-1] < 1


def test_a_servers_list_is_what_is_said_to_be_counted():
    server = simulate(**SMALL, ranker="global", swap=0.0)
    np.testing.assert_allclose(server.ndcg, server.counted)
    knowing = simulate(**SMALL, ranker="tastes", swap=0.0)
    np.testing.assert_allclose(knowing.ndcg, knowing.of_taste)
    assert server.distance.max() == 0


def test_the_best_ranker_is_the_best_and_chance_is_no_better_for_waiting():
    late = {
        r: simulate(nodes=40, searches=60, ranker=r, swap=0.0).ndcg for r in ("oracle", "g-rank", "random", "local")
    }
    assert late["oracle"] == pytest.approx(np.ones((60, 40)))
    assert abs(late["random"][:30].mean() - late["random"][30:].mean()) < 0.03
    assert late["g-rank"][30:].mean() > late["random"].mean() + 0.1 > late["local"][30:].mean()


def test_runs_that_differ_in_ranking_share_world_queries_and_taste():
    a, b = simulate(**SMALL), simulate(**SMALL, ranker="global", attack="epic", click="first")
    np.testing.assert_array_equal(a.terms, b.terms)
    np.testing.assert_array_equal(a.taste, b.taste)
    np.testing.assert_array_equal(a.world.grades, b.world.grades)
    np.testing.assert_array_equal(a.world.owns, b.world.owns[:12])
    np.testing.assert_array_equal(a.world.first, b.world.first[:12])


def test_nodes_that_go_offline_change_nothing_before_and_go_on():
    online, cut = simulate(**SMALL, keep=True), simulate(**SMALL, offline=12, keep=True)
    np.testing.assert_array_equal(cut.lists[:13], online.lists[:13])
    assert (cut.lists != online.lists).any()
    assert (cut.lists[-1, :, 0] >= 0).all()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"nodes": 1}, "nodes=1"),
        ({"searches": 0}, "searches=0"),
        ({"every": 0}, "every=0"),
        ({"k": 0}, "k=0"),
        ({"cap": 0}, "cap=0"),
        ({"length": 0}, "length=0"),
        ({"tastes": 0}, "tastes=0"),
        ({"isolation": 1.5}, "isolation=1.5"),
        ({"swap": -0.1}, "swap=-0.1"),
        ({"accepting": 2}, "accepting=2"),
        ({"owned": 1.1}, "owned=1.1"),
        ({"ranker": "grank"}, "did you mean g-rank"),
        ({"click": "firts"}, "did you mean first"),
        ({"gossip": "pul"}, "did you mean pull"),
        ({"similarity": "jaccard"}, "similarity 'jaccard'"),
        ({"attack": "sybil"}, "attack 'sybil'"),
        ({"items": 5}, "items=5, terms=39"),
        ({"terms": 2}, "terms=2"),
        ({"offline": 101}, "offline=101"),
        ({"attackers": 3}, "attackers=3 with attack='none'"),
        ({"attack": "epic", "attackers": -1}, "attackers=-1"),
        ({"similarity": "released", "isolation": 1.0}, "the released code drops it"),
        ({"ranker": "global", "isolation": 1.0}, "isolation=1.0 means nothing with ranker='global'"),
        ({"ranker": "local", "similarity": "equal"}, "similarity='equal' means nothing"),
        ({"ranker": "local", "gossip": "none"}, "gossip='none' means nothing"),
        ({"ranker": "oracle", "cap": 3}, "cap=3 means nothing"),
        ({"ranker": "random", "k": 3}, "k=3 means nothing"),
        ({"ranker": "tastes", "offline": 3}, "offline=3 means nothing"),
        ({"ranker": "tastes", "accepting": 0.5}, "accepting=0.5 means nothing"),
        ({"ranker": "tastes", "asked": False}, "asked=False means nothing"),
    ],
)  # fmt: skip
def test_what_cannot_be_simulated_is_refused_by_name(how, said):
    with pytest.raises(ValueError, match="(?s).*" + said.replace("(", r"\(")):
        simulate(**how)
