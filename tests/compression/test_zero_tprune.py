"""Zero-TPrune: each equation against eigenvectors, hand calculation, loops in numpy, and counted operations."""

import copy
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from rankwise.compression import (
    AttentionGraph,
    AttentionToCLS,
    MergeSimilar,
    RandomTokens,
    TokenSchedule,
    TowerShape,
    merging_schedule,
    planned,
    prune_tokens,
    zero_tprune,
)
from rankwise.compression.tokens.choosing import most_important
from rankwise.compression.tokens.graph import combined, filtered_heads, similar_tokens, start, votes
from rankwise.compression.tokens.towers import NAME, Seen, register, tower_of
from small_models import bert, clip, deit, vit

PIXELS = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
WORDS = torch.tensor([[47, 3, 4, 48, 49, 49], [47, 5, 6, 7, 8, 48]])
DEIT_S = TowerShape(
    depth=12, width=384, heads=6, inner=384, hidden=1536, patches=196, prefix=1, embedding=196 * 768 * 384
)
MAKERS = {"vit": vit, "deit": deit, "clip": clip}


def stochastic(*shape, seed=0, positive=0.0):
    """Random matrices whose rows sum to 1, in float64."""
    A = torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 4 + positive
    return A / A.sum(-1, keepdim=True)


def seen(batch=2, heads=3, tokens=12, channels=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    return Seen(
        stochastic(batch, heads, tokens, tokens, seed=seed), torch.randn(batch, heads, tokens, channels, generator=g)
    )


def tower(model):
    return tower_of(model).module


def states(model, **options):
    with torch.no_grad():
        return tower(model)(pixel_values=options.pop("pixels", PIXELS), **options)


# the vote


def test_many_votes_give_the_left_eigenvector_of_eigenvalue_one():
    A = stochastic(1, 4, 9, 9, positive=0.01)
    found = votes(A, torch.ones(1, 1, 9, dtype=A.dtype), 400)[0]
    for head in range(4):
        values, vectors = np.linalg.eig(A[0, head].numpy().T)
        own = np.real(vectors[:, np.argmin(abs(values - 1))])
        np.testing.assert_allclose(found[head] / found[head].sum(), own / own.sum(), atol=1e-6)


def test_one_vote_after_another_is_a_product_with_the_transpose():
    A, s = stochastic(2, 3, 7, 7), torch.rand(2, 1, 7, dtype=torch.float64)
    by_hand = s.expand(2, 3, 7)
    for _ in range(3):
        by_hand = torch.einsum("bhji,bhj->bhi", A, by_hand)
    torch.testing.assert_close(votes(A, s, 3), by_hand)


def test_votes_follow_a_permutation_of_the_tokens():
    A, s, order = stochastic(1, 2, 8, 8), torch.rand(1, 1, 8, dtype=torch.float64), torch.randperm(8)
    torch.testing.assert_close(votes(A[:, :, order][..., order], s[..., order], 5), votes(A, s, 5)[..., order])


def test_where_columns_sum_to_one_too_all_tokens_are_equal():
    A = stochastic(1, 1, 6, 6, positive=0.1)
    for _ in range(500):
        A = A / A.sum(-2, keepdim=True)
        A = A / A.sum(-1, keepdim=True)
    torch.testing.assert_close(votes(A, start(A, None, boosted=True), 300), votes(A, start(A, None, boosted=True), 301))
    found = votes(A, torch.ones(1, 1, 6, dtype=A.dtype), 7)
    torch.testing.assert_close(found, torch.ones_like(found), atol=1e-6, rtol=0)


def test_the_hub_of_a_star_wins():
    A = torch.full((1, 1, 6, 6), 0.02)
    A[..., 4] = 0.9
    A[..., 4, :] = 1 / 6
    scores = votes(A / A.sum(-1, keepdim=True), torch.ones(1, 1, 6), 10)
    assert scores.argmax() == 4
    assert scores[..., 4] > 2 * scores[..., 0]


def test_a_vote_changes_no_sum_also_among_those_alive():
    A, alive = stochastic(2, 3, 9, 9), torch.ones(2, 9, dtype=torch.float64)
    alive[0, [2, 5]] = 0
    for living in (None, alive):
        s = start(A, living, boosted=True)
        for T in (1, 2, 30):
            torch.testing.assert_close(votes(A, s, T, living).sum(-1), s.sum(-1).expand(2, 3))


def test_votes_among_the_living_are_votes_in_the_matrix_that_is_cut_and_divided_by_its_row_sums():
    A, living = stochastic(1, 2, 8, 8), [0, 1, 3, 4, 7]
    alive = torch.zeros(1, 8, dtype=torch.float64)
    alive[:, living] = 1
    cut = A[:, :, living][..., living]
    cut = cut / cut.sum(-1, keepdim=True)
    s = start(A, alive, boosted=True)
    found = votes(A, s, 4, alive)
    torch.testing.assert_close(found[..., living], votes(cut, start(cut, None, boosted=True), 4))
    assert (found[..., [2, 5, 6]] == 0).all()


def test_cls_starts_with_the_root_of_the_number_of_tokens_times_the_score_of_any_other():
    A = stochastic(1, 2, 10, 10, positive=0.01)
    s = start(A, None, boosted=True)
    assert s[0, 0].tolist() == [10**0.5] + [1.0] * 9
    by_hand = (A.mT @ s[:, :, :, None])[..., 0]
    torch.testing.assert_close(votes(A, s, 1), by_hand)
    plain = start(A, None, boosted=False)
    assert plain.unique().tolist() == [1.0]
    assert not torch.allclose(votes(A, s, 1) / s.sum(), votes(A, plain, 1) / plain.sum(), atol=1e-3)
    torch.testing.assert_close(votes(A, s, 200) / s.sum(), votes(A, plain, 200) / plain.sum(), atol=1e-6, rtol=0)


# the heads


def with_variance(*variances, tokens=8):
    """Scores of mean 1 whose variances are these, ``(1, heads, tokens)``: half above, half below."""
    sides = torch.tensor([1.0, -1.0] * (tokens // 2))
    return torch.stack([1 + v**0.5 * sides for v in variances])[None]


def test_the_filter_drops_exactly_the_heads_outside_its_bounds():
    scores = with_variance(0.0, 0.005, 0.02, 0.5, 0.9)
    assert filtered_heads(scores, None, (0.01, 0.7)).tolist() == [[False, False, True, True, False]]
    assert filtered_heads(7 * scores, None, (0.01, 0.7)).tolist() == [[False, False, True, True, False]]
    assert filtered_heads(scores, None, None).all()
    assert filtered_heads(scores[:, :1], None, (0.0, 0.7)).all()  # the bounds themselves count


def test_the_variance_is_over_the_living_alone():
    scores = with_variance(0.02, 0.5)
    padded = torch.cat([scores, torch.zeros(1, 2, 4)], -1)
    alive = torch.tensor([[1.0] * 8 + [0.0] * 4])
    assert filtered_heads(padded, alive, (0.015, 0.1)).tolist() == [[True, False]]


def test_with_scores_that_sum_to_one_every_head_is_out_and_so_all_count():
    scores = with_variance(0.02, 0.5, 0.9, tokens=20)
    assert filtered_heads(scores, None, (0.01, 0.7), "sum1").tolist() == [[True, True, True]]  # none, and so all
    assert filtered_heads(scores, None, (0.4 / 400, 0.6 / 400), "sum1").tolist() == [[False, True, False]]


def test_uniform_attention_is_dropped_and_where_nothing_is_left_all_heads_count_without_nan():
    A = torch.full((1, 2, 5, 5), 0.2)
    graph = AttentionGraph(cls_boost="uniform")
    score, counted = graph.importance(A, 5, None, 1)
    assert counted.all()
    torch.testing.assert_close(score, torch.ones(1, 5))
    A = torch.cat([A, stochastic(1, 1, 5, 5, seed=3).float()], 1)
    assert graph.importance(A, 2, None, 1)[1].tolist() == [[False, False, True]]


def test_a_head_outside_the_bounds_changes_nothing():
    scores = with_variance(0.3, 5.0)
    counted = filtered_heads(scores, None, (0.01, 0.7))
    torch.testing.assert_close(combined(scores, counted), scores[:, 0])


def test_heads_are_combined_by_the_root_of_the_mean_square_of_those_that_count():
    scores, counted = torch.rand(2, 4, 6), torch.tensor([[True, False, True, True], [False, False, True, False]])
    for b in range(2):
        own = scores[b][counted[b]].numpy()
        np.testing.assert_allclose(combined(scores, counted)[b], np.sqrt((own**2).mean(0)), rtol=1e-5)
        np.testing.assert_allclose(combined(scores, counted, "mean")[b], own.mean(0), rtol=1e-5)


# similar and unimportant


def test_similar_tokens_leave_the_lesser_half_alone_duplicates_first():
    g = torch.Generator().manual_seed(0)
    key = torch.randn(1, 2, 11, 4, generator=g)
    importance = torch.tensor([[9.0, 5, 6, 7, 8, 4.5, 1, 2, 3, 0.5, 0.1]])  # 1 prefix; better half 1-5, lesser 6-10
    key[:, :, 8], key[:, :, 10] = key[:, :, 3], 2.5 * key[:, :, 1]  # the cosine forgets lengths
    key[:, :, 4] = key[:, :, 2]  # twins in the better half
    key[:, :, 7] = key[:, :, 6]  # and in the lesser
    assert set(similar_tokens(importance, key, prefix=1, r=2)[0].tolist()) == {8, 10}
    for r in range(6):
        gone = similar_tokens(importance, key, prefix=1, r=r)[0].tolist()
        assert len(set(gone)) == r
        assert set(gone) <= {6, 7, 8, 9, 10}


def test_likeness_is_the_greatest_cosine_with_the_better_half():
    g = torch.Generator().manual_seed(2)
    key, importance = torch.randn(3, 2, 12, 5, generator=g), torch.rand(3, 12, generator=g)
    for how, b in itertools.product(("concat", "mean"), range(3)):
        rows = key[b].mean(0) if how == "mean" else torch.cat(list(key[b]), -1)
        order = sorted(range(1, 12), key=lambda i: -importance[b, i])
        better, lesser = order[:6], order[6:]
        like = {i: max(F.cosine_similarity(rows[i], rows[j], dim=0).item() for j in better) for i in lesser}
        expected = sorted(lesser, key=lambda i: -like[i])[:3]
        assert similar_tokens(importance, key, prefix=1, r=3, similarity=how)[b].tolist() == expected


def test_more_similar_tokens_than_the_lesser_half_has_are_refused():
    with pytest.raises(ValueError, match="similar=6: the less important half of 11 patch tokens has 5"):
        similar_tokens(torch.rand(1, 12), torch.randn(1, 1, 12, 4), prefix=1, r=6)


def test_equals_are_told_apart_by_their_place():
    assert most_important(torch.tensor([[0.0, 1, 2, 1, 2, 1]]), 1, 3).tolist() == [[0, 1, 2, 4]]
    assert similar_tokens(torch.ones(1, 9), torch.ones(1, 1, 9, 4), prefix=1, r=2).tolist() == [[5, 6]]


def test_the_prefix_stays_even_with_the_least_score():
    assert most_important(torch.tensor([[0.0, 0.1, 5, 4, 3]]), 2, 1).tolist() == [[0, 1, 2]]


def reference(A, key, *, prefix, keep, similar, T, vhf, boost, how, mean):
    """The whole choice for one image, in loops: A ``(heads, n, n)``, key ``(heads, n, c)``."""
    H, n, _ = A.shape

    def importance(at, T):
        scores = []
        for h in range(H):
            cut = A[h][np.ix_(at, at)]
            cut = cut / cut.sum(1, keepdims=True)
            s = np.ones(len(at))
            if boost == "sqrt":
                s[0] = np.sqrt(len(at))
            for _ in range(T):
                s = cut.T @ s
            scores.append(s / s.mean())
        used = [s for s in scores if vhf is None or vhf[0] <= s.var() <= vhf[1]] or scores
        return np.mean(used, 0) if mean else np.sqrt(np.mean(np.square(used), 0))

    at, gone = list(range(n)), []
    if similar:
        first = importance(at, 1)
        order = sorted(range(prefix, n), key=lambda i: -first[i])
        half = len(order) - len(order) // 2
        rows = key.mean(0) if how == "mean" else np.concatenate(list(key), -1)
        rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        likeness = {i: max(rows[i] @ rows[j] for j in order[:half]) for i in order[half:]}
        gone = sorted(likeness, key=lambda i: -likeness[i])[:similar]
        at = [i for i in at if i not in gone]
    if keep < len(at) - prefix:
        score = dict(zip(at, importance(at, T), strict=True))
        at = [*range(prefix), *sorted(sorted(at[prefix:], key=lambda i: -score[i])[:keep])]
    return at, gone


@pytest.mark.parametrize("vhf", [(0.01, 0.7), (0.3, 0.7), None])
@pytest.mark.parametrize(("boost", "how", "heads"), [
    ("sqrt", "concat", "rms"), ("uniform", "concat", "rms"), ("sqrt", "mean", "rms"), ("sqrt", "concat", "mean"),
])  # fmt: skip
@pytest.mark.parametrize(("keep", "similar", "prefix"), [(6, 3, 1), (9, 0, 1), (8, 3, 1), (3, 5, 2), (2, 4, 1)])
def test_the_choice_is_the_papers_three_steps(vhf, boost, how, heads, keep, similar, prefix):
    looked = seen(batch=4, tokens=11 + prefix, seed=keep)
    graph = AttentionGraph(vhf=vhf, cls_boost=boost, similarity=how, heads=heads)
    for T in (1, 6):
        choice = graph.choose(looked, prefix=prefix, keep=keep, similar=similar, iterations=T)
        for b in range(4):
            kept, gone = reference(
                looked.attention[b].numpy(), looked.key[b].numpy(), prefix=prefix, keep=keep, similar=similar, T=T,
                vhf=vhf, boost=boost, how=how, mean=heads == "mean",
            )  # fmt: skip
            assert choice.kept[b].tolist() == kept
            assert ([] if choice.similar is None else choice.similar[b].tolist()) == gone


def test_what_leaves_as_similar_changes_what_is_important():
    """Ten patches of one background vote each other up; with S first, the two of the object stay."""
    tokens = 14
    A = torch.full((tokens, tokens), 0.01)
    A[4:, 4:] = 0.3  # background looks at background
    A[:4, 1:4] = 0.5  # CLS and the object at the object
    A = (A / A.sum(-1, keepdim=True))[None, None]
    key = torch.randn(1, 1, tokens, 8, generator=torch.Generator().manual_seed(0))
    key[:, :, 4:] = key[:, :, 4:5]
    graph = AttentionGraph(vhf=None, cls_boost="uniform")
    without = graph.choose(Seen(A, key), prefix=1, keep=7, similar=0, iterations=30).kept[0].tolist()
    first = graph.choose(Seen(A, key), prefix=1, keep=7, similar=6, iterations=30).kept[0].tolist()
    assert len({1, 2, 3} & set(without)) == 0
    assert {1, 2, 3} <= set(first)


# schedules and costs


def test_the_papers_schedule_and_costs_for_deit_s():
    dense = DEIT_S.macs([197] * 12)
    assert dense == 12 * (12 * 197 * 384**2 + 2 * 197**2 * 384) + 196 * 768 * 384
    schedule = planned(DEIT_S)
    assert schedule == TokenSchedule(
        layers=(1, 3, 6, 9, 11), keep=(1.0, 0.9, 0.8, 0.7, 1.0), similar=(10,) * 5, iterations=(30, 5, 5, 1, 1)
    )
    counts = schedule.counts(patches=196, prefix=1, depth=12)
    assert counts == [197, 187, 187, 159, 159, 159, 119, 119, 119, 76, 76, 66, 66]
    assert 3.08e9 <= DEIT_S.macs(counts) <= 3.13e9  # published: 3.08 G


@pytest.mark.parametrize("target", [0.9, 0.873, 0.653, 0.65, 0.5, 0.35])
def test_the_planner_meets_a_target_and_no_weaker_schedule_does(target):
    dense = DEIT_S.macs([197] * 12)
    schedule = planned(DEIT_S, target_flops=target)
    share = DEIT_S.macs(schedule.counts(patches=196, prefix=1, depth=12)) / dense
    assert target - 0.01 < share <= target
    assert schedule == planned(DEIT_S, target_flops=target * dense)


def test_the_planner_keeps_what_is_given():
    only_similar = planned(DEIT_S, target_flops=0.8, keep=1)
    assert set(only_similar.keep) == {1}
    assert min(only_similar.similar) > 10
    only_important = planned(DEIT_S, target_flops=0.65, similar=0, layers=[2, 5], iterations=[7, 3])
    assert only_important.similar == (0, 0)
    assert (only_important.layers, only_important.iterations) == ((2, 5), (7, 3))
    assert planned(DEIT_S, keep=0.5).similar == (0,) * 5
    assert planned(DEIT_S, similar=4).keep == (1,) * 5


@pytest.mark.parametrize(("options", "match"), [
    ({"target_flops": 0.05}, r"0\.05 is out of reach.*at least 0\.\d\d of the dense cost"),
    ({"target_flops": 0.9, "layers": [11]}, "pruning after blocks 11 leaves"),
    ({"target_flops": 0}, "a share of the dense cost"),
    ({"target_flops": float("nan")}, "a share of the dense cost"),
    ({"target_flops": 0.5, "keep": 0.9, "similar": 3}, "leave out one"),
    ({"keep": 0.0}, "keep=0.0"),
    ({"keep": 1.2}, "keep=1.2"),
    ({"keep": [0.9, 0.8]}, "keep has 2 entries for 5"),
    ({"similar": -1}, "similar=-1"),
    ({"similar": 99}, "similar=99 after block 1.*98"),
    ({"keep": 0.004, "layers": [3]}, "removes every patch"),
    ({"keep": 0.9, "layers": [0]}, r"layer 0 of 12 blocks: tokens can leave after block 1 to 11"),
    ({"keep": 0.9, "layers": [12]}, r"layer 12 of 12 blocks"),
    ({"keep": 0.9, "layers": [3, 3]}, "ascending, each once"),
    ({"iterations": 0}, "iterations=0"),
    ({"iterations": 2.5}, "iterations=2.5: whole numbers"),
    ({"similar": 2.5}, "similar=2.5: whole numbers"),
    ({"keep": 0.9, "layers": [3.0]}, "layers=3.0: whole numbers"),
    ({"keep": float("nan")}, "keep=.*a number"),
    ({"keep": "0.9", "layers": [1, 2, 3]}, "keep='0.9': a number"),
])  # fmt: skip
def test_schedules_that_cannot_be_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        planned(DEIT_S, **options)


@pytest.mark.parametrize("kind", MAKERS)
def test_counts_and_costs_are_those_of_a_counter(kind):
    model = MAKERS[kind]()
    inside, shape = tower(model), tower_of(model).shape
    inside.set_attn_implementation("eager")

    def counted():
        with FlopCounterMode(display=False) as counter:
            found = states(model, pixels=PIXELS[:1], output_hidden_states=True).hidden_states
        return counter.get_total_flops() / 2, [h.shape[1] for h in found]

    dense = counted()[0]
    assert dense == shape.macs([shape.patches + shape.prefix] * shape.depth)
    for options in ({"target_flops": 0.65}, {"keep": 0.7}, {"similar": 5}, {"keep": 0.6, "similar": 3}):
        with zero_tprune(model, **options) as pruned:
            total, lengths = counted()
            told = pruned.flops()
            counts = pruned.schedule.counts(patches=shape.patches, prefix=shape.prefix, depth=shape.depth)
        assert lengths == [counts[0], *counts[1:]]
        assert told.dense == dense
        assert told.pruned + told.choosing == total


# in a model


@pytest.mark.parametrize("kind", MAKERS)
def test_keeping_all_is_the_model_itself_bit_for_bit(kind):
    model = MAKERS[kind]()
    before = states(model)[0]
    with zero_tprune(model, keep=1) as pruned:
        assert torch.equal(states(model)[0], before)
        assert pruned.flops().share == 1


@pytest.mark.parametrize("kind", MAKERS)
def test_undo_restores_and_the_schedule_can_be_switched(kind):
    model = MAKERS[kind]()
    before, hooks = states(model)[0], [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    configs, names = [m.config for m in model.modules() if hasattr(m, "config")], set(vars(tower(model)))
    pruned = zero_tprune(model, target_flops=0.65)
    first = states(model)[0]
    pruned.schedule = planned(pruned.tower.shape, keep=0.5, layers=[2])
    assert [k.layer for k in pruned.tokens(PIXELS)] == [2]
    second = states(model, output_hidden_states=True)
    pruned.schedule = planned(pruned.tower.shape, target_flops=0.65)
    assert torch.equal(states(model)[0], first)
    with pytest.raises(ValueError, match="layer 9"):
        pruned.schedule = TokenSchedule(layers=(9,), keep=(0.5,), similar=(0,), iterations=(1,))
    assert torch.equal(states(model)[0], first)  # a refused one changes nothing
    pruned.undo()
    pruned.undo()
    assert torch.equal(states(model)[0], before)
    assert second.hidden_states[-1].shape[1] == pruned.tower.shape.prefix + 32
    after = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    assert sum(after) <= sum(hooks) + 2 * 4 + 2  # those that transformers installed to record states
    assert all(
        a is b for a, b in zip(configs, [m.config for m in model.modules() if hasattr(m, "config")], strict=True)
    )
    assert not any(hasattr(m, "token_stage") for m in model.modules())
    assert {n for n in set(vars(tower(model))) - names if not n.startswith("_output")} == set()


def test_an_error_inside_the_block_undoes_too():
    model = vit()
    before = states(model)[0]
    with pytest.raises(RuntimeError, match="theirs"), zero_tprune(model, target_flops=0.65):
        raise RuntimeError("theirs")
    assert torch.equal(states(model)[0], before)


def by_hand(model, pixels, schedule, choose):
    """The tower block by block with eager attention, tokens taken out in between; the states before the final norm."""
    inside = tower(model)
    is_clip = hasattr(inside, "encoder")
    layers = inside.encoder.layers if is_clip else inside.layers
    hidden = inside.embeddings(pixels)
    hidden = inside.pre_layrnorm(hidden) if is_clip else hidden
    for n, block in enumerate(layers, 1):
        norm = block.layer_norm1 if is_clip else block.layernorm_before
        attention = block.self_attn if is_clip else block.attention
        heads = attention.num_heads if is_clip else attention.num_attention_heads
        x = norm(hidden)
        q, k, _ = (
            p(x).unflatten(-1, (heads, -1)).transpose(1, 2)
            for p in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        A = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        hidden = block(hidden, None)
        if n in schedule.layers:
            hidden = torch.stack([hidden[b, choose(n, A[b], k[b])] for b in range(len(hidden))])
    return hidden


@pytest.mark.parametrize("kind", MAKERS)
def test_the_whole_forward_pass_is_the_blocks_one_by_one_with_the_chosen_tokens_taken_out(kind):
    model, prefix = MAKERS[kind](), 2 if kind == "deit" else 1
    with zero_tprune(model, target_flops=0.6) as pruned:
        schedule = pruned.schedule
        found = states(model, output_hidden_states=True).hidden_states[-1]
        kept = pruned.tokens(PIXELS)

    places = [[*range(prefix + 64)] for _ in PIXELS]
    image = itertools.cycle(range(len(PIXELS)))

    def choose(n, A, key):
        which, b = schedule.layers.index(n), next(image)
        patches = len(places[b]) - prefix
        at, _ = reference(
            A.double().numpy(), key.double().numpy(), prefix=prefix, keep=schedule.left(which, patches),
            similar=schedule.similar[which], T=schedule.iterations[which], vhf=(0.01, 0.7), boost="sqrt", how="concat",
            mean=False,
        )  # fmt: skip
        places[b] = [places[b][i] for i in at]
        assert (kept[which].patches[b] + prefix).tolist() == places[b][prefix:]
        assert places[b][:prefix] == [*range(prefix)]
        return at

    with torch.no_grad():
        torch.testing.assert_close(found, by_hand(model, PIXELS, schedule, choose), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", MAKERS)
def test_a_batch_is_its_images_one_by_one(kind):
    model = MAKERS[kind]()
    with zero_tprune(model, target_flops=0.65) as pruned:
        together, kept = states(model)[0], pruned.tokens(PIXELS)
        for i in range(len(PIXELS)):
            torch.testing.assert_close(states(model, pixels=PIXELS[i : i + 1])[0][0], together[i], atol=1e-4, rtol=1e-4)
            for one, all_ in zip(pruned.tokens(PIXELS[i]), kept, strict=True):
                assert torch.equal(one.patches[0], all_.patches[i])


def test_each_patch_that_leaves_is_told_once():
    model = vit()
    with zero_tprune(model, keep=[1, 0.8, 0.7], similar=[4, 4, 0], layers=[1, 2, 3]) as pruned:
        first, second, third = pruned.tokens(PIXELS)
    for b in range(len(PIXELS)):
        left = set(range(64))
        assert set(first.patches[b].tolist()) == left - set(first.similar[b].tolist())
        assert set(second.similar[b].tolist()) <= set(first.patches[b].tolist())
        assert not set(second.similar[b].tolist()) & set(second.patches[b].tolist())
        assert set(third.patches[b].tolist()) < set(second.patches[b].tolist()) < set(first.patches[b].tolist())
    assert third.similar is None
    assert (len(first.patches[0]), len(second.patches[0]), len(third.patches[0])) == (60, 44, 30)


@pytest.mark.parametrize("recorded_before", [True, False])
def test_hidden_states_have_the_lengths_that_go_on_and_attentions_are_those_of_pruning_layers(recorded_before):
    model = vit()
    if recorded_before:
        states(model, output_hidden_states=True)
    with zero_tprune(model, keep=0.5, layers=[2]):
        out = states(model, output_hidden_states=True, output_attentions=True)
    assert [h.shape[1] for h in out.hidden_states] == [65, 65, 33, 33, 33]
    assert [a.shape for a in out.attentions] == [(3, 4, 65, 65)]
    torch.testing.assert_close(out.attentions[0].sum(-1), torch.ones(3, 4, 65))


def test_a_clips_words_are_not_touched():
    model = clip()
    mask = (WORDS != 49).long()
    with torch.no_grad():
        before = model(input_ids=WORDS, attention_mask=mask, pixel_values=PIXELS)
        with zero_tprune(model, target_flops=0.6):
            during = model(input_ids=WORDS, attention_mask=mask, pixel_values=PIXELS)
    assert torch.equal(during.text_embeds, before.text_embeds)
    assert not torch.allclose(during.image_embeds, before.image_embeds)


def test_the_attention_function_keeps_masks_and_causality_where_nothing_is_pruned():
    model = clip()
    mask = (WORDS != 49).long()
    with torch.no_grad():
        before = model.get_text_features(input_ids=WORDS, attention_mask=mask).pooler_output
        register()
        model.set_attn_implementation(NAME)
        after = model.get_text_features(input_ids=WORDS, attention_mask=mask).pooler_output
        unmasked = model.get_text_features(input_ids=WORDS).last_hidden_state
        changed = model.get_text_features(input_ids=torch.cat([WORDS[:, :4], WORDS[:, 4:].flip(1)], 1))
    assert torch.equal(after, before)
    assert torch.equal(changed.last_hidden_state[:, :4], unmasked[:, :4])  # what comes later is not seen


@pytest.mark.parametrize("how", ["sdpa", "eager"])
def test_masked_patches_are_not_seen_do_not_vote_and_their_mask_follows(how):
    model = vit()
    model.set_attn_implementation(how)
    mask = torch.ones(3, 65, dtype=torch.long)
    mask[:, 45:] = 0
    other = PIXELS.clone()
    other.view(3, 3, 8, 4, 8, 4)[:, :, 6:] = 7.0  # rows of patches 48 to 63, all masked
    with zero_tprune(model, keep=0.8, similar=4) as pruned:
        assert not torch.allclose(states(model)[0][:, 0], states(model, pixels=other)[0][:, 0], atol=1e-3)
        a = states(model, attention_mask=mask)[0]
        kept = [pruned._stages[b].choice.kept for b in pruned._stages]
        b = states(model, attention_mask=mask, pixels=other)[0]
    torch.testing.assert_close(a[:, 0], b[:, 0])
    assert kept[-1].shape[1] == a.shape[1]


def test_the_mask_of_later_blocks_is_that_of_the_tokens_left():
    model, rows = vit(), torch.ones(3, 65, dtype=torch.long)
    rows[0, 10:30] = 0
    with zero_tprune(model, keep=0.9, layers=[1]) as pruned, torch.no_grad():
        got = []
        hook = tower(model).layers[2].register_forward_pre_hook(lambda m, args: got.append(args[1]))
        states(model, attention_mask=rows)
        hook.remove()
        kept = pruned._stages[0].choice.kept
    assert torch.equal(got[0][:, 0].any(1), rows.gather(1, kept).bool())
    assert got[0].shape[-2:] == (kept.shape[1], kept.shape[1])


def test_masked_patches_leave_first():
    model, mask = vit(), torch.ones(1, 65, dtype=torch.long)
    mask[:, 41:] = 0  # 24 of 64 patches
    with zero_tprune(model, keep=0.7, layers=[2]) as pruned:
        states(model, attention_mask=mask, pixels=PIXELS[:1])
        kept = pruned._stages[1].choice.kept
    assert kept.shape[1] == 45
    assert set(range(41)) <= set(kept[0].tolist())


@pytest.mark.parametrize("kind", MAKERS)
def test_bfloat16_is_served(kind):
    model = MAKERS[kind]().bfloat16()
    with zero_tprune(model, target_flops=0.65) as pruned:
        out = states(model, pixels=PIXELS.bfloat16())[0]
        assert out.dtype == torch.bfloat16
        assert torch.isfinite(out).all()
        assert pruned.tokens(PIXELS)[0].patches.shape[1] == pruned.schedule.left(0, 64)
        for block in pruned._stages:
            assert pruned._stages[block].seen is None  # nothing is held
    with prune_tokens(model, merging_schedule(tower_of(model).shape, 0.65), MergeSimilar()):
        assert torch.isfinite(states(model, pixels=PIXELS.bfloat16())[0]).all()


def test_votes_are_counted_before_dropout():
    model = vit(attention_probs_dropout_prob=0.9).train()
    sums = []

    class Look(AttentionGraph):
        def choose(self, seen, **sizes):
            sums.append(seen.attention.sum(-1))
            return super().choose(seen, **sizes)

    schedule = planned(tower_of(model).shape, keep=0.8)
    with prune_tokens(model, schedule, Look()):
        loss = model(pixel_values=PIXELS, labels=torch.tensor([0, 1, 2])).loss
    for s in sums:
        torch.testing.assert_close(s, torch.ones_like(s))
    loss.backward()  # fine-tuning goes through
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_it_compiles_as_one_graph(backend):
    model = tower(vit())
    with torch.no_grad(), zero_tprune(model, target_flops=0.65):
        expected = model(pixel_values=PIXELS)[0]
        torch._dynamo.reset()
        found = torch.compile(model, backend=backend, fullgraph=True)(pixel_values=PIXELS)[0]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_copy_of_the_model_is_pruned_and_undone_on_its_own():
    model = vit()
    before = states(model)[0]
    pruned = zero_tprune(model, target_flops=0.65)
    fewer = states(model)[0]
    twin = copy.deepcopy(model)
    pruned.undo()
    assert torch.equal(states(twin)[0], fewer)
    assert torch.equal(states(model)[0], before)
    tower(twin).token_pruning.undo()
    assert torch.equal(states(twin)[0], before)


def test_a_model_wrapped_by_peft_is_pruned_inside():
    from peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(vit(), LoraConfig(target_modules=["q_proj"], r=2)).eval()
    with zero_tprune(wrapped, target_flops=0.65), torch.no_grad():
        assert wrapped(pixel_values=PIXELS, output_hidden_states=True).hidden_states[-1].shape[1] < 40


# refusals


def beit():
    from transformers import BeitConfig, BeitModel

    return BeitModel(BeitConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32))


def masked_images():
    from transformers import ViTForMaskedImageModeling

    return ViTForMaskedImageModeling(vit().config)


def mae():
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    decoder = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    return ViTMAEForPreTraining(ViTMAEConfig(**sizes, **decoder, decoder_intermediate_size=32))


@pytest.mark.parametrize(("make", "match"), [
    (beit, "BeitModel cannot be pruned: its relative position bias"),
    (mae, "ViTMAEForPreTraining cannot be pruned: its decoder needs every patch"),
    (masked_images, "ViTForMaskedImageModeling cannot be pruned: its head rebuilds every patch"),
    (lambda: clip().text_model, "CLIPTextModel cannot be pruned: it reads words"),
    (bert, "BertForSequenceClassification cannot be pruned; served are ViT and DeiT"),
    (lambda: torch.nn.Linear(2, 2), "Linear cannot be pruned; served are"),
])  # fmt: skip
def test_models_that_are_not_served_are_refused_by_name(make, match):
    with pytest.raises(ValueError, match=match):
        zero_tprune(make(), target_flops=0.65)


@pytest.mark.parametrize(("options", "match"), [
    ({"target_flops": 0.05}, "out of reach"),
    ({"preset": "d"}, "unknown preset 'd'"),
    ({"preset": "a", "target_flops": 0.5}, "give one of them"),
    ({"vhf": (0.7, 0.01)}, "vhf="),
    ({"vhf_scale": "max"}, "unknown vhf_scale"),
    ({"cls_boost": "root"}, "unknown cls_boost"),
    ({"similarity": "dot"}, "unknown similarity"),
    ({"heads": "max"}, "unknown heads"),
    ({"keep": 0.5, "layers": [4]}, "layer 4 of 4 blocks"),
])  # fmt: skip
def test_options_that_mean_nothing_are_refused_before_the_model_is_touched(options, match):
    model = vit()
    before = states(model)[0]
    with pytest.raises(ValueError, match=match):
        zero_tprune(model, **options)
    assert torch.equal(states(model)[0], before)


def test_pruning_twice_is_refused():
    model = vit()
    zero_tprune(model, target_flops=0.65)
    with pytest.raises(ValueError, match="pruned already"):
        zero_tprune(model, target_flops=0.9)


def test_a_model_of_one_block_has_nothing_between_blocks():
    with pytest.raises(ValueError, match="two are needed"):
        zero_tprune(vit(layers=1), target_flops=0.65)


@pytest.mark.parametrize("mask", [torch.ones(3, 65, dtype=torch.bool), torch.zeros(3, 1, 65, 64), "block mask"])
def test_masks_that_cannot_follow_are_refused(mask):
    model = vit()
    block, prefix = tower(model).layers[1], torch.randn(3, 65, 32)
    with zero_tprune(model, keep=0.5, layers=[2]), pytest.raises(ValueError, match=r"attention mask .* cannot follow"):
        block(prefix, mask)


def test_pixels_of_another_shape_are_refused():
    with zero_tprune(vit(), target_flops=0.65) as pruned, pytest.raises(ValueError, match=r"shape \(2, 2\)"):
        pruned.tokens(torch.zeros(2, 2))


def test_presets_are_the_papers_shares():
    with zero_tprune(vit(layers=12), preset="b") as pruned:
        assert 0.53 < pruned.flops().share <= 0.549


def test_the_family_of_image_models_offers_it_too():
    from rankwise import compression, vision

    assert vision.zero_tprune is compression.zero_tprune
    assert "zero_tprune" in vision.__all__


# what it is measured against


def test_random_tokens_are_decided_by_their_seed_and_keep_the_count():
    looked = seen(batch=64, tokens=21)
    sizes = {"prefix": 1, "keep": 5, "similar": 3, "iterations": 1}
    a = RandomTokens(seed=1).choose(looked, **sizes).kept
    assert torch.equal(a, RandomTokens(seed=1).choose(looked, **sizes).kept)
    assert not torch.equal(a, RandomTokens(seed=2).choose(looked, **sizes).kept)
    assert (a[:, 0] == 0).all()
    assert (a.diff() > 0).all()
    often = torch.bincount(a[:, 1:].flatten(), minlength=21)[1:]
    assert a.shape == (64, 6)
    assert often.min() > 4  # of 64 draws of a quarter: 16 is expected
    assert often.max() < 32


def test_attention_to_cls_keeps_the_patches_of_greatest_weight_in_its_row():
    looked = seen(batch=3, tokens=12)
    kept = AttentionToCLS().choose(looked, prefix=2, keep=4, similar=0, iterations=1).kept
    for b in range(3):
        weight = looked.attention[b, :, 0].mean(0)
        assert kept[b].tolist() == [0, 1, *sorted(sorted(range(2, 12), key=lambda i: -weight[i])[:4])]
    with pytest.raises(ValueError, match="needs a CLS token"):
        AttentionToCLS().choose(looked, prefix=0, keep=4, similar=0, iterations=1)


def test_merging_pairs_the_likest_of_two_sides():
    looked = seen(batch=2, heads=2, tokens=10)
    choice = MergeSimilar().choose(looked, prefix=1, keep=7, similar=2, iterations=1)
    for b in range(2):
        rows = F.normalize(looked.key[b].mean(0), dim=-1)
        pairs = {i: max(range(2, 10, 2), key=lambda j: rows[i] @ rows[j]) for i in range(1, 10, 2)}
        best = sorted(pairs, key=lambda i: -(rows[i] @ rows[pairs[i]]))[:2]
        assert choice.similar[b].tolist() == best
        assert choice.into[b].tolist() == [pairs[i] for i in best]
        assert choice.kept[b].tolist() == [i for i in range(10) if i not in best]
    with pytest.raises(ValueError, match="similar tokens alone"):
        MergeSimilar().choose(looked, prefix=1, keep=5, similar=2, iterations=1)


def test_merged_twins_change_nothing():
    """Two equal patches as one that counts twice: CLS is what it was, whatever is merged, time after time."""
    model = vit()
    with torch.no_grad():
        tower(model).embeddings.position_embeddings[:, 1:] = 0
    flat = PIXELS[:, :, :1, :1].expand(-1, -1, 32, 32).clone()
    flat[:, :, :, 16:] *= -1  # two kinds of patch, side by side
    before = states(model, pixels=flat)[0][:, 0]
    schedule = TokenSchedule(layers=(1, 2, 3), keep=(1.0,) * 3, similar=(6, 9, 8), iterations=(1,) * 3)
    with prune_tokens(model, schedule, MergeSimilar()) as pruned:
        found = states(model, pixels=flat)[0][:, 0]
        sizes = pruned._stages[2].sizes
    torch.testing.assert_close(found, before, atol=1e-4, rtol=1e-4)
    assert (sizes.sum(1) == 65).all()
    assert (sizes > 1).any()


def test_merging_schedules_meet_their_target_with_about_as_many_at_each_block():
    for target in (0.9, 0.65, 0.5):
        schedule = merging_schedule(DEIT_S, target)
        share = DEIT_S.macs(schedule.counts(patches=196, prefix=1, depth=12)) / DEIT_S.macs([197] * 12)
        assert target - 0.005 < share <= target
        assert target == 0.5 or max(schedule.similar) - min(schedule.similar) <= 1  # at last half of what is there
    with pytest.raises(ValueError, match="out of reach"):
        merging_schedule(DEIT_S, 0.05)


# timm


@pytest.fixture
def of_timm():
    timm = pytest.importorskip("timm", exc_type=ImportError)
    torch.manual_seed(0)
    return timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=4, embed_dim=32, depth=4, num_heads=4, num_classes=5
    ).eval()


def test_a_vision_transformer_of_timm_is_pruned_and_undone(of_timm):
    with torch.no_grad():
        before = of_timm(PIXELS)
        with zero_tprune(of_timm, keep=1):
            assert torch.equal(of_timm(PIXELS), before)
        with zero_tprune(of_timm, keep=0.7, similar=3, layers=[1, 3]) as pruned:
            assert of_timm.forward_features(PIXELS).shape[1] == 1 + pruned.schedule.left(1, pruned.schedule.left(0, 64))
            assert not torch.allclose(of_timm(PIXELS), before)
            assert [k.patches.shape[1] for k in pruned.tokens(PIXELS)] == [42, 27]
        with prune_tokens(of_timm, merging_schedule(tower_of(of_timm).shape, 0.65), MergeSimilar()):
            assert of_timm(PIXELS).shape == (3, 5)
        assert torch.equal(of_timm(PIXELS), before)
        with zero_tprune(of_timm, keep=0.7), pytest.raises(ValueError, match="mask of timm"):
            of_timm.forward_features(PIXELS, attn_mask=torch.zeros(3, 1, 65, 65))


def test_timms_attention_is_what_the_choice_is_made_from(of_timm):
    got = {}

    class Look(AttentionGraph):
        def choose(self, seen, **sizes):
            got["seen"] = seen
            return super().choose(seen, **sizes)

    block = of_timm.blocks[0]
    with torch.no_grad(), prune_tokens(of_timm, planned(tower_of(of_timm).shape, keep=0.5, layers=[1]), Look()):
        of_timm(PIXELS)
        x = block.norm1(of_timm._pos_embed(of_timm.patch_embed(PIXELS)))
        q, k, _ = block.attn.qkv(x).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
    torch.testing.assert_close(got["seen"].attention, (q @ k.mT / 8**0.5).softmax(-1))
    torch.testing.assert_close(got["seen"].key, k)


def test_a_compiled_model_is_pruned_before():
    compiled = torch.compile(torch.nn.Linear(2, 2), backend="eager")
    with pytest.raises(ValueError, match=r"given to torch\.compile"):
        zero_tprune(compiled)
