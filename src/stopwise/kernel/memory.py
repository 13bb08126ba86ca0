"""What a kernel's passes will hold in memory, and so whether activations are kept, recomputed, or examples tiled.

Three schedules, from fast to frugal: *keep* holds every layer's inputs and output gradients; *sweep* holds the inputs
of blocks, and one block's; *tiles* sweeps over two tiles of examples at a time, for every pair of tiles, so that n is
bounded by time and not by memory. The room is a share of what the machine has, not of what is free at this second: it
is decided once, the plan of a configuration (``cost.estimate``) decides it in the same way, and artifacts say it.
Processes that share a kernel decide each for its own passes, and never for tiles.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from stopwise.kernel.fallback import Probe
from stopwise.kernel.passes import Batch, Pass
from stopwise.kernel.products import Sizes, sizes_on
from stopwise.kernel.ranks import Ranks, multiplied_shares
from stopwise.network.architecture import blocks_of

log = logging.getLogger(__name__)

# Of a machine's memory beside the weights, when no limit is given: a GPU is leased, a CPU's memory has other users.
MEMORY_SHARE = {"cuda": 0.8, "cpu": 0.5}
LARGEST_LAYER = 1.5  # times the mean layer, in bytes of inputs and output gradients
BLOCKS = 4  # of a layer, of the sum, a module's, and one put in order
SMALLEST_TILE = 64  # examples: below this the passes, repeated for every pair of tiles, cost more than the products


@dataclass(frozen=True)
class Needs:
    """Bytes: of keeping everything, of a sweep for one token and beside the tokens, and the room there is.

    ``blocks``: what of a sweep's fixed bytes are the kernel's blocks, which grow with the square of the rows at a time;
    ``held``: of the kernel itself, which tiles are put together to and which lies in the same memory; ``tiles``:
    whether examples may be cut into tiles.
    """

    keep: float
    sweep_token: float
    sweep_fixed: float
    room: float
    tokens: float
    blocks: float = 0.0
    held: float = 0.0
    tiles: bool = True

    @property
    def keeps(self) -> bool:
        """Whether everything fits."""
        return self.keep <= self.room

    def tile(self, examples: int) -> int | None:
        """Return how many examples make a tile, two of which fit in a sweep; None where all fit, or none are cut.

        Where the kernel itself takes most of the room, no tile makes that smaller: tiles have a quarter of it at least.
        """
        if not self.tiles or self.keeps or self.swept(1.0) <= self.room or examples <= SMALLEST_TILE:
            return None
        room = max(self.room - self.held, self.room / 4)
        most = examples // SMALLEST_TILE
        pieces = next((count for count in range(2, most + 1) if self.swept(2 / count) <= room), most)
        return max(SMALLEST_TILE, examples // pieces)

    def swept(self, share: float) -> float:
        """Return the bytes of a sweep over a share of the examples."""
        return self.sweep_fixed - self.blocks * (1 - share**2) + self.sweep_token * self.tokens * share

    def schedule(self, examples: int) -> tuple[str, int, float]:
        """Return (keep or sweep, how many tiles, the bytes that takes)."""
        size = self.tile(examples)
        if self.keeps:
            return "keep", 1, self.keep
        if size is None:
            return "sweep", 1, self.swept(1.0)
        tiles = -(-examples // size)
        return "sweep", tiles, self.swept(min(1.0, 2 / tiles)) + self.held


def batch_tokens(batch: Batch) -> int:
    """Return the padded tokens of a pass."""
    return batch.size * int(batch.packed.lengths.max())


def needs(
    model: Any,
    run: Pass,
    batches: Sequence[Batch],
    probed: Probe,
    memory_gb: float | None,
    rows: int,
    ranks: Ranks | None = None,
) -> Needs:
    """Return the memory needs of this process's passes, from what the probe measured on a few tokens.

    ``batches`` and ``rows``: those of the kernel, of all processes together.
    """
    weight, processes = next(model.parameters()), 1 if ranks is None else ranks.world
    blocks = list(blocks_of(model))
    tokens = [batch_tokens(b) for b in (batches if ranks is None else ranks.own(batches))]
    used = [blocks.index(t.layer) if t.layer in blocks else 0 for t in run.terms]
    depth = len(blocks) - min(used, default=0)
    hidden = getattr(model.config, "hidden_size", 0) * weight.element_size()
    columns = max((b.group.columns for b in batches), default=1)
    one_layer = probed.feature_bytes / max(len({t.layer for t in run.terms}), 1)
    beside = product_bytes(sizes_on(weight.device.type), rows)
    if processes > 1:  # a layer's modules come from all processes to the one that multiplies them
        beside += one_layer * sum(map(batch_tokens, batches)) * multiplied_shares(run.terms, processes)[1]
    weights = float(sum(p.numel() * p.element_size() for p in model.parameters()))
    graph = probed.graph_bytes * max(tokens, default=0)
    found = Needs(
        keep=probed.feature_bytes * sum(tokens) + graph + beside,
        sweep_token=hidden * (depth + 2 * columns) + LARGEST_LAYER * one_layer,
        sweep_fixed=graph / max(len(blocks), 1) + beside,
        room=room(weight.device.type, total_memory(weight.device), weights, memory_gb, processes),
        tokens=sum(tokens),
        blocks=block_bytes(rows),
        held=block_bytes(rows) / BLOCKS if weight.device.type == "cpu" else 0.0,
        tiles=processes == 1,
    )
    log.debug("memory: keeping needs %.2f GB of %.2f GB", found.keep / 1e9, found.room / 1e9)
    return found


def product_bytes(sizes: Sizes, rows: int) -> float:
    """Return the bytes of forming and multiplying gradients: a slab, and the kernel's blocks in float64."""
    return 4.0 * max(sizes.slab, min(sizes.tile * rows, 4 * sizes.slab)) + block_bytes(rows)


def block_bytes(rows: int) -> float:
    """Return the bytes of the kernel's blocks that are in memory at a time, in float64."""
    return BLOCKS * 8.0 * rows**2


def total_memory(device: torch.device) -> float:
    """Return the bytes that a device of this machine has, or that this process may use of them."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return min(float(psutil.virtual_memory().total), _group_limit())


def _group_limit() -> float:
    """Return the memory limit of this process's control group, as a container or Slurm sets it; infinity for none."""
    try:
        name = Path("/proc/self/cgroup").read_text(encoding="utf-8").strip().rpartition("::/")[2]
        return float((Path("/sys/fs/cgroup") / name / "memory.max").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # no such file, or the word max
        return float("inf")


def room(kind: str, total: float, weights: float, memory_gb: float | None, processes: int = 1) -> float:
    """Return the bytes that a process may use beside its ``weights``: ``memory_gb`` (10^9 each) if given.

    Otherwise a share of ``total``: of its own device, or an equal part of that of a CPU, which all ``processes`` use.
    """
    if memory_gb is not None:
        return memory_gb * 1e9
    among = processes if kind == "cpu" else 1
    return MEMORY_SHARE.get(kind, MEMORY_SHARE["cpu"]) * max(total - among * weights, 0.0) / among


def out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory did not suffice; PyTorch's CPU allocator has no type of its own for it."""
    return isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )
