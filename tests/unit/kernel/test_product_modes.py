"""Each way to multiply gradients has the error that its table says, and its name is checked."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from kernel_reference import pico, prompts
from stopwise.kernel import product_modes
from stopwise.kernel.ntk import empirical_ntk
from stopwise.kernel.product_modes import MODES, Operand, longest_sum, rounded_to_tf32
from stopwise.kernel.products import TILE, Blocks, Layout, side_by_side, sizes_on, slabs

# Between which bounds: what the module's table says of real gradients, with room for these random ones.
BOUNDS = {
    "float32": (1e-8, 3e-7),
    "float64": (0.0, 1e-13),
    "fp16x2": (1e-9, 1e-7),
    "tf32": (1e-6, 5e-5),
    "bf16": (1e-5, 4e-4),
}


def error(mode):
    """Return the error of rows that share a part, as gradients do, and differ much in size; each counts alike."""
    generator = torch.Generator().manual_seed(0)
    shared, own = torch.randn(1, TILE, generator=generator), torch.randn(16, TILE, generator=generator)
    rows = (shared + 0.3 * own) * torch.rand(16, 1, generator=generator) ** 8
    exact, whole = rows.double() @ rows.double().T, slice(0, 16)
    found = torch.zeros_like(exact)
    for columns in slabs(rows.shape[1], longest_sum(mode, TILE)):
        found += Operand(rows[:, columns], mode).product(whole, whole)
    size = rows.double().norm(dim=1)
    scale = size[:, None] * size
    return float(((found - exact) / scale).norm() / (exact / scale).norm())


@pytest.mark.parametrize("mode", MODES)
def test_errors_are_of_the_size_that_the_table_says(mode):
    low, high = BOUNDS[mode]
    assert low <= error(mode) < high


def test_halves_are_as_exact_as_float32_and_single_ones_are_not():
    assert error("fp16x2") < error("float32") < error("tf32") / 5 < error("bf16") / 20


def test_tf32_keeps_eleven_bits():
    exact = torch.tensor([1.0, 1 + 2**-10, -3.5, 0.0])
    assert torch.equal(rounded_to_tf32(exact), exact)
    assert float(rounded_to_tf32(torch.tensor([1 + 2**-12]))[0]) == 1.0


def test_a_kernel_takes_the_mode_and_refuses_an_unknown_one():
    model, batch = pico("gpt2", torch.float32), prompts([5, 3])
    exact = empirical_ntk(model, batch, products="float64").matrix
    size = abs(exact).max()
    assert abs(empirical_ntk(model, batch, products="fp16x2").matrix - exact).max() < 1e-6 * size
    assert abs(empirical_ntk(model, batch, products="bf16").matrix - exact).max() > 1e-5 * size
    with pytest.raises(ValueError, match=r"kernel.products: 'fp8' is not one of float32, float64, fp16x2"):
        empirical_ntk(model, batch, products="fp8")
    assert product_modes.SHORT < TILE


def test_tiles_side_by_side_cover_every_column_once():
    rows = torch.arange(3 * 23).view(3, 23)
    for count in (1, 2, 4, 5):
        tiles = list(side_by_side(rows, count, 5))
        assert torch.equal(torch.cat([t.transpose(0, 1).flatten(1) for t in tiles], 1), rows)
        assert all(len(t) <= count and t.shape[2] <= 5 for t in tiles)


def test_tiles_at_once_have_room_for_the_product_of_two_blocks(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    slab = sizes_on("cpu").slab
    left, right = (SimpleNamespace(rows=range(count), first_row=first) for count, first in ((2000, 0), (3000, 2000)))
    for pairs, largest in [(((0, 1),), 2000 * 3000), (((0, 0),), 2000 * sizes_on("cpu").panel_of(2000))]:
        blocks = Blocks(Layout((left, right), pairs), torch.device("cpu"))
        assert blocks._at_once() == max(1, min(16, slab // (4 * largest)))


def test_products_by_several_threads_are_those_of_one(monkeypatch):
    group = SimpleNamespace(rows=range(96), first_row=0)
    rows = torch.randn(96, 70_001, generator=torch.Generator().manual_seed(0))
    found = {}
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        blocks = Blocks(Layout((group,), ((0, 0),)), torch.device("cpu"))
        blocks.add_rows(rows)
        blocks.finish()
        found[threads] = blocks.matrices[0]
    exact = rows.double() @ rows.double().T
    for matrix in found.values():
        # Float32 rounding of sums over at most 32,768 entries, as in the table of the modes.
        assert torch.linalg.norm(matrix - exact) < 1e-6 * torch.linalg.norm(exact)
