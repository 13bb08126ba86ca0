"""Several tasks trained together: their prompts and objectives behind the interface of one.

The joint loss is the mean over all m = sum m_a rows, so a task weighs as much as it has rows; each task keeps its own
verbalizers, columns and intercept. Outputs of the joint sample are one column [m, 1], task after task, example-major:
the row order of the joint kernel (``stopwise.linearized.spectrum.joint_spectrum``).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from stopwise.linearized.objectives import Objective
from stopwise.network.batches import Packed
from stopwise.network.learner import Prompts


@dataclass(frozen=True, eq=False)
class JointPrompts(Prompts):
    """The prompts of several tasks; example indices run through the tasks in order."""

    parts: tuple[Prompts, ...] = ()

    @classmethod
    def joined(cls, parts: Sequence[Prompts]) -> JointPrompts:
        """Join tasks; every group stays within one of them."""
        starts = _starts([len(part) for part in parts])
        groups = [group + int(start) for part, start in zip(parts, starts, strict=False) for group in part.groups]
        return cls(parts[0].packed, parts[0].verbalizers, groups, parts=tuple(parts))

    def rows(self, index: np.ndarray, tokens_per_batch: int) -> JointPrompts:
        """Return some examples, ordered by task."""
        local = _by_part(np.asarray(index), [len(part) for part in self.parts])
        pieces = [part.rows(own, tokens_per_batch) for part, own in zip(self.parts, local, strict=True)]
        return JointPrompts.joined(pieces)

    def part(self, index: torch.Tensor) -> tuple[Packed, torch.Tensor, bool]:
        """Return the packed rows of one group, its task's verbalizers, and whether it runs unpadded."""
        starts = _starts([len(part) for part in self.parts])
        which = int(np.searchsorted(starts, int(index[0]), side="right")) - 1
        return self.parts[which].part(index - int(starts[which]))

    def gather(self, pieces: list[torch.Tensor]) -> np.ndarray:
        """Return the outputs of all groups as one column, task after task."""
        flat, done = [], 0
        for part in self.parts:
            own = pieces[done : done + len(part.groups)]
            flat += [part.gather(own).reshape(-1, 1)] if own else []
            done += len(own)
        return np.concatenate(flat)

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)


class JointObjective:
    """The objectives of several tasks as one: means over all rows (squared loss) or all examples (cross-entropy)."""

    def __init__(self, parts: Mapping[str, Objective]) -> None:
        self.parts = dict(parts)
        self.labels = np.concatenate([part.labels for part in self.parts.values()])
        sizes = [self._weight(part) for part in self.parts.values()]
        self.weights = np.array(sizes) / max(1, sum(sizes))

    @staticmethod
    def _weight(part: Objective) -> int:
        return part.targets.size if part.kind == "squared" else len(part.labels)

    @property
    def targets(self) -> np.ndarray:
        """Targets of all rows, float64 [m, 1]."""
        return np.concatenate([part.targets.reshape(-1, 1) for part in self.parts.values()])

    @property
    def offset(self) -> np.ndarray:
        """Each row's intercept, float64 [m, 1]."""
        return np.concatenate(
            [np.broadcast_to(part.offset, part.targets.shape).reshape(-1, 1) for part in self.parts.values()]
        )

    def split(self, f: np.ndarray) -> dict[str, np.ndarray]:
        """Return joint outputs [m, 1] as each task's [n, columns]."""
        ends = np.cumsum([part.targets.size for part in self.parts.values()])
        pieces = np.split(np.asarray(f).reshape(-1), ends[:-1])
        return {
            name: piece.reshape(part.targets.shape)
            for (name, part), piece in zip(self.parts.items(), pieces, strict=True)
        }

    def fitted_intercept(self, f0: np.ndarray) -> np.ndarray:
        """Return the tasks' b_hat one after another, float64 [sum of columns]."""
        return np.concatenate([self.parts[name].fitted_intercept(own) for name, own in self.split(f0).items()])

    def intercepts(self) -> dict[str, np.ndarray]:
        """Return b_hat by task."""
        return {name: part.intercept for name, part in self.parts.items()}

    def with_intercept(self, intercept: np.ndarray) -> JointObjective:
        """Return the same objective with other intercepts, one after another."""
        ends = np.cumsum([part.targets.shape[1] for part in self.parts.values()])
        pieces = np.split(np.asarray(intercept), ends[:-1])
        return JointObjective(
            {name: part.with_intercept(own) for (name, part), own in zip(self.parts.items(), pieces, strict=True)}
        )

    def rows(self, index: np.ndarray) -> JointObjective:
        """Return the objective of some examples, ordered by task."""
        local = _by_part(np.asarray(index), [len(part.labels) for part in self.parts.values()])
        return JointObjective(
            {name: part.rows(own) for (name, part), own in zip(self.parts.items(), local, strict=True)}
        )

    def loss(self, f: np.ndarray) -> float:
        """Return the mean loss over all rows (examples, for cross-entropy)."""
        own = self.split(f)
        losses = [part.loss(own[name]) if len(part.labels) else 0.0 for name, part in self.parts.items()]
        return float(self.weights @ losses)

    def accuracy(self, f: np.ndarray) -> float:
        """Return the share of all examples that are right."""
        own = self.split(f)
        right = [part.accuracy(own[name]) * len(part.labels) for name, part in self.parts.items() if len(part.labels)]
        return float(sum(right) / len(self.labels))

    def gradient(self, f: np.ndarray, index: np.ndarray) -> np.ndarray:
        """Return d loss / d f of one group, which lies within one task."""
        starts = _starts([len(part.labels) for part in self.parts.values()])
        which = int(np.searchsorted(starts, index[0], side="right")) - 1
        part = list(self.parts.values())[which]
        return self.weights[which] * part.gradient(f, index - starts[which])


def _starts(sizes: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes)])


def _by_part(index: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
    """Return each part's own indices, in the order in which they come."""
    starts = _starts(sizes)
    return [index[(index >= a) & (index < b)] - a for a, b in itertools.pairwise(starts)]
