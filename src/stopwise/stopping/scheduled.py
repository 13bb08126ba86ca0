"""Training under a real schedule, replayed on the kernel: what an optimizer does at each step, and where it stops best.

A training script changes its learning rate at every step, accumulates batches, clips gradients and decays weights. All
of it is known before the first step but for the gradients, and those the kernel gives: the linearised network moves by
-alpha_t J D J_B' (d loss/d f) when a step draws batch B, clipping needs the norm of J_B' (d loss/d f), whose square is
a quadratic form of the plain kernel, and decay adds the fixed direction J theta_0. So the path of every output is
replayed, once without each example, and the rules read the log-loss of the examples left out, as in ``cross_entropy``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stopwise.linearized.coding import coding_matrix
from stopwise.linearized.objectives import Objective
from stopwise.linearized.replay import batch_rows
from stopwise.linearized.spectrum import Spectrum
from stopwise.stopping.bayes import task_posterior
from stopwise.stopping.cross_entropy import (
    among_words,
    averaged_probabilities,
    expected_log_loss,
    folded,
    label_probabilities,
    loo_log_loss,
)
from stopwise.stopping.judging import HIT
from stopwise.stopping.registry import REPLAYING_RULES
from stopwise.stopping.schedule_path import Linearised, Schedule, left_out_path, trained_path
from stopwise.stopping.stops import time_grid

__all__ = ["Linearised", "Schedule", "ScheduledStop", "left_out_path", "scheduled_stop", "trained_path"]


@dataclass(frozen=True)
class ScheduledStop:
    """Where to stop under a schedule, and what that is worth, as believed before training.

    ``t`` steps, counted from the schedule's own step 0 (None: the rule has no answer, see ``flags``); ``epochs`` = t by
    steps of an epoch. ``low``..``high``: the steps around t whose predicted loss is within 5 % of that at t. Losses are
    mean log-losses of new examples, accuracies the shares of them: at t, where the kernel was read (``read_at``) and at
    the last step. ``curve`` [len(times)] is the predicted loss; ``examples`` of the kernel, ``of`` those of training.
    ``largest_step``: the largest learning rate times the largest eigenvalue of K_BB/m_B; the steps of a path that the
    network follows are about 1 or less.
    """

    rule: str
    t: int | None
    epochs: float
    low: int | None
    high: int | None
    expected_loss: float
    loss_at_start: float
    loss_at_end: float
    expected_accuracy: float
    accuracy_at_start: float
    accuracy_at_end: float
    max_steps: int
    steps_per_epoch: float
    read_at: int
    examples: int
    of: int
    largest_step: float
    flags: tuple[str, ...] = ()
    curve: np.ndarray = field(default_factory=lambda: np.zeros(0), repr=False, compare=False)
    times: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64), repr=False, compare=False)

    @property
    def low_epochs(self) -> float:
        """The first epoch that costs less than 5 % of the predicted loss; nan without an answer."""
        return np.nan if self.low is None else self.low / self.steps_per_epoch

    @property
    def high_epochs(self) -> float:
        """The last epoch that costs less than 5 % of the predicted loss; nan without an answer."""
        return np.nan if self.high is None else self.high / self.steps_per_epoch

    def row(self) -> dict[str, Any]:
        """Return all but the curve as JSON-able values; ``of_row`` reads them back."""
        return {k: v for k, v in vars(self).items() if k not in ("curve", "times", "flags")} | {"flags": [*self.flags]}

    @classmethod
    def of_row(cls, row: dict[str, Any]) -> ScheduledStop:
        """Return the stop of a ``row``, without its curve."""
        return cls(**row | {"flags": tuple(row["flags"])})


def scheduled_stop(
    net: Linearised,
    objective: Objective,
    schedule: Schedule,
    rule: str = "bayes",
    *,
    of: int | None = None,
    folds: int | None = None,
    seed: int = 0,
    flags: Sequence[str] = (),
) -> ScheduledStop:
    """Return where ``rule`` (``bayes`` or ``loo``) stops training on cross-entropy under a schedule.

    ``of``: examples that training has, where the kernel holds a part of them. ValueError for another rule or fewer than
    two examples. Cost O(T |B| m n) for T steps.
    """
    if rule not in REPLAYING_RULES:
        raise ValueError(f"rule: {rule!r} is not one of {', '.join(REPLAYING_RULES)}, which replay a schedule")
    n, q = net.start.shape
    if n < 2:
        raise ValueError(f"train_dataset: the kernel needs at least 2 examples, found {n}")
    times = schedule.done + time_grid(len(schedule.batches))
    spec = Spectrum.of(net.matrix, q, intercept=True)
    outputs = left_out_path(net, objective, schedule, times, folds, seed)
    found = believed(rule, spec, net, objective, outputs, times - schedule.done)
    facts: dict[str, Any] = {"rule": rule, "max_steps": schedule.last, "steps_per_epoch": schedule.epoch}
    facts |= {"read_at": schedule.done, "examples": n, "of": of or n, "largest_step": largest_step(net, schedule)}
    if found is None or not np.isfinite(found[0]).any():
        nothing: dict[str, Any] = dict.fromkeys(("epochs", "expected_loss", "loss_at_start", "loss_at_end"), np.nan)
        nothing |= dict.fromkeys(("expected_accuracy", "accuracy_at_start", "accuracy_at_end"), np.nan)
        return ScheduledStop(t=None, low=None, high=None, flags=("no_answer", *flags), **nothing, **facts)
    return _least(*found, times, tuple(flags), facts)


def _least(
    curve: np.ndarray, right: np.ndarray, times: np.ndarray, flags: tuple[str, ...], facts: dict[str, Any]
) -> ScheduledStop:
    """Return the stop at the least predicted loss, with the predicted accuracy ``right`` at each time."""
    best = int(np.nanargmin(curve))
    low, high = _near(curve, best)
    own = ("do_not_train",) if times[best] == 0 else ("all_steps",) if best == len(times) - 1 else ()
    return ScheduledStop(
        t=int(times[best]),
        epochs=float(times[best] / facts["steps_per_epoch"]),
        low=int(times[low]),
        high=int(times[high]),
        expected_loss=float(curve[best]),
        loss_at_start=float(curve[0]),
        loss_at_end=float(curve[-1]),
        expected_accuracy=float(right[best]),
        accuracy_at_start=float(right[0]),
        accuracy_at_end=float(right[-1]),
        flags=(*own, *flags),
        curve=curve,
        times=times,
        **facts,
    )


def believed(
    rule: str, spec: Spectrum, net: Linearised, objective: Objective, outputs: np.ndarray, times: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the predicted (loss, accuracy) at each time, or None when the labels say nothing."""
    if rule == "loo":
        given = np.eye(objective.classes)[objective.labels]
        return loo_log_loss(objective, outputs), _accuracy(objective, outputs, given)
    words, fold = among_words(objective)
    start = net.start if net.left_start is None else outputs[0]  # a start that has not seen the example's own label
    start, spec = start @ fold.T, folded(spec, fold)
    known = label_probabilities(spec, words, start)
    if known is None or task_posterior(spec, words.targets, start) is None:
        return None
    probabilities, kept = known
    outputs, part = outputs[:, kept], objective.rows(kept)
    probabilities = averaged_probabilities(words.rows(kept), outputs @ fold.T, times, probabilities)
    padded = np.pad(probabilities, ((0, 0), (0, coding_matrix(part.classes, part.outputs).shape[1] - part.classes)))
    return expected_log_loss(part, outputs, padded), _accuracy(part, outputs, probabilities)


def _accuracy(objective: Objective, outputs: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return how often the predicted class is the label, when labels have these probabilities; float64 [times]."""
    logits = outputs @ coding_matrix(objective.classes, objective.outputs)
    predicted = logits[..., : objective.classes].argmax(axis=-1)
    return np.take_along_axis(probabilities[None], predicted[..., None], axis=2)[..., 0].mean(axis=1)


def _near(curve: np.ndarray, best: int) -> tuple[int, int]:
    """Return the first and last index around the best one with a loss within 5 % of its own."""
    inside = curve <= (1 + HIT) * curve[best]
    low = high = best
    while low > 0 and inside[low - 1]:
        low -= 1
    while high < len(curve) - 1 and inside[high + 1]:
        high += 1
    return low, high


def largest_step(net: Linearised, schedule: Schedule) -> float:
    """Return the largest learning rate times the largest eigenvalue of K_BB/m_B over the batches of an epoch."""
    q, top = net.start.shape[1], 0.0
    for batch in schedule.batches[: max(1, int(np.ceil(schedule.epoch)))]:
        rows = batch_rows(batch, q)
        top = max(top, float(np.linalg.eigvalsh(net.matrix[np.ix_(rows, rows)])[-1] / rows.size))
    return top * float(schedule.learning_rates.max(initial=0.0))
