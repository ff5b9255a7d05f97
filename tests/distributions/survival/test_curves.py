import numpy as np
import pytest
from lifelines.datasets import load_rossi
from scipy.integrate import quad
from scipy.special import beta

from rankwise.distributions.survival import power_weibull as pgw
from rankwise.distributions.survival.curves import mean_time
from rankwise.distributions.survival.regression import PGWRegressionFitter


def mean(phi=1.0, lambda_=1.0, gamma=1.0, kappa=0.0, after=0.0) -> float:
    given = {"phi": phi, "lambda_": lambda_, "gamma": gamma, "kappa": kappa}
    return float(mean_time({n: np.array([v]) for n, v in given.items()}, np.array([after]))[0])


@pytest.mark.parametrize("gamma", [1.001, 1.01, 1.5, 3.0, 80.0])
def test_mean_of_a_log_logistic_is_its_closed_form(gamma):
    assert mean(phi=0.02, gamma=gamma) == pytest.approx(50 * np.pi / gamma / np.sin(np.pi / gamma), rel=1e-10)


@pytest.mark.parametrize(("lambda_", "gamma"), [(2.0, 0.7), (0.5, 2.5), (1.3, 1.0)])
def test_mean_of_a_burr_is_its_closed_form(lambda_, gamma):
    assert mean(lambda_=lambda_, gamma=gamma) == pytest.approx(
        lambda_ * beta(lambda_ - 1 / gamma, 1 + 1 / gamma), rel=1e-10
    )


@pytest.mark.parametrize(("gamma", "kappa"), [(1.2, 1e-9), (0.95, 1e-2), (0.9, 1e-3), (0.97, 3e-4), (0.6, 0.05)])
def test_mean_close_to_kappa_zero_is_the_integral_of_the_survival_function(gamma, kappa):
    def S(u):  # in log t: the tail reaches far
        return np.exp(u - pgw.cumulative_hazard(np.exp(u), gamma=gamma, kappa=kappa))

    expected = sum(quad(S, a, a + 5, epsabs=0, epsrel=1e-12, limit=200)[0] for a in range(-60, 700, 5))
    assert mean(gamma=gamma, kappa=kappa) == pytest.approx(expected, rel=1e-8)


def test_mean_is_infinite_exactly_where_it_does_not_exist():
    assert mean(gamma=1.0) == np.inf
    assert mean(gamma=0.5, lambda_=2.0) == np.inf
    assert mean(kappa=-1e-6) == np.inf
    assert np.isfinite(mean(gamma=0.5, lambda_=2.001))


def test_mean_after_a_time_is_that_of_the_remaining_life():
    S = quad(lambda t: np.exp(-pgw.cumulative_hazard(t, gamma=3.0, kappa=0.0)), 2.0, np.inf)[0]
    expected = S / np.exp(-pgw.cumulative_hazard(2.0, gamma=3.0, kappa=0.0))
    assert mean(gamma=3.0, after=2.0) == pytest.approx(float(expected), rel=1e-6)


def test_expectation_of_a_log_logistic_regression_is_finite_and_its_closed_form():
    rossi = load_rossi()
    f = PGWRegressionFitter("log-logistic", shape_covariates=False).fit(rossi, "week", "arrest")
    found = f.predict_expectation(rossi.head(3))
    gamma = np.exp(f.params_["gamma_", "Intercept"])
    median = f.predict_median(rossi.head(3))  # 1 / φ
    np.testing.assert_allclose(found, median * np.pi / gamma / np.sin(np.pi / gamma), rtol=1e-9)
    assert found.round().tolist() == [197, 101, 117]
