"""What gradient entries are multiplied by before their products are taken: sqrt(D) of the kernel J D J'."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from stopwise.kernel.batch_metric import EPS, BatchMetric
from stopwise.kernel.formulas import Features, Outer, Term, stored_transposed
from stopwise.kernel.passes import Batch, Group
from stopwise.kernel.products import Scale


@dataclass(frozen=True, eq=False)
class SlabScale:
    """sqrt(D) of a slab of one parameter's entries, and what the slab adds to J d for a direction d of the weights.

    ``known``: sqrt(D) like the parameter; without it, it is read from the slab: ``weights`` [batches, rows] are what
    batch gradients are of the rows, ``rate`` and ``eps`` as in ``BatchMetric``, ``moved`` is told when an entry is not
    0. ``direction``: like the parameter (None: none); ``moves`` float64 [rows] is added to.
    """

    known: torch.Tensor | None = None
    weights: torch.Tensor | None = None
    rate: float = 1.0
    eps: float = EPS
    moved: Callable[[], None] = lambda: None
    direction: torch.Tensor | None = None
    moves: torch.Tensor | None = None

    def __call__(
        self,
        entries: torch.Tensor,
        pick: Callable[[torch.Tensor], torch.Tensor],
        rows: torch.Tensor | slice = slice(None),
    ) -> torch.Tensor:
        """Return sqrt(D) [k] of gradient entries [rows, k]; ``pick`` takes these entries of a tensor."""
        if self.direction is not None and self.moves is not None:
            self.moves[rows] += (entries @ pick(self.direction).to(entries)).double()
        if self.known is not None:
            return pick(self.known).to(entries)
        assert self.weights is not None
        square = (self.weights[:, rows].to(entries) @ entries).square_().mean(0)
        root = torch.where(square > 0, (self.rate / (square.sqrt() + self.eps)).sqrt(), 0.0)
        if bool(root.any()):
            self.moved()
        return root


class Weighing:
    """The scales of one job's parameters, and J d of its rows for a direction d of the weights.

    ``f0``: the outputs of every group in the order its batch was given; ``scales``: sqrt(D) by parameter, or ``metric``
    to read it from the rows of the first group; ``along``: d by parameter.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        device: torch.device,
        f0: Sequence[np.ndarray],
        scales: Mapping[str, torch.Tensor] | None = None,
        metric: BatchMetric | None = None,
        along: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        self.groups, self.scales, self.metric, self.along = groups, scales, metric, along
        self.rows = sum(len(group.rows) for group in groups)
        self._weights = None if metric is None else self._batch_weights(metric, f0[0]).to(device)
        self._moves = None if along is None else torch.zeros(self.rows, dtype=torch.float64, device=device)

    def of(self, term: Term, rows: Sequence[tuple[Batch, Features]]) -> Scale | None:
        """Return what the entries of a parameter's gradients are multiplied by: sqrt(D), or how to find it."""
        known = scale_of(term, rows, self.scales)
        beside: dict[str, Any] = {}
        if self.along is not None:
            beside = {"direction": scale_of(term, rows, self.along), "moves": self._moves}
        if self.metric is None:
            return SlabScale(known, **beside) if beside else known
        name, still = term.name, self.metric.still
        still.add(name)
        rate, moved = self.metric.rates.get(name, 1.0), lambda: still.discard(name)
        return SlabScale(None, self._weights, rate, self.metric.eps, moved, **beside)

    @property
    def moves(self) -> list[np.ndarray]:
        """J d of every group in the order its batch was given, float64 [rows]; empty where it was not asked for."""
        if self._moves is None:
            return []
        found = []
        for group in self.groups:
            whole = np.empty(len(group.rows))
            whole[row_order(group)] = self._moves[group.rows.start : group.rows.stop].cpu().numpy()
            found.append(whole)
        return found

    def _batch_weights(self, metric: BatchMetric, f0: np.ndarray) -> torch.Tensor:
        """Return what batch gradients are of the stacked, sorted rows, [batches, rows]."""
        own, group = metric.cotangents(f0), self.groups[0]
        found = np.zeros((len(own), self.rows))
        found[:, group.rows.start : group.rows.stop] = own.reshape(len(own), -1)[:, row_order(group)]
        return torch.as_tensor(found)


def scale_of(
    term: Term, rows: Sequence[tuple[Batch, Features]], scales: Mapping[str, torch.Tensor] | None
) -> torch.Tensor | None:
    """Return what is known of a parameter in the layout of its features: factors of weights make it [d_out, d_in].

    None where nothing is known, or nothing of this parameter.
    """
    own = None if scales is None else scales.get(term.name)
    if own is None:
        return None
    return own.T if rows and isinstance(rows[0][1], Outer) and stored_transposed(term) else own


def row_order(group: Group) -> np.ndarray:
    """Return, for the sorted rows of a group, their places in the order its batch was given."""
    return (group.order[:, None] * group.columns + torch.arange(group.columns)).flatten().numpy()
