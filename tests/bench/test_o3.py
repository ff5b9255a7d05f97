"""The recipes of O3: what each claim can lose to, which rows are drawn, and what is read back."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from transformers import LlamaConfig, LlamaForCausalLM

from rankwise.bench.continual import o3 as recipe
from rankwise.bench.continual import o3_detectors, o3_tofu
from rankwise.bench.shared import unlearning as shared
from rankwise.bench.shared.measured import plain
from rankwise.bench.shared.requests import clinc, folder_of, made_up, tofu, tofu_tasks
from rankwise.bench.shared.unlearning import ARM_FILES, ARMS, ASCENT, HARD, LOOSE, O3, ORACLE, PLAIN, SHUFFLED, TAUGHT
from rankwise.continual import Schedule

GOOD = {"taught": 0.02, "unseen": 0.02, "retained": 0.9, "utility": 0.7, "membership": 0.52}
WORSE = GOOD | {"retained": 0.6}
BEST = {
    TAUGHT: {"taught": 0.99, "unseen": 0.9, "retained": 0.9, "utility": 0.7, "membership": 0.7},
    ORACLE: GOOD,
    O3: GOOD,
}


def claims(first=(0.02, 0.02, 0.02), **changes):
    names = {
        "o3": O3,
        "taught": TAUGHT,
        "shuffled": SHUFFLED,
        "hard": HARD,
        "loose": LOOSE,
        "plain": PLAIN,
        "ascent": ASCENT,
    }
    means = dict.fromkeys(ARMS, WORSE) | BEST | {names[k]: v for k, v in changes.items()}
    end = {arm: [{k: x + d for k, x in m.items()} for d in (-0.001, 0, 0.001)] for arm, m in means.items()}
    stage = [{"a/train": {"right": np.array([v])}} for v in first]
    return recipe.claims(end, [{O3: dict(enumerate(stage))}] * 3, ["a"])


def test_what_was_published_holds_every_claim():
    assert all(c.held for c in claims())


@pytest.mark.parametrize(
    ("changes", "lost"),
    [
        ({"taught": BEST[TAUGHT] | {"taught": 0.7}}, ["power"]),
        ({"shuffled": GOOD | {"retained": 0.95}}, ["control: a router"]),
        ({"o3": GOOD | {"unseen": 0.2}}, ["forgotten, unseen"]),
        ({"o3": GOOD | {"retained": 0.87}}, ["retained: at most"]),
        ({"o3": GOOD | {"utility": 0.6}}, ["utility"]),
        ({"o3": GOOD | {"membership": 0.2}}, ["membership"]),
        ({"plain": GOOD | {"retained": 0.95}}, ["plain LoRA"]),
        ({"hard": GOOD | {"retained": 0.95}}, ["hard router"]),
        ({"first": (0.02, 0.02, 0.2)}, ["stays forgotten"]),
    ],
)
def test_each_claim_can_be_lost(changes, lost):
    failed = [c.text for c in claims(**changes) if not c.held]
    assert len(failed) == len(lost)
    assert all(word in text for word, text in zip(lost, failed, strict=True))


def test_a_stage_is_summed_up_over_its_requests():
    def of(*rights):
        return {"right": list(rights), "nll": [1.0 - r for r in rights]}

    stage = {"a/train": of(1, 1), "a/test": of(0, 0), "b/train": of(0, 0), "b/test": of(0, 0), "retained": of(1, 0),
             "utility": of(1, 1)}  # fmt: skip
    assert recipe.brief(stage, ["a", "b"]) == {
        "taught": 0.5, "unseen": 0, "retained": 0.5, "utility": 1, "membership": 0.75
    }  # fmt: skip


@pytest.fixture
def data(tmp_path):
    (tmp_path / "clinc150").mkdir()
    domains = {d: [f"{d}_{i}" for i in range(3)] for d in "abc"}
    rows = {s: [[f"{s} {i} {k}", i] for d in domains.values() for i in d for k in range(6)] for s in ("train", "test")}
    rows["oos_test"] = [["what", "oos"]]
    (tmp_path / "clinc150/domains.json").write_text(json.dumps(domains))
    (tmp_path / "clinc150/data_full.json").write_text(json.dumps(rows))
    (tmp_path / "tofu").mkdir()
    lines = [{"task_id": str(t), "question": f"who {t}-{i // 20} {i}", "answer": f"he {i}"}
             for t in (1, 2) for i in range(60)]  # fmt: skip
    (tmp_path / "tofu/forget05.json").write_text("".join(json.dumps(r) + "\n" for r in lines))
    (tmp_path / "tofu/retain90.json").write_text("".join(json.dumps(r) + "\n" for r in lines))
    return tmp_path


def test_a_request_is_a_domain_whose_queries_are_drawn_by_the_seed(data):
    options = {"domains": ["a", "b"], "retained": ["c"], "intents": 2, "train": 4, "test": 3}
    one, again, other = (clinc(data, seed=s, **options) for s in (0, 0, 1))
    assert one == again != other
    taught, unseen = one.requests["a"]
    assert (len(taught), len(unseen), len(one.retained[0])) == (8, 6, 8)
    assert all(r.answer.startswith("a ") and "train" in r.prompt for r in taught)
    assert not {r.prompt for r in taught} & {r.prompt for r in unseen}
    assert len(taught[0].choices) == 6


def test_tofus_rows_are_read_by_task_in_their_order(data):
    tasks, rest = tofu_tasks(data / "tofu")
    assert [*tasks] == ["1", "2"]
    assert [r.prompt for r in tasks["2"][:2]] == ["who 2-0 0", "who 2-0 1"]
    assert (tasks["2"][0].answer, len(tasks["2"]), len(rest)) == ("he 0", 60, 120)


def test_tofus_requests_are_authors_and_what_stays_is_of_others(data):
    one, other = (tofu(data, seed=s, requests=2, each=12, retained=80) for s in (0, 1))
    assert [name[-6:] for name in one.requests] == ["task 1", "task 2"]
    for name, (taught, unseen) in one.requests.items():
        author = int(name.split()[1]) - 1
        assert {r.prompt.split()[1] for r in taught + unseen} == {f"{name[-1]}-{author}"}
        assert (len(taught), len(unseen), len({r.prompt for r in taught + unseen})) == (12, 8, 20)
    asked = {r.prompt for pair in one.requests.values() for part in pair for r in part}
    assert len(one.retained[0]) == 80 == len({r.prompt for r in one.retained[0]} - asked)
    assert [*one.requests] != [*other.requests]


def test_made_up_requests_need_no_data():
    one = made_up(seed=0)
    assert len(one.requests) == 2
    assert all(len(taught) >= 10 for taught, _ in one.requests.values())


def test_data_that_are_not_there_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.delenv("RANKWISE_DATA", raising=False)
    with pytest.raises(ValueError, match=r"no folder of data is given.*--data FOLDER or \$RANKWISE_DATA"):
        folder_of(None, "clinc150")
    with pytest.raises(ValueError, match="has no clinc150"):
        folder_of(tmp_path, "clinc150")
    monkeypatch.setenv("RANKWISE_DATA", str(tmp_path))
    (tmp_path / "clinc150").mkdir()
    assert folder_of(None, "clinc150") == tmp_path / "clinc150"


def test_every_arm_has_a_file_of_its_own():
    assert len(set(ARM_FILES.values())) == len(ARM_FILES) == len(ARMS) + 2
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") for name in ARM_FILES.values())


def test_the_area_of_what_each_query_is_above_is_that_under_the_curve():
    rng = np.random.default_rng(0)
    own, others = rng.integers(0, 9, 30).astype(float), rng.integers(0, 7, 50).astype(float)
    expected = roc_auc_score(np.repeat([1, 0], [30, 50]), np.concatenate([own, others]))
    assert o3_detectors.area(o3_detectors.above(own, others), 50) == pytest.approx(expected)


def test_detectors_are_above_others_only_beyond_two_errors_and_the_control_can_fail():
    other = {"b": [0.9, 0.91, 0.9], "c": [0.97, 0.96, 0.99]}
    found = {o3_detectors.OURS: [0.97, 0.97, 0.98], **other, o3_detectors.CONTROL: [0.5, 0.5, 0.5]}
    held = {c.text.split("'")[1]: c.held for c in o3_detectors._claims(found, 1) if " that of " in c.text}
    assert held == {"b": True, "c": False}
    assert [c.held for c in o3_detectors._claims(found, 1) if c.control] == [True]
    assert [c.held for c in o3_detectors._claims(found | {o3_detectors.CONTROL: [0.9] * 3}, 1) if c.control] == [False]


def test_draws_of_one_domain_count_as_one():
    # two domains, ahead by .03 and .01 in each of three draws: .02 ± .01, which is not more than two errors
    found = {o3_detectors.OURS: [0.93, 0.91] * 3, "b": [0.9] * 6, o3_detectors.CONTROL: [0.5] * 6}
    claim = o3_detectors._claims(found, 3)[0]
    assert not claim.held
    assert claim.found == "+2.00±1.00 points"


def test_a_request_about_one_author_is_judged_beside_one_about_ten(data):
    rng = np.random.default_rng(0)
    seen = {}

    def encoder(texts):
        author = [t.split()[1] for t in texts]
        states = [10 * seen.setdefault(a, rng.normal(size=(2, 8))) + rng.normal(size=(2, 8)) for a in author]
        return np.array(states), np.arange(len(texts))

    found = o3_detectors._authors(encoder, data, 0)
    assert found["others"] == 60  # of the other task: this one's authors stand among what stays too
    areas = {n: o3_detectors.area(v, found["others"]) for n, v in found["above"].items()}
    assert areas[o3_detectors.ONE] == 1.0
    assert [len(v) for v in found["above"].values()] == [8, 48, 18]
    near = {n: [a] * 3 for n, a in areas.items()}
    assert [c.held for c in o3_detectors._author_claims(near | {o3_detectors.TEN: [0.7] * 3})] == [True, True]
    worse = near | {o3_detectors.ONE: [0.8] * 3, o3_detectors.TEN: [0.9] * 3}
    assert [c.held for c in o3_detectors._author_claims(worse)] == [False, False]
    assert o3_detectors._author_claims({}) == []


def test_tofus_seeds_are_judged_each_by_its_own_authors():
    def stage(name, nll):
        of = {"nll": [nll] * 2, "right": [0, 0], "weight": [0.5, 0.9]}
        return {f"{name}/train": of, f"{name}/test": of, "retained": of | {"weight": [0.0, 0.6]}, "utility": of}

    found = {"told": {"rates": {}, "device": "the CPU"}}
    for seed in (0, 1):
        name = f"author {seed} of task 1"
        found[f"seed {seed}"] = {arm: {name: stage(name, 1.0 + seed)} for arm in (TAUGHT, *ARMS, ORACLE)}
    evidence = o3_tofu.judge(found, seeds=2)
    assert evidence.rows[1][1] == "1.50±0.71"
    routed = next(c for c in evidence.claims if "router tells" in c.text)
    assert routed.found == "0.750±0.000; open for 50.0±0.0 % of others"  # .5 is above 0 alone, .9 above both


def test_tofus_claims_can_be_lost():
    base = {"lost": 3.0, "stays": 0.5, "membership": 0.52, "taught": 0, "retained": 0, "utility": 0,
            "told apart": 0.95, "opened": 0.1}  # fmt: skip
    end = {arm: [base] * 3 for arm in ARMS} | {
        TAUGHT: [base | {"lost": 0.5, "membership": 0.9}] * 3, ORACLE: [base | {"lost": 2.0}] * 3,
        SHUFFLED: [base | {"lost": 1.0}] * 3,
    }  # fmt: skip
    assert all(c.held for c in o3_tofu._claims(end))
    for arm, change in ((TAUGHT, {"lost": 1.8}), (SHUFFLED, {"lost": 3.5}), (O3, {"lost": 1.0}), (O3, {"stays": 0.7}),
                        (O3, {"membership": 0.0}), (O3, {"taught": 0.2}), (O3, {"told apart": 0.8})):  # fmt: skip
        broken = end | {arm: [end[arm][0] | change] * 3}
        assert not all(c.held for c in o3_tofu._claims(broken)), change


class Kept:
    """A bench whose baselines are what they are said to be."""

    sizes = shared.Sizes(
        blocks=1, taught=Schedule(steps=1), forgotten=Schedule(steps=1), baselines=1, rates=(1e-4, 1e-3), rank=1,
        answers="random", max_length=8,
    )  # fmt: skip
    subject = shared.Subject(requests={"a": ([], [])}, retained=([], []))

    def kept(self, name, make):
        forgot, keeps = {"0.0001": (0.2, 0.9), "0.001": (0.9, 0.1)}[name.rpartition("gradient-ascent-")[2]]
        return {"a": {"retained": {"right": [keeps]}, "a/train": {"right": [1 - forgot]}}}


def test_the_rate_is_that_which_keeps_most_and_forgets_most():
    assert shared.best_rate(Kept(), None, ASCENT) == 1e-4


def test_shares_are_means():
    assert shared.right({"a": {"right": [1, 0, 1, 1]}}, "a") == 0.75


@pytest.fixture
def tiny(monkeypatch):
    """In place of SmolLM2 a decoder of two small blocks with its vocabulary."""

    def load(name):
        torch.manual_seed(0)
        size = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
        return LlamaForCausalLM(LlamaConfig(vocab_size=49152, num_hidden_layers=2, **size))

    monkeypatch.setattr(shared, "load", load)


def test_all_ways_are_measured_alike_kept_and_read_back(tiny, tmp_path):
    quick = Schedule(steps=2, batch_size=4, learning_rate=1e-3)
    sizes = shared.Sizes(
        blocks=1, taught=quick, forgotten=quick, baselines=2, rates=(1e-3,), rank=2, answers="random", max_length=24
    )
    told = []
    made = {
        "subject": made_up(seed=0), "sizes": sizes, "folder": tmp_path, "seed": 0, "note": lambda *a: told.append(a[0])
    }  # fmt: skip
    bench = shared.Bench(**made)
    rates = shared.best_rates(bench)
    arms = shared.compared(bench, rates)
    assert [*arms] == [TAUGHT, *ARMS, ORACLE]
    assert rates == {ASCENT: 1e-3, shared.DIFFERENCE: 1e-3, shared.NPO: 1e-3}
    requests = [*bench.subject.requests]
    assert all([*arms[arm]] == requests for arm in ARMS)
    assert [*arms[ORACLE]] == requests[-1:]
    sets = {f"{n}/{p}" for n in requests for p in ("train", "test")} | {"retained", "utility"}
    assert all(set(stage) == sets for stages in arms.values() for stage in stages.values())
    kept = arms[O3][requests[0]]["retained"]["nll"]
    assert kept == arms[TAUGHT][""]["retained"]["nll"]  # no request knows what is retained
    assert arms[shared.OPEN][requests[0]]["retained"]["nll"] != kept
    told.clear()
    assert shared.compared(shared.Bench(**made), rates) == arms
    assert told == []
    evidence = recipe.judge(plain({"told": {"rates": rates, "device": "the CPU"}, "seed 0": arms}), seeds=1)
    assert [row[0] for row in evidence.rows] == [*arms]


def test_npo_and_ascent_raise_losses_of_the_request_and_the_difference_less_of_what_is_retained(tiny, tmp_path):
    sizes = shared.Sizes(
        blocks=2, taught=Schedule(steps=2, batch_size=8), forgotten=Schedule(steps=1, batch_size=8), baselines=12,
        rates=(1e-3,), rank=4, answers="random", max_length=24,
    )  # fmt: skip
    bench = shared.Bench(subject=made_up(seed=0), sizes=sizes, folder=tmp_path, seed=0, note=lambda *_: None)
    model, first = bench.taught(), next(iter(bench.subject.requests))
    before = bench.measured(model)

    def change(arm, what):
        after = bench.baseline(model, arm, 3e-2, 1)[first]
        return np.mean(after[what]["nll"]) - np.mean(before[what]["nll"])

    own = f"{first}/train"
    assert change(ASCENT, own) > 0.05
    assert change(shared.NPO, own) > 0.01
    assert change(shared.DIFFERENCE, "retained") < change(ASCENT, "retained")


def test_runs_are_read_back_by_seed_with_the_requests_in_their_order():
    arms = {O3: {"b": {}, "a": {}}, TAUGHT: {"": {}}}
    told, by_seed, names = shared.read_back({"told": {"device": "x"}, "seed 0": arms, "seed 1": arms}, 2)
    assert (told, by_seed, [*names]) == ({"device": "x"}, [arms, arms], ["b", "a"])
