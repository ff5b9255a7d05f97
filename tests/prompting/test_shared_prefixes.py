"""Scores with what prompts share computed once are those of a plain loop, for every family of causal models."""

import pytest
import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from prompting.families import family, looped, numbers
from rankwise.prompting.language_model import Sampling
from rankwise.prompting.shared_prefixes import Group, Request, Scorer, batches, can_share, grouped
from rankwise.prompting.transformers_model import TransformersModel

SHARE = ["llama", "mistral", "mixtral", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "qwen2", "qwen3", "qwen3_moe",
         "gpt2", "gpt_neo", "gpt_neox", "gptj", "opt", "falcon", "stablelm", "olmo2", "olmo3", "cohere2", "gpt_oss",
         "deepseek_v3", "granite", "smollm3", "starcoder2", "llama4_text", "modernbert-decoder", "exaone4"]  # fmt: skip
WHOLE = ["bloom", "mpt", "openai-gpt", "mamba", "falcon_mamba", "jamba", "qwen3_next", "recurrent_gemma", "rwkv",
         "lfm2", "minimax"]  # fmt: skip
AHEAD = ["bert", "roberta", "electra", "xlm", "roformer"]


def text(*numbers):
    return " ".join(map(str, numbers))


def drawn(n, seed):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(3, 99, (n,), generator=g).tolist()


ROOT = drawn(12, 0)  # longer than the windows
PROMPTS = [[*ROOT, *drawn(n, i)] for i, n in enumerate((9, 17, 14), 1)] + [drawn(20, 5), drawn(3, 6)]
GIVEN = [[drawn(1, 10), drawn(3, 11), drawn(5, 12)], [drawn(2, 13), drawn(4, 14)], [drawn(3, 15), drawn(1, 16)],
         [drawn(3, 17)], [drawn(2, 18)]]  # fmt: skip


def served(model, **options):
    return TransformersModel(model, numbers(), batch_size=16, **options)


def check(name):
    model = family(name)
    asked = [text(*p) for p in PROMPTS], [[f" {text(*c)}" for c in given] for given in GIVEN]
    for share in (True, False):
        found = served(model, share_prefixes=share).score(*asked)
        for prompt, given, scores in zip(PROMPTS, GIVEN, found, strict=True):
            for tokens, score in zip(given, scores, strict=True):
                expected = looped(model, [*prompt, *tokens], len(tokens))
                assert score.logprobs == pytest.approx(expected, abs=2e-4), (name, share)
    return model


@pytest.mark.parametrize("name", [*SHARE, *WHOLE])
def test_scores_of_every_family_are_those_of_a_plain_loop(name):
    model = check(name)
    assert can_share(model) == (name in SHARE)
    together = served(model).generate([text(*p) for p in PROMPTS], Sampling(max_new_tokens=4))
    for prompt, found in zip(PROMPTS, together, strict=True):
        ids = list(prompt)
        with torch.no_grad():
            for logprob in found.logprobs:
                logp = model(input_ids=torch.tensor([ids])).logits[0, -1].float().log_softmax(-1)
                assert logprob == pytest.approx(float(logp.max()), abs=1e-3)
                ids.append(int(logp.argmax()))
        assert numbers().convert_tokens_to_ids(list(found.tokens)) == ids[len(prompt) :]


@pytest.mark.parametrize("name", AHEAD)
def test_models_that_read_ahead_are_refused_by_name(name):
    with pytest.raises(ValueError, match="reads ahead"):
        served(family(name)).score(["5 6 7"], [[" 8"]])


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if n not in {*SHARE, *WHOLE, *AHEAD}])
def test_scores_of_all_other_families_that_can_be_built_small(name):
    try:
        model = family(name)
    except ValueError as error:
        pytest.skip(str(error)[:120])
    if Scorer(model, 0).reads_ahead():
        pytest.skip("reads ahead")
    check(name)


def test_half_precision_scores_are_those_of_the_loop_within_its_rounding():
    model = family("gemma2").bfloat16()
    found = served(model).score([text(*p) for p in PROMPTS], [[f" {text(*c)}" for c in g] for g in GIVEN])
    for prompt, given, scores in zip(PROMPTS, GIVEN, found, strict=True):
        for tokens, score in zip(given, scores, strict=True):
            assert score.logprobs == pytest.approx(looped(model, [*prompt, *tokens], len(tokens)), abs=0.25)


def test_prefixes_are_shared_within_a_prompt_and_across_prompts(monkeypatch):
    def request(*ids, scored=2):
        return Request(ids, scored, (0, 0))

    same = [request(*range(20), 90 + j, 95) for j in range(4)]
    alone = request(*range(8), 50, 51, 52)
    groups = grouped([*same, alone], 32)
    assert sorted((g.shared, len(g.requests)) for g in groups) == [(0, 1), (19, 4)]
    assert [len(g.requests) for g in grouped(same, 3)] == [1, 3]

    model, seen = family("llama"), []
    forward = model.forward

    def counted(input_ids, **options):
        seen.append(tuple(input_ids.shape))
        return forward(input_ids=input_ids, **options)

    counted.__signature__ = __import__("inspect").signature(forward)
    local = served(model)
    local.score(["5 6"], [[" 7"]])
    monkeypatch.setattr(model, "forward", counted)
    local.score([text(*p) for p in PROMPTS[:3]], [[" 5", " 6", " 7"]] * 3)
    assert [rows for rows, _ in seen] == [1, 3, 9]  # what all share, what each prompt adds, the continuations
    assert seen[0][1] == len(ROOT)


def test_batches_hold_no_more_than_they_may():
    groups = [Group(0, [Request(tuple(range(n)), 1, (0, 0))]) for n in (3, 4, 5, 6, 7)]
    sizes = [[len(g.requests[0].ids) for g in b] for b in batches(groups, rows=2, tokens=100)]
    assert sizes == [[3, 4], [5, 6], [7]]
    sizes = [[len(g.requests[0].ids) for g in b] for b in batches(groups, rows=9, tokens=16, extra=1)]
    assert sizes == [[3, 4], [5, 6], [7]]
