"""The expected loss under the posterior: against dense linear algebra, against simulation, and every edge."""

import numpy as np
import pytest

from stopwise.linearized.filters import GradientDescent, HeavyBall
from stopwise.linearized.spectrum import Spectrum, joint_spectrum
from stopwise.stopping.bayes import GRID_POINTS, LARGEST_SCALE, expected_loss, fitted_target_scale, task_posterior
from stopwise.stopping.leave_one_out import leave_out_groups, refit_errors
from stopwise.stopping.stops import stopping_time

TIMES = np.array([0, 1, 3, 10, 40])


def kernel(rng, m, decay=1.2):
    u = np.linalg.qr(rng.standard_normal((m, m)))[0]
    return m * (u * np.arange(1, m + 1) ** -decay) @ u.T


def task(seed=0, n=12, columns=1, intercept=True, slope=0.3, sigma=0.3, tau=1.0):
    """A spectrum, targets and start outputs drawn from the rule's own model."""
    rng = np.random.default_rng(seed)
    m = n * columns
    k = kernel(rng, m)
    root = np.linalg.cholesky(k / m + 1e-12 * np.eye(m))
    f0 = 1.5 * root @ rng.standard_normal(m)
    y = slope * f0 + tau * root @ rng.standard_normal(m) + sigma * rng.standard_normal(m)
    return Spectrum.of(k, columns, intercept), y + 0.7 * intercept, f0


def indicators(spec):
    blocks = [np.kron(np.ones((n, 1)), np.eye(q)) for n, q in spec.layout]
    out, row, column = np.zeros((spec.m, sum(q for _, q in spec.layout))), 0, 0
    for block in blocks:
        out[row : row + block.shape[0], column : column + block.shape[1]] = block
        row, column = row + block.shape[0], column + block.shape[1]
    return out


def dense_posterior(spec, y, starts):
    """The same posterior with full covariance matrices and every fixed effect in one design."""
    k, m = spec.matrix / spec.m, spec.m
    design = np.column_stack([indicators(spec), *starts]) if spec.intercept else np.column_stack(starts)
    lam = spec.eigenvalues[: spec.degrees]
    grid = np.geomspace(lam.min(), lam[0], GRID_POINTS)
    weights, rows = [], []
    for mu in grid:
        inverse = np.linalg.inv(k + mu * np.eye(m))
        information = design.T @ inverse @ design
        beta = np.linalg.solve(information, design.T @ inverse @ y)
        left = (y - design @ beta) @ inverse @ (y - design @ beta)
        freedom = m - design.shape[1]
        tau2 = left / (freedom - 2)
        p = len(starts)
        spread = np.linalg.inv(information)[-p:, -p:] * tau2
        off = beta[-p:] - 1
        weights.append(
            np.linalg.slogdet(inverse)[1] / 2 - np.linalg.slogdet(information)[1] / 2 - freedom / 2 * np.log(left)
        )
        rows.append((tau2 * mu, tau2, beta[-p:], np.outer(off, off) + spread))
    belief = np.exp(np.array(weights) - max(weights))
    belief /= belief.sum()
    return [sum(b * row[i] for b, row in zip(belief, rows, strict=True)) for i in range(4)]


def weights_of_the_prediction(spec, filter, group):
    """h [times, rows left out, m]: the refitted path as a linear map of the residual, found on unit vectors."""
    columns = []
    for j in range(spec.m):
        unit = np.eye(spec.m)[j]
        errors, rows = next(refit_errors(spec, unit, filter, TIMES, [group]))
        columns.append(unit[rows] - errors)
    return np.stack(columns, axis=-1), rows


def joint_task(intercept):
    rng = np.random.default_rng(5)
    k = kernel(rng, 9 + 8)
    blocks = {("a", "a"): k[:9, :9], ("a", "b"): k[:9, 9:], ("b", "b"): k[9:, 9:]}
    spec = joint_spectrum(blocks, {"a": 1, "b": 2}, intercept)
    f0 = rng.standard_normal(17)
    return spec, 0.4 * f0 + rng.standard_normal(17), f0


def starts_of(spec, f0):
    if len(spec.layout) == 1:
        return [f0]
    return [np.where(np.arange(17) < 9, f0, 0), np.where(np.arange(17) >= 9, f0, 0)]


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("columns", [1, 2, "joint"])
def test_the_posterior_equals_dense_generalised_least_squares(intercept, columns):
    joint = columns == "joint"
    spec, y, f0 = joint_task(intercept) if joint else task(1, columns=columns, intercept=intercept)
    found = task_posterior(spec, y, f0)
    sigma2, tau2, slope, start = dense_posterior(spec, y, starts_of(spec, f0))
    # Both are float64 with condition numbers of about 1e4.
    assert found.sigma2 == pytest.approx(sigma2, rel=1e-8)
    assert found.tau2 == pytest.approx(tau2, rel=1e-8)
    np.testing.assert_allclose(found.slope, slope, rtol=1e-8)
    np.testing.assert_allclose(found.start, start, rtol=1e-8)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("columns", [1, 2, "joint"])
@pytest.mark.parametrize("folds", [None, 3])
def test_the_expected_loss_equals_its_definition(intercept, columns, folds):
    joint = columns == "joint"
    spec, y, f0 = joint_task(intercept) if joint else task(2, columns=columns, intercept=intercept)
    filter = HeavyBall(0.9 / spec.lambda_max, 0.8)
    posterior = task_posterior(spec, y, f0)
    found = expected_loss(spec, posterior, f0, filter, TIMES, folds, seed=3)
    total, k, starts = np.zeros(len(TIMES)), spec.matrix, np.column_stack(starts_of(spec, f0))
    for group in leave_out_groups(spec.examples, folds, 3):
        h, rows = weights_of_the_prediction(spec, filter, group)
        for i, row in enumerate(rows):
            for t in range(len(TIMES)):
                signal = k[row, row] - 2 * h[t, i] @ k[row] + h[t, i] @ k @ h[t, i]
                error = starts[row] - h[t, i] @ starts
                total[t] += posterior.tau2 * signal / spec.m + posterior.sigma2 * (1 + h[t, i] @ h[t, i])
                total[t] += error @ posterior.start @ error
    np.testing.assert_allclose(found, total / spec.m, rtol=1e-9)


def test_the_expected_loss_is_the_mean_loss_of_tasks_drawn_from_the_model():
    # One kernel and one start, 4,000 draws of signal and noise: the mean loss of the left-out examples.
    spec, _, f0 = task(3, n=14)
    rng, filter = np.random.default_rng(0), GradientDescent(0.9 / spec.lambda_max)
    slope, sigma, tau = 0.3, 0.4, 1.2
    posterior = task_posterior(spec, *task(3, n=14)[1:])
    known = type(posterior)(sigma**2, tau**2, np.array([slope]), np.array([[(slope - 1) ** 2]]))
    expected = expected_loss(spec, known, f0, filter, TIMES)
    root = np.linalg.cholesky(spec.matrix / spec.m + 1e-12 * np.eye(spec.m))
    groups = leave_out_groups(spec.examples)
    maps = [weights_of_the_prediction(spec, filter, group) for group in groups]
    drawn = tau * rng.standard_normal((4000, spec.m)) @ root.T + sigma * rng.standard_normal((4000, spec.m))
    r = (slope - 1) * f0 + drawn
    losses = np.mean([(r[:, rows] - r @ h[:, 0].T) ** 2 for h, rows in maps], axis=0)
    error = losses.std(axis=0) / np.sqrt(len(losses))
    assert (np.abs(losses.mean(axis=0) - expected) < 4 * error).all()


def test_an_overconfident_start_is_trained_longer_than_a_calibrated_one():
    steps = {}
    for slope in (1.0, 0.1):
        spec, y, f0 = task(4, n=60, slope=slope, sigma=0.5, tau=0.3)
        filter = GradientDescent(1 / spec.lambda_max)
        steps[slope] = stopping_time(spec, y - f0, "bayes", filter, 2000, targets=y).t
    assert steps[0.1] >= 2 * steps[1.0]


def test_small_noise_is_found_where_the_kernel_has_finite_rank():
    rng = np.random.default_rng(11)
    x = np.linalg.qr(rng.standard_normal((60, 4)))[0] * np.sqrt(60)
    spec, f0 = Spectrum.of(x @ x.T), rng.standard_normal(60)
    y = 0.3 * f0 + x @ rng.standard_normal(4) + 0.05 * rng.standard_normal(60)
    # 55 degrees of freedom show the noise: its standard error is a tenth of it.
    assert task_posterior(spec, y, f0).sigma2 ** 0.5 == pytest.approx(0.05, rel=0.3)


def test_what_the_rule_believes_goes_with_its_stop():
    spec, y, f0 = task(6, n=60)
    stop = stopping_time(spec, y - f0, "bayes", GradientDescent(1 / spec.lambda_max), 300, targets=y)
    posterior = task_posterior(spec, y, f0)
    assert stop.sigma == pytest.approx(posterior.sigma2**0.5)
    assert stop.rkhs_norm == pytest.approx(posterior.tau2**0.5)
    assert stop.predicted_risk == pytest.approx(stop.curve.min() - posterior.sigma2)
    assert stop.curve[stop.t] == stop.curve.min()


def test_targets_are_needed():
    spec, y, f0 = task(7)
    with pytest.raises(ValueError, match="needs the targets"):
        stopping_time(spec, y - f0, "bayes", GradientDescent(1 / spec.lambda_max), 5)


@pytest.mark.parametrize(
    ("spec", "y", "f0"),
    [
        (Spectrum.of(np.eye(12)), np.arange(12.0), np.ones(12)),
        (Spectrum.of(np.diag(np.arange(1.0, 5))), np.arange(4.0), np.array([1.0, 0, 0, 0])),
        (task(8)[0], np.full(12, 0.7), task(8)[2]),
        (task(8)[0], 0.5 * task(8)[2] + 1, task(8)[2]),
    ],
    ids=["flat spectrum", "too few degrees", "one class", "fitted by the start"],
)
def test_labels_that_say_nothing_give_no_answer(spec, y, f0):
    stop = stopping_time(spec, y - f0, "bayes", GradientDescent(0.5 / spec.lambda_max), 5, targets=y)
    assert stop.t is None
    assert {"no_answer", "not_identifiable"} <= set(stop.flags)
    assert np.isnan(stop.curve).all()


def test_a_start_without_variation_has_no_slope():
    spec, y, _ = task(9)
    posterior = task_posterior(spec, y, np.full(12, 3.0))
    assert np.isnan(posterior.slope).all()
    assert (posterior.start == 0).all()
    assert posterior.sigma2 > 0


# --- the scale of the targets


def test_the_fitted_scale_takes_the_start_for_what_it_is():
    spec, y, f0 = task(n=60, slope=0.25, sigma=0.01, tau=0.01)
    assert fitted_target_scale(spec, y, f0) == pytest.approx(4, rel=0.1)
    # In targets of that scale the start needs no shrinking.
    scaled = task_posterior(spec, fitted_target_scale(spec, y, f0) * y, f0)
    assert scaled.slope[0] == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize(
    ("slope", "start", "scale"),
    [
        (2.0, 1.0, 1.0),  # a start too small for its targets: training grows it in any case
        (-0.5, 1.0, LARGEST_SCALE),  # one that the labels contradict
        (0.01, 1.0, LARGEST_SCALE),  # one that they do not follow
        (0.5, 0.0, 1.0),  # one that says nothing
    ],
)
def test_the_fitted_scale_stays_in_its_range(slope, start, scale):
    spec, y, f0 = task(n=60, slope=slope, sigma=0.05, tau=0.02)
    assert fitted_target_scale(spec, y, start * f0) == scale


def test_labels_that_say_nothing_leave_the_scale_alone():
    spec, y, f0 = task(n=12)
    assert fitted_target_scale(spec, np.ones_like(y), f0) == 1.0


@pytest.mark.parametrize("columns", [1, 2])
def test_a_repeated_example_says_nothing_new_of_the_noise(columns):
    """The posterior is that of the distinct examples, its prior in the units of all of them."""
    spec, y, f0 = task(n=30, columns=columns, seed=4)
    rows = np.concatenate([np.arange(spec.m), np.arange(columns), np.arange(columns)])
    again = Spectrum.of(spec.matrix[np.ix_(rows, rows)], columns, True)
    alone, with_copies = task_posterior(spec, y, f0), task_posterior(again, y[rows], f0[rows])
    assert "duplicated_examples" in again.flags
    assert with_copies.sigma2 == pytest.approx(alone.sigma2)
    assert with_copies.tau2 == pytest.approx(alone.tau2 * again.m / spec.m)
    assert with_copies.slope == pytest.approx(alone.slope)
    # A copy with another label does tell: it is noise.
    other = y[rows].copy()
    other[-columns:] += 2.0
    assert task_posterior(again, other, f0[rows]).sigma2 > 1.3 * alone.sigma2
