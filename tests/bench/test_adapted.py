"""Recipes that are jobs of training runs, on runs made up: each claim can be lost alone."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from rankwise.bench.compression import lama, welore_tuned
from rankwise.bench.optim import galore, owlore, owlore_label
from rankwise.bench.shared import adapted, language
from rankwise.bench.shared.adapted import UNTRAINED, by_seed, runs_of
from rankwise.bench.shared.evidence import paired, verdicts
from rankwise.bench.shared.language import LABEL, TEXT
from rankwise.bench.shared.measured import plain
from rankwise.bench.tuning import eva, eva_starts, s2lora, s2lora_speech

SEEDS = 5
COST = {"trainable_parameters": 1000, "peak_memory_bytes": 2**20, "adapter_bytes": 2048, "trainable_share": 0.01}


def answers(accuracy):
    """A hundred answers, so many of them right."""
    return {"label": [1] * 100, "said": [1] * round(100 * accuracy) + [0] * round(100 * (1 - accuracy))}


def text(loss):
    return {"nll": [4 * loss, 6 * loss], "tokens": [4, 6]}


def recording(wer):
    rate = {"errors": [round(100 * wer), 0], "words": [60, 40], "letter_errors": [1, 1], "letters": [9, 9]}
    return rate | {"nll": [1.0, 1.0], "tokens": [2, 2]}


def run(of, corpora, *, trials=(), **more):
    """A method; ``corpora`` has a number for all seeds by corpus, and seeds differ by the same for all methods."""
    made = [
        {"method": "m", "seed": s, "learning_rate": 1e-3, "validation_curve": [], "ranks": {}, "mass": {}}
        | {"items": {c: of(v + 0.01 * s) for c, v in corpora.items()}}
        for s in range(SEEDS)
    ]
    for t, extra in zip(made, trials, strict=False):
        t |= extra
    told = {"title": "M", "rank": 2, "learning_rate": 1e-3, "cost": COST, "grid": []}
    return told | {"trials": made} | more


def lost(evidence):
    return [c.text for c in evidence.claims if not c.held]


def is_named(words, texts):
    return len(words) == len(texts) and all(w in t for w, t in zip(words, texts, strict=True))


# what is kept of a job


def test_runs_have_the_items_of_done_trials_without_the_columns_left_and_none_of_those_that_diverged():
    trial = {"method": "lora", "seed": 0, "learning_rate": 1e-3, "validation_curve": [], "ranks": {}, "mass": {}}
    trials = [trial | {"status": s, "seed": i} for i, s in enumerate(["done", "diverged"])]
    known = {"title": "LoRA", "rank": 2, "learning_rate": 1e-3, "cost": COST, "grid": [{"score": 1.0}]}
    methods = [{"name": "lora", **known, "trials": trials}, {"name": "full", "trials": []}]
    methods[1] |= {"title": "full", "rank": 0, "grid": [{"learning_rate": 1.0, "status": "diverged"}]}
    job = SimpleNamespace(
        run=lambda: {"methods": methods, "zero_shot": {}}, items=lambda trial=None: {"c": {"nll": [1], "tokens": [2]}},
        config=SimpleNamespace(seeds=2),
    )  # fmt: skip
    found = runs_of(job, leave=["nll"])
    assert [*found] == ["lora", "full", UNTRAINED]
    assert np.isnan(by_seed(found["full"], "c")).tolist() == [True, True]
    assert (found["full"]["grid"], found["full"]["cost"]) == (methods[1]["grid"], None)
    assert [t["items"] for t in found["lora"]["trials"]] == [{"c": {"tokens": [2]}}, None]
    assert found[UNTRAINED] == {"c": {"tokens": [2]}}
    assert found["lora"]["grid"] == known["grid"]


def test_a_seed_that_diverged_has_no_number():
    e = run(text, {"c": 1.0})
    assert by_seed(e, "c", "loss") == pytest.approx([1.0, 1.01, 1.02, 1.03, 1.04])
    e["trials"][1]["items"] = None
    assert np.isnan(by_seed(e, "c", "loss")).tolist() == [False, True, False, False, False]


def spoilt(run, *, whole):
    """As it is kept where a seed diverged, or the whole grid."""
    for t in run["trials"] if whole else run["trials"][1:2]:
        t |= {"items": None, "validation_curve": t["validation_curve"][:1] * (not whole), "ranks": {}, "mass": {}}
        if "coefficients" in t:
            t["coefficients"] = {"of": 0, "zero": 0}
    if whole:
        run |= {"cost": None, "learning_rate": None}


def lama_runs():
    made = {n: run(answers, dict.fromkeys((lama.MOVIES, *lama.TESTS), 0.6)) for n in lama.VARIANTS}
    made["lama"] = run(answers, dict.fromkeys((lama.MOVIES, *lama.TESTS), 0.7))
    kept = {n: r | {"seconds": 2.0, "attention": 7} for n, r in made.items()}
    return plain({"steps": 3, "apart": [0.1, 0.3], **kept})


def galore_runs():
    found = {m: run(text, {TEXT: loss}) for m, loss in {"full": 3.0, "galore": 3.0, "galore-random": 3.5}.items()}
    return plain(found | {"told": {"steps": 30, "batch": 4, "tokens": 64, "gap": 15}, UNTRAINED: {TEXT: text(4.0)}})


def test_of_nothing_that_full_training_gains_there_is_no_share():
    found = galore_runs() | {UNTRAINED: plain({TEXT: text(2.0)})}
    assert not galore.judge(found, seeds=5).claims[0].held


def welore_runs():
    found = {m: run(text, {TEXT: loss}) for m, loss in dict.fromkeys(welore_tuned.METHODS, 3.0).items()}
    found["lrc"] = run(text, {TEXT: 2.0})
    return plain(found | {"told": {"steps": 20, "batch": 4, "tokens": 64}, UNTRAINED: {TEXT: text(4.0)}})


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(("module", "made", "name", "least"), [
    (owlore, lambda: owlore_runs(), "lisa", 2), (owlore, lambda: owlore_runs(), owlore.OURS, 5),
    (owlore_label, lambda: owlore_runs(LABEL), owlore.REVERSED, 2), (galore, galore_runs, "galore", 2),
    (welore_tuned, welore_runs, "lrc", 3), (s2lora, lambda: s2_text(), "0.5% s2lora", 3),
    (s2lora, lambda: s2_text(), "0.5% adalora", 4), (s2lora_speech, lambda: s2_speech(), "1% adalora", 5),
    (s2lora_speech, lambda: s2_speech(), "1% s2lora", 4), (eva, lambda: eva_runs(), "eva", 6),
    (eva, lambda: eva_runs(), "lora", 2), (lama, lama_runs, "lama", 4),
])  # fmt: skip
def test_what_diverged_is_said_and_holds_no_claim(module, made, name, least, whole):
    runs = made()
    assert not lost(module.judge(runs, seeds=SEEDS))
    spoilt(runs[name], whole=whole)
    evidence = module.judge(runs, seeds=SEEDS)
    assert len(lost(evidence)) >= least
    said = f"{5 if whole else 1} of 5 diverged"
    assert any(said in cell for row in evidence.rows for cell in row)
    assert any("diverged" in c.found for c in evidence.claims if not c.held)


def test_where_every_method_diverged_at_every_rate_nothing_is_held_and_all_is_judged():
    for module, runs in (
        (eva, eva_runs()), (s2lora, s2_text()), (s2lora_speech, s2_speech()), (lama, lama_runs()),
        (galore, galore_runs()), (welore_tuned, welore_runs()), (owlore, owlore_runs()),
    ):  # fmt: skip
        for key in [k for k, v in runs.items() if isinstance(v, dict) and "trials" in v]:
            spoilt(runs[key], whole=True)
        held = [c.text for c in module.judge(runs, seeds=SEEDS).claims if c.held]
        assert all(h.startswith(("heads look at", "blocks with more")) for h in held)  # of no trial


def test_the_first_scale_and_rate_are_taken_where_all_diverged():
    grid = [{"learning_rate": r, "status": "diverged"} for r in (1e-4, 4e-4)]
    assert owlore.best({"1": {"grid": grid}, "4": {"grid": grid}}) == ("1", 1e-4)


def test_a_setting_says_how_many_items_every_corpus_had():
    a, b = run(answers, {"a": 0.5}), run(text, {"a": 1.0, "b": 1.0})
    spoilt(a, whole=True)
    assert adapted.tested([a, b]) == "2 of a, 2 of b"
    assert adapted.tested([a]) == "none"
    for module, runs in ((s2lora, s2_text()), (lama, lama_runs()), (eva, eva_runs())):
        assert "tests: 100 of sentiment:movies" in module.judge(runs, seeds=SEEDS).setting
    assert "tests: 2 of speech:child, 2 of" in s2lora_speech.judge(s2_speech(), seeds=SEEDS).setting


def test_a_row_of_the_table_has_the_metrics_own_unit():
    e = run(text, {"c": 1.0})
    assert language.row(e, {"c": "loss"}) == ["M", "0.001", "1.0k", "1.0MB", "1.020±0.016"]
    assert language.row(run(answers, {"c": 0.5}), {"c": "accuracy"})[-1] == "52.0±1.6"


def test_a_job_is_asked_by_its_configuration_and_folder(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(language, "Job", lambda config, out, *, on_event: asked.append((config, out)))
    monkeypatch.setattr(language, "runs_of", lambda job: "runs")
    assert language.trained(tmp_path, "config", None) == "runs"
    assert asked == [("config", tmp_path)]
    assert adapted.runs_of is runs_of


# OwLore


def owlore_runs(data=TEXT, **changed):
    label = data == LABEL
    of = answers if label else text
    base = 0.6 if label else 4.0
    better = 0.1 if label else -0.2  # than the untrained model
    gain = dict.fromkeys(owlore.OTHERS, 1.0) | {owlore.UNIFORM: 1.0, owlore.REVERSED: 0.5, owlore.OURS: 1.5} | changed
    found = {n: run(of, {data: base + better * g}) for n, g in gain.items()}
    found["tried"] = {
        s: {"grid": [{"learning_rate": r, "score": -abs(int(s) - 4) - r, "status": "done"} for r in (1e-4, 4e-4)]}
        for s in ("1", "4", "8")
    }
    found["tried"]["4"]["grid"].append({"learning_rate": 1.0, "status": "diverged"})
    told = {"data": data, "steps": 75, "batch": 4, "tokens": 64, "interval": 25, "gap": 37, "scale": "4", "rate": 1e-4}
    found |= {"told": told, UNTRAINED: {data: of(base)}}
    if not label:
        x = np.arange(12.0)
        found["layers"] = {"outliers": x, "hill_alpha": -x, "probability": x}
    return plain(found)


@pytest.mark.parametrize("data", [TEXT, LABEL])
@pytest.mark.parametrize(("changed", "words"), [
    ({}, []),
    ({"galore": -0.5}, ["every method improves"]),
    ({"full": 2.0}, ["as good as full"]),
    ({"lisa": 2.0}, ["better than LISA"]),
    ({"lisa": 1.5}, ["better than LISA"]),
    ({owlore.UNIFORM: 2.0}, ["uniform ones"]),
    ({owlore.REVERSED: 1.5}, ["control: reversed"]),
])  # fmt: skip
def test_each_claim_on_owlore_can_be_lost_alone(data, changed, words):
    module = owlore_label if data == LABEL else owlore
    evidence = module.judge(owlore_runs(data, **changed), seeds=SEEDS)
    assert is_named(words, lost(evidence))
    assert evidence.recipe == ("owlore_label" if data == LABEL else "owlore")
    if owlore.REVERSED in changed:
        assert {v for c, v in zip(evidence.claims, verdicts(evidence.claims), strict=True) if not c.control} == {
            "cannot tell"
        }


def test_the_draws_are_judged_at_the_scale_and_rate_that_validation_chose():
    found = owlore_runs()
    assert owlore.best(found["tried"]) == ("4", 1e-4)
    found["tried"]["8"]["grid"][0]["score"] = 1.0  # what was trained is told, not chosen again
    assert "OwLore's scale 4 of 1, 4, 8 and rate 0.0001 chosen" in owlore.judge(found, seeds=SEEDS).setting


def test_owlore_is_tried_at_every_scale_and_all_draws_are_trained_at_the_best_alone(monkeypatch, tmp_path):
    asked = {}

    def trained(out, config, on_event):
        asked[out.name] = config
        scale = config.scale or 1
        grid = {m: [{"learning_rate": r, "score": scale * r, "status": "done"} for r in g]
                for m, g in config.learning_rates.items()}  # fmt: skip
        return {m: {"grid": g} for m, g in grid.items()}

    monkeypatch.setattr(owlore, "trained", trained)
    rates = {"full": [0.1], "galore": [0.2], "lisa": [0.3], "owlore": [0.4, 0.5], "lora": [0.6]}
    found = owlore.compared(
        tmp_path, TEXT, model="smollm2", steps=60, scales=(2.0, 8.0), rates=rates, tested=3, seeds=5, on_event=None
    )
    assert {n: (c.methods, c.seeds, c.scale) for n, c in asked.items()} == {
        "scale-2": (["owlore"], 1, 2.0),
        "scale-8": (["owlore"], 1, 8.0),
        "draws": ([owlore.OURS, owlore.UNIFORM, owlore.REVERSED], 5, 8.0),
        "others": (owlore.OTHERS, 5, None),
    }
    assert set(map(tuple, asked["draws"].learning_rates.values())) == {(0.5,)}
    assert asked["others"].learning_rates == {n: rates[n] for n in owlore.OTHERS}
    assert {(c.steps, c.batch_size, c.max_length, c.interval) for c in asked.values()} == {(60, 4, 64, 20)}
    assert (found["told"]["scale"], found["told"]["rate"]) == ("8", 0.5)
    assert set(found) == {"told", "tried", *owlore.OTHERS, owlore.OURS, owlore.UNIFORM, owlore.REVERSED}


def test_heavier_tails_with_more_outliers_are_a_negative_correlation():
    x = np.arange(12.0)
    falling, rising = ({"outliers": x, "hill_alpha": s * x} for s in (-1, 1))
    assert [c.held for layers in (falling, rising) for c in owlore._tails(layers)] == [True, False]
    assert owlore._tails({}) == []


def test_a_loss_is_better_when_it_is_lower():
    d = paired([2.0, 3.0], [1.0, 1.0])
    assert owlore.difference(d, "loss") == "loss lower by 1.5000±0.5000, p=0.25, sees 1.4000"
    assert owlore.difference(d, "accuracy") == str(d)


# WeLore and GaLore


@pytest.mark.parametrize("rival", [None, "full", "lora", "n-lrc"])
def test_claims_on_tuned_factors_compare_with_everything_lora_and_the_dense_matrices(rival):
    losses = dict.fromkeys(welore_tuned.METHODS, 3.0) | {"lrc": 2.0} | ({rival: 1.0} if rival else {})
    found = {m: run(text, {TEXT: loss}) for m, loss in losses.items()}
    found |= {"told": {"steps": 20, "batch": 4, "tokens": 64}, UNTRAINED: {TEXT: text(4.0)}}
    evidence = welore_tuned.judge(plain(found), seeds=SEEDS)
    order = ["full", "lora", "n-lrc"]
    assert [(c.control, c.held) for c in evidence.claims] == [(m == "n-lrc", m != rival) for m in order]
    assert "untuned loss 4.000" in evidence.setting


@pytest.mark.parametrize(("losses", "held"), [
    ({"galore": 3.0, "galore-random": 3.5}, [True, True]),
    ({"galore": 3.2, "galore-random": 3.5}, [False, True]),
    ({"galore": 3.0, "galore-random": 3.0}, [True, False]),
])  # fmt: skip
def test_galores_claim_is_its_share_of_what_full_adamw_gains(losses, held):
    found = {m: run(text, {TEXT: loss}) for m, loss in ({"full": 3.0} | losses).items()}
    found |= {"told": {"steps": 30, "batch": 4, "tokens": 64, "gap": 15}, UNTRAINED: {TEXT: text(4.0)}}
    assert [c.held for c in galore.judge(plain(found), seeds=SEEDS).claims] == held


# S2-LoRA

LAYERS = [f"layer {i}" for i in range(12)]
RISING = {n: i for i, n in enumerate(LAYERS)}
FALLING = {n: -i for i, n in enumerate(LAYERS)}


def s2_run(of, domains, *, zero=20, ranks=RISING, mass=RISING, cost=None):
    """A method of S2-LoRA's recipes, with so many of a hundred coefficients zero."""
    one = {"ranks": ranks, "mass": mass, "coefficients": {"of": 100, "zero": zero}}
    return run(of, domains, trials=[one] * SEEDS, cost=COST | (cost or {}))


def s2_text(zero=20, dense=0, ranks=RISING, mass=RISING, permuted=0.5, small=100, **changed):
    """All variants at 0.6 in domain and 0.5 out of it; ``changed`` has a pair for a variant."""
    found = {"told": {"steps": 160}, "permuted": [answers(permuted)] * SEEDS, "0.5% head": None}
    for budget, names in s2lora.BUDGETS.items():
        found |= {f"{budget} {n}": None for n in names}
    for key in found:
        if "%" in key:
            inside, out = changed.get(key, (0.6, 0.5))
            domains = {s2lora.IN_DOMAIN: inside} | dict.fromkeys(s2lora.OUT_OF_DOMAIN, out)
            ada = key.endswith("adalora")
            cost = {"trainable_parameters": small if key.startswith("0.0") else 1000}
            kept = {"zero": dense if key.endswith("dense") else zero, "ranks": RISING if ada else ranks, "cost": cost}
            found[key] = s2_run(answers, domains, mass={} if ada else mass, **kept)
    return plain(found)


@pytest.mark.parametrize(("changed", "words"), [
    ({}, []),
    ({"changes": {"0.05% s2lora": (0.5, 0.5)}}, ["in domain within 1 point of AdaLoRA"]),
    ({"changes": {"0.02% s2lora": (0.5, 0.5)}}, ["in domain within 1 point of AdaLoRA"]),
    ({"small": 500}, ["in domain within 1 point of AdaLoRA"] * 2),
    ({"changes": {"0.5% s2lora": (0.6, 0.4)}}, ["mean out-of-domain accuracy"]),
    ({"changes": {"0.05% s2lora": (0.6, 0.4)}}, ["mean out-of-domain accuracy"]),
    ({"changes": {"0.5% s2lora-dense": (0.7, 0.5)}}, ["the L1 term costs no accuracy"]),
    ({"zero": 5}, ["the L1 term acts"]),
    ({"zero": 100, "dense": 95}, ["the L1 term acts"]),
    ({"mass": FALLING}, ["correlation of mass"]),
    ({"ranks": FALLING}, ["correlation of effective ranks"]),
    ({"permuted": 0.62}, ["control: coefficients dealt"]),
])  # fmt: skip
def test_each_claim_on_s2lora_can_be_lost_alone(changed, words):
    found = s2_text(**{k: v for k, v in changed.items() if k != "changes"}, **changed.get("changes", {}))
    assert is_named(words, lost(s2lora.judge(found, seeds=SEEDS)))


def test_what_rests_on_sparsity_is_judged_only_where_it_acted():
    def texts(zero):
        return " ".join(c.text for c in s2lora.judge(s2_text(zero=zero), seeds=SEEDS).claims)

    for words in ("the L1 term costs", "effective ranks"):
        assert words in texts(10)
        assert words not in texts(9)
    shown = s2lora.judge(s2_text(zero=9), seeds=SEEDS)
    assert "9.0±0.0 % of 100 coefficients are zero, 0.0±0.0 % without it; what rests on" in next(
        c.found for c in shown.claims if "L1 term acts" in c.text
    )
    assert [row[5] for row in shown.rows if row[0] == "M"].count("9.0±0.0%") == len(shown.rows) - 1


def test_zero_coefficients_of_a_saved_adapter_are_counted(tmp_path):
    tensors = {
        "base_model.s2lora_lambda.4x4": torch.tensor([[0.0, 1.0], [1e-9, 0.0]]),
        "base_model.s2lora_lambda.4x8": torch.zeros(1, 3),
        "base_model.s2lora_P.4x4": torch.zeros(4, 4),
    }
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    assert s2lora.coefficients(tmp_path) == {"of": 7, "zero": 5}


def test_no_correlation_is_seen_where_nothing_varies():
    assert s2lora._spearman(np.ones(4), np.arange(4.0)) == 0


def s2_speech(zero=20, permuted=0.5, small=100, untrained=0.6, **changed):
    found = {"told": {"steps": 48}, "permuted": [recording(permuted)] * SEEDS, "1% full": None}
    corpora = [s2lora_speech.IN_DOMAIN, *s2lora_speech.OUT_OF_DOMAIN]
    for budget, names in s2lora_speech.BUDGETS.items():
        found |= {f"{budget} {n}": None for n in names}
    for key in [k for k in found if "%" in k]:
        inside, out = changed.get(key, (0.3, 0.2))
        domains = dict(zip(corpora, (inside, out, out), strict=True))
        cost = {"trainable_parameters": small if key.startswith("0.") else 1000}
        ada = key.endswith("adalora")
        none = key.endswith("dense")
        found[key] = s2_run(recording, domains, zero=0 if none else zero, mass={} if ada else RISING, cost=cost)
    found[f"1% {UNTRAINED}"] = {c: recording(untrained) for c in corpora}
    return plain(found)


@pytest.mark.parametrize(("changed", "words"), [
    ({}, []),
    ({"untrained": 0.32}, ["at least 5 points"]),
    ({"changes": {"0.1% s2lora": (0.4, 0.2)}}, ["in domain within 1 point"]),
    ({"small": 500}, ["in domain within 1 point"] * 2),
    ({"changes": {"1% s2lora": (0.3, 0.3)}}, ["mean out-of-domain WER"]),
    ({"changes": {"1% s2lora-unshared": (0.2, 0.2)}}, ["sharing P and Q"]),
    ({"changes": {"1% s2lora-dense": (0.2, 0.2)}}, ["the L1 term costs"]),
    ({"zero": 0}, ["the L1 term acts"]),
    ({"permuted": 0.2}, ["control: coefficients dealt"]),
])  # fmt: skip
def test_each_claim_on_s2lora_and_speech_can_be_lost_alone(changed, words):
    found = s2_speech(**{k: v for k, v in changed.items() if k != "changes"}, **changed.get("changes", {}))
    evidence = s2lora_speech.judge(found, seeds=SEEDS)
    assert is_named(words, lost(evidence))
    assert (
        next(r for r in evidence.rows if r[0] == "zero-shot")[-2:]
        == [f"{100 * (changed.get('untrained', 0.6)):.1f}±0.0"] * 2
    )


# EVA


def eva_runs(**changed):
    """EVA ends above the others, and sooner; ``changed`` has accuracy and last validation loss of a variant."""
    found = {"told": {"steps": 80}}
    for name in eva.VARIANTS:
        accuracy, end = changed.get(name, (0.7, 0.4) if name == "eva" else (0.6, 0.5))
        curve = [{"validation_curve": [(40, 0.6 + 0.01 * s), (80, end + 0.01 * s)]} for s in range(SEEDS)]
        found[name] = run(answers, {"sentiment:movies": accuracy}, trials=curve)
    return plain(found)


@pytest.mark.parametrize(("changed", "words"), [
    ({}, []),
    ({"lora": (0.6, 0.3)}, ["fewer steps"]),
    ({"lora": (0.7, 0.5)}, ["better final test accuracy"]),
    ({"eva-uniform": (0.7, 0.5)}, ["redistributing"]),
    ({"eva-random": (0.7, 0.5)}, ["the start helps"]),
    ({"eva-elsewhere": (0.7, 0.5)}, ["another domain"]),
    ({"eva-bottom": (0.6, 0.4)}, ["control: the directions of least"]),
])  # fmt: skip
def test_each_claim_on_eva_can_be_lost_alone(changed, words):
    evidence = eva.judge(eva_runs(**changed), seeds=SEEDS)
    assert is_named(words, lost(evidence))
    assert evidence.rows[0][3] == ("72.0±1.6" if changed.get("lora", (0.6,))[0] == 0.7 else "62.0±1.6")


def test_starts_are_read_back_as_they_were_kept(monkeypatch):
    gold = [1, 0, 1, 1]
    told = {"told": {"gold": gold}}
    for start in eva_starts.STARTS:
        for frozen in (False, True):
            for rate in eva_starts.RATES:
                for seed in range(1 + eva_starts.CHOOSING):
                    run_ = {"loss": [0.123456, 0.1], "validation": [1 / 3], "predicted": [1, 1, 1, 0]}
                    told[eva_starts._named(start, frozen, rate, seed)] = eva_starts._brief(run_)
    found = eva_starts.read_back(plain(told), 1)
    one = found["EVA", True, eva_starts.RATES[0], 2]
    assert (one["loss"], one["validation"]) == ([0.12346, 0.1], [0.33333])
    assert one["right"].tolist() == [1, 0, 1, 0]
    evidence = eva_starts.judge(plain(told), seeds=1)
    assert {row[5] for row in evidence.rows} == {"50.0±0.0"}
    assert len(evidence.claims) == 12
    assert math.isclose(evidence.extra["losses"][0]["loss"], 0.11173)
