"""The chain of several methods: its prompts, what is asked and how, and its verdicts."""

from itertools import islice

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from rankwise.bench.shared import chain
from rankwise.bench.together import compose
from rankwise.models import load_tokenizer
from rankwise.prompting.examples import Example

POOL = [Example(question=f"word {i} of it", answer=("good", "bad")[i % 2]) for i in range(8)]
ABILITY = chain.Ability(labels=("good", "bad"), pool=POOL, asked=POOL[:3])


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("smollm2")


@pytest.fixture(scope="module")
def small(tokenizer):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    return LlamaForCausalLM(config).eval()


def test_abilities_have_answers_of_their_own_and_short_questions(tokenizer):
    found = chain.abilities(40, 10)
    assert list(found) == ["sentiment", "source", "order"]
    for ability in found.values():
        chain.first_tokens(tokenizer, ability.labels)
        assert {e.answer for e in ability.pool} == set(ability.labels)
        assert max(len(e.question.split()) for e in [*ability.pool, *ability.asked]) <= chain.WORDS
        assert not {e.question for e in ability.pool} & {e.question for e in ability.asked}
    with pytest.raises(ValueError, match="same token"):
        chain.first_tokens(tokenizer, ("good", "good one"))


def test_labels_of_a_batch_are_the_answers_first_tokens(tokenizer):
    (batch,) = islice(chain.batches(tokenizer, POOL, size=5, shown=3, seed=0), 1)
    at = batch["labels"] != -100
    assert at.sum(1).tolist() == [3] * 5
    assert torch.equal(batch["labels"][at], batch["input_ids"][at])
    assert set(batch["labels"][at].tolist()) == set(chain.first_tokens(tokenizer, ABILITY.labels).tolist())
    assert bool((batch["attention_mask"][at] == 1).all())
    whole = tokenizer.decode(batch["input_ids"][0][batch["attention_mask"][0] == 1])
    assert whole.count("Answer:") == 3


@pytest.mark.parametrize("kind", ["dense", "think"])
def test_an_answer_is_that_of_the_whole_prompt_where_nothing_is_dropped(small, tokenizer, kind):
    shown = [POOL[3:6]] * 3
    found = chain.asked(small, ABILITY, shown, kind, 0.0)
    for i, (question, examples) in enumerate(zip(ABILITY.asked, shown, strict=True)):
        text = "".join(f"{e.question}\nAnswer: {e.answer}\n\n" for e in examples) + f"{question.question}\nAnswer:"
        ids = []  # written in pieces, as it is read
        for e in examples:
            ids += tokenizer(f"{e.question}\nAnswer:")["input_ids"] + tokenizer(f" {e.answer}\n\n")["input_ids"]
        ids += tokenizer(f"{question.question}\nAnswer:")["input_ids"]
        assert tokenizer.decode(ids) == text
        with torch.no_grad():
            own = [tokenizer(" good")["input_ids"][0], tokenizer(" bad")["input_ids"][0]]
            logits = small(torch.tensor([ids])).logits[0, -1, own].double()
        gold = ABILITY.labels.index(question.answer)
        assert found["logp"][i] == pytest.approx(float(logits.log_softmax(0)[gold]), abs=1e-4)
        assert found["right"][i] == int(logits.argmax() == gold)


def test_a_thin_cache_changes_what_is_said_and_holds_less(small):
    shown = [POOL[:8]] * 3
    whole, thin = (chain.asked(small, ABILITY, shown, kind, 0.5)["logp"] for kind in ("dense", "think"))
    assert not np.allclose(whole, thin, atol=1e-7)


def test_what_a_model_costs_is_taken_in_a_process_of_its_own(small, tmp_path):
    small.save_pretrained(tmp_path / "model")
    found = chain.cost(tmp_path / "model", "dense", 0.4)
    assert found["cache"] == 2 * 2 * 32 * (chain.CONTEXT + chain.NEW) * 2  # keys and values, layers, width, bfloat16
    assert found["peak"] > 0
    assert found["speed"] > 0
    assert chain.size_on_disk(tmp_path / "model") >= 4 * small.num_parameters()
    thin = chain.cache_of(small, "think", 0.25)
    assert (thin.settings.ratio, thin.settings.window, thin.settings.recent) == (0.25, 8, 8)


@pytest.mark.parametrize("start", ["eva", "lora"])
def test_an_adapter_learns_its_answers_and_is_made_once(small, tmp_path, start):
    small.save_pretrained(tmp_path / "base")
    told = {"batch": 4, "shown": 2, "rank": 2, "rate": 1e-2, "seed": 0}
    folder = chain.taught(tmp_path / "adapter", str(tmp_path / "base"), ABILITY, start, steps=15, **told)
    weights = load_file(folder / "adapter_model.safetensors")
    assert any("lora_B" in name and bool(v.any()) for name, v in weights.items())
    told["rate"] = 0.0
    again = chain.taught(folder, str(tmp_path / "base"), ABILITY, start, steps=1, **told)
    assert all(torch.equal(v, weights[k]) for k, v in load_file(again / "adapter_model.safetensors").items())
    expert, shown = chain.with_adapter(str(tmp_path / "base"), folder).eval(), [POOL[3:6]] * 3
    before = chain.asked(small, ABILITY, shown, "dense", 0.0)["logp"]
    after = chain.asked(expert, ABILITY, shown, "dense", 0.0)["logp"]
    assert np.mean(after) != pytest.approx(np.mean(before), abs=1e-4)


def made_up(levels, alone=()):
    """Runs in which every question of a stage has the same log-probability, but for a little noise."""
    rng = np.random.default_rng(0)

    def answers(level):
        return {
            "answers": {
                name: {"right": [1, 0], "logp": (level + rng.normal(0, 1e-6, 2)).tolist()} for name in ("a", "b")
            }
        }

    runs = {
        f"{name} 0": {
            "stages": {stage: answers(v) for stage, v in zip(compose.STAGES, values, strict=True)},
            "alone": {stage: answers(v) for stage, v in dict(alone).items()},
        }
        for name, values in levels.items()
    }
    cost = {"disk": 2e6, "peak": 3e6, "cache": 4e3, "speed": 10.0}
    return runs | {compose.COSTS: {name: dict.fromkeys(compose.STAGES, cost) for name in levels}}


ALONE = {"smaller": -0.5, "thin cache": -0.41, "examples": -0.35}


def test_a_chain_that_is_better_at_every_step_holds_everything():
    found = made_up({"ours": [-2, -0.4, -0.5, -0.6, -0.61, -0.5], "stock": [-2, -0.5, -0.8, -2, -2, -2]}, ALONE)
    evidence = compose.judge(found, seeds=1)
    assert [c.held for c in evidence.claims] == [True] * len(evidence.claims)
    assert len(evidence.rows) == 2 * len(compose.STAGES)
    assert evidence.rows[0][-4:] == ["1.9MB", "2.9MB", "3.9KB", "10.0"]
    # lost: .1 in a row; .1 + .1 + .01 - .05 in sum
    assert evidence.claims[-1].found.startswith("-0.06 ")
    assert "+0.100 in a row; alone merged +0.100" in evidence.claims[-1].found


@pytest.mark.parametrize(
    ("at", "changed"),
    [
        (0, {"ours": [-0.3, -0.4, -0.5, -0.6, -0.61, -0.5]}),
        (1, {"stock": [-2, -0.3, -0.8, -2, -2, -2]}),
        (2, {"ours": [-2, -0.4, -0.8, -0.9, -0.91, -0.5]}),
        (3, {"ours": [-2, -0.4, -0.5, -1.9, -1.91, -0.5]}),
        (4, {"ours": [-2, -0.4, -0.5, -0.6, -0.7, -0.5]}),
        (5, {"ours": [-2, -0.4, -0.5, -0.6, -0.61, -0.62]}),
        (6, {"stock": [-2, -0.5, -0.8, -2, -2, -0.4]}),
        (7, {"ours": [-2, -0.4, -0.5, -0.6, -0.61, -0.67]}),
    ],
)
def test_each_claim_fails_where_its_step_is_worse(at, changed):
    levels = {"ours": [-2, -0.4, -0.5, -0.6, -0.61, -0.5], "stock": [-2, -0.5, -0.8, -2, -2, -2]} | changed
    assert not compose.judge(made_up(levels, ALONE), seeds=1).claims[at].held
