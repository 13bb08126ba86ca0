"""Linearised training: the outputs at any point along a filter's path, and kernel regression on new points."""

from __future__ import annotations

import numpy as np

from stopwise.linearized.filters import Filter
from stopwise.linearized.spectrum import Spectrum


def linearized_path(
    spec: Spectrum,
    residual: np.ndarray,
    cross: np.ndarray,
    filter: Filter,
    steps: int | np.ndarray,
    task: int = 0,
) -> np.ndarray:
    """Return the predicted outputs minus f0 at new points along the path; float64 [steps + 1, m_new].

    f_t(x) - f0(x) = b_hat + K(x, X) c_t with c_t = U diag(s_i / (m lambda_i)) U' P r in the eigenvectors of K_n: the
    exact path of training the linearised model on the targets y - b_hat (b_hat = 0 without an intercept). ``cross``
    is K(new, train) [m_new, m], un-normalised; ``steps`` a last step or an array of ascending times; ``task`` says
    whose b_hat the new rows take when the kernel is joint. Cost O(m_new m (m + steps)).
    """
    cross = np.asarray(cross, dtype=np.float64)
    if cross.ndim != 2 or cross.shape[1] != spec.m:
        raise ValueError(f"the cross kernel has shape {cross.shape}, expected [new rows, {spec.m}]")
    projected = (cross @ spec.raw.vectors).T * (spec.training_coefficients(residual)[:, None] / spec.m)
    return _gains(spec, filter, steps, projected) + spec.offset(residual, cross.shape[0], task)


def train_path(spec: Spectrum, residual: np.ndarray, filter: Filter, steps: int | np.ndarray) -> np.ndarray:
    """Return E b_hat + S_t P r, the predicted outputs minus f0 on the training rows; float64 [steps + 1, m]."""
    times = _times(steps)
    z, out = spec.training_coefficients(residual), np.empty((times.size, spec.m))
    for rows, s in filter.sweep(spec.raw.eigenvalues, times):
        out[rows] = (s * z) @ spec.raw.vectors.T
    r = spec.rows(residual)
    return out + (r - spec.centre(r))


def weights_path(spec: Spectrum, residual: np.ndarray, filter: Filter, steps: int | np.ndarray) -> np.ndarray:
    """Return the weights c_t, float64 [steps + 1, m]: f_t - f0 - b_hat = K(., X) c_t, theta_t - theta0 = J' c_t."""
    z = spec.training_coefficients(residual) / spec.m
    return _gains(spec, filter, steps, z[:, None] * spec.raw.vectors.T)


def kernel_regression(
    spec: Spectrum, residual: np.ndarray, cross: np.ndarray, mu: float | np.ndarray, task: int = 0
) -> np.ndarray:
    """Return kernel ridge regression minus f0 at new points: b_hat + K(x, X) (K + m mu I)^-1 P r.

    float64 [m_new], or [len(mu), m_new] for an array of penalties. mu = 0 gives the minimum-norm interpolant of P r
    (the limit of training for ever), null directions left out. Raises ValueError for mu < 0.
    """
    penalties = np.atleast_1d(np.asarray(mu, dtype=np.float64))
    if (penalties < 0).any():
        raise ValueError("kernel regression needs mu >= 0")
    cross = np.asarray(cross, dtype=np.float64)
    lam = spec.raw.eigenvalues
    # Below this an eigenvalue is rounding of a null direction, and 1/lambda would blow it up.
    null = lam <= lam[0] * spec.m * np.finfo(np.float64).eps
    shifted = lam + penalties[:, None]
    gains = np.where(null & (penalties[:, None] == 0), 0.0, 1 / np.where(shifted > 0, shifted, 1.0))
    projected = (cross @ spec.raw.vectors).T * (spec.training_coefficients(residual)[:, None] / spec.m)
    out = gains @ projected + spec.offset(residual, cross.shape[0], task)
    return out if np.ndim(mu) else out[0]


def squared_norm_path(spec: Spectrum, residual: np.ndarray, filter: Filter, steps: int | np.ndarray) -> np.ndarray:
    """Return |theta_t - theta0|^2 = |f_t - f0 - b_hat|^2 in the RKHS along the path; float64 [steps + 1]."""
    times, out = _times(steps), []
    z2, lam = spec.training_coefficients(residual) ** 2, spec.raw.eigenvalues
    eta = filter.eta(times)
    for rows, s in filter.sweep(lam, times):
        out.append((s * filter.gain_of(s, lam, eta[rows])) @ z2 / spec.m)
    return np.concatenate(out)


def _times(steps: int | np.ndarray) -> np.ndarray:
    return np.arange(int(steps) + 1) if np.ndim(steps) == 0 else np.asarray(steps)


def _gains(spec: Spectrum, filter: Filter, steps: int | np.ndarray, projected: np.ndarray) -> np.ndarray:
    """Sum over directions of s_i(t)/lambda_i times ``projected`` [m, k]; [steps + 1, k]."""
    times, lam = _times(steps), spec.raw.eigenvalues
    eta, out = filter.eta(times), np.empty((_times(steps).size, projected.shape[1]))
    for rows, s in filter.sweep(lam, times):
        out[rows] = filter.gain_of(s, lam, eta[rows]) @ projected
    return out
