"""The recipe of R-TSVM: its list of methods and its grid of λ."""

import json
from types import SimpleNamespace

import pytest

from rankwise.bench.merging import rtsvm
from rankwise.bench.shared.experts import digits, right
from rankwise.bench.shared.measured import plain
from rankwise.merging.registry import checked_options, find


@pytest.mark.parametrize(("peak", "found"), [(0.9, 1.0), (4.0, 2.25 * 1.5), (0.1, 0.3 / 1.5**3)])
def test_the_grid_of_scales_goes_on_until_the_best_point_is_inside(peak, found):
    asked = []

    def score(s):
        asked.append(s)
        return -abs(s - peak)

    best, at_edge = rtsvm.inside(score)
    assert best == pytest.approx(found)
    assert not at_edge
    assert min(asked) < best < max(asked)
    assert len(asked) == len(set(asked))


@pytest.mark.parametrize("sign", [1, -1])
def test_a_grid_that_ends_at_its_best_point_says_so(sign):
    best, at_edge = rtsvm.inside(lambda s: sign * s)
    assert at_edge
    assert best * rtsvm.STEP**sign > rtsvm.MOST or best / rtsvm.STEP < rtsvm.LEAST


def test_the_recipes_methods_are_its_own_list_and_take_its_options():
    assert len(rtsvm.COMPARED) == 14
    for method, options in rtsvm.VARIANTS.values():
        checked_options(find(method), options, 3)


def test_classes_are_kept_as_digits_and_the_share_of_right_ones_is_their_accuracy():
    assert digits([0, 5, 7]) == "057"
    assert right("0571", "0171") == 0.75


TRUTH = ["01" * 10, "2345" * 5, "67" * 10]


def said(share):
    """Of every ability so many right answers, the first ones."""
    n = round(20 * share)
    return [t[:n] + "9" * (20 - n) for t in TRUTH]


def judged(at_edge=(), **changes):
    """Every model's share of right answers: as published, but for the changes."""
    models = {"untrained": 0.2, "experts": 0.95, **dict.fromkeys(rtsvm.VARIANTS, 0.6), rtsvm.CONTROL: 0.3}
    models |= dict.fromkeys(rtsvm.MIXTURES, 0.7) | {"rtsvm": 0.9} | {k.replace("_", " "): v for k, v in changes.items()}
    seed = {
        "test": {n: said(v) for n, v in models.items()}, "truth": TRUTH, "scale": dict.fromkeys(models),
        "at_edge": {n: n in at_edge for n in models}, "summed": [[["sentiment", "order"], 0.5, said(0.95)[::2]]],
    }  # fmt: skip
    return rtsvm.judge(plain({"steps": 1, **{f"seed {s}": seed for s in range(5)}}), seeds=5)


def test_what_was_published_holds_and_the_cost_of_summing_is_read_off_the_rows():
    evidence = judged()
    assert all(c.held for c in evidence.claims)
    assert all(c.held for c in judged([rtsvm.CONTROL]).claims)  # noise is best merged least
    assert evidence.extra["interference"][0] == {
        "pair": "sentiment + order", "seed": 0, "overlap": 0.5, "loss": pytest.approx(0)
    }  # fmt: skip


@pytest.mark.parametrize(("changes", "lost"), [
    ({"tsvm": 0.95}, {"best merge", "beats TSVM"}), ({"mixture": 0.95}, {"mixing the data"}),
    ({"experts": 0.25}, {"10 points above"}), ({"at_edge": ["ties"]}, {"inside its grid"}),
    ({"rtsvm,_no_weighting": 0.95}, {"no weighting"}),
])  # fmt: skip
def test_each_claim_can_be_lost(changes, lost):
    failed = [c.text for c in judged(**changes).claims if not c.held]
    assert len(failed) == len(lost)
    assert all(any(word in text for text in failed) for word in lost)


def test_a_run_that_was_cut_short_between_two_models_has_all_of_them_when_it_goes_on(monkeypatch, tmp_path):
    for name in ("_mixture", "clearest", "agreeing", "rotated", "_summed"):
        monkeypatch.setattr(rtsvm, name, lambda *args, **options: [])
    monkeypatch.setattr(rtsvm, "_rates", lambda b: (dict.fromkeys(rtsvm.TASKS, 0.1), 0.1))
    monkeypatch.setattr(rtsvm, "_said", lambda b, state: ["0"])
    monkeypatch.setattr(rtsvm, "_best", lambda *args: (["0"], 1.0))
    b = SimpleNamespace(
        out=tmp_path, steps=1, truth=lambda *_: "0", trained=lambda *_, **options: None, predicted=lambda *_: "0",
        base=lambda seed: SimpleNamespace(state_dict=dict), on_event=lambda *_: None,
    )  # fmt: skip
    whole = rtsvm._scores((b, 0))["test"]
    path = tmp_path / "scores-seed0.json"
    kept = json.loads(path.read_text())
    del kept["test"][f"expert for {rtsvm.TASKS[-1]}"]
    path.write_text(json.dumps(kept))
    assert rtsvm._scores((b, 0))["test"] == whole
