"""Intervals that the figures draw."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import ndtri, stdtrit


def wilson(hits: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of a proportion, honest at 0 and at 1 (Wilson, JASA 1927). NaN twice when there are no trials."""
    if trials == 0:
        return math.nan, math.nan
    z = float(ndtri(0.5 + level / 2))
    rate = hits / trials
    centre = (rate + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * math.sqrt(rate * (1 - rate) / trials + z**2 / (4 * trials**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_interval(values: Sequence[float] | np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """Mean of the finite values and Student's interval for it; with fewer than two values the interval is NaN."""
    finite = np.asarray(values, dtype=float)
    finite = finite[np.isfinite(finite)]
    if finite.size == 0:
        return math.nan, math.nan, math.nan
    mean = float(finite.mean())
    if finite.size == 1:
        return mean, math.nan, math.nan
    half = float(stdtrit(finite.size - 1, 0.5 + level / 2) * finite.std(ddof=1) / math.sqrt(finite.size))
    return mean, mean - half, mean + half
