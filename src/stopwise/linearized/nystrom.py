"""A kernel from some of its columns, with a certificate: randomly pivoted Cholesky, whose error's trace is known.

K~ = F F' lies below K: K - K~ is positive semi-definite. Its trace is the sum of a diagonal that the algorithm keeps
anyway, and it bounds the error of every eigenvalue, lambda_i(K~) <= lambda_i(K) <= lambda_i(K~) + tr(K - K~).
Pivots are drawn in proportion to that diagonal, many at a time, and accepted as if they had been drawn one by one
(Chen, Epperly, Tropp and Webber, 2023; Epperly, Tropp and Webber, 2024: accelerated by rejection).

An intercept takes nothing from the certificate: P (K - K~) P is positive semi-definite too, and its trace no larger.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from stopwise.linearized.spectrum import Spectrum

Columns = Callable[[np.ndarray], np.ndarray]

# Of the largest diagonal entry: a residual below it is rounding, and its row no pivot.
ROUNDING = 1e-10


@dataclass(frozen=True, eq=False)
class Nystrom:
    """K~ = F F' and what it leaves out.

    ``factor`` F float64 [m, rank]; ``pivots`` int64 [rank], the rows whose columns were used; ``trace`` of K; ``left``
    tr(K - K~), exact but for rounding; ``residual`` float64 [m], the diagonal of K - K~.
    """

    factor: np.ndarray
    pivots: np.ndarray
    trace: float
    residual: np.ndarray

    @property
    def left(self) -> float:
        """tr(K - K~): no eigenvalue of K is larger than that of K~ by more than this."""
        return float(self.residual.sum())

    @property
    def bound(self) -> float:
        """The bound on the error of the eigenvalues of K/m."""
        return self.left / len(self.factor)

    def eigenvalues(self, columns: int = 1, intercept: bool = False) -> np.ndarray:
        """Return the eigenvalues of P K~/m P (P = I without an intercept) that are not 0 by rank, float64 [rank].

        Descending. Cost O(m rank^2), without a matrix of m x m: decay fits and effective dimensions take them.
        """
        factor = self.factor
        if intercept:
            by_example = factor.reshape(-1, columns, factor.shape[1])
            factor = (by_example - by_example.mean(axis=0)).reshape(factor.shape)
        values = np.linalg.eigvalsh(factor.T @ factor / len(factor))[::-1]
        return np.maximum(values, 0.0)

    def matrix(self, diagonal: bool = False) -> np.ndarray:
        """Return K~, float64 [m, m], symmetric to the bit; with ``diagonal`` K~ + diag(K - K~), whose diagonal is K's.

        Both are positive semi-definite, and the eigenvalues of neither are off by more than ``left``.
        """
        whole = self.factor @ self.factor.T
        whole = (whole + whole.T) / 2
        if diagonal:
            whole[np.diag_indices_from(whole)] += self.residual
        return whole

    def spectrum(self, columns: int = 1, intercept: bool = False, diagonal: bool = True) -> Spectrum:
        """Return the spectrum of ``matrix``, on which every stopping rule runs as on that of a whole kernel.

        With the diagonal, what the columns leave out stays in the kernel as a part that no two examples share: rules
        that need the noise then stop nearer to where the whole kernel stops them (docs/results/cost.md). Repeated
        examples are then told apart, and not set aside.
        Its ``bound`` is the certificate, and its flags, with those of every stop, hold ``nystrom``. Cost and memory as
        ``Spectrum.of`` a kernel of m rows: it is the passes that some columns save. Raises KernelError as there.
        """
        found = Spectrum.of(self.matrix(diagonal), columns, intercept)
        return replace(found, bound=self.bound, flags=(*found.flags, "nystrom"))


def pivoted_cholesky(diagonal: np.ndarray, columns: Columns, rank: int, block: int = 64, seed: int = 0) -> Nystrom:
    """Return K from ``rank`` of its columns at most, chosen at random where the diagonal says most is missing.

    ``diagonal`` float64 [m] of K; ``columns(rows)`` returns K[:, rows] float64 [m, len(rows)], called with ``block``
    distinct rows at a time. Ends early where nothing is left. Raises ValueError for a diagonal that is no kernel's or
    a rank below 1. Cost: about rank columns of K, and O(m rank^2).
    """
    residual = np.array(diagonal, dtype=np.float64)
    if rank < 1 or block < 1:
        raise ValueError(f"a Nystrom kernel needs rank and block of 1 or more, found {rank} and {block}")
    if not np.isfinite(residual).all() or residual.min(initial=0.0) < 0:
        raise ValueError("the diagonal of a kernel has no negative entries and none that are not finite")
    trace, floor = float(residual.sum()), ROUNDING * float(residual.max(initial=0.0))
    rng = np.random.default_rng(seed)
    factor, pivots = np.zeros((len(residual), 0)), np.zeros(0, dtype=np.int64)
    while len(pivots) < rank and residual.max(initial=0.0) > floor:
        drawn = rng.choice(len(residual), size=min(block, rank - len(pivots)), p=residual / residual.sum())
        some = np.unique(drawn)
        fresh = columns(some) - factor @ factor[some].T
        places = _accepted(fresh[some], np.searchsorted(some, drawn), residual[some], floor, rng)
        chosen = some[places]
        root = np.linalg.cholesky(_symmetric(fresh[np.ix_(chosen, places)]))
        new = np.linalg.solve(root, fresh[:, places].T).T
        factor, pivots = np.concatenate([factor, new], axis=1), np.concatenate([pivots, chosen])
        residual = np.maximum(residual - (new**2).sum(axis=1), 0.0)
        residual[chosen] = 0.0
    return Nystrom(factor, pivots, trace, residual)


def _accepted(
    inner: np.ndarray, drawn: np.ndarray, offered: np.ndarray, floor: float, rng: np.random.Generator
) -> np.ndarray:
    """Return the places of the draws that one-by-one sampling would have made too; at least the first one.

    ``inner``: the residual kernel of the rows drawn. A draw is kept with the share of its diagonal that the pivots
    kept before it have left.
    """
    left, kept = np.array(inner), []
    for place in drawn:
        if place in kept or left[place, place] <= floor or rng.random() * offered[place] > left[place, place]:
            continue
        kept.append(place)
        column = left[:, place] / np.sqrt(left[place, place])
        left = left - np.outer(column, column)
    return np.array(kept or [drawn[0]], dtype=np.int64)


def _symmetric(matrix: np.ndarray) -> np.ndarray:
    return (matrix + matrix.T) / 2
