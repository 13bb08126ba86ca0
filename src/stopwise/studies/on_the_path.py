"""The stopping rules, and what was tried on the way to them, judged on the linearised path of real kernels (no torch).

A cell is one task, seed and training size. Training is gradient descent at alpha = 1/lambda_1 followed through its
kernel, up to a time far past any optimum; the test loss along it is known at every step, so that every rule can be
judged in every cell, which real training would not allow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np

from stopwise.artifacts.gram import AssembledKernel
from stopwise.artifacts.sample import Sample
from stopwise.linearized import coding as outputs
from stopwise.linearized.filters import Filter, GradientDescent
from stopwise.linearized.noise import estimate_noise
from stopwise.linearized.paths import linearized_path
from stopwise.linearized.replay import batch_lambda_max
from stopwise.linearized.spectrum import Spectrum
from stopwise.stopping.bayes import expected_losses, task_posterior
from stopwise.stopping.closed_form import BEYOND, unbiased_risk, worst_case
from stopwise.stopping.judging import HIT, judge
from stopwise.stopping.known import BeforeTraining, Known, path_moments
from stopwise.stopping.leave_one_out import loo_curve
from stopwise.stopping.registry import PREDICTED
from stopwise.stopping.stops import stops, time_grid

T_MAX = 20_000
TIME_POINTS = 300
# Leave-one-out up to this many rows, ten folds above: the cells of several output columns are the large ones.
EXACT_ROWS = 300
# Batch size of the rules of thumb that count epochs, and the share of the step that just does not diverge.
EPOCH_BATCH, EPOCH_STEP = 8, 0.5
RULES = PREDICTED
# Tried on the way to ``bayes``, and rules of thumb.
TRIED = ("worst_case_plain", "sure_posterior", "bayes_slope_1", "bayes_plug_in", "bayes_and_loo", "cv5")
THUMB = ("eta_1", "eta_3", "eta_10", "eta_30", "eta_100", "epochs_1", "epochs_2", "epochs_3")
METHODS = (*RULES, *TRIED, *THUMB, "holdout", "oracle")


@dataclass(frozen=True, eq=False)
class Cell:
    """The first n training examples of a task's kernel, and its test examples."""

    kernel: AssembledKernel
    sample: Sample
    n: int
    coding: str = "contrast"
    scale: float = 1.0
    objective = "squared"

    @cached_property
    def leading(self) -> AssembledKernel:
        """Return the kernel of the n examples."""
        return self.kernel.leading(self.n)

    @cached_property
    def spec(self) -> Spectrum:
        """Return their spectrum, with the intercept fitted."""
        return self.leading.spectrum("fitted")

    @cached_property
    def targets(self) -> np.ndarray:
        """Return y of the training examples, float64 [n, columns]."""
        return self.sample.targets("train", self.coding, self.scale, self.n)

    @cached_property
    def filter(self) -> Filter:
        """Return descent at alpha = 1/lambda_1."""
        return GradientDescent(1 / self.spec.lambda_max)

    @cached_property
    def times(self) -> np.ndarray:
        """Return the times looked at, evenly spaced in log t."""
        return time_grid(T_MAX, TIME_POINTS)

    @property
    def residual(self) -> np.ndarray:
        """Return y - f0 of the training examples."""
        return self.targets - self.leading.outputs

    def part(self, examples: int) -> Self:
        """Return the cell of the first examples, with the same test examples."""
        return replace(self, n=examples)

    def answers(self, seed: int = 0) -> dict[str, tuple[int | None, tuple[str, ...]]]:
        """Return the time that each method names before any training, and its flags."""
        return answers(self, seed)

    def losses_on(self, whole: Cell) -> np.ndarray:
        """Return the loss on the examples of ``whole`` that this cell, its first part, lacks; float64 [len(times)]."""
        path = linearized_path(self.spec, self.residual, self.across(whole), self.filter, self.times)
        return ((whole.residual[self.n :].ravel() - path) ** 2).mean(axis=1)

    def across(self, whole: Cell) -> np.ndarray:
        """Return the kernel between the examples of ``whole`` that this cell lacks and its own."""
        q = self.kernel.columns
        return self.kernel.train[self.n * q : whole.n * q, : self.n * q]

    @cached_property
    def test_path(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the test loss and the test accuracy at each time, float64 [len(times)] both."""
        kernel, held_out = self.leading, len(self.sample.labels("validation"))
        f0, cross = kernel.outputs_new[held_out:], kernel.new[held_out * kernel.columns :]
        y, labels = self.sample.targets("test", self.coding, self.scale), self.sample.labels("test")
        path = linearized_path(self.spec, self.residual, cross, self.filter, self.times)
        f = path.reshape(len(self.times), *f0.shape) + f0
        loss = ((y - f) ** 2).mean(axis=(1, 2))
        return loss, np.array([outputs.accuracy(at, labels, self.sample.class_count, self.coding) for at in f])


def cell_rows(cell: Cell, seed: int = 0) -> list[dict[str, Any]]:
    """Return one row a method: the rules of ``METHODS`` judged against the oracle of all n examples.

    ``holdout`` trains on the first three quarters of the same n labels and chooses on the rest; its loss is that of the
    model so trained. A rule whose best time is the last one looked at is judged there; one without an answer has none.
    """
    loss, accuracy = cell.test_path
    oracle = judge(None, cell.times, loss)
    held = _holdout(cell)
    rows = []
    for method, (t, flags) in cell.answers(seed).items():
        at = None if t is None else float(np.interp(t, cell.times, accuracy))
        rows.append(_row(cell, method, t, flags, judge(t, cell.times, loss), at))
    reached = held["loss"]
    seen = oracle | {
        "loss": reached,
        "relative_regret": reached / oracle["loss_oracle"] - 1,
        "hit": reached <= (1 + HIT) * oracle["loss_oracle"],
        "ratio": held["t"] / oracle["t_oracle"] if oracle["t_oracle"] else np.nan,
    }
    rows.append(_row(cell, "holdout", held["t"], (), seen, held["accuracy"]))
    best = int(np.argmin(loss))
    t = int(cell.times[best])
    rows.append(_row(cell, "oracle", t, (), judge(t, cell.times, loss), float(accuracy[best])))
    return [row | {"loss_holdout": reached} for row in rows]


def answers(cell: Cell, seed: int = 0) -> dict[str, tuple[int | None, tuple[str, ...]]]:
    """Return the time that each method names before any training, and its flags."""
    spec, residual, filter, times, y = cell.spec, cell.residual, cell.filter, cell.times, cell.targets
    folds = None if spec.m <= EXACT_ROWS else min(10, cell.n)
    noise = estimate_noise(spec, residual)
    run = BeforeTraining(spec, residual, filter, T_MAX, times=times, noise=noise, folds=folds, seed=seed, targets=y)
    found = stops(run, RULES)
    out: dict[str, tuple[int | None, tuple[str, ...]]] = {}
    for stop in found:
        beyond = stop.t is None and BEYOND in stop.flags
        out[stop.rule] = (T_MAX if beyond else stop.t, stop.flags)
    path = path_moments(spec, residual, filter, times)
    if noise.usable:
        plain = worst_case(Known(run, path, noise.sigma / (2 * np.e), noise.rkhs_norm_prior))
        out["worst_case_plain"] = (T_MAX if plain.t is None else plain.t, plain.flags)
    else:
        out["worst_case_plain"] = (None, noise.flags)
    start = y - residual
    posterior = task_posterior(spec, y, start)
    curves = {stop.rule: stop.curve for stop in found}
    out |= dict.fromkeys(("sure_posterior", "bayes_slope_1", "bayes_plug_in", "bayes_and_loo"), (None, ("no_answer",)))
    if posterior is not None:
        out["sure_posterior"] = _least(times, unbiased_risk(path, spec.m, posterior.sigma2**0.5))
        out["bayes_and_loo"] = _least(times, curves["bayes"] + curves["loo"])
    options = {"bayes_slope_1": "slope_known", "bayes_plug_in": "plug_in"}
    beliefs = {name: task_posterior(spec, y, start, **{option: True}) for name, option in options.items()}
    told = {name: belief for name, belief in beliefs.items() if belief is not None}
    tried = expected_losses(spec, list(told.values()), start, filter, times, folds, seed)
    out |= {name: _least(times, curve) for name, curve in zip(told, tried, strict=True)}
    out["cv5"] = _least(times, loo_curve(spec, residual, filter, times, 5, seed))
    out |= {f"eta_{c}": (c, ()) for c in (1, 3, 10, 30, 100)}
    alpha = EPOCH_STEP / batch_lambda_max(spec.matrix, spec.columns, EPOCH_BATCH)
    per_epoch = cell.n / EPOCH_BATCH * alpha * spec.lambda_max
    out |= {f"epochs_{k}": (round(k * per_epoch), ()) for k in (1, 2, 3)}
    return out


def _least(times: np.ndarray, curve: np.ndarray) -> tuple[int | None, tuple[str, ...]]:
    return int(times[int(np.nanargmin(curve))]), ()


def _holdout(cell: Cell) -> dict[str, Any]:
    """Hold-out at equal data: three quarters train, the rest choose."""
    part = cell.part(cell.n - cell.n // 4)
    chosen = int(np.argmin(part.losses_on(cell)))
    loss, accuracy = part.test_path
    return {"t": int(cell.times[chosen]), "loss": float(loss[chosen]), "accuracy": float(accuracy[chosen])}


def _row(
    cell: Cell, method: str, t: int | None, flags: tuple[str, ...], seen: Mapping[str, Any], accuracy: float | None
) -> dict[str, Any]:
    """One row of the ``stopping_study`` artifact but for ``loss_holdout``; what a method lacks is None."""
    answered = t is not None
    return {
        "n": cell.n,
        "objective": cell.objective,
        "method": method,
        "t": t,
        "eta": None if t is None else float(cell.filter.eta(t)),
        "loss": float(seen["loss"]) if answered else None,
        "accuracy": accuracy,
        "relative_regret": float(seen["relative_regret"]) if answered else None,
        "hit": bool(seen["hit"]) if answered else None,
        "ratio": float(seen["ratio"]) if answered and np.isfinite(seen["ratio"]) else None,
        "t_oracle": int(seen["t_oracle"]),
        "low": int(seen["low"]),
        "high": int(seen["high"]),
        "loss_oracle": float(seen["loss_oracle"]),
        "flags": list(flags),
    }
