"""Gram blocks of one parameter from its features: direct, factored, dense and sparse, in tiles added into float64.

A float32 product that reduces over all parameters at once is wrong by 1e-4 to 1e-3 (relative, Frobenius); tiles that
reduce over at most ``TILE`` entries and are added in float64 are right to about 1e-6.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from stopwise.kernel.formulas import Dense, Features, Outer, Sparse
from stopwise.kernel.passes import Batch, Group
from stopwise.kernel.product_modes import Operand, longest_sum, precision_of

TILE = 32_768  # entries that one float32 product may reduce over
PRODUCT = 1 << 24  # entries of one factored product: 64 MiB in float32


@dataclass(frozen=True)
class Sizes:
    """How much is done at once on one kind of device; no number depends on it but by rounding.

    ``slab``: entries of gradients formed at once (forming more than a tile is 1.3 times as fast on a CPU). ``panel``:
    rows of a panel of a symmetric block, of which only products below the diagonal of panels are computed. ``tokens``:
    the most of one pass. ``ordered``: entries of a kernel put in order at once, twice that beside the kernel.
    """

    slab: int = 1 << 25
    panel: int = 64
    tokens: int = 1024
    tile: int = TILE
    ordered: int = 1 << 22

    def panel_of(self, rows: int) -> int:
        """Return the rows of a panel of a block of so many rows: an eighth, so that little is multiplied twice."""
        return min(self.panel, max(Sizes.panel, -(-rows // 8)))


# A GPU takes as long for little as for much: larger products and passes, for which it has the memory. Not measured yet.
SIZES = {"cpu": Sizes(), "cuda": Sizes(slab=1 << 29, panel=1024, tokens=16_384, ordered=1 << 27)}


def sizes_on(kind: str) -> Sizes:
    """Return the sizes for a kind of device: ``cpu``, ``cuda``, or another, which goes by the CPU's."""
    return SIZES.get(kind, SIZES["cpu"])


# Picks of a tensor like the parameter, weights as [d_out, d_in], the entries that a slab is of: [k].
Pick = Callable[[torch.Tensor], torch.Tensor]
# Factors of a parameter's entries: a tensor like the parameter, or what finds them [k] from the gradient entries
# themselves [rows, k], which entries these are, and the rows they belong to, where these are some of all.
Scale = torch.Tensor | Callable[..., torch.Tensor]


def _scaled(entries: torch.Tensor, scale: Scale | None, pick: Pick) -> torch.Tensor:
    """Multiply gradient entries [rows, k] in place by their factors."""
    if scale is None:
        return entries
    return entries.mul_(scale(entries, pick) if callable(scale) else pick(scale).to(entries))


def _entries(at: Any, flat: bool = False) -> Pick:
    """Return what picks the entries at an index of a tensor, or of a flat one, as a vector."""
    return lambda like: (like.reshape(-1) if flat else like)[at].reshape(-1)


class Scratch:
    """One buffer that slabs of gradients are formed in, again and again: fresh memory costs as much as filling it."""

    def __init__(self) -> None:
        self._buffer = torch.empty(0)

    def clear(self) -> None:
        """Give the memory back; the next call takes it anew."""
        self._buffer = torch.empty(0)

    def take(self, like: torch.Tensor, rows: int, width: int) -> torch.Tensor:
        """Return a buffer [rows, width] of the type and device of ``like``, with whatever it holds."""
        if (
            self._buffer.numel() < rows * width
            or self._buffer.dtype != like.dtype
            or self._buffer.device != like.device
        ):
            self._buffer = like.new_empty(rows * width)
        return self._buffer[: rows * width].view(rows, width)


@dataclass(frozen=True)
class Layout:
    """Which blocks of the stacked rows are wanted: pairs of groups (a, b); a pair (a, a) is symmetric."""

    groups: tuple[Group, ...]
    pairs: tuple[tuple[int, int], ...]
    scratch: Scratch = field(default_factory=Scratch, compare=False)
    products: str = "float32"

    @property
    def rows(self) -> int:
        """All rows of all groups."""
        return sum(len(g.rows) for g in self.groups)

    def symmetric(self, group: int) -> bool:
        """Whether the group's own block is wanted, so that its row norms are on a diagonal."""
        return (group, group) in self.pairs


class Blocks:
    """Float64 Gram blocks [rows_a, rows_b] for the pairs of a layout; squared row norms where no diagonal has them."""

    def __init__(self, layout: Layout, device: torch.device):
        self.layout, self.device = layout, device
        groups = layout.groups
        self.matrices = [self._zeros(len(groups[a].rows), len(groups[b].rows)) for a, b in layout.pairs]
        self.squares = {i: self._zeros(len(g.rows)) for i, g in enumerate(groups) if not layout.symmetric(i)}

    def _zeros(self, *shape: int) -> torch.Tensor:
        return torch.zeros(*shape, dtype=torch.float64, device=self.device)

    def add_rows(self, rows: torch.Tensor) -> None:
        """Add the products of gradient rows [rows, k], in tiles; of a symmetric block only the lower half."""
        with precision_of(self.layout.products, self.device):
            for tiles in side_by_side(rows, self._at_once(), longest_sum(self.layout.products, TILE)):
                self._add_tiles(tiles)

    def _at_once(self) -> int:
        """Return how many tiles are multiplied at once: on a CPU one a thread, as far as their products have room.

        A product by one thread wastes less than one by all: two threads are 1.15 to 1.7 times as fast.
        """
        if self.device.type != "cpu":
            return 1
        sizes, counts = sizes_on("cpu"), [len(group.rows) for group in self.layout.groups]
        # Of a symmetric block a panel is multiplied at a time, of any other all of it.
        widths = [counts[a] * (sizes.panel_of(counts[a]) if a == b else counts[b]) for a, b in self.layout.pairs]
        return max(1, min(torch.get_num_threads(), sizes.slab // (4 * max(widths, default=1))))

    def _add_tiles(self, tiles: torch.Tensor) -> None:
        operand = Operand(tiles, self.layout.products)
        for matrix, (a, b) in zip(self.matrices, self.layout.pairs, strict=True):
            left, right = self._slice(a), self._slice(b)
            if a != b:
                matrix.add_(operand.product(left, right))
                continue
            count = left.stop - left.start
            for panel in slabs(count, sizes_on(tiles.device.type).panel_of(count)):
                here = slice(left.start + panel.start, left.start + panel.stop)
                matrix[panel, : panel.stop] += operand.product(here, slice(left.start, here.stop))
        for i, squares in self.squares.items():
            squares.add_(tiles[:, self._slice(i)].square().sum((0, 2)))

    def add_pair(self, left: Batch, right: Batch, product: torch.Tensor) -> None:
        """Add the product of two batches [rows of left, rows of right] wherever the layout wants it."""
        for matrix, (a, b) in zip(self.matrices, self.layout.pairs, strict=True):
            if left.group is self.layout.groups[a] and right.group is self.layout.groups[b]:
                matrix[self._within(left), self._within(right)] += product

    def wanted(self, left: Batch, right: Batch) -> bool:
        """Whether the product of two batches is needed: below the diagonal where it is symmetric."""
        pairs = self.layout.pairs
        known = [(self.layout.groups[a], self.layout.groups[b]) for a, b in pairs]
        hit = any(left.group is a and right.group is b for a, b in known)
        return hit and (left.group is not right.group or left.start >= right.start)

    def add_squares(self, batch: Batch, squares: torch.Tensor) -> None:
        """Add squared row norms of a batch whose group has no diagonal block."""
        for i, group in enumerate(self.layout.groups):
            if batch.group is group and i in self.squares:
                self.squares[i][self._within(batch)] += squares

    def row_squares(self, group: int) -> torch.Tensor:
        """Return the squared norms of a group's rows of J."""
        if group in self.squares:
            return self.squares[group]
        return self.matrices[self.layout.pairs.index((group, group))].diagonal()

    def finish(self) -> None:
        """Mirror symmetric blocks, always from the lower half, so that they are symmetric to the last bit."""
        for matrix, (a, b) in zip(self.matrices, self.layout.pairs, strict=True):
            if a == b:
                mirror(matrix)

    def _slice(self, group: int) -> slice:
        rows = self.layout.groups[group].rows
        return slice(rows.start, rows.stop)

    @staticmethod
    def _within(batch: Batch) -> slice:
        first = batch.group.first_row
        return slice(batch.rows.start - first, batch.rows.stop - first)


def mirror(matrix: torch.Tensor) -> None:
    """Copy the lower half of a square matrix to the upper one, in place."""
    for panel in slabs(len(matrix), 256):
        matrix[: panel.start, panel] = matrix[panel, : panel.start].T
        corner = matrix[panel, panel]
        corner.copy_(corner.tril() + corner.tril(-1).T)


Part = tuple[Batch, Features]


def add_term(
    blocks: Blocks,
    parts: Sequence[Part],
    signed: bool = False,
    factored: bool | None = None,
    scale: Scale | None = None,
) -> None:
    """Add one parameter's products to the blocks, from its features by batch.

    ``signed``: entries are replaced by their signs (the ``signgd`` kernel). ``scale``: entries are multiplied by those
    of a tensor like the parameter, or found from the entries (the ``adam`` kernel). Both need whole gradients.
    ``factored``: force a form for weights of linear layers; None lets the cost model choose.
    """
    if not parts:
        return
    first = parts[0][1]
    if isinstance(first, Outer):
        if factored is None:
            factored = factored_is_cheaper(parts, blocks.layout)
        if factored and not signed and scale is None:
            _factored(blocks, parts)
            return
        tiles = _direct_tiles(parts, blocks.layout.rows, blocks.layout.scratch, scale)
    elif isinstance(first, Dense):
        tiles = dense_tiles(parts, blocks.layout.rows, signed, scale)
    else:
        _sparse(blocks, parts, signed, scale)
        return
    for tile in tiles:
        blocks.add_rows(tile.sign_() if signed else tile)


def working(dtype: torch.dtype) -> torch.dtype:
    """Half precision is multiplied in float32."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def _direct_tiles(
    parts: Sequence[Part], rows: int, scratch: Scratch, scale: Scale | None = None
) -> Iterator[torch.Tensor]:
    """Yield per-example weight gradients [rows, k], a slab of output (or input) features at a time."""
    for tile, outs, ins in weight_tiles(parts, rows, scratch):
        yield _scaled(tile, scale, _entries((outs, ins)))


def weight_tiles(
    parts: Sequence[Part], rows: int, scratch: Scratch | None = None, width: int | None = None
) -> Iterator[tuple[torch.Tensor, slice, slice]]:
    """Yield (gradient rows [rows, outs * ins], output features, input features) of a linear layer's weight.

    The rows stand in a buffer that the next slab overwrites. ``width``: the most entries of one row, by default as many
    as make a slab.
    """
    scratch = Scratch() if scratch is None else scratch
    ready = []
    for batch, one in parts:
        assert isinstance(one, Outer)
        dtype = working(one.g.dtype)
        n, per_example, tokens, _ = one.g.shape
        g = one.g.to(dtype).reshape(n * per_example, tokens, -1)
        a = one.a.to(dtype)
        ready.append((batch.rows, g, a if per_example == 1 else a.repeat_interleave(per_example, 0)))
    d_out, d_in = ready[0][1].shape[-1], ready[0][2].shape[-1]
    room = _tile_width(sizes_on(ready[0][1].device.type).slab, rows) if width is None else width
    covered = sum(len(g) for _, g, _ in ready)
    for outs in slabs(d_out, max(1, room // d_in)):
        for ins in slabs(d_in, room):
            tile = scratch.take(ready[0][1], rows, (outs.stop - outs.start) * (ins.stop - ins.start))
            if covered < rows:
                tile.zero_()
            for where, g, a in ready:
                shape = (len(g), outs.stop - outs.start, ins.stop - ins.start)
                torch.bmm(g[:, :, outs].transpose(1, 2), a[:, :, ins], out=tile[where].view(shape))
            yield tile, outs, ins


def _tile_width(slab: int, rows: int) -> int:
    """Return the entries of a row formed at once: those of a slab, and a tile at least while that is a few slabs."""
    return max(1, slab // max(rows, 1), min(TILE, 4 * slab // max(rows, 1)))


def slabs(size: int, limit: int) -> list[slice]:
    """Cut a range into the fewest, most equal slabs of at most ``limit``."""
    count = -(-size // limit)
    step = -(-size // count)
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]


def side_by_side(rows: torch.Tensor, count: int, tile: int) -> Iterator[torch.Tensor]:
    """Yield the columns of rows [m, k] as views [tiles, m, columns], at most ``count`` tiles of at most ``tile``.

    ``count`` is at most ``tile``. What does not divide among the tiles comes as a last, narrow one.
    """
    for columns in slabs(rows.shape[1], count * tile):
        part = rows[:, columns]
        width = part.shape[1] // count
        if width:
            yield part[:, : count * width].unflatten(1, (count, width)).transpose(0, 1)
        if count * width < part.shape[1]:
            yield part[:, count * width :][None]


def dense_tiles(parts: Sequence[Part], rows: int, signed: bool, scale: Scale | None = None) -> Iterator[torch.Tensor]:
    """Yield whole gradients [rows, k]. For signs, a sum that cancels to rounding noise is the zero it stands for."""
    flat = []
    for batch, one in parts:
        assert isinstance(one, Dense)
        found = one.rows.to(working(one.rows.dtype))
        if signed and one.size is not None:
            found = found.masked_fill(found.abs() <= 64 * torch.finfo(one.rows.dtype).eps * one.size, 0)
        flat.append((batch.rows, found.flatten(0, 1).flatten(1)))
    width = flat[0][1].shape[1]
    for slab in slabs(width, TILE):
        tile = flat[0][1].new_zeros(rows, slab.stop - slab.start)
        for where, found in flat:
            tile[where] = found[:, slab]
        yield _scaled(tile, scale, _entries(slab, flat=True))


def _factored(blocks: Blocks, parts: Sequence[Part]) -> None:
    """Add sum_ts (a_it . a_js)(g_iat . g_jbs) for all pairs of batches, without any weight gradient."""
    for left, one in parts:
        assert isinstance(one, Outer)
        for right, other in parts:
            assert isinstance(other, Outer)
            if blocks.wanted(left, right):
                blocks.add_pair(left, right, _factored_product(one, other))
        aa, gg = one.a.double() @ one.a.double().mT, one.g.double() @ one.g.double().mT
        blocks.add_squares(left, (aa[:, None] * gg).sum((-2, -1)).flatten())


def _factored_product(left: Outer, right: Outer) -> torch.Tensor:
    """Return [n_a * columns_a, n_b * columns_b] in float64, some examples of the left at a time."""
    dtype = working(left.g.dtype)
    a_b, g_b = right.a.to(dtype), right.g.to(dtype)
    n_b, c_b, t_b, _ = g_b.shape
    c_a, t_a = left.g.shape[1:3]
    step = max(1, PRODUCT // (c_a * t_a * n_b * c_b * t_b))
    found = []
    for start in range(0, len(left.a), step):
        a, g = left.a[start : start + step].to(dtype), left.g[start : start + step].to(dtype)
        aa = (a.flatten(0, 1) @ a_b.flatten(0, 1).T).view(len(a), 1, t_a, n_b, 1, t_b)
        gg = (g.flatten(0, 2) @ g_b.flatten(0, 2).T).view(len(a), c_a, t_a, n_b, c_b, t_b)
        found.append((gg.mul_(aa)).sum((2, 5)).double().reshape(len(a) * c_a, n_b * c_b))
    return torch.cat(found)


def _sparse(blocks: Blocks, parts: Sequence[Part], signed: bool, scale: Scale | None = None) -> None:
    """Add products of table gradients: for every table row, those of the outputs whose prompts hold it."""
    keys, vectors = merged_entries(parts, blocks.layout.rows)
    tables, rows = keys // blocks.layout.rows, keys % blocks.layout.rows
    if signed:
        vectors = vectors.sign()
    if isinstance(scale, torch.Tensor):
        vectors = vectors * scale.to(vectors).reshape(len(scale), -1)[tables]
    for found in runs_of(tables):
        own = vectors[found]
        if callable(scale):
            table = int(tables[found.start])
            own = own * scale(own, _entries(table), rows[found])
        _scatter(blocks, rows[found], own)


def merged_entries(parts: Sequence[Part], rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return keys (table row * rows + output row), ascending and unique, and their summed vectors [entries, d]."""
    keys, vectors = [], []
    for batch, one in parts:
        assert isinstance(one, Sparse)
        n, per_example = one.vectors.shape[:2]
        where = torch.arange(batch.rows.start, batch.rows.stop, device=one.ids.device).view(n, per_example, 1)
        key = one.ids[:, None] * rows + where
        live = one.vectors.abs().amax(-1) > 0  # padding and prompts' unread ends carry no gradient
        keys.append(key[live])
        vectors.append(one.vectors[live].to(working(one.vectors.dtype)))
    unique, index = torch.cat(keys).unique(return_inverse=True)
    stacked = torch.cat(vectors)
    return unique, stacked.new_zeros(len(unique), stacked.shape[1]).index_add_(0, index, stacked)


def runs_of(values: torch.Tensor) -> Iterator[slice]:
    """Yield the slices of equal values in an ascending list."""
    counts = torch.unique_consecutive(values, return_counts=True)[1].tolist()
    start = 0
    for count in counts:
        yield slice(start, start + count)
        start += count


def _scatter(blocks: Blocks, rows: torch.Tensor, vectors: torch.Tensor) -> None:
    """Add the products of a few rows where they belong; of symmetric blocks everything, the mirror drops half."""
    groups = blocks.layout.groups
    inside = [(rows >= g.rows.start) & (rows < g.rows.stop) for g in groups]
    for matrix, (a, b) in zip(blocks.matrices, blocks.layout.pairs, strict=True):
        left, right = inside[a], inside[b]
        index = (rows[left] - groups[a].rows.start)[:, None], (rows[right] - groups[b].rows.start)[None]
        if index[0].numel() and index[1].numel():
            matrix[index] += (vectors[left] @ vectors[right].T).double()
    for i, squares in blocks.squares.items():
        squares[rows[inside[i]] - groups[i].rows.start] += vectors[inside[i]].double().square().sum(1)


# Cost of one entry of a factored product in multiply-adds of a matrix product: it is written, read and summed. A
# constant and not a timing of the day, so that the same input takes the same form, and gives the same bits, every time.
ENTRY_COST = 40.0


def factored_is_cheaper(parts: Sequence[Part], layout: Layout) -> bool:
    """Compare sum_ts (a.a)(g.g) with forming the gradients, for the layout's blocks."""
    outer = [one for _, one in parts if isinstance(one, Outer)]
    d_in, d_out = outer[0].a.shape[-1], outer[0].g.shape[-1]
    sizes: dict[int, list[float]] = {}
    for batch, one in parts:
        assert isinstance(one, Outer)
        n, columns, tokens, _ = one.g.shape
        entry = sizes.setdefault(batch.group.first_row, [0.0, 0.0, 0.0])
        entry[0] += n * tokens  # inputs
        entry[1] += n * columns * tokens  # output gradients
        entry[2] += n * columns  # rows
    form = sum(s[1] for s in sizes.values()) * d_in * d_out
    direct, factored = form, 0.0
    for a, b in layout.pairs:
        left, right = (sizes.get(layout.groups[i].first_row, [0.0] * 3) for i in (a, b))
        half = 0.6 if a == b else 1.0
        direct += half * left[2] * right[2] * d_in * d_out
        factored += half * (left[0] * right[0] * d_in + left[1] * right[1] * (d_out + ENTRY_COST))
    return factored < direct
