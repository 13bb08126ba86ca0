"""The stopping rules judged on the linearised path of cross-entropy, beside the study of squared loss (no torch)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from stopwise.linearized import coding as outputs
from stopwise.linearized.filters import Filter, HeavyBall
from stopwise.linearized.objectives import Objective
from stopwise.linearized.replay import draw_batches, replayed_weights
from stopwise.stopping.cross_entropy import Replay
from stopwise.stopping.known import BeforeTraining
from stopwise.stopping.registry import AGREEING, REPLAYING_RULES
from stopwise.stopping.stops import stops, time_grid
from stopwise.studies.on_the_path import EXACT_ROWS, TIME_POINTS, Cell

# Steps of heavy ball followed: with momentum 0.9 ten times as many of descent.
STEPS = 1000
# What the rules of squared loss name here, and rules of thumb: training times in units of 1/lambda_1.
SQUARED = AGREEING
THUMB = (10, 30, 100, 300, 1000)
METHODS = (
    *REPLAYING_RULES,
    "bayes_and_loo",
    *(f"squared_{rule}" for rule in SQUARED),
    *(f"eta_{c}" for c in (0, *THUMB)),
    "holdout",
    "oracle",
)


@dataclass(frozen=True, eq=False)
class LogLossCell(Cell):
    """A cell trained on cross-entropy: heavy ball 0.9 on full batches at alpha = 1/lambda_1, replayed on the kernel."""

    objective = "cross_entropy"

    @cached_property
    def filter(self) -> Filter:
        """Return heavy ball, which gives the step sizes and the momentum of the replay."""
        return HeavyBall(1 / self.spec.lambda_max)

    @cached_property
    def times(self) -> np.ndarray:
        """Return the times looked at, evenly spaced in log t."""
        return time_grid(STEPS, TIME_POINTS)

    def loss_of(self, split: str, n: int | None = None) -> Objective:
        """Return the objective of a split's labels."""
        coding = self.sample.class_count, self.coding, self.scale, np.zeros(self.kernel.columns)
        return Objective("cross_entropy", self.sample.labels(split, n), *coding)

    @cached_property
    def replay(self) -> Replay:
        """Return the training of the n examples."""
        return Replay(self.loss_of("train", self.n), draw_batches(self.n, None, STEPS, 0))

    @cached_property
    def weights(self) -> np.ndarray:
        """Return c_t of f_t - f0 = K(., X) c_t at each time, float64 [len(times), m]."""
        objective, start, alphas = self.replay.objective, self.leading.outputs, self.filter.step_sizes(STEPS)

        def gradient(moved: np.ndarray, batch: np.ndarray) -> np.ndarray:
            return objective.gradient(start + moved, batch)

        every = replayed_weights(self.spec, gradient, self.replay.batches, alphas.tolist(), self.filter.momentum)
        return every[self.times]

    @cached_property
    def test_path(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the test log-loss and the test accuracy at each time, float64 [len(times)] both."""
        kernel, held_out = self.leading, len(self.sample.labels("validation"))
        f0, cross = kernel.outputs_new[held_out:], kernel.new[held_out * kernel.columns :]
        f, judge = f0 + (self.weights @ cross.T).reshape(len(self.times), *f0.shape), self.loss_of("test")
        right = [outputs.accuracy(at, judge.labels, self.sample.class_count, self.coding) for at in f]
        return np.array([judge.loss(at) for at in f]), np.array(right)

    def losses_on(self, whole: Cell) -> np.ndarray:
        """Return the log-loss on the examples of ``whole`` that this cell, its first part, lacks."""
        f0 = whole.leading.outputs[self.n :]
        f = f0 + (self.weights @ self.across(whole).T).reshape(len(self.times), *f0.shape)
        chooser = self.loss_of("train", whole.n).rows(np.arange(self.n, whole.n))
        return np.array([chooser.loss(at) for at in f])

    def answers(self, seed: int = 0) -> dict[str, tuple[int | None, tuple[str, ...]]]:
        """Return the step that each method names before any training, and its flags."""
        times, filter = self.times, self.filter
        folds = None if self.spec.m <= EXACT_ROWS else min(10, self.n)
        squared = BeforeTraining(
            self.spec, self.residual, filter, STEPS, times=times, folds=folds, seed=seed, targets=self.targets
        )
        found = stops(replace(squared, replay=self.replay), REPLAYING_RULES)
        out = {stop.rule: (stop.t, stop.flags) for stop in found}
        curves = {stop.rule: stop.curve for stop in found}
        both = curves["loo"] + curves["bayes"]
        out["bayes_and_loo"] = (None, ("no_answer",)) if np.isnan(both).all() else (int(times[np.nanargmin(both)]), ())
        out |= {f"squared_{stop.rule}": (stop.t, stop.flags) for stop in stops(squared, SQUARED)}
        reached = filter.eta(times) * self.spec.lambda_max
        return out | {f"eta_{c}": (int(times[np.argmin(np.abs(reached - c))]), ()) for c in (0, *THUMB)}
