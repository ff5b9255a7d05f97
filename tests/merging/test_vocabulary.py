"""Models whose vocabularies differ."""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    Gemma3ForConditionalGeneration,
    GPTJConfig,
    GPTJForCausalLM,
    MarianConfig,
    MarianMTModel,
    RobertaConfig,
    RobertaForMaskedLM,
)

from rankwise.merging import Conflict, merge_checkpoints, prepare
from rankwise.merging.engine.vocabulary import aligned
from small_checkpoints import WORDS, eyes, tensors, with_words


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


WIDTH = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
SPEAKING = {
    "gptj": lambda n: GPTJForCausalLM(
        GPTJConfig(vocab_size=n, n_embd=16, n_layer=1, n_head=2, n_positions=32, rotary_dim=4)
    ),
    "bert": lambda n: BertForMaskedLM(BertConfig(vocab_size=n, max_position_embeddings=32, **WIDTH)),
    "roberta": lambda n: RobertaForMaskedLM(RobertaConfig(vocab_size=n, max_position_embeddings=32, **WIDTH)),
    "distilbert": lambda n: DistilBertForMaskedLM(
        DistilBertConfig(vocab_size=n, dim=16, n_layers=1, n_heads=2, hidden_dim=32, max_position_embeddings=32)
    ),
    "marian": lambda n: MarianMTModel(MarianConfig(
        vocab_size=n, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, pad_token_id=0,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=32,
        decoder_start_token_id=0, eos_token_id=1, decoder_vocab_size=n,
    )),
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(SPEAKING))
def test_everything_with_an_entry_a_token_is_put_in_the_new_order(tmp_path, kind):
    """A model and itself with its tokens renumbered are one model: their average is that model."""
    words = WORDS["base"]
    order = [0, 3, 1, 5, 2, 4]  # of the second model: its token i is the first's order[i]
    for name, own in (("a", words), ("b", [words[i] for i in order])):
        with_words(tmp_path / name, own, 0)
        (tmp_path / name / "model.safetensors").unlink()
    torch.manual_seed(0)
    model = SPEAKING[kind](len(words))
    with torch.no_grad():
        for p in model.parameters():
            p.normal_()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    per_token = {k for k, v in state.items() if len(words) in v.shape and "position" not in k}
    assert len(per_token) >= 2
    for k in per_token:
        axis = list(state[k].shape).index(len(words))
        if "final_logits_bias" in k:
            model.state_dict()[k].normal_()
            state[k] = model.state_dict()[k].clone()
        state[k] = state[k].index_select(axis, torch.tensor(order))
    other = SPEAKING[kind](len(words))
    model.save_pretrained(tmp_path / "a")
    other.load_state_dict(state)
    other.save_pretrained(tmp_path / "b")
    models = [{"model": str(tmp_path / n)} for n in "ab"]
    merge_checkpoints({"merge_method": "linear", "models": models, "tokenizer_source": "base"}, tmp_path / "out")
    _, info = type(model).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    merged = tensors(tmp_path / "out")
    for name, expected in tensors(tmp_path / "a").items():
        torch.testing.assert_close(merged[name], expected, atol=1e-6, rtol=1e-6)


def test_a_table_that_may_count_tokens_or_not_is_a_misfit(three):
    root = three[0]
    for name in WORDS:
        held = tensors(root / name)
        save_file(held | {"model.reward_table": torch.zeros(len(WORDS["base"]))}, root / name / "model.safetensors")
    (root / "a").rename(root / "was")
    with_words(root / "a", WORDS["base"][::-1], 3)
    save_file(tensors(root / "a") | {"model.reward_table": torch.zeros(6)}, root / "a" / "model.safetensors")
    with pytest.raises(Conflict, match=r"model.reward_table  has 6 entries, as many as there are tokens"):
        prepare(recipe(root, tokenizer_source="base"))
    assert prepare(recipe(root, tokenizer_source="base", ignore=["reward_table"]))


def test_a_nested_configuration_learns_the_new_size(tmp_path):
    for name, own in WORDS.items():
        eyes(tmp_path / name, own)
    merge_checkpoints(recipe(tmp_path, tokenizer_source="union"), tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["text_config"]["vocab_size"] == 8
    model, info = Gemma3ForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert model.get_input_embeddings().weight.shape[0] == 8


def test_numbers_of_tokens_follow_their_tokens(three):
    root, words, _ = three
    for name in words:
        path = root / name / "config.json"
        numbers = {
            "eos_token_id": [words[name].index("of"), words[name].index("a")],
            "pad_token_id": 0,
            "bos_token_id": None,
        }
        path.write_text(json.dumps(json.loads(path.read_text()) | numbers))
    (root / "base" / "generation_config.json").write_text(json.dumps({
        "eos_token_id": 3, "suppress_tokens": [1, 2, 99], "forced_decoder_ids": [[1, 4]], "max_length": 3,
        "lang_to_id": {"<en>": 5}, "decoder_start_token_id": 2,
    }))  # fmt: skip
    chosen = str(root / "a")
    merge_checkpoints(recipe(root, tokenizer_source=chosen), root / "out")
    at = {w: i for i, w in enumerate(words["a"])}
    written = json.loads((root / "out" / "config.json").read_text())
    assert written["eos_token_id"] == [at["of"], at["a"]]
    assert (written["pad_token_id"], written["bos_token_id"]) == (0, None)
    generation = json.loads((root / "out" / "generation_config.json").read_text())
    assert generation == {
        "eos_token_id": at["of"], "suppress_tokens": [at["the"], at["rank"]], "forced_decoder_ids": [[1, at["a"]]],
        "max_length": 3, "lang_to_id": {"<en>": at["matrix"]}, "decoder_start_token_id": at["rank"],
    }  # fmt: skip


def test_single_tokens_and_filling_up(three):
    root, words, rows = three
    given = {
        "<new>": {"source": {"kind": "model_token", "model": str(root / "a"), "token": "sparse"}},
        "<nil>": {"source": {"kind": "zero"}},
        "rank": {"source": str(root / "b"), "force": True},
    }
    config = recipe(root, tokenizer={"source": "base", "tokens": given, "pad_to_multiple_of": 5})
    merge_checkpoints(config, root / "out")
    tokenizer = AutoTokenizer.from_pretrained(root / "out")
    merged = AutoModelForCausalLM.from_pretrained(root / "out")
    table, at = merged.model.embed_tokens.weight, tokenizer.get_vocab()
    assert merged.config.vocab_size == len(table) == 10
    torch.testing.assert_close(table[at["<new>"]], rows["a"][words["a"].index("sparse")], atol=1e-6, rtol=1e-5)
    assert not table[at["<nil>"]].any()
    torch.testing.assert_close(table[at["rank"]], rows["b"][words["b"].index("rank")], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(table[8], table[:8].mean(0), atol=1e-6, rtol=1e-5)
    assert tokenizer("<new> the")["input_ids"] == [at["<new>"], at["the"]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"x": {"source": "elsewhere"}}, "token 'x' is to come from elsewhere, which is not merged"),
        ({"x": {"source": {"kind": "model_token", "model": "A", "token": "nowhere"}}}, "has no token 'nowhere'"),
        ({"x": {"source": {"kind": "model_token", "model": "A", "token_id": 99}}}, "has no token 99"),
        ({"x": {"source": "A"}}, "has no token 'x'"),
        ({"the": {"force": True}}, "token 'the' is forced, but has no source"),
    ],
)
def test_rows_that_are_not_there_are_named(three, given, message):
    root = three[0]
    text = json.dumps(given).replace('"A"', json.dumps(str(root / "a")))
    with pytest.raises(ValueError, match=message):
        prepare(recipe(root, tokenizer={"tokens": json.loads(text)}))


def test_the_results_tokenizer_gains_no_padding_token(three):
    root = three[0]
    for name in WORDS:
        path = root / name / "tokenizer_config.json"
        own = {k: v for k, v in json.loads(path.read_text()).items() if k != "pad_token"} | {"eos_token": "of"}
        path.write_text(json.dumps(own))
    merge_checkpoints(recipe(root, tokenizer_source="union"), root / "out")
    assert AutoTokenizer.from_pretrained(root / "out").pad_token is None
