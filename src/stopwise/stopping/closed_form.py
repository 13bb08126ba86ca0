"""The closed-form stopping rules: each takes what is known before training and gives a step, a curve and flags.

Notation: s_i(t) shrinkages, z_i residual coefficients, m rows, q intercept columns, sigma noise, R radius. A rule that
minimises returns the first minimiser; a rule that crosses returns the last step before the crossing.
"""

from __future__ import annotations

import numpy as np

from stopwise.stopping.known import Choice, Known, MeasuredCurve, Moments, computes, reads

BEYOND = "beyond_t_max"
# GCV's denominator vanishes as df -> m: steps with df above this share of m are left out.
GCV_MAX_DF = 0.99


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


@computes("worst_case")
def worst_case(known: Known) -> Choice:
    """Stop at the largest t with eta_t <= eta*, where Q(1/sqrt(eta*)) = R/(2 e sigma eta*).

    Raskutti, Wainwright & Yu (JMLR 2014, eq. 6); for a non-zero start, R = |f* - f0| (Sun & Raskutti 2026). The curve
    is 4 e^2 sigma^2 eta^2 Q^2 / R^2, which passes 1 at the crossing. Flags: ``do_not_train`` (t = 0), ``beyond_t_max``
    (no answer), ``heuristic`` when the filter is not monotone within [0, 1], outside the theorem.
    """
    spec, path, filter, sigma, rkhs_norm = known.spec, known.path, known.filter, known.sigma, known.rkhs_norm
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


@computes("balance")
def balance(known: Known) -> Choice:
    """Stop at the last t before variance (sigma^2/m) sum s_i^2 exceeds bias^2 (1/m) sum (1 - s_i)^2 tau^2 lambda_i.

    The Bayes bias under the prior N(0, tau^2 K_n) in place of the worst case; tau = R. The balancing of Yao, Rosasco &
    Caponnetto (2007). The curve is variance - bias^2, which passes 0.
    """
    curve = known.sigma**2 * known.path.variance - known.rkhs_norm**2 * known.path.bias
    return _crossing(known.path, curve, curve > 0)


def unbiased_risk(path: Moments, m: int, sigma: float) -> np.ndarray:
    """Return (1/m) sum (1 - s_i)^2 z_i^2 + (2 sigma^2/m) df - sigma^2, df = q + tr(P S_t); float64 [len(times)].

    Stein's unbiased estimate of the in-sample risk (Stein 1981), Mallows' C_p (1973).
    """
    return path.training + 2 * sigma**2 / m * path.df - sigma**2


@computes("sure")
def sure(known: Known) -> Choice:
    """Stop at the minimum of ``unbiased_risk``."""
    return minimum(known.path, unbiased_risk(known.path, known.spec.m, known.sigma))


@computes("gcv")
def gcv(known: Known) -> Choice:
    """Stop at the minimum of (1/m) sum (1 - s_i)^2 z_i^2 / (1 - df/m)^2 over the steps with df <= 0.99 m.

    Golub, Heath & Wahba (1979). Not consistent for early-stopped descent (Patil, Wu & Tibshirani 2024).
    """
    path, m = known.path, known.spec.m
    allowed = path.df <= GCV_MAX_DF * m
    if not allowed.any():
        return Choice(None, np.full(path.df.shape, np.nan), ("no_degrees_left",))
    denominator = np.where(allowed, 1 - path.df / m, np.nan)
    return minimum(path, path.training / denominator**2)


@computes("discrepancy")
def discrepancy(known: Known) -> Choice:
    """Stop at the first t whose training residual (1/m) |(I - S_t) P r|^2 has come down to sigma^2.

    Morozov's principle; for early stopping Blanchard, Hoffmann & Reiss (2018). The curve is the training residual.
    """
    path = known.path
    below = np.flatnonzero(path.training <= known.sigma**2)
    if not below.size:
        return Choice(None, path.training, (BEYOND,))
    t = int(path.times[below[0]])
    return Choice(t, path.training, ("do_not_train",) if t == 0 else ())


@reads("holdout")
def holdout(curve: MeasuredCurve) -> Choice:
    """Stop at the best value of a measured validation curve, read until ``patience`` evaluations were no better.

    Better means lower by more than ``min_delta``; None looks at the whole curve. The practice of the paper (and of
    Prechelt 1998). A best value at the end of the curve is flagged ``beyond_t_max``.
    """
    times, values = _measured(curve)
    best = waited = 0
    for k in range(1, values.size):
        if values[k] < values[best] - curve.min_delta:
            best, waited = k, 0
            continue
        waited += 1
        if curve.patience is not None and waited >= curve.patience:
            break
    return _flagged(times, values, best)


@reads("oracle")
def oracle(curve: MeasuredCurve) -> Choice:
    """Take the best value of the measured test curve: the yardstick of every rule, never a rule."""
    times, values = _measured(curve)
    return _flagged(times, values, int(np.argmin(values)))


def _measured(curve: MeasuredCurve) -> tuple[np.ndarray, np.ndarray]:
    times, values = np.asarray(curve.times), np.asarray(curve.values, dtype=np.float64)
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


def minimum(path: Moments, curve: np.ndarray) -> Choice:
    """Return the first minimiser of a curve, NaN left out; a minimum at the last step is flagged ``beyond_t_max``."""
    return _flagged(path.times, curve, int(np.nanargmin(curve)))


def _crossing(path: Moments, curve: np.ndarray, past: np.ndarray) -> Choice:
    """Last step before the first one past the crossing."""
    if not past.any():
        return Choice(None, curve, (BEYOND,))
    t = int(path.times[max(int(np.argmax(past)) - 1, 0)])
    return Choice(t, curve, ("do_not_train",) if t == 0 else ())
