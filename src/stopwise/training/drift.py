"""How far the kernel and the weights move while the network trains: the drift that a linearised model leaves out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def check_interval(steps: int, checkpoints: int) -> int:
    """Return the interval in steps, at least 1, at which about ``checkpoints`` kernels lie between start and end."""
    return max(1, round(steps / checkpoints))


def drift_rows(
    kernels: Mapping[int, Any], distances: Sequence[Mapping[str, Any]], trajectory: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return rows (step, layer, drift, alignment, relative_distance) of the ``drift`` artifact, whole model first.

    ``kernels``: by step, kernels of the same examples (``matrix`` and ``by_layer``), the start at step 0.
    ``distances``: rows (step, layer, relative_distance) of |theta_t - theta_0| / |theta_0| by layer;
    ``trajectory``: the same for the whole model. drift is |K_t - K_0|_F / |K_0|_F, alignment the cosine
    <K_t, K_0> / (|K_t|_F |K_0|_F), which a mere change of scale leaves at 1; both are missing where a kernel is zero.
    ``layer`` is None for the whole model. Raises ValueError without a kernel at step 0.
    """
    if 0 not in kernels:
        raise ValueError(f"kernel drift needs the kernel at step 0, found steps {sorted(kernels)}")
    moved: dict[tuple[int, str | None], float] = {(row["step"], None): row["relative_distance"] for row in trajectory}
    moved |= {(row["step"], row["layer"]): row["relative_distance"] for row in distances}
    start, rows = kernels[0], []
    for step in sorted(kernels):
        found = kernels[step]
        parts = {None: (start.matrix, found.matrix)}
        parts |= {layer: (start.by_layer[layer], found.by_layer[layer]) for layer in start.by_layer}
        for layer, (before, after) in parts.items():
            row = {"step": step, "layer": layer, "relative_distance": moved.get((step, layer))}
            rows.append(row | _change(before, after))
    return rows


def _change(before: np.ndarray, after: np.ndarray) -> dict[str, float | None]:
    old, new = float(np.linalg.norm(before)), float(np.linalg.norm(after))
    return {
        "drift": float(np.linalg.norm(after - before)) / old if old > 0 else None,
        "alignment": float(np.sum(before * after)) / (old * new) if old > 0 and new > 0 else None,
    }
