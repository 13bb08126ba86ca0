"""Kernels of more examples than fit: tiles of examples, two at a time, their blocks put together.

Every pair of tiles runs the passes of both, so that t tiles of one symmetric kernel cost t - 1 times the passes of all
examples; the products, which grow with n^2, are computed once.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from stopwise.kernel.batch_metric import roots
from stopwise.kernel.engine import Engine, Job
from stopwise.kernel.memory import out_of_memory
from stopwise.kernel.moments import Moments
from stopwise.kernel.parts import Part, engine_parts
from stopwise.linearized.coding import columns

log = logging.getLogger(__name__)


Found = tuple[list[Part], list[np.ndarray], dict[str, Any]]


def kernel_parts(job: Job) -> Found:
    """Return the parts of every pair's kernel, f0 of every task, and the plan, in tiles where memory asks for them.

    Where memory does not suffice all the same, half the room is tried once; MemoryError where that fails too. Of
    several processes none tries again: the others would go on without it.
    """
    rooms: list[float] = []
    for last in (False, True) if job.ranks is None else (True,):
        engine = Engine(job)
        rooms.append(min(engine.needs.room, engine.plan()["needs_gb"] * 1e9))
        try:
            return _parts(engine)
        except Exception as error:
            if not out_of_memory(error):
                raise
        if last:
            break
        log.warning("memory did not suffice with room for %.2f GB: half of it is tried", rooms[-1] / 1e9)
        del engine
        gc.collect()
        torch.cuda.empty_cache()
        job = replace(job, memory_gb=rooms[-1] / 2e9, schedule="auto")
    tried = " and ".join(f"{room / 1e9:.2f} GB" for room in rooms)
    raise MemoryError(
        f"the kernel of {sum(len(packed) for packed, _ in job.tasks)} examples does not fit: tried with {tried} beside"
        " the weights. Lower kernel.memory_gb below that, raise kernel.shards or kernel.blocks, or end what else uses"
        " the memory"
    )


def _parts(engine: Engine) -> Found:
    size, plan, metric = engine.tile(), engine.plan(), engine.job.metric
    if metric is not None and (size is not None or engine.job.ranks is not None):
        engine.job = replace(engine.job, scales=roots(metric.apart(), engine.job.terms), metric=None)
    if size is None:
        return *engine_parts(engine), plan
    log.info("examples are computed in tiles of %d, to stay within memory", size)
    return *tiled_parts(engine.job, size), plan


@dataclass(frozen=True)
class Tile:
    """A range of one task's examples."""

    task: int
    start: int
    stop: int


def tiled_parts(job: Job, size: int) -> tuple[list[Part], list[np.ndarray]]:
    """Compute the kernels in tiles of ``size`` examples; the same numbers as at once, to rounding."""
    lengths = [len(packed) for packed, _ in job.tasks]
    widths = [columns(len(tokens), job.outputs) for _, tokens in job.tasks]
    tiles = [
        Tile(task, start, min(start + size, length))
        for task, length in enumerate(lengths)
        for start in range(0, length, size)
    ]
    f0 = [np.zeros((length, width)) for length, width in zip(lengths, widths, strict=True)]
    parts = [Part((lengths[a] * widths[a], lengths[b] * widths[b])) for a, b in job.pairs]
    runs = list(_runs(tiles, job.pairs))
    for number, (some, wanted) in enumerate(runs, 1):
        pairs = sorted({(i, j) for _, i, j in wanted})
        part = replace(job, part=f", part {number} of {len(runs)}")
        found, outputs = engine_parts(Engine(_sub_job(part, some, pairs)))
        for tile, values in zip(some, outputs, strict=True):
            f0[tile.task][tile.start : tile.stop] = values
        for pair, i, j in wanted:
            _place(
                parts[pair],
                found[pairs.index((i, j))],
                some[i],
                some[j],
                widths,
                mirrored=len(set(job.pairs[pair])) == 1,
            )
    return parts, f0


def _sub_job(job: Job, some: Sequence[Tile], pairs: list[tuple[int, int]]) -> Job:
    tasks = []
    for tile in some:
        packed, tokens = job.tasks[tile.task]
        tasks.append((packed.rows(torch.arange(tile.start, tile.stop)), tokens))
    targets = []
    for tile in some:
        own = job.targets[tile.task] if tile.task < len(job.targets) else None
        targets.append(None if own is None else own[tile.start : tile.stop])
    return replace(job, tasks=tasks, pairs=pairs, schedule="sweep", targets=targets)


def _runs(
    tiles: Sequence[Tile], pairs: Sequence[tuple[int, int]]
) -> Iterator[tuple[list[Tile], list[tuple[int, int, int]]]]:
    """Yield (one or two tiles, what to compute between them as (pair of tasks, left, right)).

    A tile's block with itself is computed in the first run that holds the tile: alone, it would cost its passes again.
    """
    symmetric = {a: number for number, (a, b) in enumerate(pairs) if a == b}
    alone = {k: symmetric[tile.task] for k, tile in enumerate(tiles) if tile.task in symmetric}
    for u, first in enumerate(tiles):
        for v, second in enumerate(tiles[:u]):
            wanted = []
            for number, (a, b) in enumerate(pairs):
                if (first.task, second.task) == (a, b):
                    wanted.append((number, 0, 1))
                elif (second.task, first.task) == (a, b):
                    wanted.append((number, 1, 0))
            if wanted:
                wanted += [(alone.pop(k), i, i) for i, k in enumerate((u, v)) if k in alone]
                yield [first, second], wanted
    for k, number in alone.items():
        yield [tiles[k]], [(number, 0, 0)]


def _place(whole: Part, found: Part, left: Tile, right: Tile, widths: Sequence[int], mirrored: bool) -> None:
    """Put one block of every layer in its place, and across the diagonal of a symmetric kernel."""
    rows = slice(left.start * widths[left.task], left.stop * widths[left.task])
    cols = slice(right.start * widths[right.task], right.stop * widths[right.task])
    for name, block in found.matrices.items():
        if name not in whole.matrices:
            whole.matrices[name] = np.zeros(whole.shape)
        target = whole.matrices[name]
        target[rows, cols] = block
        if mirrored and left != right:
            target[cols, rows] = block.T
    for layer, (here, mirror) in found.moments.items():
        if layer not in whole.moments:
            sides = [Moments.zeros(count, widths[left.task]) for count in whole.shape]
            whole.moments[layer] = sides[0], None if mirrored else sides[1]
        own, others = whole.moments[layer]
        own.add(here, rows)
        if mirror is not None:
            (own if others is None else others).add(mirror, cols)
    if found.moves is not None:
        whole.moves = np.zeros(whole.shape[0]) if whole.moves is None else whole.moves
        whole.moves[rows] = found.moves
    for module, norms in found.norms.items():
        whole.norms.setdefault(module, np.zeros(whole.shape[0]))[rows] = norms
