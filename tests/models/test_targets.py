import pytest

from rankwise.models import target_modules
from small_models import bert, gpt2, llama


def ends(names):
    return sorted({n.rsplit(".", 1)[-1] for n in names})


def test_all_linear_leaves_heads_and_poolers_out():
    assert len(target_modules(bert())) == 12
    assert len(target_modules(llama())) == 14
    assert ends(target_modules(gpt2())) == ["c_attn", "c_fc", "c_proj"]
    assert not [n for n in target_modules(bert()) if "pooler" in n or "classifier" in n]


def test_kinds_part_the_layers_between_them():
    for model in (bert(), llama(), gpt2()):
        attention, mlp = target_modules(model, "attention"), target_modules(model, "mlp")
        assert sorted(attention + mlp) == sorted(target_modules(model))
        assert attention
        assert mlp
    assert ends(target_modules(llama(), "attention")) == ["k_proj", "o_proj", "q_proj", "v_proj"]


def test_names_and_patterns():
    assert ends(target_modules(llama(), "q_proj,v_proj")) == ["q_proj", "v_proj"]
    assert target_modules(llama(), r"layers\.1\..*down_proj") == ["model.layers.1.mlp.down_proj"]
    with pytest.raises(ValueError, match="q_proj"):
        target_modules(llama(), "qproj")
