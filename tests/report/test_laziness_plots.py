import pytest

from rankwise.report.plots.dynamics import along_training

ROWS = [{"step": s, "kernel_alignment": k, "representation_alignment": 1.0, "sign_similarity": 0.5}
        for s, k in ((0, 1.0), (10, 0.4), (10, 0.6), (20, float("nan")), (20, 0.3))]  # fmt: skip


def test_curves_are_means_over_records_of_a_step_and_undefined_ones_are_left_out():
    figure = along_training({"rank 1": ROWS, "rank 9": ROWS[:1]}, measure="kernel_alignment")
    (axis,) = figure.axes
    line = axis.get_lines()[0]
    assert line.get_xdata().tolist() == [0, 10, 20]
    assert line.get_ydata().tolist() == pytest.approx([1.0, 0.5, 0.3])
    assert [t.get_text() for t in axis.get_legend().get_texts()] == ["rank 1", "rank 9"]


def test_by_default_each_of_three_alignments_has_a_panel():
    figure = along_training({"run": ROWS})
    assert [a.get_ylabel() for a in figure.axes] == ["kernel alignment", "representation alignment", "equal signs"]
    assert all(a.get_legend() is None for a in figure.axes)
