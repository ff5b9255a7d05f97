import dataclasses
import math
import warnings

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


def test_settings_are_these_where_none_are_given():
    icl = loop(lambda q, shown: 0.3)
    assert (icl.shots, icl.rounds, icl.threshold, icl.confidence) == (2, 4, 0.5, "min-max")
    assert icl.sampling == Sampling(max_new_tokens=20)
    assert (icl.instruction, icl.include_special, icl.order) == ("", False, "ascending")
    assert SimilarityIndex(media=number).alpha == 0.5
    assert SimilarityIndex(number).alpha == 0.0  # without media the questions alone decide


def test_prompts_show_items_with_their_media_before_the_query():
    pool = [Item(question=f"item {i}", answer=f"a{i}", media={"type": "video", "path": f"{i}.mp4"}) for i in range(2)]
    pool.append(Item(question="item 5", answer="a5"))
    index = SimilarityIndex(number).fit(pool)
    icl = IterativeICL(Planted(None), index, shots=1, rounds=1, instruction="Look.", max_new_tokens=3)
    query = Item(question="item 7", media={"type": "image"})

    def content(media, text):
        return [media, {"type": "text", "text": text}]

    first = [
        {"role": "user", "content": content({"type": "video", "path": "1.mp4"}, "item 1")},
        {"role": "assistant", "content": "a1"},
    ]
    second = [{"role": "user", "content": "item 5"}, {"role": "assistant", "content": "a5"}]
    asked = {"role": "user", "content": content({"type": "image"}, "item 7")}
    assert icl.prompt(query, (2, 1)) == [{"role": "system", "content": "Look."}, *first, *second, asked]
    icl.order, icl.instruction = "descending", ""
    assert icl.prompt(query, (2, 1)) == [*second, *first, asked]
    assert icl.sampling == Sampling(max_new_tokens=3)


def test_a_round_says_what_was_written_and_how_many_tokens_that_took():
    icl = loop(lambda q, shown: 0.3, shots=1, rounds=2)
    said = icl.model.generate
    icl.model.generate = lambda *a: [dataclasses.replace(g, text=f" {g.text}\n") for g in said(*a)]
    found = icl.answer(Item(question="query 0"))
    assert [r.text for r in found.trace] == ["('a0',)", "('a1',)"]
    assert [r.tokens for r in found.trace] == [7, 7]  # five of the prompt, two written
    assert (found.text, found.tokens, found.rounds, found.examples) == ("('a0',)", 14, 2, (0,))
    assert found.confidence == pytest.approx(0.3)


def test_the_end_of_text_counts_where_it_is_to_count_and_a_function_may_judge():
    found = Planted(lambda q, shown: 0.3).generate([[{"role": "user", "content": "query 0"}]])[0]
    assert loop(None).sureness(found) == pytest.approx(0.3)
    assert loop(None, include_special=True).sureness(found) == pytest.approx(math.exp(-9))
    assert loop(None, confidence=lambda g: g.prompt_tokens).sureness(found) == 5.0
    for odd in (math.inf, -math.inf, math.nan):
        assert loop(None, confidence=lambda g, odd=odd: odd).sureness(found) == 0.0


def test_the_margin_is_never_negative_and_that_of_the_first_token():
    def said(*p):
        logs = tuple(map(math.log, p))
        return Generation(text="", tokens=("a",) * len(p), logprobs=logs, top_logprobs=logs,
                          special=(False,) * len(p), prompt_tokens=1)  # fmt: skip

    assert confidence(said(0.8, 0.1), "margin") == pytest.approx(0.6)
    assert confidence(said(0.3, 0.9), "margin") == 0.0
    assert confidence(said(0.5, 0.4, 0.3), "mean") == pytest.approx(0.06 ** (1 / 3))
    assert confidence(said(0.5, 0.4, 0.3), "min-max") == pytest.approx(0.3)


def test_an_answer_stands_only_above_the_threshold():
    for threshold, rounds in ((0.29, 1), (0.31, 3)):
        assert loop(lambda q, s: 0.3, rounds=3, threshold=threshold).answer(Item(question="query 0")).rounds == rounds
    icl = loop(None, rounds=3, threshold=0.25, confidence=lambda g: 0.25)
    icl.model.sure = lambda q, s: 0.5
    assert icl.answer(Item(question="query 0")).rounds == 3  # as sure as the threshold is not above it


def test_likeness_is_the_weighted_sum_of_cosines():
    rng = np.random.default_rng(0)
    text, media = rng.normal(size=(6, 3)), 50 * rng.normal(size=(6, 4))
    items = [Item(question=str(i), media=i) for i in range(6)]

    def cosines(X):
        X = X / np.linalg.norm(X, axis=1, keepdims=True)
        return X @ X.T

    for alpha in (0.0, 0.2, 0.8, 1.0):
        index = SimilarityIndex(lambda t: text[[int(x) for x in t]], lambda m: media[m], alpha=alpha).fit(items)
        likeness = alpha * cosines(media) + (1 - alpha) * cosines(text)
        assert index.rank(items).tolist() == np.argsort(-likeness, axis=1, kind="stable").tolist()
        assert index.rank(items[:2], 3).shape == (2, 3)
    calls = []
    SimilarityIndex(lambda t: calls.append(t) or text, lambda m: media, alpha=1.0).fit(items)
    assert not calls  # nothing is asked of questions that have no share


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan])
def test_shares_lie_between_zero_and_one(alpha):
    with pytest.raises(ValueError, match="outside"):
        SimilarityIndex(number, alpha=alpha)
    for options in ({"threshold": alpha}, {"rounds": 0}):
        with pytest.raises(ValueError, match=r"threshold=.* is outside|rounds=0"):
            loop(None, **options)


def test_features_of_media_are_finite_rows():
    items = [Item(question="item 1", media=1), Item(question="item 2", media=2)]
    for made, message in (
        (np.ones((3, 2)), r"features of 2 media are \(3, 2\)"),
        (np.ones(2), r"features of 2 media are \(2,\)"),
        (np.array([[1, np.inf], [1, 1]]), "media have NaN or Inf"),
        (np.array([[1, 1], [0, 0]]), "media's features has zero vectors|media's features .*zero vectors.* rows 1"),
    ):
        with pytest.raises(ValueError, match=message):
            SimilarityIndex(number, lambda m, made=made: made).fit(items)
    index = SimilarityIndex(number, lambda m: [[i, 1] for i in m]).fit(items)  # lists of whole numbers
    assert index.rank(items[1:], 1).tolist() == [[1]]


def test_rounds_are_those_that_the_pool_has_items_for_and_warnings_point_to_who_asked():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert loop(None, shots=5, rounds=2).rounds == 2
        assert loop(None, shots=4, rounds=3).rounds == 3  # the last one with what is left
    index = SimilarityIndex(number).fit(POOL)
    with pytest.warns(UserWarning, match="rounds=3 of 5 shots need more than 10 items") as record:
        icl = IterativeICL(Planted(lambda q, s: 0.3), index, shots=5, rounds=3)
    assert icl.rounds == 2
    assert record[0].filename == __file__
    only = IterativeICL(Planted(lambda q, s: 0.3), SimilarityIndex(number).fit(POOL[:1]), shots=1, rounds=1)
    with pytest.warns(UserWarning, match="1 queries are asked without an item") as record:
        found = only.answer_batch([Item(question="item 0"), Item(question="query 3")])
    assert record[0].filename == __file__
    assert [a.examples for a in found] == [(), (0,)]
    assert only.answer_batch([]) == []
    with pytest.raises(ValueError, match="no items yet"):
        IterativeICL(Planted(None), SimilarityIndex(number))


def test_an_item_with_the_querys_question_about_something_else_is_shown():
    items = [Item(question="item 1", answer="a", media=1), Item(question="item 1", answer="b", media=2)]
    icl = IterativeICL(Planted(lambda q, s: 0.3), SimilarityIndex(number).fit(items), shots=2, rounds=1)
    assert icl.answer(Item(question="item 1", media=1)).examples == (1,)
    assert icl.answer(Item(question="item 2", media=1)).examples == (0, 1)
