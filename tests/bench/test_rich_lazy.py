"""What the recipe of rich and lazy learning concludes: every claim by its own comparison; controls that can fail."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from rankwise.bench.dynamics import rich_lazy as recipe
from rankwise.bench.shared.measured import plain

THREE = ("decision", "match", "context")


def nets(**changed):
    """Six seeds of every group; ``changed`` gives (rank 1, full rank) of a group's measure."""
    rows = []
    groups = [*THREE, "digits", *(f"gain {g:g}" for g in recipe.GAINS), "equal top singular value",
              "equal spectral radius", *recipe.STRUCTURED.values(), "aligned", "nothing learned"]  # fmt: skip
    low, high = f"gain {recipe.GAINS[0]:g}", f"gain {recipe.GAINS[-1]:g}"
    usual = {low: (0.55, 0.6), high: (0.3, 0.8), "aligned": (0.9, 0.9), "nothing learned": (1.0, 1.0)}
    usual |= dict.fromkeys(recipe.STRUCTURED.values(), (0.5, 0.5))
    for group in groups:
        ranks = recipe.RANKS if group in THREE else recipe.SMALL_RANKS[:2] if group == "aligned" else recipe.SMALL_RANKS
        ranks = recipe.SMALL_RANKS[-1:] if group in recipe.STRUCTURED.values() else ranks
        ka = changed.get(f"{group} kernel", usual.get(group, (0.3, 0.7)))
        ra = changed.get(f"{group} representation", (0.5, 0.9))
        dw = changed.get(f"{group} weight", (0.9, 0.4))
        for seed in range(6):
            for i, rank in enumerate(ranks):
                share = i / max(1, len(ranks) - 1)
                value = {m: a + share * (b - a) + seed / 1e6 for m, (a, b) in (("k", ka), ("r", ra), ("w", dw))}
                for step in (0, 10):
                    rows.append({
                        "group": group, "seed": seed, "rank": rank, "step": step,
                        "kernel_alignment": value["k"] if step else 1.0, "representation_alignment": value["r"],
                        "relative_weight_change": value["w"], "weight_change": value["w"], "sign_similarity": 0.9,
                        "kernel_target_alignment": 0.1, "accuracy": 0.8,
                    })  # fmt: skip
    return rows


def others(off=0.001, whole=1.0, pissa=0.9, eva=0.8, told=0.9, turned=0.45):
    theory = [
        {"rho": rho, "rank": rank, "found": whole if rank == 0 and rho == 1 else 0.5, "spread": 0}
        for rho in recipe.RHOS for rank in (1, 3, 12, 0)
    ]  # fmt: skip
    for row in theory:
        row["told"] = row["found"] - off
    values = {"LoRA": (0.5, 0.1), "EVA": (eva, 0.2), "PiSSA": (pissa, told)}
    values |= {recipe.AT_EVA: (0.3, 0.1), recipe.AT_PISSA: (turned * pissa / 0.9, 0.95)}
    return theory + [
        {"start": s, "seed": k, "kernel_alignment": v + k / 1e6, "representation_alignment": 0.9, "weight_change": 0.1,
         "sign_similarity": 0.9, "told": t}
        for s, (v, t) in values.items() for k in range(6)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "other", "fails"),
    [
        ({}, {}, []),
        ({"match kernel": (0.7, 0.3)}, {}, [0]),
        ({"context representation": (0.9, 0.5)}, {}, [1]),
        ({"decision weight": (0.4, 0.9)}, {}, [2]),
        ({"digits kernel": (0.7, 0.7)}, {}, [3]),
        ({"equal spectral radius kernel": (0.7, 0.3)}, {}, [4]),
        ({"equal top singular value kernel": (0.7, 0.3)}, {}, [5]),
        ({"gain 0.5 kernel": (0.1, 0.7)}, {}, [6]),
        ({"aligned kernel": (0.2, 0.2)}, {}, [7]),
        ({"chains kernel": (0.9, 0.9)}, {}, [8]),
        ({}, {"off": 0.03}, [9]),
        ({}, {"whole": 0.99}, [10]),
        ({}, {"pissa": 0.4}, [11]),
        ({}, {"told": 0.0}, [11]),
        ({}, {"eva": 0.4}, [12]),
        ({}, {"turned": 0.95}, [13]),
        ({"gain 0.5 kernel": (0.75, 0.8)}, {}, [14]),
        ({"nothing learned kernel": (0.95, 1.0)}, {}, [15]),
    ],
)
def test_each_claim_fails_by_its_own_comparison(changed, other, fails):
    rows = nets(**changed)
    claims = recipe._claims(rows, rows + others(**other))
    assert [c.control for c in claims] == [False] * 14 + [True] * 2
    assert [i for i, c in enumerate(claims) if not c.held] == fails


def test_tables_have_a_row_a_group_and_rank_and_curves_the_means_over_seeds():
    rows = nets()
    table = recipe._rows(rows) + recipe._theory_rows(others()) + recipe._tuning_rows(others())
    assert {len(r) for r in table} == {8}
    assert len(recipe._rows(rows)) == len({(r["group"], r["rank"]) for r in rows})
    curve = recipe._curves(rows)["digits"]["1"]
    assert curve["step"] == [0, 10]
    assert curve["kernel_alignment"] == pytest.approx([1.0, 0.3], abs=1e-4)


def test_groups_have_every_seed_once_and_are_named_apart():
    asked = recipe._asked(7)
    for group in (*THREE, "digits", "aligned"):
        seeds = [s for _, (_, o) in asked.items() if o.get("group") == group for s in o["seeds"]]
        assert seeds == list(range(7))
    assert sum(kind == "tuning" for kind, _ in asked.values()) == 7


def test_one_that_is_not_defined_is_left_out_and_never_passes():
    rows = nets()
    for row in rows:
        if row["group"] == "digits" and row["rank"] == 1 and row["seed"] == 0:
            row["kernel_alignment"] = None
    assert np.isnan(recipe._ends(rows, "digits", 1)[0])
    assert not recipe._claims(rows, rows + others())[3].held
    assert recipe._rows(rows)


def test_what_is_kept_of_the_rows_is_enough_for_every_number():
    asked, made, rest = recipe._asked(6), nets(), others()
    found = {}
    for name, (kind, options) in asked.items():
        if kind == "networks":
            rows = [r for r in made if r["group"] == options["group"] and r["seed"] in options["seeds"]]
        elif kind == "theory":
            rows = [r | {"found": [r["found"]] * 2, "told": [r["told"]] * 2} for r in rest
                    if r.get("rho") == options["rho"]]  # fmt: skip
        else:
            rows = [r for r in rest if "start" in r and r["seed"] == options["seed"]]
        found[name] = [recipe._brief(r) for r in recipe._ends_full(rows)]
    evidence = recipe.judge(plain(found), seeds=6)
    assert all(c.held for c in evidence.claims)
    assert evidence.extra["curves"]["digits"]["1"]["step"] == [0, 10]
    on_the_way = [r for r in found["digits-0"] if r["step"] == 0]
    assert {*on_the_way[0]} == set(recipe.ON_THE_WAY)


@pytest.mark.parametrize("how", [True, "pissa"])
def test_random_factors_of_equal_norms_leave_what_a_network_computes(how):
    torch.manual_seed(0)
    x, plain_net = torch.randn(5, 12), torch.nn.Sequential(torch.nn.Linear(12, 10), torch.nn.Linear(10, 2))
    before = plain_net(x).detach()
    net = get_peft_model(plain_net, LoraConfig(r=3, lora_alpha=3, target_modules=["0"], init_lora_weights=how))
    (layer,) = recipe._adapted(net).values()
    A, B = (getattr(layer, f)["default"].weight for f in ("lora_A", "lora_B"))
    old = A.detach().clone(), B.detach().clone()
    recipe._turned(net, seed=1)
    torch.testing.assert_close(net(x), before, atol=1e-5, rtol=1e-5)
    for was, now in zip(old, (A, B), strict=True):
        torch.testing.assert_close(now.norm(), was.norm())
        assert not bool(was.any()) or float(torch.cosine_similarity(was.flatten(), now.flatten(), dim=0).detach()) < 0.9
