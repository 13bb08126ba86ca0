"""Is training what the theory says? The real training residual in the eigen-directions of the kernel, along a run."""

from __future__ import annotations

from typing import Any

import numpy as np

from stopwise.linearized.filters import Filter
from stopwise.linearized.spectrum import Spectrum

TOP = 10  # directions shown one by one; the others are summed


def residual_decay(
    spec: Spectrum, residual: np.ndarray, outputs: dict[int, np.ndarray], filter: Filter | None, top: int = TOP
) -> list[dict[str, Any]]:
    """Return what is left of the training residual by direction: rows with step, direction, measured and predicted.

    ``residual`` is y - f0 [n, columns]; ``outputs`` maps a step to the real f_t on the training rows, without the
    intercept. Directions are the eigenvectors of K_n, from 1; direction 0 is the norm over all the others. Measured is
    |u_i'(y - b_hat - f_t)| over its value at the start, predicted |1 - s_i(t)|, or None without
    a ``filter``, for training that follows none.
    """
    steps = sorted(outputs)
    z0 = spec.training_coefficients(residual)
    moved = {step: spec.raw.vectors.T @ np.ravel(outputs[step] - outputs[steps[0]]) for step in steps}
    left = np.stack([z0 - moved[step] for step in steps])
    curves = {"measured": left}
    if filter is not None:
        curves["predicted"] = (1 - filter.shrinkage(spec.raw.eigenvalues, np.array(steps))) * z0
    rows: list[dict[str, Any]] = []
    for k, step in enumerate(steps):
        for i in range(min(top, spec.m)):
            shares = {name: abs(values[k, i] / z0[i]) if z0[i] else None for name, values in curves.items()}
            rows.append({"step": step, "direction": i + 1, "predicted": None, **shares})
        if spec.m > top and (rest := float(np.linalg.norm(z0[top:]))) > 0:
            shares = {name: float(np.linalg.norm(values[k, top:])) / rest for name, values in curves.items()}
            rows.append({"step": step, "direction": 0, "predicted": None, **shares})
    return rows
