"""What the joint kernel of several tasks says about training them together: its path and every rule's stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stopwise.linearized.coding import squared_loss
from stopwise.linearized.filters import Filter
from stopwise.linearized.paths import train_path
from stopwise.linearized.spectrum import Spectrum, joint_spectrum
from stopwise.stopping.known import BeforeTraining
from stopwise.stopping.stops import stopping_table, time_grid
from stopwise.training.settings import FinetuneSettings


@dataclass(frozen=True, eq=False)
class JointPlan:
    """The joint spectrum, the residual of all rows task after task, the filter, and the linearised training path.

    ``targets``: y by task [n, columns]; ``path``: outputs minus f0 with the intercepts, float64 [steps + 1, m].
    ``exact``: training follows the theory (squared loss, no AdamW); else the stops are heuristics.
    """

    spectrum: Spectrum
    targets: dict[str, np.ndarray]
    residuals: dict[str, np.ndarray]
    filter: Filter
    path: np.ndarray
    exact: bool

    @classmethod
    def of(
        cls,
        blocks: Mapping[tuple[str, str], Any],
        targets: Mapping[str, np.ndarray],
        intercept: bool,
        settings: FinetuneSettings,
    ) -> JointPlan:
        """Plan full-batch training on the mean over all rows, from kernels K[a, b] that carry their outputs f0.

        Raises KernelError when a pair of tasks has no block.
        """
        residuals = {task: np.asarray(y) - blocks[task, task].outputs for task, y in targets.items()}
        columns = {task: blocks[task, task].columns for task in targets}
        spec = joint_spectrum({pair: k.matrix for pair, k in blocks.items()}, columns, intercept, list(targets))
        step_filter = settings.filter(spec.lambda_max)
        path = train_path(spec, _stacked(residuals), step_filter, settings.steps)
        return cls(spec, dict(targets), residuals, step_filter, path, settings.follows_theory)

    @property
    def examples(self) -> int:
        """How many examples are trained on, over all tasks."""
        return sum(len(y) for y in self.targets.values())

    def stops(self, rules: Sequence[str], t_max: int, noise: str, radius: str) -> list[dict[str, Any]]:
        """Return each kernel rule's stop: rows of the ``stopping`` artifact, n counting all tasks' examples."""
        residual, y, times = _stacked(self.residuals), _stacked(self.targets), time_grid(t_max)
        run = BeforeTraining(
            self.spectrum, residual, self.filter, t_max, noise=noise, radius=radius, times=times, targets=y
        )
        found, _ = stopping_table(run, rules)
        flags = () if self.exact else ("heuristic",)
        return [{"n": self.examples, **row, "flags": sorted({*str(row["flags"]).split(), *flags})} for row in found]

    def linearised_losses(self, step: int) -> dict[str | None, float]:
        """Return the linearised training loss of each task, and under None that of all rows."""
        moved, start = self.path[step], 0
        losses: dict[str | None, float] = {}
        for task, residual in self.residuals.items():
            own = moved[start : start + residual.size].reshape(residual.shape)
            losses[task] = squared_loss(own, residual)
            start += residual.size
        sizes = np.array([residual.size for residual in self.residuals.values()])
        return {None: float(np.average(list(losses.values()), weights=sizes))} | losses


def joint_rows(run: Any, plan: JointPlan) -> list[dict[str, Any]]:
    """Return the rows of the ``joint`` artifact: each evaluation of a joint run, over all tasks (task None) and each.

    ``run`` is the FinetuneResult of the same tasks and settings. The linearised loss is that of the training split.
    """
    rows = []
    for at in run.trajectory:
        predicted = plan.linearised_losses(at["step"]) if plan.exact else {}
        values = [
            {"task": None, "split": name, "loss": at[f"{name}_loss"], "accuracy": at[f"{name}_accuracy"]}
            for name in ("train", "validation", "test")
            if at[f"{name}_loss"] is not None
        ]
        values += [{k: v for k, v in row.items() if k != "step"} for row in run.tasks if row["step"] == at["step"]]
        for value in values:
            known = predicted.get(value["task"]) if value["split"] == "train" else None
            place = {"n": plan.examples, "step": at["step"], "eta": at["eta"]}
            rows.append({**place, **value, "linearised_loss": known})
    return rows


def _stacked(residuals: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([np.ravel(residual) for residual in residuals.values()])
