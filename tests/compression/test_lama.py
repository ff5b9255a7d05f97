import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments
from transformers.loss.loss_utils import ForSequenceClassificationLoss

from rankwise.compression.lama import (
    LamaClassifier,
    LamaConfig,
    LowRankAttentionPooling,
    attention_heads,
    classification_loss,
    head_distance,
    positions,
    redundancy,
)


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
        (lambda: LamaConfig(context="globe"), "accepted: global, mean"),
        (lambda: LamaConfig(embedding_size=0), "embedding_size=0"),
        (lambda: LamaConfig(heads=0), "heads=0"),
        (lambda: LamaConfig(dropout=1.0), r"dropout=1\.0"),
        (lambda: LamaConfig(redundancy_penalty=-0.1), "redundancy_penalty=-0.1"),
        (lambda: LamaConfig(vocab_size=10, pad_token_id=10), "pad_token_id=10 is outside the vocabulary of 10"),
        (lambda: LamaConfig(hidden_size=4, rank=9), "rank=9 is above the 8 features"),
        (lambda: LamaConfig(pooling="structured", rank=2), "'structured' has no rank"),
        (lambda: LamaConfig(pooling="mean", train_attention=False), "'mean' has no train_attention"),
        (lambda: LamaConfig(pooling="max", redundancy_penalty=0.1), "'max' has no redundancy_penalty"),
        (lambda: LowRankAttentionPooling(4, 2, dropout=1.5), r"dropout=1\.5"),
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


OUTPUTS = {
    # labels, and the loss written out
    "regression": (
        torch.tensor([[0.5, -1.0, 2.0], [0.0, 1.0, 0.25]]),
        lambda z, y: (z - y).square().mean(),
    ),
    "single_label_classification": (
        torch.tensor([2, 0]),
        lambda z, y: -(z - z.logsumexp(1, keepdim=True))[[0, 1], y].mean(),
    ),
    "multi_label_classification": (
        torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]]),
        lambda z, y: (z.exp().log1p() - y * z).mean(),
    ),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_every_problem_type_has_the_loss_of_its_formula_and_of_transformers(kind):
    y, formula = OUTPUTS[kind]
    model = classifier(problem_type=kind)
    out = model(torch.randint(1, 50, (2, 6)), labels=y)
    torch.testing.assert_close(out.loss, formula(out.logits, y))
    torch.testing.assert_close(out.loss, ForSequenceClassificationLoss(y, out.logits, model.config))


@pytest.mark.parametrize("labels", [torch.tensor([2, 0]), torch.tensor([[1.0, 0, 1], [0, 0, 1]]),
                                    torch.tensor([[True, False, True], [False, False, True]])])  # fmt: skip
def test_without_a_problem_type_the_labels_kind_decides(labels):
    z = torch.randn(2, 3)
    kind = "single_label_classification" if labels.dim() == 1 else "multi_label_classification"
    torch.testing.assert_close(classification_loss(z, labels), OUTPUTS[kind][1](z, labels.to(labels.dtype)))


@pytest.mark.parametrize(
    ("kind", "labels", "match"),
    [
        ("multi_label_classification", torch.tensor([2, 0]), r"labels of shape \(2, 3\), got \(2,\)"),
        ("regression", torch.tensor([2.0, 0.0]), r"labels of shape \(2, 3\)"),
        ("single_label_classification", torch.tensor([2.0, 0.0]), "a whole number a text, got torch.float32"),
        ("single_label_classification", torch.ones(2, 3, dtype=torch.long), r"got torch.int64 \(2, 3\)"),
    ],
)
def test_labels_of_another_kind_are_refused(kind, labels, match):
    with pytest.raises(ValueError, match=match):
        classification_loss(torch.randn(2, 3), labels, kind)


@pytest.mark.parametrize("width", [200, 130, 63, 7, 384])
def test_a_transformer_of_any_width_has_a_number_of_heads_that_divides_it(width):
    heads = attention_heads(width)
    assert width % heads == 0
    assert heads == max(h for h in range(1, max(1, width // 64) + 1) if width % h == 0)
    model = LamaClassifier(LamaConfig(vocab_size=50, embedding_size=width, encoder="transformer", heads=2))
    assert torch.isfinite(model.eval()(torch.randint(1, 50, (2, 5))).logits).all()


@pytest.mark.parametrize("penalty", [0.0, 5.0])
def test_trainer_divides_the_loss_when_gradients_accumulate(tmp_path, penalty):
    """Two batches of one text accumulate to the gradient of one batch of two, the penalty's too."""
    rows = [{"input_ids": torch.tensor([3, 4, 5 + i]), "labels": i % 2} for i in range(2)]
    moved = []
    for size, steps in ((2, 1), (1, 2)):
        model = classifier(dropout=0.0, redundancy_penalty=penalty)
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            max_steps=1,
            learning_rate=1.0,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        )
        sgd = torch.optim.SGD(model.parameters(), 1.0)
        Trainer(model=model, args=arguments, train_dataset=rows, optimizers=(sgd, None)).train()
        moved.append({n: p.detach() - before[n] for n, p in model.named_parameters()})
    torch.testing.assert_close(*moved, rtol=1e-4, atol=1e-6)
    for part in ("classifier", "pool") if penalty else ("classifier",):
        assert max(float(m.abs().max()) for n, m in moved[0].items() if n.startswith(part)) > 1e-3


def test_a_frozen_structured_attention_stays_at_its_start_too():
    model = classifier(pooling="structured", train_attention=False)
    assert not any(p.requires_grad for p in model.pool.parameters())


@pytest.mark.parametrize(
    "mask", [[[0, 1, 1]], [[1, 0, 1]], [[1, 1]], [[0, 0, 0]]], ids=["left", "hole", "short", "empty"]
)
@pytest.mark.parametrize("encoder", ["gru", "none"])
def test_masks_that_are_not_padding_on_the_right_are_refused(mask, encoder):
    with pytest.raises(ValueError, match="attention_mask"):
        classifier(encoder=encoder)(torch.ones(1, 3, dtype=torch.long), torch.tensor(mask))


def test_a_tokenizers_type_ids_are_taken_and_a_second_text_or_unknown_inputs_refused():
    model, ids = classifier(), torch.ones(1, 3, dtype=torch.long)
    assert torch.equal(model(ids, token_type_ids=0 * ids).logits, model(ids).logits)
    with pytest.raises(ValueError, match="LAMA reads one"):
        model(ids, token_type_ids=ids)
    with pytest.raises(TypeError, match="inputs_embeds"):
        model(ids, inputs_embeds=torch.ones(1, 3, 16))


def test_left_padding_is_refused():
    with pytest.raises(ValueError, match="pad on the right"):
        classifier()(torch.ones(1, 3, dtype=torch.long), torch.tensor([[0, 1, 1]]))


# --- written out by hand


def test_defaults_are_those_that_the_documentation_names():
    pool, config = LowRankAttentionPooling(6, 4), LamaConfig()
    seen = (pool.rank, pool.context, pool.dropout, pool.nonlinear, pool.normalize)
    assert seen == (1, "global", 0.0, False, False)
    told = {
        "vocab_size": 30522,
        "embedding_size": 384,
        "encoder": "gru",
        "hidden_size": 128,
        "pooling": "lama",
        "heads": 16,
        "rank": 1,
        "context": "global",
        "nonlinear": False,
        "normalize": False,
        "attention_size": 128,
        "train_attention": True,
        "dropout": 0.3,
        "redundancy_penalty": 0.0,
        "pad_token_id": 0,
        "d_model": 256,
    }
    assert {k: getattr(config, k) for k in told} == told
    assert LamaConfig(encoder="none").d_model == LamaConfig(encoder="transformer").d_model == 384


def test_options_of_the_configuration_are_kept_in_its_file(tmp_path):
    options = {
        "vocab_size": 31,
        "embedding_size": 12,
        "encoder": "transformer",
        "hidden_size": 9,
        "heads": 3,
        "rank": 2,
        "context": "mean",
        "nonlinear": True,
        "normalize": True,
        "attention_size": 7,
        "train_attention": False,
        "dropout": 0.0,
        "redundancy_penalty": 0.5,
        "pad_token_id": 30,
        "num_labels": 5,
    }
    LamaConfig(**options).save_pretrained(tmp_path)
    again = LamaConfig.from_pretrained(tmp_path)
    assert {k: getattr(again, k) for k in options} == options


@pytest.mark.parametrize("options", [{"nonlinear": True}, {"normalize": True}, {"nonlinear": True, "normalize": True}])
def test_factors_are_squashed_by_tanh_and_scaled_to_the_root_of_the_number_of_heads(options):
    pool = LowRankAttentionPooling(6, 4, rank=3, **options).double()
    x = states()
    left, right = (pool.query @ pool.P).expand(3, -1), x @ pool.Q
    if pool.nonlinear:
        left, right = left.tanh(), right.tanh()
    if pool.normalize:
        assert pool.scale.item() == 1.0
        with torch.no_grad():
            pool.scale.fill_(1.7)
        left, right = (y / y.square().sum(-1, keepdim=True).sqrt() * 4**0.5 for y in (left, right))
    products = left[:, None] * right * (1.7 if pool.normalize else 1.0)
    expected = torch.stack([products[..., 3 * i : 3 * i + 3].sum(-1) for i in range(4)], 1)
    torch.testing.assert_close(pool.affinities(x), expected, rtol=1e-12, atol=1e-12)


def test_the_start_has_columns_of_unit_length_and_a_query_of_unit_entries():
    torch.manual_seed(0)
    pool = LowRankAttentionPooling(400, 20, rank=5)
    for M in (pool.P, pool.Q):
        assert float(M.detach().mean()) == pytest.approx(0, abs=1e-3)
        assert float(M.detach().norm(dim=0).mean()) == pytest.approx(1, rel=0.02)
    assert float(pool.query.std()) == pytest.approx(1, rel=0.1)
    assert float((pool.query @ pool.P).std()) == pytest.approx(1, rel=0.25)


def test_without_being_asked_for_weights_only_the_pooled_states_come():
    pool, x = LowRankAttentionPooling(6, 4).double(), states()
    S, A = pool(x, need_weights=True)
    assert torch.equal(pool(x), S)
    assert S.shape == (3, 4, 6)
    torch.testing.assert_close(A, pool.affinities(x).exp() / pool.affinities(x).exp().sum(-1, keepdim=True))


def test_in_training_attention_weights_are_dropped_and_the_rest_scaled_up():
    pool = LowRankAttentionPooling(200, 4, dropout=0.25).double()
    x = torch.eye(200, dtype=torch.float64)[None]  # pooled states are then the weights themselves
    S, A = pool(x, need_weights=True)
    kept = S != 0
    assert float(kept.double().mean()) == pytest.approx(0.75, abs=0.06)
    torch.testing.assert_close(S[kept], A[kept] / 0.75)
    torch.testing.assert_close(A.sum(-1), torch.ones(1, 4, dtype=torch.float64))
    torch.testing.assert_close(pool.eval()(x), A)


def test_fused_maps_are_in_the_pools_dtype_and_have_no_bias():
    fused = LowRankAttentionPooling(6, 4, rank=2).double().fuse()
    assert (fused.bias, fused.weight.dtype, tuple(fused.weight.shape)) == (None, torch.float64, (4, 6))
    for options in ({"nonlinear": True}, {"normalize": True}):
        with pytest.raises(ValueError, match="without nonlinear and normalize"):
            LowRankAttentionPooling(6, 4, **options).fuse()


def test_heads_are_as_far_apart_as_scipy_finds_their_distributions():
    A = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    A[0, 0, :2] = 0.0
    A = A / A.sum(-1, keepdim=True)
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    expected = [sum(jensenshannon(row[i], row[j], base=2) for i, j in pairs) / 6 for row in A.numpy()]
    assert head_distance(A).tolist() == pytest.approx(expected, rel=1e-9)
    assert head_distance(A[:, :1]).tolist() == [0.0, 0.0]
    products = [sum((row[i] @ row[j] - (i == j)) ** 2 for i in range(3) for j in range(3)) for row in A.numpy()]
    assert float(redundancy(A)) == pytest.approx(sum(products) / 2)
    assert redundancy(A.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "options",
    [
        {"dropout": 0.0, "redundancy_penalty": 0.0},
        {"vocab_size": 1, "pad_token_id": 0},
        {"vocab_size": 4, "pad_token_id": 3},
        {"pad_token_id": None},
        {"hidden_size": 1, "rank": 2, "heads": 1},
        {"embedding_size": 1, "encoder": "none"},
        {"pooling": "structured", "attention_size": 1, "redundancy_penalty": 0.5, "train_attention": False},
        {"pooling": "mean", "embedding_size": 1},
        {"pooling": "max", "hidden_size": 1},
    ],
)
def test_a_model_of_the_least_and_the_largest_sizes_runs(options):
    config = LamaConfig(**{"vocab_size": 5, "embedding_size": 8, "hidden_size": 4, "heads": 2, **options})
    out = LamaClassifier(config)(torch.zeros(2, 3, dtype=torch.long), labels=torch.tensor([0, 1]))
    assert torch.isfinite(out.loss)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        *(({n: 0}, f"{n}=0") for n in ("vocab_size", "hidden_size", "rank", "attention_size")),
        ({"dropout": -0.1}, "dropout=-0.1"),
        ({"pad_token_id": -1}, "pad_token_id=-1"),
        ({"encoder": "none", "embedding_size": 4, "rank": 5}, "rank=5 is above the 4 features"),
        *(({"pooling": "structured", n: v}, f"'structured' has no {n}") for n, v in
          (("context", "mean"), ("nonlinear", True), ("normalize", True))),
        *(({"pooling": p, n: v}, f"'{p}' has no {n}") for p in ("mean", "max") for n, v in
          (("rank", 2), ("context", "mean"), ("train_attention", False), ("redundancy_penalty", 0.1))),
    ],
)  # fmt: skip
def test_what_a_pooling_has_not_and_what_is_out_of_range_is_named(options, match):
    with pytest.raises(ValueError, match=match):
        LamaConfig(**options)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: LowRankAttentionPooling(4, 2, dropout=1.0), r"dropout=1\.0"),
        (lambda: LowRankAttentionPooling(4, 2, dropout=-0.1), r"dropout=-0\.1"),
        (lambda: LowRankAttentionPooling(0, 2), "d_model=0"),
        (lambda: LowRankAttentionPooling(4, 2, rank=0), "rank=0"),
        (lambda: LowRankAttentionPooling(4, 2)(torch.zeros(2, 3, 5)), r"seq >= 1, 4"),
        (lambda: LowRankAttentionPooling(4, 2)(torch.zeros(1, 2, 3, 4)), r"seq >= 1, 4"),
        (lambda: LowRankAttentionPooling(4, 2)(torch.zeros(7, 3, 4), mask_of([0] * 7, 3)), r"\[0, 1, 2, 3, 4\]"),
    ],
)
def test_pools_of_no_size_and_states_of_another_shape_are_named(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_as_many_directions_as_four_times_the_features_warn_of_nothing(recwarn):
    pool = LowRankAttentionPooling(2, 4, rank=2)
    assert not recwarn
    assert pool(torch.ones(1, 1, 2)).shape == (1, 4, 2)


def test_positions_are_sines_and_cosines_of_falling_frequencies():
    x = torch.zeros(2, 400, 7, dtype=torch.float64)
    P = positions(x)
    assert P.dtype == torch.float64
    for t in (0, 1, 2, 17, 399):
        angles = [t / 10_000 ** (2 * i / 7) for i in range(4)]
        expected = [f(a) / 10 for a in angles for f in (math.sin, math.cos)]
        assert P[t].tolist() == pytest.approx(expected[:7], abs=3e-6)


@pytest.mark.parametrize("encoder", ["gru", "transformer", "none"])
def test_states_are_zero_where_padded(encoder):
    model, ids, mask = (
        classifier(encoder=encoder),
        torch.randint(1, 50, (2, 6)),
        torch.tensor([[1] * 6, [1] * 2 + [0] * 4]),
    )
    H = model.states(ids, mask)
    assert (H[1, 2:] == 0).all()
    assert (H[1, :2] != 0).all()
    assert (H[0] != 0).all()


def test_the_gru_reads_a_text_in_both_directions():
    model, ids = classifier(), torch.randint(1, 50, (1, 5))
    own, x = dict(model.encoder.named_parameters()), model.embeddings(ids)[0]

    def read(rows, end):
        h, out = torch.zeros(8), []
        for row in rows:
            a = own[f"weight_ih_l0{end}"] @ row + own[f"bias_ih_l0{end}"]
            b = own[f"weight_hh_l0{end}"] @ h + own[f"bias_hh_l0{end}"]
            r, z = (a[:16] + b[:16]).sigmoid().chunk(2)
            h = (1 - z) * (a[16:] + r * b[16:]).tanh() + z * h
            out.append(h)
        return torch.stack(out)

    expected = torch.cat([read(x, ""), read(x.flip(0), "_reverse").flip(0)], 1)
    torch.testing.assert_close(model.states(ids, torch.ones_like(ids))[0], expected, rtol=1e-4, atol=1e-6)


def test_the_transformer_adds_attention_and_a_feed_forward_net_to_normed_states():
    torch.manual_seed(0)
    config = LamaConfig(vocab_size=50, embedding_size=128, encoder="transformer", heads=2, dropout=0.4)
    model, ids = LamaClassifier(config).eval(), torch.randint(1, 50, (1, 5))
    layer = model.encoder
    assert (layer.dropout.p, layer.self_attn.num_heads, layer.linear1.out_features) == (0.4, 2, 256)
    x = model.embeddings(ids)[0] + positions(model.embeddings(ids))
    q, k, v = (layer.norm1(x) @ layer.self_attn.in_proj_weight.T + layer.self_attn.in_proj_bias).chunk(3, -1)
    heads = [(q[:, s] @ k[:, s].T / 64**0.5).softmax(-1) @ v[:, s] for s in (slice(0, 64), slice(64, 128))]
    x = x + layer.self_attn.out_proj(torch.cat(heads, -1))
    x = x + layer.linear2(layer.linear1(layer.norm2(x)).relu())
    torch.testing.assert_close(model.states(ids, torch.ones_like(ids))[0], x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", ["lama", "mean", "max", "structured"])
def test_classes_are_a_linear_map_of_what_the_pooling_reads_written_out(pooling):
    model = classifier(encoder="none", pooling=pooling, **({"attention_size": 5} if pooling == "structured" else {}))
    ids, mask = torch.randint(1, 50, (2, 4)), torch.tensor([[1] * 4, [1, 1, 0, 0]])
    out = model(ids, mask)
    for row, n in enumerate((4, 2)):
        H = model.embeddings.weight[ids[row, :n]]
        if pooling == "lama":
            F = torch.stack([(model.pool.query @ model.pool.P[:, i]) * (H @ model.pool.Q[:, i]) for i in range(4)])
        elif pooling == "structured":
            assert (model.pool[0].bias, model.pool[2].bias, model.pool[0].out_features) == (None, None, 5)
            F = model.pool[2].weight @ (model.pool[0].weight @ H.T).tanh()
        if pooling in ("lama", "structured"):
            A = F.exp() / F.exp().sum(1, keepdim=True)
            torch.testing.assert_close(out.attentions[0][row, :, :n], A)
            read = (A @ H).flatten()
        else:
            assert out.attentions is None
            read = H.mean(0) if pooling == "mean" else H.max(0).values
        torch.testing.assert_close(out.logits[row], model.classifier.weight @ read + model.classifier.bias)


def test_without_a_mask_every_token_is_read_and_a_pads_embedding_never_trains():
    model = classifier(encoder="none", pooling="mean", pad_token_id=7)
    ids = torch.tensor([[3, 7, 5]])
    out = model(ids, labels=torch.tensor([1]))
    expected = model.classifier(model.embeddings.weight[[3, 7, 5]].mean(0))
    torch.testing.assert_close(out.logits[0], expected)
    out.loss.backward()
    moved = model.embeddings.weight.grad.abs().sum(1) > 0
    assert moved.nonzero().flatten().tolist() == [3, 5]


def test_in_training_embeddings_and_what_the_classifier_reads_are_dropped():
    model = LamaClassifier(LamaConfig(vocab_size=9, embedding_size=64, encoder="none", pooling="mean", dropout=0.5))
    ids, seen = torch.randint(1, 9, (40, 3)), []
    model.classifier.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    H = model.states(ids, torch.ones_like(ids))
    assert float((H == 0).float().mean()) == pytest.approx(0.5, abs=0.05)
    kept = H != 0
    torch.testing.assert_close(H[kept], 2 * model.embeddings(ids)[kept])
    with torch.no_grad():
        model.embeddings.weight.fill_(1.0)
    model(ids)
    assert float((seen[0] == 0).float().mean()) == pytest.approx(0.5 + 0.5 * 0.5**3, abs=0.05)


def test_a_new_model_starts_from_small_embeddings_and_the_layers_own_starts():
    torch.manual_seed(0)
    model = LamaClassifier(LamaConfig(vocab_size=500, embedding_size=64, hidden_size=100, heads=4, num_labels=7))
    assert float(model.embeddings.weight.std()) == pytest.approx(0.1, rel=0.05)
    assert float(model.pool.P.norm(dim=0).mean()) == pytest.approx(1, rel=0.15)
    assert float(model.encoder.weight_ih_l0.abs().max()) == pytest.approx(0.1, rel=0.02)  # uniform, 1/√u
    assert float(model.classifier.weight.abs().max()) == pytest.approx((1 / 800) ** 0.5, rel=0.02)
    assert model.classifier.out_features == 7


@pytest.mark.parametrize("encoder", ["gru", "transformer"])
def test_weights_that_a_checkpoint_lacks_are_drawn_anew(encoder):
    model = classifier(encoder=encoder)
    for module in model.modules():
        if not isinstance(module, nn.MultiheadAttention):
            for p in module.parameters(recurse=False):
                nn.init.zeros_(p)
            model._init_weights(module)
    still = [n for n, p in model.named_parameters() if not p.any()]
    assert all(n.endswith(("bias", "in_proj_weight")) for n in still), still


@pytest.mark.parametrize("n", [1, 3])
def test_labels_of_one_number_a_text_are_taken_flat_or_as_a_column_and_of_any_number_type(n):
    z = torch.randn(2, n, dtype=torch.float64)
    if n == 1:
        for y in (torch.tensor([1.0, 2.0]), torch.tensor([[1], [2]])):
            torch.testing.assert_close(classification_loss(z, y), (z.flatten() - y.flatten()).square().mean())
    else:
        y = torch.tensor([[1, 0, 1], [0, 0, 1]])
        expected = (z.exp().log1p() - y * z).mean()
        torch.testing.assert_close(classification_loss(z, y, "multi_label_classification"), expected)
        one = torch.tensor([[2], [0]])
        torch.testing.assert_close(
            classification_loss(z, one), -(z - z.logsumexp(1, keepdim=True))[[0, 1], [2, 0]].mean()
        )
