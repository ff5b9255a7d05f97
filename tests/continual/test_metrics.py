"""Transfer, Average, Last and forgetting, by hand."""

import math

import pytest

from rankwise.continual import stream_scores

TABLE = [
    [0.9, 0.0, 0.4, 0.5],  # a true zero: nothing of domain 1 is known before it is taught
    [0.6, 0.8, 0.2, 0.5],
    [0.5, 0.7, 1.0, 0.3],
]


def test_a_table_by_hand_with_a_true_zero_and_a_domain_that_nothing_teaches():
    found = stream_scores(TABLE)
    assert found.transfer == pytest.approx((0.0 + (0.4 + 0.2) / 2 + (0.5 + 0.5 + 0.3) / 3) / 3)
    assert found.average == pytest.approx((0.9 + 0.0 + 0.4 + 0.5 + 0.6 + 0.8 + 0.2 + 0.5 + 0.5 + 0.7 + 1.0 + 0.3) / 12)
    assert found.last == pytest.approx((0.5 + 0.7 + 1.0 + 0.3) / 4)
    assert found.forgetting == pytest.approx(((0.9 - 0.5) + (0.8 - 0.7)) / 2)


def test_masking_by_value_would_drop_the_zero():
    square = [row[:3] for row in TABLE]
    assert stream_scores(square).transfer == pytest.approx((0.0 + 0.3) / 2)  # not 0.3 / 1


def test_what_rises_after_it_was_learned_is_negative_forgetting():
    assert stream_scores([[0.5, 0.1], [0.75, 0.9]]).forgetting == pytest.approx(-0.25)


def test_one_task_has_nothing_to_forget_and_one_domain_no_transfer():
    one = stream_scores([[0.5]])
    assert math.isnan(one.transfer)
    assert math.isnan(one.forgetting)
    assert (one.average, one.last) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("table", "match"),
    [
        ([0.5, 0.2], "shape"),
        ([], "shape"),
        ([[0.1], [0.2]], "a domain for every task"),
        ([[0.1, float("nan")], [0.2, 0.3]], "not finite"),
    ],
)
def test_what_is_no_table_is_refused(table, match):
    with pytest.raises(ValueError, match=match):
        stream_scores(table)
