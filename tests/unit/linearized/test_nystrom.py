"""A kernel from some of its columns lies below the kernel; the trace of what it leaves out bounds every eigenvalue."""

from __future__ import annotations

import numpy as np
import pytest

from stopwise.linearized.decay import decay_fit
from stopwise.linearized.filters import GradientDescent
from stopwise.linearized.nystrom import pivoted_cholesky
from stopwise.linearized.spectrum import Spectrum
from stopwise.stopping.registry import PREDICTED
from stopwise.stopping.stops import stopping_time


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


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("columns", [1, 3])
def test_the_spectrum_of_some_columns_is_within_its_bound_of_the_kernels(columns, intercept, diagonal):
    k = kernel(60, decay=1.0)
    found = of(k, 20, block=8)
    spec, whole = found.spectrum(columns, intercept, diagonal), Spectrum.of(k, columns, intercept)
    assert spec.bound == found.bound > 0 == whole.bound
    assert np.abs(spec.eigenvalues - whole.eigenvalues).max() <= spec.bound + 1e-12
    assert np.abs(spec.raw.eigenvalues - whole.raw.eigenvalues).max() <= spec.raw.bound + 1e-12
    if diagonal:
        np.testing.assert_allclose(np.diag(spec.matrix), np.diag(k), rtol=1e-12)
    else:
        np.testing.assert_allclose(found.eigenvalues(columns, intercept), spec.eigenvalues[:20], atol=1e-14)
        assert (spec.eigenvalues <= whole.eigenvalues + 1e-12).all()


def test_a_part_of_the_spectrum_keeps_a_bound_that_holds_for_it():
    k = kernel(60, decay=1.0)
    index = np.concatenate([np.arange(60), np.arange(5)])
    k = k[np.ix_(index, index)]
    spec, whole = of(k, 20).spectrum(diagonal=False), Spectrum.of(k)
    first, own = spec.leading(30), whole.leading(30)
    assert np.abs(first.eigenvalues - own.eigenvalues).max() <= first.bound
    distinct, rows = spec.without_repeats()
    assert len(rows) == 60
    assert distinct.bound == pytest.approx(spec.bound * 65 / 60)
    for part in (spec, first, distinct):
        assert "nystrom" in part.flags
    assert "nystrom" not in whole.flags


def test_every_rule_runs_on_some_columns_and_says_so():
    """With all the columns that matter a rule stops where it does on the kernel; every answer carries the flag."""
    rng = np.random.default_rng(0)
    k = kernel(80, decay=3.0)
    signal = np.linalg.cholesky(k + 1e-9 * np.eye(80)) @ rng.normal(size=80)
    y, f0 = signal + 0.1 * rng.normal(size=80), np.zeros(80)
    spec, whole = of(k, 70).spectrum(), Spectrum.of(k)
    filter = GradientDescent(1 / whole.lambda_max)
    for rule in PREDICTED:
        near, exact = (stopping_time(s, y - f0, rule, filter, 300, targets=y, folds=4) for s in (spec, whole))
        assert "nystrom" in near.flags
        assert "nystrom" not in exact.flags
        assert near.t == exact.t


def test_the_decay_is_fitted_to_the_eigenvalues_of_the_columns():
    """The zeros beyond the rank would pass for a kernel of finite rank; without them the law is the kernel's."""
    found = of(kernel(300, decay=1.5), 120)
    assert decay_fit(found.spectrum(diagonal=False).eigenvalues).kind == "finite_rank"
    law = decay_fit(found.eigenvalues())
    assert law.kind == "power"
    assert law.exponent == pytest.approx(1.5, abs=0.15)
