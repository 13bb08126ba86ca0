"""How fast eigenvalues fall: effective dimension, stable rank, alignment, decay fits and the rates they predict.

Functions of arrays of eigenvalues (of K/m, descending), numpy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy

KINDS = ("power", "exponential", "finite_rank")
# Eigenvalues below this share of the largest are rounding in an fp32 kernel and never enter a fit.
FIT_FLOOR = 1e-8
# A fall by this factor or more between neighbours, down to rounding, ends a finite-rank spectrum.
RANK_GAP = 1e4


def effective_dimension(eigenvalues: np.ndarray, mu: float | np.ndarray) -> float | np.ndarray:
    """Return N(mu) = sum_i lambda_i / (lambda_i + mu); the shape of ``mu`` (a curve for an array), mu > 0.

    Zhang (2005), Caponnetto & De Vito (2007): the degrees of freedom of ridge regression with penalty mu.
    """
    lam, mu_ = np.asarray(eigenvalues, dtype=np.float64), np.asarray(mu, dtype=np.float64)
    if (mu_ <= 0).any():
        raise ValueError("the effective dimension needs mu > 0")
    out = (lam / (lam + mu_[..., None])).sum(axis=-1)
    return float(out) if out.ndim == 0 else out


def stable_rank(eigenvalues: np.ndarray) -> float:
    """Return tr(K)/lambda_1, between 1 and the rank (0 for a zero kernel)."""
    lam = np.asarray(eigenvalues, dtype=np.float64)
    return float(lam.sum() / lam.max()) if lam.max() > 0 else 0.0


def alignment(coefficients: np.ndarray, top: int | None = None) -> float | np.ndarray:
    """Return the share of |r|^2 in the first k eigen-directions: for k = ``top``, or [m] for every k = 1..m.

    ``coefficients`` is z = U' r, in the order of the eigenvalues. A zero residual has share 0.
    """
    energy = np.cumsum(np.asarray(coefficients, dtype=np.float64) ** 2)
    share = energy / energy[-1] if energy[-1] > 0 else np.zeros_like(energy)
    return share if top is None else float(share[min(top, share.size) - 1]) if top > 0 else 0.0


@dataclass(frozen=True)
class Decay:
    """A fitted decay: lambda_i ~ exp(intercept) i^-exponent, exp(intercept - exponent i), or zero beyond ``rank``.

    ``exponent`` is 2 beta for ``power``, the rate c for ``exponential``, 0 for ``finite_rank``. ``interval`` is its
    95 % interval: from resampled examples when they were given, else of the least squares fit, which is too narrow
    because neighbouring eigenvalues move together (``interval_kind`` tells). ``errors`` holds each kind's mean squared
    error of log lambda on the held-out indices; ``first``..``last`` are the 1-based indices of the fit.
    """

    kind: str
    exponent: float
    interval: tuple[float, float]
    intercept: float
    rank: int
    first: int
    last: int
    errors: dict[str, float]
    interval_kind: str = "regression"

    @property
    def beta(self) -> float:
        """The smoothness beta of lambda_i ~ i^(-2 beta)."""
        return self.exponent / 2

    def predict(self, index: np.ndarray) -> np.ndarray:
        """Return the fitted eigenvalues at 1-based indices; the shape of ``index``."""
        i = np.asarray(index, dtype=np.float64)
        if self.kind == "finite_rank":
            return np.where(i <= self.rank, np.exp(self.intercept), 0.0)
        return np.exp(self.intercept - self.exponent * (np.log(i) if self.kind == "power" else i))


def fit_range(eigenvalues: np.ndarray) -> tuple[int, int]:
    """Return the 1-based first and last index of the decay fit.

    From 2 (the first eigenvalue is a common mode and tells nothing about the decay) to half the number of eigenvalues
    (the upper half of the indices has not converged: it bends down because m ends), and no further than the last one
    above 1e-8 lambda_1.
    """
    lam = np.asarray(eigenvalues, dtype=np.float64)
    usable = int((lam > FIT_FLOOR * lam[0]).sum()) if lam[0] > 0 else 0
    return 2, max(min(lam.size // 2, usable), min(usable, 4))


def numerical_rank(eigenvalues: np.ndarray) -> int:
    """Return r when the spectrum ends in a cliff after r eigenvalues, else the number of eigenvalues.

    A cliff is a fall by 1e4 or more between neighbours onto values that are rounding (below 1e-8 lambda_1): exponential
    decay reaches rounding without one.
    """
    lam = np.asarray(eigenvalues, dtype=np.float64)
    if not lam[0] > 0:
        return 0
    floored = np.maximum(lam, 1e-14 * lam[0])
    cliffs = np.flatnonzero((floored[:-1] >= RANK_GAP * floored[1:]) & (lam[1:] <= FIT_FLOOR * lam[0]))
    return int(cliffs[0]) + 1 if cliffs.size else lam.size


def decay_fit(eigenvalues: np.ndarray, samples: list[np.ndarray] | None = None, kind: str | None = None) -> Decay:
    """Fit and choose between power-law, exponential and finite-rank decay.

    Fit range: ``fit_range``. Finite rank is a cliff (``numerical_rank``); between the other two decides the error of
    extrapolation: fitted by least squares on the first two thirds of the range, judged on log lambda of the last third
    (residuals of neighbouring eigenvalues are far too dependent for an information criterion). ``samples`` are
    eigenvalues of half-samples of the examples (``half_sample_eigenvalues``): they give ``interval``. ``kind`` forces
    one. Raises ValueError for a zero spectrum or fewer than 3 usable eigenvalues of a forced power or exponential.
    """
    lam = np.asarray(eigenvalues, dtype=np.float64)
    if not lam.size or not lam[0] > 0:
        raise ValueError("no decay fits a kernel whose eigenvalues are all zero")
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind: {kind!r} is not one of {', '.join(KINDS)}")
    rank, (first, last) = numerical_rank(lam), fit_range(lam)
    short = last - first + 1 < 3
    if short and kind in ("power", "exponential"):
        raise ValueError(f"a {kind} fit needs 3 eigenvalues between index {first} and {last}")
    if kind == "finite_rank" or (kind is None and (short or rank < lam.size)):
        level = float(np.log(lam[:rank]).mean())
        return Decay("finite_rank", 0.0, (0.0, 0.0), level, rank, 1, rank, {}, "none")
    errors = {k: _held_out_error(lam, first, last, k) for k in ("power", "exponential")}
    chosen = kind or min(errors, key=lambda k: errors[k])
    slope, level, half_width = _regress(lam, first, last, chosen)
    interval, how = (slope - half_width, slope + half_width), "regression"
    if samples:
        slopes = [_regress(s, *fit_range(s), chosen)[0] for s in samples if s.size and fit_range(s)[1] >= 4]
        if len(slopes) >= 2:  # halves of a handful of examples have too few eigenvalues
            spread = np.quantile(slopes, [0.025, 0.975]) - np.median(slopes)
            interval, how = (slope + float(spread[0]), slope + float(spread[1])), "half-samples"
    return Decay(chosen, slope, interval, level, rank, first, last, errors, how)


def _axis(first: int, last: int, kind: str) -> np.ndarray:
    i = np.arange(first, last + 1, dtype=np.float64)
    return np.log(i) if kind == "power" else i


def _regress(lam: np.ndarray, first: int, last: int, kind: str) -> tuple[float, float, float]:
    """Slope (positive for decay), intercept and half-width of the 95 % interval of log lambda on the axis of kind."""
    x, y = _axis(first, last, kind), np.log(lam[first - 1 : last])
    slope, level, error = least_squares(x, y)
    width = scipy.special.stdtrit(x.size - 2, 0.975) * error if x.size > 2 else np.inf
    return float(-slope), float(level), float(width)


def least_squares(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Return slope, intercept and the slope's standard error (0 for two points) of the line through points [k >= 2].

    The numbers of ``scipy.stats.linregress``, without the seconds that importing ``scipy.stats`` costs every job.
    """
    xx, xy, _, yy = np.cov(x, y, bias=True).flat
    r = float(np.clip(xy / np.sqrt(xx * yy), -1, 1)) if xx * yy else 0.0
    slope = xy / xx
    error = np.sqrt((1 - r**2) * yy / xx / (x.size - 2)) if x.size > 2 else 0.0
    return slope, np.mean(y) - slope * np.mean(x), error


def _held_out_error(lam: np.ndarray, first: int, last: int, kind: str) -> float:
    """Mean squared error of log lambda on the last third of the range, fitted on the rest."""
    cut = first + max(2, (2 * (last - first + 1)) // 3) - 1
    slope, level, _ = _regress(lam, first, cut, kind)
    x, y = _axis(cut + 1, last, kind), np.log(lam[cut:last])
    return float(np.mean((y - level + slope * x) ** 2)) if x.size else np.inf


def projected_eigenvalues(matrix: np.ndarray, columns: int = 1, intercept: bool = False) -> np.ndarray:
    """Return the eigenvalues of P K/m P, descending, clipped at 0, without the q zeros of a fitted intercept."""
    block = np.asarray(matrix, dtype=np.float64)
    n = block.shape[0] // columns
    for _ in range(2 * intercept):
        by_example = block.reshape(n, columns, -1)
        block = (by_example - by_example.mean(axis=0)).reshape(block.shape).T
    values = np.linalg.eigvalsh((block + block.T) / (2 * block.shape[0]))[::-1]
    return np.maximum(values[: values.size - columns * intercept], 0.0)


def half_sample_eigenvalues(
    matrix: np.ndarray, columns: int = 1, intercept: bool = False, draws: int = 100, seed: int = 0
) -> list[np.ndarray]:
    """Return the eigenvalues of K/m over random halves of the examples, ``draws`` arrays, seeded.

    Halves drawn without replacement (the delete-half jackknife, Shao & Wu 1989) vary as much as the whole sample does
    and, unlike a bootstrap with replacement, repeat no example: a repeated one would add a zero eigenvalue. Cost
    ``draws`` eigenvalue problems of size m/2.
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    n, rng = matrix.shape[0] // columns, np.random.default_rng(seed)
    out = []
    for _ in range(draws):
        rows = (rng.permutation(n)[: max(n // 2, 1), None] * columns + np.arange(columns)).ravel()
        out.append(projected_eigenvalues(matrix[np.ix_(rows, rows)], columns, intercept))
    return out


@dataclass(frozen=True)
class Rate:
    """The predicted exponent of the excess risk in n: risk ~ n^slope, with its 95 % interval."""

    slope: float
    interval: tuple[float, float]
    formula: str


def predicted_rate(decay: Decay, m: int | None = None) -> Rate:
    """Return the slope of log risk in log m that a decay implies, at the optimal stopping time.

    Power law: -2 beta / (2 beta + 1). Finite rank: -1. Exponential: the risk is sigma^2 log(m)/m, whose slope at m is
    -1 + 1/log m (-1 when ``m`` is None). Raskutti, Wainwright & Yu (JMLR 2014), corollaries 3 and 4.
    """
    if decay.kind == "power":
        e, low, high = (max(v, 0.0) for v in (decay.exponent, *decay.interval))
        return Rate(-e / (e + 1), (-high / (high + 1), -low / (low + 1)), "-2b/(2b+1)")
    if decay.kind == "exponential" and m is not None and m > 2:
        slope_m = -1 + 1 / float(np.log(m))
        return Rate(slope_m, (slope_m, slope_m), "-1+1/log(m)")
    return Rate(-1.0, (-1.0, -1.0), "-1")


def spectrum_convergence(
    matrix: np.ndarray,
    columns: int = 1,
    intercept: bool = False,
    sizes: Sequence[int] = (),
    top: int = 10,
    mu: float | None = None,
) -> list[dict]:
    """Return how the spectrum of K/m settles on nested samples: the leading blocks of ``sizes`` examples.

    One row per size: the ``top`` eigenvalues, their ``change`` |lambda(n) - lambda(n_max)| / |lambda(n_max)| (Euclidean
    norm over the top), trace, stable rank, and effective dimension at one ``mu`` for all sizes (default: the mean
    eigenvalue of the largest). Koltchinskii & Giné (2000): the change falls like n^(-1/2). Cost O(m^3) a size.
    """
    matrix, sizes = np.asarray(matrix, dtype=np.float64), sorted(sizes)
    spectra = [projected_eigenvalues(matrix[: n * columns, : n * columns], columns, intercept) for n in sizes]
    last, rows = spectra[-1], []
    mu = mu if mu is not None else max(float(last.mean()), np.finfo(float).tiny)
    for n, lam in zip(sizes, spectra, strict=True):
        k = min(top, lam.size)
        scale = float(np.linalg.norm(last[:k]))
        rows.append(
            {
                "n": int(n),
                "eigenvalues": lam[:k].tolist(),
                "change": float(np.linalg.norm(lam[:k] - last[:k]) / scale) if scale > 0 else 0.0,
                "trace": float(lam.sum()),
                "stable_rank": stable_rank(lam),
                "effective_dimension": effective_dimension(lam, mu),
            }
        )
    return rows
