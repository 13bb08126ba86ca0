"""The spectrum of a Gram matrix: eigenvalues, eigenvectors, the fitted intercept and joint kernels (numpy, no torch).

Two matrices matter when an intercept is fitted. The *statistics* of the residual (likelihood, local complexity, decay)
live on P K_n P, P the projection that removes column means. The *training* on the targets y - b_hat is driven by K_n
itself. ``Spectrum`` holds the first and gives the second as ``spec.raw``; without an intercept they are the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import scipy

from stopwise.linearized.decay import alignment, decay_fit, effective_dimension, stable_rank

__all__ = [
    "KernelError",
    "Spectrum",
    "alignment",
    "decay_fit",
    "effective_dimension",
    "joint_spectrum",
    "stable_rank",
    "stack_blocks",
]

# Kernels from fp32 passes carry a relative error of 1e-6 (1.6e-4 if one GEMM reduces over all parameters), which shows
# as eigenvalues of either sign: negative ones down to this share of the largest are rounding, beyond it an error.
NEGATIVE_TOLERANCE = 1e-5
# Squared distance of two examples in the kernel, relative to their squared norms, under which they are called equal.
DUPLICATE_TOLERANCE = 1e-7
# Relative spread of the eigenvalues under which the spectrum is called flat: sigma and tau cannot be told apart.
FLAT_TOLERANCE = 1e-8
BLOCK_ROWS = 512


class KernelError(ValueError):
    """A matrix that is not a Gram matrix: not square, not finite, not symmetric or not positive semi-definite."""


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Eigenvalues and eigenvectors of P K_n P, K_n = K/m (P = I without an intercept).

    ``eigenvalues`` float64 [m], descending and non-negative; ``vectors`` float64 [m, m], columns are eigenvectors. With
    an intercept the last q entries are the zero eigenvalues of the q column indicators, so the first ``degrees`` =
    m - q belong to the likelihood. ``layout`` lists (examples, columns) of each task stacked in the kernel: one pair
    unless the kernel is joint. Rows are example-major: row = example * columns + column. ``smallest`` is the lowest
    eigenvalue before clipping at 0; ``flags`` may hold ``zero_kernel``, ``flat_spectrum`` and ``duplicated_examples``,
    and ``nystrom`` where K was made from some of its columns: no eigenvalue of the whole kernel is then further from
    the one here than ``bound`` (0: this is the whole kernel).
    """

    eigenvalues: np.ndarray
    vectors: np.ndarray
    m: int
    columns: int
    intercept: bool
    degrees: int
    layout: tuple[tuple[int, int], ...]
    smallest: float
    flags: tuple[str, ...]
    matrix: np.ndarray = field(repr=False)
    tolerance: float = NEGATIVE_TOLERANCE
    bound: float = 0.0

    @classmethod
    def of(
        cls,
        kernel: Any,
        columns: int = 1,
        intercept: bool = False,
        *,
        layout: tuple[tuple[int, int], ...] | None = None,
        tolerance: float = NEGATIVE_TOLERANCE,
    ) -> Spectrum:
        """Decompose a Gram matrix: a square array [m, m], or any object with ``.matrix`` and ``.columns``.

        Raises KernelError (a ValueError) for a matrix that is not square, finite, symmetric or positive semi-definite;
        the message has the smallest eigenvalue. Eigenvalues between -``tolerance`` * lambda_1 and 0 are rounding and
        become 0. Cost: LAPACK ``evd`` (see ``_eigh``), O(m^3), about
        twice when an intercept's ``raw`` is asked for; memory 5 m^2 doubles beside K, by count (2.6 GB at m = 8,000).
        """
        if hasattr(kernel, "matrix"):
            columns = int(getattr(kernel, "columns", columns))
            kernel = kernel.matrix
        matrix = np.asarray(kernel, dtype=np.float64)
        _check_square(matrix)
        m = matrix.shape[0]
        if layout is None:
            if columns < 1 or m % columns:
                raise KernelError(f"a kernel of {m} rows cannot hold whole examples of {columns} columns")
            layout = ((m // columns, columns),)
        nuisance = sum(q for _, q in layout) if intercept else 0
        if m - nuisance < 1:
            raise KernelError(f"a fitted intercept of {nuisance} columns leaves no degrees of freedom in {m} rows")
        eigenvalues, vectors = _decompose(matrix, layout, intercept)
        smallest, largest = float(eigenvalues[m - nuisance - 1]), float(np.abs(eigenvalues).max())
        if smallest < -tolerance * largest:
            raise KernelError(
                f"the kernel is not positive semi-definite: smallest eigenvalue of K/m {smallest:.6g}, largest "
                f"{float(eigenvalues[0]):.6g} (allowed down to -{tolerance:g} of the largest)"
            )
        eigenvalues = np.maximum(eigenvalues, 0.0)
        flags = _flags(eigenvalues[: m - nuisance], matrix, layout)
        q = layout[0][1]
        return cls(eigenvalues, vectors, m, q, intercept, m - nuisance, layout, smallest, flags, matrix, tolerance)

    @property
    def examples(self) -> int:
        """Number of examples n, over all tasks of the kernel."""
        return sum(n for n, _ in self.layout)

    @cached_property
    def raw(self) -> Spectrum:
        """The spectrum of K_n itself, which drives training on the targets y - b_hat (self without an intercept)."""
        if not self.intercept:
            return self
        return self._bounded(Spectrum.of(self.matrix, layout=self.layout, tolerance=self.tolerance))

    @property
    def lambda_max(self) -> float:
        """Largest eigenvalue of K_n (not of P K_n P): the one that limits the step size, alpha <= c / lambda_max."""
        return float(self.raw.eigenvalues[0])

    @cached_property
    def trace_weights(self) -> np.ndarray:
        """Weights p_i = u_i' P u_i over the eigenvectors of K_n, so that tr(P S_t) = sum_i p_i s_i(t); float64 [m]."""
        if not self.intercept:
            return np.ones(self.m)
        return np.sum(self.raw.vectors * self.centre(self.raw.vectors), axis=0)

    def row_examples(self) -> np.ndarray:
        """Return the example that each row belongs to; int64 [m]."""
        counts = np.concatenate([np.full(n, q) for n, q in self.layout])
        return np.repeat(np.arange(self.examples), counts)

    def rows(self, residual: np.ndarray) -> np.ndarray:
        """Return a residual given as [m] or [examples, columns] as float64 [m], example-major."""
        r = np.asarray(residual, dtype=np.float64)
        if r.size != self.m:
            raise ValueError(f"the residual has {r.size} entries, the kernel {self.m} rows")
        if not np.isfinite(r).all():
            raise ValueError("the residual has entries that are not finite")
        return r.reshape(self.m)

    def centre(self, x: np.ndarray) -> np.ndarray:
        """Return P x for x [m] or [m, k]: each task's column means removed (x itself without an intercept)."""
        if not self.intercept:
            return x
        out = np.array(x, dtype=np.float64)
        for rows, n, q in _pieces(self.layout):
            piece = out[rows].reshape(n, q, -1)
            out[rows] = (piece - piece.mean(axis=0)).reshape(out[rows].shape)
        return out

    def coefficients(self, residual: np.ndarray) -> np.ndarray:
        """Return z = U' P r in the eigenvectors of P K_n P; float64 [m], the last q are 0 with an intercept."""
        z = self.vectors.T @ self.centre(self.rows(residual))
        z[self.degrees :] = 0.0
        return z

    def training_coefficients(self, residual: np.ndarray) -> np.ndarray:
        """Return U' P r in the eigenvectors of K_n: the coordinates in which training moves; float64 [m]."""
        return self.raw.vectors.T @ self.centre(self.rows(residual))

    def intercept_of(self, residual: np.ndarray) -> np.ndarray:
        """Return b_hat, the column means of the residual y - f0; float64 [columns] (zeros without an intercept).

        A joint kernel gives the tasks' intercepts one after another.
        """
        r = self.rows(residual)
        means = [r[rows].reshape(n, q).mean(axis=0) for rows, n, q in _pieces(self.layout)]
        return np.concatenate(means) * (1.0 if self.intercept else 0.0)

    def offset(self, residual: np.ndarray, new_rows: int, task: int = 0) -> np.ndarray:
        """Return b_hat of one task repeated over ``new_rows`` example-major rows; float64 [new_rows]."""
        start = sum(q for _, q in self.layout[:task])
        q = self.layout[task][1]
        if new_rows % q:
            raise ValueError(f"{new_rows} new rows cannot hold whole examples of {q} columns")
        return np.tile(self.intercept_of(residual)[start : start + q], new_rows // q)

    def leading(self, examples: int) -> Spectrum:
        """Return the spectrum of the first ``examples`` examples: the leading block of K divided by its own m."""
        if len(self.layout) > 1:
            raise ValueError("a joint kernel has no leading block: take it from each task before stacking")
        rows = examples * self.columns
        found = Spectrum.of(self.matrix[:rows, :rows], self.columns, self.intercept, tolerance=self.tolerance)
        return self._bounded(found)

    def _bounded(self, part: Spectrum) -> Spectrum:
        """The spectrum of some rows with what is known of all: a bound on K's eigenvalues bounds those of a part."""
        if "nystrom" not in self.flags:
            return part
        return replace(part, bound=self.bound * self.m / part.m, flags=(*part.flags, "nystrom"))

    def without_repeats(self, *values: np.ndarray) -> tuple[Spectrum, np.ndarray]:
        """Return the spectrum without repeated examples, and the rows that were kept; int64.

        An example repeats an earlier one of its task when the kernel cannot tell them apart and every one of
        ``values`` ([m] or [examples, columns]) is the same for both. Repeats say nothing of the task: the difference
        of two copies is a direction without signal that shows no noise either. Itself and all rows where there are
        none, or where fewer than two examples of a task would be left. Cost O(m^2), and a decomposition if any are
        found and were not found by the call before.
        """
        every = np.arange(self.m)
        if "duplicated_examples" not in self.flags:
            return self, every
        known, kept, layout = [self.rows(v) for v in values], [], []
        for rows, n, q in _pieces(self.layout):
            equal = _equal_examples(self.matrix, rows, q)
            for v in known:
                own = v[rows].reshape(n, q)
                equal &= np.isclose(own[:, None], own, rtol=1e-5, atol=1e-8).all(axis=2)
            first = np.flatnonzero(~np.tril(equal, -1).any(axis=1))
            if first.size < 2:
                return self, every
            kept.append((rows.start + first[:, None] * q + np.arange(q)).reshape(-1))
            layout.append((int(first.size), q))
        left = np.concatenate(kept)
        if left.size == self.m:
            return self, every
        if left.tobytes() not in self._distinct:
            self._distinct.clear()
            matrix, shape = self.matrix[np.ix_(left, left)], tuple(layout)
            found = Spectrum.of(matrix, self.columns, self.intercept, layout=shape, tolerance=self.tolerance)
            self._distinct[left.tobytes()] = self._bounded(found)
        return self._distinct[left.tobytes()], left

    @cached_property
    def _distinct(self) -> dict[bytes, Spectrum]:
        """The last spectrum of ``without_repeats``, by its rows: noise, belief and decay ask for the same one."""
        return {}


def stack_blocks(blocks: dict[tuple[str, str], np.ndarray], tasks: list[str] | None = None) -> np.ndarray:
    """Return the joint matrix of blocks K[a, b], tasks in the order of ``tasks`` (default: of the diagonal blocks).

    A missing K[a, b] is taken from K[b, a] transposed; a pair with neither raises KernelError.
    """
    tasks = tasks or [a for a, b in blocks if a == b]

    def block(a: str, b: str) -> np.ndarray:
        found = blocks.get((a, b))
        if found is None and (b, a) in blocks:
            found = np.asarray(blocks[b, a]).T
        if found is None:
            raise KernelError(f"the joint kernel has no block of tasks {a!r} and {b!r}")
        return np.asarray(found, dtype=np.float64)

    return np.block([[block(a, b) for b in tasks] for a in tasks])


def joint_spectrum(
    blocks: dict[tuple[str, str], np.ndarray],
    columns: dict[str, int] | int = 1,
    intercept: bool = False,
    tasks: list[str] | None = None,
) -> Spectrum:
    """Decompose the kernel of several tasks trained together, from its blocks K[a, b] (un-normalised, [m_a, m_b]).

    The joint loss is the mean over all m = sum m_a rows; with an intercept each task keeps its own. The residual of the
    result is the tasks' residuals one after another in the same order. ``columns`` may differ by task.
    """
    tasks = tasks or [a for a, b in blocks if a == b]
    width = {a: columns if isinstance(columns, int) else columns[a] for a in tasks}
    layout = tuple((np.shape(blocks[a, a])[0] // width[a], width[a]) for a in tasks)
    return Spectrum.of(stack_blocks(blocks, tasks), intercept=intercept, layout=layout)


def _check_square(matrix: np.ndarray) -> None:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise KernelError(f"a training kernel must be a square matrix, found shape {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise KernelError("the kernel has entries that are not finite")
    asymmetry = max(float(np.abs(matrix[rows] - matrix[:, rows].T).max()) for rows in _blocks(matrix.shape[0]))
    if asymmetry > 1e-6 * float(np.abs(matrix).max()):
        raise KernelError(f"the kernel is not symmetric: K and its transpose differ by {asymmetry:.3g}")


def _blocks(m: int) -> list[slice]:
    """Slices of rows, so that what is computed beside the matrix stays small."""
    return [slice(start, min(start + BLOCK_ROWS, m)) for start in range(0, m, BLOCK_ROWS)]


def _pieces(layout: tuple[tuple[int, int], ...]) -> list[tuple[slice, int, int]]:
    """Rows, examples and columns of each task of a stacked kernel."""
    out, start = [], 0
    for n, q in layout:
        out.append((slice(start, start + n * q), n, q))
        start += n * q
    return out


def _reflect(x: np.ndarray, layout: tuple[tuple[int, int], ...]) -> None:
    """Apply in place, to the rows of x, the Householder reflection that maps each column indicator onto its first row.

    The plus sign in w = 1/sqrt(n) + e_1 keeps it free of cancellation; O(m^2) against the O(m^3) of a dense basis.
    """
    for rows, n, q in _pieces(layout):
        w = np.full(n, 1 / np.sqrt(n))
        w[0] += 1.0
        for columns in _blocks(x.shape[1]):
            piece = x[rows, columns].reshape(n, q, -1)
            change = np.multiply.outer(w * (2 / (w @ w)), np.tensordot(w, piece, 1))
            x[rows, columns] -= change.reshape(n * q, -1)


def _decompose(k: np.ndarray, layout: tuple[tuple[int, int], ...], intercept: bool) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues (descending) and vectors of P K/m P; nuisance directions are split off exactly, not by rounding."""
    m = k.shape[0]
    b = k + k.T
    b /= 2 * m
    if not intercept:
        return _eigh(b)
    _reflect(b, layout)
    b = np.ascontiguousarray(b.T)
    _reflect(b, layout)
    first = np.concatenate([np.arange(rows.start, rows.start + q) for rows, _, q in _pieces(layout)])
    keep = np.setdiff1d(np.arange(m), first)
    b = b[np.ix_(keep, keep)]
    values, inner = _eigh(b)
    vectors = np.zeros((m, m))
    vectors[keep, : keep.size] = inner
    vectors[first, np.arange(keep.size, m)] = 1.0
    _reflect(vectors, layout)
    return np.concatenate([values, np.zeros(first.size)]), vectors


def _eigh(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues in descending order and their vectors, by divide and conquer; reads one triangle, overwrites a.

    Driver by measurement, scipy's evd / evr / numpy: 0.022 / 0.024 / 0.023 s at m = 500, 0.136 / 0.143 / 0.144 s at
    1,000 and 1.24 / 1.23 / 1.38 s at 2,000 on one core; with two threads on a busy machine 7 / 19 / 18 s at 2,000: evd
    spends more of its time in matrix products, which share.
    """
    values, vectors = scipy.linalg.eigh(a.T, driver="evd", overwrite_a=True, check_finite=False)
    return values[::-1].copy(), np.ascontiguousarray(vectors[:, ::-1])


def _flags(eigenvalues: np.ndarray, matrix: np.ndarray, layout: tuple[tuple[int, int], ...]) -> tuple[str, ...]:
    flags = []
    if eigenvalues[0] <= 0:
        flags.append("zero_kernel")
    elif eigenvalues[0] - eigenvalues[-1] <= FLAT_TOLERANCE * eigenvalues[0]:
        flags.append("flat_spectrum")
    for rows, _, q in _pieces(layout):
        own = int((np.diag(matrix)[rows][::q] > 0).sum())
        if int(_equal_examples(matrix, rows, q).sum()) > own:
            flags.append("duplicated_examples")
            break
    return tuple(flags)


def _equal_examples(matrix: np.ndarray, rows: slice, q: int) -> np.ndarray:
    """Which examples of one task the kernel of the first column takes for equal, zero rows apart; bool [n, n]."""
    index = np.arange(rows.start, rows.stop, q)
    diagonal = np.diag(matrix)[index]
    equal = np.empty((index.size, index.size), dtype=bool)
    for block in _blocks(index.size):
        scale = np.add.outer(diagonal[block], diagonal)
        distance = scale - 2 * matrix[np.ix_(index[block], index)]
        equal[block] = (distance <= DUPLICATE_TOLERANCE * scale) & (scale > 0)
    return equal
