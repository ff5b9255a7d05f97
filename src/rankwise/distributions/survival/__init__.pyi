from rankwise.distributions.survival.estimator import PGWSurvivalAnalysis as PGWSurvivalAnalysis
from rankwise.distributions.survival.fitter import PGWFitter as PGWFitter
from rankwise.distributions.survival.fitter import select_baseline as select_baseline
from rankwise.distributions.survival.regression import PGWRegressionFitter as PGWRegressionFitter
