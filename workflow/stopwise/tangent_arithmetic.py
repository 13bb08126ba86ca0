"""Addition of task vectors in three worlds: the real network, the linearised one, and vectors trained in the latter.

Variants of a table row: ``linearised`` (ordinary vectors, applied to the linearised network: post-hoc linearisation),
``tangent`` (vectors trained in the tangent space, applied there) and ``tangent_on_network`` (those vectors added to the
real weights). The ordinary vectors on the real network are the ``arithmetic`` artifact.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from stopwise.arithmetic import SPLITS, Evaluation, Row, TaskData, Workbench
from stopwise.tangent import TangentBench
from stopwise.task_vectors import TaskVector

# The evaluation of a task on a split at theta_0 + sum_i x_i tau_i.
Measure = Callable[[Mapping[str, float], Sequence[str]], dict[tuple[str, str], Evaluation]]


def tangent_rows(
    bench: Workbench, tangent_vectors: Mapping[str, TaskVector], coefficients: Sequence[float]
) -> list[Row]:
    """Return the rows of a ``tangent_arithmetic`` artifact: every pair added, in every variant, at every coefficient.

    The coefficient with the lowest mean validation loss of a variant and pair is ``chosen``. Cost: one Jacobian-vector
    product (about three forward passes) over all tasks' held-out examples for each vector of either kind; then the real
    network once for each pair and coefficient.
    """
    trained = {name: TaskData(tangent_vectors[name], data.validation, data.test) for name, data in bench.tasks.items()}
    other = Workbench(bench.model, trained, **bench.options)
    variants = {
        "linearised": _linearised(TangentBench(bench)),
        "tangent": _linearised(TangentBench(other)),
        "tangent_on_network": _real(other),
    }
    return [row for name, measure in variants.items() for row in _rows(name, measure, list(bench.tasks), coefficients)]


def _linearised(tangent: TangentBench) -> Measure:
    def measure(point: Mapping[str, float], tasks: Sequence[str]) -> dict[tuple[str, str], Evaluation]:
        keys = itertools.product(tasks, SPLITS)
        return {(t, s): tangent.bench.judge(t, s, np.asarray(tangent.outputs(point, t, s))) for t, s in keys}

    return measure


def _real(bench: Workbench) -> Measure:
    def measure(point: Mapping[str, float], tasks: Sequence[str]) -> dict[tuple[str, str], Evaluation]:
        if not point:
            return {(task, split): bench.zero_shot(task, split) for task in tasks for split in SPLITS}
        vector: Any = sum(x * bench.tasks[name].vector for name, x in point.items())
        return bench.measure(vector, 1.0, tasks)

    return measure


def _rows(variant: str, measure: Measure, tasks: Sequence[str], coefficients: Sequence[float]) -> Iterator[Row]:
    start = measure({}, tasks)
    single = {key: found for task in tasks for key, found in measure({task: 1.0}, [task]).items()}
    for a, b in itertools.combinations(tasks, 2):
        merged = {float(x): measure({a: x, b: x}, (a, b)) for x in coefficients}
        best = min(merged, key=lambda x: (_validation_loss(merged[x]), x))
        for x, found in merged.items():
            for (task, split), own in found.items():
                key = task, split
                yield {
                    "variant": variant,
                    "task_a": a,
                    "task_b": b,
                    "coefficient": x,
                    "task": task,
                    "split": split,
                    "accuracy": own.accuracy,
                    "accuracy_zero_shot": start[key].accuracy,
                    "accuracy_single": single[key].accuracy,
                    "loss": own.loss,
                    "loss_zero_shot": start[key].loss,
                    "loss_single": single[key].loss,
                    "chosen": x == best,
                }


def _validation_loss(found: Mapping[tuple[str, str], Evaluation]) -> float:
    losses = [own.loss for (_, split), own in found.items() if split == "validation"]
    return float(np.mean(losses)) if np.isfinite(losses).all() else np.inf
