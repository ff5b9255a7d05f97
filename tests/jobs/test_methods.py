import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model

from rankwise.jobs.methods import METHODS, Projection, affordable_rank, parse_budget
from rankwise.models import target_modules
from small_models import bert, llama


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.5%", 500),
        ("100", 100),
        ("2k", 2000),
        ("0.05M", 50_000),
        ("4KB", 1024),
        ("100%", 100_000),
    ],
)
def test_budget_forms(text, expected):
    assert parse_budget(text, 100_000) == expected


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("half", "not understood"),
        ("0.00001%", "not even one"),
        ("101%", "more than the model's"),
        ("-5", "not understood"),
    ],
)
def test_budgets_that_make_no_sense(text, match):
    with pytest.raises(ValueError, match=match):
        parse_budget(text, 100_000)


@pytest.mark.parametrize("name", ["lora", "adalora", "s2lora", "s2lora-unshared"])
@settings(max_examples=8)
@given(budget=st.integers(1000, 20_000))
def test_the_rank_chosen_is_the_largest_that_fits(name, budget):
    model = bert()
    names = target_modules(model)
    rank = affordable_rank(name, budget, model, names)
    prices = [
        get_peft_model(bert(), METHODS[name].config(r, names, 20)).get_nb_trainable_parameters()[0]
        for r in (rank, min(rank + 1, 16))
    ]
    assert prices[0] <= budget
    assert prices[1] > budget or rank == 16  # the smaller side of these matrices


def test_a_budget_below_rank_one_names_the_price():
    model = bert()
    with pytest.raises(ValueError, match=r"lora at rank 1 on 12 layers trains 448 parameters, the budget is 100"):
        affordable_rank("lora", 100, model, target_modules(model))
    with pytest.raises(ValueError, match=r"adalora at rank 2 on 12 layers trains 920 parameters, the budget is 900"):
        affordable_rank("adalora", 900, model, target_modules(model))
    with pytest.raises(ValueError, match="bitfit trains all"):
        affordable_rank("bitfit", 10, model, target_modules(model))
    with pytest.raises(ValueError, match="this model has none"):
        affordable_rank("bitfit", 10_000, llama(), target_modules(llama()))


@pytest.mark.parametrize("name", ["galore", "owlore"])
def test_scale_and_rate_of_the_rest_reach_the_optimiser(name):
    plain = METHODS[name].optimizer(llama(), 1e-3, Projection())
    assert {g["lr"] for g in plain.param_groups} == {1e-3}
    assert plain.param_groups[0]["scale"] == {"galore": 1.0, "owlore": None}[name]
    told = METHODS[name].optimizer(llama(), 1e-3, Projection(scale=2.5, rest=0.5))
    assert [g["lr"] for g in told.param_groups] == [1e-3, 5e-4]
    assert told.param_groups[0]["scale"] == 2.5


def test_lisa_projects_nothing_whatever_the_settings_of_its_neighbours():
    told = METHODS["lisa"].optimizer(llama(), 1e-3, Projection(rank=4, update_gap=3, scale=2.5, rest=0.5, active=1))
    plain = METHODS["lisa"].optimizer(llama(), 1e-3, Projection(active=1))
    assert [g["lr"] for g in told.param_groups] == [g["lr"] for g in plain.param_groups]
    assert [g.get("rank") for g in told.param_groups] == [g.get("rank") for g in plain.param_groups]
