"""ThinK: the mathematics against loops, a thin cache against a dense one with zeros, and every way a cache is used."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    Cache,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    DiffLlamaConfig,
    DiffLlamaForCausalLM,
    DynamicCache,
    Gemma2Config,
    Gemma2ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
)
from transformers.cache_utils import DynamicSlidingWindowLayer
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward as gemma2_attention

from rankwise.compression import ThinKCache, fitting_ratio, planned_bytes, thinking
from rankwise.compression.thin.attention import attend
from rankwise.compression.thin.layer import ThinKLayer
from rankwise.compression.thin.rows import GROUP, HeldRows, packed, quantised, unpacked
from rankwise.compression.thin.scores import (
    attention_of,
    channel_scores,
    filled,
    kept,
    picked,
    snapkv,
    value_scores,
)

WINDOW, RECENT = 6, 5  # of the tests, so that short prompts are long
SHORT = {"window": WINDOW, "recent": RECENT}
SIZES = {"vocab_size": 60, "intermediate_size": 32, "num_hidden_layers": 2, "pad_token_id": 0}


def sizes(heads=4, groups=2, head_dim=8):
    return {
        **SIZES, "num_attention_heads": heads, "num_key_value_heads": groups, "head_dim": head_dim,
        "hidden_size": heads * head_dim,
    }  # fmt: skip


MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**sizes())),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**sizes(heads=4, groups=1, head_dim=12))),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**{k: v for k, v in sizes().items() if k != "head_dim"})),
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(**sizes(head_dim=8), sliding_window=16, attn_logit_softcapping=2.0, final_logit_softcapping=None)
    ),
}


def made(name="llama", attention="think", dtype=torch.float32):
    torch.manual_seed(0)
    model = MODELS[name]().eval().to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 2:
                p.mul_(6)  # attention that matters
    model.generation_config.pad_token_id = 0
    if attention:
        model.set_attn_implementation(attention)
    return model


@pytest.fixture
def llama():
    return made()


def prompt(batch=1, length=40, seed=1):
    return torch.randint(1, 60, (batch, length), generator=torch.Generator().manual_seed(seed))


def decoded(model, ids, cache, n=12, **options):
    return model.generate(ids, cache=cache, max_new_tokens=n, min_new_tokens=n, do_sample=False, **options)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# -- oracles


def seen(model, ids, mask=None):
    """Queries, keys and values after RoPE of every layer, as stock attention is given them."""
    base = model.config._attn_implementation if "eager" in model.config._attn_implementation else "sdpa"
    found, stock = [], gemma2_attention if base == "eager" else AttentionInterface()["sdpa"]

    def spy(module, query, key, value, attention_mask, **kwargs):
        found.append((query.clone(), key.clone(), value.clone()))
        return stock(module, query, key, value, attention_mask, **kwargs)

    AttentionInterface.register("spy", spy)
    AttentionMaskInterface.register("spy", AttentionMaskInterface()[base])
    before = model.config._attn_implementation
    model.set_attn_implementation("spy")
    with torch.no_grad():
        model(ids, attention_mask=mask)
    model.set_attn_implementation(before)
    return found


def brute_scores(Q, K, rows, valid=None):
    """‖Q_c K_cᵀ‖_F² summed over a group's query heads, by outer products of single columns."""
    batch, heads, _, dim = K.shape
    group = Q.shape[1] // heads
    out = torch.zeros(batch, heads, dim, dtype=torch.float64)
    for b, h, c in itertools.product(range(batch), range(heads), range(dim)):
        real = [i for i in range(K.shape[2]) if valid is None or valid[b, i]]
        late = [i for i in real if i >= K.shape[2] - WINDOW]
        k = K[b, h, [i for i in real if i < rows], c].double()
        for g in range(group):
            q = Q[b, h * group + g, late, c].double()
            out[b, h, c] += torch.outer(q, k).square().sum()
    return out


def zeroed(model, ids, ratio, rows=None, mask=None):
    """A stock cache of the prompt in which the channels that ThinK drops are zero, chosen by `brute_scores`."""
    cache, L = DynamicCache(config=model.config), ids.shape[1]
    tensors = seen(model, ids, mask)
    model(ids, cache=cache, attention_mask=mask)
    for layer, (Q, K, _) in zip(cache.layers, tensors, strict=True):
        scores = brute_scores(Q, K, L - RECENT if rows is None else rows, mask)
        drop = int(K.shape[-1] * ratio)
        for b, h in itertools.product(range(K.shape[0]), range(K.shape[1])):
            layer.keys[b, h, : L - RECENT, scores[b, h].argsort()[:drop]] = 0
    return cache


# -- the mathematics


def test_scores_are_squared_norms_of_rank_one_products_of_the_group():
    Q, K = random(2, 6, WINDOW, 5), random(2, 3, 30, 5, seed=1)
    found = channel_scores(Q, K).double() * (2 * WINDOW * 30)  # means, not sums
    right = brute_scores(torch.cat([torch.zeros(2, 6, 24, 5), Q], 2), K, 30)
    torch.testing.assert_close(found, right, rtol=1e-5, atol=0)


def test_padding_counts_neither_among_queries_nor_among_keys():
    Q, K = random(1, 2, 4, 6), random(1, 1, 9, 6, seed=1)
    padded_q = torch.cat([torch.full((1, 2, 3, 6), math.nan), Q], 2)
    padded_k = torch.cat([torch.full((1, 1, 5, 6), 1e9), K], 2)
    queries, keys = torch.arange(7)[None] >= 3, torch.arange(14)[None, None] >= 5
    torch.testing.assert_close(channel_scores(padded_q, padded_k, queries=queries, keys=keys), channel_scores(Q, K))


def test_what_is_kept_leaves_the_least_sum_of_dropped_scores_of_all_choices():
    scores = random(4, 6).square()
    for ratio in (0.2, 0.5, 0.84):
        drop = int(6 * ratio)
        for row, chosen in zip(scores, kept(scores, ratio), strict=True):
            dropped = sorted(set(range(6)) - set(chosen.tolist()))
            best = min(sum(row[list(c)]) for c in itertools.combinations(range(6), drop))
            assert sum(row[dropped]) == best
            assert chosen.tolist() == sorted(chosen.tolist())
            assert len(chosen) == 6 - drop


@pytest.mark.parametrize("dim", [1, 8, 64, 96])
def test_any_ratio_below_one_leaves_a_channel(dim):
    assert kept(random(dim), 1 - 2**-53).shape == (1,)


def test_query_heads_that_are_copies_change_no_choice():
    Q, K = random(1, 2, WINDOW, 8), random(1, 2, 20, 8, seed=1)
    twice = Q.repeat_interleave(3, 1)
    torch.testing.assert_close(channel_scores(twice, K), channel_scores(Q, K))
    assert kept(channel_scores(twice, K), 0.5).equal(kept(channel_scores(Q, K), 0.5))


def test_scores_of_all_rows_choose_as_the_press_that_zeroes():
    Q, K = random(2, 4, WINDOW, 16), random(2, 2, 50, 16, seed=1)
    norms = K.pow(2).mean(-2) * Q.pow(2).mean(-2).view(2, 2, 2, 16).mean(2)
    dropped = norms.topk(int(16 * 0.4), largest=False).indices
    for b, h in itertools.product(range(2), range(2)):
        both = kept(channel_scores(Q, K), 0.4)[b, h].tolist() + dropped[b, h].tolist()
        assert sorted(both) == list(range(16))


def test_attention_of_the_window_is_causal_softmax_averaged_over_the_group():
    Q, K = random(1, 4, 3, 8), random(1, 2, 7, 8, seed=1)
    P = attention_of(Q, K, scaling=0.3)
    for h, w in itertools.product(range(2), range(3)):
        rows = 7 - 3 + w + 1
        one = torch.stack([(K[0, h, :rows] @ Q[0, 2 * h + g, w] * 0.3).softmax(0) for g in range(2)]).mean(0)
        torch.testing.assert_close(P[0, h, w], F.pad(one, (0, 7 - rows)))
    capped = attention_of(Q, K, scaling=0.3, softcap=0.5)[0, 0, 2]
    both = [(0.5 * torch.tanh(K[0, 0] @ Q[0, g, 2] * 0.3 / 0.5)).softmax(0) for g in range(2)]
    torch.testing.assert_close(capped, torch.stack(both).mean(0))


def test_attention_of_the_window_gives_padding_nothing():
    Q, K = random(1, 1, 4, 8), random(1, 1, 9, 8, seed=1)
    valid = torch.arange(9)[None] >= 6
    P = attention_of(Q, K, scaling=None, valid=valid)[0, 0]
    assert P[:, :6].eq(0).all()
    assert P[0].eq(0).all()  # position 5 is padding
    torch.testing.assert_close(P[3, 6:], (K[0, 0, 6:] @ Q[0, 0, 3] / 8**0.5).softmax(0))


def test_value_scores_are_norms_of_what_the_window_reads():
    P, V = random(2, 2, 3, 7).softmax(-1), random(2, 2, 7, 5, seed=1)
    valid = (torch.arange(7) >= 2).expand(2, 2, 7)
    for b, h, c in itertools.product(range(2), range(2), range(5)):
        one = sum((P[b, h, w] * V[b, h, :, c]).sum() ** 2 for w in range(3))
        torch.testing.assert_close(value_scores(P, V)[b, h, c], one)
        late = sum((P[b, h, w, 2:] * V[b, h, 2:, c]).sum() ** 2 for w in range(3))
        torch.testing.assert_close(value_scores(P, V, valid)[b, h, c], late)


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_snapkv_keeps_the_window_and_the_tokens_with_most_pooled_attention(pooling):
    P = random(1, 2, 4, 20).softmax(-1)
    at = snapkv(P, 9, pooling=pooling, kernel=3)
    for h in range(2):
        votes = [float(P[0, h, :, i].sum()) for i in range(16)]
        around = [[votes[j] if 0 <= j < 16 else None for j in (i - 1, i, i + 1)] for i in range(16)]
        if pooling == "mean":
            pooled = [sum(v or 0 for v in near) / 3 for near in around]
        else:
            pooled = [max(v for v in near if v is not None) for near in around]
        found = at[0, h].tolist()
        assert found == sorted(set(found))
        assert found[5:] == [16, 17, 18, 19]
        assert sum(pooled[i] for i in found[:5]) == pytest.approx(sum(sorted(pooled)[-5:]))  # equal ones: any of them


def test_channels_that_are_picked_come_back_to_their_places():
    x, channels = random(2, 2, 4, 6), torch.tensor([[[0, 2, 5], [1, 2, 3]], [[3, 4, 5], [0, 1, 5]]])
    back = filled(picked(x, channels), channels, 6)
    for b, h, c in itertools.product(range(2), range(2), range(6)):
        assert back[b, h, :, c].equal(x[b, h, :, c] if c in channels[b, h] else torch.zeros(4))


@pytest.mark.parametrize("mask", ["none", "bool", "added", "heads"])
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_attention_over_two_parts_is_attention_over_their_rows_with_zeros(mask, softcap):
    K, V, Q = random(2, 2, 9, 6), random(2, 2, 9, 4, seed=1), random(2, 4, 3, 6, seed=2)
    kc, vc = kept(random(2, 2, 6, seed=3), 0.5), kept(random(2, 2, 4, seed=4), 0.25)
    K[:, :, :5], V[:, :, :5] = filled(picked(K[:, :, :5], kc), kc, 6), filled(picked(V[:, :, :5], vc), vc, 4)
    parts = [(picked(K[:, :, :5], kc), picked(V[:, :, :5], vc), kc, vc), (K[:, :, 5:], V[:, :, 5:], None, None)]
    seen_rows = torch.ones(3, 9, dtype=torch.bool).tril(6).expand(2, 4, 3, 9).clone()
    if mask != "none":
        seen_rows[0, :, :, :2] = False
    if mask == "heads":
        seen_rows[1, 3, :, 4] = False
    given = {"none": None, "bool": seen_rows[:, :1], "heads": seen_rows}.get(mask)
    if mask == "added":
        given = torch.where(seen_rows[:, :1], 0.0, -torch.inf)
    wide = K.repeat_interleave(2, 1), V.repeat_interleave(2, 1)
    logits = Q @ wide[0].mT * 0.4
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    right = logits.masked_fill(~seen_rows, -torch.inf).softmax(-1) @ wide[1]
    torch.testing.assert_close(attend(Q, parts, given, scaling=0.4, softcap=softcap), right.transpose(1, 2))


def test_softmax_is_computed_in_float32_in_a_bf16_model():
    K, V, Q = (random(1, 1, n, 64, seed=n).bfloat16() for n in (600, 601, 1))
    V = V[:, :, :600]
    found = attend(Q, [(K, V, None, None)], None, scaling=0.3)[0, 0, 0].float()
    logits = (Q @ K.mT).float() * 0.3
    right = (logits.softmax(-1).bfloat16() @ V)[0, 0, 0].float()
    low = ((logits.bfloat16().softmax(-1)) @ V)[0, 0, 0].float()
    assert found.equal(right)
    assert not found.equal(low)


def test_the_scaling_is_that_of_all_channels():
    """In `attend` above it is given; a thin layer must not fall back to the number of channels kept."""
    Q, K = random(1, 1, 1, 8), random(1, 1, 5, 8, seed=1)
    channels = torch.tensor([[[0, 3]]])
    V = random(1, 1, 5, 8, seed=2)
    found = attend(Q, [(picked(K, channels), V, channels, None)], None)
    right = (Q @ filled(picked(K, channels), channels, 8).mT / 8**0.5).softmax(-1) @ V
    torch.testing.assert_close(found[:, 0], right[:, :, 0])


# -- rows that are held


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dim", [2, -1])
def test_quantised_numbers_are_at_most_half_a_step_away_and_ends_are_met(bits, dim):
    x = random(2, 2, 12, 7) * 5 + 3
    codes, step, low = quantised(x, bits, dim=dim)
    back = codes * step + low
    assert codes.dtype == torch.uint8
    assert codes.max() == 2**bits - 1
    assert ((x - back).abs() <= step / 2 + 1e-5).all()
    torch.testing.assert_close(step, (x.amax(dim, keepdim=True) - x.amin(dim, keepdim=True)) / (2**bits - 1))


def test_constant_rows_are_held_exactly():
    codes, step, low = quantised(torch.full((1, 1, 4, 3), 2.5), 4, dim=-1)
    assert (codes * step + low).eq(2.5).all()


@pytest.mark.parametrize("width", [6, 7])
def test_numbers_of_four_bits_are_two_a_byte(width):
    codes = torch.randint(16, (3, width), dtype=torch.uint8)
    assert packed(codes).shape == (3, (width + 1) // 2)
    assert unpacked(packed(codes), width).equal(codes)


@pytest.mark.parametrize("bits", [None, 8, 4])
@pytest.mark.parametrize("shared", ["rows", "channels"])
def test_rows_can_be_added_and_dropped(bits, shared):
    x = random(2, 3, 3 * GROUP, 5)
    held = HeldRows(x[:, :, : 2 * GROUP], bits=bits, shared=shared)
    held.add(x[:, :, 2 * GROUP :])
    near = {None: 0.0, 8: 0.02, 4: 0.4}[bits]
    assert len(held) == 3 * GROUP
    assert (held.read() - x).abs().max() <= near
    all_rows = held.read().clone()
    left = held.drop_last(3)
    assert len(held) + left.shape[2] == 3 * GROUP - 3
    assert torch.cat([held.read(), left], 2).equal(all_rows[:, :, : 3 * GROUP - 3])
    assert (left.shape[2] > 0) == (bits is not None and shared == "rows")


def test_keys_share_a_scale_by_channel_and_values_by_row():
    x = torch.ones(1, 1, GROUP, 4) * torch.tensor([1.0, 1.0, 1.0, 1000.0]) * (1 + random(1, 1, GROUP, 1) / 9)
    by_channel = HeldRows(x, bits=8, shared="rows").read()
    assert ((by_channel - x).abs() / x).max() < 0.01
    assert ((HeldRows(x.mT, bits=8, shared="channels").read() - x.mT).abs() / x.mT).max() < 0.01


# -- a cache


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("mode", ["fused", "storage"])
def test_a_thin_cache_gives_the_logits_of_a_dense_one_with_zeros(name, mode):
    model = made(name)
    ids, more = prompt(2, 40), prompt(2, 3, seed=2)
    if name == "gemma2":
        model.set_attn_implementation("eager")  # its softcap, in the oracle
        dense = zeroed_full_layers(model, ids)
    else:
        dense = zeroed(model, ids, 0.4)
    right = [model(more[:, i : i + 1], cache=dense).logits for i in range(3)]
    with thinking(model):
        cache = ThinKCache(model.config, **SHORT, mode=mode, block=None)
        model(ids, cache=cache)
        found = [model(more[:, i : i + 1], cache=cache).logits for i in range(3)]
    torch.testing.assert_close(torch.cat(found), torch.cat(right), atol=2e-4, rtol=2e-4)


def zeroed_full_layers(model, ids):
    cache = zeroed(model, ids, 0.4)
    plain = DynamicCache(config=model.config)
    model(ids, cache=plain)
    for i, layer in enumerate(plain.layers):
        if layer.is_sliding:
            cache.layers[i] = layer
    return cache


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2"])
def test_ratio_zero_is_the_stock_cache(name):
    model, ids = made(name, None), prompt(2, 30)
    model.set_attn_implementation("eager" if name == "gemma2" else "sdpa")
    stock, cache, fused = (
        DynamicCache(config=model.config),
        *(ThinKCache(model.config, 0.0, **SHORT, mode=m, block=3) for m in ("storage", "fused")),
    )
    for i in range(12):
        tokens = ids if i == 0 else prompt(2, 1, seed=i)
        right = model(tokens, cache=stock).logits
        with thinking(model):
            assert model(tokens, cache=cache).logits.equal(right)
            torch.testing.assert_close(model(tokens, cache=fused).logits, right, atol=1e-4, rtol=1e-4)
    assert all(layer.is_thin for layer in fused.layers if isinstance(layer, ThinKLayer))


def test_the_prompt_itself_is_read_with_whole_keys(llama):
    ids = prompt(2)
    found = llama(ids, cache=ThinKCache(llama.config, 0.9, **SHORT)).logits
    llama.set_attn_implementation("sdpa")
    assert found.equal(llama(ids).logits)


def test_recent_tokens_stay_whole_and_the_others_are_thin(llama):
    ids = prompt(2)
    cache = ThinKCache(llama.config, 0.4, **SHORT)
    llama(ids, cache=cache)
    for layer, (_, K, V) in zip(cache.layers, seen(llama, ids), strict=True):
        assert len(layer.old_keys) == 40 - RECENT
        assert layer.old_keys.read().shape == (2, 2, 40 - RECENT, 8 - 3)
        assert layer.keys.equal(K[:, :, -RECENT:])
        assert layer.values.equal(V[:, :, -RECENT:])
        assert layer.old_values.read().equal(V[:, :, :-RECENT])


@pytest.mark.parametrize("rows", ["thinned", "all"])
def test_the_channels_are_those_of_the_brute_force(llama, rows):
    ids = prompt(2)
    cache = ThinKCache(llama.config, 0.5, **SHORT, score_rows=rows)
    llama(ids, cache=cache)
    differ = 0
    for layer, (Q, K, _) in zip(cache.layers, seen(llama, ids), strict=True):
        scores = brute_scores(Q, K, 40 if rows == "all" else 40 - RECENT)
        assert layer.channels.equal(scores.topk(4).indices.sort(-1).values)
        other = brute_scores(Q, K, 40 - RECENT if rows == "all" else 40)
        differ += int((layer.channels != other.topk(4).indices.sort(-1).values).sum())
    assert differ or rows == "all"  # the two ways are not the same here


def test_bytes_are_those_of_the_formula_and_of_the_plan(llama):
    ids, dtype = prompt(3, 50), 4
    for options in ({}, {"ratio": 0.6, "value_ratio": 0.3}, {"bits": 8}, {"bits": 4}, {"budget": 20}):
        cache = ThinKCache(llama.config, **{**SHORT, **options})
        llama(ids, cache=cache)
        planned = {k: v for k, v in options.items() if k != "window"}
        assert cache.bytes() == planned_bytes(llama.config, tokens=50, batch=3, recent=RECENT, **planned)
    k, indices = 8 - int(0.4 * 8), 8 * 5
    keys, values = (50 - RECENT) * k + RECENT * 8, 50 * 8
    assert planned_bytes(llama.config, tokens=50, recent=RECENT) == 2 * (2 * ((keys + values) * dtype + indices) + 8)


def test_bytes_count_a_storage_once_and_whole():
    layer = ThinKLayer(ThinKCache(made("llama").config).settings)
    big = torch.zeros(100)
    layer.keys, layer.values = big[:10], big[10:20]
    cache = ThinKCache(made("llama").config)
    cache.layers = [layer]
    assert cache.bytes() == 400


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_bytes_fall_below_those_of_the_stock_cache(name):
    model, ids = made(name), prompt(1, 400)
    cache, stock = ThinKCache(model.config), DynamicCache(config=model.config)
    model(ids, cache=cache)
    model(ids, cache=stock)
    dense = sum(x.untyped_storage().nbytes() for layer in stock.layers for x in (layer.keys, layer.values))
    assert cache.bytes() < 0.85 * dense


def test_bytes_of_a_sliding_layer_are_planned_too():
    model = made("gemma2")
    cache = ThinKCache(model.config, **SHORT)
    model(prompt(1, 40), cache=cache)
    kept_alive = sum(x.untyped_storage().nbytes() - x.nbytes for x in (cache.layers[0].keys, cache.layers[0].values))
    told = cache.bytes() - kept_alive - 8  # views of transformers' sliding layer, and its window as a tensor
    assert told == planned_bytes(model.config, tokens=40, recent=RECENT)


def test_sliding_layers_are_left_alone():
    model, ids = made("gemma2"), prompt(1, 30)
    cache, stock = ThinKCache(model.config, **SHORT), DynamicCache(config=model.config)
    with thinking(model):
        model(ids, cache=cache)
    model(ids, cache=stock)
    kinds = [type(layer) for layer in cache.layers]
    assert kinds == [DynamicSlidingWindowLayer, ThinKLayer]
    assert cache.layers[0].keys.equal(stock.layers[0].keys)


@pytest.mark.parametrize("length", [1, RECENT, WINDOW + RECENT - 1])
def test_a_prompt_shorter_than_window_and_recent_is_not_thinned(llama, length):
    ids = prompt(1, length)
    cache = ThinKCache(llama.config, 0.6, **SHORT, block=None)
    found = decoded(llama, ids, cache, n=20)
    assert not any(layer.is_thin for layer in cache.layers)
    llama.set_attn_implementation("sdpa")
    assert found.equal(decoded(llama, ids, DynamicCache(config=llama.config), n=20))


def test_a_short_prompt_is_thinned_when_it_has_grown_by_the_queries_seen_since(llama):
    ids = prompt(1, 4)
    cache = ThinKCache(llama.config, 0.5, **SHORT, block=4)
    tokens = decoded(llama, ids, cache, n=WINDOW + RECENT - 4 + 1)
    assert all(layer.is_thin for layer in cache.layers)
    (Q, K, _), *_ = seen(llama, tokens[:, :-1])
    right = brute_scores(Q, K, K.shape[2] - RECENT).topk(4).indices.sort(-1).values
    assert cache.layers[0].channels.equal(right)


def test_what_leaves_the_recent_part_is_thinned_with_the_first_channels(llama):
    ids = prompt(2)
    cache = ThinKCache(llama.config, 0.5, **SHORT, block=4)
    llama(ids, cache=cache)
    first = [layer.channels.clone() for layer in cache.layers]
    rows = []
    for i in range(9):
        llama(prompt(2, 1, seed=i), cache=cache)
        rows.append((len(cache.layers[0].old_keys), cache.layers[0].keys.shape[2]))
    old = 40 - RECENT
    assert rows == [
        (old, 6),
        (old, 7),
        (old, 8),
        (old + 4, 5),
        *[(old + 4, n) for n in (6, 7, 8)],
        (old + 8, 5),
        (old + 8, 6),
    ]
    more = torch.cat([ids, *[prompt(2, 1, seed=i) for i in range(9)]], 1)
    cache = ThinKCache(llama.config, 0.5, **SHORT, block=4)
    llama(ids, cache=cache)
    llama(more[:, 40:44], cache=cache)
    for layer, channels, (_, K, _) in zip(cache.layers, first, seen(llama, more), strict=True):
        assert layer.channels.equal(channels)
        if layer is cache.layers[0]:  # deeper layers have read thin keys
            torch.testing.assert_close(layer.old_keys.read(), picked(K[:, :, : old + 4], channels))


def test_fused_and_storage_are_the_same_in_every_composition(llama):
    ids, mask = prompt(2, 60), torch.ones(2, 60, dtype=torch.long)
    mask[1, :9] = 0
    for options in (
        {"ratio": 0.6, "value_ratio": 0.4}, {"budget": 20}, {"budget": 40, "pooling": "max", "bits": 8, "block": 32},
        {"bits": 4, "value_ratio": 0.2, "block": 32}, {"score_rows": "all", "block": 3},
    ):  # fmt: skip
        found = []
        for mode in ("fused", "storage"):
            cache = ThinKCache(llama.config, **{**SHORT, **options}, mode=mode)
            llama(ids, cache=cache, attention_mask=mask)
            full = torch.cat([mask, torch.ones(2, 5, dtype=torch.long)], 1)
            found.append([llama(prompt(2, 5, seed=3), cache=cache, attention_mask=full).logits])
            for i in range(36):
                full = torch.cat([full, torch.ones(2, 1, dtype=torch.long)], 1)
                found[-1].append(llama(prompt(2, 1, seed=i), cache=cache, attention_mask=full).logits)
        torch.testing.assert_close(torch.cat(found[0], 1), torch.cat(found[1], 1), atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2"])
@pytest.mark.parametrize("options", [{}, {"value_ratio": 0.5}, {"budget": 16, "ratio": 0.5}, {"bits": 8}])
def test_a_left_padded_batch_is_its_rows_one_by_one(name, options):
    model = made(name)
    rows = [prompt(1, n, seed=n) for n in (40, 31, 20)]
    padded = torch.cat([F.pad(r, (40 - r.shape[1], 0)) for r in rows])
    together = decoded(
        model, padded, ThinKCache(model.config, **{**SHORT, **options}, block=None), attention_mask=padded.ne(0).long()
    )
    if options.get("bits"):  # groups of 32 rows fall elsewhere
        rows = rows[:1]
    for row, line in zip(rows, together, strict=False):
        alone = decoded(model, row, ThinKCache(model.config, **{**SHORT, **options}, block=None))
        assert line[40:].equal(alone[0, row.shape[1] :])


def test_a_row_of_padding_alone_in_the_window_is_refused(llama):
    ids = prompt(2, 40)
    mask = torch.ones(2, 40, dtype=torch.long)
    mask[1, 20:] = 0
    with pytest.raises(ValueError, match=r"row 1 has no token among the last 6: pad prompts on the left"):
        llama(ids, attention_mask=mask, cache=ThinKCache(llama.config, **SHORT))


def test_generate_takes_it_by_its_new_and_its_old_name(llama):
    ids = prompt(2)
    with pytest.warns(FutureWarning, match="past_key_values"):
        old = llama.generate(
            ids, past_key_values=ThinKCache(llama.config, **SHORT), max_new_tokens=8, min_new_tokens=8, do_sample=False
        )
    assert old.equal(decoded(llama, ids, ThinKCache(llama.config, **SHORT), n=8))
    assert isinstance(ThinKCache(llama.config), Cache)


def test_beams_with_ratio_zero_are_those_of_the_stock_cache(llama):
    ids = prompt(2)
    options = {"num_beams": 3, "n": 14}
    found = decoded(llama, ids, ThinKCache(llama.config, 0.0, **SHORT, block=4), **options)
    llama.set_attn_implementation("sdpa")
    assert found.equal(decoded(llama, ids, DynamicCache(config=llama.config), **options))


@pytest.mark.parametrize("options", [{}, {"bits": 4, "block": 32}, {"budget": 16}, {"value_ratio": 0.5}])
def test_rows_of_the_batch_are_reordered_repeated_and_selected_as_wholes(llama, options):
    ids = torch.cat([prompt(1, 45, seed=s) for s in (1, 2, 3)])

    def cache_of(rows):
        cache = ThinKCache(llama.config, 0.5, **{**SHORT, **options})
        llama(rows, cache=cache)
        return cache

    def logits(cache, n):
        return llama(prompt(1, 1, seed=9).expand(n, 1), cache=cache).logits

    for change, rows in (
        (lambda c: c.reorder_cache(torch.tensor([2, 0, 0])), [2, 0, 0]),
        (lambda c: c.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
        (lambda c: c.batch_select_indices(torch.tensor([1])), [1]),
    ):
        cache = cache_of(ids)
        change(cache)
        torch.testing.assert_close(
            logits(cache, len(rows)), logits(cache_of(ids[rows]), len(rows)), atol=1e-4, rtol=1e-4
        )


def test_a_cache_that_waits_is_reordered_with_its_queries(llama):
    ids = torch.cat([prompt(1, 40, seed=s) for s in (1, 2)])
    found = []
    for rows, swap in ((ids, True), (ids[[1, 0]], False)):
        cache = ThinKCache(llama.config, **SHORT, prompt=44)
        llama(rows, cache=cache)
        if swap:
            cache.reorder_cache(torch.tensor([1, 0]))
        llama(prompt(2, 4, seed=5), cache=cache)
        found.append(cache.layers[1].channels)
    assert found[0].equal(found[1])


@pytest.mark.parametrize("n", [2, RECENT, RECENT + 3, 20])
@pytest.mark.parametrize("options", [{}, {"bits": 8}, {"value_ratio": 0.4}])
def test_crop_leaves_the_rows_before_as_they_are_across_the_border(llama, n, options):
    ids = prompt(2, 45)
    cache = ThinKCache(llama.config, 0.5, **SHORT, block=None, **options)
    llama(ids, cache=cache)
    before = [layer.whole() for layer in cache.layers]
    cache.crop(-n)
    assert cache.get_seq_length() == 45 - n
    for layer, (K, V) in zip(cache.layers, before, strict=True):
        keys, values = layer.whole()
        assert keys.equal(K[:, :, : 45 - n])
        assert values.equal(V[:, :, : 45 - n])
    assert llama(prompt(2, 1), cache=cache).logits.isfinite().all()
    assert cache.get_seq_length() == 46 - n


def test_crop_frees_what_it_removes(llama):
    cache = ThinKCache(llama.config, 0.5, **SHORT)
    llama(prompt(1, 60), cache=cache)
    before = cache.bytes()
    cache.crop(-30)
    assert cache.bytes() < 0.6 * before


def test_crop_to_nothing_and_by_nothing(llama):
    cache = ThinKCache(llama.config, **SHORT)
    cache.crop(-3)
    llama(prompt(), cache=cache)
    cache.crop(0)
    assert cache.get_seq_length() == 40
    cache.crop(-40)
    assert cache.get_seq_length() == 0


def test_crop_of_a_positive_number_is_refused(llama):
    cache = ThinKCache(llama.config)
    llama(prompt(), cache=cache)
    with pytest.raises(ValueError, match=r"crop\(3\)"):
        cache.crop(3)


def test_crop_under_eviction_reaches_as_far_as_the_window(llama):
    cache = ThinKCache(llama.config, **SHORT, budget=20)
    llama(prompt(), cache=cache)
    cache.crop(-WINDOW)
    assert llama(prompt(1, 1), cache=cache).logits.isfinite().all()
    with pytest.raises(ValueError, match="SnapKV"):
        cache.crop(-10)


def test_assisted_decoding_is_greedy_decoding(llama):
    """Channels are chosen when drafts have been taken back, so that they do not count."""
    torch.manual_seed(5)
    ids, draft = prompt(1, 50), made("llama", "sdpa")
    with torch.no_grad():
        for p in draft.parameters():
            p.add_(0.01 * torch.randn_like(p))  # right now and then
    alone = decoded(llama, ids, ThinKCache(llama.config, 0.5, **SHORT, block=None), n=20)
    cache = ThinKCache(llama.config, 0.5, **SHORT, block=None)
    assert decoded(llama, ids, cache, n=20, assistant_model=draft).equal(alone)
    assert all(layer.is_thin for layer in cache.layers)
    looked_up = ThinKCache(llama.config, 0.5, **SHORT, block=None)
    assert decoded(llama, ids, looked_up, n=20, prompt_lookup_num_tokens=3).equal(alone)


def test_a_prompt_in_chunks_is_the_whole_prompt(llama):
    ids = prompt(2, 50)
    whole = decoded(llama, ids, ThinKCache(llama.config, **SHORT))
    cache = ThinKCache(llama.config, **SHORT, prompt=50)
    assert decoded(llama, ids, cache, prefill_chunk_size=16).equal(whole)
    unsaid = ThinKCache(llama.config, **SHORT)
    for chunk in ids.split(16, 1):
        llama(chunk, cache=unsaid)
    assert unsaid.get_seq_length() == 50
    assert all(layer.is_thin for layer in unsaid.layers)


def test_a_second_turn_reads_the_thin_past(llama):
    ids, turn = prompt(2), prompt(2, 7, seed=4)
    dense = zeroed(llama, ids, 0.4)
    llama.set_attn_implementation("sdpa")
    right = llama(turn, cache=dense).logits
    llama.set_attn_implementation("think")
    cache = ThinKCache(llama.config, **SHORT)
    llama(ids, cache=cache)
    torch.testing.assert_close(llama(turn, cache=cache).logits, right, atol=1e-4, rtol=1e-4)


def test_reset_scores_the_next_prompt_anew(llama):
    first, second = prompt(2), prompt(1, 30, seed=7)
    cache, fresh = ThinKCache(llama.config, **SHORT), ThinKCache(llama.config, **SHORT)
    llama(first, cache=cache)
    cache.reset()
    assert cache.bytes() == 0
    assert cache.get_seq_length() == 0
    assert decoded(llama, second, cache).equal(decoded(llama, second, fresh))
    assert cache.layers[0].channels.equal(fresh.layers[0].channels)


def test_update_without_the_keywords_of_attention_gives_whole_keys():
    layer = ThinKLayer(ThinKCache(made("llama").config, **SHORT).settings)
    K, V = random(2, 2, 30, 8), random(2, 2, 30, 8, seed=1)
    with pytest.warns(UserWarning, match="tells its cache nothing"):
        layer.update(K[:, :, :20], V[:, :, :20])
    with pytest.warns(UserWarning, match="its keys stay whole"):
        keys, values = layer.update(K[:, :, 20:], V[:, :, 20:])
    assert keys.equal(K)
    assert values.equal(V)
    assert layer.get_seq_length() == 30
    assert layer.get_mask_sizes(4) == (34, 0)
    assert layer.get_max_length() == -1


@pytest.mark.parametrize("name", ["llama", "qwen2", "phi3"])
def test_bf16_models_are_served(name):
    model, ids = made(name, dtype=torch.bfloat16), prompt(2, 60)
    cache = ThinKCache(model.config, 0.4, **SHORT)
    assert decoded(model, ids, cache).shape == (2, 72)
    assert cache.layers[0].old_keys.read().dtype == torch.bfloat16
    cache.reset()
    model(ids, cache=cache)
    if name != "phi3":
        assert cache.bytes() == planned_bytes(model.config, tokens=60, batch=2, recent=RECENT, dtype=torch.bfloat16)


def test_eviction_keeps_the_positions_of_the_tokens_that_are_left(llama):
    ids = prompt(2, 40)
    cache = ThinKCache(llama.config, 0.0, **SHORT, budget=16, block=None, mode="storage")
    llama(ids, cache=cache)
    for layer, (Q, K, _) in zip(cache.layers, seen(llama, ids), strict=True):
        at = snapkv(attention_of(Q[:, :, -WINDOW:], K, scaling=8**-0.5), 16)
        assert layer.positions.equal(at.int())
        right = torch.stack([torch.stack([K[b, h, at[b, h]] for h in range(2)]) for b in range(2)])
        assert layer.whole()[0].equal(right)
    llama(prompt(2, 1), cache=cache)
    assert cache.layers[0].positions[..., -1].eq(40).all()
    assert cache.get_seq_length() == 41


def test_eviction_leaves_attention_over_the_rows_kept(llama):
    """A stock cache in which the evicted rows are masked away by hand, head by head, in one layer's attention."""
    ids, nxt = prompt(1, 40), prompt(1, 1, seed=3)
    cache = ThinKCache(llama.config, 0.0, **SHORT, budget=16, block=None)
    llama(ids, cache=cache)
    at = [layer.positions.clone() for layer in cache.layers]
    found = llama(nxt, cache=cache).logits
    stock = AttentionInterface()["sdpa"]

    def masked(module, query, key, value, attention_mask, **kwargs):
        if query.shape[2] == 1:
            keep = torch.zeros(1, 4, 1, 41, dtype=torch.bool)
            for h in range(4):
                keep[0, h, 0, at[module.layer_idx][0, h // 2].long()] = True
            keep[..., 40] = True
            attention_mask = keep
        return stock(module, query, key, value, attention_mask, **kwargs)

    AttentionInterface.register("masked", masked)
    AttentionMaskInterface.register("masked", AttentionMaskInterface()["sdpa"])
    llama.set_attn_implementation("masked")
    dense = DynamicCache(config=llama.config)
    llama(ids, cache=dense)
    torch.testing.assert_close(found, llama(nxt, cache=dense).logits, atol=1e-4, rtol=1e-4)


# -- bytes as the wish


def test_the_ratio_that_fits_is_the_smallest(llama):
    for wanted in (planned_bytes(llama.config, tokens=200, ratio=r / 8) + 7 for r in range(8)):
        ratio = fitting_ratio(llama.config, tokens=200, bytes=wanted)
        assert planned_bytes(llama.config, tokens=200, ratio=ratio) <= wanted
        assert not ratio or planned_bytes(llama.config, tokens=200, ratio=ratio - 1 / 8) > wanted


def test_a_cache_of_so_many_bytes_takes_no_more(llama):
    ids = prompt(2, 100)
    wanted = 0.8 * planned_bytes(llama.config, tokens=100, batch=2, ratio=0)
    cache = ThinKCache(llama.config, **SHORT, max_bytes=wanted)
    llama(ids, cache=cache)
    assert 0.9 * wanted < cache.bytes() <= wanted


def test_bytes_that_no_ratio_reaches_are_refused(llama):
    with pytest.raises(ValueError, match=r"100 tokens does not fit 1,000 bytes .* give value_ratio=, budget= or bits="):
        fitting_ratio(llama.config, tokens=100, bytes=1000)
    with pytest.raises(ValueError, match="does not fit"):
        llama(prompt(1, 100), cache=ThinKCache(llama.config, **SHORT, max_bytes=1000))


# -- attention, and the way back


def test_thinking_puts_the_former_attention_back_after_an_error_too():
    model = made("llama", "eager")
    with thinking(model):
        assert model.config._attn_implementation == "think_eager"
    with pytest.raises(ValueError, match=r"ratio=2\.0"), thinking(model):
        ThinKCache(model.config, 2.0)
    assert model.config._attn_implementation == "eager"


def test_without_a_thin_layer_it_is_the_attention_it_stands_before(llama):
    ids = prompt(2)
    found = llama(ids).logits, decoded(llama, ids, DynamicCache(config=llama.config))
    llama.set_attn_implementation("sdpa")
    assert found[0].equal(llama(ids).logits)
    assert found[1].equal(decoded(llama, ids, DynamicCache(config=llama.config)))


def test_storage_serves_an_attention_of_ones_own():
    model, calls = made("llama", "sdpa"), []
    stock = AttentionInterface()["sdpa"]

    def own(module, query, key, value, attention_mask, **kwargs):
        calls.append(key.shape)
        return stock(module, query, key, value, attention_mask, **kwargs)

    AttentionInterface.register("own", own)
    AttentionMaskInterface.register("own", AttentionMaskInterface()["sdpa"])
    with thinking(model):
        right = decoded(model, prompt(), ThinKCache(model.config, **SHORT))
    model.set_attn_implementation("own")
    with thinking(model):
        assert decoded(model, prompt(), ThinKCache(model.config, **SHORT, mode="storage")).equal(right)
        assert calls[-1] == (1, 2, 51, 8)
        with pytest.raises(ValueError, match="mode='fused' stands in for sdpa or eager, not for 'own'"):
            model(prompt(), cache=ThinKCache(model.config, **SHORT))


def test_another_attention_is_refused_before_it_reads_thin_keys(llama):
    cache = ThinKCache(llama.config, **SHORT)
    llama(prompt(), cache=cache)
    llama.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match=r"not 'sdpa': call model.set_attn_implementation\('think'\)"):
        llama(prompt(1, 1), cache=cache)
    with pytest.raises(ValueError, match="shows it the queries"):
        decoded(llama, prompt(), ThinKCache(llama.config, **SHORT))


def test_what_the_fused_attention_does_not_know_is_refused(llama):
    with pytest.raises(ValueError, match="s_aux"):
        llama(prompt(), cache=ThinKCache(llama.config), s_aux=torch.zeros(4))


def test_torch_compile_gives_the_same(llama):
    ids = prompt(1, 30)
    compiled = torch.compile(llama, backend="eager")
    cache, plain = ThinKCache(llama.config, **SHORT, block=2), ThinKCache(llama.config, **SHORT, block=2)
    with torch.no_grad():
        for tokens in (ids, *[prompt(1, 1, seed=i) for i in range(2)]):
            torch.testing.assert_close(compiled(tokens, cache=cache).logits, llama(tokens, cache=plain).logits)
    assert cache.layers[0].is_thin


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ratio": 1.0}, r"ratio=1.0 is outside \[0, 1\)"),
        ({"ratio": -0.1}, "ratio=-0.1 is outside"),
        ({"ratio": float("nan")}, "ratio=nan is outside"),
        ({"value_ratio": 1.5}, "value_ratio=1.5 is outside"),
        ({"window": 0}, "window=0"),
        ({"recent": 0}, "recent=0"),
        ({"recent": 3.5}, "recent=3.5"),
        ({"block": 0}, "block=0"),
        ({"prompt": 0}, "prompt=0"),
        ({"score_rows": "some"}, "score_rows"),
        ({"mode": "stored"}, "storage"),
        ({"pooling": "avg"}, "pooling"),
        ({"kernel": 4}, "kernel=4 must be odd"),
        ({"bits": 2}, "bits=2: 8 and 4 are known"),
        ({"bits": 8, "block": 10}, "block=10 with bits=8: a multiple of 32"),
        ({"budget": 63}, "budget=63: at least 64"),
        ({"max_bytes": 0.0}, "max_bytes=0.0"),
        ({"max_bytes": 1e6, "ratio": 0.4}, "stands in place of ratio"),
    ],
)
def test_options_that_cannot_be_served_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        ThinKCache(made("llama").config, **options)


def test_models_that_cannot_be_served_are_refused():
    with pytest.raises(ValueError, match="t5 is an encoder-decoder"):
        ThinKCache(T5Config())
    config = made("gemma2").config
    config.layer_types = ["sliding_attention"] * 2
    with pytest.raises(ValueError, match="gemma2 has no full-attention layer"):
        ThinKCache(config)
    with (
        pytest.raises(ValueError, match="Linear does not let its attention be chosen"),
        thinking(torch.nn.Linear(1, 1)),
    ):
        pass


def test_another_batch_in_a_used_cache_is_refused(llama):
    cache = ThinKCache(llama.config, **SHORT)
    llama(prompt(2), cache=cache)
    with pytest.raises(ValueError, match="holds a batch of 2, not of 1: reset"):
        llama(prompt(1), cache=cache)


@pytest.mark.parametrize("length", [30, 40])
def test_another_prompt_in_a_used_cache_is_refused(llama, length):
    cache = ThinKCache(llama.config, **SHORT)
    decoded(llama, prompt(), cache)
    with pytest.raises(ValueError, match="positions of another prompt came: reset"):
        decoded(llama, prompt(1, length, seed=8), cache)


def test_the_same_prompt_with_more_behind_it_goes_on(llama):
    ids = prompt(2)
    mask = torch.ones_like(ids)
    mask[1, :7] = 0
    cache = ThinKCache(llama.config, **SHORT)
    more = torch.cat([decoded(llama, ids, cache, attention_mask=mask), prompt(2, 9, seed=4)], 1)
    longer = torch.cat([mask, torch.ones(2, 21, dtype=torch.long)], 1)
    assert decoded(llama, more, cache, attention_mask=longer).shape == (2, 73)
    assert cache.get_seq_length() == 72


# -- models whose attention is another one


def gpt_oss():
    return GptOssForCausalLM(
        GptOssConfig(**sizes(), num_local_experts=2, num_experts_per_tok=1, sliding_window=16, rope_scaling=None)
    )


def latent():
    ranks = {"q_lora_rank": 8, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 6}
    return DeepseekV3ForCausalLM(DeepseekV3Config(**SIZES, **ranks, hidden_size=32, num_attention_heads=4,
                                                  num_key_value_heads=4, first_k_dense_replace=2))  # fmt: skip


def differential():
    return DiffLlamaForCausalLM(DiffLlamaConfig(**{k: v for k, v in sizes().items() if k != "head_dim"}))


def stepwise(model, ids, cache, first=30):
    with torch.no_grad():
        return torch.cat([model(x, cache=cache).logits for x in (ids[:, :first], *ids[:, first:].split(1, 1))], 1)


@pytest.mark.parametrize("mode", ["fused", "storage"])
def test_attention_sinks_that_sdpa_leaves_out_are_refused(mode):
    model = gpt_oss().eval()
    model.set_attn_implementation("think")
    for cache in (ThinKCache(model.config, **SHORT, mode=mode), None):
        with pytest.raises(ValueError, match="GptOssAttention gives s_aux"):
            model(prompt(), cache=cache)


def test_attention_sinks_are_read_over_the_models_own_attention():
    model, ids = gpt_oss().eval(), prompt(2)
    model.set_attn_implementation("eager")
    dense = stepwise(model, ids, DynamicCache(config=model.config))
    with thinking(model):
        assert torch.allclose(
            stepwise(model, ids, ThinKCache(model.config, 0, **SHORT, mode="storage")), dense, atol=1e-5
        )


@pytest.mark.parametrize("mode", ["fused", "storage"])
def test_keys_that_are_unfolded_after_the_cache_are_refused(mode):
    model = latent().eval()
    model.set_attn_implementation("think")
    with pytest.raises(ValueError, match="DeepseekV3Attention does not attend to the keys of its cache"):
        model(prompt(), cache=ThinKCache(model.config, **SHORT, mode=mode))


def test_values_that_are_split_after_the_cache_are_refused_or_left_to_the_model():
    model, ids = differential().eval(), prompt(2)
    dense = stepwise(model, ids, DynamicCache(config=model.config))
    model.set_attn_implementation("think")
    for options in ({}, {"mode": "storage", "value_ratio": 0.5}):
        with pytest.raises(ValueError, match="DiffLlamaAttention does not attend to the values of its cache"):
            model(ids, cache=ThinKCache(model.config, **SHORT, **options))
    cache = ThinKCache(model.config, 0, **SHORT, mode="storage")
    assert torch.allclose(stepwise(model, ids, cache), dense, atol=1e-5)
    thin = ThinKCache(model.config, 0.5, **SHORT, mode="storage")
    stepwise(model, ids, thin)
    assert all(layer.is_thin for layer in thin.layers)


# -- drafts and chunks


def test_a_draft_that_is_taken_back_leaves_the_whole_window(llama):
    ids = prompt(2)
    drafted, plain = (ThinKCache(llama.config, 0.5, **SHORT) for _ in range(2))
    drafted.activate_past_recording()
    with torch.no_grad():
        llama(torch.cat([ids, prompt(2, WINDOW + 3, seed=2)], 1), cache=drafted)
        drafted.crop(-WINDOW - 3)
        llama(ids, cache=plain)
        for cache in (drafted, plain):
            llama(ids[:, :1], cache=cache)
    for a, b in zip(drafted.layers, plain.layers, strict=True):
        assert a.channels.equal(b.channels)
    ids = prompt(2, 8)  # too short to be thinned when it is cropped
    short, plain = (ThinKCache(llama.config, 0.5, **SHORT) for _ in range(2))
    with torch.no_grad():
        llama(torch.cat([ids, ids[:, :2]], 1), cache=short)
        short.crop(-2)
        llama(ids, cache=plain)
    assert all(a.queries.allclose(b.queries, atol=1e-5) for a, b in zip(short.layers, plain.layers, strict=True))


@pytest.mark.parametrize("padding", [3, 16, 20, 33])
def test_padding_may_fill_whole_chunks_of_a_prompt(llama, padding):
    ids, mask = prompt(2, 50), torch.ones(2, 50, dtype=torch.long)
    ids[0, :padding], mask[0, :padding] = 0, 0
    whole = decoded(llama, ids, ThinKCache(llama.config, **SHORT), attention_mask=mask)
    cache = ThinKCache(llama.config, **SHORT, prompt=50)
    assert decoded(llama, ids, cache, attention_mask=mask, prefill_chunk_size=8).equal(whole)
    with pytest.raises(ValueError, match="another prompt"):
        decoded(llama, ids, cache, attention_mask=mask)


@pytest.mark.parametrize("options", [{"ratio": "0.4"}, {"value_ratio": None}])
def test_a_ratio_is_a_number(llama, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}="):
        ThinKCache(llama.config, **options)


def test_an_adapted_models_attention_can_be_chosen():
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(made(attention="sdpa"), peft.LoraConfig(target_modules=["q_proj"]))
    with thinking(adapted):
        assert adapted.config._attn_implementation == "think"
    assert adapted.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    "options", [{}, {"score_rows": "all"}, {"value_ratio": 0.3}, {"budget": 16}, {"bits": 8}, {"mode": "storage"}]
)
def test_a_prompt_that_waits_serves_several_ratios_as_caches_of_their_own_do(options):
    model = MODELS["llama"]().eval()
    ids = torch.randint(1, 60, (2, 60), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[1, :20] = 0
    short = {"window": WINDOW, "recent": RECENT}
    with thinking(model), torch.no_grad():
        waits = ThinKCache(model.config, prompt=1000, **short)
        model(ids, cache=waits, attention_mask=mask)
        for ratio in (0.0, 0.3, 0.6):
            alone, copied = ThinKCache(model.config, ratio, **short, **options), waits.thinned(ratio, **options)
            model(ids, cache=alone, attention_mask=mask)
            more = F.pad(mask, (0, 1), value=1)
            one, two = (model(ids[:, :1], cache=c, attention_mask=more).logits for c in (alone, copied))
            assert one.equal(two)
            assert all(isinstance(layer, ThinKLayer) and not layer.is_thin for layer in waits.layers)


def test_a_prompt_that_does_not_wait_serves_no_other_ratio():
    model = MODELS["llama"]().eval()
    cache = ThinKCache(model.config, **SHORT)
    with pytest.raises(ValueError, match="or none is there"):
        cache.thinned(0.5)
    with thinking(model), torch.no_grad():
        model(torch.randint(1, 60, (1, 40)), cache=cache)
    with pytest.raises(ValueError, match="the prompt is thin already"):
        cache.thinned(0.5)
    gemma = MODELS.get("gemma3") or MODELS["gemma2"]
    with pytest.raises(ValueError, match="layers that are not thinned"):
        ThinKCache(gemma().config, **SHORT).thinned(0.5)
