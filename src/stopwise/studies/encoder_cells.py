"""The recorded runs of the study read back, cell by cell, as what every way of choosing may look at (numpy, no torch).

An artifact of kind ``study_outputs`` holds the outputs of one or many cells; kind ``study_labels`` the labels of a data
set and seed; ``study_steps`` what each step of the trainings on all examples took; ``study_kernel`` that at a start.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from stopwise.artifacts.tables import read_matrix
from stopwise.linearized.coding import coding_matrix
from stopwise.linearized.objectives import Objective
from stopwise.linearized.replay import batch_lambda_max
from stopwise.stopping.folds import stratified_folds
from stopwise.studies.encoder_rows import ALL, HALF, LEFT_OUT, PARTS, Cell


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
    """The kernel at a start: ``matrix`` J D J' [m, m], ``plain`` J J' or None, ``start`` f0 and J theta_0 [n, columns].

    ``left_start`` [groups, n, columns]: where training without each example starts, of a head that has seen the labels.
    """

    matrix: np.ndarray
    start: np.ndarray
    weights_move: np.ndarray
    plain: np.ndarray | None = None
    left_start: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Recorded:
    """One cell as it was recorded.

    ``outputs``: (part, fold, split) -> [evaluations, examples, columns]. Parts that have not run are missing, and
    ``kernels`` holds those of its start that were computed on all its examples. ``steps``: of the
    evaluations, under a decaying rate the lengths of its trainings; ``kept``: those of each entry of ``outputs``
    (hold-out's training looks at the test rows only where its validation loss is the least so far). ``rates``: of every
    step by length; ``batches``: of the longest, whose beginning is that of the others.
    """

    cell: Cell
    labels: Labels
    steps: np.ndarray
    outputs: Mapping[tuple[str, int, str], np.ndarray]
    kept: Mapping[tuple[str, int, str], np.ndarray]
    kernels: Mapping[str, Kernel] = field(default_factory=dict)
    rates: Mapping[int, np.ndarray] = field(default_factory=dict)
    batches: list[np.ndarray] = field(default_factory=list)

    def curve(self, part: str, fold: int, split: str) -> np.ndarray:
        """Return the mean log-loss at every evaluation, float64 [evaluations]; of all examples of the split."""
        return self.example_losses(part, fold, split).mean(axis=1)

    def example_losses(self, part: str, fold: int, split: str) -> np.ndarray:
        """Return the log-loss of each example at every evaluation, float64 [evaluations, examples]."""
        f = self.outputs[part, fold, split].astype(np.float64)
        if split == LEFT_OUT:
            objective = self.labels.objective("train").rows(np.flatnonzero(self.folds(PARTS[part][0]) == fold))
        else:
            objective = self.labels.objective(split, f.shape[1])
        return -objective.log_probabilities(f)[:, np.arange(f.shape[1]), objective.labels]

    def folds(self, count: int) -> np.ndarray:
        """Return the fold of each training example among ``count``, as the trainings had it."""
        return stratified_folds(self.labels.by_split["train"][: self.cell.n], count, self.cell.seed)

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

    def left_out(self, part: str) -> np.ndarray | None:
        """Return the mean log-loss of the examples left out by the folds of a part; None while one is missing.

        float64 [evaluations].
        """
        folds = PARTS[part][1]
        if any((part, fold, LEFT_OUT) not in self.outputs for fold in folds):
            return None
        return np.concatenate([self.example_losses(part, fold, LEFT_OUT) for fold in folds], axis=1).mean(axis=1)


def read_cells(
    outputs: Iterable[pa.Table],
    labels: Iterable[pa.Table],
    steps: Iterable[pa.Table] = (),
    kernels: Iterable[pa.Table] = (),
) -> Iterator[Recorded]:
    """Yield the cells whose run on all examples is there, in order."""
    known, kernel = dict(_labels(labels)), dict(_kernels(kernels))
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
        rates, batches = taken.get(cell, ({}, []))
        starts = {own.start: one for own, one in kernel.items() if own[:3] == cell[:3]}
        yield Recorded(cell, known[cell.task, cell.seed], at, stacked, kept, starts, rates, batches)


def kernel_lambda(table: pa.Table, batch_size: int, seed: int) -> float:
    """Return the largest eigenvalue of K_BB/m_B over the batches of the first epoch, from a table of one kernel."""
    f0, matrix = (read_matrix(table, block=block) for block in ("outputs", "train"))
    return batch_lambda_max(matrix, f0.shape[1], batch_size, seed, max(1, len(f0) // batch_size))


def _cell(row: Mapping[str, Any]) -> Cell:
    return Cell(row["task"], row["seed"], row["n"], row["recipe"])


def _labels(tables: Iterable[pa.Table]) -> Iterator[tuple[tuple[str, int], Labels]]:
    for table in tables:
        rows = table.to_pylist()
        for where in sorted({(row["task"], row["seed"]) for row in rows}):
            own = [row for row in rows if (row["task"], row["seed"]) == where]
            splits = {row["split"]: np.array(row["labels"], dtype=np.int64) for row in own}
            yield where, Labels(own[0]["classes"], splits)


class _Where(NamedTuple):
    task: str
    seed: int
    n: int
    start: str


def _kernels(tables: Iterable[pa.Table]) -> Iterator[tuple[_Where, Kernel]]:
    """Yield the kernels that hold all examples of their size."""
    for table in tables:
        found: dict[_Where, set[str]] = {}
        for *where, block in zip(*(table[name].to_pylist() for name in (*_Where._fields, "block")), strict=True):
            found.setdefault(_Where(*where), set()).add(block)
        for own, names in sorted(found.items()):
            read = {name: read_matrix(table, **own._asdict(), block=name) for name in names}
            start = read["outputs"]
            if len(start) < own.n:
                continue
            left, classes = read.get(LEFT_OUT), start.shape[1] + 1
            if left is not None:
                left = left.reshape(-1, own.n, classes) @ coding_matrix(classes).T
            yield own, Kernel(read["train"], start, read["weights_move"], read.get("plain"), left)


def _taken(tables: Iterable[pa.Table]) -> Iterator[tuple[Cell, tuple[dict[int, np.ndarray], list[np.ndarray]]]]:
    """Yield the learning rates of each length of a cell, and the batches of the longest."""
    wanted = ["task", "seed", "n", "recipe", "length", "step", "learning_rate", "examples"]
    for table in tables:
        own: dict[Cell, dict[int, list[Mapping[str, Any]]]] = {}
        for row in table.select(wanted).sort_by("step").to_pylist():
            own.setdefault(_cell(row), {}).setdefault(row["length"], []).append(row)
        for cell, lengths in own.items():
            rates = {length: np.array([row["learning_rate"] for row in lengths[length]]) for length in sorted(lengths)}
            yield cell, (rates, [np.array(row["examples"]) for row in lengths[max(lengths)]])
