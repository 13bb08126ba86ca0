"""The path of the linearised network under a real schedule, with every example or without one.

Training changes its learning rate at every step, accumulates batches, clips gradients and decays weights. All of it is
known before the first step but for the gradients, and those the kernel gives: a step on batch B moves the linearised
network by -alpha_t J D J_B' (d loss/d f), clipping needs the norm of J_B' (d loss/d f), whose square is a quadratic
form of the plain kernel, and decay adds the fixed direction J theta_0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from stopwise.linearized.objectives import Objective
from stopwise.linearized.replay import batch_rows
from stopwise.stopping.leave_one_out import leave_out_groups

# What torch's clip_grad_norm_ keeps its division from zero by.
CLIP_EPS = 1e-6


@dataclass(frozen=True, eq=False)
class Schedule:
    """What the optimizer does at each step from ``done`` on, with nothing left to the run but the gradients.

    ``learning_rates`` float64 [T], those of steps done..done + T - 1. ``batches``: the examples of each step, all its
    micro-batches together, no example twice; ``weights``: of their losses in the step's loss (a mean has 1/|B| each).
    ``momentum``: beta_1 of ``adam``, whose mean is corrected for its start at zero, else that of torch's SGD.
    ``weight_decay`` is decoupled, as in AdamW. ``max_grad_norm`` 0 clips nothing. ``epoch``: steps of one epoch.
    """

    learning_rates: np.ndarray
    batches: Sequence[np.ndarray]
    weights: Sequence[np.ndarray]
    momentum: float = 0.9
    adam: bool = True
    weight_decay: float = 0.0
    max_grad_norm: float = 0.0
    epoch: float = 1.0
    done: int = 0

    def __post_init__(self) -> None:
        if not len(self.learning_rates) == len(self.batches) == len(self.weights):
            raise ValueError(
                f"schedule: {len(self.learning_rates)} learning rates, {len(self.batches)} batches and "
                f"{len(self.weights)} weights must be as many"
            )

    @property
    def last(self) -> int:
        """The step at which the schedule ends."""
        return self.done + len(self.learning_rates)

    @property
    def decay(self) -> np.ndarray:
        """What is left of a decayed weight at each step, over one step; float64 [T]."""
        return 1 - self.learning_rates * self.weight_decay

    @property
    def step_sizes(self) -> np.ndarray:
        """What multiplies the velocity v <- beta v + g at each step; float64 [T]."""
        if not self.adam:
            return self.learning_rates
        count = np.arange(self.done, self.last) + 1
        return self.learning_rates * (1 - self.momentum) / (1 - self.momentum**count)


@dataclass(frozen=True, eq=False)
class Linearised:
    """The network linearised at the weights where its kernel was read.

    ``matrix`` K [m, m] in the optimizer's metric, ``start`` f0 [n, columns], rows example-major. ``plain`` J J' gives
    the norms of gradients, needed where gradients are clipped. ``weights_move`` J theta_0 [n, columns] over the decayed
    weights, needed under weight decay; ``velocity_move`` J D v [n, columns] of a velocity v that training has already
    gathered (zero at the start). ``left_start`` [groups, n, columns]: the outputs at which training without a group of
    ``leave_out_groups`` starts, where the start has seen the labels (a head fitted to them); None: at ``start``.
    """

    matrix: np.ndarray
    start: np.ndarray
    plain: np.ndarray | None = None
    weights_move: np.ndarray | None = None
    velocity_move: np.ndarray | None = None
    left_start: np.ndarray | None = None

    def rows(self, index: np.ndarray) -> np.ndarray:
        """Return the kernel's rows of some examples, [rows, m]."""
        return self.matrix[batch_rows(index, self.start.shape[1])]

    def starts(self, left_out: bool) -> np.ndarray:
        """Return f0 of all examples along the path of each group left out, [groups or 1, n, columns]."""
        return self.left_start if left_out and self.left_start is not None else self.start[None]


def trained_path(net: Linearised, objective: Objective, schedule: Schedule, times: np.ndarray) -> np.ndarray:
    """Return the outputs of the training examples along the replayed path; float64 [len(times), n, columns]."""
    every = [np.arange(len(net.start))]
    return _outputs(net, objective, schedule, times, every, left_out=False)


def left_out_path(
    net: Linearised,
    objective: Objective,
    schedule: Schedule,
    times: np.ndarray,
    folds: int | None = None,
    seed: int = 0,
    groups: list[np.ndarray] | None = None,
) -> np.ndarray:
    """Return the outputs of each example along the path trained without it; float64 [len(times), n, columns].

    ``times``: whole steps, ascending, from ``schedule.done`` to its last. A batch that holds left-out examples has the
    loss of the others with their weights scaled to the same sum; one of left-out examples alone moves nothing.
    ``groups``: examples that are left out together (None: as in ``loo_curve``); outputs of examples in none of them are
    not set. Cost O(n m) per example of each batch.
    """
    groups = leave_out_groups(len(net.start), folds, seed) if groups is None else groups
    return _outputs(net, objective, schedule, times, groups, left_out=True)


def _outputs(
    net: Linearised,
    objective: Objective,
    schedule: Schedule,
    times: np.ndarray,
    groups: list[np.ndarray],
    left_out: bool,
) -> np.ndarray:
    wanted = {int(t): i for i, t in enumerate(times)}
    if wanted and not schedule.done <= min(wanted) <= max(wanted) <= schedule.last:
        raise ValueError(f"times must lie in {schedule.done}..{schedule.last}, found {min(wanted)}..{max(wanted)}")
    out, starts = np.empty((len(wanted), *net.start.shape)), net.starts(left_out)
    for t, (weights, fixed) in enumerate(
        replayed_moves(net, objective, schedule, groups, left_out), start=schedule.done
    ):
        if t in wanted:
            for k, group in enumerate(groups):
                moved = (net.rows(group) @ weights[k]).reshape(len(group), -1)
                out[wanted[t], group] = starts[k % len(starts), group] + moved + fixed[group]
        if t == max(wanted, default=0):
            break
    return out


def replayed_moves(
    net: Linearised, objective: Objective, schedule: Schedule, groups: list[np.ndarray], left_out: bool
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (weights c [groups, m], moves that no gradient makes [n, columns]) before each step, and after the last."""
    n, q = net.start.shape
    held = np.full(n, -1)
    for k, group in enumerate(groups if left_out else ()):
        held[group] = k
    weights, velocity = np.zeros((len(groups), n * q)), np.zeros((len(groups), n * q))
    fixed, faded, coasting = np.zeros((n, q)), 1.0, np.zeros((n, q))
    early = 0.0 if net.velocity_move is None else net.velocity_move
    sizes, kept, starts = schedule.step_sizes, schedule.decay, net.starts(left_out)
    for s, batch in enumerate(schedule.batches):
        yield weights, fixed
        rows = batch_rows(batch, q)
        moved = (weights @ net.matrix[:, rows]).reshape(len(groups), len(batch), q)
        step = _gradient(net, objective, schedule, s, starts[:, batch] + moved + fixed[batch], held, len(groups))
        velocity *= schedule.momentum
        velocity[:, rows] += step
        weights *= kept[s]
        weights -= sizes[s] * velocity
        coasting = kept[s] * coasting - sizes[s] * schedule.momentum ** (s + 1) * early
        faded *= kept[s]
        fixed = coasting if net.weights_move is None else coasting + (faded - 1) * net.weights_move
    yield weights, fixed


def _gradient(
    net: Linearised, objective: Objective, schedule: Schedule, s: int, f: np.ndarray, held: np.ndarray, groups: int
) -> np.ndarray:
    """Return the gradient of step s in its outputs, clipped, [groups, rows of the batch]."""
    batch, share = schedule.batches[s], schedule.weights[s]
    raw = objective.rows(batch).gradient(f, np.arange(len(batch))) * len(batch)
    outside = held[batch] != np.arange(groups)[:, None]
    whole, left = share.sum(), outside @ share
    scale = np.where(left > 0, whole / np.where(left > 0, left, 1.0), 0.0)
    step = (raw * (outside * share * scale[:, None])[..., None]).reshape(groups, -1)
    if schedule.max_grad_norm and net.plain is not None:
        rows = batch_rows(batch, net.start.shape[1])
        norm = np.sqrt(np.maximum(np.einsum("gi,ij,gj->g", step, net.plain[np.ix_(rows, rows)], step), 0.0))
        step = step * np.minimum(schedule.max_grad_norm / (norm + CLIP_EPS), 1.0)[:, None]
    return step
