"""Task arithmetic in the tangent space: what merging does to the linearised network, beside the real one.

A task vector, however it was trained, moves the linearised network by J tau: one Jacobian-vector product gives the
outputs at every coefficient, and sums of vectors are sums of outputs (Ortiz-Jimenez et al., 2023).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from stopwise.arithmetic import SPLITS, TOKENS_PER_BATCH, Row, Workbench
from stopwise.learner import Prompts, TangentLearner
from stopwise.outputs import predicted_class
from stopwise.task_vectors import TaskVector


def tangent_outputs(
    model: Any, batch: Mapping[str, torch.Tensor], vector: TaskVector, *, outputs: str = "contrast"
) -> tuple[np.ndarray, np.ndarray]:
    """Return (f0, J tau), both [n, columns]: post-hoc linearisation of a vector at the model's present weights.

    f0 + c J tau are the outputs of the linearised network at theta_0 + c tau. Costs about three forward passes; J is
    never formed. Raises ValueError when the vector does not fit the model.
    """
    return _learner(model, vector, outputs).displaced(Prompts.of(batch, TOKENS_PER_BATCH))


def _learner(model: Any, vector: TaskVector, outputs: str) -> TangentLearner:
    parameters = dict(model.named_parameters())
    wrong = [name for name in vector if name not in parameters or parameters[name].shape != vector.specs[name].shape]
    if wrong:
        raise ValueError(f"task vector does not fit the model: {', '.join(wrong[:20])}")
    learner = TangentLearner(model, {name: parameters[name] for name in vector}, outputs)
    for delta, name in zip(learner.tensors, vector, strict=True):
        delta.copy_(vector[name])
    return learner


class TangentBench:
    """The linearised outputs of every task's vector on every task's held-out batches: one product each, done once."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self.start: dict[tuple[str, str], np.ndarray] = {}
        self.change: dict[tuple[str, str, str], np.ndarray] = {}
        for name, task in bench.tasks.items():
            learner = _learner(bench.model, task.vector, bench.options["outputs"])
            for key, prompts in bench.prompts.items():
                self.start[key], self.change[name, *key] = learner.displaced(prompts)

    def outputs(self, point: Mapping[str, float], task: str, split: str) -> np.ndarray:
        """Return the linearised outputs at theta_0 + sum_i c_i tau_i, without the intercept."""
        return self.start[task, split] + sum(c * self.change[name, task, split] for name, c in point.items())

    def grid(self, tasks: Sequence[str], points: Iterable[Sequence[float]]) -> list[Row]:
        """Return rows as ``Workbench.grid`` does, of the linearised network (method ``addition_linearised``)."""
        rows = []
        for point, task, split in itertools.product(points, tasks, SPLITS):
            f = self.outputs(dict(zip(tasks, point, strict=True)), task, split)
            found = self.bench.judge(task, split, f)
            rows.append(self.bench.row("addition_linearised", tasks, point, task, split, found))
        return rows


def disentanglement(
    bench: Workbench, a: str, b: str, coefficients: Sequence[float], tangent: TangentBench | None = None
) -> list[Row]:
    """Return the weight disentanglement error xi over the plane of coefficients, on the test batches.

    xi(c_a, c_b) = sum over t in {a, b} of the share of task t's examples whose predicted class differs between
    theta_0 + c_t tau_t and theta_0 + c_a tau_a + c_b tau_b, each with t's intercept; between 0 (no interference) and 2.
    ``xi_linearised`` is the same of the linearised network, where ``tangent`` is given.
    """
    alone = {
        (task, c): bench.measure(bench.tasks[task].vector, c, [task], ["test"])[task, "test"].outputs
        for task in (a, b)
        for c in coefficients
    }
    rows = []
    for c_a, c_b in itertools.product(coefficients, repeat=2):
        merged = bench.measure(c_a * bench.tasks[a].vector + c_b * bench.tasks[b].vector, 1.0, (a, b), ["test"])
        point = {a: c_a, b: c_b}
        errors = [_changed(bench, t, alone[t, point[t]], merged[t, "test"].outputs) for t in (a, b)]
        row: Row = {"task_a": a, "task_b": b, "c_a": float(c_a), "c_b": float(c_b), "xi": sum(errors)}
        if tangent is not None:
            row["xi_linearised"] = sum(
                _changed(bench, t, tangent.outputs({t: point[t]}, t, "test"), tangent.outputs(point, t, "test"))
                for t in (a, b)
            )
        rows.append(row)
    return rows


def _changed(bench: Workbench, task: str, f: np.ndarray, g: np.ndarray) -> float:
    """Return the share of examples whose predicted class differs between outputs f and g, intercept included."""
    data, outputs = bench.tasks[task], bench.options["outputs"]
    classes = len(data.test["verbalizers"])
    first, second = (predicted_class(h + data.offset, classes, outputs) for h in (f, g))
    return float(np.mean(first != second))
