"""Scores with what prompts share computed once are those of a plain loop, for every family of causal models."""

from types import SimpleNamespace

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from prompting.families import family, looped, numbers
from rankwise.prompting.language_model import Sampling
from rankwise.prompting.shared_prefixes import (
    Group,
    Request,
    Scorer,
    _common,
    _Seen,
    _to_the_right,
    batches,
    by_length,
    can_share,
    grouped,
)
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


def test_a_model_whose_scores_depend_on_how_many_tokens_follow_is_never_padded():
    model = check("prophetnet")
    with torch.no_grad():
        assert Scorer(model, 0).feels_length


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "mamba"])
def test_rounding_is_not_taken_for_a_dependence_on_length(name, dtype):
    with torch.no_grad():
        assert not Scorer(family(name).to(dtype), 0).feels_length


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


def asked(*ids, scored=1, place=(0, 0)):
    return Request(tuple(ids), scored, place)


@hypothesis.given(
    st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=16), min_size=1, max_size=12), st.integers(1, 5)
)
def test_groups_hold_every_request_once_and_share_what_comes_before_all_that_is_scored(lists, size):
    requests = [asked(*ids, scored=1 + i % (len(ids) - 1), place=(i, 0)) for i, ids in enumerate(lists)]
    groups = grouped(requests, size)
    assert sorted(r.place for g in groups for r in g.requests) == sorted(r.place for r in requests)
    for group in groups:
        assert len(group.requests) <= size
        begins = {r.ids[: group.shared] for r in group.requests}
        assert len(begins) == 1
        assert all(group.shared < len(r.ids) - r.scored for r in group.requests)  # what predicts them is computed
        assert group.shared == 0 or (group.shared > 4 and len(group.requests) > 1)
    keys = [(g.shared > 0, len(g.requests[0].ids)) for g in groups]
    assert keys == sorted(keys)


def test_what_is_not_worth_a_pass_of_its_own_is_not_shared():
    for n, shared in ((4, [0, 0]), (5, [5])):
        pair = [asked(*range(n), 50, 60), asked(*range(n), 51, 61)]
        assert [g.shared for g in grouped(pair, 9)] == shared
    # what a group shares is shortened by as much as that, and no more
    for n, sizes in ((9, [1, 2]), (11, [3]), (10, [3])):
        first = [asked(*range(14), 50, 60), asked(*range(14), 51, 61)]
        third = asked(*range(n), 70, 71, 72, 73, 74, 75)
        assert sorted(len(g.requests) for g in grouped([*first, third], 9)) == sizes
    # a request that has more in common with the one behind it waits for that one
    four = [asked(*range(6), 20, 21), asked(*range(6), 30, *range(40, 50), 20, 21),
            asked(*range(6), 30, *range(40, 50), 22, 23)]  # fmt: skip
    assert sorted((g.shared, len(g.requests)) for g in grouped(four, 9)) == [(0, 1), (17, 2)]


def test_the_shortest_come_first_and_those_that_share_nothing_before():
    groups = [Group(3, [asked(*range(5))]), Group(0, [asked(*range(9))]), Group(0, [asked(*range(2))]),
              Group(7, [asked(*range(8))])]  # fmt: skip
    assert [(g.shared, len(g.requests[0].ids)) for g in by_length(groups)] == [(0, 2), (0, 9), (3, 5), (7, 8)]


def test_batches_are_full_to_the_last_token_and_do_not_mix_kinds():
    def sizes(lengths, **limits):
        groups = [Group(s, [asked(*range(n)) for _ in range(k)]) for n, k, s in lengths]
        return [[len(g.requests) for g in b] for b in batches(groups, **limits)]

    assert sizes([(5, 2, 0), (5, 1, 0), (5, 1, 0)], rows=3, tokens=99) == [[2, 1], [1]]
    assert sizes([(5, 2, 0), (5, 2, 0)], rows=3, tokens=99) == [[2], [2]]
    assert sizes([(5, 1, 0), (4, 1, 0), (5, 1, 0)], rows=9, tokens=10) == [[1, 1], [1]]  # padded to the longest
    assert sizes([(5, 1, 0), (4, 1, 0)], rows=9, tokens=9) == [[1], [1]]
    assert sizes([(3, 1, 0), (3, 1, 0)], rows=9, tokens=10, extra=2) == [[1, 1]]
    assert sizes([(3, 1, 0), (3, 1, 0)], rows=9, tokens=10, extra=3) == [[1], [1]]
    assert sizes([(50, 4, 0), (1, 1, 0)], rows=2, tokens=9) == [[4], [1]]  # one that is too large goes alone
    assert sizes([(3, 1, 0), (3, 2, 2), (3, 2, 1), (3, 1, 0)], rows=9, tokens=99) == [[1], [2, 2], [1]]
    assert sizes([], rows=1, tokens=1) == []
    longest = [Group(0, [asked(1), asked(*range(6))]), Group(0, [asked(1)])]
    assert len(list(batches(longest, rows=9, tokens=17))) == 2  # by the longest of a group
    assert len(list(batches(longest, rows=9, tokens=18))) == 1


def test_padding_moves_to_the_left_with_what_the_cache_holds_of_it():
    keys = torch.arange(2 * 1 * 5 * 1).reshape(2, 1, 5, 1).float()
    cache = SimpleNamespace(layers=[SimpleNamespace(keys=keys, values=-keys)])
    seen = _Seen(cache, torch.tensor([[0, 1], [1, 1]]))  # the first row has one token, the second two
    moved = _to_the_right(seen, torch.tensor([3, 1]))  # three and one more, padded on their right
    assert moved.mask.tolist() == [[1, 1, 1, 1], [0, 1, 1, 1]]
    found = moved.cache.layers[0]
    assert found.keys[0, 0, :, 0].tolist() == [1, 2, 3, 4]
    assert found.keys[1, 0, 1:, 0].tolist() == [5, 6, 7]
    assert torch.equal(found.values, -found.keys)


def test_probabilities_are_those_of_the_tokens_asked_for_and_what_is_shared_may_be_chosen():
    model = family("llama")
    requests = [asked(*ROOT, 5, 6, 7, scored=3, place=(0, 0)), asked(*ROOT, 8, scored=1, place=(0, 1))]
    scorer = Scorer(model, 3)
    assert not scorer.reads_ahead()
    for groups in (grouped(requests, 4), [Group(0, requests)], [Group(3, requests)]):
        found = dict(scorer.scored(groups))
        for request in requests:
            assert found[request] == pytest.approx(looped(model, list(request.ids), request.scored), abs=1e-4)


def test_models_share_where_they_keep_keys_and_values_alone():
    model = family("llama")
    assert can_share(model)
    model._is_stateful = True
    assert not can_share(model)
    for forward in (lambda input_ids, cache=None: None, lambda input_ids, position_ids=None: None):
        assert not can_share(SimpleNamespace(forward=forward))


def test_what_is_asked_of_a_model_without_positions_is_continued_by_length(monkeypatch):
    model, seen = served(family("bloom")), []
    continued = model._continued
    monkeypatch.setattr(model, "_continued", lambda b, s: seen.append([len(ids) for ids in b]) or continued(b, s))
    model.generate([text(*drawn(n, n)) for n in (3, 5, 3)], Sampling(max_new_tokens=2))
    assert seen == [[3, 3], [5]]


@pytest.mark.parametrize(
    ("a", "b", "limit", "n"), [((1, 2), (3, 2), 2, 0), ((1, 2, 3), (1, 2, 4), 3, 2), ((1,), (1,), 0, 0)]
)
def test_what_two_prompts_share_is_their_longest_common_beginning(a, b, limit, n):
    assert _common(a, b, limit) == n


def test_a_model_that_cannot_leave_logits_out_is_scored_alike():
    model = family("llama")
    asked = [text(*p) for p in PROMPTS], [[f" {text(*c)}" for c in given] for given in GIVEN]
    expected, forward = served(model).score(*asked), model.forward

    def without(input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, use_cache=None):
        return forward(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids,
            past_key_values=past_key_values, use_cache=use_cache,
        )  # fmt: skip

    model.forward = without
    for mine, whole in zip(served(model).score(*asked), expected, strict=True):
        assert [s.total for s in mine] == pytest.approx([s.total for s in whole], abs=1e-4)
