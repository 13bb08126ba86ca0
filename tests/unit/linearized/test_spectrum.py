"""The spectrum, the fitted intercept, joint kernels and refusals."""

from types import SimpleNamespace

import numpy as np
import pytest

from stopwise.linearized.spectrum import KernelError, Spectrum, joint_spectrum, stack_blocks


def random_kernel(rng, m, rank=None):
    a = rng.standard_normal((m, rank or m)) + 0.7
    return a @ a.T


def indicator(n, q):
    return np.kron(np.ones((n, 1)), np.eye(q))


def projector(n, q):
    e = indicator(n, q)
    return np.eye(n * q) - e @ np.linalg.pinv(e)


@pytest.mark.parametrize(("n", "q"), [(12, 1), (5, 3), (1, 1)])
def test_eigenvalues_are_those_of_k_over_m(n, q):
    k = random_kernel(np.random.default_rng(0), n * q)
    spec = Spectrum.of(k, columns=q)
    np.testing.assert_allclose(spec.eigenvalues, np.linalg.eigvalsh(k / (n * q))[::-1], atol=1e-12)
    np.testing.assert_allclose(spec.vectors * spec.eigenvalues @ spec.vectors.T, k / (n * q), atol=1e-12)
    assert spec.degrees == n * q
    assert spec.raw is spec


@pytest.mark.parametrize(("n", "q", "rank"), [(12, 1, None), (6, 3, None), (9, 2, 4)])
def test_intercept_spectrum_is_that_of_the_projected_kernel(n, q, rank):
    rng = np.random.default_rng(1)
    k, p = random_kernel(rng, n * q, rank), projector(n, q)
    spec = Spectrum.of(k, columns=q, intercept=True)
    projected = p @ (k / (n * q)) @ p
    np.testing.assert_allclose(spec.vectors * spec.eigenvalues @ spec.vectors.T, projected, atol=1e-12)
    np.testing.assert_allclose(spec.vectors.T @ spec.vectors, np.eye(n * q), atol=1e-12)
    # The nuisance directions are split off exactly even when P K P has other null directions.
    assert spec.degrees == n * q - q
    np.testing.assert_allclose(p @ spec.vectors[:, spec.degrees :], 0, atol=1e-13)
    r = rng.standard_normal(n * q)
    np.testing.assert_allclose(spec.vectors @ spec.coefficients(r), p @ r, atol=1e-12)
    np.testing.assert_allclose(spec.raw.vectors @ spec.training_coefficients(r), p @ r, atol=1e-12)
    np.testing.assert_allclose(spec.intercept_of(r), r.reshape(n, q).mean(axis=0))


def test_trace_weights_give_the_degrees_of_freedom_of_the_projected_smoother():
    rng = np.random.default_rng(2)
    n, q = 7, 2
    k, p = random_kernel(rng, n * q), projector(n, q)
    spec = Spectrum.of(k, columns=q, intercept=True)
    s = rng.uniform(size=n * q)
    smoother = spec.raw.vectors * s @ spec.raw.vectors.T
    assert s @ spec.trace_weights == pytest.approx(np.trace(p @ smoother), rel=1e-12)


def test_a_kernel_object_and_a_residual_by_example_are_accepted():
    rng = np.random.default_rng(3)
    k = random_kernel(rng, 8)
    spec = Spectrum.of(SimpleNamespace(matrix=k, columns=2))
    assert spec.columns == 2
    assert spec.examples == 4
    r = rng.standard_normal((4, 2))
    np.testing.assert_array_equal(spec.coefficients(r), spec.coefficients(r.ravel()))


def test_leading_block_is_divided_by_its_own_m():
    k = random_kernel(np.random.default_rng(4), 12)
    spec = Spectrum.of(k, columns=2).leading(3)
    np.testing.assert_allclose(spec.eigenvalues, np.linalg.eigvalsh(k[:6, :6] / 6)[::-1], atol=1e-12)


def test_indefinite_kernels_are_refused_with_their_smallest_eigenvalue():
    k = np.diag([2.0, 1.0, -0.5])
    with pytest.raises(KernelError, match=r"smallest eigenvalue of K/m -0\.166667"):
        Spectrum.of(k)


def test_rounding_below_zero_is_clipped_and_remembered():
    spec = Spectrum.of(np.diag([1.0, 0.5, -1e-7]))
    assert spec.eigenvalues[-1] == 0
    assert spec.smallest == pytest.approx(-1e-7 / 3)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.ones((2, 3)), "square"),
        (np.array([[1.0, np.nan], [np.nan, 1.0]]), "finite"),
        (np.array([[1.0, 0.2], [0.1, 1.0]]), "symmetric"),
    ],
)
def test_matrices_that_are_no_kernels_are_refused(matrix, message):
    with pytest.raises(KernelError, match=message):
        Spectrum.of(matrix)


def test_columns_must_divide_the_rows_and_leave_degrees():
    with pytest.raises(KernelError, match="whole examples"):
        Spectrum.of(np.eye(5), columns=2)
    with pytest.raises(KernelError, match="degrees of freedom"):
        Spectrum.of(np.eye(2), columns=2, intercept=True)


def test_degenerate_kernels_are_flagged():
    assert "flat_spectrum" in Spectrum.of(np.eye(4)).flags
    assert "zero_kernel" in Spectrum.of(np.zeros((4, 4))).flags
    k = random_kernel(np.random.default_rng(5), 6)
    assert Spectrum.of(k).flags == ()
    again = np.ix_([0, 1, 2, 3, 4, 0], [0, 1, 2, 3, 4, 0])
    assert "duplicated_examples" in Spectrum.of(k[again]).flags


def test_joint_kernel_is_the_stack_of_its_blocks_with_an_intercept_per_task():
    rng = np.random.default_rng(6)
    j = {"a": rng.standard_normal((4, 30)), "b": rng.standard_normal((6, 30))}
    blocks = {("a", "a"): j["a"] @ j["a"].T, ("b", "b"): j["b"] @ j["b"].T, ("b", "a"): j["b"] @ j["a"].T}
    spec = joint_spectrum(blocks, {"a": 1, "b": 2}, intercept=True)
    k = np.vstack([j["a"], j["b"]]) @ np.vstack([j["a"], j["b"]]).T
    np.testing.assert_allclose(stack_blocks(blocks), k, atol=1e-12)
    p = np.block([[projector(4, 1), np.zeros((4, 6))], [np.zeros((6, 4)), projector(3, 2)]])
    np.testing.assert_allclose(spec.eigenvalues, np.linalg.eigvalsh(p @ k @ p / 10)[::-1], atol=1e-12)
    assert spec.degrees == 10 - 3
    r = rng.standard_normal(10)
    np.testing.assert_allclose(spec.intercept_of(r), [*[r[:4].mean()], *r[4:].reshape(3, 2).mean(axis=0)])
    np.testing.assert_array_equal(spec.row_examples(), [0, 1, 2, 3, 4, 4, 5, 5, 6, 6])


def test_a_missing_joint_block_is_named():
    with pytest.raises(KernelError, match="'a' and 'b'"):
        joint_spectrum({("a", "a"): np.eye(2), ("b", "b"): np.eye(2)})


def test_residuals_of_the_wrong_size_or_not_finite_are_refused():
    spec = Spectrum.of(np.diag([2.0, 1.0]))
    with pytest.raises(ValueError, match="3 entries"):
        spec.coefficients(np.zeros(3))
    with pytest.raises(ValueError, match="not finite"):
        spec.coefficients(np.array([0.0, np.inf]))


def test_an_indefinite_kernel_hidden_by_the_intercept_is_refused_when_it_would_train():
    # Negative along the column mean only: P K P does not see it, training does.
    n = 6
    k = np.diag(np.arange(1.0, n + 1)) - 2.0 * np.ones((n, n))
    p = projector(n, 1)
    assert np.linalg.eigvalsh(p @ k @ p)[0] > -1e-12
    spec = Spectrum.of(k, intercept=True)
    with pytest.raises(KernelError, match="not positive semi-definite"):
        _ = spec.lambda_max


@pytest.mark.parametrize("intercept", [False, True])
def test_large_matrices_are_worked_on_in_blocks_with_equal_results(intercept, monkeypatch):
    k = random_kernel(np.random.default_rng(9), 40)
    k[39], k[:, 39] = k[3], k[:, 3]
    k[39, 39] = k[3, 39] = k[39, 3] = k[3, 3]
    whole = Spectrum.of(k, columns=2, intercept=intercept)
    monkeypatch.setattr("stopwise.linearized.spectrum.BLOCK_ROWS", 7)
    parts = Spectrum.of(k, columns=2, intercept=intercept)
    np.testing.assert_allclose(parts.eigenvalues, whole.eigenvalues, atol=1e-12)
    np.testing.assert_allclose(np.abs(parts.vectors[:, :10]), np.abs(whole.vectors[:, :10]), atol=1e-8)
    assert parts.flags == whole.flags
