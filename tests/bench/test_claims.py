"""What recipes conclude from what they measured: every claim by its own comparison, and every control can fail."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rankwise.bench.compression import welore, welore_tuned
from rankwise.bench.optim import owlore, owlore_label
from rankwise.bench.prompting import tte_depth
from rankwise.bench.shared.language import LABEL, TEXT
from rankwise.bench.tuning import whisper
from rankwise.compression.options import METHODS


def judged(evidence):
    return [(c.control, c.held) for c in evidence.claims]


def perplexities(**changed):
    worth = {"uniform": 9.0, "owl": 8.0, "welore": 7.0, "top": 6.0, "energy": 5.0, "uniform-calibrated": 4.0,
             "welore-calibrated": 3.0, "energy-calibrated": 2.0} | changed  # fmt: skip
    return {way: {str(r): value for r in welore.RATIOS} for way, value in worth.items()}


def test_claims_on_welore_hold_each_for_its_own_comparison():
    def held(perplexity):
        return [c.held for c in welore._claims(perplexity)]

    assert held(perplexities()) == [True] * 6
    for i, worse in enumerate(("uniform", "owl", "welore-calibrated", "energy", "energy-calibrated")):
        changed = perplexities(**{worse: 1.0 if worse in ("uniform", "owl") else 7.5 if i != 4 else 3.5})
        assert not held(changed)[i], worse
    once = perplexities()
    once["uniform"][str(welore.RATIOS[2])] = 6.9  # better at one reduction is enough
    assert held(once) == [False, *[True] * 5]


def test_uniform_ranks_are_calibrated_too_as_the_control_of_calibrated_welore():
    assert {"uniform-calibrated", "welore-calibrated", "energy-calibrated"} <= set(welore.WAYS)
    assert {w.partition("-")[0] for w in welore.WAYS} <= set(METHODS)  # its own list: not every later method is its
    claims = welore._claims(perplexities(**{"uniform-calibrated": 2.5}))
    assert [(c.control, c.held) for c in claims if c.control] == [(True, False)]


def entry(*losses):
    cost = {"trainable_parameters": 1000, "peak_memory_bytes": 2**20}
    trials = [{"status": "done", "scores": {TEXT: {"loss": x}}} for x in losses]
    return {"title": "x", "learning_rate": 1e-3, "cost": cost, "trials": trials}


@pytest.mark.parametrize("rival", [None, "full", "lora", "n-lrc"])
def test_claims_on_tuned_factors_compare_with_everything_lora_and_the_dense_matrices(monkeypatch, tmp_path, rival):
    losses = {m: [3.0, 3.1, 3.2] for m in welore_tuned.METHODS} | {"lrc": [2.0, 2.1, 2.2]}
    if rival:
        losses[rival] = [1.0, 1.1, 1.2]
    found = {m: entry(*values) for m, values in losses.items()}
    monkeypatch.setattr(welore_tuned, "_compressed", lambda folder, name: folder)
    monkeypatch.setattr(
        welore_tuned, "trained", lambda out, config, on_event: ({"zero_shot": {TEXT: {"loss": 4.0}}}, found)
    )
    evidence = welore_tuned.run(tmp_path, seeds=3)
    order = ["full", "lora", "n-lrc"]
    assert judged(evidence) == [(m == "n-lrc", m != rival) for m in order]


def test_the_second_part_of_owlores_recipe_is_on_labels(monkeypatch, tmp_path):
    monkeypatch.setattr(owlore, "run", lambda out, **options: options)
    asked = owlore_label.run(tmp_path, seeds=2, steps=5)
    assert (asked["data"], asked["name"], asked["seeds"], asked["steps"]) == (LABEL, "owlore_label", 2, 5)


@pytest.mark.parametrize(("apart", "uniform"), [(True, True), (False, True), (True, False)])
def test_claims_on_corpora_fail_where_they_do_not_differ_and_the_control_where_p_is_not_uniform(
    monkeypatch, tmp_path, apart, uniform
):
    """Domains that lie in directions of their own, or all in one; p-values of halves as they are, or too small."""
    rng, compare = np.random.default_rng(0), tte_depth.depth_rank_test

    def texts(domain, *, task):
        return SimpleNamespace(head=lambda n: SimpleNamespace(texts=[domain] * n))

    def embed(given):
        middle = np.eye(16)[tte_depth.DOMAINS.index(given[0]) if apart else 0]
        return middle + 0.3 * rng.normal(size=(len(given), 16))

    def compared(F, G, **options):
        found = compare(F, G, **options)
        return found if uniform or "permutations" not in options else replace(found, pvalue=found.pvalue**4)

    for name, value in {"TEXTS": 30, "SPLITS": 40, "sentiment": texts, "embed": embed}.items():
        monkeypatch.setattr(tte_depth, name, value)
    monkeypatch.setattr(tte_depth, "depth_rank_test", compared)
    assert judged(tte_depth.judge(tte_depth.measure(tmp_path))) == [(False, apart), (True, uniform)]


def test_differences_of_log_probabilities_are_those_of_the_tokens_said():
    a, b = torch.zeros(2, 3), torch.tensor([[1.0, 0.0, -3.0], [0.0, 0.0, 0.5]])
    largest, mean, alike = whisper.differences([a, a], [b, a], [[2, 1], [0, 1]])
    assert (largest, mean) == (3.0, 3.0 / 4)  # of tokens 2 and 1: 3 and 0; of the other recording none
    assert alike == pytest.approx(3 / 4)  # the third token of b's second row is ranked before a's
