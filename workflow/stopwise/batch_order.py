"""Which examples each mini-batch holds: a function of (seed, step) alone, so that prediction and training agree.

Nothing is stored and nothing is drawn on the way: a resumed run, and the kernel's replay of a run, see the same
batches.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

_STREAM = 0x6261746368  # keeps this use of a seed apart from others of the same number


def batch_indices(n: int, batch_size: int, step: int, seed: int) -> np.ndarray:
    """Return the example indices of batch ``step``, int64 [min(batch_size, n)].

    Permutations of the n examples, one per epoch, are laid end to end and cut every ``batch_size``: epoch = step * b/n
    exactly, and a batch may straddle two epochs. Raises ValueError for an empty sample or batch.
    """
    if n < 1 or batch_size < 1:
        raise ValueError(f"batch_size must be at least 1 and the sample not empty, found {batch_size} of {n}")
    size = min(batch_size, n)
    places = np.arange(step * size, (step + 1) * size)
    return np.array(
        [_permutation(n, int(epoch), seed)[place] for epoch, place in zip(*np.divmod(places, n), strict=True)]
    )


@lru_cache(maxsize=8)
def _permutation(n: int, epoch: int, seed: int) -> np.ndarray:
    return np.random.default_rng([_STREAM, seed, epoch]).permutation(n)
