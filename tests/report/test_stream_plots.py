"""What is drawn of a stream of batches."""

import numpy as np
import pytest

from rankwise.report.plots.continual import along_streams

KINDS = ["noise", "fog"]
ERRORS = {"source": [0.4, 0.2, 0.4, 0.2], "ViDA": [0.4, 0.2, 0.3, 0.1]}


def test_each_methods_errors_stand_in_the_order_seen_with_the_kinds_below():
    (axis,) = along_streams(ERRORS, KINDS).axes
    assert [t.get_text() for t in axis.get_legend().get_texts()] == list(ERRORS)
    for line, values in zip(axis.lines, ERRORS.values(), strict=False):
        assert line.get_ydata()[:-1] == pytest.approx(100 * np.array(values))
    assert [t.get_text() for t in axis.get_xticklabels()] == KINDS * 2


def test_uncertainty_is_spread_over_the_same_stream_with_its_threshold():
    above, below = along_streams(ERRORS, KINDS, uncertainty=np.linspace(0, 1, 8), theta=0.3).axes
    curve = next(line for line in above.lines if len(line.get_ydata()) == 8)
    assert curve.get_xdata() == pytest.approx(np.arange(8) / 2 + 0.25)
    assert any(list(line.get_ydata()) == [0.3, 0.3] for line in above.lines)
    assert below.get_ylabel() == "error (%)"
