"""The recorded runs of the study read back, cell by cell, as what every way of choosing may look at (numpy, no torch).

An artifact of kind ``study_outputs`` holds the outputs of one or many cells; kind ``study_labels`` the labels of a data
set and seed; ``study_steps`` what each step of a run on all examples took; ``study_kernel`` the kernel at the start.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from stopwise.artifacts.tables import read_matrix
from stopwise.linearized.objectives import Objective
from stopwise.studies.encoder_rows import ALL, HALF, PARTS, Cell


@dataclass(frozen=True, eq=False)
class Labels:
    """The labels of one data set and seed by split (train, validation, test), and the number of classes."""

    classes: int
    by_split: Mapping[str, np.ndarray]

    @cached_property
    def test_weights(self) -> np.ndarray:
        """The weight of each test row, mean 1: every class counts as it does among all training rows.

        Training rows are balanced. A class that has run out among the test rows would otherwise make the judge ask for
        other shares of the classes than those that were trained on.
        """
        train, test = (np.bincount(self.by_split[split], minlength=self.classes) for split in ("train", "test"))
        weights = (train / np.maximum(test, 1))[self.by_split["test"]]
        return weights / weights.mean()

    def objective(self, split: str, n: int | None = None) -> Objective:
        """Return the log-loss of the first n examples of a split."""
        return Objective("cross_entropy", self.by_split[split][:n], self.classes, "contrast", 1.0, np.zeros(1))


@dataclass(frozen=True, eq=False)
class Kernel:
    """The kernel at the start over the first examples: ``matrix`` J D J' and ``plain`` J J' [m, m], f0, J theta_0."""

    matrix: np.ndarray
    plain: np.ndarray
    start: np.ndarray
    weights_move: np.ndarray

    def leading(self, n: int) -> Kernel:
        """Return the kernel of the first n examples."""
        m = n * self.start.shape[1]
        return Kernel(self.matrix[:m, :m], self.plain[:m, :m], self.start[:n], self.weights_move[:n])


@dataclass(frozen=True, eq=False)
class Recorded:
    """One cell as it was recorded.

    ``outputs``: (part, fold, split) -> [evaluations, examples, columns]. Parts that have not run are missing, and
    ``kernel`` is None without one. ``steps``: of the evaluations; ``kept``: those of each entry of ``outputs``
    (hold-out's training looks at the test rows only where its validation loss is the least so far). ``rates``,
    ``batches``: of every step; None when they were not kept.
    """

    cell: Cell
    labels: Labels
    steps: np.ndarray
    outputs: Mapping[tuple[str, int, str], np.ndarray]
    kept: Mapping[tuple[str, int, str], np.ndarray]
    kernel: Kernel | None = None
    rates: np.ndarray | None = None
    batches: list[np.ndarray] = field(default_factory=list)

    def curve(self, part: str, fold: int, split: str) -> np.ndarray:
        """Return the mean log-loss at every evaluation, float64 [evaluations]; of all examples of the split."""
        return self.example_losses(part, fold, split).mean(axis=1)

    def example_losses(self, part: str, fold: int, split: str) -> np.ndarray:
        """Return the log-loss of each example at every evaluation, float64 [evaluations, examples]."""
        f = self.outputs[part, fold, split]
        labels = self.labels.by_split[split][: f.shape[1]]
        logs = self.labels.objective(split, f.shape[1]).log_probabilities(f.astype(np.float64))
        return -logs[:, np.arange(len(labels)), labels]

    @cached_property
    def test(self) -> np.ndarray:
        """The log-loss of each test row along the run on all examples, float64 [evaluations, rows]."""
        return self.example_losses(ALL, 0, "test")

    @cached_property
    def test_loss(self) -> np.ndarray:
        """The weighted mean test log-loss along the run on all examples, float64 [evaluations]."""
        return self.test @ self.labels.test_weights / self.test.shape[1]

    @property
    def best(self) -> int:
        """Which evaluation of the run on all examples has the least test log-loss."""
        return int(np.argmin(self.test_loss))

    def left_out(self, count: int, folds: np.ndarray) -> np.ndarray | None:
        """Return the mean log-loss of the examples left out by each of ``count`` folds; None while a fold is missing.

        ``folds``: the fold of each example. float64 [evaluations].
        """
        where = {fold: part for part, (k, own) in PARTS.items() if k == count for fold in own}
        if any((where[fold], fold, "train") not in self.outputs for fold in range(count)):
            return None
        total = np.zeros(len(self.steps))
        for fold in range(count):
            total += self.example_losses(where[fold], fold, "train")[:, folds == fold].sum(axis=1)
        return total / len(folds)


def read_cells(
    outputs: Iterable[pa.Table],
    labels: Iterable[pa.Table],
    steps: Iterable[pa.Table] = (),
    kernels: Iterable[pa.Table] = (),
) -> Iterator[Recorded]:
    """Yield the cells whose run on all examples is there, in order."""
    known = dict(_labels(labels))
    kernel = dict(_kernels(kernels))
    taken = dict(_taken(steps))
    found: dict[Cell, dict[tuple[str, int, str], dict[int, np.ndarray]]] = {}
    for table in outputs:
        for row in table.to_pylist():
            cell = _cell(row)
            key = row["part"], row["fold"], row["split"]
            values = np.frombuffer(row["values"], dtype=HALF).reshape(row["rows"], -1)
            found.setdefault(cell, {}).setdefault(key, {})[row["step"]] = values
    for cell in sorted(found):
        own = found[cell]
        if (ALL, 0, "test") not in own:
            continue
        at = np.array(sorted(own[ALL, 0, "test"]))
        kept = {key: np.array(sorted(by_step)) for key, by_step in own.items()}
        stacked = {key: np.stack([by_step[t] for t in kept[key]]) for key, by_step in own.items()}
        rates, batches = taken.get(cell, (None, []))
        where = cell.task, cell.seed
        yield Recorded(cell, known[where], at, stacked, kept, kernel.get(where), rates, batches)


def _cell(row: Mapping[str, Any]) -> Cell:
    return Cell(row["task"], row["seed"], row["n"], row["recipe"])


def _labels(tables: Iterable[pa.Table]) -> Iterator[tuple[tuple[str, int], Labels]]:
    for table in tables:
        rows = table.to_pylist()
        for where in sorted({(row["task"], row["seed"]) for row in rows}):
            own = [row for row in rows if (row["task"], row["seed"]) == where]
            splits = {row["split"]: np.array(row["labels"], dtype=np.int64) for row in own}
            yield where, Labels(own[0]["classes"], splits)


def _kernels(tables: Iterable[pa.Table]) -> Iterator[tuple[tuple[str, int], Kernel]]:
    for table in tables:
        for task, seed in sorted(set(zip(table["task"].to_pylist(), table["seed"].to_pylist(), strict=True))):
            blocks = {
                name: read_matrix(table, task=task, seed=seed, block=name)
                for name in ("train", "plain", "outputs", "weights_move")
            }
            yield (task, seed), Kernel(*blocks.values())


def _taken(tables: Iterable[pa.Table]) -> Iterator[tuple[Cell, tuple[np.ndarray, list[np.ndarray]]]]:
    for table in tables:
        own: dict[Cell, list[Mapping[str, Any]]] = {}
        for row in table.select(["task", "seed", "n", "recipe", "step", "learning_rate", "examples"]).to_pylist():
            own.setdefault(_cell(row), []).append(row)
        for cell, rows in own.items():
            order = sorted(rows, key=lambda row: row["step"])
            yield cell, (np.array([r["learning_rate"] for r in order]), [np.array(r["examples"]) for r in order])
