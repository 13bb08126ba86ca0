"""Mini-batches: the draws that training and its prediction share, and the replay of those draws on the kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from stopwise.linearized.spectrum import Spectrum

SAMPLED_BATCHES = 100


def draw_batches(n: int, batch_size: int | None, steps: int, seed: int) -> list[np.ndarray]:
    """Return the example indices of each optimizer step: int64 arrays of exactly ``batch_size`` distinct examples.

    Each pass is a fresh seeded permutation cut into whole batches; the n mod batch_size examples left over sit that
    pass out, so that every step has the same size and epoch = t * batch_size / n. ``batch_size`` None or >= n is the
    full batch, in order. The first steps do not depend on how many are drawn. Raises ValueError for a batch below 1.
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"finetune.batch_size must be at least 1, found {batch_size}")
    if batch_size is None or batch_size >= n:
        return [np.arange(n)] * steps
    rng, per_pass = np.random.default_rng(seed), n // batch_size
    out: list[np.ndarray] = []
    while len(out) < steps:
        order = rng.permutation(n)
        out += [order[k * batch_size : (k + 1) * batch_size] for k in range(per_pass)]
    return out[:steps]


def batch_lambda_max(
    matrix: np.ndarray, columns: int, batch_size: int | None, seed: int = 0, draws: int = SAMPLED_BATCHES
) -> float:
    """Return the largest eigenvalue of K_BB / m_B among ``draws`` sampled batches (of K/m for the full batch).

    The step size of mini-batch training is c over this: 1/lambda_1 of the whole matrix diverges for tiny batches.
    """
    n = matrix.shape[0] // columns
    if batch_size is None or batch_size >= n:
        return float(np.linalg.eigvalsh(matrix)[-1] / matrix.shape[0])
    best = 0.0
    for batch in draw_batches(n, batch_size, draws, seed):
        rows = batch_rows(batch, columns)
        best = max(best, float(np.linalg.eigvalsh(matrix[np.ix_(rows, rows)])[-1] / rows.size))
    return best


def batch_rows(batch: np.ndarray, columns: int) -> np.ndarray:
    """Return the example-major rows of a batch of examples."""
    return (np.asarray(batch)[:, None] * columns + np.arange(columns)).ravel()


def minibatch_weights(
    spec: Spectrum,
    residual: np.ndarray,
    batches: Sequence[np.ndarray],
    lr: float | Sequence[float],
    momentum: float = 0.0,
    nesterov: bool = False,
) -> np.ndarray:
    """Replay optimizer steps on K: the weights c_t of f_t - f0 - b_hat = K(., X) c_t; float64 [steps + 1, m].

    Step t with batch B: g = -(1/m_B) (P r - K c)_B on the rows of B, v <- beta v + g, c <- c - alpha_t v (the
    convention of torch SGD), which is exactly SGD on the linearised model with targets y - b_hat. ``lr`` is one step
    size or one per step. Cost O(m m_B) per step.
    """
    r = spec.centre(spec.rows(residual)).reshape(-1, spec.columns)

    def gradient(moved: np.ndarray, batch: np.ndarray) -> np.ndarray:
        return (moved - r[batch]) / moved.size

    return replayed_weights(spec, gradient, batches, lr, momentum, nesterov)


def replayed_weights(
    spec: Spectrum,
    gradient: Callable[[np.ndarray, np.ndarray], np.ndarray],
    batches: Sequence[np.ndarray],
    lr: float | Sequence[float],
    momentum: float = 0.0,
    nesterov: bool = False,
) -> np.ndarray:
    """Replay optimizer steps of any loss on K: the weights c_t of f_t - f0 = K(., X) c_t; float64 [steps + 1, m].

    ``gradient(moved, batch)`` is d loss / d f of a batch, as ``moved`` the move f_t - f0 of its examples, both
    [batch, columns]. A step moves the linearised model by -alpha J_B' gradient, so that the weights of the batch's rows
    change and no others (with momentum, those of earlier batches too). Cost O(m m_B) per step.
    """
    if len(spec.layout) > 1:
        raise ValueError("mini-batches of a joint kernel are not defined: train it on full batches")
    alphas = np.broadcast_to(np.asarray(lr, dtype=np.float64), (len(batches),))
    out, c, v = np.zeros((len(batches) + 1, spec.m)), np.zeros(spec.m), np.zeros(spec.m)
    for t, (batch, alpha) in enumerate(zip(batches, alphas, strict=True)):
        rows = batch_rows(batch, spec.columns)
        step = gradient((spec.matrix[rows] @ c).reshape(-1, spec.columns), batch).ravel()
        v *= momentum
        v[rows] += step
        c -= alpha * v * (momentum if nesterov else 1.0)
        if nesterov:
            c[rows] -= alpha * step
        out[t + 1] = c
    return out


def minibatch_path(
    spec: Spectrum,
    residual: np.ndarray,
    cross: np.ndarray,
    batches: Sequence[np.ndarray],
    lr: float | Sequence[float],
    momentum: float = 0.0,
    nesterov: bool = False,
) -> np.ndarray:
    """Return the replayed outputs minus f0 at new points, b_hat included; [steps + 1, m_new], cross [m_new, m]."""
    weights = minibatch_weights(spec, residual, batches, lr, momentum, nesterov)
    return weights @ np.asarray(cross, dtype=np.float64).T + spec.offset(residual, np.shape(cross)[0])
