import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rankwise.models import load_tokenizer
from rankwise.prompting.language_model import Generation, Recorded, Sampling, Score
from rankwise.prompting.transformers_model import TransformersModel, _grouped, _Request


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=49152, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
                         initializer_range=0.4)  # fmt: skip
    return TransformersModel(LlamaForCausalLM(config), load_tokenizer("smollm2"), batch_size=5)


PROMPTS = ["The capital of France", "The capital of France is surely not very far from the sea:", "One", "Wörter 日本"]
GIVEN = [
    [" is Paris", " is", " – nothing at all"],
    [" no", " yes, it is"],
    [" two three"],
    [" ja", " にほん", "!", " x y"],
]


def naive(model, prompt, text):
    start = model.tokenizer(prompt)["input_ids"]
    end = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logp = model.model(torch.tensor([start + end])).logits[0].log_softmax(-1)
    return [float(logp[len(start) + t - 1, token]) for t, token in enumerate(end)]


@pytest.mark.parametrize("share", [True, False])
def test_scores_equal_a_loop_without_cache_or_padding(tiny, share):
    tiny.share_prefixes = share
    found = tiny.score(PROMPTS, GIVEN)
    for prompt, given, scores in zip(PROMPTS, GIVEN, found, strict=True):
        for text, score in zip(given, scores, strict=True):
            torch.testing.assert_close(
                torch.tensor(score.logprobs), torch.tensor(naive(tiny, prompt, text)), atol=1e-4, rtol=0
            )
            assert score.total == pytest.approx(score.mean * len(score.logprobs))
    tiny.share_prefixes = True


def test_prefixes_are_shared_within_a_prompt_and_across_prompts(tiny, monkeypatch):
    def request(*ids, scored=2):
        return _Request(ids, scored, (0, 0))

    same = [request(*range(20), 90 + j, 95) for j in range(4)]
    alone = request(*range(8), 50, 51, 52)
    groups = _grouped([*same, alone], True, 32)
    assert sorted((g.shared, len(g.requests)) for g in groups) == [(0, 1), (19, 4)]
    assert all(g.shared == 0 and len(g.requests) == 1 for g in _grouped(same, False, 32))
    assert [len(g.requests) for g in _grouped(same, True, 3)] == [1, 3]

    shots = "One and one are two. Two and two are four. Three and three are six. "
    prompts = [f"{shots}Then {w} and {w} and {w} and {w} are surely" for w in ("nine", "ten", "five")]
    given = [[" a", " b", " c"]] * 3
    seen, forward = [], tiny.model.forward

    def counted(*args, **options):
        if "input_ids" in options:
            seen.append(tuple(options["input_ids"].shape))
        return forward(*args, **options)

    monkeypatch.setattr(tiny.model, "forward", counted)
    monkeypatch.setattr(tiny, "batch_size", 16)
    found = tiny.score(prompts, given)
    long = tiny.count_tokens(shots) - 2
    assert [rows for rows, _ in seen] == [1, 3, 9]  # what all share, what each prompt adds, the continuations
    assert seen[0][1] >= long
    for prompt, scores in zip(prompts, found, strict=True):
        for text, score in zip(given[0], scores, strict=True):
            assert score.logprobs == pytest.approx(naive(tiny, prompt, text), abs=1e-4)


def test_generation_is_that_of_transformers_and_its_probabilities_those_of_a_forward_pass(tiny):
    found = tiny.generate(PROMPTS, Sampling(max_new_tokens=6))
    for prompt, got in zip(PROMPTS, found, strict=True):
        ids = tiny.tokenizer(prompt, return_tensors="pt")
        expected = tiny.model.generate(**ids, max_new_tokens=6, do_sample=False)[0, ids["input_ids"].shape[1] :]
        assert got.tokens == tuple(tiny.tokenizer.convert_ids_to_tokens(expected.tolist()))
        assert got.prompt_tokens == ids["input_ids"].shape[1]
        with torch.no_grad():
            logp = tiny.model(torch.cat([ids["input_ids"][0], expected])[None]).logits[0].log_softmax(-1)
        n = len(expected)
        torch.testing.assert_close(
            torch.tensor(got.logprobs), logp[-n - 1 : -1].gather(1, expected[:, None])[:, 0], atol=1e-3, rtol=0
        )
        assert got.logprobs == got.top_logprobs  # greedy takes the likeliest


def test_sampling_repeats_by_seed_and_reports_probabilities_before_truncation(tiny):
    first, again, other = (
        tiny.generate([PROMPTS[0]], Sampling(max_new_tokens=8, temperature=1.0, top_p=0.9, seed=s))[0]
        for s in (1, 1, 2)
    )
    assert first == again
    assert first.tokens != other.tokens
    assert all(p <= t + 1e-6 for p, t in zip(first.logprobs, first.top_logprobs, strict=True))


def test_generation_ends_before_a_stop_string_however_long_the_others_go_on(tiny):
    free = tiny.generate(PROMPTS, Sampling(max_new_tokens=8))
    word = next(free[0].text[i] for i in range(3, len(free[0].text)) if not free[0].text[i].isspace())
    for got, whole in zip(tiny.generate(PROMPTS, Sampling(max_new_tokens=8, stop=(word,))), free, strict=True):
        assert got.text == whole.text.split(word)[0]
        assert len(got.tokens) <= len(whole.tokens)


def test_too_long_and_empty_requests_are_refused(tiny):
    with pytest.raises(ValueError, match="takes 128"):
        tiny.generate(["word " * 200])
    with pytest.raises(ValueError, match="takes 128"):
        tiny.score(["word " * 200], [[" a"]])
    with pytest.raises(ValueError, match="continuation 1 of prompt 0 is empty"):
        tiny.score(["a"], [[" a", ""]])
    with pytest.raises(ValueError, match="tokenizer"):
        TransformersModel(tiny.model)
    with pytest.raises(ValueError, match="max_new_tokens"):
        Sampling(max_new_tokens=0)


def test_messages_go_through_the_chat_template(tiny):
    text = tiny.render([{"role": "user", "content": "Hi"}])
    assert text.endswith("<|im_start|>assistant\n")
    assert tiny.count_tokens([{"role": "user", "content": "Hi"}]) == len(tiny.tokenizer(text)["input_ids"])


class Counting:
    name, context = "counting", None

    def __init__(self):
        self.asked, self.fails_at = [], None

    def generate(self, prompts, sampling, *, on_result=None):
        out = []
        for i, p in enumerate(prompts):
            if self.fails_at is not None and len(self.asked) >= self.fails_at:
                raise ConnectionError("down")
            self.asked.append(p)
            out.append(
                Generation(
                    text=f"{p}!",
                    tokens=("a",),
                    logprobs=(-0.5,),
                    top_logprobs=(-0.5,),
                    special=(False,),
                    prompt_tokens=1,
                )
            )
            on_result(i, out[-1])
        return out

    def score(self, prompts, continuations, *, on_result=None):
        out = []
        for i, (p, c) in enumerate(zip(prompts, continuations, strict=True)):
            self.asked.append(p)
            out.append([Score(logprobs=(-float(len(t)),)) for t in c])
            on_result(i, out[-1])
        return out


def test_what_is_recorded_is_never_asked_again_even_after_a_failure_midway(tmp_path):
    inner = Counting()
    inner.fails_at = 3
    prompts = ["a", "b", "a", "c", "d", "é"]
    with pytest.raises(ConnectionError):
        Recorded(inner, tmp_path / "r.jsonl").generate(prompts)
    with (tmp_path / "r.jsonl").open("a") as f:
        f.write('{"key": "cut sh')  # what a kill leaves
    inner.fails_at = None
    model = Recorded(inner, tmp_path / "r.jsonl")
    seen = {}
    assert [g.text for g in model.generate(prompts, on_result=lambda i, g: seen.update({i: g.text}))] == [
        f"{p}!" for p in prompts
    ]
    assert sorted(inner.asked) == sorted({"a", "b", "c", "d", "é"})
    assert seen == {i: f"{p}!" for i, p in enumerate(prompts)}
    assert (model.asked, model.found) == (2, 4)
    model.generate(prompts, Sampling(max_new_tokens=3))
    assert len(inner.asked) == 10  # other options are other requests
    scored = Recorded(inner, tmp_path / "r.jsonl").score(["x"], [["ab", "c"]])
    assert [s.total for s in scored[0]] == [-2, -1]
    assert Recorded(inner, tmp_path / "r.jsonl").score(["x"], [["ab", "c"]]) == scored
    assert inner.asked.count("x") == 1


def test_a_record_that_is_none_is_named(tmp_path):
    (tmp_path / "r.jsonl").write_text(json.dumps({"other": 1}) + "\n")
    with pytest.raises(ValueError, match="line 1"):
        Recorded(Counting(), tmp_path / "r.jsonl")
