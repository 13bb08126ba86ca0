"""The engine room of the kernel: plans the passes, runs them, and yields their features layer by layer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from stopwise.kernel.batch_metric import BatchMetric
from stopwise.kernel.fallback import Probe, fallback_features, probe
from stopwise.kernel.formulas import Features, Outer, Term
from stopwise.kernel.memory import Needs, batch_tokens, needs
from stopwise.kernel.moments import directions
from stopwise.kernel.passes import Batch, Group, Pass, batches_of, make_groups, whole_pass
from stopwise.kernel.products import sizes_on
from stopwise.kernel.ranks import Ranks
from stopwise.kernel.sweep import Sweep, Unswept
from stopwise.kernel.weighing import Weighing
from stopwise.network.architecture import blocks_of
from stopwise.network.batches import MAX_PADDING, Packed

log = logging.getLogger(__name__)

BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
GRAPH_SHARE = 0.25  # of the room: the most that the graph of one pass may take on a GPU


@dataclass
class Job:
    """One request: a frozen model, the terms, tasks (prompts, verbalizers), and the pairs of tasks wanted."""

    model: Any
    terms: Sequence[Term]
    tasks: Sequence[tuple[Packed, torch.Tensor]]
    pairs: Sequence[tuple[int, int]]
    outputs: str = "contrast"
    signed: bool = False
    scales: Mapping[str, torch.Tensor] | None = None  # sqrt(D) by parameter: the kernel J D J'
    metric: BatchMetric | None = None  # where D is to be read from the kernel's own rows instead
    along: Mapping[str, torch.Tensor] | None = None  # a direction d by parameter: J d is wanted too
    by: str = "layer"  # layer | module | total
    targets: Sequence[np.ndarray | None] = ()  # by task, at scale 1: the layers' moments are taken along them
    products: str = "float32"  # see product_modes
    memory_gb: float | None = None
    progress: bool = False
    part: str = ""  # what of the whole this is, for the bar
    schedule: str = "auto"  # keep | sweep | auto
    ranks: Ranks | None = None  # the processes that share the work
    tokens_per_batch: int | None = None  # None: by device and memory
    max_padding: float = MAX_PADDING


@dataclass
class Visit:
    """One layer's features: for every term, in name order, (batch, features) of the batches that have any."""

    layer: str
    terms: list[tuple[Term, list[tuple[Batch, Features]]]]


class Engine:
    """Runs a job's passes once: ``layers()`` yields the features layer by layer, then ``f0`` holds the outputs."""

    def __init__(self, job: Job):
        self.job = job
        self.device = next(job.model.parameters()).device
        self.run = Pass(job.model, job.terms, job.outputs)
        self._vectors: dict[int, torch.Tensor] = {}
        self._group(job.tokens_per_batch or sizes_on(self.device.type).tokens)
        filled = [group for group in self.groups if len(group.packed)]
        self.probed = probe(self.run, filled[0]) if filled else Probe()
        if self.probed.broken:
            self._try_singly(filled[0])
        self.run.terms = [t for t in job.terms if t not in self.probed.broken]
        self.needs = self._decided()

    def _group(self, tokens_per_batch: int) -> None:
        self.groups = make_groups(self.job.tasks, self.job.outputs, tokens_per_batch, self.job.max_padding)
        self.batches = batches_of(self.groups)
        self.own = self.batches if self.job.ranks is None else self.job.ranks.own(self.batches)

    def _try_singly(self, group: Group) -> None:
        """Run one example a pass where that makes formulas hold: what a pass shares between examples is then its own.

        So for the relative positions of DeBERTa, which go through the query and key projections once for all examples.
        Cheaper than the fallback, which needs such passes too, and whole gradients.
        """
        alone = probe(self.run, group, examples=1)
        if len(alone.broken) < len(self.probed.broken):
            log.info("one example a pass: %d parameter(s) act on all at once", len(self.probed.broken))
            self.probed = alone
            self._group(1)

    def layers(self) -> Iterator[Visit]:
        """Yield every layer's features, the top block first, what lies outside of blocks last."""
        broken = self.probed.broken
        extra = fallback_features(Pass(self.job.model, broken, self.job.outputs), self.own, broken)
        keep = self.keeps()
        top = next(reversed(blocks_of(self.job.model)), None)
        for layer, found in _features(self.job, self.run, self.own, keep):
            terms: list[tuple[Term, list[tuple[Batch, Features]]]] = []
            for term in self.job.terms:
                if term.layer != layer:
                    continue
                parts = []
                for batch, one, other in zip(self.own, found, extra, strict=True):
                    feature = one.pop(term.name, None) or other.pop(term.name, None)
                    if feature is not None:
                        parts.append((batch, trimmed(feature) if layer == top else feature))
                terms.append((term, parts))
            yield Visit(layer, terms)

    @property
    def rows(self) -> int:
        """All rows of all tasks."""
        return sum(len(group.rows) for group in self.groups)

    @property
    def examples(self) -> int:
        """All examples of all tasks."""
        return sum(len(group.packed) for group in self.groups)

    def keeps(self) -> bool:
        """Whether all inputs and output gradients are kept (fast) or blocks replayed (frugal)."""
        if self.job.schedule != "auto" or not blocks_of(self.job.model):
            return self.job.schedule != "sweep"
        return self.needs.keeps

    def tile(self) -> int | None:
        """Return how many examples make a tile that fits in memory, None where all do."""
        if self.job.schedule != "auto" or not self.examples:
            return None
        return self.needs.tile(self.examples)

    def _decided(self) -> Needs:
        """Measure the memory that the passes need, once; batches that alone would fill a GPU are made smaller."""
        found = self._needs()
        graph = self.probed.graph_bytes * max((batch_tokens(batch) for batch in self.batches), default=0)
        largest = GRAPH_SHARE * found.room
        if self.device.type == "cpu" or self.job.tokens_per_batch or graph <= largest or not graph:
            return found
        self._group(max(1, int(largest / self.probed.graph_bytes)))
        return self._needs()

    def _needs(self) -> Needs:
        job = self.job
        return needs(job.model, self.run, self.batches, self.probed, job.memory_gb, self.rows, job.ranks)

    def plan(self) -> dict[str, Any]:
        """Return what was decided, to be recorded: schedule, tiles, and GB of what it needs and what there is."""
        schedule, tiles, peak = self.needs.schedule(self.examples)
        if self.job.schedule != "auto":
            schedule, tiles = ("keep" if self.keeps() else "sweep"), 1
        elif not blocks_of(self.job.model):
            schedule = "keep"
        found = {
            "schedule": schedule,
            "tiles": tiles,
            "needs_gb": round(peak / 1e9, 3),
            "room_gb": round(self.needs.room / 1e9, 3),
            "passes": len(self.batches),
        }
        return found if self.job.ranks is None else found | {"own_passes": len(self.own)}

    def vectors(self, task: int) -> torch.Tensor | None:
        """Return what the moments of layers are taken along, None for a task without targets."""
        targets = self.job.targets[task] if task < len(self.job.targets) else None
        if targets is None:
            return None
        if task not in self._vectors:
            self._vectors[task] = directions(self.groups[task], self.run, targets, self.device)
        return self._vectors[task]

    @cached_property
    def weighing(self) -> Weighing:
        """What entries of gradients are multiplied by, once all outputs are known."""
        job = self.job
        return Weighing(self.groups, self.device, self.f0, job.scales, job.metric, job.along)

    @property
    def f0(self) -> list[np.ndarray]:
        """The outputs of every task in the order its batch was given, float64 [n, columns]."""
        return [self.run.outputs_of(group).numpy() for group in self.groups]


def trimmed(one: Features) -> Features:
    """Drop tokens whose output gradients are all zero: in the top block only keys and values have more than one."""
    if not isinstance(one, Outer):
        return one
    live = one.g.abs().amax((1, 3)) > 0
    most = int(live.sum(1).max())
    if 2 * most > live.shape[1]:
        return one
    index = torch.argsort(~live, dim=1, stable=True)[:, : max(most, 1), None]
    a = one.a.gather(1, index.expand(-1, -1, one.a.shape[-1]))
    wide = index[:, None].expand(-1, one.g.shape[1], -1, one.g.shape[-1])
    return Outer(a, one.g.gather(2, wide))


def _layers(run: Pass, extra: Sequence[Term] = ()) -> list[str]:
    """Return layer names from the top block down, then everything outside of blocks."""
    blocks = list(blocks_of(run.model))
    used = {t.layer for t in run.terms} | {t.layer for t in extra}
    return [name for name in reversed(blocks) if name in used] + sorted(used - set(blocks))


Found = tuple[str, list[dict[str, Features]]]


def _shares(
    job: Job, run: Pass, batches: Sequence[Batch], layers: Sequence[str], keep: bool
) -> tuple[list[float], list[float]]:
    """Return which part of the work the passes of each batch and the visit of each layer are, in per cent.

    Counted in multiply-adds: a forward pass, one backward pass a column, and half of a product of all rows. Where
    blocks are replayed, their backward passes belong to the visits.
    """
    blocks = blocks_of(run.model)
    weights = float(max(sum(p.numel() for block in blocks.values() for p in block.parameters()), 1))
    forward = [batch_tokens(batch) * weights for batch in batches]
    backward = [one * batch.group.columns for one, batch in zip(forward, batches, strict=True)]
    rows = float(sum(batch.rows.stop - batch.rows.start for batch in batches))
    visits = [sum(t.parameter.numel() for t in job.terms if t.layer == layer) * rows**2 / 2 for layer in layers]
    if keep:
        forward = [sum(pair) for pair in zip(forward, backward, strict=True)]
    else:
        replayed = (sum(forward) + sum(backward)) / max(len(blocks), 1)
        visits = [one + replayed * (layer in blocks) for one, layer in zip(visits, layers, strict=True)]
    whole = max(sum(forward) + sum(visits), 1.0)
    return [100 * one / whole for one in forward], [100 * one / whole for one in visits]


def _features(job: Job, run: Pass, batches: Sequence[Batch], keep: bool) -> Iterator[Found]:
    """Yield (layer, features by batch) for every layer, by the schedule chosen."""
    layers = _layers(run, [t for t in job.terms if t not in run.terms])
    passing, multiplying = _shares(job, run, batches, layers, keep)
    with tqdm(total=100.0, desc="kernel" + job.part, bar_format=BAR, disable=not job.progress) as bar:
        if not keep:
            try:
                sweep = Sweep(run, batches)
            except Unswept as reason:
                log.warning("activations are kept, not recomputed: %s", reason)
            else:
                bar.update(sum(passing))
                yield from _swept(sweep, layers, lambda: bar.update(multiplying.pop(0)))
                return
        kept = []
        for batch, share in zip(batches, passing, strict=True):
            kept.append(whole_pass(run, batch))
            bar.update(share)
        for layer, share in zip(layers, multiplying, strict=True):
            names = [t.name for t in run.terms if t.layer == layer]
            yield layer, [{name: one.pop(name) for name in names if name in one} for one in kept]
            bar.update(share)


def _swept(sweep: Sweep, layers: Sequence[str], step: Callable[[], Any]) -> Iterator[Found]:
    outside: list[dict[str, Features]] | None = None
    for layer in layers:
        if layer in sweep.blocks:
            yield layer, sweep.layer(layer)
        else:
            outside = sweep.outside() if outside is None else outside
            names = {t.name for t in sweep.run.terms if t.layer == layer}
            yield layer, [{name: one[name] for name in names if name in one} for one in outside]
        step()
