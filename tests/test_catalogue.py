import importlib

import pytest

from rankwise.bench import RECIPES
from rankwise.catalogue import CATALOGUE, entry


def test_there_are_27_methods_with_distinct_ids_and_every_field():
    assert len(CATALOGUE) == 27
    assert len({e.id for e in CATALOGUE}) == 27
    for e in CATALOGUE:
        assert all(v for v in e.as_dict().values()), e.id


def test_ready_methods_exist_and_have_a_recipe():
    for e in CATALOGUE:
        if e.status == "ready":
            module, _, name = e.object.rpartition(".")
            # a submodule of that name is no method
            assert callable(getattr(importlib.import_module(module), name)), e.object
            assert e.bench in RECIPES


def test_order_and_unknown_ids():
    assert [e.id for e in CATALOGUE][:4] == ["s2lora", "eva", "icl-mechanism", "welore"]
    with pytest.raises(ValueError, match="did you mean eva"):
        entry("evaa")
