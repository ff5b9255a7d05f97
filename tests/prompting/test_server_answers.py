"""What answers on the wire say, by answers written by hand."""

import pytest

from rankwise.prompting import server_answers
from rankwise.prompting.language_model import Generation
from rankwise.prompting.server_answers import Echo, NotSupported, begins, chat, completion, echo, parts, score

USAGE = {"prompt_tokens": 7, "completion_tokens": 3}


def likely(token, p, *others):
    return {"token": token, "logprob": p, "top_logprobs": [{"token": "?", "logprob": other} for other in others]}


def test_a_chats_answer_says_of_every_token_how_likely_it_and_the_likeliest_were():
    content = [likely("Par", -1, -0.25, -3), likely("is", -0.5, -2), likely("<|im_end|>", -0.125)]
    answer = {"choices": [{"message": {"content": "Paris"}, "logprobs": {"content": content}}, {}], "usage": USAGE}
    expected = Generation(
        text="Paris", tokens=("Par", "is", "<|im_end|>"), logprobs=(-1.0, -0.5, -0.125),
        top_logprobs=(-0.25, -0.5, -0.125), special=(False, False, True), prompt_tokens=7,
    )  # fmt: skip
    assert chat(answer) == expected
    assert [type(p) for p in (*chat(answer).logprobs, *chat(answer).top_logprobs)] == [float] * 6
    silent = {"choices": [{"message": {"content": None}, "logprobs": {"content": [{"token": "", "logprob": -1}]}}]}
    assert chat(silent) == Generation(
        text="", tokens=("",), logprobs=(-1.0,), top_logprobs=(-1.0,), special=(True,), prompt_tokens=0
    )
    for without in (None, {}, {"content": None}):
        with pytest.raises(NotSupported, match=r"^the server returned no log-probabilities: switch them on \(vLLM"):
            chat({"choices": [{"message": {"content": "a"}, "logprobs": without}]})
    nothing = {"choices": [{"message": {"content": ""}, "logprobs": {"content": []}}], "usage": {"prompt_tokens": None}}
    assert chat(nothing).tokens == ()
    assert chat(nothing).prompt_tokens == 0


def test_a_completion_says_of_every_token_how_likely_it_and_the_likeliest_were():
    said = {"tokens": ["Par", "is", ""], "token_logprobs": [-1, -0.5, -4], "top_logprobs": [{"Lon": -0.25}, {}, None]}
    answer = {"choices": [{"text": "Paris", "logprobs": said}, {}], "usage": USAGE}
    expected = Generation(
        text="Paris", tokens=("Par", "is", ""), logprobs=(-1.0, -0.5, -4.0), top_logprobs=(-0.25, -0.5, -4.0),
        special=(False, False, True), prompt_tokens=7,
    )  # fmt: skip
    assert completion(answer) == expected
    for tops in (None, []):
        bare = {"choices": [{"text": 3, "logprobs": {**said, "top_logprobs": tops}}]}
        assert completion(bare).top_logprobs == (-1.0, -0.5, -4.0)
        assert (completion(bare).text, completion(bare).prompt_tokens) == ("3", 0)
    short = {"choices": [{"text": "a", "logprobs": {**said, "top_logprobs": [{}]}}]}
    with pytest.raises(ValueError, match="argument 2 is"):
        completion(short)
    with pytest.raises(NotSupported, match="no log-probabilities"):
        completion({"choices": [{"text": "a", "logprobs": None}]})


@pytest.mark.parametrize(
    ("token", "special"),
    [("", True), ("</s>", True), ("<|im_end|>", True), ("<a>", True), ("<>", False), ("<", False), ("<a", False),
     ("a>", False), (" ", False), ("x", False)],
)  # fmt: skip
def test_a_token_is_special_by_its_looks(token, special):
    answer = {"choices": [{"text": "", "logprobs": {"tokens": [token], "token_logprobs": [0]}}]}
    assert completion(answer).special == (special,)


def echoed(tokens, logprobs, *, text="a b c", usage=None):
    return {"choices": [{"text": text, "logprobs": {"tokens": tokens, "token_logprobs": logprobs}}], "usage": usage}


def test_an_echo_is_what_was_read_without_what_was_generated():
    whole = Echo(tokens=("a", " b"), logprobs=(None, -1.0))
    tokens, logprobs = ["a", " b", " c"], [None, -1, -0.5]
    assert echo(echoed(tokens, logprobs), "a b") == whole  # one token more is what is asked for
    for usage in ({"completion_tokens": 1}, {"completion_tokens": 1.0, "prompt_tokens": 2}, {"prompt_tokens": 3}, {}):
        assert echo(echoed(tokens, logprobs, usage=usage), "a b") == whole
    more = echoed([*tokens, " d"], [*logprobs, -2], text="a b c d", usage={"completion_tokens": 2})
    assert echo(more, "a b") == whole
    none = echoed(tokens[:2], logprobs[:2], text="a b", usage={"completion_tokens": 0})
    assert echo(none, "a b") == whole
    numbers = echoed(["#1", "#2", "#3"], [None, -1, -0.5])  # no texts, but nothing stands before the first token
    assert echo(numbers, "a b").tokens == ("#1", "#2")
    begin = echoed(["<s>", *tokens], [-9, -3, *logprobs[1:]], usage={"completion_tokens": 1, "prompt_tokens": 4})
    assert echo(begin, "a b") == Echo(tokens=("<s>", "a", " b"), logprobs=(-9.0, -3.0, -1.0))
    assert all(type(p) is float for p in echo(begin, "a b").logprobs)


@pytest.mark.parametrize(
    "answer",
    [
        echoed(["a", " b", " c"], [None, -1, -0.5], text="b c"),  # another text
        echoed(["#1", "#2", "#3"], [-2, -1, -0.5]),  # neither the text nor its first token
        echoed([" c"], [None]),  # nothing but what was generated
        echoed(["a", " b", " c"], [None, -1]),  # tokens without their log-probability
        echoed(["a", " b", " c"], [None, -1, -0.5], usage={"prompt_tokens": 4}),  # two tokens left out
        {"choices": [{"text": "a b c", "logprobs": None}]},
        {"choices": [{"logprobs": {"tokens": ["a b", "c"], "token_logprobs": [None, -1]}}]},
    ],
)
def test_what_is_no_echo_is_not_supported(answer):
    with pytest.raises(NotSupported):
        echo(answer, "a b")


def read(*tokens):
    return Echo(tokens=tokens, logprobs=(None, *[-1.0] * (len(tokens) - 1)))


def test_a_continuation_begins_with_the_first_token_that_reaches_beyond_the_prompt():
    assert begins(read("a", "b", "c"), "ab", "abc") == 2
    assert begins(read("a", "bc"), "ab", "abc") == 1  # a token that reaches over
    assert begins(read("abc"), "ab", "abc") == 0
    assert begins(read("<s>", "a", "b", "c", "d"), "ab", "abcd") == 3  # what the server puts in front does not count
    assert begins(read("a", "b", "", "c"), "ab", "abc") is None  # a character in parts
    assert begins(read("", "a", "b", "c"), "ab", "abc") == 3
    assert begins(read("", "ab"), "", "ab") is None
    assert begins(read("a", "b", "\ufffd"), "ab", "abé") is None
    assert begins(read("a", "b"), "ab", "ab") is None  # nothing beyond it


def test_a_text_parts_from_its_prompt_at_the_first_token_that_differs():
    assert parts(read("#1", "#2", "#3"), read("#1", "#2")) == 2
    assert parts(read("#1", "#7", "#3"), read("#1", "#2")) == 1
    assert parts(read("#1"), read("#1", "#2", "#3")) == 1
    assert parts(read("#4", "#5"), read("#1", "#2")) == 0


def test_a_score_is_of_all_tokens_from_where_the_continuation_begins():
    whole = Echo(tokens=("a", "b", "c"), logprobs=(None, -1.0, -0.5))
    assert score(whole, 1, "bc").logprobs == (-1.0, -0.5)
    assert score(whole, 2, "c").logprobs == (-0.5,)
    for first in (0, 3, 4):  # a token without a number, and no token
        with pytest.raises(NotSupported, match="do not tell where 'bc' begins"):
            score(whole, first, "bc")


def test_counts_are_numbers_or_absent():
    for found, count in (({"usage": {"n": 3}}, 3), ({"usage": {"n": 3.0}}, 3), ({"usage": {"n": "3"}}, None),
                         ({"usage": {}}, None), ({"usage": None}, None), ({}, None)):  # fmt: skip
        assert server_answers._counted(found, "n") == count
