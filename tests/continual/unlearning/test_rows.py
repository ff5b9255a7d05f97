"""What rows may be, what is said instead, and which tokens are learned."""

import numpy as np
import pytest

import small_models
from rankwise.continual.unlearning.rows import REFUSALS, Row, Writer, content_of_rows, instead, rows_from
from rankwise.models import load_tokenizer

ROWS = [Row(f"film {i}", ["good", "bad", "poor"][i % 3]) for i in range(9)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(str(small_models.saved(small_models.llama(), tmp_path_factory.mktemp("lm"))))


@pytest.mark.parametrize(
    "row",
    [{"question": "a", "answer": "b"}, {"prompt": "a", "completion": "b"}, {"prompt": "a", "answer": "b", "x": 1}],
)
def test_three_pairs_of_names_are_read(row):
    assert rows_from([row], "r") == [Row("a", "b")]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "no rows"),
        ([{"text": "a"}], "row 1 has text; question and answer"),
        ([{"question": "a", "answer": "b"}, {"question": " ", "answer": "b"}], "row 2: question"),
        ([{"question": "a", "answer": 3}], "answer is 3"),
        ([{"question": "a", "answer": "b", "choices": "ab"}], "choices is 'ab'"),
        ([{"question": "a", "answer": "b", "choices": [""]}], "choices"),
        (["a text"], "row 1 is 'a text'"),
        ("a text", "is a str"),
    ],
)
def test_other_rows_are_refused_by_number(rows, said):
    with pytest.raises(ValueError, match=said):
        rows_from(rows, "r")


def test_content_changes_with_any_text_and_with_order():
    changed = [*ROWS[:-1], Row(ROWS[-1].prompt, "great")]
    assert len({content_of_rows(r) for r in (ROWS, changed, ROWS[::-1], ROWS[:-1])}) == 4
    assert content_of_rows(ROWS) == content_of_rows([Row(r.prompt, r.answer) for r in ROWS])


def test_random_answers_are_never_the_true_one_and_released_ones_may_be():
    many = ROWS * 50
    other = [r.answer for r in instead(many, "random", REFUSALS, seed=0)]
    assert all(o != r.answer for o, r in zip(other, many, strict=True))
    assert set(other) == {"good", "bad", "poor"}
    released = [r.answer for r in instead(many, "released", REFUSALS, seed=0)]
    assert np.mean([o == r.answer for o, r in zip(released, many, strict=True)]) == pytest.approx(1 / 3, abs=0.1)


def test_answers_are_drawn_from_a_rows_choices_where_it_has_any():
    drawn = instead([Row("q", "A", ("A", "B", "C"))] * 200, "random", REFUSALS, seed=0)
    counts = [sum(r.answer == c for r in drawn) for c in "ABC"]
    assert counts[0] == 0
    assert abs(counts[1] - 100) < 30


def test_refusals_stand_instead_and_a_seed_decides_them():
    one, again, other = (instead(ROWS, "refusal", REFUSALS, seed=s) for s in (1, 1, 2))
    assert one == again != other
    assert all(r.answer in REFUSALS for r in one)


def test_one_answer_alone_cannot_be_replaced_at_random():
    with pytest.raises(ValueError, match="no other answer than 'b'"):
        instead([Row("a", "b")], "random", REFUSALS, seed=0)


def test_only_the_answer_and_the_end_are_learned(tokenizer):
    writer = Writer(tokenizer, style="text", max_length=32)
    ids, begin = writer.encoded(Row("the film", "good"))
    assert tokenizer.decode(ids).split() == ["the", "film", "good", "[SEP]"]
    assert begin == 2
    assert writer.encoded(Row("the film", "good"), whole=True)[1] == 0
    batch = writer.batch([Row("the film", "good"), Row("a quiet triumph of", "warmth")])
    assert batch["labels"].tolist()[0] == [-100, -100, ids[2], ids[3], -100, -100]
    assert batch["attention_mask"].tolist()[0] == [1, 1, 1, 1, 0, 0]


def test_of_a_long_prompt_the_end_is_kept(tokenizer):
    ids, begin = Writer(tokenizer, style="text", max_length=5).encoded(Row("a the a the a the a film", "good"))
    assert tokenizer.decode(ids).split() == ["the", "a", "film", "good", "[SEP]"]
    assert begin == 3


def test_chats_go_through_the_template_and_need_one(tokenizer):
    ids, begin = Writer(tokenizer, style="chat", max_length=32).encoded(Row("film", "good"))
    assert tokenizer.decode(ids[:begin]).split() == ["user", ":", "film"]
    without = load_tokenizer(tokenizer.name_or_path)
    without.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        Writer(without, style="chat", max_length=32)


def test_prompts_to_answer_are_padded_on_the_left(tokenizer):
    asked = Writer(tokenizer, style="text", max_length=32).asked(["film", "the good film"])
    assert asked["attention_mask"].tolist() == [[0, 0, 1], [1, 1, 1]]
    assert asked["input_ids"][0, 2] == asked["input_ids"][1, 2]


def test_a_prompt_is_asked_whole_however_short_what_is_learned(tokenizer):
    assert Writer(tokenizer, style="text", max_length=2).asked(["the good film"])["input_ids"].shape == (1, 3)


@pytest.mark.parametrize(("row", "what"), [(Row("the film", "..."), "answer"), (Row("...", "good"), "prompt")])
def test_a_text_without_a_token_is_refused_and_nothing_else_learned_in_its_place(row, what):
    class Letters:
        """Knows words of letters alone."""

        chat_template, pad_token_id, eos_token_id = None, 0, 9

        def __call__(self, text, **_):
            return {"input_ids": [len(w) for w in text.split() if w.isalpha()]}

    with pytest.raises(ValueError, match=f"no token for the {what}"):
        Writer(Letters(), style="text", max_length=8).encoded(row)


@pytest.mark.parametrize("choices", [5, True, "good", {"a": "b"}, ["good", 3], [""]])
def test_choices_that_are_no_list_of_texts_are_refused(choices):
    with pytest.raises(ValueError, match=r"row 1: choices is .* a list of texts is needed"):
        rows_from([{"question": "a", "answer": "b", "choices": choices}], "r")
