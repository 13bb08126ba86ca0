"""A ``data`` artifact read back: labels, targets and the task's classes, without torch or a tokenizer."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from stopwise.artifacts import tables as artifacts
from stopwise.linearized import coding as outputs
from stopwise.tasks.splits import SPLITS


@dataclass(frozen=True)
class Sample:
    """One task's ordered examples (train | validation | test) and what its outputs mean."""

    table: pa.Table
    verbalizers: list[int]
    classes: list[str]
    digest: str

    @property
    def class_count(self) -> int:
        """Return C."""
        return len(self.classes)

    def labels(self, split: str, n: int | None = None) -> np.ndarray:
        """Return the first n labels of a split, int64 [n]."""
        mask = np.asarray(self.table["split"].to_pylist()) == split
        return self.table["label"].to_numpy()[mask][:n]

    def targets(self, split: str, coding: str, scale: float, n: int | None = None) -> np.ndarray:
        """Return the targets of the first n examples of a split, float64 [n, columns]."""
        return outputs.targets(self.labels(split, n), self.class_count, coding, scale)


def read_sample(path: str | os.PathLike) -> Sample:
    """Return the sample of a ``data`` artifact. Raises ArtifactError when it is damaged."""
    record = artifacts.read_provenance(path)
    table = artifacts.read_table(path, "data")
    return Sample(table, list(record["task"]["verbalizers"]), list(record["task"]["classes"]), artifacts.digest(path))


__all__ = ["SPLITS", "Sample", "read_sample"]
