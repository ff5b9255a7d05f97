"""Peers on loopback: what they tell each other arrives, and what is forged, replayed, unasked or too much does not."""

import asyncio
import random
import shutil
import struct
import tracemalloc
from collections import Counter

import pytest

pytest.importorskip("ipv8")
from ipv8.keyvault.crypto import default_eccrypto
from ipv8.messaging.interfaces.udp.endpoint import UDPv4Address
from ipv8.messaging.payload_headers import BinMemberAuthenticationPayload

from rankwise.data.items import Item
from rankwise.ranking import Click, GRank, GRankCommunity, GRankSettings, PeerNode
from rankwise.ranking.peers.quotas import Quota, address_of
from rankwise.ranking.peers.wire import LARGEST, Answer, Ask, SignedClick, fitting, is_signed, node_of, signed
from rankwise.reading import read_json

ITEMS = [Item(id=f"s{n}", title=f"Song {n}", tags=("blues" if n % 2 else "rock",)) for n in range(40)]
QUIET = {"interval": 0}


class Network:
    """Nodes in folders under one, which know the first, or all before them."""

    def __init__(self, folder, count, **options):
        self.nodes = [
            PeerNode(folder / str(n), ITEMS, host="127.0.0.1", port=0, options=QUIET | options, swap=0)
            for n in range(count)
        ]

    async def __aenter__(self):
        for n, node in enumerate(self.nodes):
            node.peers = [other.address for other in self.nodes[:n]]
            await node.__aenter__()
        return self

    async def __aexit__(self, *why):
        for node in self.nodes:
            await node.__aexit__(*why)

    def __getitem__(self, n):
        return self.nodes[n].community

    def met(self):
        return all(len(node.community.get_peers()) == len(self.nodes) - 1 for node in self.nodes)


async def until(true, seconds=20.0):
    """Whether it comes to pass."""
    for _ in range(int(seconds / 0.02)):
        if true():
            return True
        await asyncio.sleep(0.02)
    return False


def run(coroutine):
    return asyncio.run(coroutine)


def test_clicks_reach_who_asks_and_feed_his_ranking(tmp_path):
    async def story():
        async with Network(tmp_path, 2) as net:
            assert await until(net.met)
            ann, bob = net[0], net[1]
            for item in ("s3", "s5", "s3"):
                ann.click("blues", item)
            bob.click("blues", "s5")
            bob.pull()
            assert await until(lambda: len(bob.state) == 4)
            assert ann.state.state == tuple(c for c in bob.state.state if c.node == ann.state.node)
            assert [f.item for f in bob.state.search("blues")][:2] == ["s5", "s3"]
            assert len(ann.state) == 3  # who did not ask was told nothing
            assert not ann.refused + bob.refused

    run(story())


def test_a_search_asks_one_peer_as_published(tmp_path):
    async def story():
        async with Network(tmp_path, 2) as net:
            assert await until(net.met)
            net[0].click("blues", "s3")
            net[1].search("blues")
            assert await until(lambda: len(net[1].state) == 1)

    run(story())


def test_a_long_log_comes_in_many_answers_and_nothing_is_sent_twice(tmp_path):
    async def story():
        async with Network(tmp_path, 2) as net:
            assert await until(net.met)
            ann, bob = net[0], net[1]
            for n in range(100):
                ann.click("blues", f"s{n % 40}")
            told = []
            send = ann.endpoint.send
            ann.endpoint.send = lambda address, packet: (told.append(packet), send(address, packet))
            bob.pull()
            assert await until(lambda: len(bob.state) == 100)
            answers = [opened(p) for p in told if p[22] == Answer.msg_id]
            counters = [c.counter for a in answers for c in a.clicks]
            assert counters == list(range(100))
            assert max(map(len, told)) <= 1_200
            bob.pull()
            await asyncio.sleep(0.3)
            assert [len(opened(p).clicks) for p in told if p[22] == Answer.msg_id][-1] == 0

    run(story())


def opened(packet):
    """The answer in a packet, read by py-ipv8's serializer."""
    from ipv8.messaging.serialization import default_serializer

    auth, _ = default_serializer.unpack_serializable(BinMemberAuthenticationPayload, packet, offset=23)
    answer, _ = default_serializer.unpack_serializable(Answer, packet, offset=25 + len(auth.public_key_bin))
    return answer


def test_a_killed_node_comes_back_with_all_it_knew_and_asks_on_from_there(tmp_path):
    async def story():
        async with Network(tmp_path, 2) as net:
            assert await until(net.met)
            for n in range(30):
                net[0].click("blues", f"s{n}")
            net[1].pull()
            assert await until(lambda: len(net[1].state) == 30)
            bob = net.nodes[1]
            before, who = net[1].state.state, net[1].state.node
            # what a kill leaves: sockets and lock go, no goodbye is said and nothing more is written
            bob._remember = lambda: None
            await bob.__aexit__()
            net[0].click("rock", "s2")
            again = PeerNode(
                tmp_path / "1", ITEMS, host="127.0.0.1", port=0, peers=[net.nodes[0].address], options=QUIET
            )
            await again.__aenter__()
            net.nodes[1] = again
            assert (again.community.state.state, again.community.state.node) == (before, who)
            asked = []
            send = again.community.ez_send
            again.community.ez_send = lambda peer, what, **more: (asked.append(what), send(peer, what, **more))
            assert await until(net.met)
            again.community.pull()
            assert await until(lambda: len(again.community.state) == 31)
            assert next(a.counter for a in asked if isinstance(a, Ask)) == 30

    run(story())


def test_a_node_remembers_where_it_met_peers(tmp_path):
    async def story():
        async with Network(tmp_path, 2) as net:
            assert await until(net.met)
            bob = net.nodes[1]
            await bob.__aexit__()
            again = PeerNode(tmp_path / "1", ITEMS, host="127.0.0.1", port=0, options=QUIET)
            net.nodes[1] = await again.__aenter__()
            assert await until(lambda: len(again.community.get_peers()) == 1)

    run(story())


def test_peers_who_know_one_find_all(tmp_path):
    async def story():
        async with Network(tmp_path, 5) as net:
            for node in net.nodes[2:]:
                node.peers = node.peers[:1]
            assert await until(net.met)

    run(story())


def test_twenty_peers_tell_each_other_everything(tmp_path):
    async def story():
        async with Network(tmp_path, 20) as net:
            assert await until(net.met, 60)
            for n in range(20):
                for item in (n, n + 7, n + 7):
                    net[n].click("blues", f"s{item % 40}")
            for _ in range(60):  # who is asked answers at once; a datagram that is lost is asked for again
                for n in range(20):
                    for peer in net[n].get_peers():
                        net[n].pull(peer)
                await asyncio.sleep(0.5)
                if all(len(net[n].state) == 60 for n in range(20)):
                    break
            assert len({net[n].state.state for n in range(20)}) == 1
            assert not sum((net[n].refused for n in range(20)), Counter())

    run(story())


class Lone:
    """A community whose packets are put in by hand, and what it sends kept."""

    def __init__(self, **options):
        from ipv8.messaging.interfaces.endpoint import Endpoint
        from ipv8.peer import Peer
        from ipv8.peerdiscovery.network import Network as Graph

        class Kept(Endpoint):
            def __init__(self):
                super().__init__()
                self.sent = []

            def assert_open(self):
                pass

            def is_open(self):
                return True

            def get_address(self):
                return ("127.0.0.1", 1)

            def send(self, socket_address, packet):
                self.sent.append((socket_address, packet))

            async def open(self):
                return True

            def close(self):
                pass

            def reset_byte_counters(self):
                pass

        self.key = default_eccrypto.generate_key("curve25519")
        state = GRank(node_of(self.key.pub()), ITEMS, swap=0)
        settings = GRankSettings(
            my_peer=Peer(self.key), endpoint=Kept(), network=Graph(), state=state, **QUIET | options
        )
        self.community = GRankCommunity(settings)

    def friend(self, key, address=("192.0.2.1", 5)):
        """A peer that was introduced."""
        from ipv8.peer import Peer

        peer = Peer(key.pub(), UDPv4Address(*address))
        self.community.network.add_verified_peer(peer)
        self.community.network.discover_services(peer, [self.community.community_id])
        return peer

    def packet(self, key, payload, number=None):
        head = self.community.get_prefix() + bytes([payload.msg_id if number is None else number])
        auth = BinMemberAuthenticationPayload(key.pub().key_to_bin())
        body = head + self.community.serializer.pack_serializable_list([auth, payload])
        return body + default_eccrypto.create_signature(key, body)

    def give(self, packet, address=("192.0.2.1", 5)):
        self.community.on_packet((UDPv4Address(*address), packet))

    def asked(self, peer):
        """The identifier of a question that was just sent."""
        key = peer.public_key.key_to_bin()
        self.community._asked.pop(key, None)
        self.community.pull(peer)
        return self.community._asked[key][0]


def key():
    return default_eccrypto.generate_key("curve25519")


def said(key, *pairs, start=0):
    made = [signed(Click(node_of(key.pub()), start + n, query, item), key) for n, (query, item) in enumerate(pairs)]
    return fitting(made)


def alone(story, **options):
    async def told():
        lone = Lone(**options)
        try:
            await story(lone)
        finally:
            await lone.community.unload()

    run(told())


def test_what_was_asked_for_is_taken_once_and_a_replay_is_counted():
    async def story(lone):
        eve = key()
        peer = lone.friend(eve)
        packet = lone.packet(eve, Answer(lone.asked(peer), 1, said(eve, ("rock", "s2"))))
        lone.give(packet)
        assert len(lone.community.state) == 1
        lone.give(packet)
        assert lone.community.refused == {"unasked": 1}
        assert len(lone.community.state) == 1

    alone(story)


def test_an_answer_to_somebody_elses_question_is_refused():
    async def story(lone):
        bob, eve = key(), key()
        asked = lone.asked(lone.friend(bob))
        lone.friend(eve, ("192.0.2.2", 5))
        lone.give(lone.packet(eve, Answer(asked, 1, said(eve, ("rock", "s2")))))
        assert lone.community.refused == {"unasked": 1}
        lone.give(lone.packet(bob, Answer(asked, 1, said(bob, ("rock", "s2")))))
        assert len(lone.community.state) == 1

    alone(story)


@pytest.mark.parametrize("forge", ["another's", "changed", "unsigned", "another node's", "moved"])
def test_a_click_that_its_node_did_not_sign_is_refused_with_its_company(forge):
    async def story(lone):
        bob, eve = key(), key()
        peer = lone.friend(eve)
        (true,) = said(eve, ("rock", "s2"))
        false = {
            "another's": said(bob, ("rock", "s4"), start=1)[0],
            "changed": SignedClick(1, "rock", "s6", said(eve, ("rock", "s4"), start=1)[0].signature),
            "unsigned": SignedClick(1, "rock", "s4", b""),
            "another node's": fitting([signed(Click(node_of(bob.pub()), 1, "rock", "s4"), eve)])[0],
            "moved": SignedClick(2, "rock", "s4", said(eve, ("rock", "s4"), start=1)[0].signature),
        }[forge]
        lone.give(lone.packet(eve, Answer(lone.asked(peer), 2, [true, false])))
        assert lone.community.refused == {"forged": 1}
        assert len(lone.community.state) == 0

    alone(story)


def test_a_packet_that_its_sender_did_not_sign_is_refused():
    async def story(lone):
        eve = key()
        lone.friend(eve)
        packet = bytearray(lone.packet(eve, Ask(7, 0)))
        packet[-1] ^= 1
        lone.give(bytes(packet))
        assert lone.community.refused == {"forged": 1}
        assert lone.community.endpoint.sent == []

    alone(story)


def test_an_old_packet_sent_again_from_elsewhere_moves_no_peer():
    async def story(lone):
        bob = key()
        peer = lone.friend(bob)
        packet = lone.packet(bob, Ask(7, 0))
        peer.last_response = 0
        lone.give(packet, ("203.0.113.9", 9))
        assert peer.address == ("192.0.2.1", 5)
        assert peer.last_response == 0
        assert [tuple(at) for at, _ in lone.community.endpoint.sent] == [("192.0.2.1", 5)]
        lone.give(packet)
        assert peer.last_response > 0

    alone(story)


def test_of_an_answer_that_reaches_beyond_what_is_kept_the_first_part_is_kept():
    async def story(lone):
        bob = key()
        peer = lone.friend(bob)
        lone.give(lone.packet(bob, Answer(lone.asked(peer), 9, said(bob, *[("rock", "s2")] * 4, start=2))))
        assert [c.counter for c in lone.community.state.state] == [2, 3]
        assert not lone.community.refused
        lone.give(lone.packet(bob, Answer(lone.asked(peer), 9, said(bob, ("rock", "s2"), start=4))))
        assert lone.community.refused == {"full": 1}

    alone(story, most_clicks=4)


def test_a_stranger_is_neither_told_nor_heard():
    async def story(lone):
        eve = key()
        lone.give(lone.packet(eve, Ask(7, 0)))
        lone.give(lone.packet(eve, Answer(0, 1, said(eve, ("rock", "s2")))))
        assert lone.community.refused == {"stranger": 2}
        assert lone.community.endpoint.sent == []

    alone(story)


def test_clicks_that_nobody_asked_for_are_taken_by_who_accepts_them_only():
    def story(taken):
        async def told(lone):
            eve = key()
            peer = lone.friend(eve)
            lone.give(lone.packet(eve, Answer(0, 1, said(eve, ("rock", "s2")))))
            assert len(lone.community.state) == taken
            assert lone.community.refused.total() == 1 - taken
            lone.give(lone.packet(eve, Answer(lone.asked(peer), 2, said(eve, ("rock", "s4"), start=1))))
            assert len(lone.community.state) == taken + 1  # what was asked for is always taken

        return told

    alone(story(1), accepting=True)
    alone(story(0), accepting=False)


def test_who_pushes_sends_a_new_click_at_once():
    async def story(lone):
        eve = key()
        lone.friend(eve)
        lone.community.click("blues", "s3")
        answer = opened(lone.community.endpoint.sent[-1][1])
        assert (answer.identifier, answer.total, answer.clicks[0].item) == (0, 1, "s3")

    alone(story, push=True)


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (lambda prefix: prefix + b"\x01" + bytes(LARGEST), "oversized"),
        (lambda prefix: prefix, "malformed"),
        (lambda prefix: prefix + b"\x01", "malformed"),
        (lambda prefix: prefix + b"\x02" + bytes(200), "malformed"),
        (lambda prefix: prefix + b"\xf6" + bytes(30), "malformed"),  # an introduction
        (lambda prefix: prefix + b"\x63" + bytes(30), "unknown"),
        (lambda prefix: prefix + b"\xfe" + bytes(30), "unknown"),  # what py-ipv8 no longer speaks
    ],
)
def test_packets_that_are_none_are_counted_by_reason(packet, reason):
    async def story(lone):
        lone.give(packet(lone.community.get_prefix()))
        assert lone.community.refused == {reason: 1}

    alone(story)


@pytest.mark.parametrize(
    "click",
    [
        SignedClick(0, "Rock", "s2", b"x"),
        SignedClick(0, "rock", "s2\x1b[2J", b"x"),
        SignedClick(0, "", "s2", b"x"),
        SignedClick(0, "rock", "s" * 201, b"x"),
        SignedClick(1 << 63, "rock", "s2", b"x"),
    ],
)
def test_fields_that_no_click_has_are_refused_before_signatures_are_looked_at(click):
    async def story(lone):
        eve = key()
        lone.give(lone.packet(eve, Answer(lone.asked(lone.friend(eve)), 1, [click])))
        assert lone.community.refused == {"field": 1}

    alone(story)


def test_bytes_after_the_last_field_are_malformed():
    async def story(lone):
        eve = key()
        lone.friend(eve)
        whole = lone.packet(eve, Ask(7, 0))[:-64] + b"more"
        lone.give(whole + default_eccrypto.create_signature(eve, whole))
        assert lone.community.refused == {"malformed": 1}

    alone(story)


def test_who_sends_too_much_is_cut_and_nobody_else():
    async def story(lone):
        eve, bob = key(), key()
        lone.friend(eve), lone.friend(bob, ("192.0.2.2", 5))
        for _ in range(20):
            lone.give(lone.packet(eve, Ask(7, 0)))
        assert lone.community.refused == {"quota": 15}
        lone.give(lone.packet(bob, Ask(7, 0)), ("192.0.2.2", 5))
        assert lone.community.refused == {"quota": 15}
        assert len(lone.community.endpoint.sent) == 6

    alone(story, rate=0.001, burst=5)


def test_more_clicks_than_a_peer_may_send_at_once_are_refused():
    async def story(lone):
        eve = key()
        peer = lone.friend(eve)
        for start in (0, 4):
            asked = lone.asked(peer)
            lone.give(lone.packet(eve, Answer(asked, 8, said(eve, *[("rock", "s2")] * 4, start=start))))
        assert len(lone.community.state) == 4
        assert lone.community.refused == {"quota": 1}

    alone(story, rate=0.001, burst=6)


def test_what_is_kept_of_one_node_and_how_many_nodes_is_bounded():
    async def story(lone):
        first, second, third = key(), key(), key()
        for n, who in enumerate((first, second, third)):
            peer = lone.friend(who, ("192.0.2.1", 10 + n))
            lone.give(lone.packet(who, Answer(lone.asked(peer), 1, said(who, ("rock", "s2")))))
        assert len(lone.community.state.nodes()) == 3  # itself and two others
        assert lone.community.refused == {"full": 1}
        peer = lone.community.network.get_verified_by_public_key_bin(first.pub().key_to_bin())
        lone.give(lone.packet(first, Answer(lone.asked(peer), 9, said(first, ("rock", "s2"), start=5))))
        assert lone.community.refused == {"full": 2}

    alone(story, most_nodes=2, most_clicks=5)


def test_ten_thousand_damaged_packets_crash_nothing_and_memory_stays_bounded():
    async def story(lone):
        rng = random.Random(0)
        friends = [key() for _ in range(3)]
        peers = [lone.friend(k, ("192.0.2.1", 5 + n)) for n, k in enumerate(friends)]
        strangers = [key() for _ in range(3)]
        prefix = lone.community.get_prefix()

        def valid():
            who = rng.choice(friends + strangers)
            asked = lone.asked(peers[friends.index(who)]) if who in friends else 5
            ask = Ask(rng.getrandbits(64), rng.getrandbits(64))
            answer = Answer(asked, 9, said(who, ("rock", "s2"), start=rng.randrange(3)))
            payload = rng.choice([ask, answer])
            return lone.packet(who, payload)

        seeds = [valid() for _ in range(60)]
        introduction = lone.community.create_introduction_request(UDPv4Address("192.0.2.9", 5))
        seeds += [introduction, introduction[:22] + bytes([rng.choice(range(230, 256))]) + introduction[23:]]

        def packet():
            data = bytearray(rng.choice(seeds))
            kind = rng.randrange(6)
            if kind == 0:
                return prefix + rng.randbytes(rng.randrange(200))
            if kind == 1:
                return bytes(data[: rng.randrange(len(data))])
            if kind == 2:
                return bytes(data) + rng.randbytes(rng.randrange(2000))
            for _ in range(rng.randrange(1, 6)):
                data[rng.randrange(23 if kind > 3 else 0, len(data))] = rng.randrange(256)
            if kind == 5:
                data[90:92] = struct.pack(">H", rng.getrandbits(16))
            return bytes(data)

        for n in range(1_000):
            lone.give(packet(), ("198.51.100.7", n % 500))
        tracemalloc.start()
        for n in range(10_000):
            lone.give(packet(), ("198.51.100.7", n % 500))
            lone.community._forget()
        grown, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert grown < 4_000_000
        assert sum(lone.community.refused.values()) > 8_000
        assert {"malformed", "oversized", "unknown", "forged"} <= set(lone.community.refused)
        assert len(lone.community.state) <= 18
        lone.community.endpoint.sent.clear()
        whole = lone.packet(friends[0], Ask(7, 0))
        lone.give(whole, ("198.51.100.8", 1))
        assert len(lone.community.endpoint.sent) == 1  # it still answers

    alone(story, rate=1e9, burst=1e9)


def test_addresses_that_others_tell_of_are_forgotten_when_they_are_too_many():
    async def story(lone):
        peer = lone.friend(key())
        for n in range(1_000):
            lone.community.network.discover_address(
                peer, UDPv4Address("198.51.100.7", n + 1), lone.community.community_id
            )
        lone.community._forget()
        assert len(lone.community.get_walkable_addresses()) == 200

    alone(story)


def test_a_full_disk_loses_news_and_nothing_else():
    async def story(lone):
        def full(clicks):
            raise OSError("no space left on device")

        lone.community.state.log.put = full
        eve = key()
        lone.give(lone.packet(eve, Answer(lone.asked(lone.friend(eve)), 1, said(eve, ("rock", "s2")))))
        assert lone.community.refused == {"storage": 1}
        assert "no space" in lone.community.trouble
        assert len(lone.community.state) == 0
        assert lone.community.search("blues")
        with pytest.raises(OSError, match="no space"):
            lone.community.click("blues", "s3")
        lone.give(lone.packet(eve, Ask(7, 0)))
        assert opened(lone.community.endpoint.sent[-1][1]).identifier == 7

    alone(story)


def test_pyipv8_starts_it_from_a_configuration():
    from base64 import b64encode

    from ipv8.configuration import ConfigBuilder, Strategy, WalkerDefinition
    from ipv8_service import IPv8

    async def story():
        mine = key()
        state = GRank(node_of(mine.pub()), ITEMS, swap=0)
        builder = ConfigBuilder().clear_keys().clear_overlays().set_address("127.0.0.1").set_port(0)
        builder.add_key_from_bin("me", b64encode(mine.key_to_bin()).decode())
        walk = [WalkerDefinition(Strategy.RandomWalk, 10, {})]
        builder.add_overlay("GRankCommunity", "me", walk, [], {"state": state, "interval": 0}, [])
        service = IPv8(builder.finalize(), extra_communities={"GRankCommunity": GRankCommunity})
        await service.start()
        community = service.get_overlay(GRankCommunity)
        assert community.click("blues", "s3").counter == 0
        assert community.search("blues")[0].item == "s3"
        await service.stop()

    run(story())


def test_a_state_of_another_key_is_refused():
    async def story():
        lone = Lone()
        lone.community.settings.state = GRank("ann", ITEMS)
        with pytest.raises(ValueError, match="the state is of node 'ann'"):
            GRankCommunity(lone.community.settings)
        await lone.community.unload()

    run(story())


def test_a_signature_holds_for_its_node_key_and_fields_alone():
    mine, other = key(), key()
    click = signed(Click(node_of(mine.pub()), 3, "a b", "c"), mine)
    assert is_signed(click, mine.pub())
    assert not is_signed(click, other.pub())
    for changed in ({"counter": 4}, {"query": "a"}, {"item": "b c"}, {"query": "a", "item": "b c"}, {"node": "x"}):
        assert not is_signed(click._replace(**changed), mine.pub())


def test_an_answer_holds_the_largest_click_that_there_is():
    largest = signed(Click("n" * 40, 1 << 39, "я" * 100, "я" * 100), key())
    assert len(fitting([largest] * 50)) == 2
    assert fitting([]) == []


def test_a_quota_refills_with_time_and_remembers_so_many_names():
    now = [0.0]
    quota = Quota(rate=2, burst=4, names=3, clock=lambda: now[0])
    assert [quota.allows("a") for _ in range(5)] == [True] * 4 + [False]
    now[0] = 1
    assert [quota.allows("a") for _ in range(3)] == [True, True, False]
    now[0] = 0.5  # a clock that went back takes nothing
    assert not quota.allows("a")
    now[0] = 100
    assert [quota.allows("a", 4), quota.allows("a")] == [True, False]
    for name in "bcd":
        quota.allows(name)
    assert len(quota._left) == 3
    assert quota.allows("a", 4)  # forgotten, and so as good as new


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"port": 99_999}, "127.0.0.1:99999 cannot be opened"),
        ({"host": "192.0.2.7"}, "192.0.2.7:0 cannot be opened"),
        ({"page": 1, "page_host": "192.0.2.7"}, "192.0.2.7:1 cannot be opened"),
    ],
)
def test_ports_that_cannot_be_opened_are_named_and_no_folder_is_made(tmp_path, options, message):
    async def story():
        async with PeerNode(tmp_path / "node", ITEMS, **{"host": "127.0.0.1", "port": 0} | options):
            pass

    with pytest.raises(ValueError, match=message):
        run(story())
    assert list(tmp_path.iterdir()) == []


def test_a_port_in_use_is_refused_where_pyipv8_would_take_the_next(tmp_path):
    async def story():
        async with PeerNode(tmp_path / "a", ITEMS, host="127.0.0.1", port=0) as first:
            with pytest.raises(ValueError, match=r"cannot be opened: .*in use"):
                await PeerNode(tmp_path / "b", ITEMS, host="127.0.0.1", port=first.address[1]).__aenter__()
            with pytest.raises(ValueError, match="another command is writing"):
                await PeerNode(tmp_path / "a", ITEMS, host="127.0.0.1", port=0).__aenter__()

    run(story())


def test_a_page_that_cannot_start_leaves_no_port_no_lock_and_no_task(tmp_path, monkeypatch):
    async def story():
        async def fails(page, host, number):
            raise OSError("address already in use")

        node = PeerNode(tmp_path / "a", ITEMS, host="127.0.0.1", port=0, page=0)
        with monkeypatch.context() as patched:
            patched.setattr("rankwise.ranking.peers.page.Page.start", fails)
            with pytest.raises(OSError, match="already in use"):
                await node.__aenter__()
        assert not node.endpoint.is_open()
        assert node.community.get_tasks() == []
        async with PeerNode(tmp_path / "a", ITEMS, host="127.0.0.1", port=0, page=0) as again:
            assert again.page_at

    run(story())


def test_a_folder_keeps_to_its_secret_and_its_key(tmp_path):
    async def start(**options):
        async with PeerNode(tmp_path / "node", ITEMS, host="127.0.0.1", port=0, **options) as node:
            return node.community.state.node

    first = run(start())
    assert run(start()) == first
    assert (tmp_path / "node/key.bin").stat().st_mode & 0o777 == 0o600
    with pytest.raises(ValueError, match="secret"):
        run(start(secret="ours"))
    (tmp_path / "node/peers.json").write_text('{"peers": [["nowhere", 1]]}')
    with pytest.raises(ValueError, match="no list of addresses"):
        run(start())
    (tmp_path / "node/peers.json").unlink()
    (tmp_path / "node/key.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match="holds no key"):
        run(start())


def test_options_that_settings_do_not_have_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"intervall.*interval"):
        PeerNode(tmp_path / "node", ITEMS, options={"intervall": 3})
    with pytest.raises(ValueError, match="isolation=2"):
        PeerNode(tmp_path / "node", ITEMS, isolation=2)


@pytest.mark.parametrize("host", ["::1", "::"])
def test_an_address_of_ipv6_is_refused_before_anything_is_made(tmp_path, host):
    async def story():
        async with PeerNode(tmp_path / "node", ITEMS, host=host, port=0):
            pass

    with pytest.raises(ValueError, match=f"host='{host}' is IPv6; peers are reached by IPv4"):
        run(story())
    assert list(tmp_path.iterdir()) == []


def test_addresses_that_cannot_be_written_are_said_and_no_reason_to_leave(tmp_path, monkeypatch):
    async def story():
        def full(*_):
            raise OSError("no space left on device")

        async with Network(tmp_path, 2) as net:
            await until(net.met)
            monkeypatch.setattr("rankwise.ranking.peers.node.write_json", full)
            net.nodes[0]._met = []
            net.nodes[0]._remember()
            assert "no space" in net[0].trouble
            port = net.nodes[0].address[1]
        async with PeerNode(tmp_path / "0", ITEMS, host="127.0.0.1", port=port):  # port and folder were let go
            pass

    run(story())


def test_who_left_is_greeted_in_turn_and_not_all_at_once(tmp_path):
    async def story():
        async with Network(tmp_path, 1) as net:
            greeted, node = [], net.nodes[0]
            node.community.walk_to = greeted.append
            node._met = [("192.0.2.1", n) for n in range(1, 31)]
            for step in range(1, 200):
                node._look(*(type("Still", (), {"take_step": lambda self: None})() for _ in range(2)))
                assert len(greeted) == step
            assert len(set(greeted)) > 20

    run(story())


def test_who_was_met_is_greeted_again_when_all_are_lost(tmp_path):
    async def story():
        async with Network(tmp_path, 2) as net:
            await until(net.met)
            first = net.nodes[0]  # was told of nobody
            assert first.peers == []
            first._remember()
            for peer in net[0].get_peers():
                net[0].network.remove_peer(peer)
            greeted = []
            net[0].walk_to = greeted.append
            first._look(*(type("Still", (), {"take_step": lambda self: None})() for _ in range(2)))
            assert [tuple(address) for address in greeted] == [net.nodes[1].address]

    run(story())


def test_who_gives_one_name_to_two_clicks_too_often_is_not_heard_any_more():
    async def story(lone):
        eve, bob = key(), key()
        peer = lone.friend(eve)

        def tell(item):
            lone.give(lone.packet(eve, Answer(lone.asked(peer), 9, said(eve, ("rock", item)))))

        for n in range(12):
            tell(f"z{99 - n}")
        assert lone.community.refused == {"lies": 1}
        assert lone.community.state.state[0].item == "z89"
        asked = lone.asked(lone.friend(bob, ("192.0.2.2", 6)))
        lone.give(lone.packet(bob, Answer(asked, 1, said(bob, ("rock", "s2")))))
        assert len(lone.community.state) == 2

    alone(story)


def test_what_is_kept_in_all_is_bounded_and_own_clicks_go_on():
    async def story(lone):
        for n in range(4):
            eve = key()
            peer = lone.friend(eve, ("192.0.2.1", 10 + n))
            lone.give(lone.packet(eve, Answer(lone.asked(peer), 2, said(eve, ("rock", "s2"), ("rock", "s3")))))
        assert lone.community.refused == {"full": 1}
        assert len(lone.community.state) == 6
        lone.community.click("rock", "s2")
        assert len(lone.community.state) == 7

    alone(story, most_in_all=7)


@pytest.mark.parametrize(("host", "port"), [("192.0.2.7", 0), ("192.0.2.7", -1), ("192.0.2.7", 65_536), ("::1", 5)])
def test_an_address_outside_of_ipv4_and_its_ports_is_refused(host, port):
    with pytest.raises(ValueError, match=r"port -?\d+; 1 to 65535|Expected 4 octets"):
        address_of(host, port)


def test_a_node_that_is_killed_soon_comes_back_behind_another_port_and_finds_whom_it_met(tmp_path):
    async def story():
        async with Network(tmp_path, 2) as net:  # the first was told of nobody
            await until(net.met)
            await until((tmp_path / "0" / "peers.json").exists, seconds=5)
            await until((tmp_path / "1" / "peers.json").exists, seconds=5)
            shutil.copytree(tmp_path / "0", tmp_path / "2")  # as a kill leaves it
            await net.nodes[0].__aexit__()
            again = PeerNode(tmp_path / "2", ITEMS, host="127.0.0.1", port=0, options=QUIET)
            net.nodes[0] = await again.__aenter__()
            await until(lambda: len(again.community.get_peers()) == 1)
            again.community.click("blues", "s3")
            bob, who = net[1], again.community.my_peer.public_key.key_to_bin()
            peer = bob.network.get_verified_by_public_key_bin(who)
            await until(lambda: again.address in peer.addresses.values())
            bob.pull(peer)
            await until(lambda: len(bob.state) == 1)

    run(story())


def test_places_are_kept_when_only_some_answer_and_are_not_more_than_so_many(tmp_path):
    async def story():
        async with Network(tmp_path, 2) as net:
            await until(net.met)
            node, other = net.nodes
            node._met = [("192.0.2.1", n) for n in range(1, 61)]
            node._remember()
            assert node._met == [other.address, *(("192.0.2.1", n) for n in range(1, 50))]
            assert read_json(node.folder / "peers.json")["peers"] == [list(place) for place in node._met]

    run(story())
