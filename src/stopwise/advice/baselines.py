"""What does as well without any training: the labels' shares, the prompt alone, the prompt with a fitted offset.

Training has to beat the best of them on the same examples, or it is not worth it. The log-loss of a prompt is often
worse than that of guessing by the labels' shares, so that any training, even on labels drawn at random, would improve
it. The prompt is therefore also looked at with an offset for each class and one temperature, fitted without the
examples that are looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import scipy

from stopwise.advice.held_out import REPEATS, fold_splits
from stopwise.linearized.coding import coding_matrix
from stopwise.stats import mean_interval, wilson

# Standard deviations, before any label is seen, of an offset of a logit and of the log of the temperature.
OFFSET_WIDTH, TEMPERATURE_WIDTH = 10.0, 1.0


@dataclass(frozen=True, eq=False)
class Baseline:
    """``losses`` and ``correct`` [n]: log-loss and correctness of each example by something that no training made.

    ``name``: shares, prompt, with_offset or head. ``offsets`` [C]: added to the logits (after they are divided by
    ``temperature``), where it has such.
    """

    name: str
    losses: np.ndarray = field(repr=False)
    correct: np.ndarray = field(repr=False)
    offsets: np.ndarray | None = None
    temperature: float = 1.0

    @property
    def loss(self) -> float:
        """The mean log-loss."""
        return float(self.losses.mean())

    def accuracy_interval(self) -> tuple[float, float, float]:
        """Return the share of examples that are right, and its 95 % interval."""
        hits, n = float(self.correct.sum()), len(self.correct)
        return hits / n, *wilson(hits, n)

    def loss_interval(self) -> tuple[float, float, float]:
        """Return the mean log-loss and its 95 % interval."""
        return mean_interval(self.losses)


def shares(labels: np.ndarray, classes: int) -> Baseline:
    """Return the guess by the labels' shares; always the most frequent label."""
    share = np.bincount(labels, minlength=classes) / len(labels)
    return Baseline("shares", -np.log(share[labels]), labels == int(share.argmax()))


def start(losses: np.ndarray, correct: np.ndarray, name: str) -> Baseline:
    """Return the network as it is before training: the prompt alone, or a head fitted to its features."""
    return Baseline(name, losses, correct)


def with_offset(start: np.ndarray, labels: np.ndarray, classes: int, seed: int = 0) -> Baseline:
    """Return the prompt with offsets and a temperature, fitted without the example that is looked at.

    ``start``: the prompt's outputs [n, C - 1], contrasts of the classes' logits. The fit maximises the likelihood of
    the labels under logits a B' f + b, with log a ~ N(0, 1) and b ~ N(0, 10^2 I) before them. Folds that hold the
    classes in proportion are left out, five times over: without a single example its class would be the rarer one, and
    the offset would turn against it. Cost: 51 small optimisations.
    """
    logits = start @ coding_matrix(classes)
    whole = _fit(logits, labels, classes)
    losses, correct = np.zeros(len(labels)), np.zeros(len(labels))
    for kept, left in fold_splits(labels, repeats=REPEATS, seed=seed):
        logs = _log_probabilities(_fit(logits[kept], labels[kept], classes, whole), logits[left])
        losses[left] -= logs[np.arange(len(left)), labels[left]] / REPEATS
        correct[left] += (logs.argmax(axis=1) == labels[left]) / REPEATS
    offsets = whole[1:] - whole[1:].mean()
    return Baseline("with_offset", losses, correct, offsets, float(np.exp(-whole[0])))


def best(baselines: Mapping[str, Baseline]) -> Baseline:
    """Return the baseline with the lowest log-loss."""
    return min(baselines.values(), key=lambda one: one.loss)


def _log_probabilities(at: np.ndarray, logits: np.ndarray) -> np.ndarray:
    return scipy.special.log_softmax(np.exp(at[0]) * logits + at[1:], axis=1)


def _fit(logits: np.ndarray, labels: np.ndarray, classes: int, first: np.ndarray | None = None) -> np.ndarray:
    """Return the log of the scale and the offsets, float64 [1 + classes], the mode of their posterior."""
    given = np.eye(classes)[labels]

    def loss(at: np.ndarray) -> tuple[float, np.ndarray]:
        logs = _log_probabilities(at, logits)
        error = np.exp(logs) - given
        scaled = np.exp(at[0]) * logits
        prior = at[0] ** 2 / (2 * TEMPERATURE_WIDTH**2) + (at[1:] ** 2).sum() / (2 * OFFSET_WIDTH**2)
        slope = np.concatenate([[(error * scaled).sum()], error.sum(axis=0)])
        slope += np.concatenate([[at[0] / TEMPERATURE_WIDTH**2], at[1:] / OFFSET_WIDTH**2])
        return float(-(logs * given).sum() + prior), slope

    begin = np.zeros(1 + classes) if first is None else first
    return scipy.optimize.minimize(loss, begin, jac=True, method="L-BFGS-B").x
