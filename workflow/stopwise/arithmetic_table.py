"""The rows of the ``arithmetic`` artifact: every pair added, every task negated, on one set of vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stopwise.arithmetic import Workbench, all_pairs, negation


def arithmetic_rows(bench: Workbench, coefficients: Sequence[float], tolerance: float) -> list[dict[str, Any]]:
    """Return addition over all pairs and negation of every task against all others as controls.

    ``coefficient`` is the scale c > 0 of theta_0 + c (tau_a + tau_b) or theta_0 - c tau_a. Beside each accuracy
    and loss stand the zero-shot one (intercept included) and that of the evaluated task's own vector alone at
    coefficient 1.
    """
    rows = []
    for row in all_pairs(bench, coefficients):
        task_a, task_b = row["tasks"].split("+")
        rows.append(_row(bench, "addition", task_a, task_b, row))
    for task in bench.tasks:
        controls = [name for name in bench.tasks if name != task]
        rows += [
            _row(bench, "negation", task, None, row) for row in negation(bench, task, controls, coefficients, tolerance)
        ]
    return rows


def _row(bench: Workbench, kind: str, task_a: str, task_b: str | None, row: dict[str, Any]) -> dict[str, Any]:
    task, split = row["task"], row["split"]
    return {
        "kind": kind,
        "task_a": task_a,
        "task_b": task_b,
        "coefficient": abs(row["coefficients"][0]),
        "task": task,
        "split": split,
        "accuracy": row["accuracy"],
        "normalised_accuracy": row["normalised_accuracy"],
        "accuracy_zero_shot": bench.zero_shot(task, split).accuracy,
        "accuracy_single": bench.own(task, split).accuracy,
        "loss": row["loss"],
        "loss_zero_shot": bench.zero_shot(task, split).loss,
        "loss_single": bench.own(task, split).loss,
        "chosen": row["chosen"],
    }
