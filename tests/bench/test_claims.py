"""What recipes conclude from what they measured: every claim by its own comparison, and every control can fail."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rankwise.bench.compression import welore
from rankwise.bench.prompting import tte_depth
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
    found = whisper.differences(whisper.apart([a, a], [b, a], [[2, 1], [0, 1]]))
    assert found[:2] == (3.0, 3.0 / 4)  # of tokens 2 and 1: 3 and 0; of the other recording none
    assert found.alike == pytest.approx(3 / 4)  # the third token of b's second row is ranked before a's
    assert found.tokens == 4


@pytest.mark.parametrize(("changed", "lost"), [
    ({}, []),
    ({"gap": 2e-3}, [0]),
    ({"alike": 0}, [0]),
    ({"heard": "b"}, [1]),
    ({"half": 1.3}, [2]),
])  # fmt: skip
def test_claims_on_the_bundled_whisper_can_be_lost_each_alone(changed, lost):
    told = {"gap": 1e-4, "alike": 1, "heard": "a", "half": 1.2} | changed

    def run(gap, alike=1):
        return {"gaps": [[gap], [gap, gap]], "alike": [[1], [1, alike]]}

    found = {whisper.CONVERTED: run(told["gap"], told["alike"]), whisper.ROUNDED: run(1.0)}
    found[whisper.CONVERTED] |= {"heard": ["a"], "heard by the runtime": [told["heard"]]}
    found |= {whisper.SHORT.format(s): run(told["half"]) for s in (1, 2, 4)}
    assert [i for i, c in enumerate(whisper.judge(found).claims) if not c.held] == lost
