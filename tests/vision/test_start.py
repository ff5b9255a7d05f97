"""The head's start: the ridge of least error on what is left out, and of all products of a rank the nearest."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rankwise.vision import Distiller, Views
from rankwise.vision.distilled.projector import Projector, adapted, based, numbers
from rankwise.vision.distilled.start import STRENGTHS, least_squares
from rankwise.vision.hello import rate
from seeing import PLAIN, Words, coloured

TEXTS = ["a red photo", "a green photo", "the blue one"]


def cone(count=60, d=8, seed=0):
    """Unit features whose angles to each other are small."""
    g = torch.Generator().manual_seed(seed)
    return F.normalize(torch.ones(d) + 0.3 * torch.randn(count, d, generator=g), dim=1)


def drawn(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_linear_law_in_a_narrow_cone_is_found_though_its_rows_are_long():
    x, rows, law = cone(), drawn(5, 8), 400 * drawn(5, 8, seed=2)
    assert (x @ x.T).mean() > 0.9
    down, up = least_squares(x, x @ law.T, rows, rank=5)
    torch.testing.assert_close(x @ (rows + up @ down).T, x @ law.T, atol=0.5, rtol=1e-2)


def test_its_strength_is_the_one_of_least_error_on_pictures_left_out_one_at_a_time():
    x, rows = cone(count=20).double(), drawn(3, 8).double()
    taught = x @ drawn(3, 8, seed=2).double().T + 0.5 * drawn(20, 3, seed=3).double()
    apart = taught - x @ rows.T

    def ridge(x, apart, alpha):
        return torch.linalg.solve(x.T @ x + alpha * torch.eye(8, dtype=torch.float64), x.T @ apart).T

    def left_out(alpha):
        rest = [[j for j in range(20) if j != i] for i in range(20)]
        return sum(float((x[i] @ ridge(x[r], apart[r], alpha).T - apart[i]).square().sum()) for i, r in enumerate(rest))

    best = min(STRENGTHS, key=left_out)
    assert STRENGTHS[0] < best < STRENGTHS[-1]
    down, up = least_squares(x.float(), taught.float(), rows.float(), rank=3)
    torch.testing.assert_close(up @ down, ridge(x, apart, best).float(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_of_products_of_the_rank_it_is_the_one_that_changes_answers_least(rank):
    x, rows, taught = cone(), torch.zeros(5, 8), drawn(60, 5)
    whole, few = (up @ down for down, up in (least_squares(x, taught, rows, r) for r in (5, rank)))
    assert torch.linalg.matrix_rank(few, rtol=1e-4) == rank
    least = torch.linalg.svdvals(x @ whole.T)[rank:].square().sum().sqrt()  # Eckart and Young
    torch.testing.assert_close((x @ (whole - few).T).norm(), least, atol=1e-3, rtol=1e-3)
    _, up = least_squares(x, taught, rows, rank)
    torch.testing.assert_close(up.T @ up, torch.eye(rank), atol=1e-5, rtol=0)


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3)).eval()
    with torch.no_grad():
        net[2].weight.mul_(20)
    return net


def started(clip, teacher, **changes):
    """What is distilled by adapters that stay where they start."""
    options = {"rank": 2, "head_rank": 3, "ipc": 1, "tiles": 1, "epochs": 1, "crops": 1, "lr": 1e-12, "seeing": PLAIN}
    options |= {"views": Views(scale=(1, 1), flip=False, cutmix=0), "tokenizer": Words(), "teachers": [teacher]}
    return Distiller(clip, TEXTS, **options | changes).fit(coloured())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_distillers_labels_start_near_its_teachers_and_by_texts_at_the_bases_own(clip, teacher, precision):
    x = torch.from_numpy(coloured().store.array).permute(0, 3, 1, 2).float() / 255
    base = Projector(*based(clip, TEXTS, Words()), PLAIN)(x).detach()
    far = (base - teacher(x)).square().mean()
    fitted, texts = (started(clip, teacher, start=s, precision=precision).labels(x) for s in ("fitted", "texts"))
    assert (fitted - teacher(x)).square().mean() < 0.2 * far
    torch.testing.assert_close(texts, base, atol=1e-4, rtol=1e-4)


def test_only_the_heads_adapter_starts_elsewhere_and_the_start_is_told(clip, teacher):
    made = started(clip, teacher)
    fresh = numbers(adapted(Projector(*based(clip, TEXTS, Words()), PLAIN), rank=2, head_rank=3))
    for name, p in numbers(made.projector).items():
        same = torch.allclose(p, fresh[name].half().float())
        assert same == ("head." not in name)
    assert made.told["start"] == "fitted"


def test_without_an_adapter_of_the_head_nothing_is_fitted(clip, teacher):
    made = started(clip, teacher, head_rank=0)
    assert not any("head." in name for name in numbers(made.projector))


def test_it_is_said_how_often_labels_name_what_the_teachers_name(clip, teacher):
    x, y = torch.from_numpy(coloured().store.array).permute(0, 3, 1, 2).float() / 255, torch.arange(24) % 3
    with torch.no_grad():
        teacher[2].weight.copy_(20 * torch.eye(3))
        teacher[2].bias.copy_(torch.tensor([-1.0, 0.0, -9.0]))  # never the third
    made = started(clip, teacher, lr=0.02)
    said, taught = made.labels(x).argmax(1), teacher(x).argmax(1)
    same, right, best = (float((a == b).float().mean()) for a, b in ((said, taught), (said, y), (taught, y)))
    assert len({same, right, best}) == 3
    assert f"of 24 of the pictures that were distilled, labels name {same:.0%} as the" in made.notes[-1]
    assert f"{right:.0%} rightly (teachers {best:.0%})" in made.notes[-1]


def test_the_rate_rises_over_a_tenth_of_the_steps_and_ends_near_nothing():
    shares = [rate(step, 50) for step in range(50)]
    assert shares[:3] == pytest.approx([0.2, 0.4, 0.6])
    assert max(shares) == shares[4] > 0.97
    assert shares[5:] == sorted(shares[5:], reverse=True)
    assert shares[25] == pytest.approx(0.5)
    assert shares[-1] < 0.01
    assert rate(0, 1) == 1.0
