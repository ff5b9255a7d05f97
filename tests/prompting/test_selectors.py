import asyncio
import dataclasses
import json
import sys
import warnings
from abc import ABC, abstractmethod
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone

from rankwise.models.embedding import embed
from rankwise.prompting import DQLoReSelector, TextDepth, selectors
from rankwise.prompting.examples import (
    Columns,
    Example,
    TooLong,
    as_example,
    as_row,
    extract_answer,
    few_shot,
    read_examples,
)
from rankwise.prompting.selectors import (
    BM25Selector,
    DepthSelector,
    KNNSelector,
    RandomSelector,
    bm25_index,
    bm25_scores,
)

POOL = [
    Example(question="How many apples are in two baskets of three?", answer="6", rationale="Two times three is six."),
    Example(question="What is the colour of the sky?", answer="blue"),
    Example(question="How many pears are in two baskets of four?", answer="8"),
    Example(question="Who wrote Hamlet?", answer="Shakespeare"),
    Example(question="who wrote  HAMLET?", answer="him"),
    Example(question="¿Cuántas peras hay? 梨はいくつ", answer="2"),
]


def letters(texts):
    """A transparent encoder: how often each letter occurs."""
    return np.array([[t.lower().count(c) for c in "abcdefghijklmnopqrstuvwxyz "] for t in texts], float) + 0.01


ALL = [
    RandomSelector(3),
    BM25Selector(3),
    KNNSelector(3, encoder=letters),
    DepthSelector(3, encoder=letters),
    DepthSelector(3, encoder=letters, balanced=True),
]


@pytest.mark.parametrize("selector", ALL, ids=lambda s: type(s).__name__)
def test_selectors_share_their_manners(selector):
    selector = clone(selector).fit(POOL)
    queries = ["How many plums are in two baskets?", "Who wrote Hamlet?", ""]
    batch = selector.select_batch(queries)
    assert batch == [selector.select(q) for q in queries]
    for query, chosen in zip(queries, batch, strict=True):
        assert len(chosen) == 3
        assert len({e.question.casefold().replace("  ", " ") for e in chosen}) == 3  # duplicates once
        assert query not in [e.question for e in chosen]  # nor the question itself
    other = clone(selector).set_params(order="descending").fit(POOL)
    assert other.select(queries[0]) == batch[0][::-1]
    rows = selector.select_examples({"question": queries[0]})
    assert [as_example(r) for r in rows] == batch[0]
    selector.add_example({"question": "new?", "answer": "yes"})
    assert len(selector.pool_) == 7
    with pytest.raises(ValueError, match="empty"):
        selector.fit([])
    with pytest.raises(ValueError, match="use select"):
        selector.select_batch("one")
    with pytest.raises(ValueError, match="no question"):
        selector.select_examples({"q": 1})
    with pytest.raises(ValueError, match="no answer"):
        selector.fit([{"question": "a"}])
    with pytest.raises(ValueError, match="did you mean ascending"):
        selector.set_params(order="ascend").fit(POOL)
    with pytest.warns(UserWarning, match="all of it"):
        chosen = clone(ALL[0]).set_params(k_examples=10).fit(POOL).select("x")
    assert len(chosen) == 5


def test_langchains_templates_take_a_selector_for_one_of_theirs(monkeypatch):
    class BaseExampleSelector(ABC):
        """As langchain_core has it; a template asks for an instance of it."""

        @abstractmethod
        def select_examples(self, input_variables): ...

    there = SimpleNamespace(BaseExampleSelector=BaseExampleSelector)
    monkeypatch.setitem(sys.modules, "langchain_core.example_selectors.base", there)
    selector = BM25Selector(2).fit(POOL)
    assert isinstance(selector, BaseExampleSelector)
    question = {"question": "How many plums?"}
    assert asyncio.run(selector.aselect_examples(question)) == selector.select_examples(question)
    asyncio.run(selector.aadd_example({"question": "new?", "answer": "yes"}))
    assert len(selector.pool_) == 7


def test_bm25_equals_its_formula():
    texts = ["a b b c", "a a d", "b d d d e", "f"]
    index = bm25_index(texts)
    words, k1, b = [t.split() for t in texts], 1.5, 0.75
    mean = np.mean([len(w) for w in words])

    def score(i, query):
        total = 0.0
        for term in query.split():
            df = sum(term in w for w in words)
            tf = words[i].count(term)
            idf = np.log(1 + (len(words) - df + 0.5) / (df + 0.5))
            total += idf * tf / (tf + k1 * (1 - b + b * len(words[i]) / mean))  # lucene's variant
        return total

    got = bm25_scores(index, "b d unknown")
    np.testing.assert_allclose(got, [score(i, "b d") for i in range(4)], rtol=1e-5)
    assert not bm25_scores(index, "unknown words").any()


def test_bm25_and_knn_find_the_question_about_fruit():
    for selector in (BM25Selector(1), KNNSelector(1)):  # the second with the real encoder
        assert selector.fit(POOL).select("How many oranges are in two baskets of five?")[0] in (POOL[0], POOL[2])


def test_random_examples_depend_on_question_and_seed_alone():
    one = RandomSelector(3, seed=1).fit(POOL)
    assert one.select("a") == RandomSelector(3, seed=1).fit(POOL).select("a")
    assert len({tuple(e.question for e in one.select(str(i))) for i in range(20)}) > 5


def test_depth_takes_the_deepest_and_balanced_takes_turns():
    pool = [Example(question=f"{'abc'[i % 3] * (i + 1)} {i}", answer=str(i % 2)) for i in range(12)]
    depths = TextDepth().fit(letters([e.question for e in pool])).depths_
    best = [pool[i] for i in np.argsort(-depths)]
    assert DepthSelector(4, encoder=letters, order="descending").fit(pool).select("?") == best[:4]
    assert (
        DepthSelector(4, encoder=letters, order="descending", shallowest=True).fit(pool).select("?") == best[::-1][:4]
    )
    chosen = DepthSelector(4, encoder=letters, balanced=True).fit(pool).select("?")
    assert sorted(e.answer for e in chosen) == ["0", "0", "1", "1"]


def test_a_bad_encoder_is_named():
    with pytest.raises(ValueError, match="NaN or Inf for text 0: 'How many apples"):
        KNNSelector(encoder=lambda t: np.full((len(t), 2), np.nan)).fit(POOL * 2)
    with pytest.raises(ValueError, match="one row a text"):
        KNNSelector(encoder=lambda t: np.ones((1, 2))).fit(POOL * 2)


class Words:
    name, context = "words", 24

    def count_tokens(self, prompt):
        return len((prompt if isinstance(prompt, str) else " ".join(m["content"] for m in prompt)).split())


@given(st.integers(0, 6), st.sampled_from(["chat", "text"]), st.booleans())
def test_the_budget_is_kept_by_dropping_the_least_similar(n, style, first):
    examples = [Example(question=f"q{i} " + "w " * i, answer="a") for i in range(n)]
    built = few_shot("a question?", examples, model=Words(), max_new_tokens=4, style=style, least_similar_first=first)
    assert Words().count_tokens(built.prompt) <= 20
    k = len(built.dropped)
    assert built.examples == (examples[k:] if first else examples[: n - k])
    if k:  # one fewer dropped would not have fitted
        more = examples[k - 1 :] if first else examples[: n - k + 1]
        with_more = few_shot("a question?", more, style=style).prompt
        assert Words().count_tokens(with_more) > 20


def test_prompts_as_chat_and_as_text():
    chat = few_shot("Why?", POOL[:2], instruction="Be brief.").prompt
    assert [m["role"] for m in chat] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert chat[2]["content"] == "Two times three is six. The answer is 6."
    text = few_shot("Why?", POOL[1:2], style="text").prompt
    assert text == "Question: What is the colour of the sky?\nAnswer: blue\n\nQuestion: Why?\nAnswer:"
    with pytest.raises(ValueError, match="does not fit"):
        few_shot("w " * 30, [], model=Words(), max_new_tokens=4)
    with pytest.raises(ValueError, match="style"):
        few_shot("a", [], style="poem")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Two and two. The answer is 4.", "4"),
        ("The answer is 3. No, the answer is 3.5", "3.5"),
        ("the answer is: New York\nQuestion", "New York"),
        ("It was there. The answer is St. Petersburg.\n\nQuestion: more. The", "St. Petersburg"),
        ("The answer is J. R. R. Tolkien.", "J. R. R. Tolkien"),
        ("\n positive\nmore", "positive"),
        ("U.S.", "U.S."),
        ("", ""),
    ],
)
def test_the_answer_is_found(text, answer):
    assert extract_answer(text) == answer


LINES = (
    st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1)
    .map(str.strip)
    .filter(lambda t: t and not t.startswith(":") and len(t.splitlines()) == 1)
)


@given(LINES, st.one_of(st.just(""), LINES))
def test_what_a_solution_writes_comes_back_whole(answer, rationale):
    example = Example(question="q", answer=answer, rationale=rationale)
    assert extract_answer(example.solution) == answer
    assert extract_answer(f"{example.solution}\n\nQuestion: and then?") == answer


def test_known_answers_are_found_whatever_follows_them():
    labels = ["3", "3.5", "positive", "New\nYork", "St. Petersburg", "Petersburg"]
    for text, answer in (
        ("The answer is 3.5. Surely", "3.5"),
        ("So the answer is St. Petersburg. I am sure.", "St. Petersburg"),
        ("Positive. Because", "positive"),
        ("The answer is new\nyork, of course", "New\nYork"),
        ("positively not", "positively not"),
        ("The answer is 35.", "35"),
    ):
        assert extract_answer(text, labels) == answer


def test_files_of_examples(tmp_path):
    path = tmp_path / "pool.jsonl"
    path.write_text("\n".join(json.dumps(r) for r in [{"question": "é?", "answer": 3, "id": 1}, {"question": "b"}]))
    with pytest.raises(ValueError, match="line 2: no answer among question"):
        read_examples(path)
    assert read_examples(path, answers=False)[0] == Example(question="é?", answer="3", more={"id": 1})
    odd = [{"question": "one\u2028two\x85three", "answer": 0}]
    path.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in odd), encoding="utf-8")
    assert read_examples(path) == [Example(question="one\u2028two\x85three", answer="0")]
    path.write_text("not json\n")
    with pytest.raises(ValueError, match="line 1"):
        read_examples(path)
    path.write_text("")
    with pytest.raises(ValueError, match="no examples"):
        read_examples(path)
    with pytest.raises(ValueError, match="no such file"):
        read_examples(tmp_path / "none.jsonl")


def test_tables_other_names_and_further_columns_are_read_and_kept(tmp_path):
    rows = [
        {"id": 7, "prompt": "Who?", "gold": "me", "why": ""},
        {"id": 8, "prompt": "What; else?", "gold": "x, y", "why": "z"},
    ]
    expected = [
        Example(question="Who?", answer="me", more={"id": 7}),
        Example(question="What; else?", answer="x, y", rationale="z", more={"id": 8}),
    ]
    columns = Columns(question="prompt", answer="gold", rationale="why")
    frame = pd.DataFrame(rows)
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_csv(tmp_path / "a.tsv", index=False, sep="\t")
    frame.to_parquet(tmp_path / "a.parquet")
    frame.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    (tmp_path / "a").write_text(json.dumps(rows[0]) + "\n" + json.dumps(rows[1]))
    for name in ("a.csv", "a.tsv", "a.parquet", "a.jsonl", "a"):
        found = read_examples(tmp_path / name, columns=columns)
        assert [e.more.pop("id") in (7, 8, "7", "8") for e in found] == [True, True]
        assert found == [dataclasses.replace(e, more={}) for e in expected]
    with pytest.raises(ValueError, match=r"line 2: no question and no answer among id, prompt, gold, why: say what"):
        read_examples(tmp_path / "a.csv")


def test_what_else_is_known_of_an_example_comes_out_again():
    row = {"question": "a?", "answer": "b", "input": "c", "id": 3}
    selector = RandomSelector(1).fit([row, {"question": "d?", "answer": "e"}])
    assert selector.select_examples({"question": "d?"}) == [row]
    assert as_row(as_example(row)) == row
    hash(as_example(row))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": ["a"], "answer": "b"}, "question is a list"),
        ({"question": "a", "answer": {"b": 1}}, "answer is a dict"),
        ({"question": "a", "answer": ""}, "answer is empty"),
        ({"question": float("nan"), "answer": "b"}, "question is empty"),
        ("a", "no mapping"),
    ],
)
def test_examples_that_are_none_are_named(row, message):
    with pytest.raises(ValueError, match=message):
        as_example(row)


def test_bm25_finds_words_where_no_spaces_stand_between_them():
    asked = {
        "法国的首都是哪里": "德国的首都是哪里",
        "猫在桌子上睡觉": "我的猫睡觉",
        "東京の天気はどうですか": "大阪の天気は",
        "เมืองหลวงของฝรั่งเศส": "ฝรั่งเศสอยู่ที่ไหน",
        "हिन्दी में लिखो": "हिन्दी क्या है",
        "ＦＵＬＬ width": "full moon",
    }
    pool = [Example(question=q, answer="x") for q in ("今天", *asked)]
    selector = BM25Selector(1).fit(pool)
    for question, query in asked.items():
        assert selector.select(query)[0].question == question


def test_questions_that_share_no_word_with_the_pool_are_counted():
    with pytest.warns(UserWarning, match="1 of 2 questions share no word with the pool"):
        BM25Selector(1).fit(POOL).select_batch(["How many?", "zzz"])


def test_zero_vectors_lie_near_nothing_and_are_refused():
    def blank(texts):
        return np.array([[t.count("a"), t.count("b")] for t in texts])  # whole numbers

    pool = [Example(question=q, answer="x") for q in ("a", "ab", "b")]
    with pytest.raises(ValueError, match=r"zero vector, .* for text 1: 'zz'"):
        KNNSelector(1, encoder=blank).fit([*pool[:1], Example(question="zz", answer="x")])
    fitted = KNNSelector(1, encoder=blank).fit(pool)
    assert fitted.select("abb") == [pool[1]]
    with pytest.raises(ValueError, match=r"zero vector, .* for text 0: 'c'"):
        fitted.select("c")
    with pytest.raises(ValueError, match="zero vector"):
        DQLoReSelector(None, blank, 1, candidates=3).fit(pool).select("c")
    with pytest.raises(ValueError, match="zero vectors"):
        TextDepth(encoder=blank).fit(["a", "zz"])


def test_a_pool_that_holds_little_but_the_question_is_said():
    pool = [Example(question=q, answer="x") for q in ("Who?", "who? ", "What?")]
    with pytest.warns(UserWarning, match="1 of 2 questions have fewer than 2 examples, 0 none"):
        assert len(RandomSelector(2).fit(pool).select_batch(["WHO?", "Where?"])[0]) == 1
    with pytest.warns(UserWarning, match="1 of 1 questions have fewer than 1 examples, 1 none"):
        assert RandomSelector(1).fit(pool[:1]).select("Who?") == []


def test_one_text_is_no_list_of_texts_for_an_encoder():
    with pytest.raises(ValueError, match="one text was given"):
        embed("The film was a joy.")


def test_a_question_that_does_not_fit_is_named():
    with pytest.raises(TooLong, match=r"the question 'w w w w"):
        few_shot("w " * 30, [], model=Words(), max_new_tokens=4)
    with pytest.raises(ValueError, match="a list of Example"):
        few_shot("a", "b")


def test_settings_are_these_where_none_are_given():
    shared = {"k_examples": 8, "order": "ascending"}
    assert RandomSelector().get_params() == {**shared, "seed": 0}
    assert BM25Selector().get_params() == {**shared, "field": "question"}
    assert KNNSelector().get_params() == {**shared, "encoder": None}
    depth = {"balanced": False, "shallowest": False, "distance": "cosine", "encoder": None}
    assert DepthSelector().get_params() == {**shared, **depth}
    assert Columns() == Columns(question="question", answer="answer", rationale="rationale")
    with pytest.raises(ValueError, match="k_examples=0; at least 1"):
        RandomSelector(0).fit(POOL)
    assert len(RandomSelector(1).fit(POOL).select("a")) == 1


def test_random_examples_are_all_as_likely_and_another_seed_draws_others():
    pool = [Example(question=f"q{i}", answer="x") for i in range(6)]
    chosen = [c for i in range(600) for c in RandomSelector(2, seed=3).fit(pool).select_indices([f"é{i}"])[0]]
    counts = np.bincount(chosen, minlength=6)
    assert abs(counts - 200).max() < 5 * np.sqrt(200)
    seeds = {tuple(RandomSelector(6, seed=s).fit(pool).select_indices(["a"])[0]) for s in range(10)}
    assert len(seeds) == 10


def test_bm25_looks_into_what_it_is_told_to():
    pool = [Example(question=q, answer=a) for q, a in (("sea", "fog"), ("fog", "sea"), ("sun", "day"))]
    assert BM25Selector(1).fit(pool).select("the fog") == [pool[1]]
    assert BM25Selector(1, field="solution").fit(pool).select("the fog") == [pool[0]]
    with pytest.raises(ValueError, match="did you mean question"):
        BM25Selector(1, field="questions").fit(pool)
    with pytest.warns(UserWarning, match="1 of 1 questions share no word") as record:
        found = BM25Selector(2, order="descending").fit(pool).select_indices(["zzz"])
    assert record[0].filename == __file__
    assert found[0].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("abc日本語def", ["abc", "日本", "本語", "def"]),
        ("猫", ["猫"]),
        ("日本 語", ["日本", "語"]),
        ("Straße, ＦＵＬＬ!", ["strasse", "full"]),
        ("don't 3.5", ["don", "t", "3", "5"]),
        ("हिन्दी", ["हिन्दी"]),
        ("ラーメン", ["ラー", "ーメ", "メン"]),
        ("", []),
        ("?!", []),
    ],
)
def test_words_are_runs_of_letters_and_pairs_where_nothing_stands_between_them(text, words):
    assert list(selectors._words_of(text)) == words


def test_texts_without_a_word_are_indexed_and_score_nothing():
    index = bm25_index(["a b", "?!", "b"])
    assert bm25_scores(index, "a").tolist()[1:] == [0, 0]
    for query in ("zzz", "", "?!"):
        assert bm25_scores(index, query).tolist() == [0, 0, 0]


def test_nearest_questions_are_the_most_alike_by_cosine():
    pool = [Example(question=f"{'abc'[i % 3] * (i + 1)} {'de'[i % 2] * 3}", answer="x") for i in range(12)]
    X = letters([e.question for e in pool])
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    for query in ("aab dd", pool[5].question):
        q = letters([query])[0]
        likeness = X @ q
        expected = [pool[i] for i in np.argsort(-likeness, kind="stable") if pool[i].question != query][:3]
        assert KNNSelector(3, order="descending", encoder=letters).fit(pool).select(query) == expected
    assert KNNSelector(3, encoder=letters).fit(pool).select_batch([]) == []


@pytest.mark.parametrize("distance", ["cosine", "chord"])
@pytest.mark.parametrize("shallowest", [False, True])
def test_depths_are_taken_within_an_answer_where_turns_are_taken(distance, shallowest):
    questions = ["aab", "abb", "bbc", "ccd", "dde", "eef", "ffg", "ggh", "hha"]
    pool = [Example(question=q, answer=a) for q, a in zip(questions, "xxxxyyyyz", strict=True)]
    fitted = DepthSelector(
        9, encoder=letters, order="descending", balanced=True, shallowest=shallowest, distance=distance
    ).fit(pool)
    X = letters(questions)
    own = {a: TextDepth(distance).fit(X[r]).depths_ for a, r in (("x", slice(0, 4)), ("y", slice(4, 8)))}
    np.testing.assert_allclose(fitted.depths_, [*own["x"], *own["y"], 2.0])  # nothing lies further in than one alone
    sign = 1 if shallowest else -1
    best = {a: np.argsort(sign * d, kind="stable") + 4 * (a == "y") for a, d in own.items()}
    chosen = fitted.select_indices(["?"])[0].tolist()
    for turn in range(4):
        now = [best["x"][turn], best["y"][turn]] + ([8] if turn == 0 else [])
        now.sort(key=lambda i: (sign * fitted.depths_[i], i))
        assert [chosen.pop(0) for _ in now] == now
    assert not chosen
    whole = DepthSelector(9, encoder=letters, distance=distance).fit(pool)
    np.testing.assert_allclose(whole.depths_, TextDepth(distance).fit(X).depths_)


def test_of_a_question_that_occurs_twice_the_first_example_is_selected():
    pool = [Example(question=q, answer=str(i)) for i, q in enumerate(["a b", "A  b", "c", "a b ", "d"])]
    for selector in (RandomSelector(5), BM25Selector(5), KNNSelector(5, encoder=letters),
                     DepthSelector(5, encoder=letters), DepthSelector(5, encoder=letters, balanced=True)):  # fmt: skip
        with pytest.warns(UserWarning, match="k_examples=5 of a pool of 3 questions") as record:
            selector.fit(pool)
        assert record[0].filename == __file__
        assert sorted(e.answer for e in selector.select("e")) == ["0", "2", "4"]
        with pytest.warns(UserWarning, match="1 of 1 questions have fewer than 5 examples, 0 none") as record:
            chosen = selector.select_indices([" a B"])[0]
        assert record[-1].filename == __file__
        assert sorted(chosen) == [2, 4]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RandomSelector(3).fit(pool).select("e")


def test_an_encoders_numbers_are_kept_in_their_precision():
    for given_dtype, kept in ((np.float16, np.float64), (np.int64, np.float64), (np.float32, np.float32)):
        made = selectors.embedded(["a", "b"], lambda t, d=given_dtype: np.array([[1, 2], [3, 4]], d))
        assert made.dtype == kept
        assert made.tolist() == [[1, 2], [3, 4]]
    with pytest.raises(ValueError, match=r"gave \(2,\) for 2 texts"):
        selectors.embedded(["a", "b"], lambda t: np.ones(2))
    with pytest.raises(ValueError, match="NaN or Inf for text 1: 'b'"):
        selectors.embedded(["a", "b"], lambda t: np.array([[1, 2], [np.inf, 0]]))


def test_a_pool_grows_example_by_example():
    selector = RandomSelector(1)
    selector.add_example({"question": "a?", "answer": "b"})
    selector.add_example({"question": "c?", "answer": "d", "rationale": "e"})
    assert selector.pool_ == [Example(question="a?", answer="b"), Example(question="c?", answer="d", rationale="e")]
    assert selector.select_examples({"question": "a?"}) == [{"question": "c?", "answer": "d", "rationale": "e"}]
    with pytest.raises(ValueError, match="no question among b, c"):
        selector.select_examples({"b": 1, "c": 2})
    with pytest.raises(ValueError, match="no question among no variables"):
        selector.select_examples({})


def test_a_prompt_leaves_64_tokens_and_drops_the_first_example_where_nothing_else_is_said():
    model = Words()
    model.context = 64 + 5
    examples = [Example(question="q", answer="a"), Example(question="r", answer="b")]
    built = few_shot("one two", examples, model=model)
    assert built == dataclasses.replace(
        built, prompt=[{"role": "user", "content": "r"}, {"role": "assistant", "content": "b"},
                       {"role": "user", "content": "one two"}],
        examples=examples[1:], dropped=examples[:1],
    )  # fmt: skip
    model.context = 64 + 6
    assert few_shot("one two", examples, model=model).dropped == []
    assert few_shot("one two", examples, model=model, least_similar_first=False, max_new_tokens=66).dropped == [
        examples[1]
    ]
    model.context = None
    assert few_shot("w " * 999, examples, model=model).dropped == []
    assert few_shot("Why?", [], instruction="Be brief.", style="text").prompt == "Be brief.\n\nQuestion: Why?\nAnswer:"
    assert few_shot("Why?", []).prompt == [{"role": "user", "content": "Why?"}]
    with_instruction = few_shot("Why?", [], instruction="Be brief.").prompt
    assert with_instruction == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    for bad in ((3, []), ("a", [{"question": "b", "answer": "c"}])):
        with pytest.raises(ValueError, match="a list of Example"):
            few_shot(*bad)


@pytest.mark.parametrize("rationale", ["", "  ", " why \n"])
def test_a_solution_is_the_answer_alone_or_ends_with_it(rationale):
    example = Example(question="q", answer="4", rationale=rationale)
    assert example.solution == ("why The answer is 4." if rationale.strip() else "4")


def test_cells_that_hold_nothing_are_empty_texts_and_lists_are_refused():
    given = {"question": 3.5, "answer": True, "rationale": None, 7: "seven"}
    assert as_example(given) == Example(question="3.5", answer="True", rationale="", more={"7": "seven"})
    assert as_example({"question": "a", "rationale": float("nan")}, answers=False) == Example(question="a", answer="")
    made = Example(question="a", answer="b")
    assert as_example(made) is made
    for value in (b"a", ("a",), ["a"], {"a": 1}):
        with pytest.raises(ValueError, match=f"rationale is a {type(value).__name__}"):
            as_example({"question": "a", "answer": "b", "rationale": value})
    with pytest.raises(ValueError, match="no question and no answer among no keys"):
        as_example({})
    with pytest.raises(ValueError, match="question and answer is empty"):
        as_example({"question": "", "answer": ""})


def test_files_without_a_kind_are_json_lines_and_lines_are_named(tmp_path):
    rows = [{"question": "a", "answer": "b"}, {"question": "c"}]
    for name in ("pool", "pool.txt", "pool.TXT", "pool.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(r) + "\n" for r in rows))
        with pytest.raises(ValueError, match=f"{name}.*line 2: no answer among question"):
            read_examples(tmp_path / name)
        assert [e.question for e in read_examples(tmp_path / name, answers=False)] == ["a", "c"]
