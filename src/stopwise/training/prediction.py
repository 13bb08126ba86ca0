"""What the kernel says about a run before it starts: its spectrum and the linearised path of every split (no torch)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from stopwise.artifacts.gram import AssembledKernel
from stopwise.artifacts.sample import Sample
from stopwise.linearized.coding import columns
from stopwise.linearized.objectives import Objective
from stopwise.linearized.paths import linearized_path, squared_norm_path, train_path
from stopwise.linearized.replay import batch_lambda_max, draw_batches, minibatch_weights, replayed_weights
from stopwise.linearized.spectrum import Spectrum
from stopwise.stopping.cross_entropy import Replay
from stopwise.stopping.registry import FIXED_STOP
from stopwise.stopping.schedule_path import Linearised, Schedule, replayed_moves
from stopwise.training.settings import FinetuneSettings


def step_eigenvalue(spec: Spectrum, batch_size: int | None) -> float:
    """Return the eigenvalue lambda_1 that the step size alpha = c/lambda_1 is taken from.

    Full batches: the largest of K_n. Mini-batches: the largest among the matrices K_BB/m_B of 100 sampled batches, for
    the step of the full batch diverges on a small one.
    """
    if batch_size is None or batch_size >= spec.examples:
        return spec.lambda_max
    return batch_lambda_max(spec.matrix, spec.columns, batch_size)


def size_plans(
    gram: AssembledKernel,
    sample: Sample,
    settings: FinetuneSettings,
    sizes: Sequence[int],
    seed: int = 0,
) -> tuple[dict[int, float], dict[int, dict[str, np.ndarray]]]:
    """Return by training size the eigenvalue that its step size is taken from, and its ``predicted_paths``."""
    eigenvalues, paths = {}, {}
    for n in sizes:
        kernel = gram.leading(n)
        spec, objective = kernel.spectrum(settings.intercept), train_objective(sample, settings, n)
        eigenvalues[n] = step_eigenvalue(spec, settings.batch_size)
        paths[n] = predicted_paths(kernel, spec, objective, settings, len(sample.labels("validation")), seed)
    return eigenvalues, paths


def train_objective(sample: Sample, settings: FinetuneSettings, n: int) -> Objective:
    """Return the objective of the first n training examples, without an intercept."""
    coding = sample.class_count, settings.outputs, settings.target_scale
    labels = sample.labels("train", n)
    return Objective(settings.objective, labels, *coding, np.zeros(columns(sample.class_count, settings.outputs)))


def replay(
    sample: Sample,
    settings: FinetuneSettings,
    n: int,
    t_max: int,
    seed: int,
    kernel: AssembledKernel | None = None,
    lambda_1: float | None = None,
) -> Replay | None:
    """Return what the rules need to replay t_max steps of training on n examples; None where they read the filter.

    ``kernel`` of the n examples and ``lambda_1`` are needed where training clips gradients or decays weights.
    """
    if not settings.replays_rules:
        return None
    objective, batches = train_objective(sample, settings, n), draw_batches(n, settings.batch_size, t_max, seed)
    if not settings.follows_schedule or kernel is None:
        return Replay(objective, batches)
    schedule = training_schedule(settings, lambda_1, batches)
    return Replay(objective, batches, schedule, _plain(kernel, settings), kernel.weights_move)


def training_schedule(settings: FinetuneSettings, lambda_1: float | None, batches: Sequence[np.ndarray]) -> Schedule:
    """Return what the optimizer does at each step on these batches, clipping and decay included."""
    adam = settings.optimizer == "adamw"
    return Schedule(
        settings.step_sizes(lambda_1, len(batches)),
        batches,
        [np.full(len(batch), 1 / len(batch)) for batch in batches],
        momentum=settings.filter(lambda_1).momentum,
        adam=adam,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.clip_norm or 0.0,
    )


def _plain(kernel: AssembledKernel, settings: FinetuneSettings) -> np.ndarray | None:
    """Return J J', whose quadratic form is the squared norm of a gradient: the kernel itself but under AdamW."""
    return kernel.train if settings.formula == "sgd" else kernel.plain


def stop_steps(
    rows: Iterable[Mapping[str, Any]], settings: FinetuneSettings, sizes: Iterable[int] = ()
) -> dict[int, int]:
    """Return by training size the step that the stop ``settings.stop`` names, from rows of the stopping table.

    A rule without an answer stops nothing: its run goes to the end. A fixed number of epochs needs no rows: it is
    counted for each of ``sizes``, to the nearest step and at least one.
    """
    never = settings.steps + 1
    if settings.stop == FIXED_STOP and settings.epochs is not None:
        return {n: max(1, round(settings.epochs * settings.steps_per_epoch(n))) for n in sizes}
    return {row["n"]: never if row["t"] is None else row["t"] for row in rows if row["rule"] == settings.stop}


def predicted_paths(
    kernel: AssembledKernel,
    spec: Spectrum,
    objective: Objective,
    settings: FinetuneSettings,
    validation: int,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Return the linearised outputs minus f0 by split, [steps + 1, rows], and ``distance``.

    ``distance`` is |theta_t - theta_0|, which the kernel of AdamW does not give.
    ``objective`` is that of the training examples, without an intercept; under squared loss the paths hold the fitted
    one. ``validation`` is how many of the new examples come first as validation; the rest are the test examples. Full
    batches under squared loss follow the filter; mini-batches, the very draws of training with this ``seed``, and
    cross-entropy are replayed on the kernel step by step, and so is AdamW on a kernel of formula adam, with the
    clipping and the weight decay that the settings name. Empty under AdamW with another kernel, which does not give its
    steps.
    """
    if not settings.has_path:
        return {}
    filter, steps = settings.filter(step_eigenvalue(spec, settings.batch_size)), settings.steps
    cut, residual = validation * kernel.columns, objective.targets - kernel.outputs
    if settings.follows_schedule:
        return _scheduled_paths(kernel, spec, objective, settings, cut, seed)
    if settings.follows_filter(spec.examples):
        train = train_path(spec, residual, filter, steps)
        new = linearized_path(spec, residual, kernel.new, filter, steps)
        squared = squared_norm_path(spec, residual, filter, steps)
    else:
        momentum = filter.momentum
        batches = draw_batches(spec.examples, settings.batch_size, steps, seed)
        alphas, nesterov = filter.step_sizes(steps).tolist(), settings.optimizer == "nesterov"
        if settings.objective == "squared":
            weights = minibatch_weights(spec, residual, batches, alphas, momentum, nesterov)
        else:
            gradient = _gradient_of_moves(objective, kernel.outputs)
            weights = replayed_weights(spec, gradient, batches, alphas, momentum, nesterov)
        train = weights @ spec.matrix
        squared = np.sum(weights * train, axis=1)
        new = weights @ kernel.new.T
        if settings.objective == "squared":
            train, new = (path + spec.offset(residual, path.shape[1]) for path in (train, new))
    paths = {"train": train, "validation": new[:, :cut], "test": new[:, cut:]}
    # The norm in the RKHS is that of theta_t - theta_0 under the plain kernel; Adam's measures with the metric 1/D.
    return paths if settings.formula == "adam" else paths | {"distance": np.sqrt(np.maximum(squared, 0.0))}


def _scheduled_paths(
    kernel: AssembledKernel,
    spec: Spectrum,
    objective: Objective,
    settings: FinetuneSettings,
    cut: int,
    seed: int,
) -> dict[str, np.ndarray]:
    """Return the paths of ``predicted_paths`` under clipping or weight decay; ``distance`` under neither AdamW."""
    lambda_1 = step_eigenvalue(spec, settings.batch_size)
    shift: float | np.ndarray = 0.0
    if settings.objective == "squared" and settings.intercept == "fitted":
        objective = objective.with_intercept(objective.fitted_intercept(kernel.outputs))
        shift = objective.intercept
    batches = draw_batches(spec.examples, settings.batch_size, settings.steps, seed)
    schedule = training_schedule(settings, lambda_1, batches)
    net = Linearised(kernel.train, kernel.outputs, _plain(kernel, settings), kernel.weights_move)
    whole = [np.arange(spec.examples)]
    moves = [(c[0].copy(), fixed.ravel()) for c, fixed in replayed_moves(net, objective, schedule, whole, False)]
    weights, fixed = (np.stack(part) for part in zip(*moves, strict=True))
    train, new = weights @ kernel.train + fixed, weights @ kernel.new.T
    if kernel.weights_move_new is not None:
        faded = np.concatenate([[1.0], np.cumprod(schedule.decay)])
        new = new + (faded - 1)[:, None] * kernel.weights_move_new.ravel()
    train, new = ((path.reshape(len(path), -1, kernel.columns) + shift).reshape(len(path), -1) for path in (train, new))
    paths = {"train": train, "validation": new[:, :cut], "test": new[:, cut:]}
    if settings.formula != "sgd":
        return paths
    squared = np.sum(weights * (weights @ kernel.train), axis=1)
    return paths | {"distance": np.sqrt(np.maximum(squared, 0.0))}


def _gradient_of_moves(objective: Objective, start: np.ndarray) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Return d loss / d f of a batch as a function of how far its outputs have moved from f0 [n, columns]."""

    def gradient(moved: np.ndarray, batch: np.ndarray) -> np.ndarray:
        return objective.rows(batch).gradient(start[batch] + moved, np.arange(len(batch)))

    return gradient


def start_outputs(kernel: AssembledKernel, validation: int) -> dict[str, np.ndarray]:
    """Return f0 by split, float32 [n, columns] without b_hat, as the kernel's passes computed it.

    ``validation`` is how many of the new examples come first as validation; the rest are the test examples.
    """
    new = kernel.outputs_new.astype(np.float32)
    train = kernel.outputs.astype(np.float32)
    return {"train": train, "validation": new[:validation], "test": new[validation:]}
