"""G-Rank: hand-worked similarities and lists, logs that merge in any order, and what is refused."""

import unicodedata
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwise.data.items import Item
from rankwise.ranking import Click, GRank, as_query, similarities
from rankwise.ranking.peers.log import MemoryLog, SqliteLog

LIBRARY = [
    Item(id="a", title="Slow Water", artist="Ann", tags=("blues",)),
    Item(id="b", title="Wheel", artist="Water Boys", tags=("rock",)),
    Item(id="c", title="Stone", artist="Cat", tags=("water", "rock")),
    Item(id="d", title="Water Road", artist="Dan", tags=("folk",)),
]


def clicks(node, *pairs):
    return [Click(node, n, query, item) for n, (query, item) in enumerate(pairs)]


def kappas(own, other, k=10):
    """κ_t, κ_m, κ_u from two lists of (query, item), by definition."""

    def top(pairs):
        counts = Counter(q for q, _ in pairs)
        return set(sorted(counts, key=lambda q: (-counts[q], q))[:k])

    union = {i for _, i in own} | {i for _, i in other}
    return len(top(own) & top(other)), len(set(own) & set(other)), len(union)


def weights(log, own, k=10):
    """S by definition, in exact fractions, of a dict node → list of (query, item)."""
    raw = {}
    for node, pairs in log.items():
        t, m, u = kappas(log[own], pairs, k)
        raw[node] = Fraction(t + m * m, u)
    most = max(raw.values())
    return {node: Fraction(1) if node == own else raw[node] / most if most else Fraction(0) for node in log}


def scores(log, own, query, isolation=0, k=10):
    similar = weights(log, own, k)
    found = Counter()
    for node, pairs in log.items():
        for q, item in pairs:
            if q == query:
                found[item] += similar[node] + isolation
    return {item: score for item, score in found.items() if score}


@pytest.fixture
def three():
    """Ann likes a after blues; Bob is like her, Eve has nothing in common with her."""
    ann = GRank("ann", LIBRARY, swap=0)
    ann.merge(clicks("ann", ("blues", "a"), ("rock", "b"), ("blues", "a")))
    ann.merge(clicks("bob", ("blues", "a"), ("rock", "c"), ("rock", "c")))
    ann.merge(clicks("eve", ("folk", "d"), ("rock", "d"), ("rock", "d"), ("rock", "d")))
    return ann


def test_a_hand_worked_network_of_three(three):
    # ann: blues 2, rock 1, pairs {blues a, rock b}: S(ann, ann) = (2 + 2²)/2 = 3
    # bob: κ_t = 2 (blues, rock), κ_m = 1 (blues a), κ_u = |a b c| = 3: (2 + 1)/3 = 1 → 1/3
    # eve: κ_t = 1 (rock), κ_m = 0, κ_u = |a b d| = 3: 1/3 → 1/9
    assert three.similarity("ann") == 1
    assert three.similarity("bob") == pytest.approx(1 / 3)
    assert three.similarity("eve") == pytest.approx(1 / 9)
    assert three.similarity("nobody") == 0
    # rock: b = 1 (ann), c = 2/3 (bob twice), d = 3/9 (eve three times); then names: none is called rock but by tags
    found = three.search("Rock!")
    assert [(f.item, f.why) for f in found] == [("b", "clicks"), ("c", "clicks"), ("d", "clicks")]
    assert [f.score for f in found] == pytest.approx([1, 2 / 3, 1 / 3], abs=1e-8)  # weights are multiples of 2⁻³²


def test_isolation_of_one_turns_the_order_that_isolation_of_none_gives():
    def order(isolation):
        ann = GRank("ann", LIBRARY, swap=0, isolation=isolation)
        ann.merge(clicks("ann", ("blues", "a"), ("rock", "b")))
        ann.merge(clicks("eve", ("folk", "d"), ("jazz", "d"), ("rock", "d"), ("rock", "d"), ("rock", "d")))
        return [f.item for f in ann.search("rock") if f.why == "clicks"]

    assert order(0) == ["b", "d"]  # b 1, d 3 · (1/3)/3 = 1/3
    assert order(1) == ["d", "b"]  # b 2, d 3 · (1/9 + 1) = 10/3


def test_with_isolation_none_only_nodes_with_something_in_common_count():
    ann = GRank("ann", LIBRARY, swap=0)
    ann.merge(clicks("ann", ("blues", "a")))
    ann.merge(clicks("eve", ("folk", "d")))
    assert [f for f in ann.search("folk") if f.why == "clicks"] == []
    assert ann.search("folk")[0].why == "library"
    assert GRank("x", isolation=1, log=ann.log).search("folk")[0] == ("d", 1.0, "clicks")


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        # one table: κ_t 2, κ_m 3 pairs (4 items after shared queries), κ_u 5
        ("paper", (2 + 3**2) / 5),
        ("released", (4 + 2**2) / 5),
    ],
)
def test_the_paper_counts_pairs_and_squares_them_the_released_code_squares_terms(variant, expected):
    own = [("q", "a"), ("q", "b"), ("r", "c"), ("r", "d"), ("r", "e")]
    other = [("q", "a"), ("q", "b"), ("r", "c"), ("q", "d")]  # d after another query: no pair, but an item
    node = GRank("i", released=variant == "released")
    node.merge(clicks("i", *own) + clicks("j", *other))
    itself = (2 + 5**2) / 5 if variant == "paper" else (5 + 2**2) / 5
    assert node.similarity("j") == pytest.approx(expected / max(itself, expected))


def test_without_a_shared_query_the_released_similarity_is_none():
    node = GRank("i", released=True)
    node.merge(clicks("i", ("q", "a")) + clicks("j", ("r", "a")))
    assert node.similarity("j") == 0


def test_a_node_with_clicks_of_its_own_need_not_be_the_largest_but_weighs_one():
    found = similarities(np.array([1.0, 2.0]), np.array([1.0, 1.0]), np.array([4.0, 1.0]))
    assert found.tolist() == [1.0, 1.0]
    assert similarities(np.array([1.0, 2.0]), np.array([1.0, 1.0]), np.array([4.0, 1.0]), own=None)[0] == 1 / 6


PAIRS = st.lists(st.tuples(st.sampled_from("pqrs"), st.sampled_from("abcdef")), max_size=12)
LOGS = st.fixed_dictionaries({"i": PAIRS, "j": PAIRS, "k": PAIRS})


@given(log=LOGS, seed=st.integers(0, 99), k=st.integers(1, 3), isolation=st.sampled_from([0, 1]))
@settings(max_examples=80, deadline=None)
def test_counts_kept_up_to_date_equal_the_definitions_whatever_the_order(log, seed, k, isolation):
    everything = [c for node, pairs in log.items() for c in clicks(node, *pairs)]
    order = np.random.default_rng(seed).permutation(len(everything))
    node = GRank("i", k=k, isolation=isolation, swap=0, length=50)
    for at in order:
        node.merge([everything[at]])
    seen = {name: pairs for name, pairs in log.items() if pairs}
    if "i" not in seen:  # a node without clicks has nothing in common with anybody
        assert [node.similarity(n) for n in seen] == [0] * len(seen)
        return
    expected = weights(seen, "i", k)
    assert {n: node.similarity(n) for n in seen} == pytest.approx({n: float(w) for n, w in expected.items()})
    for query in "pqrs":
        wanted = scores(seen, "i", query, isolation, k)
        found = {f.item: f.score for f in node.search(query) if f.why == "clicks"}
        assert found == pytest.approx({i: float(s) for i, s in wanted.items()}, abs=1e-7)
        assert list(found) == sorted(wanted, key=lambda i: (-wanted[i], i))


def anyones():
    """Clicks of which some claim the same (node, counter) for different things."""
    return st.builds(
        Click,
        node=st.sampled_from("ijk"),
        counter=st.integers(0, 3),
        query=st.sampled_from("pq"),
        item=st.sampled_from("ab"),
    )


def merged(*parts, into=None):
    node = into or GRank("i", swap=0, length=50)
    for part in parts:
        node.merge(part)
    return node


def outlook(node):
    return node.state, {n: node.similarity(n) for n in "ijk"}, [sorted(node.search(q)) for q in "pq"]


@given(st.lists(anyones(), max_size=10), st.lists(anyones(), max_size=10), st.lists(anyones(), max_size=10))
@settings(max_examples=150, deadline=None)
def test_merging_commutes_associates_and_does_nothing_twice_even_with_liars(a, b, c):
    once = outlook(merged(a, b, c))
    assert outlook(merged(c, a, b)) == once
    assert outlook(merged(merged(b, c).state, a)) == once
    assert outlook(merged(a, b, c, a, b, c)) == once
    assert outlook(merged([*reversed([*a, *b, *c])])) == once


def test_gossip_until_nothing_is_new_makes_all_logs_equal():
    rng = np.random.default_rng(0)
    nodes = [GRank(str(n), LIBRARY, seed=n) for n in range(6)]
    for node in nodes:
        for _ in range(5):
            node.record("water", "abcd"[rng.integers(4)])
    while sum(a.merge(b.state) for a in nodes for b in nodes):
        pass
    assert len({n.state for n in nodes}) == 1
    assert len(nodes[0]) == 30


def test_an_unseen_query_shows_names_then_related_clicks_then_what_most_nodes_clicked():
    node = GRank("ann", LIBRARY, swap=0)
    node.merge(clicks("ann", ("deep water", "x"), ("jazz", "y")))
    node.merge(clicks("bob", ("jazz", "y"), ("jazz", "z")))
    assert [(f.item, f.why) for f in node.search("water")] == [
        ("a", "library"), ("d", "library"),  # in the title, by id
        ("b", "library"),  # in the artist
        ("c", "library"),  # in the tags
        ("x", "related"),  # after "deep water"
        ("y", "popular"), ("z", "popular"),  # two nodes, one node
    ]  # fmt: skip
    assert [f.item for f in node.search("nothing like it")] == ["y", "x", "z"]


def test_clicks_cannot_bomb_a_query_that_is_new_here():
    node = GRank("ann", LIBRARY, swap=0, isolation=1)
    node.merge(clicks("eve", *[("slow", "spam")] * 100))
    assert [f.item for f in node.search("slow water")][:2] == ["a", "spam"]


def test_all_words_of_a_query_must_stand_in_an_item():
    node = GRank("ann", LIBRARY)
    assert [f.item for f in node.search("water rock")] == ["b", "c"]
    assert [f.item for f in node.search("stone water")] == ["c"]


def test_a_full_list_of_names_ends_the_search():
    many = [Item(id=f"{n:02}", title="same") for n in range(20)]
    node = GRank("ann", many, length=10)
    assert [f.item for f in node.search("same")] == [f"{n:02}" for n in range(10)]


def test_a_swap_is_of_two_places_seeded_and_only_where_others_are_known(three):
    plain = [f.item for f in three.search("rock")]
    swapping = GRank("ann", LIBRARY, swap=1, seed=3, log=three.log)
    swapped = [f.item for f in swapping.search("rock")]
    assert sum(a != b for a, b in zip(plain, swapped, strict=True)) == 2
    assert swapped == [f.item for f in swapping.search("rock")]
    orders = {
        tuple(f.item for f in GRank("ann", LIBRARY, swap=1, seed=s, log=three.log).search("rock")) for s in range(20)
    }
    assert len(orders) == 3  # all pairs of three places
    alone = GRank("ann", LIBRARY, swap=1)
    alone.merge(clicks("ann", ("rock", "b"), ("rock", "c")))
    assert [f.item for f in alone.search("rock")] == ["b", "c"]
    half = [
        [f.item for f in GRank("ann", LIBRARY, swap=0.5, seed=s, log=three.log).search("rock")] != plain
        for s in range(200)
    ]
    assert 70 < sum(half) < 130  # six standard deviations are 42


def test_a_cap_bounds_what_one_node_can_add_to_one_item():
    def shown(cap):
        node = GRank("ann", LIBRARY, cap=cap, isolation=1, swap=0)
        node.merge(clicks("ann", ("rock", "b"), ("rock", "b")))
        node.merge(clicks("eve", *[("rock", "spam")] * 50))
        return {f.item: f.score for f in node.search("rock") if f.why == "clicks"}

    eve = 1 / 1 + 1  # κ_t 1 over κ_u 2, over ann's (1 + 1)/1, and F
    assert shown(None)["spam"] == pytest.approx(50 * (0.25 + 1))
    assert shown(2)["spam"] == pytest.approx(2 * (0.25 + 1))
    assert shown(2)["b"] == 2 * eve


def test_progress_is_the_first_click_that_is_missing():
    node = GRank("ann")
    made = clicks("bob", *[("rock", "b")] * 5)
    node.merge([made[0], made[1], made[3]])
    assert node.progress("bob") == 2
    node.merge([made[2]])
    assert node.progress("bob") == 4
    assert node.progress("nobody") == 0
    assert node.merge(made) == 1


def test_of_two_clicks_with_one_name_all_keep_the_same():
    first, second = Click("eve", 0, "rock", "b"), Click("eve", 0, "rock", "a")
    for order in ([first, second], [second, first]):
        node = merged(*[[c] for c in order])
        assert node.state == (second,)
        assert len(node) == 1
        assert [f.item for f in node.search("rock")] == ["a"]


def test_a_node_from_its_file_answers_the_same_and_goes_on_counting(tmp_path, three):
    log = SqliteLog(tmp_path / "log.sqlite")
    node = GRank("ann", LIBRARY, swap=0.5, log=log)
    node.merge(three.state)

    def answers(node):
        return [node.search(q) for q in ("rock", "blues", "water")], node.similarity("bob"), node.progress("eve")

    before = answers(node)
    node.close()
    again = GRank("ann", LIBRARY, swap=0.5, log=SqliteLog(tmp_path / "log.sqlite"))
    assert (
        [again.search(q) for q in ("rock", "blues", "water")],
        again.similarity("bob"),
        again.progress("eve"),
    ) == before
    assert again.record("rock", "c").counter == 3
    assert again.merge(three.state) == 0
    again.close()


@given(st.lists(anyones(), max_size=12))
@settings(max_examples=30, deadline=None)
def test_a_file_and_memory_keep_the_same(tmp_path_factory, some):
    path = tmp_path_factory.mktemp("log") / "log.sqlite"
    in_file, in_memory = merged(some, into=GRank("i", log=SqliteLog(path))), merged(some)
    assert in_file.state == in_memory.state
    for log in (in_file.log, in_memory.log):
        assert log.since("j", 1, 2) == [c for c in in_memory.state if c.node == "j" and c.counter >= 1][:2]
        assert log.held("j", []) == {}
    in_file.close()


def test_a_secret_hides_words_and_leaves_names_alone():
    ann, bob = (GRank(n, LIBRARY, secret="ours", swap=0) for n in ("ann", "bob"))
    click = ann.record("slow blues", "a")
    assert "blues" not in click.query
    assert click.query == as_query("Slow, BLUES", secret="ours") != as_query("slow blues", secret="theirs")
    bob.record("slow blues", "a")
    bob.merge([click])
    assert bob.search("slow blues")[0] == ("a", 2.0, "clicks")
    assert [(f.item, f.why) for f in bob.search("deep blues")] == [("a", "related")]  # words are hashed one by one
    assert bob.search("wheel")[0] == ("b", 0.0, "library")


def test_a_query_is_its_words():
    assert as_query("  Über-GROß\tﬁn!! ") == "über gross fin"
    assert as_query("日本の 音楽") == "日本の 音楽"


@pytest.mark.parametrize(
    ("query", "message"),
    [("", "holds no word"), (" ?! ", "holds no word"), ("x" * 201, "201 bytes"), ("я" * 101, "202 bytes")],
)
def test_a_query_without_a_word_or_too_long_is_refused(query, message):
    node = GRank("ann", LIBRARY)
    with pytest.raises(ValueError, match=message):
        node.search(query)
    with pytest.raises(ValueError, match=message):
        node.record(query, "a")


def test_a_query_that_grows_too_long_as_hashes_is_refused():
    with pytest.raises(ValueError, match="20 words takes 339 bytes"):
        as_query("a " * 20, secret="ours")


@pytest.mark.parametrize(
    ("click", "wrong"),
    [
        (Click("", 0, "rock", "b"), "node"),
        (Click("e\nve", 0, "rock", "b"), "node"),
        (Click("eve", -1, "rock", "b"), "counter"),
        (Click("eve", 1 << 41, "rock", "b"), "counter"),
        (Click("eve", 0, "Rock", "b"), "query"),
        (Click("eve", 0, "rock ", "b"), "query"),
        (Click("eve", 0, "", "b"), "query"),
        (Click("eve", 0, "rock", ""), "item"),
        (Click("eve", 0, "rock", "b" * 201), "item"),
        (Click("eve", 0, "rock", "b\x1b[2J"), "item"),
        (Click("eve", 0, "rock", "\ud800"), "item"),
    ],
)
def test_a_click_that_nobody_could_have_made_is_refused_and_nothing_of_its_company_taken(click, wrong):
    node = GRank("ann", LIBRARY)
    with pytest.raises(ValueError, match=f"a click's {wrong} is"):
        node.merge([Click("bob", 0, "rock", "b"), click])
    assert node.state == ()


def test_an_item_that_nobody_has_cannot_be_chosen():
    node = GRank("ann", LIBRARY)
    with pytest.raises(ValueError, match="neither in the library nor in the log"):
        node.record("rock", "zebra")
    node.merge([Click("bob", 0, "rock", "zebra")])
    assert node.record("rock", "zebra").item == "zebra"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"isolation": 1.5}, "isolation=1.5; a number from 0 to 1"),
        ({"swap": -0.1}, "swap=-0.1"),
        ({"k": 0}, "k=0; a whole number from 1"),
        ({"length": 0}, "length=0"),
        ({"cap": 0}, "cap=0"),
        ({"seed": -1}, "seed=-1; a whole number from 0"),
        ({"released": True, "isolation": 0.5}, "drops it before it sorts"),
        ({"library": [Item(id="a"), Item(id="a")]}, "'a' is there twice"),
        ({"library": [Item(id="")]}, "1 to 200 bytes"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        GRank("ann", **options)


def test_a_node_needs_a_name():
    with pytest.raises(ValueError, match="node=''"):
        GRank("")


def test_logs_in_memory_are_objects_of_their_own():
    assert tuple(MemoryLog()) == ()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("İSTANBUL", "istanbul"),
        ("re\u0301sume\u0301", "Résumé"),
        ("slow\u00adwater", "slowwater"),
        ("\u202eslow\u202c", "slow"),
        ("1\ufe0f\u20e3", "1\u20e3"),
    ],
)
def test_words_that_look_the_same_are_the_same_query(one, other):
    assert as_query(one) == as_query(other)


@pytest.mark.parametrize("word", ["हिन्दी", "שָׁלוֹם", "ภาษาไทย", "x̂y", "ǰazz"])
def test_marks_belong_to_their_word(word):
    assert len(as_query(word).split()) == 1
    bare = "".join(c for c in word if unicodedata.category(c)[0] != "M")
    assert bare == word or as_query(bare) != as_query(word)


LETTERS = st.characters(categories=["L", "M", "N", "Cf", "Zs", "S"])


@settings(max_examples=2_000, deadline=None)
@given(st.text(LETTERS | st.sampled_from("iİǰß\u0345\u0307\u0301\u0323\u00ad\u200d"), min_size=1, max_size=8))
def test_a_query_as_it_is_kept_stays_what_it_is(text):
    try:
        query = as_query(text)
    except ValueError:
        return
    assert as_query(query) == query
    assert GRank("ann").merge([Click("bob", 0, query, "x")]) == 1


def test_a_click_that_is_offered_otherwise_is_a_lie_and_the_same_once_more_is_none():
    node = GRank("ann")
    node.merge(clicks("bob", ("rock", "b")))
    node.merge(clicks("bob", ("rock", "b")))
    assert not node.lies
    node.merge(clicks("bob", ("rock", "a")))
    node.merge(clicks("bob", ("rock", "c")))
    assert node.lies == {"bob": 2}


def test_queries_that_share_a_word_are_related_and_too_common_words_relate_nothing():
    node = GRank("ann", isolation=1)
    node.merge([Click("bob", n, f"love {n}", f"i{n % 50:02d}") for n in range(10_000)])
    assert node.search("love unheard")[0] == ("i00", 200.0, "related")
    node.merge([Click("bob", 10_000, "love me", "i00")])
    assert {f.why for f in node.search("love unheard")} == {"popular"}
    assert node.search("me too")[0] == ("i00", 1.0, "related")


def test_of_many_items_that_are_equal_the_first_by_name_are_shown():
    node = GRank("ann")
    node.merge([Click("bob", n, "love", f"i{n:06d}") for n in range(1_999, -1, -1)])
    assert [f.item for f in node.search("unheard")] == [f"i{n:06d}" for n in range(10)]


def test_a_click_among_many_after_one_query_is_taken_back():
    node = GRank("ann", isolation=1)
    node.merge([Click(f"n{n % 50}", n // 50, "love", "b") for n in range(1_000)])
    node.merge([Click("eve", n, "love", "z") for n in range(20)])
    node.merge([Click("eve", n, "love", "y") for n in range(20)])
    assert [(f.item, f.score) for f in node.search("love")] == [("b", 1_000.0), ("y", 20.0)]


def test_of_names_that_all_of_a_library_share_the_first_by_place_and_id_are_shown():
    node = GRank("ann", [Item(id=f"i{n:05d}", title=f"song {n}", tags=("jazz",)) for n in range(2_999, -1, -1)])
    for query in ("song", "jazz", "jazz song"):
        assert [f.item for f in node.search(query)] == [f"i{n:05d}" for n in range(10)]
