import pytest

from rankwise.bench import RECIPES
from rankwise.bench.speed import alternate, truncated


def test_every_recipe_can_be_run_by_name():
    import importlib

    for recipe in RECIPES.values():
        for module in recipe.parts.values():
            assert callable(importlib.import_module(f"rankwise.bench.{module}").run)


def test_truncated_svd_keeps_its_error_bound_on_the_benchs_matrices():
    rows, claims = truncated()
    excess = float(claims[0].found.rpartition("error ")[2].partition("%")[0])
    assert excess <= 1.0
    assert rows[0][0] == "truncated SVD"


def test_alternate_runs_both_in_turn():
    order = []
    alternate(lambda: order.append("a"), lambda: order.append("b"), times=2)
    assert order == ["a", "b", "a", "b"]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["s2lora", "s2lora_speech", "eva"])
def test_recipe_judges_every_claim(recipe, tmp_path):
    import importlib

    evidence = importlib.import_module(f"rankwise.bench.{recipe}").run(tmp_path, seeds=1, steps=6)
    assert any(c.control for c in evidence.claims)
    assert all(c.found for c in evidence.claims)
    assert all(len(row) == len(evidence.header) for row in evidence.rows)
