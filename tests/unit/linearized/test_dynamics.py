"""Linearised paths against training done by hand on explicit features."""

import numpy as np
import pytest

from stopwise.linearized.filters import GradientDescent, HeavyBall, Nesterov, Ridge
from stopwise.linearized.paths import kernel_regression, linearized_path, squared_norm_path, train_path, weights_path
from stopwise.linearized.replay import batch_lambda_max, batch_rows, draw_batches, minibatch_path, minibatch_weights
from stopwise.linearized.spectrum import Spectrum, joint_spectrum

N, Q, P = 9, 2, 40


@pytest.fixture
def problem():
    rng = np.random.default_rng(7)
    j = rng.standard_normal((N * Q, P)) / np.sqrt(P) + 0.2
    return j, rng.standard_normal((5 * Q, P)) / np.sqrt(P) + 0.2, rng.standard_normal(N * Q) + 1.3


def train(j, j_new, r, intercept, lr, steps, beta=0.0, nesterov=False, batches=None):
    """Torch-style SGD on theta with the features j; targets centred by the fitted intercept."""
    b = r.reshape(-1, Q).mean(axis=0) if intercept else np.zeros(Q)
    target = r - np.tile(b, len(r) // Q)
    theta, v = np.zeros(j.shape[1]), np.zeros(j.shape[1])
    new, own, thetas = [], [], []
    for t in range(steps + 1):
        new.append(j_new @ theta + np.tile(b, len(j_new) // Q))
        own.append(j @ theta + np.tile(b, len(j) // Q))
        thetas.append(theta.copy())
        rows = np.arange(len(r)) if batches is None or t == steps else batch_rows(batches[t], Q)
        gradient = j[rows].T @ (j[rows] @ theta - target[rows]) / len(rows)
        v = beta * v + gradient
        theta = theta - lr * (gradient + beta * v if nesterov else v)
    return np.array(new), np.array(own), np.array(thetas)


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("kind", ["descent", "heavy ball", "nesterov"])
def test_linearized_path_is_training_of_the_linear_model(problem, intercept, kind):
    j, j_new, r = problem
    spec = Spectrum.of(j @ j.T, columns=Q, intercept=intercept)
    lr = 0.9 / spec.lambda_max
    filter, beta, nesterov = {
        "descent": (GradientDescent(lr), 0.0, False),
        "heavy ball": (HeavyBall(lr, 0.9), 0.9, False),
        "nesterov": (Nesterov(lr, 0.6), 0.6, True),
    }[kind]
    new, own, thetas = train(j, j_new, r, intercept, lr, 50, beta, nesterov)
    np.testing.assert_allclose(linearized_path(spec, r, j_new @ j.T, filter, 50), new, atol=1e-11)
    np.testing.assert_allclose(train_path(spec, r, filter, 50), own, atol=1e-11)
    np.testing.assert_allclose(weights_path(spec, r, filter, 50) @ j, thetas, atol=1e-11)
    np.testing.assert_allclose(squared_norm_path(spec, r, filter, 50), (thetas**2).sum(axis=1), atol=1e-11)


@pytest.mark.parametrize(("beta", "nesterov"), [(0.0, False), (0.9, False), (0.8, True)])
def test_minibatch_replay_is_sgd_on_the_very_batches(problem, beta, nesterov):
    j, j_new, r = problem
    spec = Spectrum.of(j @ j.T, columns=Q, intercept=True)
    batches = draw_batches(N, 4, 30, seed=3)
    lr = 0.3 / batch_lambda_max(spec.matrix, Q, 4)
    new, _, thetas = train(j, j_new, r, True, lr, 30, beta, nesterov, batches)
    path = minibatch_path(spec, r, j_new @ j.T, batches, lr, beta, nesterov)
    np.testing.assert_allclose(path, new, atol=1e-11)
    np.testing.assert_allclose(minibatch_weights(spec, r, batches, lr, beta, nesterov) @ j, thetas, atol=1e-11)


def test_full_batches_replay_the_filter(problem):
    j, j_new, r = problem
    spec = Spectrum.of(j @ j.T, columns=Q, intercept=True)
    lr = 1 / spec.lambda_max
    replay = minibatch_path(spec, r, j_new @ j.T, draw_batches(N, None, 20, 0), lr, 0.9)
    np.testing.assert_allclose(replay, linearized_path(spec, r, j_new @ j.T, HeavyBall(lr, 0.9), 20), atol=1e-11)


def test_batches_have_one_size_cover_each_pass_once_and_extend():
    batches = draw_batches(10, 3, 9, seed=1)
    assert [b.size for b in batches] == [3] * 9
    for k in range(0, 9, 3):
        assert np.unique(np.concatenate(batches[k : k + 3])).size == 9, "no example twice in a pass"
    longer = draw_batches(10, 3, 20, seed=1)
    assert all((a == b).all() for a, b in zip(batches, longer, strict=False)), "a longer run starts the same"
    assert any((a != b).any() for a, b in zip(batches, draw_batches(10, 3, 9, seed=2), strict=True))
    with pytest.raises(ValueError, match="batch_size"):
        draw_batches(10, 0, 1, 0)


def test_the_smallest_batches_have_the_largest_curvature(problem):
    j, _, _ = problem
    k = j @ j.T
    assert batch_lambda_max(k, Q, 1) == pytest.approx(
        max(np.linalg.eigvalsh(k[i * Q : i * Q + Q, i * Q : i * Q + Q])[-1] / Q for i in range(N))
    ), "100 draws of one example see all nine"
    assert batch_lambda_max(k, Q, None) == pytest.approx(Spectrum.of(k, columns=Q).lambda_max)
    assert batch_lambda_max(k, Q, 1) >= batch_lambda_max(k, Q, None)


@pytest.mark.parametrize("intercept", [False, True])
def test_kernel_regression_solves_its_linear_system(problem, intercept):
    j, j_new, r = problem
    k, cross, mu = j @ j.T, j_new @ j.T, 0.03
    spec = Spectrum.of(k, columns=Q, intercept=intercept)
    b = r.reshape(-1, Q).mean(axis=0) * intercept
    c = np.linalg.solve(k + len(r) * mu * np.eye(len(r)), r - np.tile(b, N))
    np.testing.assert_allclose(kernel_regression(spec, r, cross, mu), cross @ c + np.tile(b, 5), atol=1e-11)
    ridge = linearized_path(spec, r, cross, Ridge(), np.array([1 / mu]))[0]
    np.testing.assert_allclose(kernel_regression(spec, r, cross, mu), ridge, atol=1e-11)


def test_kernel_regression_without_penalty_is_the_end_of_training(problem):
    j, j_new, r = problem
    spec = Spectrum.of(j @ j.T, columns=Q)
    end = linearized_path(spec, r, j_new @ j.T, GradientDescent(1 / spec.lambda_max), np.array([10**7]))[0]
    np.testing.assert_allclose(kernel_regression(spec, r, j_new @ j.T, 0.0), end, atol=1e-8)


def test_joint_training_predicts_each_task_with_its_own_intercept():
    rng = np.random.default_rng(8)
    ja, jb = rng.standard_normal((6, P)) / 6, rng.standard_normal((8, P)) / 6
    blocks = {("a", "a"): ja @ ja.T, ("a", "b"): ja @ jb.T, ("b", "b"): jb @ jb.T}
    spec = joint_spectrum(blocks, 1, intercept=True)
    r = np.concatenate([rng.standard_normal(6) + 2, rng.standard_normal(8) - 1])
    j, new = np.vstack([ja, jb]), rng.standard_normal((3, P)) / 6
    filter = GradientDescent(1 / spec.lambda_max)
    c = weights_path(spec, r, filter, 12)
    for task, mean in ((0, r[:6].mean()), (1, r[6:].mean())):
        path = linearized_path(spec, r, new @ j.T, filter, 12, task=task)
        np.testing.assert_allclose(path, c @ (new @ j.T).T + mean, atol=1e-12)
