"""What a kernel's passes will hold in memory, and so whether activations are kept, recomputed, or examples tiled.

Three schedules, from fast to frugal: *keep* holds every layer's inputs and output gradients; *sweep* holds the inputs
of blocks, and one block's; *tiles* sweeps over two tiles of examples at a time, for every pair of tiles, so that n is
bounded by time and not by memory.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from stopwise.kernel.fallback import Probe
from stopwise.kernel.passes import Batch, Pass
from stopwise.kernel.products import SLAB, TILE
from stopwise.network.architecture import blocks_of

log = logging.getLogger(__name__)

MEMORY_SHARE = 0.5  # of the memory that is free, when no limit is given
SMALLEST_TILE = 64  # examples: below this the passes, repeated for every pair of tiles, cost more than the products


@dataclass(frozen=True)
class Needs:
    """Bytes: of keeping everything, of a sweep for one token and beside the tokens, and the room there is."""

    keep: float
    sweep_token: float
    sweep_fixed: float
    room: float
    tokens: int

    @property
    def keeps(self) -> bool:
        """Whether everything fits."""
        return self.keep <= self.room

    def tile(self, examples: int) -> int | None:
        """Return how many examples make a tile, two of which fit in a sweep; None where all fit."""
        room = max(self.room - self.sweep_fixed, 0.0) / self.sweep_token
        if self.keeps or self.tokens <= room or examples <= SMALLEST_TILE:
            return None
        pieces = -(-self.tokens * 2 // max(room, 1.0))
        return max(SMALLEST_TILE, int(examples // pieces))


def needs(model: Any, run: Pass, batches: Sequence[Batch], probed: Probe, memory_gb: float | None) -> Needs:
    """Return the memory needs of a job, from what the probe measured on a few tokens."""
    weight = next(model.parameters())
    blocks = list(blocks_of(model))
    tokens = [b.size * int(b.packed.lengths.max()) for b in batches]
    used = [blocks.index(t.layer) if t.layer in blocks else 0 for t in run.terms]
    depth = len(blocks) - min(used, default=0)
    hidden = getattr(model.config, "hidden_size", 0) * weight.element_size()
    columns = max((b.group.columns for b in batches), default=1)
    rows = sum(b.size * b.group.columns for b in batches)
    one_layer = 1.5 * probed.feature_bytes / max(len({t.layer for t in run.terms}), 1)
    products = 4 * max(SLAB, TILE * rows) + 4 * 8 * rows**2
    graph = probed.graph_bytes * max(tokens, default=0)
    found = Needs(
        keep=probed.feature_bytes * sum(tokens) + graph + products,
        sweep_token=hidden * (depth + 2 * columns) + one_layer,
        sweep_fixed=graph / max(len(blocks), 1) + products,
        room=_room(weight.device, memory_gb),
        tokens=sum(tokens),
    )
    log.debug("memory: keeping needs %.2f GB of %.2f GB", found.keep / 1e9, found.room / 1e9)
    return found


def _room(device: torch.device, memory_gb: float | None) -> float:
    """Return the bytes that may be used beside the model."""
    if memory_gb is not None:
        return memory_gb * 1e9
    if device.type == "cuda":
        return MEMORY_SHARE * torch.cuda.mem_get_info(device)[0]
    return MEMORY_SHARE * psutil.virtual_memory().available
