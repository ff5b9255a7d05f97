import numpy as np

from rankwise.dynamics import PhaseTransition
from rankwise.report.plots.dynamics import MOST, cluster_spectra, phase_maps


def test_directions_inside_a_subspace_are_dark():
    figure = cluster_spectra([np.array([4.0, 1.0, 0.1]), np.array([2.0, 0.0])], [2, 1], [30, 20])
    axis = figure.axes[0]
    assert axis.get_title() == "cluster 0: d = 2, 30 rows"
    colours = [bar.get_facecolor() for bar in axis.patches]
    assert colours[0] == colours[1] != colours[2]


def test_the_largest_clusters_are_drawn():
    n = MOST + 3
    figure = cluster_spectra([np.ones(2)] * n, [1] * n, list(range(n)))
    assert sorted(a.get_title() for a in figure.axes if a.get_visible())[0].startswith("cluster 10")


def test_a_cluster_without_rows_is_drawn_empty():
    assert len(cluster_spectra([np.zeros(0), np.ones(2)], [1, 1], [0, 5]).axes) == 2


def test_each_estimator_has_a_map():
    errors = np.ones((2, 3, 1))
    never = PhaseTransition(name="one", dims=[1, 2], samples=[1, 2, 3], errors=errors)
    always = PhaseTransition(name="other", dims=[1, 2], samples=[1, 2, 3], errors=0 * errors)
    titles = [a.get_title() for a in phase_maps([never, always]).axes]
    assert titles[0] == "one: never"
    assert titles[1].startswith("other: N = ")
