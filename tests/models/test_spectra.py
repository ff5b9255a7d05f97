import torch

from rankwise.models import load
from rankwise.models.spectra import as_rows, layer_spectra


def test_spectra_of_a_real_model_agree_with_lapack_and_lie_in_range():
    records = layer_spectra("minilm", target="query")
    assert len(records) == 6
    weight = load("minilm", task="base").encoder.layer[0].attention.self.query.weight
    S = torch.linalg.svdvals(weight.double())
    torch.testing.assert_close(torch.tensor(records[0]["spectrum"]).double(), S, atol=1e-4, rtol=1e-4)
    for r in records:
        assert 1 <= r["stable_rank"] <= r["effective_rank"] <= 384
        assert 1 <= r["rank_90"] <= 384
        assert 0 <= r["outlier_ratio"] < 0.05
    assert len(as_rows(records)) == 6
