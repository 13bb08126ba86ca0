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


def replay(sample: Sample, settings: FinetuneSettings, n: int, t_max: int, seed: int) -> Replay | None:
    """Return what the rules need to replay t_max steps of training on n examples; None where they read the filter."""
    if not settings.replays_rules:
        return None
    return Replay(train_objective(sample, settings, n), draw_batches(n, settings.batch_size, t_max, seed))


def stop_steps(rows: Iterable[Mapping[str, Any]], settings: FinetuneSettings) -> dict[int, int]:
    """Return by training size the step that the rule ``settings.stop`` predicted, from rows of the stopping table.

    A rule without an answer stops nothing: its run goes to the end.
    """
    never = settings.steps + 1
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
    cross-entropy are replayed on the kernel step by step, and so is AdamW on a kernel of formula adam, its weight decay
    left out. Empty under AdamW with another kernel, which does not give its steps.
    """
    if not settings.has_path:
        return {}
    filter, steps = settings.filter(step_eigenvalue(spec, settings.batch_size)), settings.steps
    cut, residual = validation * kernel.columns, objective.targets - kernel.outputs
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
