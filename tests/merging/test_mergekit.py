"""The same recipe here and in mergekit."""

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rankwise.merging import METHODS, merge_checkpoints
from small_checkpoints import same_as_mergekit, tensors

RECIPES = list(same_as_mergekit(Path("x"), Path("y")))


def by_token(folder):
    """Tensors, the vocabulary's rows ordered by token: mergekit gives new ones another place in every process."""
    found = tensors(folder)
    if (folder / "tokenizer.json").exists():
        vocabulary = AutoTokenizer.from_pretrained(folder).get_vocab()
        order = [vocabulary[token] for token in sorted(vocabulary)]
        for name, tensor in found.items():
            if "embed_tokens" in name or "lm_head" in name:
                found[name] = torch.cat([tensor[order], tensor[len(order) :]])
    return found


@pytest.mark.parametrize("name", RECIPES)
def test_the_same_recipe_gives_mergekits_model(mergekit, tmp_path, name):
    theirs = mergekit / re.sub(r"[^a-z]+", "-", name)
    merge_checkpoints(theirs.with_suffix(".yaml"), tmp_path / "out")
    mine, other = by_token(tmp_path / "out"), by_token(theirs)
    assert set(mine) == set(other)
    for tensor in mine:
        torch.testing.assert_close(mine[tensor], other[tensor], atol=1e-6, rtol=1e-6)
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert len(model.model.layers) == json.loads((theirs / "config.json").read_text())["num_hidden_layers"]


def test_every_default_that_is_not_mergekits_is_marked_as_such(mergekit):
    theirs = json.loads((mergekit / "specs.json").read_text())
    for name in set(METHODS) & set(theirs):
        for key, parameter in METHODS[name].parameters.items():
            key = "lambda" if key == "scale" and name != "passthrough" else key
            if key not in theirs[name] or theirs[name][key] is None:
                continue  # mergekit has no such parameter, or none for it
            default = theirs[name][key]
            if key == "rescale":
                default = "l1" if default else "none"
            assert parameter.default == default or parameter.theirs == default, (name, key)
