"""How long to train under a schedule that ends with training: every length is a training of its own.

A learning rate that decays to zero belongs to its length: nobody cuts such a training short. So the whole schedule of
each length is replayed on the kernel, once without each example, and the lengths are compared by what the network makes
of the examples left out at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from stopwise.linearized.objectives import Objective
from stopwise.linearized.spectrum import Spectrum
from stopwise.stats import wilson
from stopwise.stopping.judging import HIT
from stopwise.stopping.registry import REPLAYING_RULES
from stopwise.stopping.scheduled import Linearised, Schedule, believed, largest_step, left_out_path

# One length costs less than another where the difference of their losses is beyond this many standard errors.
CLEAR = 1.96


@dataclass(frozen=True, eq=False)
class Horizon:
    """What trainings of several lengths come to, as believed before any of them; length 0 is the start.

    ``steps`` int64 [k], ascending from 0; ``loss`` and ``accuracy`` [k]: the log-loss and accuracy of new examples that
    the rule expects at the end of each; ``losses`` and ``correct`` [k, n]: log-loss and correctness of each example at
    the end of a training without it. ``best``: the index of the length to choose, ``low``..``high``: the steps whose
    expected loss is within 5 % of its (read off straight lines in log steps). ``learning_rate``: the largest;
    ``largest_step``: times the largest eigenvalue of K_BB/m_B.
    """

    rule: str
    steps: np.ndarray
    steps_per_epoch: float
    loss: np.ndarray
    accuracy: np.ndarray
    losses: np.ndarray = field(repr=False)
    correct: np.ndarray = field(repr=False)
    best: int
    low: float
    high: float
    learning_rate: float
    largest_step: float
    flags: tuple[str, ...] = ()

    @property
    def t(self) -> int:
        """The steps of the length to choose."""
        return int(self.steps[self.best])

    @property
    def epochs(self) -> float:
        """The epochs of the length to choose."""
        return self.t / self.steps_per_epoch

    @property
    def examples(self) -> int:
        """The number of examples of the kernel."""
        return self.losses.shape[1]

    def loss_interval(self, k: int) -> tuple[float, float, float]:
        """Return the mean log-loss of examples left out at the end of length k, and its 95 % interval."""
        mean, half = float(self.losses[k].mean()), CLEAR * float(self.losses[k].std(ddof=1)) / self.examples**0.5
        return mean, max(mean - half, 0.0), mean + half

    def accuracy_interval(self, k: int) -> tuple[float, float, float]:
        """Return the share of examples left out that the end of length k gets right, and its 95 % interval."""
        hits = float(self.correct[k].sum())
        return hits / self.examples, *wilson(hits, self.examples)

    def gain_interval(self, k: int, over: int = 0) -> tuple[float, float, float]:
        """Return how much less log-loss length k has than another on the same examples left out, with 95 % interval."""
        gain = self.losses[over] - self.losses[k]
        half = CLEAR * float(gain.std(ddof=1)) / self.examples**0.5
        return float(gain.mean()), float(gain.mean()) - half, float(gain.mean()) + half

    def at(self, steps: float) -> float:
        """Return the expected log-loss of a length, read off a straight line in log steps."""
        return float(np.interp(np.log1p(steps), np.log1p(self.steps), self.loss))


def lengths(steps_per_epoch: float, longest: float, count: int = 14) -> np.ndarray:
    """Return at most ``count`` lengths in whole steps, spaced evenly in log from half an epoch on; int64, ascending."""
    last = max(1, round(longest * steps_per_epoch))
    first = min(max(1.0, steps_per_epoch / 2), last)
    return np.unique(np.rint(np.geomspace(first, last, count)).astype(np.int64))


def horizon(
    net: Linearised,
    objective: Objective,
    schedules: Sequence[Schedule],
    rule: str = "bayes",
    *,
    seed: int = 0,
    flags: Sequence[str] = (),
) -> Horizon:
    """Return what the trainings under some schedules, shortest first, come to at their ends.

    ``rule``: ``bayes`` or ``loo``; where the labels say nothing to ``bayes``, ``loo`` answers, flagged. ValueError for
    another rule, or schedules that begin after the first step. Cost O(T |B| m n) for all T steps together.
    """
    if rule not in REPLAYING_RULES:
        raise ValueError(f"rule: {rule!r} is not one of {', '.join(REPLAYING_RULES)}, which replay a schedule")
    if any(one.done for one in schedules):
        raise ValueError("horizon: lengths are compared from the start, not from a step on")
    steps = np.array([0, *(one.last for one in schedules)])
    ends = [left_out_path(net, objective, one, np.array([one.last]), seed=seed)[0] for one in schedules]
    outputs = np.stack([left_out_path(net, objective, schedules[0], np.array([0]), seed=seed)[0], *ends])
    spec = Spectrum.of(net.matrix, net.start.shape[1], intercept=True)
    found, flags = believed(rule, spec, net, objective, outputs, steps), list(flags)
    if found is None or not np.isfinite(found[0]).any():
        rule, found = "loo", believed("loo", spec, net, objective, outputs, steps)
        flags.append("rule_without_answer")
    assert found is not None  # the rule loo always answers
    loss, accuracy = (np.where(np.isfinite(values), values, np.inf) for values in found)
    every = np.arange(len(objective.labels))
    logs = objective.log_probabilities(outputs)
    best, longest = int(np.argmin(loss)), schedules[-1]
    low, high = _within(steps, loss, best)
    flags += ["do_not_train"] if best == 0 else ["longest"] if best == len(steps) - 1 else []
    return Horizon(
        rule=rule,
        steps=steps,
        steps_per_epoch=longest.epoch,
        loss=loss,
        accuracy=np.where(np.isfinite(accuracy), accuracy, 0.0),
        losses=np.nan_to_num(-logs[:, every, objective.labels], nan=np.inf),
        correct=logs[..., : objective.classes].argmax(axis=2) == objective.labels,
        best=best,
        low=low,
        high=high,
        learning_rate=float(longest.learning_rates.max()),
        largest_step=largest_step(net, longest),
        flags=tuple(flags),
    )


def scaled(schedule: Schedule, factor: float) -> Schedule:
    """Return a schedule with every learning rate multiplied."""
    return replace(schedule, learning_rates=schedule.learning_rates * factor)


def _within(steps: np.ndarray, loss: np.ndarray, best: int) -> tuple[float, float]:
    """Return the first and last number of steps around the best whose loss is within 5 % of its."""
    limit, x = (1 + HIT) * loss[best], np.log1p(steps)

    def edge(direction: int, last: int) -> float:
        k = best
        while k != last and loss[k + direction] <= limit:
            k += direction
        if k == last:
            return float(steps[k])
        rise = loss[k + direction] - loss[k]
        share = (limit - loss[k]) / rise if np.isfinite(rise) and rise > 0 else 0.0
        return float(np.expm1(x[k] + share * (x[k + direction] - x[k])))

    return edge(-1, 0), edge(1, len(steps) - 1)
