import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwise.prompting.iterative import Item, IterativeICL, SimilarityIndex, confidence
from rankwise.prompting.language_model import Generation, Sampling
from rankwise.prompting.transformers_model import TransformersModel

POOL = [Item(question=f"item {i}", answer=f"a{i}") for i in range(10)]


def number(texts):
    """Items on a quarter circle: the likeness falls with the difference of their numbers."""
    angle = np.array([int(t.split()[1]) for t in texts]) * 0.1
    return np.stack([np.cos(angle), np.sin(angle)], 1)


class Planted:
    """Answers with the confidences it is told, by the items it sees."""

    name, context = "planted", None

    def __init__(self, sure):
        self.sure, self.calls = sure, []

    def generate(self, prompts, sampling=None, *, on_result=None):
        self.calls.append(len(prompts))
        out = []
        for p in prompts:
            shown = tuple(m["content"] for m in p if m["role"] == "assistant")
            c = self.sure(p[-1]["content"], shown)
            p, end = (math.log(c), -9.0), (False, True)
            tokens, text = ("x", ""), str(shown)
            out.append(Generation(text=text, tokens=tokens, logprobs=p, top_logprobs=p, special=end, prompt_tokens=5))
        return out


def loop(sure, **options):
    return IterativeICL(Planted(sure), SimilarityIndex(number).fit(POOL), **options)


def test_each_round_shows_the_next_ranks_and_no_item_twice():
    icl = loop(lambda q, shown: 0.3, shots=2, rounds=4)
    found = icl.answer(Item(question="query 0"))
    assert [r.shown for r in found.trace] == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert found.trace[1].text == "('a3', 'a2')"  # the most alike next to the query
    assert found.rounds == 4
    assert found.tokens == 4 * 7
    assert found.trace[0].prompt == icl.prompt(Item(question="query 0"), (0, 1))


def test_the_released_codes_order_shows_the_most_alike_first():
    icl = loop(lambda q, shown: 0.3, rounds=2, order="descending")
    assert [r.text for r in icl.answer(Item(question="query 0")).trace] == ["('a0', 'a1')", "('a2', 'a3')"]
    with pytest.raises(ValueError, match="did you mean descending"):
        loop(lambda q, shown: 0.3, order="descend")


def test_an_item_that_is_the_query_itself_is_not_shown():
    media = [Item(question="item 1", answer=f"a{i}", media={"v": i}) for i in range(3)]
    index = SimilarityIndex(number).fit(media)
    icl = IterativeICL(Planted(lambda q, s: 0.3), index, shots=1, rounds=3)
    icl.model.sure = lambda q, s: 0.3
    found = icl.answer(Item(question="item 1", media={"v": 1}))
    assert [r.shown for r in found.trace] == [(0,), (2,)]
    only = IterativeICL(Planted(lambda q, s: 0.3), SimilarityIndex(number).fit(POOL[:1]), shots=1, rounds=1)
    with pytest.warns(UserWarning, match="1 queries are asked without an item"):
        assert only.answer(Item(question="item 0")).trace[0].shown == ()
    with pytest.raises(ValueError, match="use answer"):
        only.answer_batch(Item(question="item 0"))


def test_threshold_0_stops_at_once_and_1_takes_the_most_confident_of_all():
    sure = {("a1", "a0"): 0.2, ("a3", "a2"): 0.9, ("a5", "a4"): 0.8, ("a7", "a6"): 0.9}
    once = loop(lambda q, shown: sure[shown], threshold=0).answer(Item(question="query 0"))
    assert once.rounds == 1
    every = loop(lambda q, shown: sure[shown], threshold=1).answer(Item(question="query 0"))
    assert every.rounds == 4
    assert every.examples == (2, 3)  # the first of equals
    assert every.confidence == pytest.approx(0.9)
    default = loop(lambda q, shown: sure[shown]).answer(Item(question="query 0"))
    assert (default.rounds, default.examples) == (2, (2, 3))


@given(st.lists(st.lists(st.floats(0.01, 0.99), min_size=3, max_size=3), min_size=1, max_size=6), st.floats(0, 1))
def test_a_batch_is_its_queries_one_by_one_and_never_keeps_the_less_confident(table, threshold):
    def sure(q, shown):
        return table[int(q.split()[1])][rounds[shown]]

    rounds = {}
    icl = loop(sure, shots=2, rounds=3, threshold=threshold)
    queries = [Item(question=f"query {i}") for i in range(len(table))]
    for row in icl.index.rank(queries, 6):
        for t in range(3):
            rounds[tuple(f"a{j}" for j in row[2 * t : 2 * t + 2][::-1])] = t
    together = icl.answer_batch(queries)
    assert together == [icl.answer(q) for q in queries]
    for answer in together:
        assert answer.confidence == max(r.confidence for r in answer.trace)
        assert all(r.confidence <= threshold for r in answer.trace[:-1])
    undecided = [sum(a.rounds > t for a in together) for t in range(max(a.rounds for a in together))]
    assert icl.model.calls[: len(undecided)] == undecided  # only these were asked again


def test_confidences_by_hand():
    found = Generation(
        text="ab", tokens=("a", "b", "<|im_end|>"), logprobs=tuple(map(math.log, (0.6, 0.3, 0.1))),
        top_logprobs=tuple(map(math.log, (0.6, 0.5, 0.1))), special=(False, False, True), prompt_tokens=1,
    )  # fmt: skip
    assert confidence(found) == pytest.approx(0.5)
    assert confidence(found, include_special=True) == pytest.approx(0.1)
    assert confidence(found, "mean") == pytest.approx(math.sqrt(0.18))
    assert confidence(found, "product") == pytest.approx(0.18)
    assert confidence(found, "margin") == pytest.approx(0.2)
    empty = Generation(text="", tokens=("",), logprobs=(-0.1,), top_logprobs=(-0.1,), special=(True,), prompt_tokens=1)
    assert confidence(empty) == 0
    with pytest.raises(ValueError, match="did you mean mean"):
        confidence(found, "meen")


def test_the_real_models_confidence_is_that_of_its_greedy_path():
    model = TransformersModel("smollm2")
    found = model.generate([[{"role": "user", "content": "Say yes."}]], Sampling(max_new_tokens=5))[0]
    plain = [p for p, s in zip(found.logprobs, found.special, strict=True) if not s]
    assert confidence(found) == pytest.approx(math.exp(min(plain)))


def test_likeness_weighs_media_and_text():
    items = [Item(question=f"item {i}", media={"v": j}) for i, j in ((0, 9), (9, 0), (4, 4))]

    def media(given):
        return number([f"m {m['v']}" for m in given])

    query = [Item(question="item 0", media={"v": 0})]
    assert SimilarityIndex(number, media, alpha=1.0).fit(items).rank(query, 1)[0, 0] == 1
    assert SimilarityIndex(number, media, alpha=0.0).fit(items).rank(query, 1)[0, 0] == 0
    assert SimilarityIndex(number, media).fit(items).rank(query, 1)[0, 0] == 2
    same = SimilarityIndex(lambda t: np.ones((len(t), 2))).fit(items)
    assert same.rank(query, 3).tolist() == [[0, 1, 2]]  # ties by position


def test_bad_input():
    index = SimilarityIndex(number).fit(POOL)
    with pytest.raises(ValueError, match="threshold=2"):
        IterativeICL(Planted(None), index, threshold=2)
    with pytest.raises(ValueError, match="shots=0"):
        IterativeICL(Planted(None), index, shots=0)
    with pytest.raises(ValueError, match="did you mean min-max"):
        IterativeICL(Planted(None), index, confidence="minmax")
    with pytest.raises(ValueError, match="empty"):
        SimilarityIndex(number).fit([])
    with pytest.raises(ValueError, match="alpha"):
        SimilarityIndex(number, alpha=2)
    with pytest.raises(ValueError, match="NaN"):
        SimilarityIndex(lambda t: np.full((len(t), 2), np.nan)).fit(POOL)
    with pytest.warns(UserWarning, match="more than 10 items"):
        icl = loop(lambda q, s: 0.1, shots=4, rounds=5)
    assert [len(r.shown) for r in icl.answer(Item(question="query 0")).trace] == [4, 4, 2]
    nan = loop(lambda q, s: 0.5, confidence=lambda g: math.nan)
    assert nan.answer(Item(question="query 0")).confidence == 0
