import numpy as np
import pandas as pd
import pytest
from sklearn.exceptions import NotFittedError
from sksurv.util import Surv

from rankwise.distributions import (
    HighDimKDE,
    LinearQuantile,
    PGWSurvivalAnalysis,
    QuantileAggregator,
    SingularGenerativeEstimator,
)
from rankwise.distributions.accepted import rows_and_response_of, rows_of
from rankwise.distributions.quantiles.bases import GaussianNetwork

RNG = np.random.default_rng(0)
N = 40
FRAME = pd.DataFrame(RNG.normal(size=(N, 3)), columns=["a", "b", "c"])
Y = FRAME["a"].to_numpy() + RNG.normal(size=N)
LATER = Surv.from_arrays(np.ones(N, dtype=bool), np.exp(Y))
EVERY = [
    (LinearQuantile(), "predict", (Y,)),
    (GaussianNetwork(epochs=1), "predict", (Y,)),
    (QuantileAggregator([LinearQuantile()], quantiles=(0.25, 0.75), cv=2, max_steps=0), "predict", (Y,)),
    (HighDimKDE(1.0), "score_samples", ()),
    (SingularGenerativeEstimator(1, hidden=()), "score_samples", ()),
    (PGWSurvivalAnalysis("weibull"), "predict", (LATER,)),
]


@pytest.mark.parametrize(("estimator", "method", "more"), EVERY, ids=lambda v: type(v).__name__)
def test_columns_that_are_no_numbers_are_named_at_fit_and_later(estimator, method, more):
    wrong = FRAME.assign(town="x", day=pd.Timestamp("2020-01-01"), kind=pd.Categorical(["k"] * N))
    with pytest.raises(ValueError, match="columns town, day, kind hold words or dates; numbers are needed: encode"):
        estimator.fit(wrong, *more)
    objects = FRAME.assign(a=FRAME["a"].astype(object), b=FRAME["b"] > 0)  # numbers all the same
    estimator.fit(objects, *more)
    assert np.isfinite(getattr(estimator, method)(objects.head(3))).all()
    with pytest.raises(ValueError, match="columns b hold words or dates"):
        getattr(estimator, method)(FRAME.assign(b="x"))


def test_times_that_are_dates_are_refused():
    y = np.array([(True, np.timedelta64(k + 1, "D")) for k in range(N)], dtype=[("event", bool), ("time", "m8[ns]")])
    with pytest.raises(ValueError, match="times: timedelta64"):
        PGWSurvivalAnalysis().fit(FRAME, y)
    with pytest.raises(NotFittedError):
        PGWSurvivalAnalysis().predict(FRAME)


def test_rows_and_responses_are_float64_whatever_was_given():
    for given in (np.int64, np.float32, np.uint8):
        rows, response = rows_and_response_of(LinearQuantile(), np.eye(3).astype(given), np.arange(3).astype(given))
        assert rows.dtype == response.dtype == np.float64
        assert response.tolist() == [0, 1, 2]
        assert rows_of(LinearQuantile(), np.eye(3).astype(given)).dtype == np.float64
