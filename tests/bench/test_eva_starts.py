"""The verdicts of the recipe of starts, on numbers made up."""

import pytest

from rankwise.bench.shared.evidence import verdicts
from rankwise.bench.tuning.eva_starts import RATES, STARTS, Half

SEEDS, OTHERS = 6, 2
LOSS = {"EVA": 0.50, "another domain": 0.55, "least": 0.60, "random": 0.56, "Kaiming": 0.57}


def half(*, frozen=False, **changes):
    """Every start at its loss, worse away from a rate of 2e-3; seeds differ by the same for all."""
    loss = LOSS | {k.replace("_", " "): v for k, v in changes.items()}
    found = {}
    for start in STARTS:
        for rate in RATES:
            for seed in range(SEEDS + OTHERS):
                x = loss[start] + 0.01 * seed + abs(RATES.index(rate) - 2)
                found[start, frozen, rate, seed] = {"loss": [x, x], "validation": [x], "right": [1, 0]}
    return found, Half(found, frozen, SEEDS)


def test_what_the_paper_says_holds_every_claim():
    assert verdicts(half()[1].claims()) == ["held"] * 6


@pytest.mark.parametrize(("changes", "lost"), [
    ({"random": 0.45}, ["random orthonormal", "equal rates", "area"]),
    ({"Kaiming": 0.45}, ["Kaiming"]),
    ({"another_domain": 0.45}, ["another domain"]),
    ({"least": 0.45}, ["control"]),
    ({"random": 0.50}, ["random orthonormal", "equal rates", "area"]),
])  # fmt: skip
def test_each_claim_can_fail_alone(changes, lost):
    failed = [c.text for c in half(**changes)[1].claims() if not c.held]
    assert len(failed) == len(lost)
    assert all(word in text for word, text in zip(lost, failed, strict=True))


def test_rates_are_chosen_on_seeds_that_are_not_judged():
    found, _ = half()
    for seed in range(SEEDS + OTHERS):  # on those that are judged another rate is best
        found["EVA", False, RATES[0], seed]["loss"] = [9.0 if seed >= SEEDS else 0.0]
    chosen = Half(found, False, SEEDS)
    assert chosen.best["EVA"] == RATES[2]
    assert chosen.at_best("EVA", "loss") == pytest.approx([LOSS["EVA"] + 0.01 * s for s in range(SEEDS)])


def test_a_half_reads_its_own_runs_and_says_so():
    rows = half(frozen=True)[1].rows()
    assert {row[0] for row in rows} == {"frozen"}
    assert len(rows) == len(STARTS)
    assert rows[0][2:] == ["0.002", "0.5250±0.0187", "0.5250±0.0187", "50.0±0.0", "1.7250±0.0187"]
