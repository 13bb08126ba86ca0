"""Task arithmetic in the tangent space: what merging does to the linearised network, beside the real one.

A task vector, however it was trained, moves the linearised network by J tau: one Jacobian-vector product gives the
outputs at every coefficient, and sums of vectors are sums of outputs (Ortiz-Jimenez et al., 2023).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from stopwise.linearized.coding import predicted_class
from stopwise.merging.workbench import SPLITS, TOKENS_PER_BATCH, Evaluation, Row, TaskData, Workbench
from stopwise.network.learner import Prompts, TangentLearner
from stopwise.network.task_vectors import TaskVector


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
