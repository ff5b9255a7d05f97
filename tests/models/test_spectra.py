import numpy as np
import pytest

from rankwise.models import load
from rankwise.models.spectra import as_rows, block_outliers, layer_spectra


def test_spectra_of_a_real_model_are_lapacks_and_its_numbers_those_of_the_textbook():
    records = layer_spectra("minilm", target="query")
    model = load("minilm", task="base")
    assert len(records) == 6
    for i, r in enumerate(records):
        W = model.encoder.layer[i].attention.self.query.weight.detach().double().numpy()
        S = np.linalg.svd(W, compute_uv=False)
        assert r["shape"] == [384, 384]
        np.testing.assert_allclose(r["spectrum"], S, atol=1e-4)
        p = S / S.sum()
        assert r["effective_rank"] == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-4)
        assert r["effective_rank_share"] == pytest.approx(r["effective_rank"] / 384)
        assert r["stable_rank"] == pytest.approx((S**2).sum() / S[0] ** 2, rel=1e-4)
        assert (S[: r["rank_90"] - 1] ** 2).sum() < 0.9 * (S**2).sum() <= (S[: r["rank_90"]] ** 2).sum()
        tail = np.sort(S**2)[::-1]
        assert r["hill_alpha"] == pytest.approx(1 + 192 / np.log(tail[:192] / tail[192]).sum(), rel=1e-4)
        assert r["outlier_ratio"] == pytest.approx((abs(W) > 5 * abs(W).mean()).mean())


def test_rows_show_layers_without_their_common_beginning():
    record = {"shape": [4, 3], "effective_rank": 2.6, "stable_rank": 1.25, "rank_90": 2, "hill_alpha": 3.456,
              "outlier_ratio": 0.0123}  # fmt: skip
    records = [{"layer": f"model.layers.{i}.q", **record} for i in (0, 1)]
    assert as_rows(records)[1] == ["1.q", "4x3", "3", "1.2", "2", "3.46", "1.23%"]
    assert as_rows(records, full=True)[1][0] == "model.layers.1.q"
    assert as_rows(records[:1])[0][0] == "q"


def test_blocks_have_the_outliers_and_the_mean_tail_of_their_matrices():
    records = block_outliers("minilm", threshold=4.0)
    layers = load("minilm", task="base").encoder.layer
    shares = []
    for r, layer in zip(records, layers, strict=True):
        matrices = [p.detach().double().numpy() for n, p in layer.named_parameters() if p.ndim == 2]
        magnitudes = np.concatenate([abs(W).ravel() for W in matrices])
        shares.append(100 * (magnitudes > 4 * magnitudes.mean()).mean())
        assert r["outliers"] == pytest.approx(shares[-1], rel=1e-3)
        tails = []
        for W in matrices:
            x = np.linalg.svd(W, compute_uv=False) ** 2
            k = len(x) // 2
            tails.append(1 + k / np.log(x[:k] / x[k]).sum())
        assert r["hill_alpha"] == pytest.approx(np.mean(tails), rel=1e-3)
    assert [r["block"] for r in records] == list(range(6))
    np.testing.assert_allclose([r["probability"] for r in records], np.array(shares) / sum(shares), rtol=1e-3)
