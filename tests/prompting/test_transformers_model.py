from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from prompting.families import family, looped, numbers
from rankwise.models import load_tokenizer
from rankwise.prompting import transformers_model
from rankwise.prompting.encoding import Drawn, padding
from rankwise.prompting.language_model import Sampling
from rankwise.prompting.transformers_model import TransformersModel
from small_models import randomise


def small_llama(words):
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=words, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                    num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.4)
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def tiny():
    return TransformersModel(small_llama(49152), load_tokenizer("smollm2"), batch_size=5)


PROMPTS = ["The capital of France", "The capital of France is surely not very far from the sea:", "One", "Wörter 日本"]
GIVEN = [
    [" is Paris", " is", " – nothing at all"],
    [" no", " yes, it is"],
    [" two three"],
    [" ja", " にほん", "!", " x y"],
]


def naive(model, prompt, text):
    """Prompt and continuation tokenised together, one sequence at a time."""
    start, whole = model.tokenizer(prompt)["input_ids"], model.tokenizer(prompt + text)["input_ids"]
    n = max(k for k in range(len(start) + 1) if start[:k] == whole[:k])
    return looped(model.model, whole, len(whole) - n)


@pytest.mark.parametrize("share", [True, False])
def test_scores_equal_a_loop_without_cache_or_padding(tiny, share):
    tiny.share_prefixes = share
    found = tiny.score(PROMPTS, GIVEN)
    for prompt, given, scores in zip(PROMPTS, GIVEN, found, strict=True):
        for text, score in zip(given, scores, strict=True):
            assert score.logprobs == pytest.approx(naive(tiny, prompt, text), abs=1e-4)
            assert score.total == pytest.approx(score.mean * len(score.logprobs))
    tiny.share_prefixes = True


def test_a_token_that_reaches_over_the_end_of_the_prompt_counts_to_the_continuation(tiny):
    (score,) = tiny.score(["The capital of France is Par"], [["is"]])[0]
    whole = tiny.tokenizer("The capital of France is Paris")["input_ids"]
    assert tiny.tokenizer.decode(whole[-1]) == " Paris"
    assert score.logprobs == pytest.approx(looped(tiny.model, whole, 1), abs=1e-4)


def space_marked(*, begin=False, end=False):
    """As Llama's and Mistral's: a mark for a space is put before every text that is tokenised by itself."""
    words = ["<unk>", "<s>", "</s>", "▁", "▁The", "▁capital", "▁of", "▁France", "▁is", "▁Paris", "▁Rome", "▁a"]
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    template = f"{'<s> ' * begin}$A{' </s>' * end}"
    made.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def test_a_continuation_is_not_given_a_space_mark_of_its_own():
    tokenizer = space_marked(begin=True)
    assert tokenizer.tokenize(" Paris") == ["▁", "▁Paris"]  # by itself: two tokens
    model = TransformersModel(small_llama(12), tokenizer)
    paris, rome = model.score(["The capital of France is"], [[" Paris", " Rome is"]])[0]
    start = [1, 4, 5, 6, 7, 8]
    assert paris.logprobs == pytest.approx(looped(model.model, [*start, 9], 1), abs=1e-4)
    assert rome.logprobs == pytest.approx(looped(model.model, [*start, 10, 8], 2), abs=1e-4)


def test_an_end_that_the_tokenizer_puts_behind_every_text_is_no_part_of_a_prompt():
    model = TransformersModel(small_llama(12), space_marked(begin=True, end=True))
    assert model.count_tokens("The capital of") == 4
    (paris,) = model.score(["The capital of France is"], [[" Paris"]])[0]
    assert paris.logprobs == pytest.approx(looped(model.model, [1, 4, 5, 6, 7, 8, 9], 1), abs=1e-4)


def test_continuations_that_add_no_token_and_prompts_without_one_are_named():
    model = TransformersModel(small_llama(12), space_marked())
    with pytest.raises(ValueError, match="prompt 0 is empty, or one token with its continuation 0"):
        model.score([""], [["The"]])
    with pytest.raises(ValueError, match="prompt 0 is empty: there is nothing to continue"):
        TransformersModel(family("llama"), numbers()).generate([""])
    with pytest.raises(ValueError, match="continuation 1 of prompt 0, ' ', adds no token"):
        TransformersModel(family("llama"), numbers()).score(["5 6"], [[" 7", " "]])


def test_generation_is_that_of_transformers_and_its_probabilities_those_of_a_forward_pass(tiny):
    found = tiny.generate(PROMPTS, Sampling(max_new_tokens=6))
    for prompt, got in zip(PROMPTS, found, strict=True):
        ids = tiny.tokenizer(prompt, return_tensors="pt")
        expected = tiny.model.generate(**ids, max_new_tokens=6, do_sample=False)[0, ids["input_ids"].shape[1] :]
        assert got.tokens == tuple(tiny.tokenizer.convert_ids_to_tokens(expected.tolist()))
        assert got.prompt_tokens == ids["input_ids"].shape[1]
        assert got.logprobs == pytest.approx(
            looped(tiny.model, [*ids["input_ids"][0].tolist(), *expected.tolist()], 6), abs=1e-3
        )
        assert got.logprobs == got.top_logprobs  # greedy takes the likeliest


def test_settings_that_come_with_the_weights_do_not_change_what_is_greedy(tiny):
    plain, own = tiny.generate(PROMPTS, Sampling(max_new_tokens=6)), tiny.model.generation_config
    own.repetition_penalty, own.top_k, own.min_new_tokens = 9.0, 1, 20
    try:
        assert tiny.generate(PROMPTS, Sampling(max_new_tokens=6)) == plain
        warm = Sampling(max_new_tokens=6, temperature=2.0)
        assert tiny.generate(PROMPTS, warm) != plain  # of which top_k = 1 would leave nothing
        assert tiny.model.generation_config is own
    finally:
        own.repetition_penalty, own.top_k, own.min_new_tokens = None, None, None


def test_a_prompts_draw_is_decided_by_its_seed_and_not_by_its_neighbours(tiny):
    def sampled(prompts, seed):
        return tiny.generate(prompts, Sampling(max_new_tokens=8, temperature=1.0, top_p=0.9, seed=seed))

    together = sampled(PROMPTS, 1)
    assert [g.tokens for g in together] == [sampled([p], 1)[0].tokens for p in PROMPTS]
    assert [g.tokens for g in sampled(PROMPTS[::-1], 1)] == [g.tokens for g in together[::-1]]
    assert together[0].tokens != sampled(PROMPTS[:1], 2)[0].tokens
    assert all(p <= t + 1e-6 for p, t in zip(together[0].logprobs, together[0].top_logprobs, strict=True))


def test_draws_have_the_probabilities_of_the_tempered_nucleus():
    logits = torch.tensor([[2.0, 1.0, 0.5, 0.0, -3.0]])
    inputs = {"input_ids": torch.tensor([[1]]), "attention_mask": torch.tensor([[1]])}
    draws = [
        int(Drawn(inputs, Sampling(temperature=2.0, top_p=0.8, seed=seed))(inputs["input_ids"], logits).argmax())
        for seed in range(3000)
    ]
    p = torch.tensor([2.0, 1.0, 0.5]).div(2).softmax(0)  # of .386 .234 .182 .142 .032 three reach 0.8
    counts = torch.bincount(torch.tensor(draws), minlength=5) / 3000
    assert counts[3:].sum() == 0
    assert (counts[:3] - p).abs().max() < 4 * 0.5 / 3000**0.5


def test_generation_ends_before_a_stop_string_however_long_the_others_go_on(tiny):
    free = tiny.generate(PROMPTS, Sampling(max_new_tokens=8))
    word = next(free[0].text[i] for i in range(3, len(free[0].text)) if not free[0].text[i].isspace())
    for got, whole in zip(tiny.generate(PROMPTS, Sampling(max_new_tokens=8, stop=(word,))), free, strict=True):
        assert got.text == whole.text.split(word)[0]
        assert len(got.tokens) <= len(whole.tokens)


def test_too_long_requests_are_refused(tiny):
    with pytest.raises(ValueError, match="takes 128"):
        tiny.generate(["word " * 200])
    with pytest.raises(ValueError, match="takes 128"):
        tiny.score(["word " * 200], [[" a"]])
    with pytest.raises(ValueError, match="tokenizer"):
        TransformersModel(tiny.model)
    with pytest.raises(ValueError, match="max_new_tokens"):
        Sampling(max_new_tokens=0)


def test_a_tokenizer_without_a_padding_token_serves_batches():
    model = TransformersModel(family("llama"), numbers())
    assert model.tokenizer.pad_token is None
    together = model.generate(["5 6 7", "8 9 10 11 12"], Sampling(max_new_tokens=3))
    for prompt, found in zip(("5 6 7", "8 9 10 11 12"), together, strict=True):
        alone = model.generate([prompt], Sampling(max_new_tokens=3))[0]
        assert (found.tokens, found.logprobs) == (alone.tokens, pytest.approx(alone.logprobs, abs=1e-4))
    model.tokenizer = PreTrainedTokenizerFast(tokenizer_object=model.tokenizer.backend_tokenizer)
    assert model.tokenizer.eos_token is None
    assert [g.tokens for g in model.generate(["5 6 7", "8 9 10 11 12"], Sampling(max_new_tokens=3))] == [
        g.tokens for g in together
    ]


def test_messages_go_through_the_chat_template(tiny):
    text = tiny.render([{"role": "user", "content": "Hi"}])
    assert text.endswith("<|im_start|>assistant\n")
    assert tiny.count_tokens([{"role": "user", "content": "Hi"}]) == len(tiny.tokenizer(text)["input_ids"])


def test_a_template_that_knows_no_system_turn_and_a_missing_one_are_named():
    tokenizer = numbers()
    model = TransformersModel(family("llama"), tokenizer)
    with pytest.raises(ValueError, match=r"no chat template.*style text"):
        model.generate([[{"role": "user", "content": "5"}]])
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for m in messages %}{{ m.content }} {% endfor %}9 "
    )
    assert model.render([{"role": "user", "content": "5"}]) == "5 9 "
    with pytest.raises(ValueError, match=r"does not take turns of system, user: System role not supported.*first"):
        model.count_tokens([{"role": "system", "content": "4"}, {"role": "user", "content": "5"}])


def test_a_folder_is_another_model_after_it_was_trained_again_or_its_template_changed(tmp_path):
    llama, tokenizer = small_llama(99), numbers()
    identities = []
    for step in ("first", "weights", "template", "back"):
        with torch.no_grad():
            llama.lm_head.weight[3, 3] += {"weights": 0.5, "back": -0.5}.get(step, 0)
        tokenizer.chat_template = "{{ messages[0].content }}" if step == "template" else None
        llama.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        if step == "back":
            (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
        identities.append(TransformersModel(str(tmp_path)).identity())
    assert identities[0] == identities[3]
    assert len({str(i) for i in identities}) == 3


def test_a_loaded_model_is_known_by_its_weights_tokenizer_and_adapters():
    llama = small_llama(99)
    model = TransformersModel(llama, numbers())
    first = model.identity()
    model.tokenizer(["5 6", "7"], padding=False, truncation=True, max_length=3)  # leaves its mark in the tokenizer
    assert TransformersModel(small_llama(99), model.tokenizer).identity() == first
    with torch.no_grad():
        llama.lm_head.weight[3, 3] += 0.5
    changed = model.identity()
    assert changed != first
    with torch.no_grad():
        llama.lm_head.weight[3, 3] -= 0.5
    assert model.identity() == first
    assert TransformersModel(llama, space_marked()).identity() != first
    llama.generation_config.eos_token_id = 7
    assert TransformersModel(llama, numbers()).identity() != first
    adapted = get_peft_model(small_llama(99), LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    assert TransformersModel(adapted, numbers()).identity() != first


def test_adapters_are_scored_as_they_are_and_virtual_tokens_refused():
    adapted = get_peft_model(small_llama(99), LoraConfig(target_modules=["q_proj", "v_proj"]))
    model = TransformersModel(randomise(adapted), numbers())
    prompt = list(range(10, 30))
    scores = model.score([" ".join(map(str, prompt))] * 2, [[" 5 6", " 7"], [" 8"]])
    for tokens, score in zip(([5, 6], [7], [8]), [s for row in scores for s in row], strict=True):
        assert score.logprobs == pytest.approx(looped(adapted, [*prompt, *tokens], len(tokens)), abs=1e-4)
    virtual = get_peft_model(small_llama(99), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(ValueError, match="tokens of its own"):
        TransformersModel(virtual, numbers())


def test_settings_are_these_where_none_are_given():
    model = TransformersModel(small_llama(99), numbers())
    assert (model.batch_size, model.batch_tokens, model.share_prefixes) == (32, 16_384, True)
    assert (model.name, model.context) == ("model", 128)
    model.model.config.name_or_path = "mine"
    assert TransformersModel(model.model, numbers()).name == "mine"
    told = TransformersModel(model.model, numbers(), batch_size=3, batch_tokens=50, share_prefixes=False)
    assert (told.batch_size, told.batch_tokens, told.share_prefixes) == (3, 50, False)
    loaded = small_llama(99).train()
    assert not TransformersModel(loaded, numbers()).model.training


def test_a_name_is_read_when_it_is_needed(monkeypatch):
    seen = []
    monkeypatch.setattr(transformers_model, "load", lambda *given, **how: seen.append((given, how)) or small_llama(9))
    model = TransformersModel()
    assert model.name == "smollm2"
    assert model.count_tokens("The capital of France") == 4
    assert model.identity()["tokenizer"] is None
    assert not seen
    assert model.model is model.model
    assert seen == [(("smollm2",), {"task": "causal-lm"})]
    own = TransformersModel("smollm2", numbers())
    assert own.count_tokens("5 6 7") == 3
    assert own.identity()["tokenizer"] is not None
    assert own.identity()["model"] == model.identity()["model"]


def test_results_are_told_as_they_come_and_batches_hold_what_they_may(monkeypatch):
    model, seen, rows = TransformersModel(small_llama(99), numbers(), batch_size=2), [], []
    continued = model._continued
    monkeypatch.setattr(model, "_continued", lambda b, s: rows.append(list(map(len, b))) or continued(b, s))
    prompts = ["5 6 7 8", "9", "10 11", "12 13 14"]
    found = model.generate(prompts, Sampling(max_new_tokens=2), on_result=lambda i, g: seen.append((i, g)))
    assert [i for i, _ in seen] == [1, 2, 3, 0]  # the shortest first
    assert [g for _, g in sorted(seen, key=lambda p: p[0])] == found
    assert rows == [[1, 2], [3, 4]]
    rows.clear()
    model.batch_tokens = 10  # (3 + 2) twice, (4 + 2) once
    model.generate(prompts[:1] + prompts[3:] + ["1 2 3"], Sampling(max_new_tokens=2))
    assert rows == [[3, 3], [4]]
    seen.clear()
    scored = model.score(prompts, [[" 5", " 6 7"], [" 8"], [], [" 9"]], on_result=lambda i, s: seen.append((i, s)))
    assert sorted(i for i, _ in seen) == [0, 1, 3]
    assert all(s == scored[i] for i, s in seen)
    assert [len(row) for row in scored] == [2, 1, 0, 1]
    assert model.score([], []) == model.generate([]) == []
    assert len(model.generate(["5"])[0].tokens) == 64


def test_a_prompt_and_what_follows_may_fill_the_context_to_its_last_token():
    model = TransformersModel(small_llama(99), numbers())
    full = " ".join(["5"] * 120)
    assert len(model.generate([full], Sampling(max_new_tokens=8))[0].tokens) == 8
    with pytest.raises(ValueError, match="prompt 0 and 9 new tokens have 129 tokens; model takes 128"):
        model.generate([full], Sampling(max_new_tokens=9))
    assert len(model.score([full], [[" 6" * 8]])[0][0].logprobs) == 8
    with pytest.raises(ValueError, match="prompt 0 and its continuation 1 have 129 tokens; model takes 128"):
        model.score([full], [[" 7", " 6" * 9]])
    with pytest.raises(ValueError, match="one chat"):
        model.count_tokens({"role": "user", "content": "5"})


def ending(**ends):
    """A model that says 4, 2 and whatever comes, and a tokenizer: 2 ends a text."""
    model = small_llama(99)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        for n, p in model.named_parameters():
            if "norm" in n:
                p.fill_(1)
        model.model.embed_tokens.weight[:, 0] = 1e-3  # none is zero
        for said, following in {3: 4, 4: 2, 2: 7, 7: 7, 5: 6, 6: 8, 8: 9, 9: 9}.items():
            model.model.embed_tokens.weight[said, said % 32] = 1
            model.lm_head.weight[following, said % 32] = 1
    for name, value in ends.items():
        setattr(model.generation_config, name, value)
    return TransformersModel(model, numbers())


@pytest.mark.parametrize(("ends", "length"), [(2, 2), ([2, 50], 2), ([50, 2], 2), (None, 5), ([], 5), (4, 1)])
def test_a_text_ends_with_the_token_that_ends_it_however_long_the_others_go_on(ends, length):
    model = ending(eos_token_id=ends)
    short, long = model.generate(["3", "5"], Sampling(max_new_tokens=5))
    assert model.tokenizer.convert_tokens_to_ids(list(short.tokens)) == [4, 2, 7, 7, 7][:length]
    assert len(short.logprobs) == len(short.top_logprobs) == len(short.special) == length
    assert short.special == tuple(t == "</s>" for t in short.tokens)
    assert "</s>" not in short.text
    assert long.text == "6 8 9 9 9"
    assert (short.prompt_tokens, long.prompt_tokens) == (1, 1)
    assert model.model.generation_config.eos_token_id == ends
    assert model.generate(["3"], Sampling(max_new_tokens=5)) == [short]


def test_a_text_is_cut_before_the_first_of_several_stop_strings_and_its_tokens_after_it():
    model = ending(eos_token_id=None)
    free = model.generate(["5"], Sampling(max_new_tokens=5))[0]
    assert free.text == "6 8 9 9 9"
    for stop, text, n in ((("8",), "6 ", 2), (("9", "8"), "6 ", 2), (("9",), "6 8 ", 3), (("8 9",), "6 ", 3),
                          (("x",), "6 8 9 9 9", 5)):  # fmt: skip
        found, other = model.generate(["5", "3"], Sampling(max_new_tokens=5, stop=stop))
        assert found.text == text
        assert found.tokens == free.tokens[:n]
        assert found.logprobs == pytest.approx(free.logprobs[:n])
        assert other.tokens[0] == "4"


def test_draws_are_of_the_row_and_the_seed_alone_and_as_warm_as_is_said():
    logits = torch.tensor([[3.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 3.0]])
    inputs = {"input_ids": torch.tensor([[0, 7], [5, 7]]), "attention_mask": torch.tensor([[0, 1], [1, 1]])}
    alone = {"input_ids": torch.tensor([[7]]), "attention_mask": torch.tensor([[1]])}
    for temperature in (0.25, 1.0):
        warm = Sampling(temperature=temperature, seed=4)
        both, one = Drawn(inputs, warm), Drawn(alone, warm)
        for _ in range(3):  # what is hidden does not count; every step draws anew
            first = both(inputs["input_ids"], logits)
            assert torch.equal(first[:1], one(alone["input_ids"], logits[:1]))
            assert not torch.equal(first, both(inputs["input_ids"], logits))
            one(alone["input_ids"], logits[:1])
    cold = [Drawn(alone, Sampling(temperature=0.05, seed=s))(alone["input_ids"], logits[:1]) for s in range(50)]
    assert {int(found.argmax()) for found in cold} == {0}
    other = [Drawn(alone, Sampling(temperature=1.0, seed=s))(alone["input_ids"], logits[:1]) for s in (1, 2)]
    assert not torch.equal(*other)


def test_what_is_padded_with_is_the_tokenizers_own_or_what_ends_a_text():
    def has(pad, end):
        return padding(SimpleNamespace(pad_token_id=pad, eos_token_id=end))

    assert (has(5, 7), has(None, 7), has(0, 7), has(None, None), has(None, [3, 4])) == (5, 7, 0, 0, 0)


def test_adapters_and_virtual_tokens_are_told_apart_and_named():
    llama = small_llama(99)
    first = TransformersModel(llama, numbers()).identity()
    twice = get_peft_model(small_llama(99), LoraConfig(target_modules=["q_proj"]))
    twice.add_adapter("other", LoraConfig(target_modules=["q_proj"]))
    model = TransformersModel(twice, numbers())
    one = model.identity()
    twice.set_adapter("other")
    assert TransformersModel(twice, numbers()).identity() != one != first
    llama.config._name_or_path = "elsewhere"
    assert TransformersModel(llama, numbers()).identity() == first  # a name is not what a model is


def test_a_model_is_looked_at_again_only_after_it_changed(monkeypatch):
    llama, seen = small_llama(99), []
    look = transformers_model.weights_identity
    monkeypatch.setattr(transformers_model, "weights_identity", lambda m: seen.append(1) or look(m))
    model = TransformersModel(llama, numbers())
    assert model.identity() == model.identity()
    assert len(seen) == 1
    llama.model.embed_tokens.weight.data = llama.model.embed_tokens.weight.data.clone()
    model.identity()
    assert len(seen) == 2
    with torch.no_grad():
        llama.model.norm.weight.add_(1)
    model.identity()
    assert len(seen) == 3


def test_a_slow_tokenizer_is_known_by_its_vocabulary():
    def slow(**more):
        return SimpleNamespace(is_fast=False, get_vocab=lambda: {"a": 0, **more.get("vocabulary", {})},
                               init_kwargs=more.get("settings", {}), special_tokens_map=more.get("special", {}),
                               chat_template=more.get("template"))  # fmt: skip

    first = transformers_model.tokenizer_identity(slow())
    assert transformers_model.tokenizer_identity(slow()) == first
    others = [slow(vocabulary={"b": 1}), slow(settings={"b": 1}), slow(special={"b": 1}), slow(template="b")]
    assert len({transformers_model.tokenizer_identity(o) for o in others} | {first}) == 5
