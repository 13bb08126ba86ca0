"""What is told of each layer without keeping its kernel: a few sums, which add up over blocks of examples.

Three numbers a layer are wanted once the targets' scale and the intercept are known: its share of the trace, its
alignment with the residual, its effective dimension. They follow from sums that know neither of the two, so that a
kernel of 10,000 examples needs no second look (``artifacts.gram.shares_of_moments``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from stopwise.kernel.passes import Group, Pass
from stopwise.kernel.products import slabs

ROWS = 1024  # of a matrix squared at a time


@dataclass
class Moments:
    """Sums over one layer's symmetric kernel K_l of m = n q rows.

    ``trace``; ``square`` the sum of squared entries; ``crossed`` [q + 2, q + 2] = V' K_l V for V = [E, y, f0], E the
    indicators of the q columns, y the targets at scale 1; ``ones`` [m, q] = K_l E, rows in the order of the examples.
    """

    trace: float
    square: float
    crossed: np.ndarray
    ones: np.ndarray

    def add(self, other: Moments, rows: slice) -> None:
        """Add the sums of a block whose rows are ``rows`` of all."""
        self.trace += other.trace
        self.square += other.square
        self.crossed = self.crossed + other.crossed
        self.ones[rows] += other.ones

    def vector(self) -> np.ndarray:
        """Return what is stored: trace, square, |K_l E|_F^2, and ``crossed`` row by row."""
        return np.concatenate([[self.trace, self.square, float((self.ones**2).sum())], self.crossed.ravel()])

    @classmethod
    def zeros(cls, rows: int, columns: int) -> Moments:
        """Return the sums of nothing."""
        return cls(0.0, 0.0, np.zeros((columns + 2, columns + 2)), np.zeros((rows, columns)))


def directions(group: Group, run: Pass, targets: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return V = [E, y, f0] of a group, float64 [rows, columns + 2], rows in the group's sorted order."""
    f0 = torch.cat([run.f0[group.first_row, start] for start, _ in group.batches]).double()
    y = torch.as_tensor(np.asarray(targets, dtype=np.float64))[group.order].to(device)
    ones = torch.eye(group.columns, dtype=torch.float64, device=device).repeat(len(group.order), 1)
    return torch.cat([ones, y.reshape(-1, 1), f0.to(device).reshape(-1, 1)], 1)


def moments_of(
    matrix: torch.Tensor, left: torch.Tensor, right: torch.Tensor, symmetric: bool, orders: Sequence[np.ndarray]
) -> tuple[Moments, Moments | None]:
    """Return the sums of a block [rows of left, rows of right] of one layer, split by whose rows ``ones`` are.

    A symmetric block is its own, once. Another stands for itself and its mirror image: the second part is the mirror's,
    of the right's rows. ``orders``: the places of the sorted rows of both sides.
    """
    q = left.shape[1] - 2
    product = matrix @ right
    crossed = (left.T @ product).cpu().numpy()
    square = sum(float(matrix[rows].square().sum()) for rows in slabs(len(matrix), ROWS)) if len(matrix) else 0.0
    trace = float(matrix.diagonal().sum()) if symmetric else 0.0
    if symmetric:
        return Moments(trace, square, crossed, _placed(product[:, :q], orders[0])), None
    here = Moments(0.0, square, crossed, _placed(product[:, :q], orders[0]))
    return here, Moments(0.0, square, crossed.T, _placed((matrix.T @ left)[:, :q], orders[1]))


def _placed(values: torch.Tensor, order: np.ndarray) -> np.ndarray:
    found = np.empty(tuple(values.shape))
    found[order] = values.cpu().numpy()
    return found
