"""In-context learning: what is drawn, what the network computes, what is measured, and that stacks are single runs."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from rankwise.dynamics import (
    AttentionOnlyNet,
    InContextBatch,
    InContextExperiment,
    InContextTask,
    MinimalInductionHead,
    PhenomenologicalModel,
    Sampler,
    hand_set,
    progress,
)
from rankwise.dynamics.in_context.experiment import descend
from rankwise.dynamics.in_context.network import FIRST, classify

SMALL = {"classes": 48, "labels": 8, "dim": 15, "pairs": 4, "n_max": 6}


def small(**changed):
    return InContextTask(**(SMALL | changed))


def drawn(size=4000, *, seed=0, **changed):
    return small(**changed).sampler(seed).draw(size).of(0)


def classes_of(task, batch, seed=0):
    """Nearest class of every item, known ones alone: of a task without noise."""
    items = batch.inputs[:, ::2, task.places :]
    return torch.cdist(items, task.sampler(seed).means[0]).argmin(-1)


# --- data


def test_items_and_labels_have_unit_norm_on_average_whatever_the_noise():
    for noise in (0.0, 0.1, 2.0):
        task = InContextTask(noise=noise)
        content = next(iter(task)).inputs[..., task.places :]
        norms = content.square().sum(-1)
        assert float(norms[:, ::2].mean()) == pytest.approx(1, abs=0.03)
        assert float(norms[:, 1::2].mean()) == pytest.approx(1, abs=0.1)


def test_an_item_is_its_classs_mean_and_noise_of_that_share():
    task = small(noise=0.5, dim=400)
    batch = task.sampler(0).draw(500).of(0)
    means = task.sampler(0).means[0][classes_of(task, batch)]
    items = batch.inputs[:, ::2, task.places :]
    rest = items * math.sqrt(1.25) - means
    assert float(rest.square().sum(-1).mean()) == pytest.approx(0.25, rel=0.02)
    assert abs(float((rest * means).sum(-1).mean())) < 0.005


@pytest.mark.parametrize("burstiness", [1, 2])
def test_a_bursty_context_holds_each_class_so_often_and_the_target_is_of_one_of_them(burstiness):
    task = small(burstiness=burstiness, noise=0.0, classes=8000)  # drawn with replacement: hardly ever the same
    batch = task.sampler(0).draw(300).of(0)
    found = classes_of(task, batch)
    counts = [sorted(np.unique(row, return_counts=True)[1]) for row in found[:, :-1].numpy()]
    assert np.mean([c == [burstiness] * (4 // burstiness) for c in counts]) > 0.98
    assert bool(batch.match.any(-1).all())
    assert torch.equal(batch.match, found[:, :-1] == found[:, -1:])
    assert float(batch.match.float().sum(-1).mean()) == pytest.approx(burstiness, rel=0.02)


def test_copies_of_a_class_stand_in_any_order():
    task = small(burstiness=2, noise=0.0, classes=8000)
    found = classes_of(task, task.sampler(0).draw(900).of(0))
    beside = float((found[:, 0] == found[:, 1]).float().mean())
    assert beside == pytest.approx(1 / 3, abs=0.05)


def test_every_place_of_the_context_gives_the_target_as_often():
    place = drawn(4000, classes=8000).match.float().argmax(-1)
    assert stats.chisquare(np.bincount(place, minlength=4)).pvalue > 1e-3


def test_shares_of_bursty_and_of_novel_sequences_are_those_asked_for():
    held = drawn(4000, p_burst=0.3, classes=8000).match.any(-1).sum()
    assert stats.binomtest(int(held), 4000, 0.3).pvalue > 1e-3
    task = small(p_burst=0.5, p_novel=0.25, noise=0.0)
    items = task.sampler(0).draw(4000).of(0).inputs[:, 0, task.places :]
    strange = (torch.cdist(items, task.sampler(0).means[0]).min(-1).values > 1e-3).sum()
    assert stats.binomtest(int(strange), 4000, 0.25).pvalue > 1e-3


def test_the_target_stands_in_other_contexts_by_chance_alone():
    held = drawn(20_000, p_burst=0.0, burstiness=0).match.any(-1).sum()
    assert stats.binomtest(int(held), 20_000, 1 - (1 - 1 / 48) ** 4).pvalue > 1e-3


@pytest.mark.parametrize("zipf", [0.0, 1.0])
def test_frequencies_of_classes_follow_zipf(zipf):
    task = small(zipf=zipf, p_burst=0.0, burstiness=0, noise=0.0)
    counts = np.bincount(classes_of(task, task.sampler(0).draw(4000).of(0)).ravel(), minlength=48)
    expected = np.arange(1, 49) ** -zipf
    assert stats.chisquare(counts, counts.sum() * expected / expected.sum()).pvalue > 1e-3


def test_every_label_has_as_many_classes_and_each_class_its_own_label():
    task = small(p_burst=0.0, burstiness=0, noise=0.0)
    batch = task.sampler(0).draw(4000).of(0)
    found = classes_of(task, batch)
    assert torch.equal(found[:, :-1] % 8, batch.context)
    assert torch.equal(found[:, -1] % 8, batch.target)
    assert stats.chisquare(np.bincount(batch.target)).pvalue > 1e-3
    embeddings = task.sampler(0).embeddings[0]
    assert torch.equal(batch.inputs[:, 1::2, task.places :], embeddings[batch.context])


def test_places_are_one_hot_in_a_row_from_a_uniform_offset():
    task = small()
    place = task.sampler(0).draw(5000).of(0).inputs[..., : task.places]
    assert torch.equal(place.sum(-1), torch.ones(5000, 9))
    at = place.argmax(-1)
    assert torch.equal(at - at[:, :1], torch.arange(9).expand(5000, 9))
    counts = np.bincount(at[:, -1], minlength=13)
    assert counts[:8].sum() == 0
    assert len(counts) == 13
    assert stats.chisquare(counts[8:]).pvalue > 1e-3  # 13 - 9 + 1 offsets


def test_labels_of_a_context_without_repeats_are_distinct():
    for options in ({}, {"zipf": 1.5}, {"p_novel": 1.0}, {"burstiness": 2}):
        context = drawn(500, no_repeats=True, **options).context
        assert {len(set(row.tolist())) for row in context} == {4 // options.get("burstiness", 1)}, options
    repeated = drawn(500).context
    assert min(len(set(row.tolist())) for row in repeated) < 4


def test_labels_without_repeats_are_as_frequent_as_their_classes():
    first = drawn(4000, no_repeats=True, burstiness=2, pairs=4, labels=2, classes=4, zipf=1.0, n_max=4)
    task = small(no_repeats=True, burstiness=2, labels=2, classes=4, zipf=1.0, noise=0.0)
    found = classes_of(task, task.sampler(0).draw(4000).of(0))
    assert first.context.float().mean() == 0.5  # both labels, always
    ones = (found[:, :-1] == 0).any(-1).sum()  # of label 0: class 0 or 2, as 1 to 1/3
    assert stats.binomtest(int(ones), 4000, 0.75).pvalue > 1e-3


def test_evaluation_sets_keep_classes_and_labels_and_shift_those_of_the_context():
    task = small(noise=0.0)
    sets, sampler = task.eval_sets(400), task.sampler()
    nearest = lambda b: torch.cdist(b.inputs[:, ::2, task.places :], sampler.means[0]).min(-1)  # noqa: E731
    assert float(nearest(sets["iwl"]).values.max()) < 1e-3
    assert float(nearest(sets["ic2"]).values.max()) < 1e-3
    assert float(nearest(sets["ic"]).values.min()) > 1e-3
    assert torch.equal((nearest(sets["ic2"]).indices[:, -1] + 1) % 8, sets["ic2"].target)
    assert torch.equal(nearest(sets["iwl"]).indices[:, -1] % 8, sets["iwl"].target)
    assert not bool(sets["iwl"].match.any(-1).all())
    for name in ("ic", "ic2"):
        there = sets[name].match.any(-1)
        assert bool(there.all())
        matched = torch.where(sets[name].match, sets[name].context, -1).amax(-1)
        assert torch.equal(matched, sets[name].target), name
        labels = sets[name].inputs[:, 1::2, task.places :]
        assert torch.equal(labels, sampler.embeddings[0][sets[name].context]), name


def test_new_classes_are_new_in_every_batch():
    sampler = small(p_novel=1.0, noise=0.0).sampler(0)
    one, two = (sampler.draw(300).of(0).inputs[:, ::2, 13:].flatten(0, 1) for _ in range(2))
    assert float(torch.cdist(one, two).min()) > 1e-3
    assert len(torch.unique(one, dim=0)) == 128


def test_a_seed_draws_the_same_alone_and_beside_others_and_workers_draw_otherwise():
    alone, beside = small().sampler(5), small().sampler(3, 5)
    for _ in range(2):
        for a, b in zip(alone.draw(20).of(0), beside.draw(20).of(1), strict=True):
            assert torch.equal(a, b)
    worker = Sampler(small(), (5,), worker=1)
    assert torch.equal(worker.means, alone.means)
    assert not torch.equal(worker.draw(20).inputs, small().sampler(5).draw(20).inputs)


def test_a_data_loader_takes_the_task():
    loader = torch.utils.data.DataLoader(small(batch_size=7), batch_size=None)
    first = next(iter(loader))
    assert first.inputs.shape == (7, 9, 28)
    assert torch.equal(first.inputs, next(iter(small(batch_size=7))).inputs)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"classes": 50}, r"classes=50: a multiple of labels=8 is accepted, e.g. 48"),
        ({"burstiness": 3}, r"burstiness=3: divisors of pairs=4 below it are accepted \(1, 2\)"),
        ({"burstiness": 4}, "burstiness=4: divisors of pairs=4 below it"),
        ({"burstiness": 0}, "burstiness=0: no sequence is bursty"),
        ({"pairs": 8}, "pairs=8: places have room for n_max=6; give n_max=8"),
        ({"p_burst": 1.5}, r"p_burst=1.5: a number in \[0, 1\]"),
        ({"p_novel": float("nan")}, r"p_novel=nan: a number in \[0, 1\]"),
        ({"zipf": -1.0}, "zipf=-1.0: a number of at least 0"),
        ({"noise": float("inf")}, "noise=inf: a number of at least 0"),
        ({"dim": 0}, "dim=0: a whole number of at least 1"),
        ({"labels": 1}, "labels=1: a whole number of at least 2"),
        ({"pairs": 4.0}, "pairs=4.0: a whole number"),
        ({"labels": 2, "no_repeats": True}, "no_repeats with pairs / burstiness = 4 classes: at most labels=2"),
        ({"labels": 2, "classes": 2}, "classes=2: at least pairs / burstiness = 4 are needed"),
        ({"seed": True}, "seed=True: a whole number"),
        ({"p_novel": 1.0, "p_burst": 0.5}, r"p_burst=0.5: where all sequences .*p_burst=1 is accepted"),
        ({"p_novel": 1.0, "zipf": 1.0}, r"zipf=1.0: where all sequences .*zipf=0 is accepted"),
    ],
)
def test_a_task_that_cannot_be_is_refused_by_name(changed, said):
    with pytest.raises(ValueError, match=said):
        small(**changed)


@pytest.mark.parametrize("size", [0, -1, 2.5, True])
def test_a_number_of_sequences_that_cannot_be_is_refused(size):
    with pytest.raises(ValueError, match=f"size={size}: a whole number of at least 1"):
        small().eval_sets(size)
    with pytest.raises(ValueError, match="size="):
        small().sampler(0).draw(size)


def test_noise_of_any_size_leaves_items_of_unit_norm():
    task = small(noise=1e200, dim=400)
    items = task.sampler(0).draw(50).of(0).inputs[:, ::2, task.places :]
    assert float(items.square().sum(-1).mean()) == pytest.approx(1, abs=0.03)


def test_sets_of_a_task_of_frequent_classes_have_new_ones_that_are_as_frequent_as_each_other():
    sets = small(zipf=3.0, p_novel=0.5, noise=0.0).eval_sets(300)
    new = sets["ic"].inputs[:, ::2, 13:].flatten(0, 1)
    assert len(torch.unique(new, dim=0)) == 128
    assert len(torch.unique(sets["ic2"].inputs[:, ::2, 13:].flatten(0, 1), dim=0)) < 48


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        ([], "at least one"),
        (-1, "seeds=-1"),
        ([0, -1], "seeds=-1"),
        (1.5, "seeds=1.5"),
        ("23", "='2'"),
        (True, "=True"),
    ],
)
def test_seeds_that_are_no_whole_numbers_are_refused_wherever_they_are_given(seeds, said):
    for made in (AttentionOnlyNet, lambda task, seeds: MinimalInductionHead(0.0, 0.0, task=task, seeds=seeds)):
        with pytest.raises(ValueError, match=said):
            made(small(), seeds=seeds)
    if isinstance(seeds, list) and seeds:
        with pytest.raises(ValueError, match=said):
            small().sampler(*seeds)


def test_numpys_numbers_are_pythons(tmp_path):
    task = small(classes=np.int64(48), noise=np.float32(0.5), p_novel=1.0, batch_size=np.int32(12))
    given = experiment(task, steps=np.int64(3), learning_rate=np.float32(0.25)).run(np.int64(2), keep=tmp_path / "a")
    same = experiment(small(noise=0.5, p_novel=1.0, batch_size=12), steps=3, learning_rate=0.25)
    same = same.run(np.arange(2), keep=tmp_path / "a")  # the kept run goes on: its settings are the same
    np.testing.assert_array_equal(given.frame.to_numpy(float), same.frame.to_numpy(float))
    assert AttentionOnlyNet(task, seeds=np.int64(1)).q1.ndim == 2


# --- the network


@pytest.fixture(scope="module")
def net():
    return AttentionOnlyNet(small(), seeds=1, hidden=32)


def test_the_network_is_the_papers_written_token_by_token(net):
    inputs = drawn(3).inputs
    for x, said in zip(inputs, net(inputs), strict=True):
        stream = x
        for n in (1, 2):
            q, k, v = (getattr(net, f"{name}{n}") for name in "qkv")
            after = []
            for t in range(len(x)):
                scores = torch.stack([stream[t] @ q @ (stream[j] @ k) for j in range(t + 1)])
                a = scores.exp() / scores.exp().sum()
                after.append(stream[t] + sum(a[j] * (stream[j] @ v) for j in range(t + 1)))
            stream = torch.stack(after)
        h = stream[-1]
        for n in (1, 2, 3):
            h = (h @ getattr(net, f"w{n}") + getattr(net, f"b{n}")).clamp(min=0)
        torch.testing.assert_close(said, h @ net.head, rtol=1e-4, atol=1e-5)


def test_first_weights_have_the_published_spread_and_biases_are_one_number_a_layer():
    net = AttentionOnlyNet(InContextTask(), seeds=0)
    for name in ("q1", "k1", "v1", "q2", "k2", "v2"):
        assert getattr(net, name).shape == (128, 128)
        assert float(getattr(net, name).detach().std()) == pytest.approx(63**-0.5, rel=0.03)
    for n in (1, 2, 3):
        assert getattr(net, f"b{n}").shape == ()
        assert float(getattr(net, f"w{n}").detach().std()) == pytest.approx((2 / 128) ** 0.5, rel=0.03)
    assert float(net.head.detach().std()) == pytest.approx(128**-0.5, rel=0.03)
    assert not torch.equal(net.q1, net.k1)
    assert not torch.equal(net.w2, net.w3)


def test_later_tokens_change_nothing_before_them_and_rows_of_attention_sum_to_one(net):
    x = drawn(5).inputs
    other = x.clone()
    other[:, 5:] = torch.randn_like(other[:, 5:])
    (one, a), (two, _) = net.layers(x), net.layers(other)
    torch.testing.assert_close(one[:, :5], two[:, :5])
    assert not torch.allclose(one[:, 5:], two[:, 5:])
    torch.testing.assert_close(a.sum(-1), torch.ones(5, 2, 9))
    assert not a.triu(1).any()
    torch.testing.assert_close(classify(net, one[:, -1]), net(x))


@pytest.mark.parametrize("seeds", [0, (0, 1)])
def test_what_is_inside_has_the_names_and_shapes_of_transformer_lens(seeds):
    task = InContextTask()
    net, x = AttentionOnlyNet(task, seeds=seeds), next(iter(task)).inputs[:3]
    x = x if seeds == 0 else x.expand(2, *x.shape)
    logits, cache = net.run_with_cache(x)
    stream, attention = net.layers(x)
    tokens, d = x.shape[-2:]
    first = x.shape[:-2]
    assert torch.equal(logits, net(x))
    assert torch.equal(cache["blocks.0.hook_resid_pre"], x)
    assert cache["blocks.0.hook_resid_pre"].data_ptr() != x.data_ptr()
    assert torch.equal(cache["blocks.1.attn.hook_z"][..., 0, :], cache["blocks.1.hook_attn_out"])
    assert torch.allclose(cache["blocks.1.hook_resid_post"], stream, atol=1e-5)
    for i in (0, 1):
        of = f"blocks.{i}"
        assert cache[f"{of}.attn.hook_pattern"].shape == (*first, 1, tokens, tokens)
        assert torch.allclose(cache[f"{of}.attn.hook_pattern"][..., 0, :, :], attention[..., i, :, :], atol=1e-5)
        assert cache[f"{of}.attn.hook_q"].shape == (*first, tokens, 1, d)
        value = cache[f"{of}.attn.hook_pattern"][..., 0, :, :] @ cache[f"{of}.attn.hook_v"][..., 0, :]
        assert torch.allclose(cache[f"{of}.hook_attn_out"], value, atol=1e-5)
        moved = cache[f"{of}.hook_resid_pre"] + cache[f"{of}.hook_attn_out"]
        assert torch.allclose(moved, cache[f"{of}.hook_resid_post"], atol=1e-6)
    assert torch.equal(cache["blocks.0.hook_resid_post"], cache["blocks.1.hook_resid_pre"])
    scores = cache["blocks.0.attn.hook_attn_scores"][..., 0, :, :]
    by_hand = torch.einsum("...sqa,...ab,...cb,...skc->...sqk", x, net.q1, net.k1, x)
    assert torch.allclose(scores[..., 5, :6], by_hand[..., 5, :6], rtol=1e-4, atol=1e-4)
    assert torch.isinf(scores[..., 5, 6:]).all()


def test_inputs_that_are_no_sequences_of_the_task_are_refused():
    batch = next(iter(InContextTask()))
    net = AttentionOnlyNet(InContextTask())
    for wrong in (batch, batch.inputs[..., :5], batch.inputs[0]):
        for call in (net, net.layers, net.run_with_cache):
            with pytest.raises(ValueError, match=r"inputs .* is needed"):
                call(wrong)


def test_an_untrained_network_is_at_chance():
    sets = InContextTask().eval_sets(3000)
    found = [float(progress(AttentionOnlyNet(InContextTask(), seeds=s), sets["ic"]).accuracy) for s in range(3)]
    assert np.mean(found) == pytest.approx(1 / 32, abs=0.015)


def test_a_stack_is_its_members():
    task = small()
    stack, batch = AttentionOnlyNet(task, seeds=[4, 2]), task.sampler(4, 2).draw(30)
    said, (_, seen) = stack(batch.inputs), stack.layers(batch.inputs)
    measured = progress(stack, batch)
    for at, seed in enumerate((4, 2)):
        alone = AttentionOnlyNet(task, seeds=seed)
        torch.testing.assert_close(said[at], alone(batch.of(at).inputs))
        torch.testing.assert_close(seen[at], alone.layers(batch.of(at).inputs)[1])
        one = progress(alone, batch.of(at))
        for name in ("previous", "match", "labels", "strength", "cla", "accuracy"):
            torch.testing.assert_close(getattr(measured, name)[at], getattr(one, name))


def test_weights_set_by_hand_answer_from_the_context_alone():
    task = InContextTask(no_repeats=True)
    net, sets = hand_set(task), task.eval_sets(2000)
    for name, least in {"ic": 0.99, "ic2": 0.99}.items():
        seen = progress(net, sets[name])
        assert float(seen.accuracy) > least
        assert float(seen.ila1) > 0.99
        assert float(seen.tila2) > 0.97
        assert float(seen.tla2) >= float(seen.tila2)
    assert float((net(sets["iwl"].inputs).argmax(1) == sets["iwl"].target).float().mean()) < 0.1
    with pytest.raises(ValueError, match="at most 2 n_max - 1 = 11 is accepted"):
        hand_set(small())


# --- measures


def test_measures_of_attention_that_is_known():
    class Known(AttentionOnlyNet):
        def layers(self, inputs):
            return inputs, seen

        def forward(self, inputs):
            return logits

    task = small()
    seen = torch.zeros(2, 2, 9, 9)
    seen[:, 0, 1::2] = torch.tensor([0.0, 1, 0, 0, 0, 0, 0, 0, 0])  # all labels look at token 1
    seen[:, 0, 3, 2], seen[:, 0, 3, 1] = 0.6, 0.4
    seen[:, 1, -1] = torch.tensor([0.05, 0.1, 0.05, 0.2, 0.05, 0.3, 0.05, 0.1, 0.1])
    logits = torch.nn.functional.one_hot(torch.tensor([3, 7]), 8).float()
    batch = InContextBatch(
        torch.zeros(2, 9, 28), torch.tensor([3, 5]), torch.tensor([[1, 3, 3, 2], [0, 7, 1, 2]]),
        torch.tensor([[False, True, True, False], [False, False, False, False]]),
    )  # fmt: skip
    found = progress(Known(task), batch)
    assert float(found.ila1) == pytest.approx(0.15)  # 0.6 of one label of four
    assert float(found.tila2) == pytest.approx(0.5)  # of the sequence that has a match
    assert float(found.tla2) == pytest.approx(0.7)
    assert float(found.strength[1, 0]) == pytest.approx(0.25 - 0.1)
    assert (float(found.cla), float(found.accuracy)) == (1.0, 0.5)
    nothing = progress(Known(task), batch._replace(match=torch.zeros(2, 4, dtype=torch.bool)))
    assert math.isnan(float(nothing.tila2))


@pytest.fixture(scope="module")
def decoder():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, attn_implementation="eager",
    )  # fmt: skip
    return LlamaForCausalLM(config)


def test_a_decoder_is_measured_head_by_head_from_its_own_attention(decoder):
    ids = torch.tensor([[1, 3, 30, 4, 31, 3, 32, 3], [1, 5, 33, 6, 34, 7, 35, 8]])
    found = progress(decoder, ids, start=1)
    a = torch.stack(decoder(ids, output_attentions=True).attentions, 1)
    torch.testing.assert_close(found.previous, ((a[..., 2, 1] + a[..., 4, 3] + a[..., 6, 5]) / 3).mean(0))
    torch.testing.assert_close(found.match, a[0, ..., 7, 2] + a[0, ..., 7, 6])
    torch.testing.assert_close(found.labels, (a[..., 7, 2] + a[..., 7, 4] + a[..., 7, 6]).mean(0))
    assert found.previous.shape == (2, 4)
    said = decoder(ids).logits[:, -1].argmax(-1)
    assert float(found.accuracy) == float(said[0] == 32)
    assert decoder.training


def of_transformers(kind, **changed):
    """A tiny random language model that keeps its attention."""
    import transformers

    torch.manual_seed(0)
    sizes = {
        "vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "attn_implementation": "eager",
    }  # fmt: skip
    config = getattr(
        transformers, f"{kind.partition('For')[0].removesuffix('LMHeadModel').removesuffix('Model')}Config"
    )
    return getattr(transformers, kind)(config(**(sizes | changed)))


GROUPED = {"num_key_value_heads": 2}


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        ("LlamaForCausalLM", GROUPED), ("Qwen2ForCausalLM", GROUPED), ("GemmaForCausalLM", GROUPED | {"head_dim": 4}),
        ("Gemma2ForCausalLM", GROUPED | {"head_dim": 4, "sliding_window": 3}),
        ("GPT2LMHeadModel", {"n_positions": 9, "bos_token_id": 1, "eos_token_id": 1}),
        ("BertLMHeadModel", {"is_decoder": True}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_decoders_of_any_kind_and_number_are_measured_as_their_attention_row_by_row_says(kind, changed, dtype):
    model = of_transformers(kind, **changed).to(dtype).eval()
    ids = torch.randint(1, 9, (70, 9), generator=torch.Generator().manual_seed(0))  # more rows than go through at once
    found = progress(model, ids.to(torch.uint8))
    previous, match, strength, hits, context = [], [], [], [], []
    with torch.no_grad():
        out = model(ids, output_attentions=True)
    for n, row in enumerate(ids.tolist()):
        a = torch.stack([layer[n] for layer in out.attentions]).double().numpy()
        said = int(out.logits[n, -1].argmax())
        own = [t + 1 for t in range(0, 8, 2) if row[t] == row[8]]
        others = [t for t in (1, 3, 5, 7) if t not in own]
        previous.append(np.mean([a[..., t, t - 1] for t in (1, 3, 5, 7)], 0))
        context.append(said in row[1::2])
        if own:
            match.append(a[..., 8, own].sum(-1))
            hits.append(said == row[own[-1]])
        if own and others:
            strength.append(a[..., 8, own].mean(-1) - a[..., 8, others].mean(-1))
    assert 0 < len(strength) < 70
    assert found.previous.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    near = 1e-9 if dtype == torch.float64 else 2**-8  # half a step of bfloat16, by which shapes of a batch may differ
    for measured, rows in {"previous": previous, "match": match, "strength": strength}.items():
        np.testing.assert_allclose(getattr(found, measured), np.mean(rows, 0), rtol=near, atol=near / 10)
    np.testing.assert_allclose([found.cla, found.accuracy], [np.mean(context), np.mean(hits)], rtol=1e-6)


def test_strength_is_over_sequences_that_have_another_label():
    seen = progress(of_transformers("LlamaForCausalLM"), torch.tensor([[3, 30, 3]]))
    assert bool(seen.strength.isnan().all())
    assert not bool(seen.match.isnan().any())
    model = of_transformers("LlamaForCausalLM")
    alone, beside = (progress(model, torch.tensor([[3, 30, 4, 31, 3], *more])) for more in ([], [[3, 30, 3, 31, 3]]))
    torch.testing.assert_close(beside.strength, alone.strength)


def test_every_module_of_a_decoder_keeps_its_own_mode(decoder):
    decoder.train().model.layers[0].eval()
    modes = [m.training for m in decoder.modules()]
    progress(decoder, torch.tensor([[3, 30, 3]]))
    assert [m.training for m in decoder.modules()] == modes
    decoder.train()


@pytest.mark.parametrize(
    ("kind", "changed", "said"),
    [
        ("LlamaModel", {}, "LlamaModel says no next token"),
        ("LlamaForTokenClassification", {}, "LlamaForTokenClassification says no next token"),
        ("LlamaForSequenceClassification", {"pad_token_id": 0}, "LlamaForSequenceClassification says no next token"),
        ("BertForMaskedLM", {}, "BertForMaskedLM says no next token"),
        ("BertLMHeadModel", {}, "BertLMHeadModel attends to later tokens"),
        ("T5ForConditionalGeneration", {"d_model": 16, "d_kv": 4, "d_ff": 32}, "T5.* says no next token"),
        ("MambaForCausalLM", {}, "MambaForCausalLM gives no attention weights"),
        ("Lfm2ForCausalLM", GROUPED | {"layer_types": ["conv", "full_attention"]}, "1 of 2 layers attend"),
        ("GPT2LMHeadModel", {"n_positions": 6, "bos_token_id": 1, "eos_token_id": 1}, "7 tokens: .* at most 6"),
    ],
)  # fmt: skip
def test_a_model_whose_attention_or_predictions_are_not_a_decoders_is_refused_by_name(kind, changed, said):
    with pytest.raises(ValueError, match=said):
        progress(of_transformers(kind, **changed), torch.tensor([[3, 30, 4, 31, 5, 32, 4]]))


def test_an_adapter_whose_own_tokens_stand_before_the_sequence_is_refused():
    from peft import PromptTuningConfig, get_peft_model

    model = get_peft_model(
        of_transformers("LlamaForCausalLM"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    )
    with pytest.raises(ValueError, match="tokens of its own before the sequence"):
        progress(model, torch.tensor([[3, 30, 3]]))


def test_a_model_of_one_layer_has_no_second_one():
    found = progress(of_transformers("LlamaForCausalLM", num_hidden_layers=1), torch.tensor([[3, 30, 3]]))
    assert found.match.shape == (1, 4)
    for name in ("tila2", "tla2"):
        with pytest.raises(ValueError, match="of the second layer, and the model has one"):
            getattr(found, name)


@pytest.mark.parametrize("row", [[0, 0, 3, 30, 3], [3, 30, 3, 0, 0]])
def test_padding_is_refused_since_it_would_be_an_item(decoder, row, monkeypatch):
    ids = torch.tensor([[3, 30, 4, 31, 3], row])
    progress(decoder, ids)  # without a padding token, 0 is a token like others
    monkeypatch.setattr(decoder.config, "pad_token_id", 0)
    with pytest.raises(ValueError, match="row 1 begins or ends with padding, token 0"):
        progress(decoder, ids)
    progress(decoder, torch.tensor([[0, 3, 30, 3]]), start=1)


@pytest.mark.parametrize(
    ("ids", "start", "said"),
    [
        ([[3, 40, 3]], 0, "token ids from 3 to 40: 0 to 39 are the model's"),
        ([[3, -1, 3]], 0, "token ids from -1 to 3"),
        ([[3, 30, 3]], "0", "start='0': a whole number"),
        ([[1, 3, 30, 3]], True, "start=True: a whole number"),
        ([[True, False, True]], 0, r"a Tensor of token ids, not torch.bool \(1, 3\)"),
    ],
)
def test_tokens_that_the_model_does_not_have_are_refused_by_name(decoder, ids, start, said):
    with pytest.raises(ValueError, match=said):
        progress(decoder, torch.tensor(ids), start=start)


def test_a_decoder_that_keeps_no_attention_is_refused_by_name(decoder):
    decoder.set_attn_implementation("sdpa")
    try:
        with pytest.raises(ValueError, match=r"attention 'sdpa' keeps no weights: .*attn_implementation='eager'"):
            progress(decoder, torch.tensor([[3, 30, 3]]))
    finally:
        decoder.set_attn_implementation("eager")


@pytest.mark.parametrize("shape", [(2, 4), (2, 1), (3,), (0, 3)])
def test_tokens_that_are_no_pairs_and_a_target_are_refused(decoder, shape):
    with pytest.raises(ValueError, match="batch of"):
        progress(decoder, torch.zeros(shape, dtype=torch.long))
    with pytest.raises(ValueError, match="batch of a decoder: whole numbers"):
        progress(decoder, torch.zeros(2, 3))


def test_what_is_no_decoder_is_refused(net):
    with pytest.raises(ValueError, match="Linear is no AttentionOnlyNet"):
        progress(torch.nn.Linear(1, 1), torch.zeros(1, 3).long())
    with pytest.raises(ValueError, match="a batch of AttentionOnlyNet is an InContextBatch, not Tensor"):
        progress(net, torch.zeros(1, 3).long())
    with pytest.raises(ValueError, match="start=1"):
        progress(net, drawn(2), start=1)


# --- theory


@pytest.mark.parametrize(("N", "L"), [(8, 32), (4, 16), (8, 8)])
def test_the_gradient_at_the_start_is_one_over_L_less_one_over_N_in_the_third_direction(N, L):
    gradient = PhenomenologicalModel(pairs=N, labels=L).gradient()
    np.testing.assert_allclose(gradient, [0, 0, 1 / L - 1 / N], atol=1e-12)


def test_the_loss_is_the_formula_and_its_gradient_the_finite_difference():
    def loss(b, a, x, N=8, L=32):
        w1 = math.exp(b) / (math.exp(b) + 2 * N)
        w2 = math.exp(a * w1) / (math.exp(a * w1) + N - 1)
        top = math.exp(x * w2)
        return -math.log(top / (top + (N - 1) * math.exp(x * (1 - w2) / (N - 1)) + L - N))

    for at in ((0.0, 0.0, 0.0), (1.0, 2.0, 3.0), (4.0, 9.0, 8.0)):
        model = PhenomenologicalModel(*at)
        assert model.loss() == pytest.approx(loss(*at))
        steps = 1e-6 * np.eye(3)
        differences = [(loss(*(at + s)) - loss(*(at - s))) / 2e-6 for s in steps]
        np.testing.assert_allclose(model.gradient(), differences, atol=1e-7)


def test_the_flow_lingers_and_then_falls_and_its_numbers_rise_in_order():
    flow = PhenomenologicalModel(pairs=8, labels=32).flow([0, 50, 60, 70])
    np.testing.assert_allclose(flow.loss, [3.466, 3.05, 2.91, 0.17], atol=0.01)
    np.testing.assert_allclose(flow.iloc[1][["xi", "beta1", "alpha"]], [4.4, 0.3, 0.8], atol=0.05)
    assert (np.diff(flow.loss) < 0).all()


def test_where_the_context_has_all_labels_nothing_begins():
    assert PhenomenologicalModel(pairs=8, labels=8).flow([0, 1000]).loss.iloc[1] == pytest.approx(math.log(8))


def test_the_loss_is_that_of_an_induction_head_among_many_dimensions():
    task = InContextTask(classes=8, labels=8, dim=3000, pairs=4, n_max=4, noise=0.0, no_repeats=True)
    sampler = task.sampler(0)
    batch = sampler.draw(100).of(0)
    for beta1, alpha, xi in ((3.0, 4.0, 5.0), (5.0, 2.0, 3.0), (0.0, 0.0, 4.0)):
        head = MinimalInductionHead(beta1, alpha, 30.0, task=task)
        logits = xi * head.result(batch.inputs).detach() @ sampler.embeddings[0].T
        loss = float(torch.nn.functional.cross_entropy(logits, batch.target))
        model = PhenomenologicalModel(beta1, alpha, xi, pairs=4, labels=8)
        assert model.loss() == pytest.approx(loss, rel=0.1, abs=0.05)


def test_the_minimal_head_is_its_equations_token_by_token():
    task = small()
    head, x = MinimalInductionHead(1.2, 3.0, 0.7, task=task), drawn(2).inputs
    for inputs, w, said in zip(x, head.attention(x), head(x), strict=True):
        c = inputs[:, task.places :]
        u = []
        for t in range(9):
            p = torch.softmax(torch.tensor([1.2 * (j == t - 1) for j in range(t + 1)]), 0)
            u.append(sum(p[j] * c[j] for j in range(t + 1)))
        expected = torch.softmax(torch.stack([3.0 * c[-1] @ u[j] + 0.7 * (j % 2) for j in range(9)]), 0)
        torch.testing.assert_close(w, expected)
        torch.testing.assert_close(said, classify(head, (c[-1] + expected @ c)[None])[0])
    assert "beta2" not in dict(MinimalInductionHead(0.0, 0.0, task=task).named_parameters())
    _, a = head.layers(x)
    torch.testing.assert_close(a[:, 1, -1], head.attention(x))
    torch.testing.assert_close(a.sum(-1), torch.ones(2, 2, 9))
    assert not a.triu(1).any()


def test_a_minimal_head_that_is_strong_finds_the_label():
    task = InContextTask(p_novel=1.0, no_repeats=True)
    seen = progress(MinimalInductionHead(20.0, 60.0, 10.0, task=task), task.eval_sets(500)["ic"])
    assert float(seen.ila1) > 0.99
    assert float(seen.tila2) > 0.95


@pytest.mark.parametrize("times", [[0], [0, 0], [1, 0], [-1, 1], [0, float("nan")]])
def test_times_that_do_not_increase_are_refused(times):
    with pytest.raises(ValueError, match="times: at least two"):
        PhenomenologicalModel().flow(times)


def test_numbers_of_the_theory_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="pairs=8, labels=4"):
        PhenomenologicalModel(pairs=8, labels=4)
    with pytest.raises(ValueError, match=r"pairs=4.5: a whole number of at least 2"):
        PhenomenologicalModel(pairs=4.5, labels=8)
    with pytest.raises(ValueError, match="hidden=0"):
        AttentionOnlyNet(small(), hidden=0)
    with pytest.raises(ValueError, match=r"flow from .* cannot be followed"):
        PhenomenologicalModel(-1e308, 1e308, -1e308).flow([0, 1])
    with pytest.raises(ValueError, match="alpha=nan"):
        PhenomenologicalModel(0.0, float("nan"))
    with pytest.raises(ValueError, match="beta1=inf"):
        MinimalInductionHead(float("inf"), 0.0, task=small())


# --- training


def experiment(task=None, **changed):
    options = {"steps": 6, "every": 3, "eval_size": 40, "hidden": 16}
    return InContextExperiment(task or small(p_novel=1.0, batch_size=12), **(options | changed))


@pytest.mark.parametrize("model", ["network", "three numbers", "two numbers"])
def test_a_run_is_the_same_alone_and_in_any_stack(model):
    together = experiment(model=model).run([3, 1, 2]).frame
    assert together.seed.tolist() == [3] * 3 + [1] * 3 + [2] * 3
    alone = experiment(model=model).run([1]).frame
    beside = together[together.seed == 1].reset_index(drop=True)
    np.testing.assert_allclose(beside.to_numpy(float), alone.to_numpy(float), atol=1e-5)
    again = experiment(model=model).run([3, 1, 2]).frame
    np.testing.assert_array_equal(again.to_numpy(float), together.to_numpy(float))


def test_a_step_is_plain_descent_with_a_decay_that_no_rate_scales():
    task = small()
    net, batch = AttentionOnlyNet(task, seeds=[0], hidden=16), task.sampler(0).draw(20)
    same = AttentionOnlyNet(task, seeds=[0], hidden=16)
    descend(net, list(net.parameters()), batch, 0.05, 1e-3)
    optimizer = torch.optim.SGD(same.parameters(), lr=0.05, weight_decay=1e-3 / 0.05)
    torch.nn.functional.cross_entropy(same(batch.inputs)[0], batch.target[0]).backward()
    optimizer.step()
    for mine, theirs in zip(net.parameters(), same.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_parameters_without_a_gradient_shrink_alike_at_any_rate():
    for rate in (0.01, 0.5):
        net = AttentionOnlyNet(small(), seeds=[0], hidden=16)
        before = net.q1.detach().clone()
        with torch.no_grad():
            net.head.zero_()  # no gradient reaches the first layer, if the head stays at zero
        others = [p for name, p in net.named_parameters() if name != "head"]
        for _ in range(5):
            descend(net, others, small().sampler(0).draw(8), rate, 0.01)
        torch.testing.assert_close(net.q1, before * 0.99**5)


def test_what_is_frozen_stays_and_the_rest_moves():
    done = experiment(freeze=["first"], weight_decay=0.01).run([0, 1]).model
    start = AttentionOnlyNet(small(), seeds=[0, 1], hidden=16)
    for name, p in done.named_parameters():
        assert torch.equal(p, getattr(start, name)) == (name in FIRST), name


def test_what_is_ablated_is_zero_and_stays_so():
    done = experiment(ablate=["v1"]).run([0, 1]).model
    assert not done.v1.any()
    assert done.q2.any()
    with pytest.raises(ValueError, match="unknown parameter 'v3'"):
        experiment(ablate=["v3"])


def test_a_first_layer_that_starts_high_looks_one_token_back():
    rows = experiment(beta1=8.0).run([0, 1]).frame
    assert (rows[rows.step == 0].ila1 > 0.98).all()
    minimal = experiment(beta1=8.0, model="two numbers").run([0]).frame
    assert minimal.ila1[0] > 0.98


def test_a_classifier_of_the_weights_alone_is_wrong_where_labels_are_shifted():
    task = InContextTask(classes=8, labels=8, dim=31, pairs=4, n_max=6, noise=0.0)
    sets = task.eval_sets(500)
    means = task.sampler().means[0]
    said = {k: torch.cdist(b.inputs[:, -1, task.places :], means).argmin(-1) for k, b in sets.items()}
    assert float((said["iwl"] == sets["iwl"].target).float().mean()) == 1
    assert float((said["ic2"] == sets["ic2"].target).float().mean()) == 0


@pytest.mark.parametrize("place", ["folder", "file/inside"])
def test_a_place_where_no_run_can_be_kept_is_refused_before_it_is_trained(tmp_path, place, monkeypatch):
    from rankwise.dynamics.in_context import experiment as module

    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.setattr(module, "descend", lambda *_: pytest.fail("trained"))
    with pytest.raises(ValueError, match="is a f"):
        experiment().run(1, keep=tmp_path / place)


def test_a_killed_run_goes_on_where_it_was(tmp_path, monkeypatch):
    from rankwise.dynamics.in_context import experiment as module

    monkeypatch.setattr(module, "SAVED", -1.0)
    whole = experiment(steps=9).run([0, 1]).frame
    path, told = tmp_path / "run" / "state.safetensors", []

    def killed(name, phase, step, steps, loss):
        told.append(step)
        if step == 6 and len(told) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        experiment(steps=9).run([0, 1], keep=path, on_event=killed)
    done = experiment(steps=9).run([0, 1], keep=str(path), on_event=killed)
    assert told == [3, 6, 6, 9]
    np.testing.assert_array_equal(done.frame.to_numpy(float), whole.to_numpy(float))
    again = experiment(steps=9).run([0, 1], keep=path, on_event=killed)
    assert told == [3, 6, 6, 9]
    np.testing.assert_array_equal(again.frame.to_numpy(float), whole.to_numpy(float))
    with pytest.raises(ValueError, match="holds a run of other settings"):
        experiment(steps=12).run([0, 1], keep=path)


def test_crossings_and_the_order_of_measures_are_read_off_the_rows():
    import pandas as pd

    from rankwise.dynamics import InContextResult

    rows = pd.DataFrame({
        "seed": [4] * 4 + [2] * 4, "step": [0, 10, 20, 30] * 2, "loss": [3.0, 2, 1, 0.5, 3.0, 3, 3, 3],
        "ic": [0.1, 0.2, 0.6, 1.0] + [0.1] * 4, "cla": [0.1, 0.9, 1.0, 1.0] + [0.1] * 4,
        "ila1": [0.1, 0.1, 0.2, 0.9] + [0.1] * 4, "tila2": [0.1, 0.1, 0.6, 0.9] + [0.1] * 4,
        "tla2": [0.5] * 8,
    })  # fmt: skip
    result = InContextResult(frame=rows, task=small(), model=torch.nn.Identity())
    np.testing.assert_array_equal(result.crossing("ic", 0.5), [20, np.nan])
    assert result.crossing("-loss", -1.0).to_dict()[4] == 20
    assert result.final("ic").tolist() == [1.0, 0.1]
    assert result.final("ic", points=2).tolist() == pytest.approx([0.8, 0.1])
    order = result.order()
    assert order.loc[4].dropna().to_dict() == {"cla": 10, "ila1": 30, "tila2": 20, "ic": 20}
    assert order.loc[2].isna().all()
    for asked in (lambda: result.crossing("icc", 1), lambda: result.final("icc")):
        with pytest.raises(ValueError, match="unknown column 'icc'; did you mean ic"):
            asked()
    with pytest.raises(ValueError, match="points=0: a whole number of at least 1"):
        result.final("ic", points=0)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model": "nett"}, "unknown model 'nett'"),
        ({"steps": 0}, "steps=0: a whole number of at least 1"),
        ({"every": 1.5}, "every=1.5"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"weight_decay": 1.0}, "weight_decay=1.0: a number of at least 0 below 1"),
        ({"freeze": ["q3"]}, "unknown parameter 'q3'; did you mean w3 or q2"),
        ({"freeze": ["first"], "model": "two numbers"}, "unknown parameter 'q1'"),
        ({"beta1": float("inf")}, "beta1=inf"),
        ({"beta1": "8"}, "beta1='8'"),
        ({"hidden": 0}, "hidden=0: a whole number of at least 1"),
        ({"freeze": "first"}, r"freeze='first': a list of names is accepted, \['first'\]"),
        (
            {
                "freeze": [f"{k}{n}" for k in "qkv" for n in "12"] + [f"{k}{n}" for k in "wb" for n in "123"],
                "ablate": ["head"],
            },
            "leave nothing to train",
        ),
        ({"beta1": 8.0, "ablate": ["q1"]}, r"beta1=8.0 with ablate=\['q1'\]"),
        ({"beta1": 8.0, "ablate": ["beta1"], "model": "two numbers"}, r"beta1=8.0 with ablate=\['beta1'\]"),
    ],
)
def test_an_experiment_that_cannot_be_is_refused_by_name(changed, said):
    with pytest.raises(ValueError, match=said):
        experiment(**changed)


@pytest.mark.parametrize("seeds", [0, [], [1, 1], [-1]])
def test_seeds_that_are_none_or_twice_are_refused(seeds):
    with pytest.raises(ValueError, match="seeds="):
        experiment().run(seeds)


def test_a_minimal_head_learns_to_answer_from_the_context_and_names_its_labels_before_the_right_one():
    task = InContextTask(classes=32, labels=8, dim=31, pairs=4, n_max=4, p_novel=1.0, batch_size=64)
    options = {"model": "two numbers", "beta1": 5.0, "learning_rate": 0.15, "steps": 350, "every": 50, "eval_size": 300}
    result = InContextExperiment(task, **options, hidden=64).run([3, 5])
    assert (result.final("ic") > 0.8).all()
    assert (result.final("iwl") < 0.3).all()  # nothing to remember: classes are new
    assert (result.frame.cla >= result.frame.ic).all()
    order = result.order()
    assert (order.cla <= order.ic).all()
