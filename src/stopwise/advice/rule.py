"""Which stopping rule the advice follows: one constant, its fallbacks, and how they are tried (numpy, no torch).

A study that finds a better rule changes ``DEFAULT_RULE`` here and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stopwise.linearized.filters import Filter
from stopwise.linearized.spectrum import Spectrum
from stopwise.stopping.stops import Stop, stopping_time

DEFAULT_RULE = "bayes"
# Tried in this order when the rule before gives no time. They need no model of the noise.
FALLBACKS = ("gcv", "loo")


@dataclass(frozen=True)
class Decision:
    """The stop that the advice follows, and the rules before it that gave no time.

    ``stop.t`` is None when no rule at all answered. A stop flagged ``beyond_t_max`` is the last time considered: the
    rule sees the error still falling there, which is an answer too.
    """

    stop: Stop
    passed_over: tuple[Stop, ...] = ()

    @property
    def t(self) -> int:
        """The step to stop at, 0 when no rule answered."""
        return self.stop.t or 0


def decide(
    spec: Spectrum,
    residual: np.ndarray,
    targets: np.ndarray,
    filter: Filter,
    t_max: int,
    seed: int = 0,
    known: Sequence[Stop] = (),
) -> Decision:
    """Return the first answer among ``DEFAULT_RULE`` and ``FALLBACKS`` on a filter's path up to ``t_max`` steps.

    ``residual`` is y - f0 on the rows of the spectrum, ``targets`` y; ``known``: stops of this path that are computed
    already. Cost O(n m^3) for the first rule, which refits without each example.
    """
    tried: list[Stop] = []
    found = {stop.rule: stop for stop in known}
    for rule in (DEFAULT_RULE, *FALLBACKS):
        stop = found.get(rule) or stopping_time(spec, residual, rule, filter, t_max, seed=seed, targets=targets)
        if stop.t is not None:
            return Decision(stop, tuple(tried))
        tried.append(stop)
    return Decision(tried[0], tuple(tried[1:]))
