"""The log-loss of a left-out example along the linearised path of cross-entropy, for the rules ``loo`` and ``bayes``.

Cross-entropy is not linear in the labels, so that its path has no filter: the steps are replayed on the kernel, once
without each example, with the batches that training draws. What the example loses at each step is then known but for
its label. ``loo`` takes the label as it is; ``bayes`` takes how probable each class is given the labels of the others,
which is free of the noise of one label. Two kinds of models say how probable: the one that ``bayes`` has under squared
loss, good where labels are noisy, and the path itself at each time, good where classes are far apart. They are averaged
by how well they predict labels that they have not seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy

from stopwise.linearized.coding import coding_matrix
from stopwise.linearized.filters import Filter, Nesterov
from stopwise.linearized.objectives import Objective
from stopwise.linearized.replay import batch_rows
from stopwise.linearized.spectrum import Spectrum
from stopwise.stopping.bayes import left_out_means
from stopwise.stopping.leave_one_out import leave_out_groups
from stopwise.stopping.schedule_path import Linearised, Schedule, left_out_path

# Times of the path that are averaged: this many, evenly spaced in log t.
AVERAGED_TIMES = 60
# Bounds of the log of the power that calibrates probabilities: e^3 = 20 times as sure, or a twentieth.
POWER_RANGE = 3.0


@dataclass(frozen=True, eq=False)
class Replay:
    """Training on cross-entropy as the rules replay it: the objective of the n examples, and each step's batch.

    ``objective`` has no intercept (training on cross-entropy fits none); ``batches`` are those of ``draw_batches``, at
    least as many as the last step considered. ``schedule``: of a training that clips gradients or decays weights, with
    ``plain`` J J' and ``weights_move`` J theta_0 as in ``Linearised``.
    """

    objective: Objective
    batches: Sequence[np.ndarray]
    schedule: Schedule | None = None
    plain: np.ndarray | None = None
    weights_move: np.ndarray | None = None


def left_out_outputs(
    spec: Spectrum,
    start: np.ndarray,
    replay: Replay,
    filter: Filter,
    times: np.ndarray,
    folds: int | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Return the outputs of each example along the path trained without it; float64 [len(times), n, columns].

    ``start`` f0 [n, columns]; ``filter`` gives step sizes and momentum. A batch that holds left-out examples is the
    mean over the others in it; one of left-out examples alone moves nothing. Groups as in ``loo_curve``. Cost O(n m)
    per example of each batch.
    """
    n, q, m = spec.examples, spec.columns, spec.m
    if replay.schedule is not None:
        net = Linearised(spec.matrix, np.reshape(start, (n, q)), replay.plain, replay.weights_move)
        return left_out_path(net, replay.objective, replay.schedule, times, folds, seed)
    groups = leave_out_groups(n, folds, seed)
    held = np.zeros(n, dtype=np.int64)
    for k, group in enumerate(groups):
        held[group] = k
    f0, matrix = np.reshape(start, (n, q)), spec.matrix
    weights, velocity = np.zeros((len(groups), m)), np.zeros((len(groups), m))
    wanted = {int(t): i for i, t in enumerate(times)}
    last = max(wanted, default=0)
    out = np.empty((len(wanted), n, q))
    nesterov = isinstance(filter, Nesterov)
    for t, alpha in enumerate([*filter.step_sizes(last), 0.0]):
        if t in wanted:
            for k, group in enumerate(groups):
                out[wanted[t], group] = f0[group] + (matrix[batch_rows(group, q)] @ weights[k]).reshape(-1, q)
        if t == last:
            break
        batch = replay.batches[t]
        rows = batch_rows(batch, q)
        moved = (weights @ matrix[:, rows]).reshape(len(groups), len(batch), q)
        gradient = replay.objective.rows(batch).gradient(f0[batch] + moved, np.arange(len(batch)))
        inside = held[batch] == np.arange(len(groups))[:, None]
        share = len(batch) / np.maximum(len(batch) - inside.sum(axis=1), 1)
        step = (gradient * (~inside * share[:, None])[..., None]).reshape(len(groups), -1)
        velocity *= filter.momentum
        velocity[:, rows] += step
        weights -= alpha * velocity * (filter.momentum if nesterov else 1.0)
        if nesterov:
            weights[:, rows] -= alpha * step
    return out


def loo_log_loss(objective: Objective, outputs: np.ndarray) -> np.ndarray:
    """Return the mean log-loss of the labels at each time, float64 [times], of ``left_out_outputs``."""
    return -objective.log_probabilities(outputs)[:, np.arange(len(objective.labels)), objective.labels].mean(axis=1)


def expected_log_loss(objective: Objective, outputs: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return the mean log-loss at each time, float64 [times], when labels have these probabilities [n, classes]."""
    return -(objective.log_probabilities(outputs) * probabilities).sum(axis=-1).mean(axis=1)


def label_probabilities(
    spec: Spectrum, objective: Objective, start: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the probability of every class given all other labels, [examples, classes], and whose they are.

    The model of ``bayes`` predicts the targets of an example from all others (``left_out_means``). Targets are linear
    in the class, so that their mean is a probability: p = B' mean / scale + 1/C, kept away from 0 and 1 by 1/(2n). A
    model linear in the targets is too unsure where classes are far apart and too sure where it fits noise: one power a
    common to all, p^a renormalised, makes up for it (Platt 1999). a is the mode of its posterior, with the left-out
    labels for data and log a ~ N(0, 1) before them. None when the labels say nothing (as in ``task_posterior``).
    """
    found = left_out_means(spec, objective.targets, start)
    if found is None:
        return None
    means, kept = found
    coding = coding_matrix(objective.classes, objective.outputs)
    share = 1 / coding.shape[1] if len(coding) < coding.shape[1] else 0.0
    least = 0.5 / len(objective.labels)
    logs = np.log(np.clip(means @ coding / objective.scale + share, least, 1 - least))
    own = np.arange(len(kept)), objective.labels[kept]

    def powered(log_power: float) -> np.ndarray:
        raised = np.exp(log_power) * logs
        return raised - np.logaddexp.reduce(raised, axis=1, keepdims=True)

    best = scipy.optimize.minimize_scalar(
        lambda a: a**2 / 2 - powered(a)[own].sum(), bounds=(-POWER_RANGE, POWER_RANGE), method="bounded"
    )
    return np.exp(powered(float(best.x))), kept


def averaged_probabilities(
    objective: Objective, outputs: np.ndarray, times: np.ndarray, probabilities: np.ndarray
) -> np.ndarray:
    """Return the probability of every class given all other labels, float64 [n, classes], averaged over models.

    One model is that of ``probabilities`` [n, classes] (``label_probabilities``), the others the path at 60 times,
    ``outputs`` [len(times), n, columns] of ``left_out_outputs``. Weights are proportional to the product of the
    probabilities that a model gives to the labels, each without having seen it (pseudo-likelihood: Geisser & Eddy
    1979), the first model beforehand as probable as all times together. A time where the path is not finite has none.
    """
    seen = np.unique(np.abs(times - time_points(int(times[-1]))[:, None]).argmin(axis=1))
    paths = objective.log_probabilities(outputs[seen])
    own = np.arange(len(objective.labels)), objective.labels
    path_scores = paths[:, *own].sum(axis=1) - np.log(len(seen))
    scores = np.concatenate([[np.log(probabilities)[own].sum()], path_scores])
    scores[~np.isfinite(scores)] = -np.inf
    weights = np.exp(scores - scores.max())
    weights /= weights.sum()
    return weights[0] * probabilities + np.tensordot(weights[1:], np.nan_to_num(np.exp(paths)), 1)


def among_words(objective: Objective) -> tuple[Objective, np.ndarray]:
    """Return the objective among the classes alone, and the map of its outputs from the objective's own.

    They differ where the rest of a vocabulary is an output too: it is what labels never are.
    """
    if objective.outputs != "vocabulary":
        return objective, np.eye(len(coding_matrix(objective.classes, objective.outputs)))
    fold = coding_matrix(objective.classes) @ coding_matrix(objective.classes, "vocabulary")[:, : objective.classes].T
    return replace(objective, outputs="contrast", intercept=np.zeros(len(fold))), fold


def folded(spec: Spectrum, fold: np.ndarray) -> Spectrum:
    """Return the spectrum of the kernel of the outputs ``fold`` f; the same one where the fold leaves none out."""
    if len(fold) == spec.columns:
        return spec
    n, q = spec.examples, len(fold)
    matrix = np.einsum("ap,npmr,br->namb", fold, spec.matrix.reshape(n, spec.columns, n, spec.columns), fold)
    return Spectrum.of(matrix.reshape(n * q, n * q), q, intercept=spec.intercept)


def words_only(probabilities: np.ndarray, objective: Objective) -> np.ndarray:
    """Return the probabilities with a zero for what is no class, where outputs have such: [n, classes of outputs]."""
    more = coding_matrix(objective.classes, objective.outputs).shape[1] - objective.classes
    return np.pad(probabilities, ((0, 0), (0, more)))


def time_points(last: int) -> np.ndarray:
    """Return 0 and at most 60 whole times up to ``last``, evenly spaced in log t; int64, ascending."""
    spaced = np.geomspace(1, max(last, 1), AVERAGED_TIMES)
    return np.unique(np.concatenate([[0], np.rint(spaced)]).astype(np.int64))
