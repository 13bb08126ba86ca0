"""The rows of the measured artifacts of task arithmetic: what merging does, and what vectors do to other tasks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stopwise.merging.effects import WHOLE, measured_rows
from stopwise.merging.workbench import Workbench, all_pairs, negation
from stopwise.network.task_vectors import TaskVector, layer_of

SPLIT = "test"


def interference_rows(bench: Workbench) -> list[dict[str, Any]]:
    """Return the measured rows of an ``interference`` artifact: every vector at coefficient 1 on every other task.

    Cost: one forward pass over the test examples of all other tasks for each vector, and one pass over the weights of
    each pair of vectors.
    """
    changes, residuals = {}, {}
    for b, data in bench.tasks.items():
        others = [name for name in bench.tasks if name != b]
        for (a, split), found in bench.measure(data.vector, 1.0, others, [SPLIT]).items():
            start = bench.zero_shot(a, split).outputs
            changes[a, b, split] = np.asarray(found.outputs, dtype=np.float64) - start
    for a in bench.tasks:
        residuals[a, SPLIT] = bench.residual(a, SPLIT)
    pairs = itertools.combinations(bench.tasks, 2)
    cosines = {(a, b): cosine_parts(bench.tasks[a].vector, bench.tasks[b].vector) for a, b in pairs}
    return measured_rows(changes, residuals, cosines)


def cosine_parts(left: TaskVector, right: TaskVector) -> dict[tuple[str, str], float]:
    """Return the cosine of two vectors, whole and as contributions of layers and module types that add up to it.

    Keys are (grouping, part). All are NaN when a vector is zero. Raises ValueError when the vectors do not match.
    """
    if left.specs.keys() != right.specs.keys():
        left.dot(right)  # raises with the list of names
    found: dict[tuple[str, str], float] = {(WHOLE, ""): 0.0}
    squares = np.zeros(2)
    for name in left:
        first, second = left.double(name).flatten(), right.double(name).flatten()
        product = float(first @ second)
        squares += [float(first @ first), float(second @ second)]
        for home in [(WHOLE, ""), *_homes(name).items()]:
            found[home] = found.get(home, 0.0) + product
    norms = math.sqrt(squares.prod())
    return {key: value / norms if norms > 0 else math.nan for key, value in found.items()}


def _homes(name: str) -> Mapping[str, str]:
    """Return the layer of a parameter and the type of its module, named as the kernel's parts are."""
    layer, module = layer_of(name), name.rpartition(".")[0]
    return {"layer": layer, "type": module.removeprefix(layer).removeprefix(".") or module}


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
