"""The guarantee of the training loss is above the linearised loss, and for descent the value of a ridge problem."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stopwise.linearized.filters import GradientDescent, HeavyBall, Nesterov
from stopwise.linearized.guarantee import loss_guarantee
from stopwise.linearized.paths import train_path
from stopwise.linearized.spectrum import Spectrum

STEPS = np.array([0, 1, 2, 5, 12, 40])
FILTERS = {
    "descent": GradientDescent,
    "heavy ball": lambda lr: HeavyBall(lr, 0.9),
    "nesterov": lambda lr: Nesterov(lr, 0.6),
}


def problem(seed, intercept):
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((12, 30)) * np.exp(-0.3 * np.arange(30))
    return Spectrum.of(features @ features.T, intercept=intercept), rng.standard_normal(12) + 0.5


@given(st.integers(0, 10_000), st.sampled_from(sorted(FILTERS)), st.booleans())
def test_the_linearised_loss_never_passes_its_guarantee(seed, kind, intercept):
    spec, r = problem(seed, intercept)
    filter = FILTERS[kind](1 / spec.lambda_max)
    loss = np.mean((r - train_path(spec, r, filter, STEPS)) ** 2, axis=1)
    bound = loss_guarantee(spec, r, filter, STEPS)
    assert (loss <= bound * (1 + 1e-12)).all()  # both are float64 sums of twelve terms
    assert loss[0] == pytest.approx(bound[0], rel=1e-12)


def test_descent_is_guaranteed_the_ridge_value_at_the_inverse_time():
    spec, r = problem(3, False)
    filter = GradientDescent(1 / spec.lambda_max)
    mu = 1 / filter.eta(STEPS[1:])
    kernel = spec.matrix / spec.m
    for bound, penalty in zip(loss_guarantee(spec, r, filter, STEPS[1:]), mu, strict=True):
        weights = np.linalg.solve(kernel + penalty * np.eye(spec.m), r / spec.m)
        ridge = np.mean((r - spec.matrix @ weights) ** 2) + penalty * weights @ spec.matrix @ weights
        assert bound <= ridge * (1 + 1e-9)  # np.linalg.solve at a condition number below 1e6
        assert bound > 0.2 * ridge  # and it is not much below: the best penalty is near the inverse time
