"""The training loop: gradient, evaluation, stopping, checkpoint, update, in that order at every step.

Its whole state is a handful of tensors and numbers, so that a run can be put down after any evaluation and taken up
again with the same bits. What to train and how is decided in ``stopwise.training.finetune``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from stopwise.linearized.objectives import Objective
from stopwise.linearized.replay import draw_batches
from stopwise.network.learner import Learner, Prompts
from stopwise.network.norms import euclidean
from stopwise.network.task_vectors import layer_of
from stopwise.stopping.in_training import Predicted
from stopwise.stopping.schedule_path import CLIP_EPS
from stopwise.training.joint import JointObjective
from stopwise.training.optimizers import make_optimizer
from stopwise.training.settings import FinetuneSettings

# A stable run never gets here: momentum overshoots the residual at most twofold, fourfold in the loss. The reference is
# the larger of the starting loss and the mean square of the targets. A normalised network saturates and shows no
# infinity.
DIVERGENCE = 10.0
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class Split:
    """One part of the data: prompts and the objective on them."""

    prompts: Prompts
    objective: Objective | JointObjective


@dataclass
class Progress:
    """Everything that training changes, besides the weights, the optimizer and the stop rule."""

    step: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    layers: list[dict[str, Any]] = field(default_factory=list)
    outputs: dict[str, list[np.ndarray]] = field(default_factory=dict)
    seconds: float = 0.0
    diverged: bool = False
    finished: bool = False


class Trainer:
    """One run: moves ``learner.tensors`` by full batches or mini-batches, evaluating and stopping on the way.

    ``predicted`` maps a split to the linearised path [steps + 1, m], outputs minus f0 with the intercept included (the
    key ``distance`` to the predicted |theta_t - theta_0|): its losses join the rows. ``start_outputs`` maps splits to
    known f0, which then is not computed again.
    """

    def __init__(
        self,
        learner: Learner,
        splits: Mapping[str, Split],
        settings: FinetuneSettings,
        lambda_1: float | None,
        *,
        seed: int = 0,
        predicted: Mapping[str, np.ndarray] | None = None,
        start_outputs: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.learner, self.splits, self.settings, self.seed = learner, dict(splits), settings, seed
        self.predicted, self.start_outputs = dict(predicted or {}), dict(start_outputs or {})
        filter_ = settings.filter(lambda_1)
        self.alphas = settings.step_sizes(lambda_1)
        self.eta = np.asarray(filter_.eta(np.arange(settings.steps + 1)), dtype=np.float64)
        self.tensors = learner.tensors
        self.start = [tensor.clone() for tensor in self.tensors]
        self.best = [tensor.clone() for tensor in self.tensors]
        self.optimizer = make_optimizer(
            settings.optimizer, self.tensors, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
        self.stop = settings.stop_rule()
        if self.stop.needs_validation and "validation" not in splits:
            raise ValueError("finetune.stop: rule 'holdout' needs validation data, found none")
        self.n = len(splits["train"].prompts)
        self.full_batch = settings.batch_size is None or settings.batch_size >= self.n
        # A function of the seed alone: nothing about the data order needs to be in a checkpoint.
        self.batches = draw_batches(self.n, settings.batch_size, settings.steps, seed)
        self.progress = Progress(outputs={name: [] for name in splits})
        self.intercept = np.zeros(1)
        self._norms = [euclidean(parameter) for parameter in learner.parameters.values()]

    @property
    def end(self) -> int:
        """The last step of the run, if nothing stops it earlier."""
        if isinstance(self.stop, Predicted) and not self.settings.continue_after_stop:
            return min(self.stop.t, self.settings.steps)
        return self.settings.steps

    def set_intercept(self) -> None:
        """Fit b_hat to the outputs at the start (zero without a fitted intercept and for cross-entropy)."""
        objective = self.splits["train"].objective
        fit = self.settings.intercept == "fitted" and self.settings.objective == "squared"
        if fit and "train" not in self.start_outputs:
            self.start_outputs["train"] = self.learner.predict(self.splits["train"].prompts)
        f0 = self.start_outputs["train"] if fit else objective.targets
        self.use_intercept(objective.fitted_intercept(f0))

    def use_intercept(self, intercept: np.ndarray) -> None:
        """Train on targets y - b_hat and add b_hat in every evaluation."""
        self.intercept = np.asarray(intercept, dtype=np.float64)
        self.splits = {
            name: Split(split.prompts, split.objective.with_intercept(self.intercept))
            for name, split in self.splits.items()
        }

    def run(self, save: Callable[[], None], observe: Callable[[int], None], bar: bool, title: str) -> None:
        """Train to the end, calling ``save`` after every evaluation and ``observe(step)`` with the weights at it."""
        with self.learner.trainable(), tqdm(total=self.end, initial=self.progress.step, disable=not bar) as ticks:
            ticks.set_description(title)
            while not self.progress.finished:
                self._step(save, observe)
                ticks.update(self.progress.step - ticks.n)

    def _step(self, save: Callable[[], None], observe: Callable[[int], None]) -> None:
        began, step = time.perf_counter(), self.progress.step
        known, gradients, loss = self._gradient(step) if step < self.end else ({}, None, math.nan)
        # The loss of a batch is one of a few examples: whether the mean grew is seen at the evaluations.
        grew = self._diverges(loss) if self.full_batch else not math.isfinite(loss)
        self.progress.diverged = gradients is not None and grew
        if self._due(step) and not self._recorded(step):
            self._evaluate(step, known, gradients)
            over = self.stop.stopped and not self.settings.continue_after_stop
            self.progress.finished = step >= self.end or self.progress.diverged or over
            self.progress.seconds += time.perf_counter() - began
            began = time.perf_counter()
            observe(step)
            save()
        if self.progress.finished:
            return
        assert gradients is not None
        self._clip(gradients)
        self.optimizer.update(gradients, float(self.alphas[step]))
        self.progress.step += 1
        self.progress.seconds += time.perf_counter() - began

    def _gradient(self, step: int) -> tuple[dict[str, np.ndarray], list[torch.Tensor], float]:
        """Return (train outputs if this pass gave them, gradients, loss of the pass)."""
        split = self.splits["train"]
        if self.full_batch:
            f, gradients = self.learner.gradient(split.prompts, split.objective.gradient)
            return {"train": f}, gradients, split.objective.loss(f)
        index = self.batches[step]
        objective = split.objective.rows(index)
        prompts = split.prompts.rows(index, self.settings.tokens_per_batch)
        f, gradients = self.learner.gradient(prompts, objective.gradient)
        return {}, gradients, objective.loss(f)

    def _clip(self, gradients: list[torch.Tensor]) -> None:
        """Cut the gradient down to the norm that is allowed, over all trained parameters, as torch does."""
        if self.settings.clip_norm is None:
            return
        norm = _norm([euclidean(g) for g in gradients])
        if norm > self.settings.clip_norm:
            torch._foreach_mul_(gradients, self.settings.clip_norm / (norm + CLIP_EPS))

    def _diverges(self, loss: float) -> bool:
        if not math.isfinite(loss):
            return True
        start = self.progress.rows[0]["train_loss"] if self.progress.rows else loss
        return loss > DIVERGENCE * max(start, float(np.mean(self.splits["train"].objective.targets ** 2)))

    def _due(self, step: int) -> bool:
        here = step % self.settings.evaluation_interval(self.n) == 0 or step >= self.end or self.progress.diverged
        return here or (isinstance(self.stop, Predicted) and step == self.stop.t)

    def _recorded(self, step: int) -> bool:
        """Whether a resumed run is back at an evaluation that it had already made."""
        return bool(self.progress.rows) and self.progress.rows[-1]["step"] == step

    def _evaluate(self, step: int, known: dict[str, np.ndarray], gradients: list[torch.Tensor] | None) -> None:
        row = self._position(step, gradients)
        for name, split in self.splits.items():
            if name in known:
                f = known[name]
            elif step == 0 and name in self.start_outputs:
                f = np.asarray(self.start_outputs[name])
            else:
                f = self.learner.predict(split.prompts)
            row |= {f"{name}_loss": split.objective.loss(f), f"{name}_accuracy": split.objective.accuracy(f)}
            self.progress.outputs[name].append(f)
        self.progress.diverged = self.progress.diverged or self._diverges(row["train_loss"])
        row |= self._linearised(step)
        row["seconds"] = self.progress.seconds
        self.progress.rows.append(row)
        if not self.progress.diverged and self.stop.observe(step, row):
            for kept, tensor in zip(self.best, self.tensors, strict=True):
                kept.copy_(tensor)

    def _position(self, step: int, gradients: list[torch.Tensor] | None) -> dict[str, Any]:
        """Return step, epoch, eta, gradient norm and distances; each layer's distances are kept beside."""
        batch = len(self.batches[0])
        row: dict[str, Any] = {"step": step, "epoch": step * batch / self.n, "eta": float(self.eta[step])}
        row |= dict.fromkeys(f"{name}_{value}" for name in SPLITS for value in ("loss", "accuracy"))
        row["gradient_norm"] = None if gradients is None else _norm([euclidean(g) for g in gradients])
        moved = [euclidean(now - then) for now, then in zip(self.tensors, self.start, strict=True)]
        row["distance"] = _norm(moved)
        row["relative_distance"] = _ratio(_norm(moved), _norm(self._norms))
        by_layer: dict[str, list[int]] = {}
        for i, name in enumerate(self.learner.names):
            by_layer.setdefault(layer_of(name), []).append(i)
        for layer, members in by_layer.items():
            distance, norm = _norm([moved[i] for i in members]), _norm([self._norms[i] for i in members])
            entry = {"step": step, "layer": layer, "distance": distance, "relative_distance": _ratio(distance, norm)}
            self.progress.layers.append(entry)
        return row

    def _linearised(self, step: int) -> dict[str, float]:
        """Return the linearised model's losses at this step, for the splits whose paths were given."""
        values: dict[str, float] = {}
        for name, path in self.predicted.items():
            if step >= len(path):
                continue
            if name == "distance":
                values["linearised_distance"] = float(path[step])
                continue
            f0, objective = self.progress.outputs[name][0], self.splits[name].objective
            f = f0 + np.reshape(path[step], f0.shape) - objective.offset
            values[f"linearised_{name}_loss"] = objective.loss(f)
            if name == "test":
                values["linearised_test_accuracy"] = objective.accuracy(f)
        return values


def _norm(values: list[float]) -> float:
    return math.sqrt(sum(value**2 for value in values))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else math.nan
