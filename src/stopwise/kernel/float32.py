"""The float32 matrix-product backend: the fastest one that is still float32, for the time of a block.

On CPUs, precision "medium" routes products through oneDNN, which on machines without bfloat16 tile units computes them
in full float32, often twice as fast as the default. With such units (AMX) the same switch rounds to bfloat16, so it is
used only where they are absent *and* a probe of its error agrees. On CUDA, TF32 is off.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch

log = logging.getLogger(__name__)

# Largest relative error accepted of a product in float32: rounding gives 1e-7 to 5e-7, bfloat16 inputs 2e-3.
LIMIT = 2e-6
SHAPES = ((128, 576, 192), (96, 4096, 96), (8, 48, 64))  # passes, Gram tiles, per-example gradients


@contextmanager
def float32_products(device: torch.device | str = "cpu") -> Iterator[str]:
    """Set the precision of float32 products on a device, yield its name, and restore what was set before."""
    before = torch.get_float32_matmul_precision()
    chosen = "medium" if torch.device(device).type == "cpu" and onednn_is_float32() else "highest"
    torch.set_float32_matmul_precision(chosen)
    try:
        yield chosen
    finally:
        torch.set_float32_matmul_precision(before)


@functools.cache
def onednn_is_float32() -> bool:
    """Tell whether precision "medium" may be used here: no AMX, and products as exact as float32 makes them."""
    if not torch.backends.mkldnn.is_available() or has_amx():
        return False
    error = product_error("medium")
    if error > LIMIT:
        log.info("oneDNN rounds float32 products (relative error %.1e): it is not used", error)
    return error <= LIMIT


def has_amx() -> bool:
    """Tell whether the CPU has bfloat16 tile units."""
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(supported()) if supported else True


def product_error(precision: str) -> float:
    """Return the largest relative Frobenius error of float32 products against float64 under a precision setting."""
    before = torch.get_float32_matmul_precision()
    generator = torch.Generator().manual_seed(0)
    errors = []
    torch.set_float32_matmul_precision(precision)
    try:
        for rows, inner, cols in SHAPES:
            a, b = (torch.randn(*shape, generator=generator) for shape in ((rows, inner), (inner, cols)))
            exact = a.double() @ b.double()
            single = a @ b
            batched = torch.bmm(a.expand(2, -1, -1), b.expand(2, -1, -1))[1]
            errors += [float((found.double() - exact).norm() / exact.norm()) for found in (single, batched)]
    finally:
        torch.set_float32_matmul_precision(before)
    return max(errors)
