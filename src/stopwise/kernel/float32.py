"""The float32 matrix-product backend: the fastest one that is still float32, for the time of a block.

On CPUs, precision "bf16" routes products through oneDNN, which on machines without bfloat16 tile units computes them in
full float32, often twice as fast as the default. With such units (AMX) the same switch rounds to bfloat16, so it is
used only where they are absent *and* a probe of its error agrees. On CUDA, TF32 is off. PyTorch has an older setting
for all backends at once and refuses to read it once anybody used one backend's own: only the latter is used here.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

log = logging.getLogger(__name__)

# Largest relative error accepted of a product in float32: rounding gives 1e-7 to 5e-7, bfloat16 inputs 2e-3.
LIMIT = 2e-6
SHAPES = ((128, 576, 192), (96, 4096, 96), (8, 48, 64))  # passes, Gram tiles, per-example gradients


@contextmanager
def float32_products(device: torch.device | str = "cpu") -> Iterator[str]:
    """Set the precision of float32 products on a device, yield its name, and restore what was set before.

    ``bf16``: through oneDNN, which computes float32 here (see above). ``ieee``: the default backend.
    """
    kind = torch.device(device).type
    chosen = "bf16" if kind == "cpu" and onednn_is_float32() else "ieee"
    with product_precision(kind, chosen):
        yield chosen


@contextmanager
def product_precision(kind: str, precision: str) -> Iterator[None]:
    """Set PyTorch's name of the precision of one kind of device's products for the time of a block."""
    backends: Any = torch.backends
    backend = backends.cuda.matmul if kind == "cuda" else backends.mkldnn.matmul
    above = backends.cudnn.fp32_precision if kind == "cuda" else backends.mkldnn.fp32_precision
    before = backend.fp32_precision
    before = "none" if before == above else before  # it goes on following the setting above it
    backend.fp32_precision = precision
    try:
        yield
    finally:
        backend.fp32_precision = before


@functools.cache
def onednn_is_float32() -> bool:
    """Tell whether precision "bf16" may be used here: no AMX, and products as exact as float32 makes them."""
    if not torch.backends.mkldnn.is_available() or has_amx():
        return False
    error = product_error("bf16")
    if error > LIMIT:
        log.info("oneDNN rounds float32 products (relative error %.1e): it is not used", error)
    return error <= LIMIT


def has_amx() -> bool:
    """Tell whether the CPU has bfloat16 tile units."""
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(supported()) if supported else True


def product_error(precision: str) -> float:
    """Return the largest relative Frobenius error of the CPU's float32 products against float64 under a precision."""
    generator = torch.Generator().manual_seed(0)
    errors = []
    with product_precision("cpu", precision):
        for rows, inner, cols in SHAPES:
            a, b = (torch.randn(*shape, generator=generator) for shape in ((rows, inner), (inner, cols)))
            exact = a.double() @ b.double()
            single = a @ b
            batched = torch.bmm(a.expand(2, -1, -1), b.expand(2, -1, -1))[1]
            errors += [float((found.double() - exact).norm() / exact.norm()) for found in (single, batched)]
    return max(errors)
