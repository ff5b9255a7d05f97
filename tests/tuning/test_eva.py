import copy
import dataclasses
import warnings

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.utils.data import DataLoader

from rankwise.spectral import StreamingSVD, principal_angles
from rankwise.tuning import ActivationSpectra, EvaConfig, S2LoraConfig, activation_spectra, initialize
from rankwise.tuning.eva import CONTRADICTED, redistribute
from small_models import bert, llama, randomise

TARGETS = ["query", "key", "value", "dense"]
ENCODER = r".*encoder.*\.(query|key|value|dense)"


def loader(n=6, rows=8, seq=12, seed=0):
    g = torch.Generator().manual_seed(seed)
    for _ in range(n):
        ids = torch.randint(0, 50, (rows, seq), generator=g)
        lengths = torch.randint(3, seq + 1, (rows,), generator=g)
        yield {"input_ids": ids, "attention_mask": (torch.arange(seq) < lengths[:, None]).long()}


class Linear(nn.Module):
    """A model of one block whose two layers read the same rows."""

    def __init__(self, d=20):
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleDict({"q": nn.Linear(d, 6), "k": nn.Linear(d, 6), "o": nn.Linear(6, d)})])

    def forward(self, x, attention_mask=None):
        block = self.layers[0]
        return block["o"](block["q"](x) + block["k"](x))


def known_rows(n=4000, d=20, k=4):
    g = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(d, d, generator=g)).Q
    scale = torch.cat([torch.linspace(8, 4, k), torch.full((d - k,), 0.2)])
    return (torch.randn(n, d, generator=g) * scale) @ basis.T + 1.0, basis[:, :k]


def test_activations_of_a_known_covariance_give_its_subspace():
    X, basis = known_rows()
    spectra = activation_spectra(
        Linear(), [{"x": b} for b in X.split(500)], EvaConfig(r=4, rho=1.0, tau=1.0), layers=["layers.0.q"]
    )
    _, V = spectra.stream("layers.0.q").components(4)
    X = X.double() - X.double().mean(0)
    exact = torch.linalg.svd(X, full_matrices=False).Vh[:4]
    assert principal_angles(V.T, exact.T).max() < 1e-3
    assert principal_angles(V.T, basis).max() < 2e-2  # the sample's own error


def test_start_is_orthonormal_and_leaves_the_logits_unchanged(model, batch):
    base = model(**batch).logits
    adapted = initialize(model, loader(), EvaConfig(r=3, target_modules=ENCODER, task_type="SEQ_CLS")).eval()
    assert torch.equal(adapted(**batch).logits, base)
    for name, p in adapted.named_parameters():
        if "lora_A" in name:
            torch.testing.assert_close(p @ p.T, torch.eye(len(p)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("rho", [1.0, 1.5, 2.0])
def test_ranks_sum_to_the_budget_and_respect_rho(model, rho):
    r = 4
    adapted = initialize(model, loader(), EvaConfig(r=r, rho=rho, target_modules=ENCODER))
    ranks = {n: len(p) for n, p in adapted.named_parameters() if "lora_A" in n}
    assert sum(ranks.values()) == r * 12
    assert max(ranks.values()) <= round(rho * r)
    if rho == 1.0:
        assert set(ranks.values()) == {r}


def test_redistribution_equals_sorting_all_ratios(model):
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and "encoder" in n]
    spectra = activation_spectra(model, loader(), EvaConfig(r=3), layers=names)
    ranks = redistribute(spectra, names, 3, 2.0)
    everything = [(float(e), -i, n) for i, n in enumerate(names) for e in spectra.stream(n).explained_variance_ratio(6)]
    taken = [n for _, _, n in sorted(everything, reverse=True)[: 3 * len(names)]]
    assert ranks == {n: taken.count(n) for n in names}


def test_agrees_with_pefts_own_eva_on_the_same_batches():
    from peft import EvaConfig as PeftEva
    from peft import initialize_lora_eva_weights

    torch.manual_seed(0)
    X, _ = known_rows(k=2)  # a gap after the second direction: the subspace is the same however many batches are read
    batches = [{"input_ids": b, "x": b} for b in X.split(500)]
    base = Linear()
    mine = initialize(
        copy.deepcopy(base),
        [{"x": b["x"]} for b in batches],
        EvaConfig(r=2, rho=2.0, tau=1.0, target_modules=["q", "k"]),
    )
    plain = LoraConfig(r=2, target_modules=["q", "k"], init_lora_weights="eva", eva_config=PeftEva(rho=2.0, tau=0.999))
    theirs = get_peft_model(base, plain, low_cpu_mem_usage=True)
    initialize_lora_eva_weights(
        theirs,
        batches,
        forward_fn=lambda m, b: m(b["x"]),
        prepare_model_inputs_fn=None,
        prepare_layer_inputs_fn=None,
        show_progress_bar=False,
    )
    found = [{n: p for n, p in m.named_parameters() if "lora_A" in n} for m in (mine, theirs)]
    assert {n: len(p) for n, p in found[0].items()} == {n: len(p) for n, p in found[1].items()}
    for name, p in found[0].items():
        assert principal_angles(p.T, found[1][name].T).max() < 1e-2


def test_padding_changes_nothing(model):
    names = ["bert.encoder.layer.1.output.dense"]
    plain = list(loader())
    padded = [{k: torch.nn.functional.pad(v, (0, 7)) for k, v in b.items()} for b in plain]
    one, two = (
        activation_spectra(model, b, EvaConfig(r=3, tau=1.0), layers=names).stream(names[0]) for b in (plain, padded)
    )
    assert one.n_samples == two.n_samples == sum(int(b["attention_mask"].sum()) for b in plain)
    torch.testing.assert_close(one.components(3)[0], two.components(3)[0], rtol=1e-5, atol=1e-5)


def test_masked_labels_are_dropped():
    model, names = llama(), ["model.layers.0.mlp.down_proj"]
    batch = next(loader(1))
    labels = batch["input_ids"].masked_fill(torch.arange(12) < 4, -100)
    seen = activation_spectra(model, [{**batch, "labels": labels}], EvaConfig(r=2), layers=names).stream(names[0])
    assert seen.n_samples == int((batch["attention_mask"].bool() & (labels != -100)).sum())


def test_layers_that_read_the_same_tensor_share_one_decomposition():
    spectra = activation_spectra(llama(), loader(), EvaConfig(r=2))
    assert len(spectra.leader) == 14
    assert len(spectra.streams) == 8  # a block: qkv, o, gate and up, down


def test_statistics_do_not_depend_on_how_rows_are_batched(model):
    whole = list(loader(4, seed=5))
    halves = [{k: v[i : i + 4] for k, v in b.items()} for b in whole for i in (0, 4)]
    names = ["bert.encoder.layer.0.output.dense", "bert.encoder.layer.1.attention.self.query"]
    a, b = (activation_spectra(model, x, EvaConfig(r=4, tau=1.0), layers=names) for x in (whole, halves))
    for n in names:
        torch.testing.assert_close(a.stream(n).components(4)[0], b.stream(n).components(4)[0], rtol=1e-5, atol=1e-5)
        assert principal_angles(a.stream(n).components(2)[1].T, b.stream(n).components(2)[1].T).max() < 1e-3


def test_layers_of_rank_zero_are_removed_and_the_rest_saves_loads_and_merges(batch, tmp_path):
    model = bert()
    config = EvaConfig(r=1, rho=12.0, target_modules=ENCODER, task_type="SEQ_CLS")
    adapted = initialize(model, loader(), config).eval()
    ranks = {n: len(p) for n, p in adapted.named_parameters() if "lora_A" in n}
    assert 0 < len(ranks) < 12, "this data should leave some layer without rank"
    randomise(adapted)
    expected = adapted(**batch).logits
    adapted.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(bert(), tmp_path).eval()
    assert torch.equal(again(**batch).logits, expected)
    torch.testing.assert_close(again.merge_and_unload()(**batch).logits, expected, atol=1e-5, rtol=1e-5)


def test_result_is_a_plain_lora_whose_patterns_match_one_layer_each(model, tmp_path):
    adapted = initialize(model, loader(), EvaConfig(r=4, lora_alpha=8, target_modules=ENCODER))
    config = adapted.peft_config["default"]
    assert type(config) is LoraConfig
    for name, layer in adapted.named_modules():
        if hasattr(layer, "lora_A"):
            assert layer.scaling["default"] == pytest.approx(2.0)  # alpha_m / r_m as configured
            short = name.removeprefix("base_model.model.")
            assert layer.r["default"] == config.rank_pattern.get(short, 4)


def test_one_batch_equals_the_svd_of_the_centred_batch():
    X, _ = known_rows(100)
    stream = activation_spectra(Linear(), [{"x": X}], EvaConfig(r=3), layers=["layers.0.q"]).stream("layers.0.q")
    S = torch.linalg.svdvals((X - X.mean(0)).double())
    torch.testing.assert_close(stream.components(3)[0], S[:3], rtol=1e-5, atol=1e-5)


def test_uncentred_statistics_have_the_mean_as_first_direction():
    X = torch.randn(500, 20) + 10.0
    V = (
        activation_spectra(Linear(), [{"x": X}], EvaConfig(r=1, center=False), layers=["layers.0.q"])
        .stream("layers.0.q")
        .components(1)[1]
    )
    assert principal_angles(V.T, X.mean(0)[:, None]).max() < 0.02


def test_reading_stops_once_the_subspace_holds_still():
    X, _ = known_rows(16_000)
    config = EvaConfig(r=2, tau=0.99, max_batches=32)
    spectra = activation_spectra(Linear(), ({"x": b} for b in X.split(500)), config, layers=["layers.0.q"])
    assert spectra.batches < 32


def test_saved_state_is_reused_and_shards_merge(model, tmp_path):
    whole, batches = EvaConfig(r=3, tau=1.0, target_modules=ENCODER), list(loader(4))
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and "encoder" in n]
    one = activation_spectra(model, batches, whole, layers=names)
    left, right = (activation_spectra(model, b, whole, layers=names) for b in (batches[:2], batches[2:]))
    left.save(tmp_path)
    merged = ActivationSpectra.load(tmp_path).merge(right)
    for n in names:
        torch.testing.assert_close(
            merged.stream(n).components(3)[0], one.stream(n).components(3)[0], rtol=1e-4, atol=1e-4
        )
    adapted = initialize(model, None, whole, spectra=merged)
    assert sum(len(p) for n, p in adapted.named_parameters() if "lora_A" in n) == 36


def test_adalora_and_s2lora_start_from_the_same_statistics(model, batch):
    base = model(**batch).logits
    ada = initialize(
        copy.deepcopy(model), loader(), AdaLoraConfig(init_r=3, target_r=2, total_step=10, target_modules=["query"])
    )
    a = ada.base_model.model.bert.encoder.layer[0].attention.self.query.lora_A["default"]
    torch.testing.assert_close(a @ a.T, torch.eye(3), atol=1e-5, rtol=0)
    s2 = initialize(model, loader(), S2LoraConfig(r=4)).eval()
    assert torch.equal(s2(**batch).logits, base)
    ranks = {}
    for key, Q in s2.base_model.s2lora_Q["default"].items():
        torch.testing.assert_close(Q @ Q.T, torch.eye(len(Q)), atol=1e-5, rtol=0)
        ranks[key] = len(Q)
    cost = {"16x16": 32 + 8, "32x16": 48 + 2, "16x32": 48 + 2}
    assert sum(cost[k] * r for k, r in ranks.items()) <= 4 * sum(cost.values())  # equal parameters, other ranks
    assert sum(p.numel() for p in s2.parameters() if p.requires_grad) <= 4 * sum(cost.values())


def test_pooled_statistics_count_every_row_once():
    rows = [torch.randn(n, 5) * s for n, s in ((30, 1.0), (70, 3.0))]
    pooled = StreamingSVD(2).partial_fit(rows[0]).merge(StreamingSVD(2).partial_fit(rows[1]))
    together = StreamingSVD(2).partial_fit(torch.cat(rows))
    torch.testing.assert_close(pooled.components()[0], together.components()[0], rtol=1e-5, atol=1e-5)


def test_dropout_is_off_while_reading_and_the_mode_is_restored():
    model = bert()
    model.config.hidden_dropout_prob = 0.5
    model.bert.embeddings.dropout.p = 0.5
    model.train()
    names = ["bert.encoder.layer.0.attention.self.query"]
    a, b = (
        activation_spectra(model, loader(), EvaConfig(r=2), layers=names).stream(names[0]).components(2)[0]
        for _ in "ab"
    )
    torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert model.training


def test_bad_input_is_named(model):
    with pytest.raises(ValueError, match="dataloader is empty"):
        activation_spectra(model, [], EvaConfig(r=2))
    wide = AdaLoraConfig(init_r=32, target_r=2, total_step=10, target_modules=["query"])
    with pytest.raises(ValueError, match=r"init_r=32 is more than the 16 inputs"):
        initialize(model, loader(), wide)
    short = {"input_ids": torch.ones(1, 2, dtype=torch.long), "attention_mask": torch.ones(1, 2, dtype=torch.long)}
    with pytest.raises(ValueError, match=r"saw 2 rows; 8 components need at least 8"):
        activation_spectra(model, [short], EvaConfig(r=4))
    broken = bert()
    with torch.no_grad():
        broken.bert.encoder.layer[0].intermediate.dense.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"layer bert\.encoder\.layer\.0\.output\.dense have NaN"):
        activation_spectra(broken, loader(), EvaConfig(r=2))
    with pytest.raises(ValueError, match="meta device"):
        activation_spectra(bert().to("meta"), loader(), EvaConfig(r=2))
    with pytest.raises(ValueError, match=r"rho=0\.5"):
        EvaConfig(rho=0.5)
    with pytest.raises(ValueError, match="LoraConfig"):
        initialize(model, loader(), LoraConfig(target_modules=["query"]))


def test_a_model_already_wrapped_by_get_peft_model_is_initialised_too(batch):
    config = EvaConfig(r=3, target_modules=ENCODER, task_type="SEQ_CLS")
    wrapped = get_peft_model(bert(), config)
    adapted = initialize(wrapped, loader())
    direct = initialize(bert(), loader(), EvaConfig(r=3, target_modules=ENCODER, task_type="SEQ_CLS"))
    for (n, a), (_, b) in zip(adapted.named_parameters(), direct.named_parameters(), strict=True):
        if "lora_A" in n:
            assert torch.equal(a, b), n


def test_least_variance_and_random_directions_are_what_they_say(model):
    names = ["bert.encoder.layer.0.attention.self.query"]
    spectra = activation_spectra(model, loader(), EvaConfig(r=2, tau=1.0), layers=names)
    energy = {}
    for directions in ("top", "bottom", "random"):
        config = EvaConfig(r=2, rho=1.0, directions=directions, target_modules=names)
        A = (
            initialize(bert(), None, config, spectra=spectra)
            .base_model.model.get_submodule(names[0])
            .lora_A["default"]
            .weight
        )
        energy[directions] = spectra.stream(names[0]).captured(torch.linalg.qr(A.detach().double().T).Q.T)
    assert energy["bottom"] < energy["random"] < energy["top"]


def ranks_of(adapted):
    return {n.split(".lora_A")[0]: len(p) for n, p in adapted.named_parameters() if "lora_A" in n}


@pytest.mark.parametrize(
    "options",
    [
        {"exclude_modules": ["key", "query"]},
        {"exclude_modules": r".*layer\.0.*"},
        {"layers_to_transform": [1]},
        {"layers_to_transform": 0, "layers_pattern": "layer"},
        {"target_modules": "all-linear", "exclude_modules": ["dense"], "task_type": "SEQ_CLS"},
    ],
)
def test_ranks_are_dealt_only_to_layers_that_the_options_leave(options):
    adapted = initialize(bert(), loader(), EvaConfig(r=2, **options))
    plain = {"target_modules": r".*\.layer\..*(query|key|value|dense)"} | options
    if "layers_to_transform" in options:
        plain["target_modules"] = ["query", "key", "value", "dense"]
    expected = ranks_of(get_peft_model(bert(), LoraConfig(r=2, **plain)))
    assert sum(ranks_of(adapted).values()) == 2 * len(expected)
    assert ranks_of(adapted).keys() <= expected.keys()


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"init_lora_weights": "olora"}, "init_lora_weights='olora'"),
        ({"init_lora_weights": "gaussian"}, "init_lora_weights"),
        ({"init_lora_weights": False}, "init_lora_weights=False"),
        ({"init_lora_weights": "mica"}, "init_lora_weights"),
        ({"rank_pattern": {"query": 2}}, "rank_pattern"),
        ({"alpha_pattern": {"query": 2}}, "alpha_pattern"),
        ({"loftq_config": {"loftq_bits": 4}, "init_lora_weights": "loftq"}, "init_lora_weights='loftq'"),
        ({"layer_replication": [(0, 1), (0, 2)]}, "layer_replication"),
        ({"target_parameters": ["w"]}, "target_parameters"),
        ({"use_qalora": True}, "use_qalora"),
        ({"kasa_config": {}}, "kasa_config"),
        ({"use_bdlora": {"target_modules_bd_a": ["query"]}}, "use_bdlora"),
        ({"arrow_config": {}}, "arrow_config"),
        ({"monteclora_config": {}}, "monteclora_config"),
        ({"corda_config": {}}, "corda_config"),
        ({"eva_config": {}}, "eva_config"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_options_that_contradict_the_start_are_refused_by_name(options, name):
    with pytest.raises(ValueError, match=name):
        EvaConfig(**options)


def test_every_option_of_lora_is_either_kept_or_refused():
    """A later PEFT's options appear here: each must be looked at."""
    kept = {
        "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
        "inference_mode", "r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out",
        "bias", "use_rslora", "modules_to_save", "init_lora_weights", "layers_to_transform", "layers_pattern",
        "megatron_core", "trainable_token_indices", "use_dora", "velora_config", "alora_invocation_tokens",
        "qalora_group_size", "runtime_config", "lora_bias", "ensure_weight_tying",
    }  # fmt: skip
    assert {f.name for f in dataclasses.fields(LoraConfig)} == kept | set(CONTRADICTED)


@pytest.mark.parametrize(
    "options", [{"use_dora": True}, {"lora_bias": True}, {"use_rslora": True}, {"velora_config": {}}]
)
def test_variants_that_are_kept_start_at_the_base_model_in_the_leading_directions(options, batch):
    base = bert()(**batch).logits
    config = EvaConfig(r=2, target_modules=["query", "dense"], exclude_modules=["pooler.dense"], **options)
    adapted = initialize(bert(), loader(), config).eval()
    torch.testing.assert_close(adapted(**batch).logits, base, atol=1e-6, rtol=1e-5)
    for name, p in adapted.named_parameters():
        if "lora_A" in name:
            torch.testing.assert_close(p @ p.T, torch.eye(len(p)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("use_rslora", [False, True])
def test_the_scale_is_the_same_for_all_ranks(use_rslora):
    config = EvaConfig(r=5, lora_alpha=6, target_modules=["q", "o"], use_rslora=use_rslora)
    adapted = initialize(Linear(), [{"x": b} for b in known_rows()[0].split(500)], config)
    assert len(set(ranks_of(adapted).values())) > 1
    for module in adapted.modules():
        if isinstance(module, LoraLayer):
            assert module.scaling["default"] == pytest.approx(6 / 5**0.5 if use_rslora else 6 / 5)


def test_a_layer_with_few_inputs_offers_as_many_directions_as_it_has():
    X, _ = known_rows()
    model = Linear()
    adapted = initialize(model, [{"x": b} for b in X.split(500)], EvaConfig(r=8, target_modules=["q", "o"]))
    ranks = ranks_of(adapted)
    assert ranks["base_model.model.layers.0.o"] <= 6
    assert sum(ranks.values()) == 16


def test_targets_that_are_not_linear_are_refused_by_name():
    with pytest.raises(ValueError, match=r"word_embeddings is a Embedding"):
        initialize(bert(), loader(), EvaConfig(r=2, target_modules=["word_embeddings", "query"]))


def test_spectra_that_lack_a_target_are_refused_by_name(model):
    spectra = activation_spectra(model, loader(), EvaConfig(r=2), layers=["bert.encoder.layer.0.attention.self.query"])
    with pytest.raises(ValueError, match=r"lack the targeted layer bert\.encoder\.layer\.1\.attention\.self\.query"):
        initialize(model, None, EvaConfig(r=2, target_modules=["query"]), spectra=spectra)


def test_an_adapter_of_another_name_keeps_it():
    wrapped = get_peft_model(bert(), EvaConfig(r=2, target_modules=["query"]), adapter_name="mine")
    assert list(initialize(wrapped, loader()).peft_config) == ["mine"]
    assert list(initialize(bert(), loader(), S2LoraConfig(r=2), adapter_name="other").peft_config) == ["other"]


def test_pair_ranks_that_are_given_are_kept():
    adapted = initialize(bert(), loader(), S2LoraConfig(r=3, pair_ranks={"16x16": 5}))
    assert {k: len(Q) for k, Q in adapted.base_model.s2lora_Q["default"].items()} == {
        "16x16": 5,
        "32x16": 3,
        "16x32": 3,
    }


def test_starts_of_other_methods_that_contradict_eva_are_refused():
    for options in ({"init_lora_weights": False}, {"rank_pattern": {"a": [True]}}):
        config = AdaLoraConfig(init_r=2, target_r=2, total_step=10, target_modules=["query"], **options)
        with pytest.raises(ValueError, match="leave init_lora_weights and rank_pattern out"):
            initialize(bert(), loader(), config)
    with pytest.raises(ValueError, match="share='max'"):
        initialize(bert(), loader(), S2LoraConfig(r=2, share="max"))


def test_a_second_adapters_names_are_read_through_the_first(batch):
    adapted = get_peft_model(bert(), LoraConfig(r=2, target_modules=["query"]))
    spectra = activation_spectra(adapted.base_model.model, loader(), EvaConfig(r=2))
    assert list(spectra.leader) == list(activation_spectra(bert(), loader(), EvaConfig(r=2)).leader)


@pytest.mark.parametrize(("shuffle", "batches"), [(False, 3), (True, 3), (False, 99)])
def test_a_loader_that_is_read_in_part_and_in_file_order_is_named(shuffle, batches):
    rows = [{k: v[0] for k, v in b.items()} for b in loader(24, rows=1)]
    given = DataLoader(rows, batch_size=4, shuffle=shuffle)
    config = EvaConfig(r=2, tau=1.0, max_batches=batches)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        activation_spectra(bert(), given, config)
    said = [str(w.message) for w in seen if "in the order of the data" in str(w.message)]
    assert said == [] if shuffle or batches == 99 else "first 3 of 6 batches" in said[0]
