"""How gradient rows are multiplied: float32, or faster and slower ways by name, each with the error it costs.

| name | how | error of K | centred |
|---|---|---|---|
| `float32` | float32 products over at most 32,768 entries, added in float64 | 6e-8 | 4e-7 |
| `float64` | exact but for the rounding of the rows | 0 | 0 |
| `fp16x2` | two halves of 11 bits for each number, rows scaled; three products of half precision | 4e-8 | 2e-7 |
| `tf32` | numbers of 11 bits | 3e-5 | 5e-5 |
| `bf16` | numbers of 8 bits | 2e-4 | 4e-4 |

The errors are relative (Frobenius), of the gradients of 24 real prompts in four attention weights of SmolLM2-135M
against float64, and with the mean over examples taken out of K; passes in float32 cost about 2e-6 beside them.
They were measured on a CPU, which rounds as the device does and multiplies in float32. Half precision gains nothing
there: these modes are meant for tensor cores, which multiply it with float32 sums. Passes in bfloat16 are another
thing (``dtype``), and cost 2.5e-2.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from stopwise.kernel.float32 import product_precision

MODES = ("float32", "float64", "fp16x2", "tf32", "bf16")
SHORT = 4096  # entries that a product of halves may reduce over: tensor cores sum in float32, and less carefully
LARGEST = 256.0  # of a scaled row: sums of 4,096 squares of it stay far below what float32 holds


class Operand:
    """Rows made ready for products of one mode: [m, k], or [tiles, m, k] whose products are added in float64."""

    def __init__(self, rows: torch.Tensor, mode: str):
        self.mode, self.scale = mode, None
        if mode == "float32":
            self.parts = [rows]
        elif mode == "float64":
            self.parts = [rows.double()]
        elif mode == "tf32":
            self.parts = [rows if rows.is_cuda else rounded_to_tf32(rows)]
        elif mode == "bf16":
            self.parts = [rows.to(torch.bfloat16)]
        else:
            largest = rows.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
            scale = largest / LARGEST
            whole = rows / scale
            high = whole.to(torch.float16)
            self.parts, self.scale = [high, (whole - high.to(whole.dtype)).to(torch.float16)], scale.double()

    def product(self, left: slice, right: slice) -> torch.Tensor:
        """Return the inner products [rows of left, rows of right]."""
        left_parts, right_parts = [p[..., left, :] for p in self.parts], [p[..., right, :] for p in self.parts]
        if self.scale is None:
            found = _times(left_parts[0], right_parts[0])
        else:
            (high, low), (other_high, other_low) = left_parts, right_parts
            found = _times(high, other_high) + _times(high, other_low) + _times(low, other_high)
            found = found * (self.scale[..., left, :] * self.scale[..., right, :].mT)
        return found if found.ndim == 2 else found.sum(0, dtype=torch.float64)


def _times(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return left right^T; of halves the float32 sums."""
    if left.dtype not in (torch.float16, torch.bfloat16):
        return left @ right.mT
    if left.is_cuda and left.ndim == 3:
        return torch.stack([_times(*pair) for pair in zip(left, right, strict=True)])
    if left.is_cuda:
        return torch.mm(left, right.T, out_dtype=torch.float32)
    return left.float() @ right.float().mT


def rounded_to_tf32(rows: torch.Tensor) -> torch.Tensor:
    """Return float32 numbers rounded to the 10 bits behind the point that TF32 multiplies."""
    bits = rows.contiguous().view(torch.int32)
    return ((bits + 0x0FFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


def longest_sum(mode: str, tile: int) -> int:
    """Return how many entries one product of a mode may reduce over."""
    return min(tile, SHORT) if mode in ("fp16x2", "bf16") else tile


@contextmanager
def precision_of(mode: str, device: torch.device) -> Iterator[None]:
    """Let a device's float32 products be TF32 for the time of a block, where the mode is."""
    with product_precision("cuda", "tf32") if mode == "tf32" and device.type == "cuda" else nullcontext():
        yield


def checked(mode: str) -> str:
    """Return a mode; ValueError for one that is not."""
    if mode not in MODES:
        raise ValueError(f"kernel.products: {mode!r} is not one of {', '.join(MODES)}")
    return mode
