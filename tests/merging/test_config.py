import pytest

from rankwise.merging.engine.config import MergeConfig, parse, read
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
        ({"merge_method": "sce"}, "'sce' is not built here; mergekit has it"),
        ({"base_mode": "b"}, "did you mean base_model"),
        ({"models": [{"model": "x", "parameter": {}}]}, "did you mean parameters"),
        ({"models": []}, "list of models is empty"),
        ({"models": None}, "exactly one of models and slices"),
        ({"base_model": None}, "base_model is needed"),
        ({"models": [{"model": "b"}]}, "at least 1 models besides the base"),
        ({"parameters": {"denisty": 0.2}}, "did you mean density"),
        ({"dtype": "bfloat"}, "did you mean bfloat16"),
        ({"dtype": ["bfloat16"]}, "unknown dtype"),
        ({"modules": {}}, "'modules' is not read"),
        ({"chat_template": "chatmk"}, "a Jinja template is needed, auto, or one of alpaca, chatml"),
        ({"tokenizer": {}, "tokenizer_source": "union"}, "one of tokenizer and tokenizer_source"),
        ({"tokenizer": {"tokens": {"a": {"source": {"kind": "model_token", "model": "x"}}}}}, "token or token_id"),
        ({"tokenizer": {"tokens": {"a": {"source": {"kind": "nought"}}}}}, "accepted: model_token, zero"),
        ({"tokenizer": {"pad_to_multiple_of": 0}}, "pad_to_multiple_of"),
        ({"name": "first"}, "'name' is not read: the result is named by --out"),
        ({"random_seed": 1}, "'random_seed' is not read: write seed"),
        ({"seed": -1}, "seed"),
        ({"models": [{"model": "x", "parameters": {"normalize": True}}]}, "normalize is one for the whole merge"),
        ({"merge_method": "linear", "parameters": {"density": 0.5}}, "'density'.*for other methods: leave it out"),
        ({"merge_method": "slerp"}, "slerp needs exactly 1 models besides the base, not 2"),
        ({"models": [{"model": {"model": {"path": "x"}, "override_architecture": "A"}}]}, "that of config.json"),
        ({"models": [{"model": {"paht": "x"}}]}, "did you mean path"),
        ({"models": [{"model": {"revision": "x"}}]}, "names no model: 'path' is needed"),
        ({"models": None, "slices": [{"base_model": "b", "sources": []}]}, "give one base_model for the merge"),
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


MODEL = {"model": {"path": "owner/a", "revision": "main"}, "lora": {"path": "owner/l"}}


@pytest.mark.parametrize(
    ("written", "read_as"),
    [
        ("owner/a@main", "owner/a@main"),
        ({"model": {"path": "owner/a"}}, "owner/a"),
        ({"model": {"path": "owner/a", "revision": "main"}}, "owner/a@main"),
        (MODEL, "owner/a@main+owner/l"),
        ({"path": "owner/a"}, "owner/a"),
    ],
)
def test_a_model_may_be_written_as_mergekits_mapping(written, read_as):
    config = parse(
        TWO | {"base_model": written, "models": [{"model": written}, {"model": "y"}], "tokenizer": {"source": written}}
    )
    assert config.references == [read_as, "y"]
    assert config.tokens.source == read_as


def test_a_weight_or_revision_beside_the_model_of_a_slice_counts():
    sources = [
        {"model": "x", "layer_range": [0, 2], "weight": 0.3, "revision": "v0"},
        {"model": "y", "layer_range": [0, 2], "parameters": {"weight": 0.7}},
    ]
    config = parse({"merge_method": "linear", "slices": [{"sources": sources}]})
    assert options(config)["weight"] == [0.3, 0.7]
    assert config.references == ["x@v0", "y"]


def test_a_dtype_may_carry_torchs_name():
    config = parse(TWO | {"dtype": "torch.bfloat16", "out_dtype": "torch.float16"})
    assert (config.dtype, config.out_dtype) == ("bfloat16", "float16")


def test_keys_with_nothing_behind_them_count_as_absent():
    config = parse(TWO | {"parameters": None, "slices": None, "models": [{"model": "x", "parameters": None}]})
    assert config.parameters == {}


def test_a_gradients_numbers_may_be_written_in_scientific_notation():
    config = parse(TWO | {"parameters": {"weight": ["1e-1", 0.3]}})  # YAML reads 1e-1 as text
    assert options(config, t=0.5)["weight"] == [pytest.approx(0.2)] * 2
    with pytest.raises(ValueError, match="'much': a number is needed"):
        options(parse(TWO | {"parameters": {"weight": [0, "much"]}}), t=1.0)


def test_words_and_switches_of_a_gradient_are_chosen_not_mixed():
    config = parse(TWO | {"parameters": {"normalize": [True, False], "election": ["sum", "count"]}})
    assert [options(config, t=t)["normalize"] for t in (0.0, 0.9, 1.0)] == [True, True, False]
    assert options(config, t=1.0)["election"] == "count"


def test_filters_of_a_models_own_parameter_see_its_own_names():
    weight = [{"filter": "layers.5.", "value": 0.25}, {"value": 1.0}]
    config = parse(TWO | {"parameters": {"weight": weight}})
    (group,), method = config.groups, find("ties")
    found = config.options(method, group, "layers.0.a", 0.0, ["layers.5.a", "layers.0.a"])
    assert found["weight"] == [0.25, 1.0]


def test_a_density_gradient_from_zero_is_read():
    config = parse(TWO | {"parameters": {"density": [0, 0.5]}})
    assert options(config, t=0.0)["density"] == [0.0, 0.0]


def test_defaults_that_are_not_mergekits_are_noted():
    (note,) = parse(TWO).notes
    assert note == "density is left out: 0.2 is taken, where mergekit takes 1.0"
    assert parse(TWO | {"parameters": {"density": 0.2}}).notes == []
    half = [{"model": "x", "parameters": {"density": 0.5}}, {"model": "y"}]
    assert parse(TWO | {"models": half}).notes == [note]
    notes = parse(TWO | {"merge_method": "dare_ties", "parameters": {"density": 0.5}}).notes
    assert notes == ["rescale is left out: expectation is taken, where mergekit takes true (l1)"]


def test_parameters_that_the_base_does_not_use_are_noted():
    config = parse(TWO | {"models": [{"model": "x"}, {"model": "b", "weight": 1}], "parameters": {"density": 1}})
    assert config.notes == ["parameters of the base are not used: it is what the others are compared with"]


def test_a_base_that_linear_does_not_average_in_is_noted():
    config = parse(TWO | {"merge_method": "linear"})
    assert ["mergekit would average it in" in n for n in config.notes] == [True]
    assert parse(TWO | {"merge_method": "linear", "models": [{"model": "b"}, {"model": "x"}]}).notes == []


def test_a_complaint_shows_little_of_what_it_complains_of():
    bomb = [["x"] * 1000] * 1000
    for bad in ({"models": bomb}, {"models": [{"model": "x", "parameters": bomb}]}, bomb, {"model" * 10**6: 1}):
        with pytest.raises(ValueError) as error:
            parse(bad if isinstance(bad, list) else TWO | bad)
        assert len(str(error.value)) < 1000


def test_a_configuration_survives_its_own_recipe():
    tokens = {"source": "union", "tokens": {"<x>": {"source": {"kind": "zero"}, "force": True}, "y": {"source": "b"}}}
    config = parse(TWO | {"parameters": {"weight": [0, 1]}, "dtype": "bfloat16", "tokenizer": tokens, "ignore": ["a"]})
    assert MergeConfig.model_validate(config.model_dump(mode="json", exclude_defaults=True)) == config
