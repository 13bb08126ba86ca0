"""The closed-form stopping rules: each takes the path's moments and gives a step, a curve and flags.

Notation: s_i(t) shrinkages, z_i residual coefficients, m rows, q intercept columns, sigma noise, R radius. A rule that
minimises returns the first minimiser; a rule that crosses returns the last step before the crossing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stopwise.linearized.filters import Filter
from stopwise.linearized.spectrum import Spectrum

BEYOND = "beyond_t_max"
# GCV's denominator vanishes as df -> m: steps with df above this share of m are left out.
GCV_MAX_DF = 0.99


@dataclass(frozen=True)
class Moments:
    """What the closed-form rules need of a path, at ``times``; float64 [len(times)] each.

    ``training`` = (1/m) |(I - S_t) P r|^2, S_t the filter of K_n that training really applies; ``df`` = q + tr(P S_t);
    ``variance`` = (1/m) sum_i s_i^2 and ``bias`` = (1/m) sum_i (1 - s_i)^2 lambda_i, over the eigenvalues of P K_n P;
    ``largest`` = max_i s_i.
    """

    times: np.ndarray
    eta: np.ndarray
    training: np.ndarray
    df: np.ndarray
    variance: np.ndarray
    bias: np.ndarray
    largest: np.ndarray


@dataclass(frozen=True)
class Choice:
    """What a rule decided: ``t`` (None: no answer), its ``curve`` over the times, and flags.

    ``sigma``, ``rkhs_norm``, ``risk``: None but for a rule that has its own belief of noise, radius and risk at t.
    """

    t: int | None
    curve: np.ndarray
    flags: tuple[str, ...] = ()
    crossing: float = np.nan
    sigma: float | None = None
    rkhs_norm: float | None = None
    risk: float | None = None


def path_moments(spec: Spectrum, residual: np.ndarray, filter: Filter, times: np.ndarray) -> Moments:
    """Sum the moments of a filter's path in one sweep over ``times`` (ascending); O(len(times) m), memory one block."""
    z2 = spec.training_coefficients(residual) ** 2
    weights, out = spec.trace_weights, np.empty((5, len(times)))
    for rows, s in filter.sweep(spec.raw.eigenvalues, times):
        out[0, rows] = (1 - s) ** 2 @ z2
        out[1, rows] = s @ weights
        out[4, rows] = s.max(axis=1)
        if not spec.intercept:
            out[2, rows] = (s**2).sum(axis=1)
            out[3, rows] = (1 - s) ** 2 @ spec.eigenvalues
    if spec.intercept:
        for rows, s in filter.sweep(spec.eigenvalues, times):
            out[2, rows] = (s**2).sum(axis=1)
            out[3, rows] = (1 - s) ** 2 @ spec.eigenvalues
    q = spec.m - spec.degrees
    return Moments(times, filter.eta(times), out[0] / spec.m, q + out[1], out[2] / spec.m, out[3] / spec.m, out[4])


def local_complexity(eigenvalues: np.ndarray, m: int, epsilon: float | np.ndarray) -> np.ndarray:
    """Return the local empirical Rademacher complexity Q(eps) = [(1/m) sum_i min(lambda_i, eps^2)]^(1/2).

    Mendelson (2002); Raskutti, Wainwright & Yu (2014), eq. 5. Shape of ``epsilon``; O(m) per value.
    """
    eps2 = np.asarray(epsilon, dtype=np.float64)[..., None] ** 2
    return np.sqrt(np.minimum(eigenvalues, eps2).sum(axis=-1) / m)


def critical_eta(eigenvalues: np.ndarray, m: int, sigma: float, rkhs_norm: float) -> float:
    """Return eta*, the unique solution of Q(1/sqrt(eta)) = R/(2 e sigma eta); the critical radius is 1/sqrt(eta*).

    Solved exactly in O(m): eta^2 Q^2 = (1/m) (k eta + eta^2 sum_{i>k} lambda_i) for 1/eta between lambda_{k+1} and
    lambda_k rises from 0 to infinity, so one quadratic holds the answer. 0 for R = 0; infinite for sigma = 0 or a zero
    kernel (no crossing).
    """
    if rkhs_norm == 0:
        return 0.0
    lam = eigenvalues[eigenvalues > 1e-100]
    if sigma == 0 or not lam.size:
        return np.inf
    level = m * rkhs_norm**2 / (4 * np.e**2 * sigma**2)
    tails = np.concatenate([np.cumsum(lam[::-1])[::-1], [0.0]])
    # At eta = 1/lambda_k exactly the k largest count as 1: the left side there, ascending in k.
    ends = np.arange(1, lam.size + 1) / lam + tails[1:] / lam**2
    k = int(np.searchsorted(ends, level))
    # Solve tail * eta^2 + k * eta = level without cancellation.
    return float(2 * level / (k + np.sqrt(k**2 + 4 * tails[k] * level)))


def worst_case(spec: Spectrum, path: Moments, filter: Filter, sigma: float, rkhs_norm: float) -> Choice:
    """Stop at the largest t with eta_t <= eta*, where Q(1/sqrt(eta*)) = R/(2 e sigma eta*).

    Raskutti, Wainwright & Yu (JMLR 2014, eq. 6); for a non-zero start, R = |f* - f0| (Sun & Raskutti 2026). The curve
    is 4 e^2 sigma^2 eta^2 Q^2 / R^2, which passes 1 at the crossing. Flags: ``do_not_train`` (t = 0), ``beyond_t_max``
    (no answer), ``heuristic`` when the filter is not monotone within [0, 1], outside the theorem.
    """
    eta_star = critical_eta(spec.eigenvalues, spec.m, sigma, rkhs_norm)
    flags = () if filter.monotone and path.largest.max() <= 1 + 1e-9 else ("heuristic",)
    q2 = local_complexity(spec.eigenvalues, spec.m, 1 / np.sqrt(np.maximum(path.eta, 1e-300))) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        curve = np.where(path.eta > 0, 4 * np.e**2 * sigma**2 * path.eta**2 * q2 / rkhs_norm**2, 0.0)
    t_max = int(path.times[-1])
    if eta_star >= float(filter.eta(t_max + 1)):
        return Choice(None, curve, (*flags, BEYOND), eta_star)
    etas = filter.eta(np.arange(t_max + 1))
    t = int(np.flatnonzero(etas <= eta_star)[-1])
    return Choice(t, curve, (*flags, "do_not_train") if t == 0 else flags, eta_star)


def balance(path: Moments, sigma: float, rkhs_norm: float) -> Choice:
    """Stop at the last t before variance (sigma^2/m) sum s_i^2 exceeds bias^2 (1/m) sum (1 - s_i)^2 tau^2 lambda_i.

    The Bayes bias under the prior N(0, tau^2 K_n) in place of the worst case; tau = R. The balancing of Yao, Rosasco &
    Caponnetto (2007). The curve is variance - bias^2, which passes 0.
    """
    curve = sigma**2 * path.variance - rkhs_norm**2 * path.bias
    return _crossing(path, curve, curve > 0)


def sure(path: Moments, m: int, sigma: float) -> Choice:
    """Stop at the minimum of (1/m) sum (1 - s_i)^2 z_i^2 + (2 sigma^2/m) df - sigma^2, df = q + tr(P S_t).

    Stein's unbiased estimate of the in-sample risk (Stein 1981), Mallows' C_p (1973).
    """
    return _minimum(path, path.training + 2 * sigma**2 / m * path.df - sigma**2)


def gcv(path: Moments, m: int) -> Choice:
    """Stop at the minimum of (1/m) sum (1 - s_i)^2 z_i^2 / (1 - df/m)^2 over the steps with df <= 0.99 m.

    Golub, Heath & Wahba (1979). Not consistent for early-stopped descent (Patil, Wu & Tibshirani 2024).
    """
    allowed = path.df <= GCV_MAX_DF * m
    if not allowed.any():
        return Choice(None, np.full(path.df.shape, np.nan), ("no_degrees_left",))
    denominator = np.where(allowed, 1 - path.df / m, np.nan)
    return _minimum(path, path.training / denominator**2)


def discrepancy(path: Moments, sigma: float) -> Choice:
    """Stop at the first t whose training residual (1/m) |(I - S_t) P r|^2 has come down to sigma^2.

    Morozov's principle; for early stopping Blanchard, Hoffmann & Reiss (2018). The curve is the training residual.
    """
    below = np.flatnonzero(path.training <= sigma**2)
    if not below.size:
        return Choice(None, path.training, (BEYOND,))
    t = int(path.times[below[0]])
    return Choice(t, path.training, ("do_not_train",) if t == 0 else ())


def holdout(times: np.ndarray, values: np.ndarray, patience: int | None = None, min_delta: float = 0.0) -> Choice:
    """Stop at the best value of a measured validation curve, read until ``patience`` evaluations were no better.

    Better means lower by more than ``min_delta``; None looks at the whole curve. The practice of the paper (and of
    Prechelt 1998). A best value at the end of the curve is flagged ``beyond_t_max``.
    """
    times, values = _measured(times, values)
    best = waited = 0
    for k in range(1, values.size):
        if values[k] < values[best] - min_delta:
            best, waited = k, 0
            continue
        waited += 1
        if patience is not None and waited >= patience:
            break
    return _flagged(times, values, best)


def oracle(times: np.ndarray, values: np.ndarray) -> Choice:
    """Take the best value of the measured test curve: the yardstick of every rule, never a rule."""
    times, values = _measured(times, values)
    return _flagged(times, values, int(np.argmin(values)))


def _measured(times: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    times, values = np.asarray(times), np.asarray(values, dtype=np.float64)
    if times.shape != values.shape or times.ndim != 1 or not times.size:
        raise ValueError(f"a measured curve is two equally long lists, found shapes {times.shape} and {values.shape}")
    finite = np.isfinite(values)
    if not finite.any():
        raise ValueError("the measured curve has no finite value")
    return times, np.where(finite, values, np.inf)


def _flagged(times: np.ndarray, values: np.ndarray, best: int) -> Choice:
    flags = () if best < times.size - 1 or times.size == 1 else (BEYOND,)
    t = int(times[best])
    return Choice(t, values, ("do_not_train",) if t == 0 else flags)


def _minimum(path: Moments, curve: np.ndarray) -> Choice:
    """First minimiser of a curve, NaN left out; a minimum at the last step is flagged ``beyond_t_max``."""
    return _flagged(path.times, curve, int(np.nanargmin(curve)))


def _crossing(path: Moments, curve: np.ndarray, past: np.ndarray) -> Choice:
    """Last step before the first one past the crossing."""
    if not past.any():
        return Choice(None, curve, (BEYOND,))
    t = int(path.times[max(int(np.argmax(past)) - 1, 0)])
    return Choice(t, curve, ("do_not_train",) if t == 0 else ())
