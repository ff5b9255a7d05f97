"""Models whose vocabularies differ."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rankwise.merging import Conflict, merge_checkpoints, prepare
from rankwise.merging.vocabulary import aligned
from small_checkpoints import WORDS, with_words


@pytest.fixture
def three(tmp_path):
    """A base; an expert with a word more and in another order; one with another word."""
    return tmp_path, WORDS, {n: with_words(tmp_path / n, w, i) for i, (n, w) in enumerate(WORDS.items())}


def recipe(root, **changes):
    models = [{"model": str(root / n), "parameters": {"weight": 0.5}} for n in ("a", "b")]
    return {"merge_method": "task_arithmetic", "base_model": str(root / "base"), "models": models, **changes}


def test_without_a_choice_the_misfit_is_told_with_the_way_out(three):
    with pytest.raises(Conflict, match=r"shape \[6, 8\] in .*base, \[7, 8\](.|\n)*give tokenizer_source: union"):
        prepare(recipe(three[0]))


@pytest.mark.parametrize("choice", ["union", "base", "b"])
def test_rows_of_the_same_token_are_merged(three, choice):
    root, words, rows = three
    choice = str(root / "b") if choice == "b" else choice
    merge_checkpoints(recipe(root, tokenizer_source=choice), root / "out")
    tokenizer = AutoTokenizer.from_pretrained(root / "out")
    merged, info = AutoModelForCausalLM.from_pretrained(root / "out", output_loading_info=True)
    assert not info["missing_keys"]
    table = merged.model.embed_tokens.weight
    expected = {"union": {*WORDS["a"], "dense"}, "base": set(WORDS["base"])}.get(choice, set(WORDS["b"]))
    assert set(tokenizer.get_vocab()) == expected
    assert len(table) == len(expected) == merged.config.vocab_size
    for token, i in tokenizer.get_vocab().items():
        having = {n: rows[n][w.index(token)] for n, w in words.items() if token in w}
        if "base" in having:
            wanted = having["base"] + 0.5 * sum(having[n] - having["base"] for n in ("a", "b"))
        else:
            wanted = next(iter(having.values()))  # one model has it: all are taken to agree
        torch.testing.assert_close(table[i], wanted, atol=1e-6, rtol=1e-5)
    assert tokenizer("the rank")["input_ids"] == [tokenizer.get_vocab()[w] for w in ("the", "rank")]


def test_tokenizers_that_differ_in_order_alone_are_noted(tmp_path):
    same = WORDS["base"]
    for i, (name, words) in enumerate({"base": same, "a": [*same[:4], "matrix", "a"], "b": same}.items()):
        with_words(tmp_path / name, words, i)
    assert any("tokenizers differ" in n for n in prepare(recipe(tmp_path)).notes)
    assert not prepare(recipe(tmp_path, tokenizer_source="base")).notes


def test_an_unknown_source_is_named(three):
    with pytest.raises(ValueError, match="'unoin' is neither base, union, nor one of"):
        prepare(recipe(three[0], tokenizer_source="unoin"))


def test_missing_rows_come_from_the_base_else_from_the_mean():
    tensors = [torch.tensor([[1.0], [2.0]]), torch.tensor([[10.0]]), torch.tensor([[30.0]])]
    rows = [torch.tensor([0, 1, -1]), torch.tensor([0, -1, -1]), torch.tensor([-1, -1, 0])]
    got = aligned(tensors, rows, 0)
    assert [x.flatten().tolist() for x in got] == [[1, 2, 30], [10, 2, 30], [1, 2, 30]]
    got = aligned(tensors, rows, None)
    assert got[2].flatten().tolist() == [5.5, 2, 30]
