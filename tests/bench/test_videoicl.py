"""The recipes of VideoICL: policies that are played on a record, and claims that each can fail."""

import numpy as np
import pytest

from rankwise.bench.prompting import moving_digits, videoicl
from rankwise.bench.prompting.videoicl import Played, area, chosen, played, stopped


def test_the_loop_stops_at_the_first_round_above_the_threshold_and_keeps_the_surest():
    sure = np.array([[0.2, 0.6, 0.9], [0.3, 0.1, 0.2], [0.95, 0.1, 0.99]])
    kept, calls = stopped(sure, 0.5)
    assert (kept.tolist(), calls.tolist()) == ([1, 0, 0], [2, 3, 1])
    kept, calls = stopped(sure, 0.9)  # above, not at
    assert (kept.tolist(), calls.tolist()) == ([2, 0, 0], [3, 3, 1])
    assert stopped(sure, 1.0)[0].tolist() == [2, 0, 2]


def record(right, sure, tokens=None):
    right = np.array(right, float)
    tokens = np.ones_like(right) if tokens is None else np.array(tokens, float)
    one = right[:, 0]
    return Played(
        right=right, sure=np.array(sure, float), tokens=tokens, shown=right, none=one, once=one, once_tokens=one
    )  # fmt: skip


def test_a_policy_pays_for_the_rounds_it_played():
    sure = np.array([[0.2, 0.6, 0.9, 0.1], [0.3, 0.1, 0.2, 0.1]])
    found = record([[0, 1, 0, 0], [1, 0, 0, 0]], sure, [[1, 2, 4, 8]] * 2)
    assert [x.tolist() for x in found.policy(0.5)] == [[1, 1], [2, 4], [3, 15]]
    assert [x.tolist() for x in found.policy(0.5, sure[::-1])] == [[0, 0], [4, 2], [15, 3]]


def test_the_threshold_is_the_most_accurate_and_of_equals_the_cheapest():
    # above .3 the second round is asked, which is right
    better = record([[0, 1]] * 2 + [[1, 0]], [[0.3, 0.8], [0.2, 0.9], [0.7, 0.1]])
    assert 0.3 <= chosen([better]) < 0.7
    equal = record([[1, 1]] * 2, [[0.3, 0.8], [0.2, 0.9]])
    assert chosen([equal]) < 0.2 + 1e-9  # one round each


def test_an_answer_is_right_when_it_begins_with_the_label_and_labels_shown_add_up():
    run = {
        "gold": ["vash", "glim"], "rounds": [["Vash.", "x"], ["torp", " glim"]], "sure": [[0.1, 0.2], [0.3, 0.4]],
        "tokens": [[5, 6], [7, 8]], "shown": [[["vash", "a"], ["b", "c"]], [["d", "e"], ["glim", "f"]]],
        "once": ["vash", "vash"], "once_tokens": [9, 9], "none": ["", "glimmer"],
    }  # fmt: skip
    found = played(run)
    assert found.right.tolist() == [[1, 0], [0, 1]]
    assert found.shown.tolist() == [[1, 1], [0, 1]]
    assert (found.once.tolist(), found.none.tolist()) == ([1, 0], [0, 1])


def test_area_under_the_curve_is_scikit_learns_and_one_half_without_two_classes():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    score, right = rng.integers(0, 5, 60).astype(float), rng.integers(0, 2, 60).astype(float)
    assert area(score, right) == pytest.approx(roc_auc_score(right, score))
    assert area(score, np.ones(60)) == area(score, np.zeros(60)) == 0.5


def claims(ours=0.6, first=0.4, once=0.6, dealt=0.4, auc=0.8, cost=0.5, seeds=5):
    shift = 0.001 * np.arange(seeds)
    values = [np.array([v] * seeds) + s for v, s in ((ours, shift), (first, 0), (once, 0), (dealt, 0), (auc, 0))]
    return [c.text for c in videoicl._claims(*values, cost) if not c.held]


def test_what_is_claimed_holds_and_three_seeds_are_too_few():
    assert claims() == []
    assert len(claims(seeds=3)) == 4


@pytest.mark.parametrize(("changes", "words"), [
    ({"first": 0.61}, ["first round"]), ({"cost": 0.7}, ["60% of the tokens"]), ({"once": 0.7}, ["60% of the tokens"]),
    ({"dealt": 0.61}, ["control: with confidences dealt"]), ({"auc": 0.5}, ["confidence tells"]),
    ({"once": 0.05}, ["control: examples tell"]),
])  # fmt: skip
def test_each_claim_can_fail_alone(changes, words):
    failed = claims(**changes)
    assert len(failed) == len(words)
    assert all(w in t for w, t in zip(words, failed, strict=True))


def test_a_row_leaves_out_what_a_policy_has_not():
    outcome = (np.array([1.0, 0, 1, 1]), np.array([1.0, 2, 2, 1]), np.array([10.0, 20, 20, 10]))
    assert videoicl._row("loop", [outcome, outcome]) == ["loop", "75.0±0.0", "-", "1.50", "15"]
    assert videoicl._row("none", [(outcome[0], None, None)], [outcome[0]])[2:] == ["75", "-", "-"]


def test_likeness_is_in_a_few_directions_the_same_for_all():
    found = videoicl.weak(["a film", "a long way home"])
    assert found.shape == (2, videoicl.DIRECTIONS)
    np.testing.assert_allclose(found[1], videoicl.weak(["a long way home"])[0], atol=1e-4)


def digits(gold, loop, first, sure):
    return {
        "gold": gold, "threshold": 0.5, "rounds": [[f, g] for f, g in zip(first, gold, strict=True)], "sure": sure,
        "said": {moving_digits.FIRST: first, moving_digits.TOGETHER: gold, moving_digits.LOOP: loop,
                 moving_digits.EVERY: gold},
        "videos": {n: [3 * k] * len(gold) for k, n in enumerate(
            (moving_digits.FIRST, moving_digits.TOGETHER, moving_digits.LOOP, moving_digits.EVERY), 1)},
    }  # fmt: skip


def test_digits_are_judged_by_what_was_said():
    run = digits(["5", "6"], ["5", "7"], ["7", "7"], [[0.9, 0.1], [0.9, 0.1]])
    found = moving_digits.scores_of(run, 0)
    assert found[moving_digits.FIRST] == (0.0, 3.0)
    assert found[moving_digits.LOOP] == (0.5, 9.0)
    assert found[moving_digits.EVERY] == (1.0, 12.0)
    right, videos = found[moving_digits.CHANCE]  # by chance some stop at the first round
    assert right in (0.0, 0.5, 1.0)
    assert videos in (3.0, 4.5, 6.0)


def test_claims_on_digits_fail_where_the_loop_does_not_help():
    sure = [[0.1, 0.9]] * 4
    good = {f"seed {s}": digits(["5"] * 4, ["5"] * 4, ["7"] * 4, sure) for s in range(5)}
    assert [c.held for c in moving_digits.judge(good, seeds=5).claims][:2] == [True, True]
    bad = {f"seed {s}": digits(["5"] * 4, ["7"] * 4, ["5"] * 4, sure) for s in range(5)}
    assert [c.held for c in moving_digits.judge(bad, seeds=5).claims] == [False, False, False]
