"""Stored Jacobian rows, whole or as a seeded sketch: gradient features for uses beyond the kernel."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from stopwise.kernel.engine import Engine
from stopwise.kernel.formulas import Dense, Outer, Sparse, Term, stored_transposed
from stopwise.kernel.ntk import prepared
from stopwise.kernel.products import (
    TILE,
    Blocks,
    Layout,
    Part,
    add_term,
    dense_tiles,
    merged_entries,
    runs_of,
    weight_tiles,
)
from stopwise.kernel.weighing import row_order
from stopwise.network.parameters import Subset

Place = Callable[[Term, Sequence[Part]], None]


@dataclass(frozen=True)
class Sketch:
    """Sketched rows [m, dimension] float64 and, where asked for, how well their inner products keep the kernel.

    ``error``: relative Frobenius error of rows rows^T against ``exact``, the Gram matrix of the same passes.
    """

    rows: np.ndarray
    exact: np.ndarray | None = None
    error: float | None = None


def jacobian_rows(
    model: nn.Module,
    batch: Mapping[str, torch.Tensor],
    verbalizers: Sequence[int] | None = None,
    parameters: Subset = "attention",
    outputs: str = "contrast",
    limit_gb: float = 4.0,
    layers: Sequence[str] | None = None,
) -> tuple[np.ndarray, dict[str, slice]]:
    """Return J [m, P] in the model's precision and each parameter's columns, parameters in name order.

    Raises ValueError, before anything runs, when the rows would take more than ``limit_gb`` (10^9 bytes each).
    """
    with prepared(model, {"a": batch}, verbalizers, parameters, outputs, layers=layers) as job:
        engine = Engine(job)
        total = sum(term.parameter.numel() for term in job.terms)
        rows = len(engine.groups[0].rows)
        width = 8 if job.terms[0].parameter.dtype == torch.float64 else 4
        if rows * total * width > limit_gb * 1e9:
            size = rows * total * width / 1e9
            raise ValueError(
                f"kernel.store: full needs {size:.1f} GB for {rows} rows of {total:,} parameters; "
                f"the limit is {limit_gb:g} GB. Use sketch, fewer examples or a smaller subset"
            )
        found = torch.zeros(rows, total, dtype=torch.float64 if width == 8 else torch.float32)
        where, start = {}, 0
        for term in job.terms:
            where[term.name] = slice(start, start + term.parameter.numel())
            start += term.parameter.numel()
        for visit in engine.layers():
            for term, parts in visit.terms:
                _place(term, parts, found[:, where[term.name]])
        ordered = np.empty(found.shape, found.numpy().dtype)
        ordered[row_order(engine.groups[0])] = found.numpy()
    return ordered, where


def _place(term: Term, parts: Sequence[Part], rows: torch.Tensor) -> None:
    """Write one parameter's gradients, in its own layout, into its columns."""
    if not parts:
        return
    kind = parts[0][1]
    if isinstance(kind, Outer):
        turned = stored_transposed(term)
        view = rows.view(len(rows), *term.parameter.shape)
        for tile, outs, ins in weight_tiles(parts, len(rows)):
            block = tile.view(len(rows), outs.stop - outs.start, ins.stop - ins.start)
            if turned:
                view[:, ins, outs] = block.transpose(1, 2).cpu()
            else:
                view[:, outs, ins] = block.cpu()
    elif isinstance(kind, Dense):
        rows.copy_(torch.cat(list(dense_tiles(parts, len(rows), False)), 1))
    else:
        keys, vectors = merged_entries(parts, len(rows))
        view = rows.view(len(rows), term.parameter.shape[0], -1)
        view[(keys % len(rows)).cpu(), (keys // len(rows)).cpu()] = vectors.to(view.dtype).cpu()


def jacobian_sketch(
    model: nn.Module,
    batch: Mapping[str, torch.Tensor],
    dimension: int = 1024,
    seed: int = 0,
    verbalizers: Sequence[int] | None = None,
    parameters: Subset = "attention",
    outputs: str = "contrast",
    layers: Sequence[str] | None = None,
    exact: bool = False,
) -> Sketch:
    """Return a random projection of J's rows to ``dimension`` columns that keeps inner products.

    Every parameter entry is added, with a random sign, to one of the columns (a stratified CountSketch; Charikar, Chen
    and Farach-Colton, 2002): inner products are unbiased, with relative error about sqrt(2/dimension). The projection
    depends on ``seed`` and the parameters only, so that sketches of other examples, batches or shards (which add up)
    belong together. ``exact``: whether the Gram matrix is computed too, to tell the sketch's error. Cost: the passes
    and one pass over J's entries, never stored; with ``exact`` the kernel's products beside.
    """
    if dimension < 1:
        raise ValueError(f"kernel.sketch dimension must be at least 1, found {dimension}")
    with prepared(model, {"a": batch}, verbalizers, parameters, outputs, layers=layers) as job:
        engine = Engine(replace(job, pairs=[(0, 0)]))
        layout = Layout(tuple(engine.groups), ((0, 0),))
        blocks = Blocks(layout, engine.device) if exact else None
        found = torch.zeros(layout.rows, dimension, dtype=torch.float64, device=engine.device)
        for visit in engine.layers():
            for term, parts in visit.terms:
                if blocks is not None:
                    add_term(blocks, parts)
                _project_term(term, parts, found, seed)
        order = row_order(engine.groups[0])
    rows = np.empty(found.shape)
    rows[order] = found.cpu().numpy()
    if blocks is None:
        return Sketch(rows)
    blocks.finish()
    gram = np.empty((layout.rows, layout.rows))
    gram[np.ix_(order, order)] = blocks.matrices[0].cpu().numpy()
    return Sketch(rows, gram, float(np.linalg.norm(rows @ rows.T - gram) / np.linalg.norm(gram)))


def _project_term(term: Term, parts: Sequence[Part], sketch: torch.Tensor, seed: int) -> None:
    """Add one parameter's projected gradients to the sketch."""
    if not parts:
        return
    rows, kind = len(sketch), parts[0][1]
    if isinstance(kind, Sparse):
        keys, vectors = merged_entries(parts, rows)
        tables = keys // rows
        for run in runs_of(tables):
            generator = _generator(seed, term.name, int(tables[run.start]))
            sketch[keys[run] % rows] += _project(vectors[run], sketch.shape[1], generator)
        return
    if isinstance(kind, Outer):  # tiles of one width whatever the number of rows: the projection goes by them
        tiles: Iterator[torch.Tensor] = (tile for tile, _, _ in weight_tiles(parts, rows, width=TILE))
    else:
        tiles = dense_tiles(parts, rows, False)
    for number, tile in enumerate(tiles):
        sketch += _project(tile, sketch.shape[1], _generator(seed, term.name, number))


def _project(tile: torch.Tensor, dimension: int, generator: torch.Generator) -> torch.Tensor:
    """Return [rows, dimension] float64: entries shuffled and signed at random, folded to the dimension and summed."""
    width = -(-tile.shape[1] // dimension) * dimension
    signs = torch.randint(0, 2, (width,), generator=generator).mul_(2).sub_(1)
    order = torch.randperm(width, generator=generator)
    padded = nn.functional.pad(tile, (0, width - tile.shape[1]))
    mixed = (padded * signs.to(tile))[:, order.to(tile.device)]
    return mixed.view(len(tile), -1, dimension).sum(1).double()


def _generator(seed: int, name: str, number: int) -> torch.Generator:
    """Return a generator that depends on the seed, a parameter's name and a tile's (or table row's) number only."""
    digest = hashlib.sha256(f"{seed}/{name}/{number}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
