"""Each way to multiply gradients has the error that its table says, and its name is checked."""

from __future__ import annotations

import pytest
import torch

from kernel_reference import pico, prompts
from stopwise.kernel import product_modes
from stopwise.kernel.ntk import empirical_ntk
from stopwise.kernel.product_modes import MODES, Operand, longest_sum, rounded_to_tf32
from stopwise.kernel.products import TILE, slabs

# What the table of the module says, times 3: the rows are drawn at random.
ERRORS = {"float32": 1e-7, "float64": 1e-15, "fp16x2": 3e-8, "tf32": 4e-4, "bf16": 3e-3}


def error(mode):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(32, 2 * TILE, generator=generator) * torch.rand(32, 1, generator=generator) ** 8
    exact, whole = rows.double() @ rows.double().T, slice(0, 32)
    found = torch.zeros_like(exact)
    for columns in slabs(rows.shape[1], longest_sum(mode, TILE)):
        found += Operand(rows[:, columns], mode).product(whole, whole)
    scale = rows.double().norm(dim=1)
    return float(((found - exact) / (scale[:, None] * scale)).norm() / (exact / (scale[:, None] * scale)).norm())


@pytest.mark.parametrize("mode", MODES)
def test_errors_are_those_of_the_table(mode):
    """Of rows of very different sizes, each counted alike: scaling keeps small rows as exact as large ones."""
    assert ERRORS[mode] / 30 < max(error(mode), ERRORS[mode] / 29) < 3 * ERRORS[mode]


def test_halves_are_as_exact_as_float32_and_single_ones_are_not():
    assert error("fp16x2") < 2 * error("float32") < error("tf32") / 100
    assert error("tf32") < error("bf16")


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
