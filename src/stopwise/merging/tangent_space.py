"""Task arithmetic in the kernel's space: what adding and negating task vectors does, before anything is merged.

A vector trained from theta_0 on task b is J_b' c_b in the tangent space, so that theta_0 + sum_i x_i tau_i has outputs
f0(x) + sum_i x_i K(x, X_i) c_i: everything here follows from kernel blocks and one vector of weights c per task
(design: "Task arithmetic in the tangent space"). Numpy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from stopwise.artifacts.gram import AssembledKernel
from stopwise.artifacts.task_blocks import TaskBlocks
from stopwise.linearized.coding import predicted_class
from stopwise.linearized.objectives import Objective
from stopwise.linearized.paths import weights_path
from stopwise.linearized.replay import draw_batches, minibatch_weights
from stopwise.linearized.spectrum import Spectrum
from stopwise.training.prediction import step_eigenvalue
from stopwise.training.settings import FinetuneSettings

SPLITS = ("train", "validation", "test")
# K from float32 passes is right to about 1e-6 of its largest eigenvalue: smaller directions are noise, not signal.
RANK_TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class TangentTask:
    """One task as its kernel sees it.

    ``kernel``: the block of its n training rows, and the held-out rows (validation, then test) against them.
    ``labels``: int64 by split; ``weights``: c, float64 [m]; ``intercept``: b_hat, float64 [columns].
    """

    kernel: AssembledKernel
    labels: Mapping[str, np.ndarray]
    classes: int
    weights: np.ndarray
    intercept: np.ndarray
    outputs: str = "contrast"
    target_scale: float = 1.0

    def start(self, split: str) -> np.ndarray:
        """Return f0 of a split, float64 [n, columns]."""
        return self.kernel.outputs if split == "train" else self.kernel.outputs_new[self.held_out(split)]

    def held_out(self, split: str) -> slice:
        """Return the held-out examples that are this split's."""
        cut = len(self.labels["validation"])
        return slice(0, cut) if split == "validation" else slice(cut, cut + len(self.labels["test"]))

    def own_change(self, split: str) -> np.ndarray:
        """Return K(X, X_a) c_a, the change that the task's own vector makes; float64 [n, columns]."""
        if split == "train":
            return (self.kernel.train @ self.weights).reshape(-1, self.kernel.columns)
        return (self.kernel.new @ self.weights).reshape(-1, self.kernel.columns)[self.held_out(split)]

    def objective(self, split: str) -> Objective:
        """Return the squared loss on a split, the intercept included."""
        return Objective("squared", self.labels[split], self.classes, self.outputs, self.target_scale, self.intercept)

    def residual(self, split: str) -> np.ndarray:
        """Return r = y - b_hat - f0, what is left to learn; float64 [n, columns]."""
        return self.objective(split).targets - self.intercept - self.start(split)


class TangentSpace:
    """The linearised network under any combination of the tasks' vectors, from kernel blocks alone."""

    def __init__(self, tasks: Mapping[str, TangentTask], blocks: TaskBlocks) -> None:
        self.tasks, self.blocks = dict(tasks), blocks
        self._changes: dict[tuple[str, str, str], np.ndarray] = {}

    def change(self, a: str, b: str, split: str) -> np.ndarray:
        """Return K(X_a, X_b) c_b: what b's vector does to the outputs of task a; float64 [n_a, columns of a]."""
        if (a, b, split) not in self._changes:
            own = a == b
            found = self.tasks[a].own_change(split) if own else sum(self.parts("layer", a, b, split).values())
            self._changes[a, b, split] = np.asarray(found)
        return self._changes[a, b, split]

    def parts(self, grouping: str, a: str, b: str, split: str) -> dict[str, np.ndarray]:
        """Return the change that b's vector makes on task a by layer or by module type; they add up to ``change``."""
        task, weights = self.tasks[a], self.tasks[b].weights
        block = "train" if split == "train" else "new"
        rows = slice(None) if split == "train" else task.held_out(split)
        return {
            name: (matrix @ weights).reshape(-1, task.kernel.columns)[rows]
            for name, matrix in self.blocks.split(grouping, block, a, b).items()
        }

    def outputs(self, point: Mapping[str, float], task: str, split: str) -> np.ndarray:
        """Return the outputs at theta_0 + sum_i x_i tau_i, without the intercept; float64 [n, columns]."""
        return self.tasks[task].start(split) + sum(x * self.change(task, b, split) for b, x in point.items())

    def judge(self, point: Mapping[str, float], task: str, split: str) -> tuple[float, float]:
        """Return the predicted (loss, accuracy) of a task at theta_0 + sum_i x_i tau_i, its intercept included."""
        f, objective = self.outputs(point, task, split), self.tasks[task].objective(split)
        return objective.loss(f), objective.accuracy(f)

    def norm(self, a: str) -> float:
        """Return the predicted |tau_a| = sqrt(c' K_aa c)."""
        c = self.tasks[a].weights
        return float(np.sqrt(max(c @ self.tasks[a].kernel.train @ c, 0.0)))

    def cosine(self, a: str, b: str) -> float:
        """Return the predicted cosine of two vectors; NaN when one of them is zero (stopped before the first step)."""
        return sum(self.cosine_parts("layer", a, b).values())

    def cosine_parts(self, grouping: str, a: str, b: str) -> dict[str, float]:
        """Return the predicted cosine by layer or module type: c_a' K_ab c_b of each over the norms of the whole."""
        left, right, norms = self.tasks[a].weights, self.tasks[b].weights, self.norm(a) * self.norm(b)
        parts = self.blocks.split(grouping, "train", a, b)
        return {name: float(left @ k @ right) / norms if norms > 0 else np.nan for name, k in parts.items()}

    def disentanglement(self, a: str, b: str, x_a: float, x_b: float, split: str = "test") -> float:
        """Return the predicted weight disentanglement error xi at (x_a, x_b), between 0 and 2.

        The sum over both tasks of the share of examples whose predicted class differs between the task's own vector and
        both together (Ortiz-Jimenez et al., 2023, equation 4), at the same coefficients.
        """
        point, total = {a: x_a, b: x_b}, 0.0
        for task in (a, b):
            alone = self._classes({task: point[task]}, task, split)
            total += float(np.mean(alone != self._classes(point, task, split)))
        return total

    def _classes(self, point: Mapping[str, float], task: str, split: str) -> np.ndarray:
        own = self.tasks[task]
        return predicted_class(self.outputs(point, task, split) + own.intercept, own.classes, own.outputs)


def filter_weights(
    spec: Spectrum, residual: np.ndarray, settings: FinetuneSettings, step: int, seed: int = 0
) -> np.ndarray:
    """Return c after ``step`` steps of the configured training, from the spectrum alone; float64 [m].

    The filter of the update rule on full batches; on mini-batches the replay of the very draws that training makes.
    """
    step_filter = settings.filter(step_eigenvalue(spec, settings.batch_size))
    if settings.batch_size is None or settings.batch_size >= spec.examples:
        return weights_path(spec, residual, step_filter, np.array([step]))[0]
    draws = draw_batches(spec.examples, settings.batch_size, settings.steps, seed)[:step]
    sizes = step_filter.step_sizes(settings.steps)[:step]
    momentum = settings.momentum if settings.optimizer in ("heavy_ball", "nesterov") else 0.0
    nesterov = settings.optimizer == "nesterov"
    return minibatch_weights(spec, residual, draws, list(sizes), momentum, nesterov)[-1]


def fitted_weights(kernel: np.ndarray, change: np.ndarray) -> np.ndarray:
    """Return the c of least squares, K c = f(theta_a) - f0 on the training rows; float64 [m], of smallest norm.

    What any vector, however it was trained, would be in the tangent space. Directions below ``RANK_TOLERANCE`` of the
    largest eigenvalue are left out.
    """
    values, vectors = np.linalg.eigh((kernel + kernel.T) / 2)
    kept = values > RANK_TOLERANCE * values[-1]
    return vectors[:, kept] @ ((vectors[:, kept].T @ np.ravel(change)) / values[kept])


def outside_theory(settings: FinetuneSettings, parameters: Any, formula: str) -> str | None:
    """Return what puts a training outside the theory of the kernel (``a; b``), None when the theory covers it."""
    reasons = {
        f"objective {settings.objective}": settings.objective != "squared",
        f"optimizer {settings.optimizer}": settings.optimizer == "adamw",
        "weight decay": settings.weight_decay > 0,
        f"kernel of formula {formula}": formula != "sgd",
        "adapters": isinstance(parameters, Mapping),
    }
    return "; ".join(reason for reason, applies in reasons.items() if applies) or None
