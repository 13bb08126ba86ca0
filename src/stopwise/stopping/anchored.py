"""A validation curve without a validation set: what a network that really trains would say of examples left out.

The kernel at the start describes training near the start only. Here training runs, and what is linearised is the small
difference that one example makes. At L checkpoints k = 0..L-1 of the run its weights theta_k and what its optimizer
divides by, D_k = 1/(sqrt(v_k) + eps), are kept. J_k is the Jacobian of the outputs of the n training examples at
theta_k, and G_lk = J_l D_k J_k' says how a move made in segment k shows in the outputs of segment l. With the outputs
f_t of the real network, the batch B of step t and g = d loss / d f, every example (or group) i left out has

    v_i <- beta v_i + scatter_B(g(f_t,B + u_i,B, without i) - g(f_t,B))
    w_i,k <- (1 - alpha_t wd) w_i,k - a_t v_i [k = k(t)],     a_t = alpha_t (1 - beta)/(1 - beta^(t+1)) under Adam
    u_i = sum_k G_k(t),k w_i,k,                               left-out output o_i(t) = f_t,i + u_i,i

``weights`` w and ``velocity`` v have an entry for every row of J. A velocity gathered in one segment moves the weights
in the next one along the next one's rows. Neglected: that J and v_k change within a segment, that they would be others
without the example, and what its absence does to the gradients of the other examples beyond their outputs. For a
network linear in its weights, and D fixed, nothing is neglected.

**What a run has to record** (``Recorded``): at each step its batch, weights in the loss, and the outputs of the batch
before the step, in evaluation mode; the outputs of all training examples at the steps where the curve is wanted; the
kernels between checkpoints (``stopwise.kernel.between_states.anchored_grams``, from the trained parameters and D at
each checkpoint: ``preconditioner_from_optimizer``). From these alone ``anchored_outputs`` gives the left-out outputs,
and ``left_out_curve`` the loss and the accuracy. So a rule can be judged on a recorded run without training again.

Related: Luo, Ren & Barber (2023), iterative approximate cross-validation, which follows each example's own weights; Bae
et al. (2024), influence along segments of training; Nickl et al. (2023), sensitivity to examples during training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stopwise.linearized.coding import coding_matrix, columns
from stopwise.linearized.objectives import Objective
from stopwise.linearized.replay import batch_rows
from stopwise.stopping.leave_one_out import leave_out_groups
from stopwise.stopping.schedule_path import CLIP_EPS, Schedule

# A curve has risen when it stands this share above its least value, at so many evaluations in a row.
RISE = 0.05
RISEN = 2
# Below this coherence of two checkpoints the moves made at one hardly show at the other, and the curve falls to the
# training loss whatever the test loss does. Seen with MiniLM and a new head: 0.9 to 1.1 where the curve was of use, 0.2
# and 0.45 where it fell.
COHERENT = 0.5


@dataclass(frozen=True, eq=False)
class Anchors:
    """The kernels between the checkpoints of a run.

    ``begins`` int [L], ascending: the first step of each checkpoint's segment; the first is 0, whenever the checkpoint
    was taken. ``grams[l][k]``, k <= l: J_l D_k J_k' [m, m], rows example-major. ``plain[k]``: J_k J_k', needed where
    gradients are clipped.
    """

    begins: Sequence[int]
    grams: Sequence[Sequence[np.ndarray]]
    plain: Sequence[np.ndarray] | None = None

    def __post_init__(self) -> None:
        begins = list(self.begins)
        if not begins or begins[0] != 0 or sorted(set(begins)) != begins or len(self.grams) != len(begins):
            raise ValueError(f"anchors: begins {begins} must ascend from 0, one for each of {len(self.grams)} rows")
        if short := [row for row, own in enumerate(self.grams) if len(own) < row + 1]:
            raise ValueError(f"anchors: row {short[0]} needs the kernels with the {short[0] + 1} checkpoints up to it")


@dataclass(frozen=True, eq=False)
class Recorded:
    """A run as it really went: its objective and schedule, its outputs, its anchors.

    ``outputs`` float64 [T + 1, n, columns]: f_t before step t, nan where it was not recorded. A step reads the rows of
    its batch, an evaluation all rows.
    """

    objective: Objective
    schedule: Schedule
    outputs: np.ndarray
    anchors: Anchors


class LeftOut:
    """A network without each group of examples, followed beside the real one, step by step.

    ``anchor`` begins a segment, ``step`` follows a step of the real run, ``outputs`` says what the left-out networks
    answer. ``schedule`` gives the batches and step sizes. ``coherence``: how alike the kernels of the latest segment
    and the one before are, tr J_l D_k J_k' over the geometric mean of the traces of both: near 1 or above where moves
    made in one show in the other, near 0 where the network has become another. Cost of a step O(groups m |B|), memory
    O(L groups m).
    """

    def __init__(self, objective: Objective, schedule: Schedule, folds: int | None = None, seed: int = 0) -> None:
        self.objective, self.schedule = objective, schedule
        self.examples = len(objective.labels)
        self.columns = columns(objective.classes, objective.outputs)
        self.groups = leave_out_groups(self.examples, folds, seed)
        self.held = np.zeros(self.examples, dtype=np.int64)
        for k, group in enumerate(self.groups):
            self.held[group] = k
        shape = len(self.groups), self.examples * self.columns
        self.weights: list[np.ndarray] = []
        self.velocity, self.carried = np.zeros(shape), np.zeros(shape)
        self.gram = np.zeros((0, 0))
        self.plain: np.ndarray | None = None
        self.coherence = 1.0
        self.done = 0

    def anchor(self, row: Sequence[np.ndarray], plain: np.ndarray | None = None) -> None:
        """Begin a segment: ``row`` = (J_l D_k J_k' for all k up to l), ``plain`` J_l J_l' where gradients are clipped.

        Raises ValueError for another number or shape of kernels.
        """
        size = self.velocity.shape[1]
        if len(row) != len(self.weights) + 1 or any(np.shape(one) != (size, size) for one in row):
            raise ValueError(
                f"anchor: checkpoint {len(self.weights)} needs {len(self.weights) + 1} kernels of shape"
                f" {(size, size)}, found {[np.shape(one) for one in row]}"
            )
        if self.schedule.max_grad_norm and plain is None:
            raise ValueError("anchor: gradients are clipped (max_grad_norm), which needs the plain kernel J J'")
        if self.weights:
            both = np.trace(self.gram) * np.trace(row[-1])
            self.coherence = float(np.trace(row[-2]) / np.sqrt(both)) if both > 0 else 0.0
        self.carried = sum((w @ g.T for w, g in zip(self.weights, row, strict=False)), np.zeros_like(self.velocity))
        self.weights.append(np.zeros_like(self.velocity))
        self.gram, self.plain = np.asarray(row[-1]), plain

    def moves(self, rows: np.ndarray) -> np.ndarray:
        """Return u: how far the outputs at some rows are moved without each group; [groups, rows]."""
        return self.carried[:, rows] + self.weights[-1] @ self.gram[rows].T

    def step(self, outputs: np.ndarray) -> None:
        """Follow the next step of the real run; ``outputs`` [|B|, columns] of its batch before the step."""
        s, batch = self.done, self.schedule.batches[self.done]
        rows = batch_rows(batch, self.columns)
        moved = self.moves(rows).reshape(len(self.groups), len(batch), self.columns)
        f = np.asarray(outputs, dtype=np.float64)
        if not np.isfinite(f).all():
            raise ValueError(f"outputs: those of the batch of step {s} are not all recorded, or not finite")
        outside = self.held[batch] != np.arange(len(self.groups))[:, None]
        without = self._gradient(s, f + moved, outside)
        with_all = self._gradient(s, f[None], np.ones((1, len(batch)), dtype=bool))
        self.velocity *= self.schedule.momentum
        self.velocity[:, rows] += without - with_all
        kept = self.schedule.decay[s]
        for moved_by in (*self.weights, self.carried):
            np.multiply(moved_by, kept, out=moved_by)
        self.weights[-1] -= self.schedule.step_sizes[s] * self.velocity
        self.done += 1

    def _gradient(self, s: int, f: np.ndarray, outside: np.ndarray) -> np.ndarray:
        """Return d loss / d f of step s, [networks, rows]: of the examples ``outside`` what is left out."""
        batch, share = self.schedule.batches[s], self.schedule.weights[s]
        raw = self.objective.rows(batch).gradient(f, np.arange(len(batch))) * len(batch)
        left = outside @ share
        scale = np.where(left > 0, share.sum() / np.where(left > 0, left, 1.0), 0.0)
        step = (raw * (outside * share * scale[:, None])[..., None]).reshape(len(outside), -1)
        limit = self.schedule.max_grad_norm
        if limit and self.plain is not None:
            rows = batch_rows(batch, self.columns)
            norm = np.sqrt(np.maximum(np.einsum("gi,ij,gj->g", step, self.plain[np.ix_(rows, rows)], step), 0.0))
            step = step * np.minimum(limit / (norm + CLIP_EPS), 1.0)[:, None]
        return step

    def outputs(self, outputs: np.ndarray) -> np.ndarray:
        """Return the outputs of each example without it, [n, columns]; ``outputs`` f_t of the real network."""
        left = np.array(outputs, dtype=np.float64)
        for k, group in enumerate(self.groups):
            rows = batch_rows(group, self.columns)
            moved = self.carried[k, rows] + self.weights[-1][k] @ self.gram[rows].T
            left[group] += moved.reshape(len(group), -1)
        return left

    def state(self) -> dict[str, np.ndarray]:
        """Return what a checkpoint has to keep; ``restore`` takes it back."""
        arrays = {f"weights.{k}": w for k, w in enumerate(self.weights)}
        arrays |= {"velocity": self.velocity, "carried": self.carried, "gram": self.gram}
        arrays |= {"done": np.array([self.done]), "coherence": np.array([self.coherence])}
        return arrays if self.plain is None else arrays | {"plain": self.plain}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take back a ``state``."""
        count = sum(name.startswith("weights.") for name in arrays)
        self.weights = [np.array(arrays[f"weights.{k}"]) for k in range(count)]
        self.velocity, self.carried = np.array(arrays["velocity"]), np.array(arrays["carried"])
        self.gram, self.plain = np.array(arrays["gram"]), arrays.get("plain")
        self.done, self.coherence = int(arrays["done"][0]), float(arrays["coherence"][0])


def anchored_outputs(run: Recorded, times: np.ndarray, folds: int | None = None, seed: int = 0) -> np.ndarray:
    """Return the outputs of each example along the run trained without it; float64 [len(times), n, columns].

    ``times``: steps from 0 to the last, ascending. Groups as in ``loo_curve``; a batch that holds left-out examples has
    the loss of the others with their weights scaled to the same sum, one of left-out examples alone moves nothing.
    Raises ValueError where outputs that are needed were not recorded.
    """
    times = np.asarray(times, dtype=np.int64)
    if len(times) and not 0 <= times.min() <= times.max() <= len(run.schedule.batches):
        raise ValueError(f"times must lie in 0..{len(run.schedule.batches)}, found {times.min()}..{times.max()}")
    network = LeftOut(run.objective, run.schedule, folds, seed)
    plain, found = run.anchors.plain, np.empty((len(times), network.examples, network.columns))
    begins = {int(t): k for k, t in enumerate(run.anchors.begins)}
    wanted = {int(t): i for i, t in enumerate(times)}
    for t in range(max(wanted, default=-1) + 1):
        if (k := begins.get(t)) is not None:
            network.anchor(run.anchors.grams[k][: k + 1], None if plain is None else plain[k])
        if t in wanted:
            if not np.isfinite(run.outputs[t]).all():
                raise ValueError(f"outputs: those of all examples at step {t} are not recorded")
            found[wanted[t]] = network.outputs(run.outputs[t])
        if t < max(wanted):
            network.step(run.outputs[t, run.schedule.batches[t]])
    return found


def left_out_curve(objective: Objective, outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean log-loss and the accuracy of left-out outputs [times, n, columns]; float64 [times] both."""
    own = np.arange(len(objective.labels)), objective.labels
    losses = -objective.log_probabilities(outputs)[:, *own].mean(axis=1)
    logits = outputs @ coding_matrix(objective.classes, objective.outputs)
    right = logits[..., : objective.classes].argmax(axis=-1) == objective.labels
    return losses, right.mean(axis=1)


def best_time(times: np.ndarray, losses: np.ndarray) -> int:
    """Return the time of the least loss, the first of equals; ValueError when none is finite."""
    if not np.isfinite(losses).any():
        raise ValueError("left-out losses: none is finite")
    return int(times[int(np.nanargmin(losses))])


def has_risen(losses: Sequence[float]) -> bool:
    """Whether a curve has passed its minimum: its last two values stand more than 5 % above its least."""
    if len(losses) <= RISEN:
        return False
    return min(losses[-RISEN:]) > (1 + RISE) * min(losses[:-RISEN])
