"""Starts, steps, exports and configurations beside what is computed by hand."""

import copy
import json
import math
import warnings
from types import SimpleNamespace

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, PeftType, VeraConfig, get_peft_model, inject_adapter_in_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from rankwise.spectral import StreamingSVD, principal_angles
from rankwise.tuning import BitFitConfig, EvaConfig, S2LoraConfig, activation_spectra, export_lora, initialize
from rankwise.tuning.adapters import _copies
from rankwise.tuning.eva import _Settled, redistribute
from rankwise.tuning.export import SERVING_RANKS, check_exportable, low_rank_factors
from rankwise.tuning.registration import METHODS, register
from rankwise.tuning.s2lora import S2LoraLayer, effective_rank
from rankwise.tuning.s2lora_step import soft_threshold
from small_models import bert, gpt2, randomise

pytestmark = pytest.mark.filterwarnings("ignore")
TARGETED = {
    "target_modules": None,
    "exclude_modules": None,
    "modules_to_save": None,
    "layers_to_transform": None,
    "layers_pattern": None,
    "init_weights": True,
}


def rows_of(d, n, seed=0):
    """Rows of distinct variances, away from zero."""
    g = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(d, d, generator=g)).Q
    return (torch.randn(n, d, generator=g) * torch.linspace(6, 1, d)) @ basis + 1.0


class Two(nn.Module):
    """Two layers that read the same rows, and one after them."""

    def __init__(self, d=6):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.ModuleDict({"q": nn.Linear(d, 5), "k": nn.Linear(d, 5), "o": nn.Linear(5, d)})])

    def forward(self, x):
        block = self.layers[0]
        return block["o"](block["q"](x) + block["k"](x))


def batches(seed=0, n=1, rows=8, seq=6):
    g = torch.Generator().manual_seed(seed)
    ids = [torch.randint(0, 50, (rows, seq), generator=g) for _ in range(n)]
    return [{"input_ids": i, "attention_mask": torch.ones_like(i)} for i in ids]


# --- configurations


def test_defaults_are_those_that_the_documentation_names():
    eva = {
        "r": 16, "rho": 2.0, "tau": 0.99, "max_batches": 32, "center": True, "whiten": False,
        "adjust_scaling_factors": True, "use_label_mask": True, "label_mask_value": -100, "directions": "top",
    }  # fmt: skip
    s2lora = {
        "r": 32, "lora_alpha": None, "sparsity": 0.2, "l1": "proximal", "orthogonality": 0.1, "lambda_lr_scale": 10.0,
        "dropout": 0.0, "share": "shape", "train_shared": True, "bias": "none", "pair_ranks": {},
        "lambda_modules": None,
    }  # fmt: skip
    for config, told in ((EvaConfig(), eva), (S2LoraConfig(), s2lora | TARGETED), (BitFitConfig(), TARGETED)):
        assert {k: getattr(config, k) for k in told} == told
    assert [c().peft_type for c in (S2LoraConfig, BitFitConfig)] == ["S2LORA", "BITFIT"]
    assert PeftType["S2LORA"].value == "S2LORA"
    assert PeftType["BITFIT"].value == "BITFIT"


@pytest.mark.parametrize(
    "options",
    [{"rho": 1.0}, {"tau": 0.0}, {"tau": 1.0}, {"max_batches": 1}, {"directions": "bottom"}, {"directions": "random"}],
)
def test_evas_options_reach_to_their_ends(options):
    config = EvaConfig(**options)
    assert {k: getattr(config, k) for k in options} == options


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"tau": -0.1}, "tau=-0.1"),
        ({"tau": 1.1}, "tau=1.1"),
        ({"init_lora_weights": "eva"}, "init_lora_weights='eva': EVA is a start of its own; leave it out"),
        ({"max_batches": 0}, "max_batches=0"),
        ({"directions": "bottm"}, "did you mean bottom"),
        ({"rho": 0.99}, "rho=0.99"),
    ],
)
def test_evas_options_beyond_their_ends_are_named(options, match):
    with pytest.raises(ValueError, match=match):
        EvaConfig(**options)


CONTRADICTIONS = {
    "rank_pattern": ({"a": 2}, "EVA deals the ranks"),
    "alpha_pattern": ({"a": 2}, "EVA keeps the scale the same for all layers"),
    "loftq_config": ({"loftq_bits": 4}, "EVA is a start of its own"),
    "eva_config": ({"rho": 2}, "EVA's options are fields of this configuration"),
    "corda_config": ({"a": 1}, "EVA is a start of its own"),
    "lora_ga_config": ({"a": 1}, "EVA is a start of its own"),
    "kasa_config": ({"a": 1}, "KaSA changes the base weights"),
    "monteclora_config": ({"a": 1}, "its factors are sampled"),
    "arrow_config": ({"a": 1}, "its factors are those of other adapters"),
    "use_bdlora": ({"a": 1}, "its A is block-diagonal"),
    "use_qalora": (True, "its A reads pooled inputs"),
    "layer_replication": ([(0, 1)], "the layers would be others than those that were read"),
    "target_parameters": (["w"], "parameters that no layer holds have no input to read"),
    "megatron_config": ({"a": 1}, "parallel layers hold parts of A"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_an_option_that_contradicts_the_start_is_refused_with_the_reason(name, monkeypatch):
    value, why = CONTRADICTIONS[name]
    config = EvaConfig()
    setattr(config, name, value)
    monkeypatch.setattr(LoraConfig, "__post_init__", lambda self: None)  # PEFT may refuse it for reasons of its own
    with pytest.raises(ValueError, match=rf"^{name}=.* contradicts EVA \({why}\)"):
        config.__post_init__()


def test_the_plain_configuration_has_the_ranks_that_differ_and_keeps_the_scale():
    ranks = {"a.q": 4, "b.q": 0, "c.q": 1, "d.q": 6}
    config = EvaConfig(r=4, lora_alpha=8, lora_dropout=0.25, task_type="SEQ_CLS")
    plain = config.plain(ranks)
    assert type(plain) is LoraConfig
    assert (plain.r, plain.lora_alpha, plain.lora_dropout, plain.task_type) == (4, 8, 0.25, "SEQ_CLS")
    assert plain.target_modules == {"a.q", "c.q", "d.q"}
    assert plain.rank_pattern == {"c.q": 1, "d.q": 6}
    assert plain.alpha_pattern == {"c.q": 2.0, "d.q": 12.0}
    assert plain.init_lora_weights is True
    rooted = EvaConfig(r=4, lora_alpha=8, use_rslora=True).plain(ranks)
    assert rooted.alpha_pattern == pytest.approx({"c.q": 4.0, "d.q": 8 * math.sqrt(1.5)})
    free = EvaConfig(r=4, lora_alpha=8, adjust_scaling_factors=False).plain(ranks)
    assert (free.alpha_pattern, free.rank_pattern) == ({}, {"c.q": 1, "d.q": 6})
    mine = EvaConfig(r=4, exclude_modules=["x"])
    mine.plain(ranks).exclude_modules.add("y")
    assert mine.exclude_modules == {"x"}


@pytest.mark.parametrize(
    "options", [{"sparsity": 0.0}, {"orthogonality": 0.0}, {"dropout": 0.0}, {"r": 1}, {"pair_ranks": {"a": 1}}]
)
def test_s2loras_options_reach_to_their_ends(options):
    config = S2LoraConfig(**options)
    assert {k: getattr(config, k) for k in options} == options


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"orthogonality": -0.5}, "orthogonality=-0.5 is negative"),
        ({"dropout": -0.5}, r"dropout=-0.5 is outside"),
        ({"lambda_lr_scale": 0.0}, "lambda_lr_scale=0.0 must be positive"),
        ({"lambda_lr_scale": None, "lora_alpha": -1.0}, "lora_alpha=-1.0 must be positive"),
        ({"share": "rol"}, "did you mean role"),
        ({"share": "maks"}, "did you mean max"),
        ({"share": "nome"}, "did you mean none"),
        ({"l1": "penalt"}, "did you mean penalty"),
        ({"l1": "proximall"}, "did you mean proximal"),
        ({"bias": "al"}, "did you mean all"),
        ({"bias": "non"}, "did you mean none"),
    ],
)
def test_s2loras_options_beyond_their_ends_are_named(options, match):
    with pytest.raises(ValueError, match=match):
        S2LoraConfig(**options)


def test_names_in_lists_are_kept_as_sets_and_a_pattern_as_it_is():
    config = BitFitConfig(target_modules=["b", "a"], exclude_modules=["c"])
    assert config.target_modules == {"a", "b"}
    assert config.exclude_modules == {"c"}
    assert S2LoraConfig(target_modules="a.*", exclude_modules="b.*").target_modules == "a.*"
    assert S2LoraConfig(layers_to_transform=[1], layers_pattern="layer").layers_to_transform == [1]


def test_targets_that_are_not_there_are_told_in_order_and_the_nearest_offered():
    wrong = ["querry", "zzz", "kee", "aaa", "bbb", "ccc"]
    with pytest.raises(ValueError, match=r"'aaa, bbb, ccc, kee, querry'"):
        get_peft_model(bert(), S2LoraConfig(target_modules=wrong))
    with pytest.raises(ValueError, match=r"did you mean bert\.encoder\.layer\.1.attention.self.query"):
        get_peft_model(bert(), S2LoraConfig(target_modules=["bert.encoder.layer.1.attention.self.querry"]))
    with pytest.raises(ValueError, match=r"^exclude_modules='.\*' leaves no layer of BertForSequenceClassification"):
        get_peft_model(bert(), BitFitConfig(exclude_modules=".*"))
    with pytest.raises(ValueError, match=r"layers_to_transform=\[9\], layers_pattern='layer' leaves no layer"):
        get_peft_model(bert(), BitFitConfig(layers_to_transform=[9], layers_pattern="layer"))


# --- EVA


def centred(X):
    X = X.double()
    return X - X.mean(0)


@pytest.mark.parametrize("directions", ["top", "whiten", "bottom", "random"])
def test_a_starts_in_the_directions_that_the_svd_of_the_inputs_finds(directions):
    X = rows_of(6, 300)
    options = {"whiten": True} if directions == "whiten" else {"directions": directions}
    config = EvaConfig(r=2, rho=1.0, tau=1.0, target_modules=["q"], **options)
    layer = initialize(Two(), [{"x": X}], config).base_model.model.layers[0]["q"]
    A = layer.lora_A["default"].weight.detach().double()
    _, S, Vh = torch.linalg.svd(centred(X), full_matrices=False)
    assert not layer.lora_B["default"].weight.any()
    if directions == "random":
        assert principal_angles(A.T, Vh[:2].T).max() > 0.1
        return
    if directions == "bottom":
        torch.testing.assert_close((A @ Vh[4:].T).abs().flip(1), torch.eye(2).double(), rtol=0, atol=1e-3)
        return
    expected = S[:2].rsqrt() if directions == "whiten" else torch.ones(2).double()
    torch.testing.assert_close((A @ Vh[:2].T).abs(), torch.diag(expected), rtol=1e-3, atol=1e-3)


def test_layers_that_read_the_same_rows_start_alike_as_far_as_their_ranks_go():
    X = rows_of(6, 300)
    spectra = activation_spectra(Two(), [{"x": X}], EvaConfig(r=2, tau=1.0))
    ranks = redistribute(spectra, list(spectra.leader), 2, 2.0)
    assert sum(ranks.values()) == 6
    adapted = initialize(Two(), None, EvaConfig(r=2, tau=1.0, target_modules=["q", "k", "o"]), spectra=spectra)
    _, _, Vh = torch.linalg.svd(centred(X), full_matrices=False)
    for name, r in ranks.items():
        if r and not name.endswith("o"):
            A = adapted.base_model.model.get_submodule(name).lora_A["default"].weight.detach().double()
            torch.testing.assert_close((A @ Vh[:r].T).abs(), torch.eye(r).double(), rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    ("config", "k"),
    [
        (EvaConfig(r=4, rho=1.5), 6),
        (EvaConfig(r=3, rho=1.5), 4),
        (S2LoraConfig(r=4), 8),
        (AdaLoraConfig(init_r=5, target_r=2, total_step=10), 5),
        (EvaConfig(r=30), 16),
    ],
)
def test_as_many_rows_as_components_or_inputs_suffice_and_one_fewer_is_refused(config, k):
    name = "bert.encoder.layer.0.attention.self.query"
    rows = {"input_ids": torch.arange(k)[None] % 50, "attention_mask": torch.ones(1, k, dtype=torch.long)}
    assert activation_spectra(bert(), [rows], config, layers=[name]).stream(name).n_samples == k
    fewer = {n: v[:, 1:] for n, v in rows.items()}
    with pytest.raises(ValueError, match=rf"layer {name} saw {k - 1} rows; {k} components need at least {k}"):
        activation_spectra(bert(), [fewer], config, layers=[name])


def test_without_a_configuration_the_default_one_is_read_by():
    with pytest.raises(ValueError, match="saw 2 rows; 6 components"):
        activation_spectra(Two(), [{"x": rows_of(6, 2)}])
    assert sorted(activation_spectra(Two(), [{"x": rows_of(6, 40)}]).leader) == [f"layers.0.{n}" for n in "koq"]


def test_adaloras_rows_may_be_as_many_as_a_layer_has_inputs():
    for r in (6, 7):
        config = AdaLoraConfig(init_r=r, target_r=2, total_step=10, target_modules=["q"])
        if r == 7:
            with pytest.raises(ValueError, match=r"init_r=7 is more than the 6 inputs of layer layers\.0\.q"):
                initialize(Two(), [{"x": rows_of(6, 50)}], config)
            return
        layer = initialize(Two(), [{"x": rows_of(6, 50)}], config).base_model.model.layers[0]["q"]
        A = layer.lora_A["default"].detach()
        torch.testing.assert_close(A @ A.T, torch.eye(6), rtol=0, atol=1e-5)


@pytest.mark.parametrize("masked", [True, False])
def test_positions_are_dropped_by_the_label_that_is_named(masked):
    from small_models import llama

    ids = torch.arange(12)[None] % 50
    labels = ids.clone()
    labels[0, :5] = -7
    labels[0, 5:7] = -100
    name = "model.layers.0.mlp.down_proj"
    config = EvaConfig(r=1, label_mask_value=-7, use_label_mask=masked)
    spectra = activation_spectra(llama(), [{"input_ids": ids, "labels": labels}], config, layers=[name])
    assert spectra.stream(name).n_samples == (7 if masked else 12)


def test_batches_are_told_and_read_up_to_the_most_asked_for():
    told, X = [], rows_of(6, 400)
    config = EvaConfig(r=1, tau=1.0, max_batches=3)
    spectra = activation_spectra(Two(), [{"x": b} for b in X.split(40)], config, on_batch=told.append)
    assert spectra.batches == 3
    assert len(told) == 3
    told.clear()
    initialize(Two(), [{"x": b} for b in X.split(40)], copy.copy(config), on_batch=told.append)
    assert len(told) == 3
    whole = EvaConfig(r=1, tau=1.0, max_batches=20)
    assert activation_spectra(Two(), [{"x": b} for b in X.split(40)], whole).batches == 10


def test_at_a_tau_of_one_everything_is_read_and_below_it_reading_stops_where_nothing_changes():
    rows = torch.zeros(36, 6)
    rows[:, 0] = 3.0
    rows[::2] *= -1  # sums of squares of powers of 18, so that nothing is rounded
    for tau, read in ((1.0, 8), (0.9, 2)):
        config = EvaConfig(r=1, rho=1.0, tau=tau)
        assert activation_spectra(Two(), [{"x": rows}] * 8, config, layers=["layers.0.q"]).batches == read


class Known:
    """A statistic of three inputs with singular values 4 and 3, of which a subspace holds ``held``."""

    n_features, total_variance = 3, 30.0

    def __init__(self, n, held):
        self.n_samples, self.held, self.asked = n, held, []

    def components(self, k):
        self.asked.append(k)
        return torch.tensor([4.0, 3.0]), torch.eye(3)[:2]

    def captured(self, old):
        assert torch.equal(old, torch.eye(3)[:2])
        return self.held


def test_a_subspace_is_settled_when_the_last_one_holds_tau_squared_of_the_energy_of_25():
    settled = _Settled(2, 0.5)

    def look(**streams):
        return settled(SimpleNamespace(streams=streams), list(streams))

    assert look(a=Known(19, 25.0), b=Known(20, 25.0), c=Known(20, 25.0)) == set()
    assert look(a=Known(20, 25.0), b=Known(40, 6.25), c=Known(40, 6.2)) == {"b"}  # a was too short to be kept before
    endless = Known(50, 25.0)
    endless.total_variance = float("nan")
    assert look(a=endless) == set()
    wide = Known(100, 25.0)
    assert _Settled(5, 0.5)(SimpleNamespace(streams={"a": wide}), ["a"]) == set()
    assert wide.asked == [3]


def inputs_of(model, data, names):
    """What layers read, by hooks."""
    seen = {n: [] for n in names}
    hooks = [
        model.get_submodule(n).register_forward_pre_hook(lambda m, args, n=n: seen[n].append(args[0].flatten(0, -2)))
        for n in names
    ]
    with torch.no_grad():
        for batch in data:
            model(**batch)
    for hook in hooks:
        hook.remove()
    return {n: torch.cat(rows).double() for n, rows in seen.items()}


def test_shared_factors_start_in_the_pooled_inputs_at_ranks_that_cost_no_more_than_equal_ones():
    model, data, r = bert(), batches(), 3
    blocks = [f"bert.encoder.layer.{i}" for i in (0, 1)]
    # every distinct input once: query, key and value read the same
    readers = {
        "16x16": [f"{b}.attention.{n}" for b in blocks for n in ("self.query", "output.dense")],
        "32x16": [f"{b}.intermediate.dense" for b in blocks],
        "16x32": [f"{b}.output.dense" for b in blocks],
    }
    cost = {"16x16": 16 + 16 + 8, "32x16": 48 + 2, "16x32": 48 + 2}
    seen = inputs_of(model, data, [n for names in readers.values() for n in names])
    energy = {}
    for key, names in readers.items():
        X = centred(torch.cat([seen[n] for n in names]))
        energy[key] = torch.linalg.svdvals(X).square()
    shares = {k: (e / e.sum()).tolist() for k, e in energy.items()}
    ranks, left = dict.fromkeys(readers, 1), sum(c * r for c in cost.values()) - sum(cost.values())
    while fits := [k for k in ranks if cost[k] <= left and ranks[k] < 2 * r]:
        best = max(fits, key=lambda k: shares[k][ranks[k]] / cost[k])
        ranks[best] += 1
        left -= cost[best]
    adapted = initialize(model, data, S2LoraConfig(r=r))
    found = adapted.base_model.s2lora_Q["default"]
    assert {k: len(Q) for k, Q in found.items()} == ranks
    assert len(set(ranks.values())) > 1
    for key, Q in found.items():
        X = centred(torch.cat([seen[n] for n in readers[key]]))
        held = float((X @ Q.detach().double().T).square().sum())
        assert held == pytest.approx(float(energy[key][: len(Q)].sum()), rel=1e-4)


def test_pairs_by_role_or_one_alone_keep_their_rank():
    for options in ({"share": "role"}, {"target_modules": ["query", "key"]}):
        adapted = initialize(bert(), batches(), S2LoraConfig(r=3, **options))
        assert {len(Q) for Q in adapted.base_model.s2lora_Q["default"].values()} == {3}


def test_adapters_are_named_and_configurations_taken_as_documented():
    adapted = initialize(Two(), [{"x": rows_of(6, 60)}], EvaConfig(r=1, target_modules=["q"]))
    assert list(adapted.peft_config) == ["default"]
    again = initialize(adapted, [{"x": rows_of(6, 60)}], EvaConfig(r=2, target_modules=["k"]), adapter_name="mine")
    assert list(again.peft_config) == ["mine"]
    assert {n for n, m in again.named_modules() if isinstance(m, BaseTunerLayer)} == {"base_model.model.layers.0.k"}
    for missing in (None,):
        with pytest.raises(ValueError, match="needs a dataloader, or spectra"):
            initialize(Two(), missing, EvaConfig(r=1, target_modules=["q"]))
    with pytest.raises(ValueError, match="not NoneType"):
        initialize(Two(), [{"x": rows_of(6, 60)}])
    two = get_peft_model(Two(), LoraConfig(r=1, target_modules=["q"]))
    two.add_adapter("b", LoraConfig(r=1, target_modules=["k"]))
    with pytest.raises(ValueError, match="the model has 2 adapters"):
        initialize(two, [{"x": rows_of(6, 60)}])


def test_statistics_given_are_not_read_again_and_not_changed():
    X = rows_of(6, 300)
    spectra = activation_spectra(Two(), [{"x": X}], S2LoraConfig(r=2))
    before = {n: s.n_samples for n, s in spectra.streams.items()}
    initialize(Two(), None, S2LoraConfig(r=2), spectra=spectra)
    assert {n: s.n_samples for n, s in spectra.streams.items()} == before
    assert all(isinstance(s, StreamingSVD) for s in spectra.streams.values())


# --- export


def plain_adapter(r=3, **options):
    return randomise(get_peft_model(bert(), LoraConfig(r=r, target_modules=["query", "intermediate.dense"], **options)))


def deltas(adapted):
    named = adapted.named_modules()
    return {n: m.get_delta_weight("default").detach() for n, m in named if isinstance(m, BaseTunerLayer)}


def written(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    names = [n.removesuffix(".lora_A.weight") for n in tensors if n.endswith(".lora_A.weight")]
    return {n: (tensors[f"{n}.lora_A.weight"], tensors[f"{n}.lora_B.weight"]) for n in names}


@pytest.mark.parametrize(("r", "width"), [(8, 8), (9, 16), (33, 64), (600, 600)])
def test_ranks_are_filled_up_to_the_next_that_is_served(r, width, tmp_path):
    assert SERVING_RANKS == (8, 16, 32, 64, 128, 256, 320, 512)
    adapted = plain_adapter(r=r, lora_alpha=2 * r)
    exported = export_lora(adapted, tmp_path / "out")
    assert set(exported.ranks.values()) == {width}
    assert exported.error == 0.0
    told = deltas(adapted)
    for name, (A, B) in written(tmp_path / "out").items():
        assert (len(A), B.shape[1]) == (width, width)
        assert not A[r:].any()
        assert not B[:, r:].any()
        torch.testing.assert_close(B @ A, told[name], rtol=1e-4, atol=1e-4)


def test_the_file_says_what_it_holds(tmp_path):
    adapted = plain_adapter(r=3, task_type="SEQ_CLS")
    adapted.peft_config["default"].base_model_name_or_path = "some/base"
    assert set(export_lora(adapted, tmp_path / "out", pad=False, dtype=torch.bfloat16).ranks.values()) == {3}
    told = json.loads((tmp_path / "out/adapter_config.json").read_text())
    expected = {
        "peft_type": "LORA", "r": 3, "lora_alpha": 3, "rank_pattern": {}, "task_type": "SEQ_CLS",
        "base_model_name_or_path": "some/base", "inference_mode": True, "fan_in_fan_out": False,
        "modules_to_save": ["classifier", "score"],
    }  # fmt: skip
    assert {k: told[k] for k in expected} == expected
    assert sorted(told["target_modules"]) == sorted(
        f"bert.encoder.layer.{i}.{n}" for i in (0, 1) for n in ("attention.self.query", "intermediate.dense")
    )
    assert {t.dtype for pair in written(tmp_path / "out").values() for t in pair} == {torch.bfloat16}
    with safe_open(tmp_path / "out/adapter_model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        head = [k for k in file.keys() if "lora" not in k]  # noqa: SIM118
    assert head == ["base_model.model.classifier.bias", "base_model.model.classifier.weight"]
    turned = randomise(get_peft_model(gpt2(), LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)))
    export_lora(turned, tmp_path / "turned")
    assert json.loads((tmp_path / "turned/adapter_config.json").read_text())["fan_in_fan_out"]
    assert {t.dtype for pair in written(tmp_path / "turned").values() for t in pair} == {torch.float32}


def test_a_truncated_export_is_the_truncated_svd_of_every_delta_and_tells_the_largest_error(tmp_path):
    adapted = plain_adapter(r=4)
    errors, told = {}, deltas(adapted)
    exported = export_lora(adapted, tmp_path / "out", max_rank=2, pad=False)
    for name, (A, B) in written(tmp_path / "out").items():
        U, S, Vh = torch.linalg.svd(told[name].double(), full_matrices=False)
        torch.testing.assert_close((B @ A).double(), U[:, :2] * S[:2] @ Vh[:2], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(A.norm(dim=1), B.norm(dim=0), rtol=1e-4, atol=1e-5)  # split evenly
        errors[name] = float(S[2:].norm() / S.norm())
    assert exported.error == pytest.approx(max(errors.values()), rel=1e-4)
    assert len({round(e, 6) for e in errors.values()}) == 4
    whole = export_lora(adapted, tmp_path / "whole", max_rank=4, pad=False)
    assert whole.error == 0.0
    for name, (A, _) in written(tmp_path / "whole").items():
        assert torch.equal(A, adapted.get_submodule(name).lora_A["default"].weight)


@pytest.mark.parametrize("method", ["vera", "adalora", "s2lora", "lora"])
def test_the_factors_of_a_layer_multiply_to_its_delta_in_single_precision(method):
    every = r".*encoder.*(query|dense)"
    config = {
        "vera": VeraConfig(r=3, target_modules=every),
        "adalora": AdaLoraConfig(init_r=3, target_r=3, total_step=10, target_modules=every),
        "s2lora": S2LoraConfig(r=3, lora_alpha=7.5, target_modules=every),
        "lora": LoraConfig(r=3, lora_alpha=7, target_modules=every),
    }[method]
    adapted = randomise(get_peft_model(bert().double(), config, autocast_adapter_dtype=False))
    layers = [m for m in adapted.modules() if isinstance(m, BaseTunerLayer)]
    assert len({m.in_features for m in layers}) == 2
    for layer in layers:
        A, B = low_rank_factors(layer)
        assert (A.dtype, B.dtype, A.requires_grad, B.requires_grad) == (torch.float32, torch.float32, False, False)
        assert len(A) == B.shape[1] == 3
        expected = layer.get_delta_weight("default").detach().float()
        torch.testing.assert_close(B @ A, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", [S2LoraConfig, VeraConfig])
def test_beside_the_factors_of_its_layers_a_file_holds_the_head_alone(config, tmp_path):
    adapted = randomise(get_peft_model(bert(), config(r=3, target_modules=["query", "key"], task_type="SEQ_CLS")))
    export_lora(adapted, tmp_path / "out")
    names = {n for n in load_file(tmp_path / "out/adapter_model.safetensors") if ".lora_" not in n}
    assert names == {f"base_model.model.classifier.{p}" for p in ("weight", "bias")}


UNSAID = {
    "lora_bias": "a bias beside B",
    "use_qalora": "an A that reads pooled inputs",
    "target_parameters": "factors of parameters that are no layer's weight",
    "trainable_token_indices": "trained rows of the embedding",
    "layer_replication": "a base model with other layers",
    "megatron_config": "factors split over parallel layers",
    "use_dora": "a variant of LoRA",
}


@pytest.mark.parametrize("name", UNSAID)
def test_what_plain_lora_cannot_say_is_named_with_what_it_is(name):
    config = LoraConfig()
    check_exportable(config)
    setattr(config, name, ["something"])
    with pytest.raises(TypeError, match=rf"^{name}=\['something'\] is {UNSAID[name]}, which plain LoRA cannot say"):
        check_exportable(config)


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga"])
def test_starts_that_change_the_base_are_refused(start):
    config = LoraConfig()
    config.init_lora_weights = start
    with pytest.raises(TypeError, match=f"init_lora_weights='{start}' changes the base weights"):
        check_exportable(config)
    for other in ("gaussian", "eva", "orthogonal", True, False):
        config.init_lora_weights = other
        check_exportable(config)


# --- S2-LoRA


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x):
        return self.c(self.b(self.a(x).relu()).relu())


def s2(**options):
    given = {"r": 2, "target_modules": ["a", "b", "c"], **options}
    return randomise(get_peft_model(Net(), S2LoraConfig(**given)))


def test_it_is_not_injected_without_its_model_that_holds_the_factors():
    with pytest.raises(ValueError, match="get_peft_model"):
        inject_adapter_in_model(S2LoraConfig(r=2, target_modules=["a"]), Net())


@pytest.mark.parametrize("lora_alpha", [None, 3.0])
def test_a_layer_adds_the_scaled_product_of_its_factors(lora_alpha):
    model, x = s2(lora_alpha=lora_alpha).eval(), torch.randn(5, 6)
    layer = model.base_model.model.a
    P, c, Q = layer.factors("default")
    scale = 1.0 if lora_alpha is None else 1.5
    expected = layer.base_layer(x) + scale * x @ (P @ torch.diag(c) @ Q).T
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.get_delta_weight("default"), scale * P @ torch.diag(c) @ Q)
    assert layer.supports_lora_conversion()
    assert layer.supports_lora_conversion("other")
    assert (layer.in_features, layer.out_features, layer.fan_in_fan_out) == (6, 6, False)


def test_dropout_is_the_configurations_each_layers_own_and_off_in_evaluation():
    model, x = s2(dropout=0.5), torch.ones(400, 6)
    layers = [m for m in model.modules() if isinstance(m, S2LoraLayer)]
    assert {m.s2lora_dropout["default"].p for m in layers} == {0.5}
    assert all(
        isinstance(m.s2lora_dropout["default"], nn.Identity) for m in s2().modules() if isinstance(m, S2LoraLayer)
    )
    P, c, Q = layers[0].factors("default")
    exact = layers[0].base_layer(x) + x @ (P @ torch.diag(c) @ Q).T
    torch.testing.assert_close(layers[0].eval()(x), exact)
    noisy = layers[0].train()(x)
    assert not torch.allclose(noisy, exact)
    torch.testing.assert_close(noisy.mean(0), exact.mean(0), rtol=0.3, atol=0.3)


class Readers(nn.Module):
    """Two readers of one input, with something in between."""

    def __init__(self, between):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.between = nn.Linear(6, 6), nn.Linear(6, 6), between

    def forward(self, x):
        return self.between(self, x)


def no_grad_first(net, x):
    with torch.no_grad():
        first = net.a(x)
    return first + net.b(x)


def changed_in_place(net, x):
    x = x + 0.0
    first = net.a(x)
    x.mul_(-3.0)
    return first + net.b(x)


def another_input(net, x):
    return net.a(x) + net.b(x * 2.0)


@pytest.mark.parametrize("between", [no_grad_first, changed_in_place, another_input])
@pytest.mark.parametrize("inference", [False, True])
def test_readers_of_one_input_share_a_product_only_while_it_is_the_same(between, inference):
    model = randomise(get_peft_model(Readers(between), S2LoraConfig(r=2, target_modules=["a", "b"])))
    x = torch.randn(3, 6)

    def dense(layer, y):
        P, c, Q = layer.factors("default")
        return layer.base_layer(y) + y @ (P @ torch.diag(c) @ Q).T

    net = model.base_model.model
    ys = {no_grad_first: (x, x), changed_in_place: (x, -3 * x), another_input: (x, 2 * x)}[between]
    expected = dense(net.a, ys[0]), dense(net.b, ys[1])
    if inference and between is not changed_in_place:  # inference tensors do not count their changes
        with torch.inference_mode():
            torch.testing.assert_close(model(x.clone()), expected[0] + expected[1])
        return
    torch.testing.assert_close(model(x), expected[0] + expected[1])
    if between is changed_in_place:
        return
    Q = model.base_model.s2lora_Q["default"]["6x6"]
    first = expected[0].detach() if between is no_grad_first else expected[0]
    (wanted,) = torch.autograd.grad((first + expected[1]).sum(), Q)
    (found,) = torch.autograd.grad(model(x).sum(), Q)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(("bias", "kept"), [("all", ["a", "b", "c"]), ("s2lora_only", ["a", "b"])])
def test_trained_biases_are_saved_and_come_back(bias, kept, tmp_path):
    model = s2(bias=bias, target_modules=["a", "b"])
    trained = {n for n, p in model.named_parameters() if p.requires_grad and n.endswith("bias")}
    assert {n.removesuffix(".bias").removesuffix(".base_layer").rpartition(".")[2] for n in trained} == set(kept)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name in trained:
                p.add_(1.0)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(Net(), tmp_path)
    x = torch.randn(3, 6)
    torch.testing.assert_close(again(x), model.eval()(x))


@pytest.mark.parametrize(
    ("share", "keys"),
    [
        ("shape", {"6x6": ["a", "b"], "4x6": ["c"]}),
        ("max", {"max": ["a", "b", "c"]}),
        ("none", {"a": ["a"], "b": ["b"], "c": ["c"]}),
        ("role", {"a:6x6": ["a"], "b:6x6": ["b"], "c:4x6": ["c"]}),
    ],
)
def test_pairs_are_called_by_what_shares_them(share, keys):
    model = s2(share=share)
    assert model.peft_config["default"].lambda_modules == keys
    for side, i in ((model.base_model.s2lora_P, 0), (model.base_model.s2lora_Q, 1)):
        shapes = {k: tuple(f.shape) for k, f in side["default"].items()}
        long = {"max": (6, 6), **{k: (4, 6) if "c" in names else (6, 6) for k, names in keys.items() if k != "max"}}
        assert shapes == {k: (long[k][0], 2) if i == 0 else (2, long[k][1]) for k in keys}


def test_roles_are_the_names_inside_a_block():
    model = get_peft_model(bert(), S2LoraConfig(r=2, share="role"))
    inside = ("attention/self/query", "attention/self/key", "attention/self/value", "attention/output/dense")
    names = {f"{n}:16x16" for n in inside} | {"intermediate/dense:32x16", "output/dense:16x32"}
    assert set(model.base_model.s2lora_P["default"]) == names
    apart = get_peft_model(bert(), S2LoraConfig(r=2, share="none", target_modules=["query"]))
    assert set(apart.base_model.s2lora_P["default"]) == {f"bert/encoder/layer/{i}/attention/self/query" for i in (0, 1)}


def test_only_pairs_that_could_be_shared_and_are_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="only one targeted matrix has the shape 4x6"):
            get_peft_model(Net(), S2LoraConfig(r=2, target_modules=["a", "b", "c"]))
        get_peft_model(Net(), S2LoraConfig(r=2, target_modules=["a", "b"]))
        get_peft_model(Net(), S2LoraConfig(r=2, share="none", target_modules=["a", "c"]))


def test_factors_start_orthonormal_in_the_weights_type_and_coefficients_at_zero_or_random():
    model = get_peft_model(Net().bfloat16(), S2LoraConfig(r=2, target_modules=["a", "b"]), autocast_adapter_dtype=False)
    assert {p.dtype for n, p in model.named_parameters() if "s2lora_P" in n or "s2lora_Q" in n} == {torch.bfloat16}
    model = get_peft_model(Net(), S2LoraConfig(r=3, target_modules=["a", "b"]))
    P, Q = (getattr(model.base_model, f"s2lora_{s}")["default"]["6x6"].detach() for s in "PQ")
    for M in (P.T @ P, Q @ Q.T):
        torch.testing.assert_close(M, torch.eye(3), rtol=0, atol=1e-5)
    assert not torch.allclose(P, Q.T)
    assert not model.base_model.model.a.s2lora_lambda["default"].any()
    away = get_peft_model(Net(), S2LoraConfig(r=3, target_modules=["a", "b"], init_weights=False))
    c = away.base_model.model.a.s2lora_lambda["default"]
    assert c.shape == (3,)
    assert c.all()


def test_quantised_weights_get_single_precision_factors_and_are_not_merged():
    net = Net()
    for layer in (net.a, net.b):
        layer.weight = nn.Parameter((layer.weight.detach() * 100).to(torch.int8), requires_grad=False)
    model = get_peft_model(net, S2LoraConfig(r=2, target_modules=["a", "b"]))
    assert {p.dtype for n, p in model.named_parameters() if "s2lora" in n} == {torch.float32}
    with pytest.raises(TypeError, match="export the adapter instead of merging"):
        model.merge_adapter()


def test_terms_are_the_closed_form_of_every_pair_and_only_of_those_that_train():
    model = s2(l1="penalty", sparsity=0.5, orthogonality=0.3)
    base = model.base_model
    expected = 0.0
    for key in ("6x6", "4x6"):
        P, Q = base.s2lora_P["default"][key].detach(), base.s2lora_Q["default"][key].detach()
        grams = (P.T @ P - torch.eye(2)).square().sum() + (Q @ Q.T - torch.eye(2)).square().sum()
        expected += 0.3 * float(grams) / 4
        assert base.orthogonality()[key] == pytest.approx(float((P.T @ P - torch.eye(2)).norm()), rel=1e-5)
    sizes = torch.cat(
        [m.s2lora_lambda["default"].detach().abs() for m in base.model.modules() if isinstance(m, S2LoraLayer)]
    )
    assert float(base.regularization_loss()) == pytest.approx(expected + 0.5 * float(sizes.mean()), rel=1e-5)
    frozen = s2(train_shared=False).base_model
    assert frozen.regularization_loss().item() == 0.0
    assert s2(orthogonality=0.0).base_model.regularization_loss().item() == 0.0
    assert base.regularization_loss("default").shape == ()


def test_a_rank_map_tells_every_layer_by_name_in_order():
    model = s2()
    found = model.base_model.rank_map()
    assert list(found) == ["a", "b", "c"]
    for name, entry in found.items():
        c = getattr(model.base_model.model, name).s2lora_lambda["default"].detach()
        assert torch.equal(entry.coefficients, c)
        assert (entry.rank, entry.mass) == (2, pytest.approx(float(c.abs().sum())))
    model.add_adapter("other", S2LoraConfig(r=1, target_modules=["b"]))
    assert list(model.base_model.rank_map("other")) == ["b"]
    assert list(model.base_model.orthogonality("other")) == ["6x6"]
    assert effective_rank(torch.tensor([-1.0, 1e-3, 1.1e-3])) == 2
    assert effective_rank(torch.tensor([0.6, -1.0, 0.4]), threshold=0.5) == 2


def trainable(model, name):
    named = model.named_parameters()
    return {n.split(f".{name}")[0].rpartition(".")[2] for n, p in named if p.requires_grad and f".{name}" in n}


def test_shared_factors_follow_their_adapter_and_frozen_ones_stay_frozen():
    model = s2()
    model.add_adapter("frozen", S2LoraConfig(r=2, target_modules=["a", "b"], train_shared=False))
    everything = {"s2lora_lambda", "s2lora_P", "s2lora_Q"}
    assert trainable(model, "default") == everything
    assert trainable(model, "frozen") == set()
    model.set_adapter("frozen")
    assert trainable(model, "frozen") == {"s2lora_lambda"}
    assert trainable(model, "default") == set()
    model.base_model.set_adapter("default", inference_mode=True)
    assert trainable(model, "default") == set()
    model.base_model.set_adapter("default")
    assert trainable(model, "default") == everything
    model.set_requires_grad("default", False)
    assert trainable(model, "default") == set()
    model.set_requires_grad(["default", "frozen"])
    assert trainable(model, "default") == everything
    assert trainable(model, "frozen") == {"s2lora_lambda"}
    model.base_model.disable_adapter_layers()
    assert trainable(model, "default") == set()
    model.base_model.enable_adapter_layers()
    assert trainable(model, "default") == everything


def test_every_adapters_coefficients_move_at_their_own_rate_without_decay():
    model = s2(lambda_lr_scale=4.0, sparsity=0.0, orthogonality=0.0)
    model.add_adapter("slow", S2LoraConfig(r=2, target_modules=["a", "b"], lambda_lr_scale=0.5, sparsity=0.0,
                                           orthogonality=0.0, init_weights=False))  # fmt: skip
    model.base_model.set_adapter(["default", "slow"])
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    one, two = (
        [p for n, p in model.named_parameters() if "b." in n],
        [p for n, p in model.named_parameters() if "b." not in n],
    )
    torch.optim.SGD([{"params": one}, {"params": two, "lr": 0.2}], lr=0.1, weight_decay=0.5).step()
    for name, p in model.named_parameters():
        lr, old = 0.1 if "b." in name else 0.2, before[name]
        if "s2lora_lambda" in name:
            expected = old - lr * (0.5 if "slow" in name else 4.0)
        else:
            expected = old - lr * (1 + 0.5 * old)
        torch.testing.assert_close(p.detach(), expected, msg=name)


def test_a_step_that_a_scaler_skips_moves_no_coefficient():
    model = s2(sparsity=5.0, orthogonality=0.0)
    before = [c.detach().clone() for c in model.base_model.coefficients("default")]
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.base_model.coefficients("default"), strict=True))
    optimizer.found_inf = torch.tensor(0.0)
    optimizer.step()
    assert not any(c.any() for c in model.base_model.coefficients("default"))


def test_coefficients_without_a_gradient_and_those_under_the_penalty_are_not_shrunk():
    model = s2(sparsity=1.0, orthogonality=0.0)
    first, *others = model.base_model.coefficients("default")
    before = [c.detach().clone() for c in (first, *others)]
    first.grad = torch.zeros_like(first)
    torch.optim.SGD(model.parameters(), lr=1e-3).step()
    torch.testing.assert_close(first.detach(), soft_threshold(before[0], 1e-2), rtol=0, atol=1e-6)
    assert not torch.equal(first, before[0])
    assert all(torch.equal(a, b) for a, b in zip(before[1:], others, strict=True))
    assert soft_threshold(torch.tensor([-2.0, 0.5, -0.5, 3.0, 0.0]), 1.0).tolist() == [-1.0, 0.0, 0.0, 2.0, 0.0]


@pytest.mark.parametrize("engine", ["DEEPSPEED", "FSDP", "MEGATRON_LM", "MULTI_GPU", None])
def test_engines_are_refused_by_name_and_others_served(engine, monkeypatch):
    from accelerate.state import PartialState

    model = s2()
    if engine is not None:
        monkeypatch.setitem(PartialState._shared_state, "distributed_type", SimpleNamespace(value=engine))
    else:
        monkeypatch.delitem(PartialState._shared_state, "distributed_type", raising=False)
    if engine in ("DEEPSPEED", "FSDP", "MEGATRON_LM"):
        with pytest.raises(RuntimeError, match=f"which {engine} has not"):
            model.train()
    else:
        assert model.train().training
    assert not model.eval().training


@pytest.mark.parametrize("keyword", [False, True])
def test_a_closure_by_position_or_by_name_is_called_once_with_its_loss_returned(keyword):
    one, two = s2(), s2()
    x = torch.ones(2, 6)
    one(x).square().sum().backward()
    torch.optim.SGD(one.parameters(), lr=1e-2).step()
    calls = []

    def closure():
        loss = two(x).square().sum()
        loss.backward()
        calls.append(loss)
        return loss

    optimizer = torch.optim.SGD(two.parameters(), lr=1e-2)
    found = optimizer.step(closure=closure) if keyword else optimizer.step(closure)
    assert len(calls) == 1
    assert found is calls[0]
    for (name, p), (_, q) in zip(one.named_parameters(), two.named_parameters(), strict=True):
        torch.testing.assert_close(p, q, msg=name)


# --- what all types share


def test_half_precision_weights_are_merged_and_unmerged_with_one_rounding():
    model = get_peft_model(Net().bfloat16(), BitFitConfig(target_modules=["a"], init_weights=False))
    layer = model.base_model.model.a
    before, delta = layer.base_layer.bias.detach().clone(), layer.bitfit_bias["default"].detach()
    assert (before.dtype, delta.dtype) == (torch.bfloat16, torch.float32)
    model.merge_adapter()
    merged = (before.float() + delta).bfloat16()
    assert torch.equal(layer.base_layer.bias, merged)
    model.unmerge_adapter()
    assert torch.equal(layer.base_layer.bias, (merged.float() - delta).bfloat16())
    with torch.no_grad():
        layer.bitfit_bias["default"][0] = float("inf")
    model.merge_adapter()  # by default nothing is checked
    assert layer.base_layer.bias.isinf().any()


@pytest.mark.parametrize("training", [True, False])
def test_new_layers_have_the_mode_of_what_they_wrap(training):
    net = Net().train(not training)
    net.a.train(training)
    model = get_peft_model(net, S2LoraConfig(r=2, target_modules=["a", "b"], dropout=0.1))
    assert model.base_model.model.a.training == training
    assert model.base_model.model.b.training != training


def test_rows_are_counted_by_what_generate_makes_of_them():
    settings = SimpleNamespace(num_beams=4, num_return_sequences=None)
    model = SimpleNamespace(generation_config=SimpleNamespace(num_beams=1, num_return_sequences=2))
    assert _copies(model, {}) == 2
    assert _copies(model, {"num_beams": 3}) == 3
    assert _copies(model, {"num_return_sequences": 5}) == 5
    assert _copies(model, {"generation_config": settings}) == 4
    assert _copies(nn.Linear(1, 1), {}) == 1
    assert _copies(nn.Linear(1, 1), {"num_beams": None}) == 1


@pytest.mark.parametrize("name", METHODS)
def test_twice_as_many_rows_as_names_are_refused_outside_of_generate(name):
    model = get_peft_model(Net(), METHODS[name][0](target_modules=["a"])).eval()
    for rows in (2, 4, 6):
        with pytest.raises(ValueError, match=f"3 adapter_names for a batch of {rows} rows"):
            model(torch.ones(rows, 6), adapter_names=["default", "__base__", "default"])


def test_biases_tell_the_sides_of_modules_that_have_none_and_warn_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = get_peft_model(nn.ModuleDict({"norm": nn.GroupNorm(2, 6), "fc": nn.Linear(3, 4)}),
                               BitFitConfig(target_modules=["norm", "fc"]))  # fmt: skip
    norm, fc = model.base_model.model["norm"], model.base_model.model["fc"]
    assert (norm.in_features, norm.out_features) == (6, 6)
    assert (fc.in_features, fc.out_features) == (3, 4)
    assert not norm.bitfit_bias["default"].any()


@pytest.mark.parametrize("n", [2, 3, 4])
def test_biases_of_other_names_are_told_up_to_three(n):
    def block():
        return nn.ModuleDict({"attention": nn.MultiheadAttention(4, 1), "fc": nn.Linear(4, 4)})

    net = nn.ModuleDict({"layers": nn.ModuleList(block() for _ in range(n))})
    names = [f"layers.{i}.attention.in_proj_bias" for i in range(n)]
    told = ", ".join(names[:3]) + (", …" if n > 3 else "")
    with pytest.warns(UserWarning, match=rf"it leaves {told}$"):
        get_peft_model(net, BitFitConfig())


# --- PEFT's registry


def test_methods_are_registered_once_under_their_names(monkeypatch):
    assert {n: (c.__name__, m.__name__) for n, (c, m) in METHODS.items()} == {
        "s2lora": ("S2LoraConfig", "S2LoraModel"),
        "bitfit": ("BitFitConfig", "BitFitModel"),
        "vida": ("VidaConfig", "VidaModel"),
        "codyra": ("CodyraConfig", "CodyraModel"),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        register()
    for mapping in (PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING):
        for name in METHODS:
            monkeypatch.delitem(mapping, PeftType[name.upper()])
    register()
    for name, (config, model) in METHODS.items():
        kind = PeftType[name.upper()]
        assert PEFT_TYPE_TO_CONFIG_MAPPING[kind] is config
        assert PEFT_TYPE_TO_TUNER_MAPPING[kind] is model
        assert PEFT_TYPE_TO_PREFIX_MAPPING[kind] == f"{name}_"


def test_a_method_that_a_later_peft_has_stays_pefts_and_a_warning_says_so(monkeypatch):
    kind = PeftType["BITFIT"]
    monkeypatch.setitem(PEFT_TYPE_TO_CONFIG_MAPPING, kind, LoraConfig)
    with pytest.warns(UserWarning, match=r"already has a method 'bitfit' \(peft\.tuners\.lora"):
        register()
    assert PEFT_TYPE_TO_CONFIG_MAPPING[kind] is LoraConfig
