"""Which form of a layer's Gram is cheaper, and what a layer costs: counted operations at measured speeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stopwise.layer_formulas import Outer

if TYPE_CHECKING:
    from stopwise.tiles import Layout, Part

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
