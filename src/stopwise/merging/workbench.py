"""Task arithmetic measured: addition, negation, analogy and averages of task vectors, on the real network.

A ``Workbench`` holds one model and its tasks. It sets the weights to theta_0 + sum_i c_i tau_i, measures, and puts the
very bits of theta_0 back. Every grid point becomes a row for validation and for test; a coefficient is chosen on
validation alone, and nothing is normalised but what a column's name says. Each task keeps its own intercept b_hat, also
in a merge.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from stopwise.artifacts.sample import read_sample
from stopwise.artifacts.tables import ArtifactError, read_provenance
from stopwise.linearized.coding import targets
from stopwise.linearized.objectives import Objective
from stopwise.network.learner import Learner, Prompts
from stopwise.network.task_vectors import TaskVector, moved
from stopwise.tasks.batch import batch_from_table

Batch = Mapping[str, torch.Tensor]
Row = dict[str, Any]
SPLITS = ("validation", "test")
TOKENS_PER_BATCH = 1024
NEAR = 0.25  # of a GPU's memory: the most that vectors take which are kept there


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Loss (mean over rows of (y - b - f)^2), accuracy, and outputs f [n, columns] without the intercept."""

    loss: float
    accuracy: float
    outputs: np.ndarray


@dataclass(frozen=True, eq=False)
class TaskData:
    """What arithmetic needs of a task: its vector, held-out batches, and b_hat (the vector's own when None)."""

    vector: TaskVector
    validation: Batch
    test: Batch
    intercept: Sequence[float] | np.ndarray | None = None

    @property
    def offset(self) -> np.ndarray:
        """b_hat as float64 [columns]; zero when there is none."""
        found = self.intercept if self.intercept is not None else self.vector.intercept()
        return np.zeros(1) if found is None else np.asarray(found, dtype=np.float64)


def evaluate(
    model: Any,
    batch: Batch,
    intercept: Sequence[float] | np.ndarray | None = None,
    *,
    outputs: str = "contrast",
    target_scale: float = 1.0,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    autocast: str | None = None,
) -> Evaluation:
    """Measure a model with the weights it has on one labelled batch; no gradients, one forward pass."""
    prompts = Prompts.of(batch, tokens_per_batch, model)
    f = Learner(model, {}, outputs, autocast).predict(prompts)
    return judged(f, batch, intercept, outputs=outputs, target_scale=target_scale)


def judged(
    f: np.ndarray,
    batch: Batch,
    intercept: Sequence[float] | np.ndarray | None = None,
    *,
    outputs: str = "contrast",
    target_scale: float = 1.0,
) -> Evaluation:
    """Return the evaluation of outputs f [n, columns] that are already there (measured or predicted)."""
    offset = np.zeros(1) if intercept is None else np.asarray(intercept, dtype=np.float64)
    labels, classes = np.asarray(batch["labels"]), len(batch["verbalizers"])
    objective = Objective("squared", labels, classes, outputs, target_scale, offset)
    return Evaluation(objective.loss(f), objective.accuracy(f), f)


@contextmanager
def applied(model: torch.nn.Module, vector: TaskVector, scaling_coef: float = 1.0) -> Iterator[torch.nn.Module]:
    """Let the model have weights theta_0 + scaling_coef * vector inside a block, and its old bits after it.

    The old weights are copied back, not recomputed. Memory: the weights that the vector changes. Raises ValueError
    listing the parameters that the model lacks.
    """
    parameters = dict(model.named_parameters())
    wrong = [name for name in vector if name not in parameters or parameters[name].shape != vector.specs[name].shape]
    if wrong:
        raise ValueError(f"task vector does not fit the model: {', '.join(wrong[:20])}")
    saved: dict[str, torch.Tensor] = {}
    try:
        with torch.no_grad():
            for name in vector:
                saved[name] = parameters[name].detach().clone()
                parameters[name].copy_(moved(saved[name], vector, name, scaling_coef))
        yield model
    finally:
        with torch.no_grad():
            for name, value in saved.items():
                parameters[name].copy_(value)


def _near(model: torch.nn.Module, tasks: Mapping[str, TaskData]) -> dict[str, TaskData]:
    """Return the tasks, their vectors where the model is if that is a GPU with room: every grid point needs them."""
    device = next(model.parameters()).device
    size = sum(spec.nbytes for task in tasks.values() for spec in task.vector.specs.values())
    if device.type != "cuda" or size > NEAR * torch.cuda.get_device_properties(device).total_memory:
        return dict(tasks)
    return {name: replace(task, vector=task.vector.kept_on(device)) for name, task in tasks.items()}


class Workbench:
    """A model and the tasks whose vectors are combined on it.

    ``outputs`` and ``target_scale`` are those of the training. Baselines (zero-shot, and each task's own vector at
    coefficient 1) are measured once, when first needed.
    """

    def __init__(
        self,
        model: Any,
        tasks: Mapping[str, TaskData],
        *,
        outputs: str = "contrast",
        target_scale: float = 1.0,
        autocast: str | None = None,
    ) -> None:
        self.model, self.tasks = model, _near(model, tasks)
        self.options: dict[str, Any] = {"outputs": outputs, "target_scale": target_scale}
        self.learner = Learner(model, {}, outputs, autocast)
        self.prompts = {
            (name, split): Prompts.of(getattr(task, split), TOKENS_PER_BATCH, model)
            for name, task in self.tasks.items()
            for split in SPLITS
        }
        self._zero: dict[tuple[str, str], Evaluation] = {}
        self._own: dict[tuple[str, str], Evaluation] = {}

    def measure_here(self, task: str, split: str, with_intercept: bool = True) -> Evaluation:
        """Measure one task on one split with the weights the model has now."""
        f = self.learner.predict(self.prompts[task, split])
        return self.judge(task, split, f, with_intercept)

    def judge(self, task: str, split: str, f: np.ndarray, with_intercept: bool = True) -> Evaluation:
        """Return the evaluation of outputs f on one task's split."""
        data = self.tasks[task]
        return judged(f, getattr(data, split), data.offset if with_intercept else None, **self.options)

    def measure(
        self, vector: TaskVector, scaling_coef: float, tasks: Iterable[str], splits: Sequence[str] = SPLITS
    ) -> dict[tuple[str, str], Evaluation]:
        """Measure theta_0 + scaling_coef * vector on several tasks; the model ends as it began."""
        with applied(self.model, vector, scaling_coef):
            return {(task, split): self.measure_here(task, split) for task in tasks for split in splits}

    def zero_shot(self, task: str, split: str) -> Evaluation:
        """Return the evaluation at theta_0, with the task's intercept."""
        if (task, split) not in self._zero:
            self._zero[task, split] = self.measure_here(task, split)
        return self._zero[task, split]

    def own(self, task: str, split: str) -> Evaluation:
        """Return the evaluation of the task's own vector at coefficient 1: what normalised accuracy is relative to."""
        if (task, split) not in self._own:
            found = self.measure(self.tasks[task].vector, 1.0, [task])
            self._own |= found
        return self._own[task, split]

    def residual(self, task: str, split: str) -> np.ndarray:
        """Return y - b_hat - f0, what a task has left to learn at theta_0; float64 [n, columns]."""
        data, start = self.tasks[task], self.zero_shot(task, split).outputs
        batch = getattr(data, split)
        scale = self.options["target_scale"]
        y = targets(np.asarray(batch["labels"]), len(batch["verbalizers"]), self.options["outputs"], scale)
        return y - data.offset - start

    def baselines(self) -> list[Row]:
        """Return rows of zero-shot with and without the intercept, and of each task's own vector."""
        rows = []
        for task, split in itertools.product(self.tasks, SPLITS):
            bare = self.judge(task, split, self.zero_shot(task, split).outputs, with_intercept=False)
            for method, coefficient, found in (
                ("zero_shot", 0.0, self.zero_shot(task, split)),
                ("zero_shot_without_intercept", 0.0, bare),
                ("own_vector", 1.0, self.own(task, split)),
            ):
                rows.append(self.row(method, [task], [coefficient], task, split, found))
        return rows

    def grid(
        self,
        method: str,
        tasks: Sequence[str],
        points: Iterable[Sequence[float]],
        measured_on: Sequence[str] | None = None,
    ) -> list[Row]:
        """Measure sum_i c_i tau_i over points (c_i belongs to tasks[i]): one row per point, task and split."""
        rows = []
        for point in points:
            vector: Any = sum(c * self.tasks[task].vector for c, task in zip(point, tasks, strict=True))
            for (task, split), found in self.measure(vector, 1.0, measured_on or tasks).items():
                rows.append(self.row(method, tasks, point, task, split, found))
        return rows

    def row(
        self, method: str, tasks: Sequence[str], point: Sequence[float], task: str, split: str, found: Evaluation
    ) -> Row:
        """Return one table row: coefficients c_i of ``tasks`` as measured on one task and split."""
        own = self.own(task, split).accuracy
        return {
            "method": method,
            "tasks": "+".join(tasks),
            "coefficients": [float(c) for c in point],
            "coefficient": float(point[0]) if len({abs(c) for c in point}) == 1 else None,
            "task": task,
            "split": split,
            "loss": found.loss,
            "accuracy": found.accuracy,
            "normalised_accuracy": found.accuracy / own if own > 0 else math.nan,
            "chosen": False,
        }


def addition(
    bench: Workbench, tasks: Sequence[str], coefficients: Sequence[float], criterion: str = "accuracy"
) -> list[Row]:
    """Add the tasks' vectors with one common coefficient: theta_0 + c sum_i tau_i, c chosen on validation.

    Scaling: none beyond c (c = 1 is the plain sum, c = 1/k the average). ``criterion``: accuracy (mean normalised
    accuracy, ties by loss) or loss (mean over tasks). Rows of the chosen c have ``chosen`` set, on both splits.
    """
    points = [[c] * len(tasks) for c in coefficients]
    return mark_best(bench.grid("addition", tasks, points), criterion)


def all_pairs(bench: Workbench, coefficients: Sequence[float], criterion: str = "accuracy") -> list[Row]:
    """Return the rows of ``addition`` over every pair of the bench's tasks."""
    pairs = itertools.combinations(bench.tasks, 2)
    return [row for pair in pairs for row in addition(bench, pair, coefficients, criterion)]


def addition_per_task(
    bench: Workbench, tasks: Sequence[str], coefficients: Sequence[float], criterion: str = "accuracy"
) -> list[Row]:
    """Add with one coefficient per task, chosen on validation.

    Two tasks: the whole grid. More: coordinate search over the same values from the best common one, until no single
    change improves; only the points visited are measured.
    """
    method = "addition_per_task"
    if len(tasks) == 2:
        return mark_best(bench.grid(method, tasks, itertools.product(coefficients, repeat=2)), criterion)
    rows = bench.grid(method, tasks, [[c] * len(tasks) for c in coefficients])
    seen = {tuple(row["coefficients"]) for row in rows}
    while True:
        best = best_point(rows, criterion)
        near = {(*best[:i], c, *best[i + 1 :]) for i in range(len(tasks)) for c in map(float, coefficients)} - seen
        if not near:
            return mark_best(rows, criterion)
        rows += bench.grid(method, tasks, sorted(near))
        seen |= near
        if best_point(rows, criterion) == best:
            return mark_best(rows, criterion)


def averaging(bench: Workbench, tasks: Sequence[str]) -> list[Row]:
    """Average the vectors: theta_0 + (1/k) sum_i tau_i. Scaling: 1/k, nothing to choose."""
    return mark_best(bench.grid("averaging", tasks, [[1 / len(tasks)] * len(tasks)]), "loss")


def analogy(
    bench: Workbench,
    a: str,
    b: str,
    c: str,
    target: str,
    coefficients: Sequence[float],
    criterion: str = "accuracy",
) -> list[Row]:
    """Measure theta_0 + x (tau_a - tau_b + tau_c) on ``target`` (a is to b as target is to c), x by validation."""
    points = [[x, -x, x] for x in coefficients]
    return mark_best(bench.grid("analogy", (a, b, c), points, measured_on=[target]), criterion)


def negation(
    bench: Workbench, task: str, controls: Sequence[str], coefficients: Sequence[float], tolerance: float = 0.05
) -> list[Row]:
    """Forget a task: theta_0 - c tau, with c chosen on validation under a constraint on control tasks.

    The chosen c has the lowest validation accuracy on ``task`` among those at which every control keeps at least
    (1 - tolerance) of its zero-shot validation accuracy (intercepts included; ties go to the higher loss on ``task``).
    No c may satisfy it: then no row is chosen, and the honest answer is not to negate.
    """
    rows = bench.grid("negation", [task], [[-c] for c in coefficients], measured_on=[task, *controls])
    floor = {name: (1 - tolerance) * bench.zero_shot(name, "validation").accuracy for name in controls}
    allowed = {
        point: rank
        for point, found in _by_point(rows, "validation").items()
        if all(found[name]["accuracy"] >= floor[name] for name in controls)
        for rank in [(found[task]["accuracy"], -found[task]["loss"], abs(point[0]))]
    }
    chosen = min(allowed, key=lambda point: allowed[point], default=None)
    return [row | {"chosen": tuple(row["coefficients"]) == chosen} for row in rows]


def best_point(rows: Sequence[Row], criterion: str = "accuracy") -> tuple[float, ...]:
    """Return the coefficients that do best on validation; ties go to the lower loss, then the smaller coefficients."""
    if criterion not in ("accuracy", "loss"):
        raise ValueError(f"arithmetic.criterion: {criterion!r} is not one of accuracy, loss")

    def rank(item: tuple[tuple[float, ...], dict[str, Row]]) -> tuple[float, float, float]:
        point, found = item
        loss = float(np.mean([row["loss"] for row in found.values()]))
        accuracy = float(np.mean([row["normalised_accuracy"] for row in found.values()]))
        loss = loss if math.isfinite(loss) else math.inf
        accuracy = accuracy if math.isfinite(accuracy) else -math.inf
        return (-accuracy if criterion == "accuracy" else loss, loss, sum(map(abs, point)))

    return min(_by_point(rows, "validation").items(), key=rank)[0]


def mark_best(rows: Sequence[Row], criterion: str = "accuracy") -> list[Row]:
    """Return the rows with ``chosen`` set on those of the best coefficients by validation, on both splits."""
    best = best_point(rows, criterion)
    return [row | {"chosen": tuple(row["coefficients"]) == best} for row in rows]


def _by_point(rows: Sequence[Row], split: str) -> dict[tuple[float, ...], dict[str, Row]]:
    found: dict[tuple[float, ...], dict[str, Row]] = {}
    for row in rows:
        if row["split"] == split:
            found.setdefault(tuple(row["coefficients"]), {})[row["task"]] = row
    return found


def read_bench(
    model: Any,
    fingerprint: str,
    names: Sequence[str],
    data: Sequence[str],
    index: Sequence[str],
    vectors: Sequence[str],
    options: Mapping[str, Any],
) -> tuple[Workbench, str]:
    """Return the bench of the named tasks on a model, and the digests of their data; the lists hold paths by task.

    ``options``: outputs and target_scale of the training. Raises ArtifactError naming a vector index of another model.
    """
    tasks, digests = {}, []
    for name, path, own_index, vector in zip(names, data, index, vectors, strict=True):
        if read_provenance(own_index)["model"] != fingerprint:
            raise ArtifactError(f"{own_index}: trained from another model than the one at hand; remove it")
        sample = read_sample(path)
        digests.append(sample.digest)
        validation, test = (
            batch_from_table(sample.table, split, verbalizers=sample.verbalizers) for split in ("validation", "test")
        )
        tasks[name] = TaskData(TaskVector.load(vector), validation, test)
    return Workbench(model, tasks, **options), ",".join(digests)
