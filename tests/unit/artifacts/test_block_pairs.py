"""Blocks of examples as jobs: every block of the kernel once, no example more often than it must."""

from collections import Counter

import numpy as np
import pytest

from stopwise.artifacts.block_pairs import new_block_count, pair_job, pair_jobs, ranges, repeats
from stopwise.artifacts.blocks import assemble_blocks, block_table
from stopwise.artifacts.gram import SUM
from stopwise.artifacts.tables import ArtifactError

BLOCKS, N, NEW, COLUMNS = 3, 7, 4, 2
J = np.random.default_rng(0).normal(size=((N + NEW) * COLUMNS, 6))
TRAIN, CROSS = J[: N * COLUMNS] @ J[: N * COLUMNS].T, J[N * COLUMNS :] @ J[: N * COLUMNS].T
F0 = np.random.default_rng(1).normal(size=(N + NEW, COLUMNS))


@pytest.mark.parametrize("blocks", range(2, 12))
def test_every_block_is_in_one_job_and_no_example_in_more_than_it_must(blocks):
    jobs = pair_jobs(blocks)
    assert [(job.left, job.right) for job in jobs] == [(i, j) for i in range(blocks) for j in range(i + 1, blocks)]
    assert Counter(block for job in jobs for block in job.own) == Counter(range(blocks))
    new = Counter(pair for job in jobs for pair in job.new)
    assert new == Counter((a, b) for a in range(new_block_count(blocks)) for b in range(blocks))
    assert all(block in (job.left, job.right) for job in jobs for _, block in job.new)
    # A block meets the others one a job; a new example meets all blocks, two a job.
    train = Counter(block for job in jobs for block in (job.left, job.right))
    held = Counter(block for job in jobs for block in job.new_blocks)
    assert repeats(blocks) == (blocks - 1, -(-blocks // 2))
    assert (set(train.values()), set(held.values())) == ({repeats(blocks)[0]}, {repeats(blocks)[1]})


def test_five_blocks_are_ten_jobs_and_four_times_the_passes():
    assert (len(pair_jobs(5)), repeats(5)) == (10, (4, 3))
    with pytest.raises(ValueError, match="blocks 1 and 1 of 5 are no job"):
        pair_job(1, 1, 5)
    with pytest.raises(ValueError, match="at least 2"):
        pair_jobs(1)


@pytest.mark.parametrize(("count", "pieces"), [(10, 3), (3, 3), (2, 5)])
def test_ranges_are_consecutive_and_nearly_equal(count, pieces):
    found = ranges(count, pieces)
    assert np.array_equal(np.concatenate([np.arange(count)[one] for one in found]), np.arange(count))
    sizes = [one.stop - one.start for one in found]
    assert len(sizes) == pieces
    assert max(sizes) - min(sizes) <= 1


def rows(one):
    return slice(one.start * COLUMNS, one.stop * COLUMNS)


def tables(new=NEW, f0=F0):
    """The files of a kernel that keeps no layers."""
    cuts, held = ranges(N, BLOCKS), ranges(new, new_block_count(BLOCKS))
    found = {}
    for job in pair_jobs(BLOCKS):
        pairs = [(job.left, job.right), *((own, own) for own in job.own)]
        blocks = {("train", SUM, a, b): TRAIN[rows(cuts[a]), rows(cuts[b])] for a, b in pairs}
        full = [(a, b) for a, b in job.new if held[a].stop > held[a].start]
        blocks |= {("new", SUM, a, b): CROSS[rows(held[a]), rows(cuts[b])] for a, b in full}
        blocks |= {("outputs", "", a, a): f0[cuts[a]] for a in (job.left, job.right)}
        blocks |= {("outputs_new", "", a, a): f0[N:][held[a]] for a, _ in full}
        found[f"blocks{job.left}-{job.right}"] = block_table(blocks)
    return found


def test_the_blocks_are_the_kernel_to_the_bit_and_symmetric():
    whole = assemble_blocks({path: lambda table=table: table for path, table in tables().items()}, BLOCKS, N, NEW)
    assert np.array_equal(whole.new, CROSS)
    assert np.array_equal(whole.train, whole.train.T)
    assert np.allclose(whole.train, TRAIN, rtol=1e-14)
    assert np.array_equal(np.concatenate([whole.outputs, whole.outputs_new]), F0)


def test_fewer_new_examples_than_blocks_of_them_leave_some_empty():
    whole = assemble_blocks(tables(new=2), BLOCKS, N, 2)
    assert np.array_equal(whole.new, CROSS[: 2 * COLUMNS])


def test_what_does_not_belong_together_is_refused_and_named():
    good = tables()
    with pytest.raises(ArtifactError, match=r"twice: block .* is in blocks0-1 too"):
        assemble_blocks(good | {"twice": good["blocks0-1"]}, BLOCKS, N, NEW)
    for path in good:
        with pytest.raises(ArtifactError, match="is in none of the files"):
            assemble_blocks({name: table for name, table in good.items() if name != path}, BLOCKS, N, NEW)
    with pytest.raises(ArtifactError, match=r"blocks1-2: f0 differs from that of blocks0-1; .*different models"):
        assemble_blocks(good | {"blocks1-2": tables(f0=F0 + 0.1)["blocks1-2"]}, BLOCKS, N, NEW)
    with pytest.raises(ArtifactError, match=r"blocks0-1: block outputs .* 8 training and 4 new examples"):
        assemble_blocks(good, BLOCKS, N + 1, NEW)
    with pytest.raises(ArtifactError, match=r"strange: block outputs of blocks 3 and 3 does not belong to 3 blocks"):
        assemble_blocks({"strange": block_table({("outputs", "", 3, 3): F0[:2]})}, BLOCKS, N, NEW)
