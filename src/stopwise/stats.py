"""Intervals and what they rest on: Wilson, Student, slopes, rank correlations, bootstrap over groups (numpy)."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np
import scipy


def wilson(hits: float, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of a proportion, honest at 0 and at 1 (Wilson, JASA 1927). NaN twice when there are no trials."""
    if trials == 0:
        return math.nan, math.nan
    z = float(scipy.special.ndtri(0.5 + level / 2))
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
    half = float(scipy.special.stdtrit(finite.size - 1, 0.5 + level / 2) * finite.std(ddof=1) / math.sqrt(finite.size))
    return mean, mean - half, mean + half


def slope(x: Sequence[float], y: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Least-squares slope of log y in log x and Student's interval for it, over the pairs of positive numbers.

    NaN three times with fewer than two distinct x; a NaN interval with fewer than three pairs.
    """
    pairs = np.column_stack([np.asarray(x, dtype=float), np.asarray(y, dtype=float)])
    pairs = np.log(pairs[np.isfinite(pairs).all(axis=1) & (pairs > 0).all(axis=1)])
    if len(np.unique(pairs[:, 0])) < 2:
        return math.nan, math.nan, math.nan
    centred = pairs - pairs.mean(axis=0)
    squares = float(centred[:, 0] @ centred[:, 0])
    value = float(centred[:, 0] @ centred[:, 1]) / squares
    if len(pairs) < 3:
        return value, math.nan, math.nan
    residual = centred[:, 1] - value * centred[:, 0]
    error = math.sqrt(float(residual @ residual) / (len(pairs) - 2) / squares)
    half = float(scipy.special.stdtrit(len(pairs) - 2, 0.5 + level / 2)) * error
    return value, value - half, value + half


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's rank correlation over the finite pairs; NaN with fewer than three or when one side is constant."""
    pairs = np.column_stack([np.asarray(x, dtype=float), np.asarray(y, dtype=float)])
    pairs = pairs[np.isfinite(pairs).all(axis=1)]
    if len(pairs) < 3:
        return math.nan
    ranks = np.column_stack([scipy.stats.rankdata(side) for side in pairs.T])
    centred = ranks - ranks.mean(axis=0)
    norms = np.linalg.norm(centred, axis=0)
    return float(centred[:, 0] @ centred[:, 1] / norms.prod()) if norms.all() else math.nan


DRAWS = 2000
TAILS = (0.025, 0.975)


def redrawn(groups: Sequence[Hashable], seed: int = 0, draws: int = DRAWS) -> list[np.ndarray]:
    """Return row indices of ``draws`` samples: as many groups as there are, with replacement, all rows of each."""
    members: dict[Hashable, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    indices = [np.array(own) for own in members.values()]
    picks = np.random.default_rng(seed).integers(len(indices), size=(draws, len(indices)))
    return [np.concatenate([indices[k] for k in pick]) for pick in picks]


def interval(
    columns: Mapping[str, np.ndarray],
    measure: Callable[[Mapping[str, np.ndarray]], np.ndarray],
    samples: Sequence[np.ndarray],
) -> tuple[float, float]:
    """Return the 95 % percentile interval of a measure of columns over the samples of ``redrawn``.

    ``measure`` takes columns [..., rows] to numbers [...]: samples with as many rows are measured at once.
    """
    by_size: dict[int, list[np.ndarray]] = {}
    for index in samples:
        by_size.setdefault(len(index), []).append(index)
    stacked = [np.stack(own) for own in by_size.values()]
    found = [measure({k: v[index] for k, v in columns.items()}) for index in stacked]
    low, high = np.nanquantile(np.concatenate(found), TAILS)
    return float(low), float(high)


def share_interval(hits: np.ndarray, samples: Sequence[np.ndarray], groups: int) -> tuple[float, float]:
    """Return the 95 % interval of the share of rows that hit; ``hits`` 0 or 1 [rows], in so many groups.

    Where all rows hit, or none, every sample says the same: Wilson's interval then, with one trial a group.
    """
    share = float(np.mean(hits))
    if share in (0.0, 1.0):
        return wilson(share * groups, groups)
    return interval({"hit": hits}, lambda v: np.mean(v["hit"], axis=-1), samples)
