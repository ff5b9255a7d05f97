import importlib
import re

import pytest

from rankwise.bench import recipes
from rankwise.catalogue import CATALOGUE, FAMILIES, entry, ready


def test_every_method_is_described_whole_and_once():
    assert len({e.id for e in CATALOGUE}) == len(CATALOGUE)
    for e in CATALOGUE:
        assert e.family in FAMILIES
        assert all((e.id, e.name, e.object, e.paper, e.claim)), e.id
        assert re.fullmatch(r"\d{4}\.\d{5}", e.arxiv), e.id


def test_ready_methods_exist_have_a_recipe_and_say_what_they_replace():
    for e in ready():
        # a submodule of that name is no method
        assert callable(getattr(importlib.import_module(f"rankwise.{e.family}"), e.object)), e.path
        assert e.id in recipes()
        assert all((e.replaces, e.models, e.tasks, e.result)), e.id


def test_an_unknown_id_offers_the_nearest():
    with pytest.raises(ValueError, match="did you mean eva"):
        entry("evaa")
