"""Real folds: train without a part of the examples, look at the part while training runs, and average the curves.

The honest way to choose a length of training, at the price of as many trainings as there are folds. What trains is
given as a function, so that a Trainer and a loop of one's own are served alike (numpy, no torch).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from stopwise.stats import mean_interval, wilson
from stopwise.stopping.folds import stratified_folds
from stopwise.stopping.judging import HIT

# (examples kept, examples left out, number of the fold) -> log-probabilities of those left out, float64 [k, left, C].
Train = Callable[[np.ndarray, np.ndarray, int], np.ndarray]


@dataclass(frozen=True, eq=False)
class FoldCurves:
    """Left-out curves: ``losses`` and ``correct`` [k, n] of each example by the training without it.

    ``epochs`` [k], ascending from 0, at which every fold was looked at; ``seconds`` that all folds took.
    """

    epochs: np.ndarray
    losses: np.ndarray = field(repr=False)
    correct: np.ndarray = field(repr=False)
    folds: int
    seconds: float

    @property
    def best(self) -> int:
        """The index of the epoch with the lowest mean log-loss."""
        mean = self.losses.mean(axis=1)
        return int(np.argmin(np.where(np.isfinite(mean), mean, np.inf)))

    @property
    def epoch(self) -> float:
        """The epoch with the lowest mean log-loss."""
        return float(self.epochs[self.best])

    @property
    def within(self) -> tuple[float, float]:
        """The first and last epoch around the best one whose mean log-loss is within 5 % of its own."""
        mean, low, high = self.losses.mean(axis=1), self.best, self.best
        limit = (1 + HIT) * mean[self.best]
        while low > 0 and mean[low - 1] <= limit:
            low -= 1
        while high < len(mean) - 1 and mean[high + 1] <= limit:
            high += 1
        return float(self.epochs[low]), float(self.epochs[high])

    def loss_at(self, epoch: float) -> float:
        """Return the mean log-loss at an epoch, by a straight line between those looked at; nan beyond the last."""
        if epoch > self.epochs[-1]:
            return float("nan")
        return float(np.interp(epoch, self.epochs, self.losses.mean(axis=1)))

    def loss_interval(self, k: int) -> tuple[float, float, float]:
        """Return the mean log-loss at the k-th epoch and its 95 % interval over examples."""
        return mean_interval(self.losses[k])

    def accuracy_interval(self, k: int) -> tuple[float, float, float]:
        """Return the share of examples that are right at the k-th epoch, and its 95 % interval."""
        hits, n = float(self.correct[k].sum()), self.correct.shape[1]
        return hits / n, *wilson(hits, n)


def cross_validated(labels: np.ndarray, epochs: np.ndarray, folds: int, train: Train, seed: int = 0) -> FoldCurves:
    """Return the curves of the examples left out of each fold.

    ``train`` runs one whole training on the examples kept, from the same start each time, and looks at those left out
    at the ``epochs``. Raises ValueError as ``stratified_folds``. Cost: ``folds`` trainings.
    """
    n, started = len(labels), time.monotonic()
    losses, correct = np.empty((len(epochs), n)), np.empty((len(epochs), n), dtype=bool)
    fold = stratified_folds(labels, folds, seed)
    for number in range(folds):
        left = np.flatnonzero(fold == number)
        logs = train(np.setdiff1d(np.arange(n), left), left, number)
        losses[:, left] = -logs[:, np.arange(len(left)), labels[left]]
        correct[:, left] = logs.argmax(axis=2) == labels[left]
    return FoldCurves(np.asarray(epochs, dtype=np.float64), losses, correct, folds, time.monotonic() - started)
