"""Bootstrap over groups of rows that share their examples: whole groups are drawn again, never single rows (numpy)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np

from .plots.intervals import wilson

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
    measure: Callable[[Mapping[str, np.ndarray]], float],
    samples: Sequence[np.ndarray],
) -> tuple[float, float]:
    """Return the 95 % percentile interval of a measure of columns over the samples of ``redrawn``."""
    low, high = np.nanquantile([measure({k: v[index] for k, v in columns.items()}) for index in samples], TAILS)
    return float(low), float(high)


def share_interval(hits: np.ndarray, samples: Sequence[np.ndarray], groups: int) -> tuple[float, float]:
    """Return the 95 % interval of the share of rows that hit; ``hits`` 0 or 1 [rows], in so many groups.

    Where all rows hit, or none, every sample says the same: Wilson's interval then, with one trial a group.
    """
    share = float(np.mean(hits))
    if share in (0.0, 1.0):
        return wilson(share * groups, groups)
    return interval({"hit": hits}, lambda v: float(np.mean(v["hit"])), samples)
