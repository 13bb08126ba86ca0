"""The engine room of the kernel: plans the passes, runs them, and adds up Gram blocks module by module."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psutil
import torch
from tqdm import tqdm

from stopwise.batches import Packed
from stopwise.fallback import Probe, fallback_features, probe
from stopwise.jacobian import (
    TOKENS_PER_BATCH,
    Batch,
    Pass,
    Sweep,
    Unswept,
    batches_of,
    blocks_of,
    make_groups,
    whole_pass,
)
from stopwise.layer_formulas import Features, Term
from stopwise.tiles import Blocks, Layout, add_term

log = logging.getLogger(__name__)

MEMORY_SHARE = 0.5  # of the memory that is free, when no limit is given


@dataclass
class Job:
    """One request: a frozen model, the terms, tasks (prompts, verbalizers), and the pairs of tasks wanted."""

    model: Any
    terms: Sequence[Term]
    tasks: Sequence[tuple[Packed, torch.Tensor]]
    pairs: Sequence[tuple[int, int]]
    outputs: str = "contrast"
    signed: bool = False
    by: str = "layer"
    memory_gb: float | None = None
    progress: bool = False
    schedule: str = "auto"  # keep | sweep | auto
    tokens_per_batch: int = TOKENS_PER_BATCH


@dataclass
class Part:
    """The additive parts of one kernel block: float64 matrices by layer (or module), row norms of a by module."""

    shape: tuple[int, int]
    matrices: dict[str, np.ndarray] = field(default_factory=dict)
    norms: dict[str, np.ndarray] = field(default_factory=dict)


def kernel_parts(job: Job) -> tuple[list[Part], list[np.ndarray]]:
    """Return the parts of every pair's kernel in the order the batches were given, and f0 of every task."""
    groups = make_groups(job.tasks, job.outputs, job.tokens_per_batch)
    run = Pass(job.model, job.terms, job.outputs)
    probed = probe(run, next(g for g in groups if len(g.packed))) if any(len(g.packed) for g in groups) else Probe()
    run.terms = [t for t in job.terms if t not in probed.broken]
    batches = batches_of(groups)
    extra = fallback_features(Pass(job.model, probed.broken, job.outputs), batches, probed.broken)
    layout = Layout(tuple(groups), tuple(job.pairs))
    parts = [Part((len(groups[a].rows), len(groups[b].rows))) for a, b in job.pairs]
    source = _features(job, run, batches, keep=_keeps(job, run, batches, probed))
    device = next(job.model.parameters()).device
    with torch.no_grad():
        for layer, found in source:
            _add_layer(job, layer, batches, [a | b for a, b in zip(found, extra, strict=True)], layout, parts, device)
    return parts, [run.outputs_of(group).numpy() for group in groups]


def _keeps(job: Job, run: Pass, batches: Sequence[Batch], probed: Probe) -> bool:
    """Whether all inputs and output gradients are kept (fast) or blocks replayed (frugal), by the memory allowed."""
    if job.schedule != "auto" or not blocks_of(job.model):
        return job.schedule != "sweep"
    tokens = [b.size * int(b.packed.lengths.max()) for b in batches]
    need = probed.feature_bytes * sum(tokens) + probed.graph_bytes * max(tokens, default=0)
    free = psutil.virtual_memory().available
    if next(job.model.parameters()).device.type == "cuda":
        free = torch.cuda.mem_get_info()[0]
    room = MEMORY_SHARE * free if job.memory_gb is None else job.memory_gb * 1e9
    log.debug("keeping activations would take %.2f GB of %.2f GB", need / 1e9, room / 1e9)
    return need <= room


def _layers(run: Pass, extra: Sequence[Term] = ()) -> list[str]:
    """Return layer names from the top block down, then everything outside of blocks."""
    blocks = list(blocks_of(run.model))
    used = {t.layer for t in run.terms} | {t.layer for t in extra}
    return [name for name in reversed(blocks) if name in used] + sorted(used - set(blocks))


Found = tuple[str, list[dict[str, Features]]]


def _features(job: Job, run: Pass, batches: Sequence[Batch], keep: bool) -> Iterator[Found]:
    """Yield (layer, features by batch) for every layer, by the schedule chosen."""
    layers = _layers(run, [t for t in job.terms if t not in run.terms])
    bar = tqdm(total=len(layers) + len(batches), desc="kernel", unit="step", disable=not job.progress)
    with bar:
        if not keep:
            try:
                sweep = Sweep(run, batches)
            except Unswept as reason:
                log.warning("activations are kept, not recomputed: %s", reason)
            else:
                bar.update(len(batches))
                yield from _swept(sweep, layers, bar.update)
                return
        kept = []
        for batch in batches:
            kept.append(whole_pass(run, batch))
            bar.update()
        for layer in layers:
            names = [t.name for t in run.terms if t.layer == layer]
            yield layer, [{name: one.pop(name) for name in names if name in one} for one in kept]
            bar.update()


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


def _add_layer(
    job: Job,
    layer: str,
    batches: Sequence[Batch],
    found: list[dict[str, Features]],
    layout: Layout,
    parts: list[Part],
    device: torch.device,
) -> None:
    """Add one layer's kernel, module by module in name order, to every pair's parts."""
    modules: dict[str, list[Term]] = {}
    for term in job.terms:
        if term.layer == layer:
            modules.setdefault(term.module, []).append(term)
    for module, terms in sorted(modules.items()):
        blocks = Blocks(layout, device)
        for term in terms:
            rows = [(batch, one.pop(term.name)) for batch, one in zip(batches, found, strict=True) if term.name in one]
            add_term(blocks, rows, job.signed)
        blocks.finish()
        key = layer if job.by == "layer" else module
        for part, (a, b), matrix in zip(parts, layout.pairs, blocks.matrices, strict=True):
            ordered = _as_given(matrix, layout, a, b)
            part.matrices[key] = part.matrices[key] + ordered if key in part.matrices else ordered
            squares = matrix.diagonal() if a == b else blocks.squares.get(a)
            if squares is not None:
                rows_given = _row_order(layout, a)
                norms = np.empty(len(rows_given))
                norms[rows_given] = squares.clamp(min=0).sqrt().cpu().numpy()
                part.norms[module] = norms


def _row_order(layout: Layout, group: int) -> np.ndarray:
    """Return, for the sorted rows of a group, their places in the order its batch was given."""
    one = layout.groups[group]
    return (one.order[:, None] * one.columns + torch.arange(one.columns)).flatten().numpy()


def _as_given(matrix: torch.Tensor, layout: Layout, a: int, b: int) -> np.ndarray:
    """Undo the sorting by length of both sides."""
    found = np.empty(matrix.shape)
    found[np.ix_(_row_order(layout, a), _row_order(layout, b))] = matrix.cpu().numpy()
    return found
