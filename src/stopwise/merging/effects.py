"""What one task's vector does to another task, as three numbers that split exactly by layer or module type (numpy).

For a change v = f(theta_0 + tau_b) - f0 of the outputs of task a, and a's residual r = y - b_hat - f0:

- ``interference`` |v|/|r|: how much b's vector moves a at all;
- ``transfer`` <v, r>/|r|^2: the share of what a has to learn that b's vector brings (negative: takes away);
- ``cosine`` of the two vectors in weight space.

A part v_l of v counts <v_l, v>/(|v||r|) and <v_l, r>/|r|^2, so that the parts add up to the whole.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from stopwise.artifacts.task_blocks import GROUPINGS
from stopwise.merging.tangent_space import SPLITS, TangentSpace

Row = dict[str, Any]
WHOLE = "whole"


def effects(change: np.ndarray, residual: np.ndarray, part: np.ndarray | None = None) -> dict[str, float | None]:
    """Return interference and transfer of a change, or the contribution of one of its parts; arrays [n, columns].

    None where nothing is left to learn; a change of zero interferes with 0.
    """
    part = change if part is None else part
    size, left = float(np.linalg.norm(change)), float(np.linalg.norm(residual))
    if left == 0 or not np.isfinite(size):
        return {"interference": None, "transfer": None}
    along = float(np.sum(part * change)) / size if size > 0 else 0.0
    return {"interference": along / left, "transfer": float(np.sum(part * residual)) / left**2}


def predicted_rows(space: TangentSpace, method: str) -> list[Row]:
    """Return the rows of an ``interference`` artifact that the kernels predict, whole and by layer and module type."""
    rows: list[Row] = []
    for a, b in itertools.permutations(space.tasks, 2):
        for split in SPLITS:
            residual, change = space.tasks[a].residual(split), space.change(a, b, split)
            rows += _effect_rows(method, split, a, b, WHOLE, "", effects(change, residual))
            for grouping in GROUPINGS:
                for name, part in space.parts(grouping, a, b, split).items():
                    rows += _effect_rows(method, split, a, b, grouping, name, effects(change, residual, part))
    for a, b in itertools.combinations(space.tasks, 2):
        rows.append(_row(method, "cosine", None, a, b, WHOLE, "", space.cosine(a, b)))
        for grouping in GROUPINGS:
            for name, value in space.cosine_parts(grouping, a, b).items():
                rows.append(_row(method, "cosine", None, a, b, grouping, name, value))
    return rows


def measured_rows(
    changes: Mapping[tuple[str, str, str], np.ndarray],
    residuals: Mapping[tuple[str, str], np.ndarray],
    cosines: Mapping[tuple[str, str], Mapping[tuple[str, str], float]],
) -> list[Row]:
    """Return the rows of an ``interference`` artifact that were measured on the real network.

    ``changes`` by (a, b, split): f(theta_0 + tau_b) - f0 on task a; ``residuals`` by (a, split); ``cosines`` by (a, b):
    the saved vectors' cosine by (grouping, part), with the whole under (``whole``, "").
    """
    rows: list[Row] = []
    for (a, b, split), change in changes.items():
        rows += _effect_rows("measured", split, a, b, WHOLE, "", effects(change, residuals[a, split]))
    for (a, b), parts in cosines.items():
        rows += [_row("measured", "cosine", None, a, b, *where, value) for where, value in parts.items()]
    return rows


def _effect_rows(
    method: str, split: str, a: str, b: str, grouping: str, part: str, found: Mapping[str, float | None]
) -> Iterable[Row]:
    return [_row(method, quantity, split, a, b, grouping, part, value) for quantity, value in found.items()]


def _row(
    method: str, quantity: str, split: str | None, a: str, b: str, grouping: str, part: str, value: float | None
) -> Row:
    return {
        "method": method,
        "quantity": quantity,
        "split": split,
        "task_a": a,
        "task_b": b,
        "grouping": grouping,
        "part": part,
        "value": None if value is None or not np.isfinite(value) else float(value),
    }
