"""Ways of fitting as spectral filters: the shrinkage s_i(t) of each eigen-direction and the training time eta(t).

Every filter turns a residual coefficient z_i into the fitted s_i(t) z_i after t steps. Step sizes are those of the loss
(1/(2m)) |.|^2, for which the gradient in eigen-direction i is lambda_i (1 - s_i) z_i. Momentum follows the convention
of ``torch.optim.SGD``: v <- beta v + g, theta <- theta - lr v.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

Schedule = Callable[[int], float] | Sequence[float] | None
Times = int | np.ndarray | Sequence[int]
# Rows of s held at once while a curve over time is summed: 64 MB at m = 2,000 would be 4,000 rows; 256 stay in cache.
BLOCK_ROWS = 256


def cosine_schedule(steps: int, warmup: int = 0) -> tuple[float, ...]:
    """Return step-size factors: linear warm-up over ``warmup`` steps, then a half cosine down to 0 at ``steps``."""
    s = np.arange(steps)
    ramp = (s + 1) / max(warmup, 1)
    fall = 0.5 * (1 + np.cos(np.pi * (s - warmup) / max(steps - warmup, 1)))
    return tuple(np.where(s < warmup, ramp, fall).tolist())


def linear_schedule(steps: int, warmup: int = 0) -> tuple[float, ...]:
    """Return step-size factors: linear warm-up over ``warmup`` steps, then a straight line down to 0 at ``steps``."""
    s = np.arange(steps)
    return tuple(np.where(s < warmup, (s + 1) / max(warmup, 1), (steps - s) / max(steps - warmup, 1)).tolist())


class Filter:
    """A spectral filter; ``lr`` is the step size alpha, positive.

    ``schedule`` multiplies lr at step s = 0, 1, ...: a callable s -> factor, or a sequence whose last factor holds on.
    """

    lr: float
    schedule: Schedule = None
    momentum: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a step size that is not positive and a momentum outside [0, 1)."""
        if not self.lr > 0:
            raise ValueError(f"lr must be positive, found {self.lr}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), found {self.momentum}")

    @property
    def monotone(self) -> bool:
        """Whether s_i(t) rises from 0 to 1 without passing it, for lr * lambda <= 1."""
        return True

    @property
    def stability(self) -> float:
        """The value that lr * lambda_1 must stay below for the recursion not to diverge."""
        return 2.0

    def step_sizes(self, steps: int) -> np.ndarray:
        """Return alpha_s for s < steps; float64 [steps]."""
        if self.schedule is None:
            return np.full(steps, self.lr)
        if callable(self.schedule):
            return self.lr * np.array([self.schedule(s) for s in range(steps)], dtype=np.float64)
        factors = np.asarray(self.schedule, dtype=np.float64)
        if factors.ndim != 1 or not factors.size or (factors < 0).any():
            raise ValueError("schedule must be a non-empty list of factors that are not negative")
        return self.lr * factors[np.minimum(np.arange(steps), factors.size - 1)]

    def eta(self, t: Times) -> np.ndarray:
        """Return the training time eta(t) = lim_{lambda -> 0} s(lambda, t) / lambda; float64, the shape of t."""
        t = np.asarray(t)
        return self._eta_path(int(t.max(initial=0)))[t]

    def shrinkage(self, eigenvalues: np.ndarray, t: Times) -> np.ndarray:
        """Return s_i(t); float64 [*t.shape, *eigenvalues.shape]. Steps t are whole numbers >= 0 (any order)."""
        eigenvalues, t = np.asarray(eigenvalues, dtype=np.float64), np.asarray(t)
        out = np.empty((t.size, *eigenvalues.shape))
        order = np.argsort(t, axis=None, kind="stable")
        for block, s in self.sweep(eigenvalues, t.reshape(-1)[order]):
            out[order[block]] = s
        return out.reshape(*t.shape, *eigenvalues.shape)

    def gain(self, eigenvalues: np.ndarray, t: Times) -> np.ndarray:
        """Return s_i(t) / lambda_i with its limit eta(t) at lambda_i = 0; the shape of ``shrinkage``."""
        return self.gain_of(self.shrinkage(eigenvalues, t), np.asarray(eigenvalues, dtype=np.float64), self.eta(t))

    @staticmethod
    def gain_of(s: np.ndarray, eigenvalues: np.ndarray, eta: np.ndarray) -> np.ndarray:
        """Return s / lambda for shrinkages already computed, eta where lambda is 0."""
        eta = np.asarray(eta, dtype=np.float64).reshape(*np.shape(eta), *(1,) * eigenvalues.ndim)
        positive = eigenvalues > 1e-300
        return np.where(positive, s / np.where(positive, eigenvalues, 1.0), eta)

    def sweep(self, eigenvalues: np.ndarray, times: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield (slice of times, s [rows, *eigenvalues.shape]) in blocks; ``times`` ascending whole numbers >= 0.

        Cost O(t_max m) for recursions, O(len(times) m) for closed forms; memory one block.
        """
        times = np.asarray(times)
        if times.size and (times[0] < 0 or (np.diff(times) < 0).any()):
            raise ValueError("times must be ascending and not negative")
        yield from self._sweep(np.asarray(eigenvalues, dtype=np.float64), times)

    @property
    def iterates(self) -> bool:
        """Whether the filter is a recursion of steps, which ``weights`` can follow without eigenvalues."""
        return True

    def weights(self, apply: Callable[[np.ndarray], np.ndarray], b: np.ndarray, steps: int) -> Iterator[np.ndarray]:
        """Yield (s/lambda)(A) b at t = 1, 2, ..., steps for the linear map A = ``apply``; the shape of b.

        The recursion of s with A in place of the eigenvalues: one application of A a step, and no decomposition. The
        same array is updated in place.
        """
        g, v = np.zeros_like(b), np.zeros_like(b)
        for alpha in self.step_sizes(steps):
            gradient = b - apply(g)
            v *= self.momentum
            v += gradient
            g += alpha * self._step(v, gradient)
            yield g

    def _step(self, v: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """Return the direction of the step from the new velocity and the gradient."""
        return v

    def _recursion(self, eigenvalues: np.ndarray, steps: int) -> Iterator[np.ndarray]:
        """Yield s at t = 1, 2, ..., steps (the same array, updated in place)."""
        raise NotImplementedError

    def _sweep(self, eigenvalues: np.ndarray, times: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        start, out, done = 0, np.zeros((min(BLOCK_ROWS, times.size), *eigenvalues.shape)), 0
        states = self._recursion(eigenvalues, int(times.max(initial=0)))
        s, reached = np.zeros(eigenvalues.shape), 0
        for t in times:
            while reached < t:
                s, reached = next(states), reached + 1
            out[done] = s
            done += 1
            if done == len(out):
                yield slice(start, start + done), out[:done]
                start, done = start + done, 0
        if done:
            yield slice(start, start + done), out[:done]

    def _eta_path(self, steps: int) -> np.ndarray:
        """Return eta at 0..steps: the recursion itself at a vanishing eigenvalue."""
        raise NotImplementedError


@dataclass(frozen=True)
class GradientDescent(Filter):
    """Plain gradient descent: s_i(t) = 1 - prod_{s<t} (1 - alpha_s lambda_i), eta(t) = sum_{s<t} alpha_s."""

    lr: float
    schedule: Schedule = None

    def _sweep(self, eigenvalues: np.ndarray, times: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        if self.schedule is not None:
            yield from super()._sweep(eigenvalues, times)
            return
        x = self.lr * eigenvalues
        # expm1(t log1p(-x)) keeps full relative accuracy of s for tiny x, where 1 - (1 - x)^t cancels.
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.where(x < 1, np.log1p(-np.minimum(x, 1.0)), np.log(np.abs(1 - x)))
        for first in range(0, times.size, BLOCK_ROWS):
            t = times[first : first + BLOCK_ROWS].reshape(-1, *(1,) * eigenvalues.ndim)
            with np.errstate(invalid="ignore"):
                power = np.where(t > 0, t * logs, 0.0)
            odd = (x > 1) & (t % 2 == 1)
            s = np.where(odd, 1 + np.exp(power), -np.expm1(power)) if odd.any() else -np.expm1(power)
            yield slice(first, first + t.shape[0]), s

    def _recursion(self, eigenvalues: np.ndarray, steps: int) -> Iterator[np.ndarray]:
        s = np.zeros(eigenvalues.shape)
        for alpha in self.step_sizes(steps):
            s += alpha * eigenvalues * (1 - s)
            yield s

    def _eta_path(self, steps: int) -> np.ndarray:
        return np.concatenate([[0.0], np.cumsum(self.step_sizes(steps))])


@dataclass(frozen=True)
class HeavyBall(Filter):
    """Heavy-ball momentum: v <- beta v + lambda (1 - s), s <- s + alpha v; not monotone, s may pass 1.

    eta(t) = alpha sum_{k<t} (1 - beta^{t-k}) / (1 - beta) for a constant step. Polyak (1964).
    """

    lr: float
    momentum: float = 0.9
    schedule: Schedule = None

    @property
    def monotone(self) -> bool:
        """Momentum overshoots: s_i may pass 1."""
        return self.momentum == 0

    @property
    def stability(self) -> float:
        """The bound 2 (1 + beta) on lr * lambda_1."""
        return 2 * (1 + self.momentum)

    def _recursion(self, eigenvalues: np.ndarray, steps: int) -> Iterator[np.ndarray]:
        s, v = np.zeros(eigenvalues.shape), np.zeros(eigenvalues.shape)
        for alpha in self.step_sizes(steps):
            gradient = eigenvalues * (1 - s)
            v *= self.momentum
            v += gradient
            s += alpha * self._step(v, gradient)
            yield s

    def _eta_path(self, steps: int) -> np.ndarray:
        eta, v, one = np.zeros(steps + 1), np.zeros(()), np.ones(())
        for k, alpha in enumerate(self.step_sizes(steps)):
            v = self.momentum * v + one
            eta[k + 1] = eta[k] + alpha * self._step(v, one)
        return eta


@dataclass(frozen=True)
class Nesterov(HeavyBall):
    """Nesterov momentum as in torch: v <- beta v + lambda (1 - s), s <- s + alpha (lambda (1 - s) + beta v)."""

    @property
    def stability(self) -> float:
        """The bound 2 (1 + beta) / (1 + 2 beta) on lr * lambda_1."""
        return 2 * (1 + self.momentum) / (1 + 2 * self.momentum)

    def _step(self, v: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        return gradient + self.momentum * v


@dataclass(frozen=True)
class AdamMean(HeavyBall):
    """Adam where its division is part of the kernel: s <- s + alpha m/(1 - beta^t), m <- beta m + (1 - beta) gradient.

    ``lr`` is Adam's own alpha. Heavy ball with m = (1 - beta) v, whose step sizes fall from alpha to (1 - beta) alpha.
    """

    @property
    def stability(self) -> float:
        """The bound 2 (1 + beta) / (1 - beta) on lr * lambda_1, that of the steps once the correction has worn off."""
        return 2 * (1 + self.momentum) / (1 - self.momentum)

    def step_sizes(self, steps: int) -> np.ndarray:
        """Return what multiplies the velocity v at each step; float64 [steps]."""
        corrected = (1 - self.momentum) / (1 - self.momentum ** np.arange(1, steps + 1))
        return super().step_sizes(steps) * corrected


@dataclass(frozen=True)
class Ridge(Filter):
    """Kernel ridge regression with penalty mu = 1/eta: s_i = lambda_i / (lambda_i + mu), eta(t) = lr * t.

    ``Ridge()`` has t = eta itself. It agrees with gradient descent at eta in order: for x = eta lambda the ratio of
    1 - exp(-x) to x / (1 + x) lies between 1 and 1.30. Times may be fractions.
    """

    lr: float = 1.0

    @property
    def iterates(self) -> bool:
        """Ridge has no steps."""
        return False

    @property
    def stability(self) -> float:
        """Ridge never diverges."""
        return np.inf

    def eta(self, t: Times) -> np.ndarray:
        """Return lr * t."""
        return self.lr * np.asarray(t, dtype=np.float64)

    def _sweep(self, eigenvalues: np.ndarray, times: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        for first in range(0, times.size, BLOCK_ROWS):
            eta = self.lr * times[first : first + BLOCK_ROWS].reshape(-1, *(1,) * eigenvalues.ndim)
            x = eta * eigenvalues
            yield slice(first, first + eta.shape[0]), x / (1 + x)
