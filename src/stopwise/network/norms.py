"""Euclidean norms of large tensors, in one pass over them and without a copy in double precision."""

from __future__ import annotations

import math

import torch

ROW = 512  # entries whose squares are added in the tensor's own precision; the rest is added in float64


def euclidean(tensor: torch.Tensor) -> float:
    """Return the Euclidean norm of a tensor of any shape, right to about 1e-7 of it in float32.

    Half precision is computed in float32.
    """
    flat = tensor.detach().reshape(-1)
    if flat.dtype in (torch.bfloat16, torch.float16):
        flat = flat.float()
    whole = flat.numel() // ROW * ROW
    rows = torch.linalg.vector_norm(flat[:whole].view(-1, ROW), dim=1).double().square().sum()
    return math.sqrt(float(rows + flat[whole:].double().square().sum()))
