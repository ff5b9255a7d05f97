"""What PEFT asks of any adapter type, of every type that rankwise registers.

A type added to `rankwise.tuning.registration.METHODS` is tested here without a line more.
"""

import copy
import dataclasses
import itertools

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from torch import nn

from rankwise.tuning.registration import METHODS
from small_models import gpt2

pytestmark = pytest.mark.filterwarnings("ignore")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(params=list(METHODS))
def method(request):
    return request.param


class Net(nn.Module):
    """Linear layers with biases, two of one shape."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.lin0, self.lin1, self.lin2 = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8)
            self.head = nn.Linear(8, 2)

    def forward(self, x):
        x = x.to(self.head.weight.dtype)
        for layer in (self.lin0, self.lin1, self.lin2):
            x = layer(x).relu()
        return self.head(x)


def config(method, *targets, start=False, seed=None, **options):
    cls = METHODS[method][0]
    if "r" in {f.name for f in dataclasses.fields(cls)}:
        options.setdefault("r", 2)
    return cls(target_modules=list(targets) or ["lin0", "lin1"], init_weights=start, **options)


def net(dtype=torch.float32):
    return Net().to(dtype).eval()


def adapted(method, *targets, dtype=torch.float32, name="default", seed=1, autocast=True, **options):
    torch.manual_seed(seed)
    model = get_peft_model(
        net(dtype), config(method, *targets, **options), adapter_name=name, autocast_adapter_dtype=autocast
    )
    return model.eval()


def add(model, name, method, *targets, seed=2, **options):
    torch.manual_seed(seed)
    model.add_adapter(name, config(method, *targets, **options))
    return model.eval()


def layers(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, BaseTunerLayer)}


def own(model):
    return {n: p for n, p in model.named_parameters() if model.base_model.prefix in n}


X = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))


def close(a, b, tolerance=1e-5):
    torch.testing.assert_close(a.float(), b.float(), atol=tolerance, rtol=tolerance)


# --- the start


def test_starts_at_the_base_model_or_away_from_it(method):
    base = net()(X)
    assert torch.equal(adapted(method, start=True)(X), base)
    assert not torch.allclose(adapted(method)(X), base, atol=1e-3)


def test_a_seed_decides_the_start(method):
    one, same, other = (own(adapted(method, seed=s)) for s in (1, 1, 2))
    assert all(torch.equal(p, same[n]) for n, p in one.items())
    assert not all(torch.equal(p, other[n]) for n, p in one.items())


def test_layers_tell_their_sides(method):
    for name, layer in layers(adapted(method, "lin0", "head")).items():
        sides = {"lin0": (6, 8), "head": (8, 2)}[name.rpartition(".")[2]]
        assert (layer.in_features, layer.out_features) == sides


def test_layers_answer_for_what_they_wrap(method):
    layer = adapted(method, "lin0").base_model.model.lin0
    assert layer.weight is layer.get_base_layer().weight
    assert layer.get_base_layer().bias is not None
    assert layer.bias.shape == (8,)
    with pytest.raises(AttributeError):
        layer.nothing_of_the_kind  # noqa: B018


# --- types


@pytest.mark.parametrize(("dtype", "autocast", "low"), itertools.product(DTYPES, [True, False], [True, False]))
def test_adapters_have_the_asked_type_however_they_are_made(method, dtype, autocast, low, tmp_path):
    expected = torch.float32 if autocast else dtype
    model = adapted(method, dtype=dtype, autocast=autocast)
    model.add_adapter("other", config(method), autocast_adapter_dtype=autocast)
    assert {p.dtype for p in own(model).values()} == {expected}
    model.save_pretrained(tmp_path)
    options = {"autocast_adapter_dtype": autocast, "low_cpu_mem_usage": low}
    again = PeftModel.from_pretrained(net(dtype), tmp_path, **options)
    again.load_adapter(tmp_path / "other", adapter_name="other", **options)
    assert {p.dtype for p in own(again).values()} == {expected}
    assert {p.device.type for p in again.parameters()} == {"cpu"}
    assert torch.equal(again.eval()(X), model(X))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("autocast", [True, False])
def test_low_precision_bases_are_run_merged_and_unmerged(method, dtype, autocast):
    model = adapted(method, dtype=dtype, autocast=autocast)
    expected, tolerance = model(X), {torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 2e-1}[dtype]
    assert expected.dtype == dtype
    for safe in (False, True):
        model.merge_adapter(safe_merge=safe)
        close(model(X), expected, tolerance)
        model.unmerge_adapter()
        close(model(X), expected, tolerance)
    merged = model.merge_and_unload(safe_merge=True)
    assert {p.dtype for p in merged.parameters()} == {dtype}
    close(merged(X), expected, tolerance)


# --- merging


def test_merging_twice_is_merging_once(method):
    model = adapted(method)
    expected = model(X)
    for _ in range(2):
        model.merge_adapter()
        close(model(X), expected)


def test_a_safe_merge_of_what_is_not_finite_changes_nothing(method):
    model = adapted(method, "lin0")
    base = copy.deepcopy(model.base_model.model.lin0.get_base_layer().state_dict())
    with torch.no_grad():
        for p in own(model).values():
            p[0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        model.merge_adapter(safe_merge=True)
    after = model.base_model.model.lin0.get_base_layer().state_dict()
    assert all(torch.equal(after[k], v) for k, v in base.items())
    assert not model.base_model.model.lin0.merged


def test_unloading_gives_the_base_model_back(method):
    base, model = net(), adapted(method)
    plain = model.unload()
    assert torch.equal(plain(X), base(X))
    assert not layers(plain)
    assert not plain._forward_hooks
    assert not plain._forward_pre_hooks
    assert plain.state_dict().keys() == base.state_dict().keys()


@pytest.mark.parametrize("targets", [("lin0", "lin1"), ("lin1", "lin2"), ("lin2",)], ids=["same", "partly", "apart"])
def test_two_adapters_merge_one_by_one_or_at_once(method, targets):
    def both():
        model = add(adapted(method, name="a"), "b", method, *targets)
        model.base_model.set_adapter(["a", "b"])
        return model

    expected, model = both()(X), both()
    model.merge_adapter(adapter_names=["a"])
    model.merge_adapter(adapter_names=["b"])
    close(model(X), expected)
    once = both()
    once.merge_adapter()
    close(once(X), expected)
    once.unmerge_adapter()
    close(once(X), expected)
    close(both().merge_and_unload(adapter_names=["a", "b"])(X), expected)
    only = both().merge_and_unload(adapter_names=["b"])
    fresh = add(adapted(method, name="a"), "b", method, *targets)
    fresh.set_adapter("b")
    close(only(X), fresh(X))


def test_active_adapters_add_up_at_a_layer(method):
    model = add(adapted(method, "lin0", name="a"), "b", method, "lin0")
    layer, base = model.base_model.model.lin0, net().lin0(X)
    out = {}
    for active in ("a", "b", ["a", "b"]):
        model.base_model.set_adapter(active)
        out[str(active)] = layer(X) - base
    close(out["['a', 'b']"], out["a"] + out["b"])
    assert not torch.allclose(out["a"], out["b"])


# --- switching


def test_a_new_adapter_waits_until_it_is_set(method):
    model = adapted(method, name="a")
    first = model(X)
    add(model, "b", method, "lin1", "lin2")
    assert torch.equal(model(X), first)
    trained = {n for n, p in own(model).items() if p.requires_grad}
    assert trained
    assert all("a" in n.split(".") for n in trained)
    model.set_adapter("b")
    assert all("b" in n.split(".") for n, p in own(model).items() if p.requires_grad)
    assert not torch.allclose(model(X), first)
    model.set_adapter("a")
    assert torch.equal(model(X), first)


def test_a_switched_off_adapter_leaves_the_base_model(method):
    model, base = adapted(method), net()(X)
    on = model(X)
    with model.disable_adapter():
        assert torch.equal(model(X), base)
        assert not any(p.requires_grad for p in own(model).values())
        with model.disable_adapter():
            assert torch.equal(model(X), base)
    assert torch.equal(model(X), on)
    assert any(p.requires_grad for p in own(model).values())
    model.merge_adapter()
    with model.disable_adapter():
        close(model(X), base)


def test_a_deleted_adapter_leaves_no_trace(method):
    model = add(adapted(method, name="a"), "b", method, "lin1", "lin2")
    expected = adapted(method, name="a")(X)
    model.delete_adapter("b")
    assert torch.equal(model(X), expected)
    assert list(model.peft_config) == ["a"]
    assert not [n for n, _ in model.named_parameters() if "b" in n.split(".")]
    add(model, "b", method)
    model.set_adapter("b")
    model.delete_adapter("b")
    assert model.active_adapters == ["a"]
    assert {p.requires_grad for p in own(model).values()} == {True}
    with pytest.raises(ValueError, match="c"):
        model.delete_adapter("c")
    model.delete_adapter("a")
    assert torch.equal(model.base_model.model(X), net()(X))


def test_gradients_are_switched_by_name(method):
    model = add(adapted(method, name="a"), "b", method)
    model.set_requires_grad("a", False)
    assert not any(p.requires_grad for p in own(model).values())
    model.set_requires_grad(["a", "b"], True)
    assert all(p.requires_grad for p in own(model).values())


def test_training_moves_the_adapter_and_the_saved_modules_and_nothing_else(method):
    model = adapted(method, start=True, modules_to_save=["head"]).train()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(4):
        nn.functional.cross_entropy(model(X), torch.tensor([0, 1, 1, 0, 1])).backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, p in model.named_parameters():
        moved = model.base_model.prefix in name or "modules_to_save" in name
        assert torch.equal(p, before[name]) != moved, name


def test_a_copy_is_equal_and_independent(method):
    model = adapted(method)
    model(X).sum().backward()
    twin = copy.deepcopy(model)
    assert torch.equal(twin(X), model(X))
    expected = model(X)
    with torch.no_grad():
        for p in own(twin).values():
            p.add_(1.0)
    assert torch.equal(model(X), expected)
    assert not torch.allclose(twin(X), expected)


# --- on disk


@pytest.mark.parametrize("low", [False, True])
def test_a_saved_adapter_comes_back(method, tmp_path, low):
    model = adapted(method, modules_to_save=["head"])
    with torch.no_grad():
        model.base_model.model.head.modules_to_save["default"].weight.add_(1.0)
    model.save_pretrained(tmp_path)
    torch.manual_seed(9)
    again = PeftModel.from_pretrained(net(), tmp_path, low_cpu_mem_usage=low).eval()
    assert torch.equal(again(X), model(X))
    assert not any(p.requires_grad for p in again.parameters())
    assert again.peft_config["default"].inference_mode
    trainable = PeftModel.from_pretrained(net(), tmp_path, is_trainable=True)
    assert all(p.requires_grad for p in own(trainable).values())


def test_adapters_whose_names_contain_each_other_are_saved_apart(method, tmp_path):
    names = ["ab", "a", "b", "abc"]
    model = adapted(method, name=names[0])
    for seed, name in enumerate(names[1:], 3):
        add(model, name, method, seed=seed)
    expected = {}
    for name in names:
        model.set_adapter(name)
        expected[name] = model(X)
    model.save_pretrained(tmp_path / "some", selected_adapters=["a", "abc"])
    assert sorted(p.name for p in (tmp_path / "some").iterdir() if p.is_dir()) == ["a", "abc"]
    model.save_pretrained(tmp_path / "all")
    files = {name: load_file(tmp_path / "all" / name / "adapter_model.safetensors") for name in names}
    sizes = {name: sum(t.numel() for t in file.values()) for name, file in files.items()}
    assert len(set(sizes.values())) == 1
    assert sizes["a"] == sum(p.numel() for n, p in own(model).items() if "a" in n.split("."))
    again = PeftModel.from_pretrained(net(), tmp_path / "all" / "b", adapter_name="b").eval()
    for name in names:
        if name != "b":
            again.load_adapter(tmp_path / "all" / name, adapter_name=name)
        again.set_adapter(name)
        assert torch.equal(again(X), expected[name]), name


def test_the_name_makes_no_difference(method, tmp_path):
    states = [get_peft_model_state_dict(adapted(method, name=n), adapter_name=n) for n in ("default", "other")]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(v, states[1][k]) for k, v in states[0].items())


def test_the_configuration_comes_back(method, tmp_path):
    mine = config(method, "lin0", "lin1", start=True)
    model = get_peft_model(net(), mine)
    assert model.peft_config["default"] is mine
    model.save_pretrained(tmp_path)
    again = PeftConfig.from_pretrained(tmp_path)
    assert type(again) is METHODS[method][0]
    saved = {"inference_mode": False, "auto_mapping": None}
    assert again.to_dict() | saved == mine.to_dict() | saved


def test_direct_injection_works_or_is_refused_by_name(method):
    cls = METHODS[method][1]
    torch.manual_seed(1)
    if cls.uses_shared_state:
        with pytest.raises(ValueError, match="get_peft_model"):
            inject_adapter_in_model(config(method), net())
    else:
        assert torch.equal(inject_adapter_in_model(config(method), net()).eval()(X), adapted(method)(X))


# --- refusals


def test_a_refused_adapter_leaves_the_model_as_it_was(method):
    model = adapted(method, name="a")
    expected, keys = model(X), model.state_dict().keys()
    with pytest.raises((ValueError, TypeError)):
        model.add_adapter("b", config(method, "nowhere"))
    assert torch.equal(model(X), expected)
    assert model.state_dict().keys() == keys
    add(model, "b", method)


def test_options_that_would_have_no_effect_are_refused(method):
    for options, match in (
        ({"target_modules": ".*lin.*", "layers_to_transform": [0]}, "layers_to_transform"),
        ({"target_modules": ".*lin.*", "layers_pattern": "layers"}, "layers_pattern"),
        ({"target_modules": ["lin0"], "layers_pattern": "layers"}, "layers_pattern"),
    ):
        with pytest.raises(ValueError, match=match):
            METHODS[method][0](**options)


# --- mixed batches


def mixed(method, *, targets=(("lin0", "lin1"), ("lin0", "lin1")), **options):
    return add(adapted(method, *targets[0], name="a", **options), "b", method, *targets[1], **options)


NAMES = ["b", "__base__", "a", "a", "b"]


@pytest.mark.parametrize(
    "targets", [(("lin0",), ("lin0",)), (("lin0",), ("lin1", "lin2")), (("lin0", "lin1"), ("lin1",))]
)
def test_every_row_of_a_mixed_batch_has_its_own_adapter(method, targets):
    model = mixed(method, targets=targets)
    found = model(X, adapter_names=NAMES)
    expected = {"__base__": net()(X)}
    for name in ("a", "b"):
        model.set_adapter(name)
        expected[name] = model(X)
    close(found, torch.stack([expected[n][i] for i, n in enumerate(NAMES)]), 1e-6)
    assert torch.equal(model(X), expected["b"])  # the active adapter is as it was


def test_saved_modules_of_a_mixed_batch_are_the_rows_own(method):
    model = mixed(method, modules_to_save=["head"])
    with torch.no_grad():
        model.base_model.model.head.modules_to_save["b"].bias.add_(3.0)
    found = model(X, adapter_names=NAMES)
    model.set_adapter("b")
    close(found[[0, 4]], model(X)[[0, 4]], 1e-6)
    assert not torch.isclose(found[1:4], model(X)[1:4]).any()  # of the base and of a


def test_mixed_batches_that_cannot_be_served_are_refused(method):
    model = mixed(method)
    with pytest.raises(ValueError, match="2 adapter_names for a batch of 5 rows"):
        model(X, adapter_names=["a", "b"])
    with pytest.raises(ValueError, match="unknown adapter 'c'"):
        model(X, adapter_names=["c"] * 5)
    with pytest.raises(ValueError, match="unknown adapter"):
        model(X, adapter_names=[])
    with pytest.raises(ValueError, match="inference"):
        model.train()(X, adapter_names=NAMES)
    model.eval().merge_adapter(["a"])
    with pytest.raises(ValueError, match="unmerge"):
        model(X, adapter_names=NAMES)
    model.unmerge_adapter()
    close(model(X, adapter_names=["a"] * 5), model(X), 1e-6)
    assert not any(m._forward_pre_hooks for m in layers(model).values())


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_return_sequences": 2, "do_sample": True, "top_k": 1}])
def test_beams_and_samples_follow_their_rows_adapter(method, options):
    def model_with(*names):
        model = None
        for seed, name in enumerate(names):
            torch.manual_seed(seed)
            given = config(method, "c_attn", "c_fc", task_type="CAUSAL_LM")
            if model is None:
                model = get_peft_model(gpt2(), given, adapter_name=name)
            else:
                model.add_adapter(name, given)
        return model.eval()

    model, ids = model_with("a", "b"), torch.tensor([[3, 1, 4], [1, 5, 9]])
    settings = {"max_new_tokens": 4, "pad_token_id": 0, **options}
    found = model.generate(input_ids=ids, adapter_names=["a", "b"], **settings)
    times = options.get("num_return_sequences", 1)
    assert len(found) == 2 * times
    for row, name in enumerate(("a", "b")):
        model.set_adapter(name)
        alone = model.generate(input_ids=ids[row : row + 1], **settings)
        other = model.generate(input_ids=ids[1 - row : 2 - row], **settings)
        assert not torch.equal(found[(1 - row) * times, 2:], other[0, 2:])  # the other row has the other adapter
        for own in found[row * times : (row + 1) * times]:
            assert torch.equal(own, alone[0])
