"""What the theory guarantees for the training loss, known from the kernel before the first step."""

from __future__ import annotations

import numpy as np

from stopwise.linearized.filters import Filter
from stopwise.linearized.spectrum import Spectrum

GRID = 400  # points at which the worst eigenvalue is looked for, beside the kernel's own
PENALTIES = np.geomspace(1e-3, 1e3, 61)  # of 1/eta


def loss_guarantee(spec: Spectrum, residual: np.ndarray, filter: Filter, steps: np.ndarray) -> np.ndarray:
    """Return an upper bound of the linearised training loss (mean over rows of the squared residual) at each step.

    Descent on a convex loss is at eta below the value of the problem with ridge penalty mu = 1/eta,
    V(mu) = min_f (1/m)|r - f|^2 + mu |f|^2 = (1/m) sum z_i^2 mu/(lambda_i + mu), since (1 - s)^2 <= 1/(1 + eta lambda).
    Any other filter stays below min over mu of C(mu) V(mu), C(mu) = max over lambda <= lambda_1 of (1 - s(lambda))^2
    (1 + lambda/mu): momentum that swings pays for it in C. V is taken of P r with a fitted intercept. Returns float64,
    the shape of ``steps``. Cost O(len(steps) m) beside the decomposition.
    """
    lam, z2 = spec.raw.eigenvalues, spec.training_coefficients(residual) ** 2 / spec.m
    # The kernel's own eigenvalues are among the points, so the maximum of C is never below the one that counts.
    points = np.concatenate([[0.0], spec.lambda_max * np.geomspace(1e-6, 1.0, GRID), lam])
    left = (1 - filter.shrinkage(points, np.asarray(steps))) ** 2
    eta = np.asarray(filter.eta(np.asarray(steps)), dtype=np.float64)
    bounds = []
    for share, time in zip(left, eta, strict=True):
        mu = PENALTIES[:, None] / time if time > 0 else np.full((1, 1), np.inf)
        worst = np.max(share * (1 + points / mu), axis=1)
        bounds.append(np.min(worst * np.sum(z2 / (1 + lam / mu), axis=1)))
    return np.array(bounds)
