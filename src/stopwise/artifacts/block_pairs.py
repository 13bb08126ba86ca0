"""Blocks of examples as jobs: which job computes what of one kernel, so that no example runs more often than it must.

The training examples are cut into t blocks. Every two of them are a job, since their kernel needs the passes of both:
t(t-1)/2 jobs, each training example in t - 1 of them. A new (validation or test) example has to meet every training
block, and a job holds two, so that it is in t/2 jobs at least, rounded up. Rounds of a tournament reach that: in a
round every block meets another one, but for one block where t is odd. Each round gets new examples of its own. For odd
t, the job of the block that the round leaves out and of the next block computes what is missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class PairJob:
    """What one job computes: K between its two training blocks, and what else it is the first to need.

    ``own``: those of the two whose kernel with themselves it computes. ``new``: (block of new examples, training
    block), as K(new, train) is cut.
    """

    left: int
    right: int
    own: tuple[int, ...]
    new: tuple[tuple[int, int], ...]

    @property
    def new_blocks(self) -> list[int]:
        """Return the blocks of new examples that the job runs."""
        return sorted({new for new, _ in self.new})


def new_block_count(blocks: int) -> int:
    """Return into how many blocks the new examples are cut: the rounds of a tournament, an odd number."""
    return blocks - 1 if blocks % 2 == 0 else blocks


def pair_jobs(blocks: int) -> list[PairJob]:
    """Return the jobs of a kernel whose training examples are cut into ``blocks``, left before right, in order.

    Every block of K(train, train), up to its mirror image, and of K(new, train) is in one job. ValueError below 2.
    """
    if blocks < 2:
        raise ValueError(f"kernel.blocks must be at least 2 to make jobs, found {blocks}")
    rounds = new_block_count(blocks)
    jobs = []
    for left in range(blocks):
        for right in range(left + 1, blocks):
            # In round k of an odd tournament i meets j where i + j = 2 k; with one more block, that meets block k.
            met = left if right == rounds else (left + right) * (rounds + 1) // 2 % rounds
            own = tuple(block for block in (left, right) if (block + 1) % blocks in {left, right} - {block})
            new = [(met, left), (met, right)]
            if blocks % 2:
                new += [(block, block) for block in own]
            jobs.append(PairJob(left, right, own, tuple(new)))
    return jobs


def pair_job(left: int, right: int, blocks: int) -> PairJob:
    """Return the job of two training blocks; ValueError where there is none such."""
    for job in pair_jobs(blocks):
        if (job.left, job.right) == (left, right):
            return job
    raise ValueError(f"blocks {left} and {right} of {blocks} are no job of a kernel")


def ranges(count: int, pieces: int) -> list[slice]:
    """Return ``count`` examples cut into consecutive pieces of nearly equal size; of fewer examples some are empty."""
    bounds = [count * piece // pieces for piece in range(pieces + 1)]
    return [slice(start, stop) for start, stop in pairwise(bounds)]


def repeats(blocks: int) -> tuple[int, int]:
    """Return how often a training example and a new one run in all jobs together."""
    return blocks - 1, (blocks + 1) // 2
