"""The recipe of DQ-LoRe: requests whose answers only examples tell, and claims that each can fail."""

from collections import Counter

import numpy as np
import pytest

from rankwise.bench.prompting import dq_lore as recipe
from rankwise.bench.shared.intents import KINDS, THINGS, WORDS, Request, requests


def test_requests_are_different_as_many_of_each_kind_and_of_the_things_they_name():
    found = requests(160, 0)
    assert len({r.text for r in found}) == 160
    assert set(Counter(r.word for r in found).values()) == {10}
    assert {r.word for r in found} == set(WORDS)
    names = {name for values in THINGS.values() for name in values}
    for r in found:
        assert all(thing in r.text and thing in names for thing in r.things)
    assert Request(text="", word="vash", things=("Bob", "at seven")).call == "vash(Bob, at seven)"


def test_the_seed_draws_the_requests_and_deals_the_words():
    assert requests(40, 1) == requests(40, 1)
    assert {r.text for r in requests(40, 1)} != {r.text for r in requests(40, 2)}

    def kinds(seed):
        return {r.word: next(i for i, (_, ways) in enumerate(KINDS) if said(r, ways)) for r in requests(160, seed)}

    assert kinds(1) != kinds(2)
    assert sorted(kinds(1).values()) == list(range(16))


def said(request, ways):
    return any(request.text == way.format(*request.things) for way in ways)


def test_every_kind_is_said_in_four_ways_that_name_both_things():
    assert len(KINDS) == len(set(WORDS)) == 16
    ways = [way for _, each in KINDS for way in each]
    assert len(ways) == len(set(ways)) == 64
    assert all("{0}" in way and "{1}" in way for way in ways)


def test_the_share_of_the_kind_is_of_answers_with_the_same_word():
    assert recipe.word("vash(Bob, at seven)") == "vash"
    shown = [["vash(Al, x)", "glim(Bob, at seven)"], ["torp(a, b)", "torp(c, d)"]]
    assert recipe.alike(["vash(Bob, at seven)", "torp(e, f)"], shown) == 0.75


RIGHT = dict(zip(recipe.ARMS, (-5.0, -2.0, -0.6, -0.5, -0.6, -0.4, -0.9, -0.2, -0.4, -0.1), strict=True))


def runs(seeds=5, **changes):
    names = {"ours": recipe.OURS, "near": recipe.NEAR, "random": recipe.RANDOM, "chance": recipe.CHANCE,
             "bm25": recipe.BM25, "one": recipe.ONE, "plain": recipe.PLAIN}  # fmt: skip
    means = RIGHT | {names[k]: v for k, v in changes.items() if k in names}
    kind = {recipe.PLAIN: changes.get("shown", 0.5)}
    right = ["vash(a, b)"] * 4

    def shown(arm):
        return [["vash(x, y)" if i < 4 * kind.get(arm, 0.75) else "glim(x, y)" for i in range(4)]] * 4

    return {
        f"seed {s}": {
            "right": right,
            "logp": {arm: [m + 0.001 * s] * 4 for arm, m in means.items()},
            "shown": {arm: shown(arm) for arm in recipe.ARMS[1:]},
        }
        for s in range(seeds)
    }


def lost(seeds=5, **changes):
    return [c.text for c in recipe.judge(runs(seeds, **changes), seeds=seeds).claims if not c.held]


def test_what_is_claimed_holds_every_claim_and_three_seeds_are_too_few():
    assert lost() == []
    assert len(lost(seeds=3)) == 9


@pytest.mark.parametrize(("changes", "words"), [
    ({"near": -0.1}, ["beats kNN"]), ({"bm25": -0.1}, ["BM25"]), ({"one": -0.1}, ["one query"]),
    ({"plain": -0.1}, ["LoRe beats both"]), ({"shown": 1.0}, ["more examples of the query's kind"]),
    ({"chance": -0.1}, ["control: random directions"]), ({"random": -0.5}, ["control: the choice matters"]),
])  # fmt: skip
def test_each_claim_can_fail_alone(changes, words):
    failed = lost(**changes) if "near" not in changes else [t for t in lost(**changes) if "choice" not in t]
    assert len(failed) == len(words)
    assert all(w in t for w, t in zip(words, failed, strict=True))


def test_a_row_shows_the_mean_over_seeds_and_how_far_ours_is_above_it():
    rows = {row[0]: row[1:] for row in recipe.judge(runs(), seeds=5).rows}
    assert rows[recipe.NONE] == ["-4.998±0.002", "-", "+4.80±0.00 nats a token, p=0.031, sees 0.00"]
    assert rows[recipe.PLAIN][1] == "50.0±0.0"
    assert rows[recipe.OURS][2] == "-"


def test_a_right_answer_as_draft_is_the_second_query():
    told = recipe.Told(None, None, 2)
    told.answers = {"a": "vash(x, y)", "b": "glim(x, y)"}
    assert told.chains_of_thought(["b", "a"]) == ["glim(x, y)", "vash(x, y)"]


def test_means_are_over_queries():
    found = runs(1)
    found["seed 0"]["logp"][recipe.OURS] = [-1.0, -3.0, -1.0, -3.0]
    assert recipe.judge(found, seeds=1).rows[recipe.ARMS.index(recipe.OURS)][1].startswith("-2.000")
    assert np.mean(found["seed 0"]["logp"][recipe.OURS]) == -2
