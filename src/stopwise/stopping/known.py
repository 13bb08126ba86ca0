"""What a stopping rule knows before the first training step, what it answers, and which function computes it.

A rule that is computed before training is a function of ``Known`` under ``computes``; one that reads a measured curve
is a function of ``MeasuredCurve`` under ``reads``. Both give a ``Choice``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from stopwise.linearized.filters import Filter
from stopwise.linearized.noise import Noise
from stopwise.linearized.spectrum import Spectrum
from stopwise.stopping import registry as rule_names
from stopwise.stopping.cross_entropy import Replay


@dataclass(frozen=True, eq=False)
class BeforeTraining:
    """What is known of a run before its first step, and how the rules may look at it.

    ``spec``: the kernel's spectrum; ``residual`` y - f0, [m] or [examples, columns]; ``filter``: what the optimizer
    does to each direction of the kernel; ``t_max``: the last step considered. ``batch_size``: of the run (None: all
    examples), for counting epochs.

    ``sigma``, ``rkhs_norm``: the noise and the size R of what is to be learned; None are estimated, by ``noise``
    (``reml``, ``gcv`` or a Noise already estimated) and ``radius`` (``prior`` or ``fit``). ``times``: the rules look at
    these steps only, and the last of them stands for t_max (None: every step). ``folds``, ``seed``: of the rules that
    refit (folds None: one example at a time). ``targets`` y are checked for a single class; a rule may need them for
    f0 = y - residual. ``replay``: training is on cross-entropy, and rules that can follow its steps do.
    """

    spec: Spectrum
    residual: np.ndarray
    filter: Filter
    t_max: int
    batch_size: int | None = None
    sigma: float | None = None
    rkhs_norm: float | None = None
    noise: str | Noise = "reml"
    radius: str = "prior"
    times: np.ndarray | None = None
    folds: int | None = None
    seed: int = 0
    targets: np.ndarray | None = None
    replay: Replay | None = None

    @property
    def steps(self) -> np.ndarray:
        """Return the steps looked at, ascending whole numbers."""
        return np.arange(self.t_max + 1) if self.times is None else np.unique(np.asarray(self.times))


@dataclass(frozen=True)
class Moments:
    """What the closed-form rules need of a path, at ``times``; float64 [len(times)] each.

    ``training`` = (1/m) |(I - S_t) P r|^2, S_t the filter of K_n that training really applies; ``df`` = q + tr(P S_t);
    ``variance`` = (1/m) sum_i s_i^2 and ``bias`` = (1/m) sum_i (1 - s_i)^2 lambda_i, over the eigenvalues of P K_n P;
    ``largest`` = max_i s_i.
    """

    times: np.ndarray
    eta: np.ndarray
    training: np.ndarray
    df: np.ndarray
    variance: np.ndarray
    bias: np.ndarray
    largest: np.ndarray


@dataclass(frozen=True, eq=False)
class Known:
    """What the function of a rule is given: the run, the moments of its path, and sigma and R, known or estimated.

    A rule whose row names ``sigma``, ``radius`` or ``scale`` among its needs is only asked where they are finite.
    ``rules``: all that are asked of this run, so that those with work in common do it once, and keep it in ``shared``.
    """

    run: BeforeTraining
    path: Moments
    sigma: float
    rkhs_norm: float
    rules: tuple[str, ...] = ()

    @cached_property
    def shared(self) -> dict[str, Any]:
        """What the rules of one run have computed for each other, by name; it goes when the run's rules are done."""
        return {}

    @property
    def spec(self) -> Spectrum:
        """Return the spectrum of the run."""
        return self.run.spec

    @property
    def filter(self) -> Filter:
        """Return the filter of the run."""
        return self.run.filter


@dataclass(frozen=True, eq=False)
class MeasuredCurve:
    """A measured loss: ``values`` at ``times``, and what hold-out stopping asks of an improvement.

    ``patience``: evaluations without one before the end (None: the whole curve is read); ``min_delta``: its least size.
    """

    times: Sequence[int] | np.ndarray
    values: Sequence[float] | np.ndarray
    patience: int | None = None
    min_delta: float = 0.0


@dataclass(frozen=True)
class Choice:
    """What a rule decided: ``t`` (None: no answer), its ``curve`` over the times, and flags.

    ``sigma``, ``rkhs_norm``, ``risk``: None but for a rule that has its own belief of noise, radius and risk at t.
    """

    t: int | None
    curve: np.ndarray
    flags: tuple[str, ...] = ()
    crossing: float = np.nan
    sigma: float | None = None
    rkhs_norm: float | None = None
    risk: float | None = None


Computed = Callable[[Known], Choice]
Read = Callable[[MeasuredCurve], Choice]
COMPUTED: dict[str, Computed] = {}
READ: dict[str, Read] = {}


def computes(name: str) -> Callable[[Computed], Computed]:
    """Make a function of ``Known`` the rule of this name. Raises ValueError when the registry has no such row."""
    _check_row(name, rule_names.PREDICTED)

    def register(function: Computed) -> Computed:
        COMPUTED[name] = function
        return function

    return register


def reads(name: str) -> Callable[[Read], Read]:
    """Make a function of ``MeasuredCurve`` the rule of this name. Raises ValueError when the registry has no row."""
    _check_row(name, rule_names.MEASURED)

    def register(function: Read) -> Read:
        READ[name] = function
        return function

    return register


def _check_row(name: str, allowed: Sequence[str]) -> None:
    if name not in allowed:
        raise ValueError(
            f"the rule {name!r} has a function and no row of its kind in {rule_names.__name__} (found"
            f" {', '.join(allowed)}): add a Rule to ROWS"
        )


def path_moments(spec: Spectrum, residual: np.ndarray, filter: Filter, times: np.ndarray) -> Moments:
    """Sum the moments of a filter's path in one sweep over ``times`` (ascending); O(len(times) m), memory one block."""
    z2 = spec.training_coefficients(residual) ** 2
    weights, out = spec.trace_weights, np.empty((5, len(times)))
    for rows, s in filter.sweep(spec.raw.eigenvalues, times):
        out[0, rows] = (1 - s) ** 2 @ z2
        out[1, rows] = s @ weights
        out[4, rows] = s.max(axis=1)
        if not spec.intercept:
            out[2, rows] = (s**2).sum(axis=1)
            out[3, rows] = (1 - s) ** 2 @ spec.eigenvalues
    if spec.intercept:
        for rows, s in filter.sweep(spec.eigenvalues, times):
            out[2, rows] = (s**2).sum(axis=1)
            out[3, rows] = (1 - s) ** 2 @ spec.eigenvalues
    q = spec.m - spec.degrees
    return Moments(times, filter.eta(times), out[0] / spec.m, q + out[1], out[2] / spec.m, out[3] / spec.m, out[4])
