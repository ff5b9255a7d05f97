import pytest

from rankwise.merging.config import MergeConfig, parse, read
from rankwise.merging.registry import checked_options, find

TWO = {"merge_method": "ties", "base_model": "b", "models": [{"model": "x"}, {"model": "y"}]}


def options(config, name="model.layers.0.mlp.up_proj.weight", t=0.0):
    (group,) = config.groups
    method = find(config.merge_method)
    return checked_options(method, config.options(method, group, name, t), len(config.experts(group)))


def test_a_models_own_parameters_come_before_the_shared_ones():
    config = parse(
        TWO
        | {
            "models": [{"model": "x", "parameters": {"weight": 0.5}}, {"model": "y"}, {"model": "b"}],
            "parameters": {"weight": 2.0, "lambda": 0.3, "normalize": False, "int8_mask": True},
        }
    )
    found = options(config)
    assert found["weight"] == [0.5, 2.0]
    assert found["density"] == [0.2, 0.2]
    assert (found["scale"], found["normalize"]) == (0.3, False)


@pytest.mark.parametrize(("t", "expected"), [(0.0, 0.0), (0.25, 0.5), (0.5, 1.0), (1.0, 0.0)])
def test_gradients_are_interpolated_over_the_layers(t, expected):
    config = parse(TWO | {"parameters": {"weight": [0, 1, 0]}})
    assert options(config, t=t)["weight"] == [expected] * 2


def test_the_first_matching_filter_decides_and_may_hold_a_gradient():
    weight = [{"filter": "self_attn", "value": [0, 1]}, {"filter": "mlp", "value": 0.5}, {"value": 2}]
    config = parse(TWO | {"parameters": {"weight": weight}})
    assert options(config, "model.layers.3.self_attn.q_proj.weight", 0.25)["weight"] == [0.25] * 2
    assert options(config, "model.layers.3.mlp.up_proj.weight")["weight"] == [0.5] * 2
    assert options(config, "model.norm.weight")["weight"] == [2] * 2


def test_without_a_matching_filter_the_default_holds():
    config = parse(TWO | {"parameters": {"weight": [{"filter": "mlp", "value": 0.5}]}})
    assert options(config, "model.norm.weight")["weight"] == [1.0] * 2


def test_slices_hold_their_own_parameters():
    sources = [{"model": m, "layer_range": [0, 2]} for m in ("x", "y")]
    config = parse(
        {"merge_method": "ties", "base_model": "b", "slices": [{"sources": sources, "parameters": {"density": 0.7}}]}
    )
    assert options(config)["density"] == [0.7, 0.7]
    assert config.references == ["b", "x", "y"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"merge_method": "tise"}, "did you mean ties"),
        ({"merge_method": "slerp"}, "'slerp' is not built here; mergekit has it"),
        ({"base_mode": "b"}, "did you mean base_model"),
        ({"models": [{"model": "x", "parameter": {}}]}, "did you mean parameters"),
        ({"models": []}, "list of models is empty"),
        ({"models": None}, "exactly one of models and slices"),
        ({"base_model": None}, "base_model is needed"),
        ({"models": [{"model": "b"}]}, "at least 1 models besides the base"),
        ({"parameters": {"denisty": 0.2}}, "did you mean density"),
        ({"dtype": "bfloat"}, "did you mean bfloat16"),
        ({"modules": {}}, "'modules' is not read"),
        ({"tokenizer": {}}, "'tokenizer' is not read: use tokenizer_source"),
        ({"chat_template": "chatml"}, "a Jinja template is needed"),
        ({"merge_method": "consensus", "models": [{"model": "x"}]}, "at least 2 models"),
    ],
)
def test_what_is_wrong_is_said(change, message):
    with pytest.raises(ValueError, match=message):
        parse(TWO | change)


def test_slices_must_match_and_hold_layers():
    for ranges, message in (([[0, 2], [0, 3]], "the same number is needed"), ([[2, 2], [2, 2]], "holds no layer")):
        sources = [{"model": m, "layer_range": r} for m, r in zip(("x", "y"), ranges, strict=True)]
        with pytest.raises(ValueError, match=message):
            parse({"merge_method": "ties", "base_model": "b", "slices": [{"sources": sources}]})


def test_yaml_runs_nothing(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("merge_method: !!python/object/apply:os.system ['touch ran']\n")
    with pytest.raises(ValueError, match="not valid YAML"):
        read(path)
    path.write_text("- a list\n")
    with pytest.raises(ValueError, match="a mapping is needed"):
        read(path)
    with pytest.raises(ValueError, match="no such file"):
        read(tmp_path / "absent.yaml")


def test_a_configuration_survives_its_own_recipe():
    config = parse(TWO | {"parameters": {"weight": [0, 1]}, "dtype": "bfloat16"})
    assert MergeConfig.model_validate(config.model_dump(mode="json", exclude_defaults=True)) == config
