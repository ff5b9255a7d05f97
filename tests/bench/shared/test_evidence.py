import json
import math

import numpy as np
import pytest

from rankwise.bench.shared.evidence import Claim, Evidence, Paired, greater, paired, plus_minus, verdicts, within
from rankwise.bench.tuning.eva import _steps_to
from rankwise.bench.tuning.s2lora import _spearman


def test_sign_flip_p_value_counts_all_flips():
    assert paired([2.0, 3.0, 4.0], [1.0, 1.0, 1.0]).p_value == pytest.approx(
        1 / 8
    )  # only the unflipped one is as large
    assert paired([1.0, 1.0], [1.0, 1.0]).p_value == 1.0
    d = paired([1.0, 3.0], [0.0, 0.0])
    assert (d.mean, d.error) == (2.0, pytest.approx(1.0))


def test_a_difference_is_clear_where_it_is_above_zero_and_seldom_by_chance():
    five, lost = paired([2.0] * 5, [1.0] * 5), paired([2.0, 2, 2, 2, math.nan], [1.0] * 5)
    assert five.p_value == pytest.approx(1 / 32)
    assert five.clear()
    assert five.clear(1 / 32)
    assert not five.clear(0.03)
    assert not paired([2.0] * 4, [1.0] * 4).clear()  # p of 1/16
    assert not paired([1.0] * 5, [2.0] * 5).clear()
    assert not lost.clear()


def test_a_paired_difference_is_shown_in_points_with_its_error_and_p():
    assert str(Paired(mean=0.0123, error=0.0045, p_value=0.03125)) == "+1.23±0.45 points, p=0.031, sees 1.26"
    assert str(Paired(mean=0.0123, error=math.nan, p_value=0.5)) == "+1.23±nan points, p=0.5"
    assert str(paired([2.0, 4.0], [1.0, 1.0], unit="nats", scale=1)) == "+2.00±1.00 nats, p=0.25, sees 2.80"


def test_where_a_seed_diverged_no_difference_has_a_number_and_no_claim_holds():
    d = paired([2.0, 2, 2, 2, math.nan], [1.0] * 5)
    assert np.isnan([d.mean, d.error, d.p_value, d.smallest]).all()
    assert str(d) == "no difference: a run diverged"
    assert not greater("more", [2.0, 2, 2, 2, math.nan], [1.0] * 5).held


def test_a_mean_is_of_the_seeds_that_have_a_number_and_says_how_many_diverged():
    assert plus_minus([0.5, math.nan, 0.7]) == "60.0±14.1 (1 of 3 diverged)"
    assert plus_minus([math.inf, 0.5], 1, 2) == "0.50±0.00 (1 of 2 diverged)"
    assert plus_minus([math.nan] * 2) == "2 of 2 diverged"


def test_more_is_claimed_of_five_seeds_that_agree_and_not_of_four():
    assert greater("more", [2.0] * 5, [1.0] * 5).held
    assert not greater("more", [2.0] * 4, [1.0] * 4).held
    assert not greater("more", [2.0, 2, 2, 2, 0.9], [1.0] * 5).held
    assert not greater("more", [1.0] * 5, [2.0] * 5).held
    claim = greater("more", [2.0] * 5, [1.0] * 5, control=True, paper="9", unit="nats", scale=1)
    assert (claim.text, claim.control, claim.paper) == ("more (p ≤ 0.05)", True, "9")
    assert claim.found.startswith("+1.00±0.00 nats")


def test_more_than_a_least_difference_is_asked_of_the_p_value_too():
    assert greater("more", [2.0, 2, 2, 2, 2.2], [1.0] * 5, least=0.9).held
    assert not greater("more", [2.0, 2, 2, 2, 1.8], [1.0] * 5, least=0.9).held  # one of five is below: p = 1 / 16
    assert greater("more", [2.0, 2, 2, 2, 1.8], [1.0] * 5).held


def test_within_a_margin_is_judged_by_the_mean_and_not_of_no_number():
    claim = within("as good", [1.0, 0.9], [1.0, 1.0], most=0.06)
    assert (claim.text, claim.held) == ("as good (in the mean)", True)
    assert not within("as good", [1.0, 0.9], [1.0, 1.0], most=0.04).held
    assert not within("as good", [1.0, math.nan], [1.0, 1.0], most=9).held


def test_what_can_be_seen_is_found_in_four_of_five_repetitions():
    rng, true = np.random.default_rng(0), 1.0
    n = round((2.8 / true) ** 2 * 100)  # pairs of spread 10 whose mean has a standard error of true / 2.8
    means = true + 10 / math.sqrt(n) * rng.normal(size=20_000)
    found = np.mean(np.abs(means) > 1.96 * 10 / math.sqrt(n))
    assert Paired(mean=0.0, error=10 / math.sqrt(n), p_value=1.0).smallest == pytest.approx(true)
    assert found == pytest.approx(0.8, abs=0.01)


def test_beside_a_control_that_did_not_hold_no_claim_has_a_verdict():
    claims = [Claim(text="a", held=True, found=""), Claim(text="b", held=False, found="")]
    assert verdicts(claims) == ["held", "not held"]
    fine, failed = (Claim(text="c", held=held, found="", control=True) for held in (True, False))
    assert verdicts([*claims, fine]) == ["held", "not held", "held"]
    assert verdicts([*claims, fine, failed]) == ["cannot tell", "cannot tell", "held", "not held"]


def test_rank_correlation_agrees_with_scipy():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    a, b = rng.normal(size=20), rng.integers(0, 4, size=20)
    assert _spearman(a, b) == pytest.approx(spearmanr(a, b)[0])


def test_steps_to_a_loss_interpolate_and_double_where_it_is_never_reached():
    assert _steps_to(np.array([0.6, 0.4]), [10, 20], 0.5) == pytest.approx(15)
    assert _steps_to(np.array([0.6, 0.55]), [10, 20], 0.5) == 40


def test_evidence_is_written_as_json_with_its_verdicts(tmp_path):
    claim = Claim(text="a", held=np.bool_(False), found="b", control=True)
    Evidence(recipe="x", title="t", command="c", setting="s", header=["h"], rows=[["1"]], claims=[claim]).write(
        tmp_path / "x.json"
    )
    assert json.loads((tmp_path / "x.json").read_text())["claims"] == [
        {"text": "a", "held": False, "found": "b", "control": True, "paper": "", "verdict": "not held"}
    ]
    assert plus_minus([0.5, 0.7]) == "60.0±14.1"
