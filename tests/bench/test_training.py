"""What the recipes of tuning, optimisers, compression and merging compute by themselves."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from rankwise.bench.compression import lama, welore
from rankwise.bench.merging import rtsvm
from rankwise.bench.shared import experts, language
from rankwise.bench.shared import fresh_process as memory
from rankwise.bench.shared.measured import plain
from rankwise.bench.speed import footprint
from rankwise.bench.tuning import s2lora_speech
from rankwise.compression.lama import LowRankAttentionPooling
from rankwise.data import Corpus
from small_models import bert, llama


def test_settings_share_tokens_and_draw_blocks_a_few_times_a_run():
    sizes = {"seeds": 2, "tested": 7, "model": "smollm2"}
    text = language.settings(language.TEXT, ["full", "galore", "owlore"], steps=30, **sizes)
    label = language.settings(language.LABEL, ["lisa"], steps=2, **sizes)
    plain = language.settings(language.LABEL, ["lora"], steps=2, **sizes)
    assert (text.eval_limit, label.eval_limit) == (7, 7)
    assert (text.task, label.task) == ("causal-lm", "text-to-label")
    assert (text.interval, text.update_gap) == (10, 15)
    assert (label.interval, label.update_gap) == (1, None)
    assert (plain.interval, plain.update_gap) == (None, None)
    low = language.LOW_MEMORY_RATES
    assert text.learning_rates == {"full": [3e-5, 1e-4], "galore": low, "owlore": low}


def test_turned_task_vectors_keep_their_singular_values_and_size():
    g = torch.Generator().manual_seed(0)
    base = {"w": torch.randn(6, 4, generator=g), "b": torch.randn(5, generator=g), "n": torch.tensor(3)}
    expert = {"w": base["w"] + torch.randn(6, 4, generator=g), "b": base["b"] + 1.0, "n": torch.tensor(4)}
    turned = rtsvm.rotated(base, expert, seed=1)
    taus = [state["w"] - base["w"] for state in (turned, expert)]
    torch.testing.assert_close(*map(torch.linalg.svdvals, taus), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(*taus, atol=0.1)
    assert (turned["b"] - base["b"]).norm() == pytest.approx(5**0.5, rel=1e-5)
    assert turned["n"] == 4
    assert torch.equal(rtsvm.rotated(base, expert, seed=1)["w"], turned["w"])
    assert not torch.equal(rtsvm.rotated(base, expert, seed=2)["w"], turned["w"])


def test_the_scales_chosen_are_listed_once():
    seeds = [{"scale": {"a": s, "b": None}} for s in (1.0, 0.3, 1.0)]
    assert rtsvm._scale(seeds, "a") == "0.3, 1"
    assert rtsvm._scale(seeds, "b") == rtsvm._scale(seeds, "c") == "-"


def test_every_other_sentence_has_its_words_shuffled():
    words = [f"w{i}" for i in range(8)]
    texts = [" ".join(words) + ".", "Too short.", *[", ".join(words)] * 3]
    corpus = Corpus(name="x", texts=texts, labels=[0.0] * 5, groups=list("abcde"))
    found = experts._order(corpus)
    assert found.labels == [6, 7, 6, 7]
    assert found.groups == ["a", "c", "d", "e"]
    for text, label in zip(found.texts, found.labels, strict=True):
        assert sorted(text.split()) == words
        assert (text.split() == words) == (label == 7)


class Pair(nn.Module):
    """Two features to eight classes, as the recipe's encoder."""

    def __init__(self):
        super().__init__()
        self.classifier = nn.Linear(2, 8)

    def forward(self, x):
        return SimpleNamespace(logits=self.classifier(x))


class Rows:
    """Examples are ``(features, label)``."""

    def length(self, example):
        return 0

    def collate(self, examples):
        x, y = zip(*examples, strict=True)
        return {"x": torch.tensor(x), "labels": torch.tensor(y)}


@pytest.fixture
def bench():
    g = torch.Generator().manual_seed(0)

    def examples(task):
        own = range(8)[experts.OWN[task]]
        return [(torch.randn(2, generator=g).tolist(), own[i % len(own)]) for i in range(10)]

    rows = {t: experts.Rows(train=examples(t), validation=examples(t), test=examples(t)) for t in experts.TASKS}
    torch.manual_seed(0)
    return SimpleNamespace(task=Rows(), rows=rows, base=lambda seed, model=Pair(): model)


def test_loss_and_gradient_of_every_example_are_those_of_autograd(bench):
    model = bench.base(0)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    examples = bench.rows["source"].train
    losses, gradients = experts._per_example(bench, state, examples)
    for i, (x, y) in enumerate(examples):
        model.zero_grad()
        loss = nn.functional.cross_entropy(model(torch.tensor([x])).logits, torch.tensor([y]))
        loss.backward()
        assert losses[i] == pytest.approx(loss.item(), rel=1e-5)
        torch.testing.assert_close(gradients[i].float(), model.classifier.weight.grad, atol=2e-3, rtol=2e-3)


def test_the_clearest_examples_are_those_of_smallest_loss_of_each_ability(bench):
    state = bench.base(0).state_dict()
    kept = experts.clearest(bench, dict.fromkeys(experts.TASKS, state), share=0.5)
    assert len(kept) == 15
    for k, task in enumerate(experts.TASKS):
        loss, _ = experts._per_example(bench, state, bench.rows[task].train)
        assert kept[5 * k : 5 * k + 5] == [bench.rows[task].train[i] for i in np.argsort(loss)[:5]]


def test_the_agreeing_examples_pull_the_head_as_the_other_abilities_do(bench):
    state = bench.base(0).state_dict()
    kept = experts.agreeing(bench, state, share=0.3)
    gradients = {t: experts._per_example(bench, state, bench.rows[t].train)[1].float() for t in experts.TASKS}
    for k, task in enumerate(experts.TASKS):
        others = sum(g.mean(0) for t, g in gradients.items() if t != task)
        pull = [float((g * others).sum()) for g in gradients[task]]
        chosen = [bench.rows[task].train.index(e) for e in kept[3 * k : 3 * k + 3]]
        assert min(pull[i] for i in chosen) >= sorted(pull)[-3] - 1e-3  # the gradients are kept in half precision


class Fixed(experts.Bench):
    """A bench of the small model."""

    def base(self, seed):
        return Pair()


def test_accuracy_is_among_the_abilitys_own_classes():
    model = Pair()
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.arange(8.0))  # always says the last class
    labels = {"order": [7, 6], "sentiment": [1, 1, 0, 1]}
    rows = {t: experts.Rows(train=[], validation=[], test=[([0.0, 0.0], y) for y in ys]) for t, ys in labels.items()}
    b = Fixed(task=Rows(), rows=rows, blocks=1, rates=(), steps=1, out=Path(), on_event=lambda *_: None)
    assert b.predicted(model.state_dict(), "sentiment", "test") == "1111"
    assert b.truth("sentiment", "test") == "1101"
    assert b.accuracies(model.state_dict(), "test", ["order", "sentiment"]).tolist() == [0.5, 0.75]


def test_what_decides_where_to_look_is_counted():
    pooled = SimpleNamespace(pool=LowRankAttentionPooling(16, 4), encoder=None)
    assert lama.attention_parameters(pooled) == sum(p.numel() for p in pooled.pool.parameters()) > 0
    layer = nn.TransformerEncoderLayer(16, 4)
    assert lama.attention_parameters(SimpleNamespace(pool=None, encoder=layer)) == 4 * 16 * 16 + 4 * 16
    assert lama.attention_parameters(SimpleNamespace(pool=None, encoder=nn.GRU(4, 4))) == 0


def test_claims_on_lama_hold_each_for_its_own_comparison():
    names = ("lama", "gru-structured", "transformer-mean", "gru-mean", "lama-frozen")
    scores = dict(zip(names, ([0.9, 0.91, 0.92, 0.93, 0.94], *[[0.8, 0.81, 0.82, 0.83, 0.84]] * 4), strict=True))
    assert [c.held for c in lama._claims(scores, 0.2)] == [True] * 5
    assert [c.held for c in lama._claims(scores, 0.1)] == [True, True, True, False, True]
    for i, rival in ((0, "gru-structured"), (1, "transformer-mean"), (2, "gru-mean"), (4, "lama-frozen")):
        better = scores | {rival: [0.95, 0.96, 0.97, 0.98, 0.99]}
        assert [c.held for c in lama._claims(better, 0.2)] == [j != i for j in range(5)]


def test_lamas_numbers_are_those_of_what_was_said_of_every_snippet():
    def trial(right):
        said = [1] * right + [0] * (10 - right)
        return {"items": {c: {"label": [1] * 10, "said": said} for c in (lama.MOVIES, *lama.TESTS)}}

    def run(right):
        return {"learning_rate": 1e-3, "seconds": 2.0, "attention": 7, "trials": [trial(right), trial(right - 1)]}

    found = {name: run(9 if name == "lama" else 6) for name in lama.VARIANTS}
    evidence = lama.judge(plain({"steps": 3, "apart": [0.1, 0.3], **found}), seeds=2)
    assert evidence.rows[0] == ["LAMA", "0.001", "7", "85.0±7.1", "85.0±7.1", "2s"]
    assert [c.found for c in evidence.claims if "heads look" in c.text] == ["0.20"]


def test_a_perplexity_is_a_tokens_however_the_texts_differ_in_length():
    assert welore.of({"tokens": [1, 2]}, [1.0, 5.0]) == pytest.approx(np.exp(2))
    assert welore.of({"tokens": [1, 2]}, [1.0, np.nan]) == np.exp(700)


def test_a_perplexity_that_is_no_number_is_not_lower_wherever_it_stands():
    ways = {way: {str(r): 1.0 for r in welore.RATIOS} for way in welore.WAYS}
    ways["uniform"] = {str(r): np.nan if r == welore.RATIOS[-1] else 2.0 for r in welore.RATIOS}
    assert not welore._claims(ways)[0].held


def test_saved_bytes_are_what_autograd_keeps_besides_input_and_parameters():
    x, layer = torch.randn(10, 4), nn.Linear(4, 4)
    assert footprint.saved_bytes(layer, x) == 0  # the input and the weight
    assert footprint.saved_bytes(lambda y: layer(y).exp(), x) == 10 * 4 * 4  # exp keeps its result
    assert footprint.saved_bytes(lambda y: layer(y).exp().sin(), x) == 10 * 4 * 4  # of which sin keeps the same
    assert footprint.saved_bytes(lambda y: layer(y).exp().exp(), x) == 2 * 10 * 4 * 4


def test_gradients_of_two_batches_share_their_leading_directions():
    old, new = (footprint._gradient(96, seed) for seed in (0, 1))
    assert torch.equal(old, footprint._gradient(96, 0))
    assert not torch.equal(old, new)
    V = torch.linalg.svd(old).Vh[:6]
    kept = (new @ V.T).square().sum() / new.square().sum()
    assert kept > 4 * 6 / 96  # a random subspace of six holds 6 / 96


def test_all_tensors_of_an_optimisers_state_are_counted_inside_projectors_too():
    projector = SimpleNamespace(ortho_matrix=torch.ones(3), rank=2)
    state = {"exp_avg": torch.ones(4), "step": 3, "projector": projector}
    assert sorted(len(t) for t in memory._tensors(state)) == [3, 4]


def test_a_measurement_is_the_last_line_of_a_process_and_a_failure_says_why(monkeypatch):
    asked = []

    def run(command, **options):
        asked.append(command[-3:])
        return SimpleNamespace(
            returncode=command[-3] == "lisa",
            stdout='loading\n{"peak": 3}\n',
            stderr=f"{'x' * 600}KeyError: 'lora'\n",
        )

    monkeypatch.setattr(memory.subprocess, "run", run)
    assert memory.in_fresh_process("lora", steps=4, blocks=30) == {"peak": 3}
    with pytest.raises(ChildProcessError, match=r"memory of lisa could not be measured: x+KeyError: 'lora'$"):
        memory.in_fresh_process("lisa", steps=2, blocks=1)
    assert memory.said_by("module", "it", "think", 0.4, 2) == {"peak": 3}
    assert asked == [["lora", "4", "30"], ["lisa", "2", "1"], ["think", "0.4", "2"]]


@pytest.fixture
def tiny(monkeypatch):
    """A Llama of two blocks in the place of SmolLM2; a tokenizer that says token 1."""

    def tokenizer(texts, *, max_length, **options):
        return {"input_ids": torch.ones(len(texts), max_length, dtype=torch.long)}

    models = []

    def load(name):
        models.append(llama())
        return models[-1]

    for module in (memory, language):
        monkeypatch.setattr(module, "load", load)
        monkeypatch.setattr(module, "load_tokenizer", lambda name: tokenizer)
    return models


def test_training_is_measured_of_so_many_blocks_and_steps(tiny, monkeypatch):
    stepped = []

    class Counting(torch.optim.SGD):
        def step(self):
            stepped.append(len([p for g in self.param_groups for p in g["params"] if p.grad is not None]))
            return super().step()

    monkeypatch.setitem(memory.WAYS, "adamw", lambda model: Counting(model.parameters(), 0.1, momentum=0.9))
    found = memory.train("adamw", steps=3, blocks=1)
    assert len(stepped) == 3
    assert len(tiny[0].model.layers) == 1
    assert found["state"] == sum(p.nbytes for p in tiny[0].parameters())  # one buffer of each
    assert found["peak"] >= found["baseline"] > 0
    assert found["seconds"] > 0


def test_the_first_blocks_are_written_once_and_all_of_them_are_the_model_itself(tiny, tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(language, "load_tokenizer", lambda name: SimpleNamespace(save_pretrained=written.append))
    assert language.first_blocks(tmp_path / "model", language.BLOCKS) == "smollm2"
    assert not tiny
    name = language.first_blocks(tmp_path / "model", 1)
    assert name == language.first_blocks(tmp_path / "model", 1) == str(tmp_path / "model")
    assert len(tiny) == len(written) == 1
    language.keep(llama(), tmp_path / "whole")
    assert len(LlamaForCausalLM.from_pretrained(tmp_path / "whole").model.layers) == 2
    short = LlamaForCausalLM.from_pretrained(name)
    assert short.config.num_hidden_layers == len(short.model.layers) == 1
    torch.testing.assert_close(short.state_dict(), tiny[0].state_dict())


def abilities(monkeypatch, tmp_path):
    """The three abilities with ten texts each, none of them read from a file."""

    def corpora():
        return {
            t: Corpus(
                name=t, texts=[f"{t} {i}" for i in range(60)], labels=[0.0] * 60, groups=[str(i) for i in range(60)]
            )
            for t in experts.TASKS
        }

    monkeypatch.setattr(experts, "corpora", corpora)
    monkeypatch.setattr(experts, "load_tokenizer", lambda name: None)
    monkeypatch.setattr(experts, "TextTask", lambda **options: SimpleNamespace(encode=lambda c: c.texts, max_length=4))
    return experts.bench(tmp_path, limits=(5, 2, 3), blocks=1, rates=(0.1, 0.2, 0.3), steps=7)


def test_abilities_are_encoded_up_to_their_limits_and_no_text_is_in_two_parts(monkeypatch, tmp_path):
    b = abilities(monkeypatch, tmp_path)
    for rows in b.rows.values():
        assert (len(rows.train), len(rows.validation), len(rows.test)) == (5, 2, 3)
        assert len({*rows.train, *rows.validation, *rows.test}) == 10
    assert b.steps == 7


def test_an_expert_starts_as_the_first_blocks_with_the_head_of_its_seed(monkeypatch, tmp_path):
    b = abilities(monkeypatch, tmp_path)
    monkeypatch.setattr(experts, "load", lambda name, **options: bert_of_this_state())
    first, again, other = (b.base(seed) for seed in (0, 0, 1))
    assert len(first.bert.encoder.layer) == 1
    assert torch.equal(first.classifier.weight, again.classifier.weight)
    assert not torch.equal(first.classifier.weight, other.classifier.weight)


def bert_of_this_state():
    state = torch.get_rng_state()
    model = bert()  # seeds by itself
    torch.set_rng_state(state)
    model.classifier.reset_parameters()
    return model


def test_the_best_rate_is_that_of_the_highest_validation_accuracy_and_is_kept(monkeypatch, tmp_path):
    b, asked = abilities(monkeypatch, tmp_path), []

    def trained(self, name, examples, *, seed, rate, steps):
        asked.append((name, seed, rate, steps))
        return rate

    monkeypatch.setattr(experts.Bench, "trained", trained)
    monkeypatch.setattr(experts.Bench, "accuracies", lambda self, rate, *_: -np.abs([rate - 0.2]))
    for _ in range(2):
        assert b.best_rate("order", list, ["order"], steps=9) == 0.2
    assert asked == [("order", 0, rate, 9) for rate in b.rates]


def test_error_rates_are_shown_where_scores_are_their_complements():
    assert s2lora_speech._rates([0.7, 0.9]) == "20.0±14.1"
    jobs = {budget: s2lora_speech.settings(budget, 2, 10) for budget in s2lora_speech.BUDGETS}
    assert {b: j.reference for b, j in jobs.items() if j.reference == "full"} == {"1%": "full"}
    assert all(j.methods == s2lora_speech.BUDGETS[b] for b, j in jobs.items())


def test_calibration_sees_the_inputs_in_eights_without_their_labels():
    found = welore.inputs(Rows(), [([float(i), 0.0], i) for i in range(10)])
    assert [list(b) for b in found] == [["x"], ["x"]]
    assert torch.cat([b["x"] for b in found])[:, 0].tolist() == list(range(10))
    assert len(found[0]["x"]) == 8
