"""Is training what the theory says? What is left to learn in the eigen-directions of the kernel, along a real run."""

from __future__ import annotations

from typing import Any

import numpy as np

from stopwise.linearized.filters import Filter
from stopwise.linearized.objectives import Objective
from stopwise.linearized.spectrum import Spectrum

TOP = 10  # directions shown one by one; the others are summed


def residual_decay(
    spec: Spectrum, residual: np.ndarray, outputs: dict[int, np.ndarray], filter: Filter | None, top: int = TOP
) -> list[dict[str, Any]]:
    """Return what is left of the residual of squared loss by direction: rows with step, direction, measured, predicted.

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
    return _shares(steps, z0, curves, top)


def error_decay(
    spec: Spectrum, objective: Objective, outputs: dict[int, np.ndarray], path: np.ndarray | None, top: int = TOP
) -> list[dict[str, Any]]:
    """Return what is left of the errors under cross-entropy by direction: the rows of ``residual_decay``.

    The error of an example is its label less its probabilities, minus the gradient of the loss in its outputs: it
    falls to 0 as training learns, while the outputs grow without end. ``objective`` is that of the training examples,
    without an intercept; ``path``: the predicted outputs minus f0 [steps + 1, n columns], or None.
    """
    steps = sorted(outputs)
    everything = np.arange(len(objective.labels))

    def errors(f: np.ndarray) -> np.ndarray:
        return -len(everything) * spec.raw.vectors.T @ np.ravel(objective.gradient(f, everything))

    start = np.asarray(outputs[steps[0]], dtype=np.float64)
    curves = {"measured": np.stack([errors(outputs[step]) for step in steps])}
    if path is not None:
        curves["predicted"] = np.stack([errors(start + path[step].reshape(start.shape)) for step in steps])
    return _shares(steps, curves["measured"][0], curves, top)


def _shares(steps: list[int], z0: np.ndarray, curves: dict[str, np.ndarray], top: int) -> list[dict[str, Any]]:
    """Return the rows of coefficients [steps, m] as shares of those at the start, the last ones together."""
    rows: list[dict[str, Any]] = []
    for k, step in enumerate(steps):
        for i in range(min(top, len(z0))):
            shares = {name: abs(values[k, i] / z0[i]) if z0[i] else None for name, values in curves.items()}
            rows.append({"step": step, "direction": i + 1, "predicted": None, **shares})
        if len(z0) > top and (rest := float(np.linalg.norm(z0[top:]))) > 0:
            shares = {name: float(np.linalg.norm(values[k, top:])) / rest for name, values in curves.items()}
            rows.append({"step": step, "direction": 0, "predicted": None, **shares})
    return rows
