"""A kernel from some of its columns lies below the kernel; the trace of what it leaves out bounds every eigenvalue."""

from __future__ import annotations

import numpy as np
import pytest

from stopwise.linearized.nystrom import pivoted_cholesky


def kernel(m, decay=1.5, seed=0):
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(m, m)))[0]
    return (basis * np.arange(1, m + 1.0) ** -decay) @ basis.T


def of(k, rank, **options):
    return pivoted_cholesky(np.diag(k), lambda rows: k[:, rows], rank, **options)


@pytest.mark.parametrize("block", [1, 8, 40])
def test_the_certificate_holds_and_is_exact(block):
    k = kernel(120)
    found = of(k, 40, block=block)
    assert found.left == pytest.approx(np.trace(k - found.matrix()), rel=1e-9)
    assert len(set(found.pivots)) == len(found.pivots) <= 40
    exact, near = np.linalg.eigvalsh(k)[::-1] / 120, np.zeros(120)
    near[: len(found.pivots)] = found.eigenvalues()
    assert (near <= exact + 1e-12).all()
    assert (exact <= near + found.bound + 1e-12).all()
    assert np.linalg.eigvalsh(k - found.matrix()).min() > -1e-10


def test_more_columns_leave_less_and_a_kernel_of_low_rank_nothing():
    k = kernel(120)
    assert of(k, 60).left < of(k, 20).left / 2
    rows = np.random.default_rng(1).normal(size=(80, 5))
    found = of(rows @ rows.T, 40)
    assert len(found.pivots) == 5
    assert found.left < 1e-8 * found.trace


def test_random_pivots_are_near_the_best_of_their_rank():
    """The best kernel of rank 30 leaves the tail of the eigenvalues; random pivots may leave little more."""
    k = kernel(200)
    best = np.sort(np.linalg.eigvalsh(k))[::-1][30:].sum()
    assert np.mean([of(k, 30, block=10, seed=seed).left for seed in range(5)]) < 2.5 * best


def test_pivots_are_seeded_and_malformed_kernels_refused():
    k = kernel(50)
    assert np.array_equal(of(k, 10, seed=3).pivots, of(k, 10, seed=3).pivots)
    with pytest.raises(ValueError, match="no negative entries"):
        pivoted_cholesky(np.array([1.0, -1.0]), lambda rows: k[:, rows], 1)
    with pytest.raises(ValueError, match="rank and block of 1 or more, found 0 and 64"):
        of(k, 0)
