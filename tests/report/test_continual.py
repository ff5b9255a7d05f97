"""Pictures and table of a stream of tasks."""

import numpy as np
import pytest

from rankwise.report.plots.continual import accuracy_matrices, drifts

TABLE = [[0.5, 0.1], [0.9, 0.2], [0.7, 1.0]]


def texts(axis):
    return [t.get_text() for t in axis.texts]


def test_a_matrix_shows_every_accuracy_and_what_is_learned_already_is_bold():
    figure = accuracy_matrices({"one": TABLE, "two": TABLE}, ["a", "b"], first="nothing")
    axis = figure.axes[0]
    assert texts(axis) == ["50", "10", "90", "20", "70", "100"]
    assert [t.get_fontweight() for t in axis.texts] == ["normal", "normal", "bold", "normal", "bold", "bold"]
    assert [t.get_text() for t in axis.get_yticklabels()] == ["nothing", "a", "b"]
    assert [t.get_text() for t in axis.get_xticklabels()] == ["a", "b"]
    assert [a.get_title() for a in figure.axes] == ["one", "two"]
    assert np.array_equal(axis.images[0].get_array(), TABLE)


def test_rows_without_a_first_one_begin_with_the_first_task():
    axis = accuracy_matrices({"one": TABLE[1:]}, ["a", "b"]).axes[0]
    assert [t.get_fontweight() for t in axis.texts] == ["bold", "normal", "bold", "bold"]


@pytest.mark.parametrize("lines", [{"one": [0.1, 0.4]}, {"one": [0.1, 0.4], "two": [0.3, 0.2]}])
def test_drifts_are_lines_from_zero_with_a_legend_where_there_are_several(lines):
    axis = drifts(lines, ["a", "b"]).axes[0]
    assert [list(line.get_ydata()) for line in axis.lines] == list(lines.values())
    assert axis.get_ylim()[0] == 0
    assert (axis.get_legend() is not None) == (len(lines) > 1)
