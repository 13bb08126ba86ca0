"""The engine room of the kernel: plans the passes, runs them, and adds up Gram blocks module by module."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from stopwise.kernel.fallback import Probe, fallback_features, probe
from stopwise.kernel.formulas import Features, Outer, Term, stored_transposed
from stopwise.kernel.memory import Needs, needs
from stopwise.kernel.passes import TOKENS_PER_BATCH, Batch, Group, Pass, batches_of, make_groups, whole_pass
from stopwise.kernel.products import Blocks, Layout, add_term
from stopwise.kernel.sweep import Sweep, Unswept
from stopwise.network.architecture import blocks_of
from stopwise.network.batches import MAX_PADDING, Packed

log = logging.getLogger(__name__)


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
    by: str = "layer"
    memory_gb: float | None = None
    progress: bool = False
    schedule: str = "auto"  # keep | sweep | auto
    tokens_per_batch: int = TOKENS_PER_BATCH
    max_padding: float = MAX_PADDING


@dataclass
class Part:
    """The additive parts of one kernel block: float64 matrices by layer (or module), row norms of a by module."""

    shape: tuple[int, int]
    matrices: dict[str, np.ndarray] = field(default_factory=dict)
    norms: dict[str, np.ndarray] = field(default_factory=dict)


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
        self._group(job.tokens_per_batch)
        filled = [group for group in self.groups if len(group.packed)]
        self.probed = probe(self.run, filled[0]) if filled else Probe()
        if self.probed.broken:
            self._try_singly(filled[0])
        self.run.terms = [t for t in job.terms if t not in self.probed.broken]

    def _group(self, tokens_per_batch: int) -> None:
        self.groups = make_groups(self.job.tasks, self.job.outputs, tokens_per_batch, self.job.max_padding)
        self.batches = batches_of(self.groups)

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
        extra = fallback_features(Pass(self.job.model, broken, self.job.outputs), self.batches, broken)
        keep = self.keeps()
        top = next(reversed(blocks_of(self.job.model)), None)
        for layer, found in _features(self.job, self.run, self.batches, keep):
            terms: list[tuple[Term, list[tuple[Batch, Features]]]] = []
            for term in self.job.terms:
                if term.layer != layer:
                    continue
                parts = []
                for batch, one, other in zip(self.batches, found, extra, strict=True):
                    feature = one.pop(term.name, None) or other.pop(term.name, None)
                    if feature is not None:
                        parts.append((batch, trimmed(feature) if layer == top else feature))
                terms.append((term, parts))
            yield Visit(layer, terms)

    def keeps(self) -> bool:
        """Whether all inputs and output gradients are kept (fast) or blocks replayed (frugal)."""
        if self.job.schedule != "auto" or not blocks_of(self.job.model):
            return self.job.schedule != "sweep"
        return self._needs().keeps

    def tile(self) -> int | None:
        """Return how many examples make a tile that fits in memory, None where all do."""
        examples = sum(len(group.packed) for group in self.groups)
        return self._needs().tile(examples) if self.job.schedule == "auto" and examples else None

    def _needs(self) -> Needs:
        return needs(self.job.model, self.run, self.batches, self.probed, self.job.memory_gb)

    @property
    def f0(self) -> list[np.ndarray]:
        """The outputs of every task in the order its batch was given, float64 [n, columns]."""
        return [self.run.outputs_of(group).numpy() for group in self.groups]


def engine_parts(engine: Engine) -> tuple[list[Part], list[np.ndarray]]:
    """Return the parts of every pair's kernel in the order the batches were given, and f0 of every task."""
    job = engine.job
    layout = Layout(tuple(engine.groups), tuple(job.pairs))
    parts = [Part((len(engine.groups[a].rows), len(engine.groups[b].rows))) for a, b in job.pairs]
    for visit in engine.layers():
        with torch.no_grad():
            _add_layer(job, visit, layout, parts, engine.device)
    return parts, engine.f0


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


def _add_layer(job: Job, visit: Visit, layout: Layout, parts: list[Part], device: torch.device) -> None:
    """Add one layer's kernel, module by module in name order, to every pair's parts."""
    modules: dict[str, list[tuple[Term, list[tuple[Batch, Features]]]]] = {}
    for term, rows in visit.terms:
        modules.setdefault(term.module, []).append((term, rows))
    for module, terms in sorted(modules.items()):
        blocks = Blocks(layout, device)
        while terms:
            term, rows = terms.pop(0)
            add_term(blocks, rows, job.signed, scale=scale_of(term, rows, job.scales))
        blocks.finish()
        key = visit.layer if job.by == "layer" else module
        for part, (a, b), matrix in zip(parts, layout.pairs, blocks.matrices, strict=True):
            ordered = _as_given(matrix, layout, a, b)
            part.matrices[key] = part.matrices[key] + ordered if key in part.matrices else ordered
            squares = blocks.row_squares(a).clamp(min=0).cpu().numpy()
            part.norms[module] = np.empty(len(squares))
            part.norms[module][row_order(layout.groups[a])] = np.sqrt(squares)


def scale_of(
    term: Term, rows: Sequence[tuple[Batch, Features]], scales: Mapping[str, torch.Tensor] | None
) -> torch.Tensor | None:
    """Return a parameter's scales in the layout of its features: factors of weights make them [d_out, d_in]."""
    if scales is None:
        return None
    own = scales[term.name]
    return own.T if rows and isinstance(rows[0][1], Outer) and stored_transposed(term) else own


def row_order(group: Group) -> np.ndarray:
    """Return, for the sorted rows of a group, their places in the order its batch was given."""
    return (group.order[:, None] * group.columns + torch.arange(group.columns)).flatten().numpy()


def _as_given(matrix: torch.Tensor, layout: Layout, a: int, b: int) -> np.ndarray:
    """Undo the sorting by length of both sides."""
    found = np.empty(matrix.shape)
    found[np.ix_(row_order(layout.groups[a]), row_order(layout.groups[b]))] = matrix.cpu().numpy()
    return found
