"""The rows of the ``spectrum`` and ``decay`` artifacts."""

from __future__ import annotations

from typing import Any

import numpy as np

from stopwise.linearized.decay import alignment, decay_fit, effective_dimension, half_sample_eigenvalues, stable_rank
from stopwise.linearized.noise import estimate_noise
from stopwise.linearized.spectrum import Spectrum

HALF_SAMPLES = 40  # resampled halves of the examples behind the interval of an exponent


def spectrum_rows(n: int, spec: Spectrum, residual: np.ndarray) -> list[dict[str, Any]]:
    """Return one row per eigenvalue: index, eigenvalue, coefficient of the residual y - f0 and the fitted law."""
    z = spec.coefficients(residual)
    index = np.arange(1, spec.m + 1)
    fit = decay_fit(_distinct(spec)[1])
    fitted = fit.predict(index)
    return [
        {
            "n": n,
            "index": int(i),
            "eigenvalue": float(spec.eigenvalues[i - 1]),
            "coefficient": float(z[i - 1]),
            "fitted": float(fitted[i - 1]) if fit.first <= i <= fit.last else None,
        }
        for i in index
    ]


def _distinct(spec: Spectrum) -> tuple[Spectrum, np.ndarray]:
    """The spectrum without repeated examples, whose zeros would pass for a finite rank, and its eigenvalues over m."""
    distinct, rows = spec.without_repeats()
    return distinct, distinct.eigenvalues[: distinct.degrees] * (rows.size / spec.m)


def decay_row(n: int, spec: Spectrum, residual: np.ndarray, noise: str, seed: int = 0) -> dict[str, Any]:
    """Return the fitted decay with its interval over half-samples of the examples, and one-number summaries.

    The effective dimension is taken at the estimated mu = sigma^2/tau^2 (at the mean eigenvalue when there is none).
    """
    lam = spec.eigenvalues[: spec.degrees]
    distinct, decaying = _distinct(spec)
    fit = decay_fit(
        decaying, half_sample_eigenvalues(distinct.matrix, spec.columns, spec.intercept, HALF_SAMPLES, seed)
    )
    estimated = estimate_noise(spec, residual, noise)
    mu = estimated.mu if estimated.usable and np.isfinite(estimated.mu) and estimated.mu > 0 else float(lam.mean())
    return {
        "n": n,
        "m": spec.m,
        "kind": fit.kind,
        "exponent": fit.exponent,
        "exponent_low": fit.interval[0],
        "exponent_high": fit.interval[1],
        "trace": float(lam.sum()),
        "stable_rank": stable_rank(lam),
        "effective_dimension": float(effective_dimension(lam, mu)),
        "mu": mu,
        "alignment_top10": float(alignment(spec.coefficients(residual), 10)),
    }
