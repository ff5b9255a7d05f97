"""Requests of sixteen kinds, each said in four ways about shared things, and a word without a meaning for each kind.

Only examples tell what a word stands for, so that a model knows nothing beforehand; people, places, things and times
are shared by the kinds, so that requests of different kinds look alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

WORDS = (
    "vash", "glim", "torp", "nelk", "brud", "sofe", "kwin", "plag", "drem", "yuth", "fosk", "zemp", "hirl", "mubb",
    "cral", "jind",
)  # fmt: skip
THINGS = {
    "person": ("Alice", "Bob", "Carla", "David", "Emma", "Farid", "Grace", "Hugo", "Irene", "Jonas", "Kate", "Liam"),
    "city": (
        "Paris", "London", "Berlin", "Madrid", "Rome", "Vienna", "Oslo", "Athens", "Dublin", "Prague", "Lisbon",
        "Warsaw",
    ),
    "item": (
        "a bicycle", "a guitar", "a blue lamp", "a book", "a warm coat", "a camera", "a tent", "a chair", "a red bag",
        "a laptop", "a mirror", "a kettle",
    ),
    "date": (
        "at seven", "on Monday", "tomorrow", "at noon", "on Friday", "next week", "in May", "tonight", "on Sunday",
        "at half past nine", "in two days", "on the tenth",
    ),
}  # fmt: skip
KINDS = (
    (("person", "date"), (
        "Set up a meeting with {0} {1}.", "Put {0} into my calendar {1}.", "I want to sit down with {0} {1}.",
        "Arrange for me to see {0} {1}.",
    )),
    (("person", "date"), (
        "Call {0} {1}.", "Ring {0} up {1}.", "Get {0} on the phone {1}.", "I should speak to {0} by telephone {1}.",
    )),
    (("person", "date"), (
        "Wake {0} {1}.", "Set an alarm for {0} {1}.", "See that {0} is out of bed {1}.", "{0} has to be up {1}.",
    )),
    (("person", "date"), (
        "Reserve a table for {0} {1}.", "Find a restaurant for {0} {1}.", "{0} and I would like to eat out {1}.",
        "Get me a place to dine with {0} {1}.",
    )),
    (("city", "date"), (
        "Book a flight to {0} {1}.", "I need to fly to {0} {1}.", "Get me on a plane to {0} {1}.",
        "Find me a seat in the air to {0} {1}.",
    )),
    (("city", "date"), (
        "What will the weather be in {0} {1}?", "Does it rain in {0} {1}?", "Will I need an umbrella in {0} {1}?",
        "How warm is {0} {1}?",
    )),
    (("city", "date"), (
        "Book a hotel in {0} {1}.", "I need a room in {0} {1}.", "Find me a bed in {0} {1}.",
        "Where can I stay in {0} {1}?",
    )),
    (("city", "date"), (
        "How are the roads to {0} {1}?", "Is there much traffic around {0} {1}?",
        "Will I be stuck on the way to {0} {1}?", "How long does it take to drive to {0} {1}?",
    )),
    (("item", "person"), (
        "Send {0} to {1}.", "Post {0} to {1}.", "Have {0} delivered to {1}.", "{1} should get {0} by mail.",
    )),
    (("item", "person"), (
        "Lend {0} to {1}.", "Let {1} borrow {0}.", "{1} may have {0} for a while.",
        "Give {0} to {1}, but only on loan.",
    )),
    (("item", "person"), (
        "Pick up {0} from {1}.", "Collect {0} where {1} lives.", "{1} has {0} for me: fetch it.",
        "Go and take {0} from {1}.",
    )),
    (("item", "person"), (
        "Thank {1} for {0}.", "Tell {1} how glad I am about {0}.", "Write to {1} that {0} was very kind.",
        "Say to {1} that I love {0}.",
    )),
    (("item", "city"), (
        "Where can I buy {0} in {1}?", "Find a shop in {1} that has {0}.", "Who sells {0} in {1}?",
        "I want to get {0} while I am in {1}.",
    )),
    (("item", "city"), (
        "Who repairs {0} in {1}?", "Mine is broken: who mends {0} in {1}?", "Find somebody in {1} who fixes {0}.",
        "In {1}, where is {0} put right again?",
    )),
    (("item", "city"), (
        "Rent {0} in {1}.", "I would like to hire {0} in {1}.", "Where in {1} can I have {0} by the day?",
        "In {1} I need {0}, but not to keep.",
    )),
    (("item", "city"), (
        "Sell {0} in {1}.", "Find a buyer for {0} in {1}.", "Put {0} up for sale in {1}.",
        "I want money for {0} in {1}.",
    )),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked, the word for its kind, and the things that it is about."""

    text: str
    word: str
    things: tuple[str, str]

    @property
    def call(self) -> str:
        """``word(thing, thing)``."""
        return f"{self.word}({', '.join(self.things)})"


def requests(n: int, seed: int) -> list[Request]:
    """So many different ones, kinds in turn and then shuffled; the seed also deals the words to the kinds."""
    rng = np.random.default_rng(seed)
    words = rng.permutation(WORDS).tolist()
    found: dict[str, Request] = {}
    while len(found) < n:
        word, (names, ways) = words[len(found) % len(KINDS)], KINDS[len(found) % len(KINDS)]
        first, second = (str(rng.choice(THINGS[name])) for name in names)
        text = str(rng.choice(ways)).format(first, second)
        found.setdefault(text, Request(text=text, word=word, things=(first, second)))
    every = list(found.values())
    return [every[i] for i in rng.permutation(n)]
