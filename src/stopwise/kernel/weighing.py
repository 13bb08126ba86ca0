"""What gradient entries are multiplied by before their products are taken: sqrt(D) of the kernel J D J'."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch

from stopwise.kernel.batch_metric import BatchMetric
from stopwise.kernel.formulas import Outer, Term, stored_transposed
from stopwise.kernel.passes import Group
from stopwise.kernel.products import Part, Scale, working


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
        self.groups, self.device, self.scales, self.metric, self.along = groups, device, scales, metric, along
        self.rows = sum(len(group.rows) for group in groups)
        self._weights = None if metric is None else self._batch_weights(metric, f0[0])
        self._moves = None if along is None else torch.zeros(self.rows, dtype=torch.float64, device=device)

    def of(self, term: Term, parts: Sequence[Part]) -> Scale | None:
        """Return what the entries of a parameter's gradients are multiplied by: sqrt(D), or how to find it.

        Of a linear layer's weight all follows from the factors of its gradients, at the price of a backward pass of one
        output through this layer; of others, from the gradients once they are formed.
        """
        known, direction = scale_of(term, parts, self.scales), scale_of(term, parts, self.along)
        if self.metric is not None:
            self.metric.still.add(term.name)
        if not parts or not isinstance(parts[0][1], Outer):
            asked = self.metric is not None or direction is not None
            return partial(self._of_entries, term.name, known, direction) if asked else known
        if direction is not None:
            self._move_along(direction, parts)
        return known if self.metric is None else self._root(term.name, self._mean_square(parts))

    def _of_entries(
        self,
        name: str,
        known: torch.Tensor | None,
        direction: torch.Tensor | None,
        entries: torch.Tensor,
        pick: Callable[[torch.Tensor], torch.Tensor],
        rows: torch.Tensor | slice = slice(None),
    ) -> torch.Tensor:
        """Return sqrt(D) [k] of gradient entries [rows, k]; ``pick`` takes these entries of a tensor."""
        if direction is not None and self._moves is not None:
            self._moves[rows] += (entries @ pick(direction).to(entries)).double()
        if self._weights is None:
            return entries.new_ones(entries.shape[1]) if known is None else pick(known).to(entries)
        own = torch.as_tensor(self._weights, device=entries.device)[:, rows].to(entries)
        return self._root(name, (own @ entries).square_().mean(0))

    def _move_along(self, direction: torch.Tensor, parts: Sequence[Part]) -> None:
        """Add to J d what a linear layer's weight contributes: sum_t g_t' d a_t of every example and output."""
        assert self._moves is not None
        for batch, one in parts:
            assert isinstance(one, Outer)
            kind = working(one.g.dtype)
            projected = one.a.to(kind) @ direction.to(one.a.device, kind).T
            self._moves[batch.rows] += torch.einsum("nto,ncto->nc", projected, one.g.to(kind)).flatten().double()

    def _mean_square(self, parts: Sequence[Part]) -> torch.Tensor:
        """Return the mean square of the batch gradients of a linear layer's weight, [d_out, d_in]."""
        assert self._weights is not None
        total: torch.Tensor | None = None
        for weights in self._weights:
            gradient: torch.Tensor | None = None
            for batch, one in parts:
                assert isinstance(one, Outer)
                own = weights[batch.rows].reshape(batch.size, -1)
                live = np.flatnonzero(own.any(axis=1))
                if not live.size:
                    continue
                kind, index = working(one.g.dtype), torch.as_tensor(live, device=one.g.device)
                share = torch.as_tensor(own[live], dtype=kind, device=one.g.device)
                mixed = torch.einsum("nc,ncto->nto", share, one.g[index].to(kind)).flatten(0, 1)
                product = mixed.T @ one.a[index].to(kind).flatten(0, 1)
                gradient = product if gradient is None else gradient.add_(product)
            if gradient is not None:
                total = gradient.square_() if total is None else total.addcmul_(gradient, gradient)
        if total is None:
            one = parts[0][1]
            assert isinstance(one, Outer)
            total = one.g.new_zeros(one.g.shape[-1], one.a.shape[-1])
        return total / len(self._weights)

    def _root(self, name: str, square: torch.Tensor) -> torch.Tensor:
        """Return sqrt(D) from the mean square of batch gradients, and note whether any of it is not 0."""
        assert self.metric is not None
        rate = self.metric.rates.get(name, 1.0)
        root = torch.where(square > 0, (rate / (square.sqrt() + self.metric.eps)).sqrt(), 0.0)
        if bool(root.any()):
            self.metric.still.discard(name)
        return root

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

    def _batch_weights(self, metric: BatchMetric, f0: np.ndarray) -> np.ndarray:
        """Return what batch gradients are of the stacked, sorted rows, [batches, rows]."""
        own, group = metric.cotangents(f0), self.groups[0]
        found = np.zeros((len(own), self.rows))
        found[:, group.rows.start : group.rows.stop] = own.reshape(len(own), -1)[:, row_order(group)]
        return found


def scale_of(term: Term, rows: Sequence[Part], scales: Mapping[str, torch.Tensor] | None) -> torch.Tensor | None:
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
