import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSequenceClassification

from rankwise.compression.lama import LamaClassifier, LamaConfig, LowRankAttentionPooling, head_distance, redundancy


def states(batch=3, seq=7, d=6, seed=0, dtype=torch.float64):
    return torch.randn(batch, seq, d, generator=torch.Generator().manual_seed(seed)).to(dtype)


def mask_of(lengths, seq):
    return torch.arange(seq)[None] >= torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("context", ["global", "mean"])
@pytest.mark.parametrize("rank", [1, 3])
def test_scores_are_the_bilinear_forms_of_dense_matrices(context, rank):
    pool = LowRankAttentionPooling(6, 4, rank=rank, context=context).double()
    x = states()
    c = pool.query.expand(3, -1) if context == "global" else x.mean(1)
    for i in range(4):
        block = slice(i * rank, (i + 1) * rank)
        W = pool.P[:, block] @ pool.Q[:, block].T
        expected = torch.einsum("bd,de,bte->bt", c, W, x)
        torch.testing.assert_close(pool.affinities(x)[:, i], expected, rtol=1e-12, atol=1e-12)


def test_full_rank_reaches_any_matrix():
    W = torch.randn(6, 6, dtype=torch.float64)
    U, S, Vh = torch.linalg.svd(W)
    pool = LowRankAttentionPooling(6, 1, rank=6).double()
    with torch.no_grad():
        pool.P.copy_(U * S)
        pool.Q.copy_(Vh.T)
    x = states()
    expected = torch.einsum("d,de,bte->bt", pool.query, W, x)
    torch.testing.assert_close(pool.affinities(x)[:, 0], expected, rtol=1e-12, atol=1e-12)


@given(st.lists(st.integers(1, 7), min_size=3, max_size=3), st.booleans(), st.booleans())
def test_weights_sum_to_one_over_what_is_not_padded(lengths, nonlinear, normalize):
    pool = LowRankAttentionPooling(6, 4, nonlinear=nonlinear, normalize=normalize).double()
    mask = mask_of(lengths, 7)
    S, A = pool(states(), mask, need_weights=True)
    torch.testing.assert_close(A.sum(-1), torch.ones(3, 4, dtype=torch.float64))
    assert (A.masked_select(mask[:, None]) == 0).all()
    torch.testing.assert_close(S, A @ states())


@pytest.mark.parametrize("context", ["global", "mean"])
def test_appending_padding_changes_nothing(context):
    pool = LowRankAttentionPooling(6, 4, context=context).double()
    x, mask = states(), mask_of([7, 4, 2], 7)
    longer = torch.cat([x, 99 * torch.ones(3, 5, 6, dtype=torch.float64)], 1)
    wider = torch.cat([mask, torch.ones(3, 5, dtype=torch.bool)], 1)
    torch.testing.assert_close(pool(x, mask), pool(longer, wider), rtol=1e-12, atol=1e-12)


def test_a_zero_query_gives_the_masked_mean():
    pool = LowRankAttentionPooling(6, 2).double()
    nn.init.zeros_(pool.query)
    mask = mask_of([7, 3, 1], 7)
    S = pool(states(), mask)
    for row, n in enumerate((7, 3, 1)):
        torch.testing.assert_close(S[row, 0], states()[row, :n].mean(0))


def test_permuting_heads_permutes_the_output_blocks():
    pool = LowRankAttentionPooling(6, 4, rank=2).double()
    before, order = pool(states()), torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        for M in (pool.P, pool.Q):
            M.copy_(M.unflatten(1, (4, 2))[:, order].flatten(1))
    torch.testing.assert_close(pool(states()), before[:, order])


def test_adding_a_constant_to_a_heads_scores_changes_nothing(monkeypatch):
    pool = LowRankAttentionPooling(6, 4).double()
    before, scores = pool(states()), pool.affinities
    monkeypatch.setattr(pool, "affinities", lambda *a: scores(*a) + torch.randn(4, 1, dtype=torch.float64))
    torch.testing.assert_close(pool(states()), before)


@pytest.mark.parametrize(("d", "m", "k"), [(256, 16, 1), (64, 5, 3)])
def test_parameter_count(d, m, k):
    count = sum(p.numel() for p in LowRankAttentionPooling(d, m, rank=k).parameters())
    assert count == 2 * d * m * k + d
    assert sum(p.numel() for p in LowRankAttentionPooling(d, m, rank=k, context="mean").parameters()) == 2 * d * m * k


@pytest.mark.parametrize("options", [{}, {"rank": 2, "context": "mean"}, {"nonlinear": True}, {"normalize": True}])
def test_gradients_are_right(options):
    pool = LowRankAttentionPooling(4, 2, **options).double()
    x, mask = states(2, 5, 4).requires_grad_(), mask_of([5, 3], 5)
    names = [n for n, _ in pool.named_parameters()]

    def run(x, *values):
        return torch.func.functional_call(pool, dict(zip(names, values, strict=True)), (x, mask))

    assert torch.autograd.gradcheck(run, (x, *pool.parameters()))


@pytest.mark.parametrize("nonlinear", [False, True])
def test_work_is_linear_in_the_length(nonlinear):
    pool = LowRankAttentionPooling(64, 8, nonlinear=nonlinear)

    def flops(n):
        with FlopCounterMode(display=False) as counter:
            pool(torch.randn(1, n, 64))
        return counter.get_total_flops()

    once = flops(256)
    assert flops(512) - once == pytest.approx(once, rel=0.02)  # the query's product does not grow


def test_fused_scores_are_the_same():
    pool = LowRankAttentionPooling(6, 4, rank=2)
    x = states(dtype=torch.float32)
    torch.testing.assert_close(pool.fuse()(x).mT, pool.affinities(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="folds"):
        LowRankAttentionPooling(6, 4, context="mean").fuse()


def test_bfloat16_is_close_to_float32():
    pool = LowRankAttentionPooling(32, 4)
    x = states(2, 9, 32, dtype=torch.float32)
    low = LowRankAttentionPooling(32, 4)
    low.load_state_dict(pool.state_dict())
    low.bfloat16()
    torch.testing.assert_close(low(x.bfloat16()).float(), pool(x), rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: LowRankAttentionPooling(4, 2, rank=5), "rank=5 is above d_model=4"),
        (lambda: LowRankAttentionPooling(4, 0), "heads=0"),
        (lambda: LowRankAttentionPooling(4, 2, context="globe"), "'global' or 'mean'"),
        (lambda: LowRankAttentionPooling(4, 2)(torch.zeros(1, 0, 4)), "seq >= 1"),
        (lambda: LowRankAttentionPooling(4, 2)(torch.zeros(2, 4)), "seq >= 1"),
        (lambda: LowRankAttentionPooling(4, 2)(torch.zeros(2, 3, 4), torch.zeros(2, 3)), "must be bool"),
        (lambda: LowRankAttentionPooling(4, 2)(torch.zeros(2, 3, 4), mask_of([3], 3)), "shape"),
        (lambda: LowRankAttentionPooling(4, 2)(torch.zeros(2, 3, 4), mask_of([3, 0], 3)), r"row\(s\) \[1\]"),
        (lambda: LamaConfig(encoder="lstm"), "accepted: gru, transformer, none"),
        (lambda: LamaConfig(pooling="sum"), "accepted: lama"),
    ],
)
def test_bad_input_is_named(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_too_many_heads_warn():
    with pytest.warns(UserWarning, match="say the same thing"):
        pool = LowRankAttentionPooling(2, 5, rank=2)
    assert pool(torch.ones(1, 3, 2)).shape == (1, 5, 2)


def test_heads_are_told_apart():
    same = torch.full((1, 3, 4), 0.25)
    assert float(head_distance(same)) == pytest.approx(0, abs=1e-4)
    apart = torch.eye(4)[None, :3]
    assert float(head_distance(apart)) == pytest.approx(1)
    assert float(redundancy(apart)) == pytest.approx(0)
    assert float(redundancy(same)) > 1


def classifier(**options):
    torch.manual_seed(0)
    config = LamaConfig(vocab_size=50, embedding_size=16, hidden_size=8, heads=4, num_labels=3, **options)
    return LamaClassifier(config).eval()


@pytest.mark.parametrize("encoder", ["gru", "transformer", "none"])
@pytest.mark.parametrize("pooling", ["lama", "mean", "max", "structured"])
def test_padding_does_not_change_the_classes(encoder, pooling):
    model = classifier(encoder=encoder, pooling=pooling)
    ids = torch.randint(1, 50, (2, 6))
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    alone = model(ids[1:, :4], torch.ones(1, 4, dtype=torch.long)).logits
    torch.testing.assert_close(model(ids, mask).logits[1:], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("encoder", ["gru", "transformer"])
def test_it_is_a_transformers_model(encoder, tmp_path):
    model = classifier(encoder=encoder)
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    ids = torch.randint(1, 50, (2, 6))
    assert isinstance(again, LamaClassifier)
    assert torch.equal(model(ids).logits, again.eval()(ids).logits)
    out = model(ids, labels=torch.tensor([0, 2]))
    out.loss.backward()
    assert out.attentions[0].shape == (2, 4, 6)
    assert model.pool.P.grad.abs().sum() > 0


def test_a_frozen_attention_stays_at_its_random_start():
    model = classifier(train_attention=False).train()
    assert not any(p.requires_grad for p in model.pool.parameters())
    assert model.classifier.weight.requires_grad


def test_the_penalty_joins_the_loss():
    ids, y = torch.randint(1, 50, (2, 6)), torch.tensor([0, 1])
    plain, punished = classifier()(ids, labels=y), classifier(redundancy_penalty=0.5)(ids, labels=y)
    extra = 0.5 * redundancy(plain.attentions[0])
    torch.testing.assert_close(punished.loss, plain.loss + extra)


def test_one_output_is_regression():
    torch.manual_seed(0)
    model = LamaClassifier(LamaConfig(vocab_size=50, embedding_size=16, hidden_size=8, heads=4, num_labels=1)).eval()
    ids, y = torch.randint(1, 50, (2, 6)), torch.tensor([0.5, -1.0])
    out = model(ids, labels=y)
    torch.testing.assert_close(out.loss, (out.logits.flatten() - y).square().mean())


def test_left_padding_is_refused():
    with pytest.raises(ValueError, match="pad on the right"):
        classifier()(torch.ones(1, 3, dtype=torch.long), torch.tensor([[0, 1, 1]]))
