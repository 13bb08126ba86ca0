"""Training under a real schedule, replayed on the kernel: what an optimizer does at each step, and where it stops best.

A training script changes its learning rate at every step, accumulates batches, clips gradients and decays weights. All
of it is known before the first step but for the gradients, and those the kernel gives: the linearised network moves by
-alpha_t J D J_B' (d loss/d f) when a step draws batch B, clipping needs the norm of J_B' (d loss/d f), whose square is
a quadratic form of the plain kernel, and decay adds the fixed direction J theta_0. So the path of every output is
replayed, once without each example, and the rules read the log-loss of the examples left out, as in ``log_loss``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from stopwise.linearized.coding import coding_matrix
from stopwise.linearized.objectives import Objective
from stopwise.linearized.replay import batch_rows
from stopwise.linearized.spectrum import Spectrum
from stopwise.stopping.bayes import task_posterior
from stopwise.stopping.cross_entropy import averaged_probabilities, expected_log_loss, label_probabilities, loo_log_loss
from stopwise.stopping.judging import HIT
from stopwise.stopping.leave_one_out import leave_out_groups
from stopwise.stopping.registry import REPLAYING_RULES
from stopwise.stopping.stops import time_grid

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
) -> np.ndarray:
    """Return the outputs of each example along the path trained without it; float64 [len(times), n, columns].

    ``times``: whole steps, ascending, from ``schedule.done`` to its last. A batch that holds left-out examples has the
    loss of the others with their weights scaled to the same sum; one of left-out examples alone moves nothing. Groups
    as in ``loo_curve``. Cost O(n m) per example of each batch.
    """
    return _outputs(net, objective, schedule, times, leave_out_groups(len(net.start), folds, seed), left_out=True)


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
    for t, (weights, fixed) in enumerate(_replay(net, objective, schedule, groups, left_out), start=schedule.done):
        if t in wanted:
            for k, group in enumerate(groups):
                moved = (net.rows(group) @ weights[k]).reshape(len(group), -1)
                out[wanted[t], group] = starts[k % len(starts), group] + moved + fixed[group]
        if t == max(wanted, default=0):
            break
    return out


def _replay(
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


@dataclass(frozen=True)
class ScheduledStop:
    """Where to stop under a schedule, and what that is worth, as believed before training.

    ``t`` steps, counted from the schedule's own step 0 (None: the rule has no answer, see ``flags``); ``epochs`` = t by
    steps of an epoch. ``low``..``high``: the steps around t whose predicted loss is within 5 % of that at t. Losses are
    mean log-losses of new examples, accuracies the shares of them: at t, where the kernel was read (``read_at``) and at
    the last step. ``curve`` [len(times)] is the predicted loss; ``examples`` of the kernel, ``of`` those of training.
    ``largest_step``: the largest learning rate times the largest eigenvalue of K_BB/m_B; the steps of a path that the
    network follows are about 1 or less.
    """

    rule: str
    t: int | None
    epochs: float
    low: int | None
    high: int | None
    expected_loss: float
    loss_at_start: float
    loss_at_end: float
    expected_accuracy: float
    accuracy_at_start: float
    accuracy_at_end: float
    max_steps: int
    steps_per_epoch: float
    read_at: int
    examples: int
    of: int
    largest_step: float
    flags: tuple[str, ...] = ()
    curve: np.ndarray = field(default_factory=lambda: np.zeros(0), repr=False, compare=False)
    times: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64), repr=False, compare=False)

    @property
    def low_epochs(self) -> float:
        """The first epoch that costs less than 5 % of the predicted loss; nan without an answer."""
        return np.nan if self.low is None else self.low / self.steps_per_epoch

    @property
    def high_epochs(self) -> float:
        """The last epoch that costs less than 5 % of the predicted loss; nan without an answer."""
        return np.nan if self.high is None else self.high / self.steps_per_epoch

    def row(self) -> dict[str, Any]:
        """Return all but the curve as JSON-able values; ``of_row`` reads them back."""
        return {k: v for k, v in vars(self).items() if k not in ("curve", "times", "flags")} | {"flags": [*self.flags]}

    @classmethod
    def of_row(cls, row: dict[str, Any]) -> ScheduledStop:
        """Return the stop of a ``row``, without its curve."""
        return cls(**row | {"flags": tuple(row["flags"])})


def scheduled_stop(
    net: Linearised,
    objective: Objective,
    schedule: Schedule,
    rule: str = "bayes",
    *,
    of: int | None = None,
    folds: int | None = None,
    seed: int = 0,
    flags: Sequence[str] = (),
) -> ScheduledStop:
    """Return where ``rule`` (``bayes`` or ``loo``) stops training on cross-entropy under a schedule.

    ``of``: examples that training has, where the kernel holds a part of them. ValueError for another rule or fewer than
    two examples. Cost O(T |B| m n) for T steps.
    """
    if rule not in REPLAYING_RULES:
        raise ValueError(f"rule: {rule!r} is not one of {', '.join(REPLAYING_RULES)}, which replay a schedule")
    n, q = net.start.shape
    if n < 2:
        raise ValueError(f"train_dataset: the kernel needs at least 2 examples, found {n}")
    times = schedule.done + time_grid(len(schedule.batches))
    spec = Spectrum.of(net.matrix, q, intercept=n > 1)
    top = largest_step(net, schedule)
    outputs = left_out_path(net, objective, schedule, times, folds, seed)
    found = believed(rule, spec, net, objective, outputs, times - schedule.done)
    facts: dict[str, Any] = {"rule": rule, "max_steps": schedule.last, "steps_per_epoch": schedule.epoch}
    facts |= {"read_at": schedule.done, "examples": n, "of": of or n, "largest_step": top}
    if found is None or not np.isfinite(found[0]).any():
        nothing = dict.fromkeys(("epochs", "expected_loss", "loss_at_start", "loss_at_end"), np.nan)
        nothing |= dict.fromkeys(("expected_accuracy", "accuracy_at_start", "accuracy_at_end"), np.nan)
        return ScheduledStop(t=None, low=None, high=None, flags=("no_answer", *flags), **nothing, **facts)
    curve, right = found
    best = int(np.nanargmin(curve))
    low, high = _near(curve, best)
    own = ("do_not_train",) if times[best] == 0 else ("all_steps",) if best == len(times) - 1 else ()
    return ScheduledStop(
        t=int(times[best]),
        epochs=float(times[best] / schedule.epoch),
        low=int(times[low]),
        high=int(times[high]),
        expected_loss=float(curve[best]),
        loss_at_start=float(curve[0]),
        loss_at_end=float(curve[-1]),
        expected_accuracy=float(right[best]),
        accuracy_at_start=float(right[0]),
        accuracy_at_end=float(right[-1]),
        flags=(*own, *flags),
        curve=curve,
        times=times,
        **facts,
    )


def believed(
    rule: str, spec: Spectrum, net: Linearised, objective: Objective, outputs: np.ndarray, times: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the predicted (loss, accuracy) at each time, or None when the labels say nothing."""
    if rule == "loo":
        given = np.eye(objective.classes)[objective.labels]
        return loo_log_loss(objective, outputs), _accuracy(objective, outputs, given)
    words, fold = _among_words(objective)
    start = net.start if net.left_start is None else outputs[0]  # a start that has not seen the example's own label
    start, q = start @ fold.T, len(fold)
    if len(fold) < net.start.shape[1]:
        n = len(start)
        matrix = np.einsum("ap,npmr,br->namb", fold, net.matrix.reshape(n, -1, n, fold.shape[1]), fold)
        spec = Spectrum.of(matrix.reshape(n * q, n * q), q, intercept=True)
    known = label_probabilities(spec, words, start)
    if known is None or task_posterior(spec, words.targets, start) is None:
        return None
    probabilities, kept = known
    outputs, part = outputs[:, kept], objective.rows(kept)
    probabilities = averaged_probabilities(words.rows(kept), outputs @ fold.T, times, probabilities)
    padded = np.pad(probabilities, ((0, 0), (0, coding_matrix(part.classes, part.outputs).shape[1] - part.classes)))
    return expected_log_loss(part, outputs, padded), _accuracy(part, outputs, probabilities)


def _among_words(objective: Objective) -> tuple[Objective, np.ndarray]:
    """Return the objective among the classes alone, and the map of its outputs from the objective's own.

    They differ where the rest of a vocabulary is an output too: it is what labels never are.
    """
    if objective.outputs != "vocabulary":
        return objective, np.eye(len(coding_matrix(objective.classes, objective.outputs)))
    fold = coding_matrix(objective.classes) @ coding_matrix(objective.classes, "vocabulary")[:, : objective.classes].T
    return replace(objective, outputs="contrast", intercept=np.zeros(len(fold))), fold


def _accuracy(objective: Objective, outputs: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return how often the predicted class is the label, when labels have these probabilities; float64 [times]."""
    logits = outputs @ coding_matrix(objective.classes, objective.outputs)
    predicted = logits[..., : objective.classes].argmax(axis=-1)
    return np.take_along_axis(probabilities[None], predicted[..., None], axis=2)[..., 0].mean(axis=1)


def _near(curve: np.ndarray, best: int) -> tuple[int, int]:
    """Return the first and last index around the best one with a loss within 5 % of its own."""
    inside = curve <= (1 + HIT) * curve[best]
    low = high = best
    while low > 0 and inside[low - 1]:
        low -= 1
    while high < len(curve) - 1 and inside[high + 1]:
        high += 1
    return low, high


def largest_step(net: Linearised, schedule: Schedule) -> float:
    """Return the largest learning rate times the largest eigenvalue of K_BB/m_B over the batches of an epoch."""
    q, top = net.start.shape[1], 0.0
    for batch in schedule.batches[: max(1, int(np.ceil(schedule.epoch)))]:
        rows = batch_rows(batch, q)
        top = max(top, float(np.linalg.eigvalsh(net.matrix[np.ix_(rows, rows)])[-1] / rows.size))
    return top * float(schedule.learning_rates.max(initial=0.0))
