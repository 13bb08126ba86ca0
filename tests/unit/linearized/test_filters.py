"""Filters against their definitions: recursions run by hand, limits, stability."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stopwise.linearized.filters import GradientDescent, HeavyBall, Nesterov, Ridge, cosine_schedule, linear_schedule

LAM = np.array([1.0, 0.31, 0.02, 1e-7, 0.0])
ITERATIVE = [GradientDescent(0.8), HeavyBall(0.8, 0.9), Nesterov(0.4, 0.7)]


def run_by_hand(lam, alphas, beta=0.0, nesterov=False):
    """Scalar training of 0.5 lam (theta - 1)^2 in torch's convention, residual coefficient 1."""
    theta, v, out = 0.0, 0.0, [0.0]
    for alpha in alphas:
        gradient = lam * (theta - 1)
        v = beta * v + gradient
        theta -= alpha * (gradient + beta * v if nesterov else v)
        out.append(theta)
    return np.array(out)


@pytest.mark.parametrize(
    ("filter", "beta", "nesterov"), [(ITERATIVE[0], 0, False), (ITERATIVE[1], 0.9, False), (ITERATIVE[2], 0.7, True)]
)
def test_shrinkage_is_the_training_of_one_direction(filter, beta, nesterov):
    s = filter.shrinkage(LAM, np.arange(41))
    for i, lam in enumerate(LAM):
        expected = run_by_hand(lam, [filter.lr] * 40, beta, nesterov)
        # By hand, theta - 1 cancels: absolute errors of 1e-16 per step, 40 steps, gain up to 1/(1 - beta).
        np.testing.assert_allclose(s[:, i], expected, atol=1e-13)


@pytest.mark.parametrize("filter", ITERATIVE)
def test_eta_is_the_slope_of_the_shrinkage_at_zero(filter):
    t = np.array([0, 1, 2, 17, 60])
    # s = eta lambda - O((eta lambda)^2): at lambda = 1e-9 the relative error is eta lambda ~ 1e-6 at most.
    np.testing.assert_allclose(filter.shrinkage(np.array([1e-9]), t)[:, 0] / 1e-9, filter.eta(t), rtol=1e-6)
    np.testing.assert_allclose(filter.gain(np.array([0.0]), t)[:, 0], filter.eta(t))


def test_heavy_ball_time_is_the_published_sum():
    filter, t = HeavyBall(0.3, 0.85), 23
    expected = 0.3 * sum((1 - 0.85 ** (t - k)) / (1 - 0.85) for k in range(t))
    assert filter.eta(t) == pytest.approx(expected, rel=1e-13)


def test_schedules_give_products_of_their_steps():
    factors = linear_schedule(10, 3)
    filter = GradientDescent(0.9, factors)
    product = np.cumprod(1 - 0.9 * np.outer(factors, LAM), axis=0)
    np.testing.assert_allclose(filter.shrinkage(LAM, np.arange(1, 11)), 1 - product, atol=1e-15)
    assert filter.eta(10) == pytest.approx(0.9 * sum(factors))
    assert filter.eta(12) == pytest.approx(0.9 * (sum(factors) + 2 * factors[-1])), "the last factor holds on"


def test_a_callable_schedule_equals_its_list():
    factors = cosine_schedule(12, 2)
    named = HeavyBall(0.5, 0.8, lambda s: factors[s])
    np.testing.assert_array_equal(
        named.shrinkage(LAM, np.arange(13)), HeavyBall(0.5, 0.8, factors).shrinkage(LAM, np.arange(13))
    )


def test_momentum_zero_is_gradient_descent():
    t = np.arange(30)
    expected = GradientDescent(0.7).shrinkage(LAM, t)
    for filter in (HeavyBall(0.7, 0.0), Nesterov(0.7, 0.0)):
        np.testing.assert_allclose(filter.shrinkage(LAM, t), expected, atol=1e-15)
    assert HeavyBall(0.7, 0.0).monotone
    assert not HeavyBall(0.7, 0.9).monotone


def test_times_in_any_order_and_shape():
    filter, t = HeavyBall(0.8, 0.9), np.array([[7, 0], [3, 7]])
    path = filter.shrinkage(LAM, np.arange(8))
    np.testing.assert_array_equal(filter.shrinkage(LAM, t), path[t])
    np.testing.assert_array_equal(filter.shrinkage(LAM, 5), path[5])


def test_blocks_do_not_change_the_path():
    filter, t = HeavyBall(0.8, 0.9), np.arange(700)
    by_time = np.stack([filter.shrinkage(LAM, int(k)) for k in (255, 256, 511, 699)])
    np.testing.assert_array_equal(filter.shrinkage(LAM, t)[[255, 256, 511, 699]], by_time)


def test_descent_beyond_one_over_lambda_oscillates_as_defined():
    s = GradientDescent(1.5).shrinkage(np.array([1.0]), np.arange(5))[:, 0]
    np.testing.assert_allclose(s, 1 - (-0.5) ** np.arange(5), atol=1e-15)


def test_tiny_eigenvalues_keep_relative_accuracy():
    # 1 - (1 - x)^t would return 0 for x = 1e-17.
    assert GradientDescent(1.0).shrinkage(np.array([1e-17]), 1000)[0] == pytest.approx(1e-14, rel=1e-12)


@pytest.mark.parametrize("filter", [HeavyBall(1.0, 0.9), Nesterov(1.0, 0.9), GradientDescent(1.0)])
def test_stability_bound_separates_convergence_from_divergence(filter):
    t = 4000
    below = filter.shrinkage(np.array([0.97 * filter.stability]), t)[0]
    above = abs(filter.shrinkage(np.array([1.03 * filter.stability]), 400)[0])
    assert below == pytest.approx(1, abs=1e-6)
    assert above > 100


@given(st.floats(1e-4, 1e6))
def test_descent_and_ridge_differ_by_a_factor_of_at_most_1_30(x):
    # The maximum of (1 - e^-x)(1 + x)/x is 1.2984, near x = 1.79.
    ratio = -np.expm1(-x) / Ridge().shrinkage(np.array([1.0]), np.array([x]))[0, 0]
    assert 1 - 1e-12 <= ratio <= 1.2985


@settings(max_examples=60)
@given(st.floats(0.01, 1.0), st.integers(0, 300))
def test_descent_stays_in_the_unit_interval_and_grows(lr, t):
    s = GradientDescent(lr).shrinkage(LAM, np.array([t, t + 1]))
    assert (s >= 0).all()
    assert (s <= 1).all()
    assert (s[1] >= s[0]).all()


@pytest.mark.parametrize("bad", [lambda: GradientDescent(0.0), lambda: HeavyBall(1.0, 1.0), lambda: Nesterov(-1.0)])
def test_impossible_filters_are_refused(bad):
    with pytest.raises(ValueError, match="must"):
        bad()
