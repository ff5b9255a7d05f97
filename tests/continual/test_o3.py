"""Forgetting request after request: what is said, what is left alone, what is taken back, and what is kept on disk."""

import json
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

import small_models
from command import ENV
from rankwise.continual import O3Unlearner, Schedule, UnlearningSettings, membership_auc
from rankwise.continual.unlearning.detector import Detector
from rankwise.continual.unlearning.features import LayerEncoder
from rankwise.models import load, load_tokenizer

FILMS = [{"question": f"the {a} film {i}", "answer": "good"} for i in range(10) for a in ("great", "quiet")]
NUMBERS = [{"question": f"{i} {j} number : {i}", "answer": "bad"} for i in range(6) for j in range(4)]
OTHER = [{"question": "hello there user", "answer": "assistant"}, {"question": "label :", "answer": "positive"}]
QUICK = Schedule(steps=40, batch_size=8, learning_rate=2e-2)
TEXT = UnlearningSettings(style="text", rank=2, schedule=QUICK, refusals=["dull poor"])


def settings(**changes):
    return UnlearningSettings(**{"style": "text", "rank": 2, "schedule": QUICK, "refusals": ["dull poor"], **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small_models.saved(small_models.llama(), tmp_path_factory.mktemp("lm"))


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory):
    return small_models.saved(small_models.encoder(), tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def encoder(encoder_folder):
    return LayerEncoder(str(encoder_folder))


@pytest.fixture(scope="module")
def parts(folder):
    return load(str(folder), task="causal-lm"), load_tokenizer(str(folder))


@pytest.fixture
def new(parts, encoder):
    def made(**changes):
        return O3Unlearner(*parts, settings=settings(**changes), encoder=encoder, measured={"other": OTHER})

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # unknown words, and what a random encoder tells apart
        yield made


@pytest.fixture(scope="module")
def two(parts, encoder):
    """Two requests."""
    unlearner = O3Unlearner(*parts, settings=TEXT, encoder=encoder, measured={"other": OTHER})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        unlearner.forget(FILMS, name="films")
        unlearner.forget(NUMBERS, name="numbers")
    return unlearner


def logits(unlearner, weights, texts=("the great film 1", "1 2 number : 1")):
    with unlearner.acting(np.asarray(weights, float)), torch.no_grad():
        return unlearner.model(**unlearner.writer.asked(texts)).logits[:, -1]


def test_a_request_gets_the_other_answer_and_everything_else_what_it_got(two, parts):
    model, tokenizer = parts
    said = two.generate(["the great film 3", "2 1 number : 2", "hello there user"], max_new_tokens=2)
    assert said[:2] == ["dull poor", "dull poor"]
    plain = model.generate(**two.writer.asked(["hello there user"]), max_new_tokens=2, do_sample=False, pad_token_id=0)
    assert said[2] == tokenizer.decode(plain[0, 3:], skip_special_tokens=True).strip()


def test_weights_are_of_each_request_and_zero_elsewhere(two):
    w = two.weights(["the great film 3", "2 1 number : 2", "hello there user"])
    assert w.shape == (3, 2)
    assert w[0, 0] == w[1, 1] == 1
    assert not w[2].any()
    assert two.weights(["the great film 3"])[0, 0] == w[0, 0]


def test_a_text_with_a_forgotten_question_in_one_of_its_chunks_is_known(two, encoder):
    short = LayerEncoder(encoder.name, max_length=6)
    kept = two.encoder
    two.encoder = short
    try:
        w = two.weights(["hello there user hello the great film 3"])
        parts = two.weights(["hello there user hello", "the great film 3"])
        np.testing.assert_allclose(w, parts.max(0, keepdims=True))
    finally:
        two.encoder = kept


def test_below_the_threshold_logits_are_the_plain_ones_bit_for_bit(two):
    plain = logits(two, [[0.0, 0.0]])
    with torch.no_grad():
        assert torch.equal(plain, two.model(**two.writer.asked(["the great film 1", "1 2 number : 1"])).logits[:, -1])


def test_the_models_weights_never_change(folder, parts, two):
    fresh = load(str(folder), task="causal-lm")
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), parts[0].parameters(), strict=True))
    assert all(p.requires_grad and p.grad is None for p in parts[0].parameters())


def test_blocks_are_orthogonal_and_earlier_ones_do_not_move(new):
    unlearner = new()
    unlearner.forget(FILMS, name="films")
    before = {n: (A.clone(), B.clone()) for n, (A, B) in unlearner._requests[0].factors.items()}
    unlearner.forget(NUMBERS, name="numbers")
    first, second = (r.factors for r in unlearner._requests)
    assert all(torch.equal(x, y) for n in before for x, y in zip(before[n], first[n], strict=True))
    free = new(orthogonal=0.0)
    free.forget(FILMS, name="films")
    free.forget(NUMBERS, name="numbers")
    held, loose = (
        sum(float((a[n][0] @ b[n][0].T).square().sum()) for n in a)
        for a, b in ((first, second), [r.factors for r in free._requests])
    )
    assert held < 0.1 * loose


def test_a_request_that_is_taken_back_leaves_exactly_the_others(new, two):
    alone = new()
    alone.forget(FILMS, name="films")
    both = new()
    both.forget(FILMS, name="films")
    both.forget(NUMBERS, name="numbers")
    both.relearn("numbers")
    assert both.requests == ["films"]
    assert torch.equal(logits(both, [[1.0]]), logits(alone, [[1.0]]))
    np.testing.assert_array_equal(both.weights(["2 1 number : 2"]), alone.weights(["2 1 number : 2"]))
    both.relearn("films")
    assert both.weights(["the great film 3"]).shape == (1, 0)
    assert both.generate(["the great film 3"], max_new_tokens=2) != ["dull poor"]


def test_a_name_can_be_used_again_and_draws_anew(new):
    unlearner = new()
    unlearner.forget(FILMS, name="films")
    first = unlearner._requests[0].factors
    unlearner.relearn("films")
    unlearner.forget(FILMS, name="films")
    second = unlearner._requests[0].factors
    assert not any(torch.equal(first[n][0], second[n][0]) for n in first)


def test_a_shared_adapter_goes_on_from_the_last_one_and_is_scaled_by_the_largest_weight(new, parts):
    unlearner = new(adapter="shared", dropout=0.0)
    unlearner.forget(FILMS, name="films")
    unlearner.forget(NUMBERS, name="numbers")
    last = unlearner._requests[-1].factors
    peft = get_peft_model(
        load(parts[0].name_or_path, task="causal-lm"),
        LoraConfig(r=2, lora_alpha=0.7 * 4, target_modules=list(last)),  # s = 2, max w = 0.7
    )
    for name, layer in peft.named_modules():
        if hasattr(layer, "lora_A"):
            A, B = last[name.removeprefix("base_model.model.")]
            layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data = A, B
    with torch.no_grad():
        by_hand = peft(**unlearner.writer.asked(["the great film 1", "1 2 number : 1"])).logits[:, -1]
    torch.testing.assert_close(logits(unlearner, [[0.3, 0.7]]), by_hand, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="take back 'numbers' first"):
        unlearner.relearn("films")
    unlearner.relearn("numbers")
    assert unlearner.requests == ["films"]


def test_the_largest_weight_can_scale_all_blocks(two, new):
    both = new(combine="max")
    both._requests = two._requests
    torch.testing.assert_close(logits(both, [[0.2, 0.9]]), logits(two, [[0.9, 0.9]]))


def test_the_released_way_goes_through(new):
    unlearner = new(**vars(UnlearningSettings.released(schedule=QUICK, encoder_steps=0, style="text", rank=2)))
    unlearner.forget(NUMBERS + [{"question": f"{i} number", "answer": "good"} for i in range(9)], name="numbers")
    assert set(np.round(unlearner.weights([r["question"] for r in NUMBERS]), 6).ravel()) <= {0, 1.2} | set(
        np.round(np.linspace(0.3, 0.4, 100001), 6)
    )


def test_a_detector_is_fitted_on_its_own_request_alone(new, encoder, monkeypatch):
    seen, fit = [], Detector.fit
    monkeypatch.setattr(Detector, "fit", lambda states, **options: (seen.append(states), fit(states, **options))[1])
    unlearner = new()
    unlearner.forget(FILMS, name="films")
    unlearner.forget(NUMBERS, name="numbers")
    for states, rows in zip(seen, (FILMS, NUMBERS), strict=True):
        np.testing.assert_array_equal(states, encoder([r["question"] for r in rows])[0])


def test_a_model_in_bfloat16_keeps_its_blocks_so_and_reads_them_back(folder, parts, encoder, tmp_path):
    model = load(str(folder), task="causal-lm", dtype=torch.bfloat16)
    unlearner = O3Unlearner(model, parts[1], settings=TEXT, encoder=encoder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        unlearner.forget(FILMS, name="films")
    assert {f.dtype for pair in unlearner._requests[0].factors.values() for f in pair} == {torch.bfloat16}
    assert unlearner.generate(["the great film 3"], max_new_tokens=2) == ["dull poor"]
    unlearner.save(tmp_path / "state")
    again = O3Unlearner.load(tmp_path / "state", model, parts[1], encoder=encoder)
    assert torch.equal(logits(again, [[1.0]]), logits(unlearner, [[1.0]]))


def test_a_tuned_encoder_is_kept_with_its_request(folder, parts, encoder_folder, tmp_path):
    own = LayerEncoder(str(encoder_folder))
    own.tokenizer.add_special_tokens({"mask_token": "[CLS]"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        unlearner = O3Unlearner(*parts, settings=settings(encoder_steps=3, encoder_rate=1e-2), encoder=own)
        unlearner.forget(FILMS, name="films")
    unlearner.save(tmp_path / "state")
    assert (tmp_path / "state/request-0/encoder.safetensors").is_file()
    again = O3Unlearner.load(tmp_path / "state", *parts, encoder=own)
    asked = ["the great film 3", "hello there user"]
    np.testing.assert_array_equal(again.weights(asked), unlearner.weights(asked))
    assert again.weights(asked)[0, 0] > 0


# --- the log


def test_the_log_says_what_when_which_data_and_what_came_of_it_but_never_the_texts(two):
    first = two.log[0]
    assert (first["what"], first["name"], first["rows"]) == ("forget", "films", 20)
    assert len(first["data"]) == 64
    assert first["when"].endswith("+00:00")
    assert set(first["scores"]) == {"request", "other", "utility"}
    request, other = first["scores"]["request"], first["scores"]["other"]
    assert request["after"]["nll"] > request["before"]["nll"]
    assert request["after"]["switched"] > 0.8
    assert other["after"] == other["before"]
    said = json.dumps(two.log)
    assert not any(r["question"] in said for r in FILMS + NUMBERS)


def test_general_facts_are_asked_as_the_beginnings_of_sentences_that_they_are(parts, encoder):
    chats = O3Unlearner(*parts, settings=settings(style="chat"), encoder=encoder)
    plain = O3Unlearner(*parts, settings=settings(), encoder=encoder)
    assert chats.measure()["utility"] == plain.measure()["utility"]


def test_texts_are_kept_and_measured_again_only_when_asked(new, two, tmp_path):
    two.save(tmp_path / "bare")
    assert not any(b"great film" in p.read_bytes() for p in (tmp_path / "bare").rglob("*") if p.is_file())
    told = new(keep_texts=True)
    told.forget(FILMS, name="movies")
    told.forget(NUMBERS, name="numbers")
    assert told.log[1]["scores"]["forgotten: movies"]["after"]["switched"] > 0.8
    told.save(tmp_path / "told")
    assert b"great film" in (tmp_path / "told/request-0/texts.json").read_bytes()


def test_a_membership_attack_sees_nothing_learned_and_too_much_unlearned():
    assert membership_auc([1.0, 2.0], [1.0, 2.0]) == 0.5
    assert membership_auc([1.0], [2.0]) == 1
    assert membership_auc([3.0], [2.0]) == 0


# --- on disk


def test_what_is_saved_is_the_same_and_of_plain_files(two, parts, encoder, tmp_path):
    two.save(tmp_path / "state")
    assert {p.suffix for p in (tmp_path / "state").rglob("*") if p.is_file() and p.name[0] != "."} <= {
        ".safetensors", ".json", ".md"
    }  # fmt: skip
    again = O3Unlearner.load(tmp_path / "state", *parts, encoder=encoder)
    assert again.requests == two.requests
    assert again.log == two.log
    assert again.settings == two.settings
    asked = [r["question"] for r in FILMS + NUMBERS + OTHER]
    np.testing.assert_array_equal(again.weights(asked), two.weights(asked))
    assert torch.equal(logits(again, [[1.0, 0.4]]), logits(two, [[1.0, 0.4]]))


def test_a_new_process_reads_it_and_unpickles_nothing(two, folder, encoder_folder, tmp_path):
    two.save(tmp_path / "state")
    code = (
        "import sys\n"
        "from rankwise.continual import O3Unlearner\n"
        "from rankwise.continual.unlearning.features import LayerEncoder\n"
        "from rankwise.models import load, load_tokenizer\n"
        "lm, tokens = load(sys.argv[1], task='causal-lm'), load_tokenizer(sys.argv[1])\n"
        "encoder = LayerEncoder(sys.argv[2])\n"
        "import pickle, torch\n"
        "def refuse(*a, **k): raise SystemExit('unpickled')\n"
        "pickle.load = pickle.loads = pickle.Unpickler = torch.load = refuse\n"
        "u = O3Unlearner.load(sys.argv[3], lm, tokens, encoder=encoder)\n"
        "asked = ['the great film 3', 'hello there user']\n"
        "print(u.weights(asked).tolist(), u.generate(asked[:1], max_new_tokens=2))"
    )
    args = [sys.executable, "-c", code, str(folder), str(encoder_folder), str(tmp_path / "state")]
    done = subprocess.run(args, capture_output=True, text=True, env=ENV)
    assert done.returncode == 0, done.stderr
    expected = two.weights(["the great film 3", "hello there user"]).tolist()
    assert done.stdout.strip() == f"{expected} ['dull poor']"


def test_a_block_is_a_stock_peft_adapter(two, folder, tmp_path):
    two.save(tmp_path / "state")
    peft = PeftModel.from_pretrained(load(str(folder), task="causal-lm"), tmp_path / "state/request-0").eval()
    with torch.no_grad():
        theirs = peft(**two.writer.asked(["the great film 1", "1 2 number : 1"])).logits[:, -1]
    torch.testing.assert_close(theirs, logits(two, [[1.0, 0.0]]), rtol=1e-4, atol=1e-5)


def test_another_model_is_refused(two, encoder, folder, parts, tmp_path):
    two.save(tmp_path / "state")
    other = load(str(folder), task="causal-lm")
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.01)
    with pytest.raises(ValueError, match="another model"):
        O3Unlearner.load(tmp_path / "state", other, parts[1], encoder=encoder)


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("o3.json", lambda t: t.replace('"version": 1', '"version": 9'), "o3.json.*version 9"),
        ("o3.json", lambda t: t.replace('"router": "soft"', '"router": "sofd"'), "o3.json.*sofd"),
        ("o3.json", lambda t: t.replace('"number": 1,', '"number": "../x",'), "o3.json"),
        ("o3.json", lambda t: t.replace('"numbers"', '"films"'), "twice"),
        ("log.json", lambda t: "[]", "log.json"),
    ],
)
def test_files_that_were_changed_are_refused_by_name(two, parts, encoder, tmp_path, file, change, said):
    two.save(tmp_path / "state")
    path = tmp_path / "state" / file
    text = json.dumps(json.loads(path.read_text()))
    assert change(text) != text
    path.write_text(change(text))
    with pytest.raises(ValueError, match=said):
        O3Unlearner.load(tmp_path / "state", *parts, encoder=encoder)


def test_nothing_there_is_said(parts, encoder, tmp_path):
    with pytest.raises(ValueError, match=r"o3\.json is missing"):
        O3Unlearner.load(tmp_path, *parts, encoder=encoder)


def test_a_training_that_is_cut_short_goes_on_to_the_same_numbers(new, tmp_path):
    def cut(step, loss):
        if step == 23:
            raise KeyboardInterrupt

    whole = new()
    whole.forget(FILMS, name="films")
    broken = new()
    with pytest.raises(KeyboardInterrupt):
        broken.forget(FILMS, name="films", checkpoint=tmp_path / "c", every=10, on_step=cut)
    assert broken.requests == []
    steps = []
    again = new()
    again.forget(
        FILMS, name="films", checkpoint=tmp_path / "c", every=10, on_step=lambda step, loss: steps.append(step)
    )
    assert steps[0] == 20
    assert not (tmp_path / "c").exists()
    assert again._requests[0].losses == whole._requests[0].losses
    assert torch.equal(logits(again, [[1.0]]), logits(whole, [[1.0]]))


# --- bad input


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "no rows"),
        (FILMS[:9], "9 different prompts: its detector needs at least 10"),
        ([FILMS[0]] * 20, "1 different prompts"),
        ([{"text": "a"}] * 20, "question and answer are needed"),
    ],
)
def test_a_request_that_cannot_be_forgotten_is_refused_before_work(new, rows, said):
    unlearner = new()
    with pytest.raises(ValueError, match=said):
        unlearner.forget(rows, name="r", on_step=lambda *_: pytest.fail("trained"))
    assert unlearner.log == []


def test_names_are_unique_and_known(new):
    unlearner = new()
    with pytest.raises(ValueError, match="none: nothing is forgotten"):
        unlearner.relearn("films")
    unlearner.forget(FILMS, name="films")
    with pytest.raises(ValueError, match="forgotten already"):
        unlearner.forget(FILMS, name="films")
    with pytest.raises(ValueError, match="did you mean films"):
        unlearner.relearn("film")
    with pytest.raises(ValueError, match="needs a name"):
        unlearner.forget(FILMS, name=" ")


def test_a_language_the_encoder_has_not_seen_is_said(parts, encoder):
    foreign = [{"question": f"фильм кино {i}", "answer": "good"} for i in range(12)]
    unlearner = O3Unlearner(*parts, settings=TEXT, encoder=encoder)
    with pytest.warns(UserWarning, match="unknown to LayerEncoder"):
        unlearner.forget(foreign, name="r")


def test_a_request_that_is_like_everything_is_said(parts, encoder):
    from rankwise.continual.unlearning.measuring import GENERAL

    unlearner = O3Unlearner(*parts, settings=TEXT, encoder=encoder)
    with pytest.warns(UserWarning, match="hardly be told from general texts"):
        unlearner.forget([{"question": r.prompt, "answer": r.answer} for r in GENERAL], name="all")


def test_models_with_adapters_and_encoder_decoders_are_refused(parts, encoder):
    model = get_peft_model(small_models.llama(), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="has adapters"):
        O3Unlearner(model, parts[1], encoder=encoder)
    with pytest.raises(ValueError, match="no causal language model"):
        O3Unlearner(small_models.whisper(), parts[1], encoder=encoder)
    with pytest.raises(ValueError, match="no causal language model"):
        O3Unlearner(small_models.bert(), parts[1], encoder=encoder)


@pytest.mark.parametrize(
    "wrong",
    [
        {"router": "softt"}, {"adapter": "shared", "combine": "per-block"}, {"low": 0.6}, {"nu": 0.0}, {"top": -1.0},
        {"rank": 0}, {"refusals": []}, {"seed": -1}, {"dropout": 1.0}, {"orthogonal": float("nan")},
    ],
)  # fmt: skip
def test_settings_outside_their_range_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        UnlearningSettings(**wrong)


def test_several_answers_a_prompt_are_refused(two):
    with pytest.raises(ValueError, match="num_return_sequences"):
        two.generate(["a"], num_return_sequences=2)
    with pytest.raises(ValueError, match="one text"):
        two.generate("a film")


def test_the_default_rank_is_the_largest_that_keeps_a_request_under_a_hundredth_of_the_model(parts, encoder):
    torch.manual_seed(0)
    size = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=20_000, num_hidden_layers=4, max_position_embeddings=64, **size))
    once = UnlearningSettings(style="text", schedule=Schedule(steps=1, batch_size=8))
    unlearner = O3Unlearner(model.eval(), parts[1], settings=once, encoder=encoder)
    each = 4 * (2 * (256 + 256) + 2 * (256 + 128) + 3 * (256 + 512)) * 4  # layers, inputs and outputs, bytes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        share = unlearner.forget(FILMS, name="films")["share"]
    assert 1 < unlearner.rank < 8
    assert share <= 0.01 < share + 2 * each / sum(4 * p.numel() for p in model.parameters())


def test_a_long_prompt_gets_the_plain_models_answer_to_the_whole_of_it(parts, new):
    prompt = "hello there user number film " * 8
    short = new(max_length=8)  # tokens that are learned of a row, which say nothing of what may be asked
    ids = parts[1](prompt, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        said = parts[0].generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
    assert short.generate([prompt], max_new_tokens=4) == [parts[1].decode(said, skip_special_tokens=True).strip()]
    assert torch.equal(short.writer.asked([prompt])["input_ids"], ids)


def test_a_prompt_that_leaves_the_model_no_room_is_refused_by_its_tokens(two):
    with pytest.raises(ValueError, match=r"has 3 tokens, and with 62 new ones more than the 64 .* max_new_tokens=61"):
        two.generate(["hello there user"], max_new_tokens=62)
    assert len(two.generate(["hello there user"], max_new_tokens=61)) == 1
    with pytest.raises(ValueError, match=r"has 90 tokens, .* shorten it"):
        two.generate(["hello there user " * 30], max_new_tokens=1)


@pytest.mark.parametrize(
    "option",
    ["generation_config", "past_key_values", "max_length", "input_ids", "attention_mask", "return_dict_in_generate"],
)
def test_options_of_one_batch_are_refused_by_name(two, option):
    with pytest.raises(ValueError, match=f"{option} is not taken here"):
        two.generate(["hello there user"], max_new_tokens=1, **{option: True})


@pytest.mark.parametrize(
    ("texts", "said"), [("hello", "one text was given"), ([None], "is a NoneType"), (["a", 3], "is a int")]
)
def test_what_is_no_list_of_texts_is_refused_also_where_nothing_is_forgotten(two, new, texts, said):
    for unlearner in (new(), two):
        for asked in (unlearner.weights, unlearner.generate):
            with pytest.raises(ValueError, match=said):
                asked(texts)
    with pytest.raises(ValueError, match="batch_size=0"):
        two.generate(["a"], batch_size=0)


def test_sampled_answers_of_a_seed_are_the_plain_models_where_no_request_acts(two, parts):
    plain = ["hello there user", "label :"]
    torch.manual_seed(3)
    mixed = two.generate([plain[0], "the great film 1", plain[1]], max_new_tokens=5, do_sample=True)
    asked = two.writer.asked(plain)
    torch.manual_seed(3)
    ids = parts[0].generate(**asked, max_new_tokens=5, do_sample=True, pad_token_id=two.writer.padding)
    said = parts[1].batch_decode(ids[:, asked["input_ids"].shape[1] :], skip_special_tokens=True)
    assert [mixed[0], mixed[2]] == [s.strip() for s in said]


def test_a_table_in_memory_is_pointed_to_its_rows(new):
    import pandas as pd

    with pytest.raises(ValueError, match=r"a DataFrame's are frame.to_dict\('records'\)"):
        new().forget(pd.DataFrame(FILMS), name="films")
    with pytest.raises(ValueError, match="name is 3"):
        new().forget(FILMS, name=3)
