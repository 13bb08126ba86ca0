"""Stops that real training on a part of the examples names for the training on all of them (numpy, no torch).

Folds are the honest competitor of every rule that reads a kernel: they follow training wherever it goes, and cost as
many trainings as there are folds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from stopwise.stopping.in_training import Holdout

QUARTER = 4  # hold-out stopping keeps one part of so many


def stratified_folds(labels: np.ndarray, count: int, seed: int | np.random.Generator) -> np.ndarray:
    """Return the fold 0..count - 1 of each example, int64 [n]: sizes differ by one at most, and so do a class's shares.

    The examples of one class after another, each class in an order drawn by ``seed``, are dealt to the folds in turn.
    Raises ValueError for fewer than two folds, or more than there are examples.
    """
    labels = np.asarray(labels)
    if not 2 <= count <= len(labels):
        raise ValueError(f"folds: found {count}, must be 2 to {len(labels)}, the number of examples")
    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)])
    folds = np.empty(len(labels), dtype=np.int64)
    folds[order] = np.arange(len(labels)) % count
    return folds


def patient_step(steps: Iterable[int], losses: Iterable[float], patience: int, min_delta: float = 0.0) -> int:
    """Return the step that hold-out stopping keeps on a curve of validation losses."""
    rule = Holdout(patience, min_delta, end=0)
    for step, loss in zip(steps, losses, strict=True):
        rule.observe(int(step), {"validation_loss": float(loss)})
    return rule.best_step


def mean_curve(parts: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Return (steps, mean loss of the examples left out) of rows {step, loss, examples} of all folds.

    A fold counts by its examples. A step that a fold does not have, because it diverged before, has no mean: it is nan.
    """
    folds = len({row["fold"] for row in parts})
    steps = np.array(sorted({row["step"] for row in parts}))
    out = np.full(len(steps), np.nan)
    for i, step in enumerate(steps):
        own = [row for row in parts if row["step"] == step]
        if len(own) == folds:
            out[i] = np.average([row["loss"] for row in own], weights=[row["examples"] for row in own])
    return steps, out


def folded_stop(
    parts: Sequence[Mapping[str, Any]], stop: str, patience: int, min_delta: float
) -> tuple[int, float, np.ndarray, np.ndarray]:
    """Return (step, its loss, steps, curve) that the folds' rows name for the training on all examples.

    ``cross_validation``: the least mean loss; ``holdout_refit``: what hold-out stopping keeps on the one fold.
    """
    steps, curve = mean_curve(parts)
    if stop == "holdout_refit":
        t = patient_step(steps, curve, patience, min_delta)
    else:
        t = int(steps[int(np.nanargmin(curve))])
    return t, float(curve[steps.tolist().index(t)]), steps, curve
