"""The kernel without each group of examples, decomposed once for every rule that trains again without it.

A rule that refits is a ``Watcher``: it is shown one group after another, and each group's path. Nothing of a group is
kept for the next one, so that memory is that of one decomposition, whatever the number of groups and rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from stopwise.linearized.filters import Filter
from stopwise.linearized.spectrum import Spectrum

# (block of times, s/lambda [times of the block, rows kept]) -> nothing
Taker = Callable[[slice, np.ndarray], None]


@dataclass(frozen=True, eq=False)
class Refit:
    """The kernel of what one group of examples leaves.

    ``group``: the examples left out; ``out`` bool [m]: their rows; ``inside`` float64 [m', m']: K of the m' rows kept;
    ``across`` [rows left out, m']: K between both. ``values`` [m'] and ``vectors`` [m', m']: the eigenvalues of
    inside/m', clipped at 0, and their vectors.
    """

    group: np.ndarray
    out: np.ndarray
    inside: np.ndarray
    across: np.ndarray
    values: np.ndarray
    vectors: np.ndarray

    @property
    def m(self) -> int:
        """The number of rows kept."""
        return self.values.size

    @property
    def rows(self) -> np.ndarray:
        """The rows left out, ascending; int64."""
        return np.flatnonzero(self.out)

    def path(self, filter: Filter, times: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield (block of times, s/lambda [times of the block, m']) of a filter's path on the rows kept."""
        eta = filter.eta(times)
        for block, s in filter.sweep(self.values, times):
            yield block, filter.gain_of(s, self.values, eta[block])


class Watcher(Protocol):
    """A rule that refits: it sums something over the rows left out, at each time."""

    def begin(self, refit: Refit) -> Taker:
        """Look at a group; return what takes its path, block after block."""


def refits(spec: Spectrum, groups: Sequence[np.ndarray]) -> Iterator[Refit]:
    """Yield the refit without each group of examples; a decomposition of m - |group| rows each, when it is asked for.

    All columns of an example go together.
    """
    owner = spec.row_examples()
    for group in groups:
        yield _without(spec, group, np.isin(owner, group))  # no name holds it here while the next one is decomposed


def _without(spec: Spectrum, group: np.ndarray, out: np.ndarray) -> Refit:
    inside, across = spec.matrix[np.ix_(~out, ~out)], spec.matrix[np.ix_(out, ~out)]
    values, vectors = np.linalg.eigh(inside / inside.shape[0])
    return Refit(group, out, inside, across, np.maximum(values, 0.0), vectors)


def watch(
    spec: Spectrum, groups: Sequence[np.ndarray], filter: Filter, times: np.ndarray, watchers: Sequence[Watcher]
) -> None:
    """Show every refit and its path to all watchers.

    Cost: a decomposition and a sweep over ``times`` for each group, and what the watchers do; memory: one group's.
    """
    left = refits(spec, groups)
    while (refit := next(left, None)) is not None:
        takers = [watcher.begin(refit) for watcher in watchers]
        for block, gain in refit.path(filter, times):
            for take in takers:
                take(block, gain)
        del refit, takers  # before the next group is decomposed
