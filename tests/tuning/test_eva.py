import copy

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
from torch import nn

from rankwise.spectral import StreamingSVD, principal_angles
from rankwise.tuning import ActivationSpectra, EvaConfig, S2LoraConfig, activation_spectra, initialize
from rankwise.tuning.eva import redistribute
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
    with pytest.raises(ValueError, match=r"64 components .* more than the 16 inputs"):
        activation_spectra(model, loader(), EvaConfig(r=32))
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
