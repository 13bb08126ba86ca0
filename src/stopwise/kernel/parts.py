"""The additive parts of kernels: the products of each layer, added up on the device and put in order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from stopwise.kernel.engine import Engine, Visit
from stopwise.kernel.formulas import Features, Term
from stopwise.kernel.moments import Moments, moments_of
from stopwise.kernel.passes import Batch
from stopwise.kernel.products import Blocks, Layout, add_term, sizes_on, slabs
from stopwise.kernel.ranks import Ranks, multiplied
from stopwise.kernel.weighing import row_order


@dataclass
class Part:
    """The additive parts of one kernel block: float64 matrices by layer (or module), row norms of a by module.

    Where the sum is wanted alone: ``matrices["total"]``, ``total`` while it grows, and the ``moments`` of layers.
    ``moves`` [rows of a]: J d, where a direction d was given.
    """

    shape: tuple[int, int]
    matrices: dict[str, np.ndarray] = field(default_factory=dict)
    norms: dict[str, np.ndarray] = field(default_factory=dict)
    moments: dict[str, tuple[Moments, Moments | None]] = field(default_factory=dict)
    total: torch.Tensor | None = None
    moves: np.ndarray | None = None


def engine_parts(engine: Engine) -> tuple[list[Part], list[np.ndarray]]:
    """Return the parts of every pair's kernel in the order the batches were given, and f0 of every task."""
    job = engine.job
    layout = Layout(tuple(engine.groups), tuple(job.pairs), products=job.products)
    parts = [Part((len(engine.groups[a].rows), len(engine.groups[b].rows))) for a, b in job.pairs]
    shared = False
    with torch.no_grad():
        for visit in engine.layers():
            if job.ranks is not None:
                if not shared:  # the passes are done, and moments are taken along f0
                    _share_outputs(engine, job.ranks)
                    shared = True
                _add_over_ranks(engine, job.ranks, visit, layout, parts)
                continue
            add = _add_to_total if job.by == "total" else _add_layer
            add(engine, visit, layout, parts)
        if job.ranks is not None and not shared:
            _share_outputs(engine, job.ranks)
        layout.scratch.clear()
        moves = engine.weighing.moves
        for part, (a, b) in zip(parts, job.pairs, strict=True):
            part.moves = moves[a] if moves else None
            if part.total is not None:
                part.matrices["total"] = _as_given(part.total, layout, a, b)
                part.total = None
    return parts, engine.f0


def _modules(visit: Visit) -> Iterator[tuple[str, list]]:
    """Yield the terms of a layer by module in name order; what is taken from them is freed."""
    modules: dict[str, list[tuple[Term, list[tuple[Batch, Features]]]]] = {}
    for term, rows in visit.terms:
        modules.setdefault(term.module, []).append((term, rows))
    visit.terms.clear()
    yield from sorted(modules.items())


def _add_terms(engine: Engine, blocks: Blocks, terms: list) -> None:
    while terms:
        term, rows = terms.pop(0)
        add_term(blocks, rows, engine.job.signed, scale=engine.weighing.of(term, rows))


def _add_layer(engine: Engine, visit: Visit, layout: Layout, parts: list[Part]) -> None:
    """Add one layer's kernel, module by module in name order, to every pair's parts."""
    layer = _Layer(engine, visit.layer, layout, parts)
    for module, terms in _modules(visit):
        blocks = Blocks(layout, engine.device)
        _add_terms(engine, blocks, terms)
        blocks.finish()
        layer.add(module, blocks.matrices, [blocks.row_squares(a) for a, _ in layout.pairs])
    layer.finish()


class _Layer:
    """One layer's kernels of all pairs, to which its modules are added in name order: on the device, and copied once.

    Where modules are kept apart each is copied by itself.
    """

    def __init__(self, engine: Engine, name: str, layout: Layout, parts: list[Part]) -> None:
        self.engine, self.name, self.layout, self.parts = engine, name, layout, parts
        self.sums: list[torch.Tensor] = []

    def add(self, module: str, matrices: list[torch.Tensor], squares: list[torch.Tensor]) -> None:
        """Add one module's matrices, which are used up, and note its row norms."""
        for part, (a, _), own in zip(self.parts, self.layout.pairs, squares, strict=True):
            part.norms[module] = _norms(own, self.layout, a)
        if self.engine.job.by == "module":
            self._keep(module, matrices)
        elif self.sums:
            self.sums = [one.add_(more) for one, more in zip(self.sums, matrices, strict=True)]
        else:
            self.sums = matrices

    def finish(self) -> None:
        """Add the layer to what is kept of all."""
        if self.sums and self.engine.job.by == "total":
            _add_sums(self.engine, self.name, self.layout, self.parts, self.sums)
        elif self.sums:
            self._keep(self.name, self.sums)

    def _keep(self, key: str, matrices: list[torch.Tensor]) -> None:
        for part, (a, b), matrix in zip(self.parts, self.layout.pairs, matrices, strict=True):
            part.matrices[key] = _as_given(matrix, self.layout, a, b)


def _add_over_ranks(engine: Engine, ranks: Ranks, visit: Visit, layout: Layout, parts: list[Part]) -> None:
    """Add one layer's kernel, each module multiplied by the process whose turn it is."""
    modules: dict[str, list] = {}
    for number, (module, terms) in enumerate(_modules(visit)):
        owner, rows = ranks.owner(number), []
        for term, found in terms:
            here = {id(batch): one for batch, one in found}
            for at, batch in enumerate(engine.batches):
                one = ranks.features(here.pop(id(batch), None), ranks.owner(at), owner)
                if one is not None:
                    rows.append((term, batch, one))
        modules[module] = [(term, [(b, f) for t, b, f in rows if t is term]) for term, _ in terms]

    def multiply(module: str) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        blocks = Blocks(layout, engine.device)
        _add_terms(engine, blocks, modules.pop(module))
        blocks.finish()
        return blocks.matrices, [blocks.row_squares(a).contiguous() for a, _ in layout.pairs]

    layer = _Layer(engine, visit.layer, layout, parts)
    multiplied(ranks, sorted(modules), multiply, layer.add)
    layer.finish()


def _share_outputs(engine: Engine, ranks: Ranks) -> None:
    """Let every process know f0 of all batches."""
    f0 = engine.run.f0
    for at, batch in enumerate(engine.batches):
        key = batch.group.first_row, batch.start
        f0[key] = ranks.everywhere(f0.get(key), ranks.owner(at))


def _add_to_total(engine: Engine, visit: Visit, layout: Layout, parts: list[Part]) -> None:
    """Add one layer's kernel to the sum over all layers, which stays on the device; of the layer, its moments stay."""
    blocks = Blocks(layout, engine.device)
    sides = {a for a, _ in layout.pairs}
    for module, terms in _modules(visit):
        before = {a: blocks.row_squares(a).clone() for a in sides}
        _add_terms(engine, blocks, terms)
        for part, (a, _) in zip(parts, layout.pairs, strict=True):
            part.norms[module] = _norms(blocks.row_squares(a) - before[a], layout, a)
    blocks.finish()
    _add_sums(engine, visit.layer, layout, parts, blocks.matrices)


def _add_sums(engine: Engine, layer: str, layout: Layout, parts: list[Part], matrices: list[torch.Tensor]) -> None:
    """Add one layer's blocks, which are used up, to the sums over all layers."""
    for part, (a, b) in zip(parts, layout.pairs, strict=True):
        matrix = matrices.pop(0)
        left, right = engine.vectors(a), engine.vectors(b)
        if left is not None and right is not None:
            orders = [row_order(layout.groups[side]) for side in (a, b)]
            part.moments[layer] = moments_of(matrix, left, right, a == b, orders)
        part.total = matrix if part.total is None else part.total.add_(matrix)


def _norms(squares: torch.Tensor, layout: Layout, a: int) -> np.ndarray:
    """Return Euclidean norms of a group's rows in the order its batch was given."""
    found = np.empty(len(squares))
    found[row_order(layout.groups[a])] = np.sqrt(squares.clamp(min=0).cpu().numpy())
    return found


def _as_given(matrix: torch.Tensor, layout: Layout, a: int, b: int) -> np.ndarray:
    """Undo the sorting by length of both sides, on the device, and copy to the host; some rows at a time."""
    left, right = (torch.as_tensor(np.argsort(row_order(layout.groups[side])), device=matrix.device) for side in (a, b))
    found = np.empty(tuple(matrix.shape))
    step = max(1, sizes_on(matrix.device.type).ordered // max(matrix.shape[1], 1))
    for rows in slabs(len(matrix), step) if len(matrix) else []:
        found[rows] = matrix[left[rows]][:, right].cpu().numpy()
    return found
