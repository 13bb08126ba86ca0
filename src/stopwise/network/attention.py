"""Attention on CUDA: a fast kernel where heads are grouped, and gradients that are the same every time.

transformers' ``sdpa`` hands grouped heads to PyTorch as they are; in float32 no fused kernel takes those, and the plain
one that remains writes out every score. Repeated for each query head, keys and values go to a fused kernel. The fused
kernels sum the gradients of long prompts in whatever order their thread blocks finish; told to be deterministic, they
keep one order, and cuBLAS, which the same switch concerns, is left alone because it is set for attention only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

SDPA = "sdpa"
# Tokens: the fused kernels work on at least so many keys at a time, and more of them may be summed in any order.
ONE_BLOCK = 64


@contextmanager
def steady_attention(device: torch.device | str) -> Iterator[None]:
    """Let the models' ``sdpa`` attention run as described above for the time of a block; on CUDA only."""
    if torch.device(device).type != "cuda":
        yield
        return
    before: Any = ALL_ATTENTION_FUNCTIONS[SDPA]

    def attend(
        module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *mask: Any, **named: Any
    ):
        return _attend(before, module, query, key, value, *mask, **named)

    ALL_ATTENTION_FUNCTIONS[SDPA] = attend
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS[SDPA] = before


def _attend(
    inner: Callable,
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    **named: Any,
) -> tuple[torch.Tensor, None]:
    """Attend by ``inner``; the interface is transformers'."""
    groups = query.shape[1] // key.shape[1]
    caller: Any = module
    if groups > 1 and query.dtype == torch.float32:
        key, value = (_repeated(one, groups) for one in (key, value))
        caller = _Ungrouped(module)

    def run(*tensors: torch.Tensor) -> torch.Tensor:
        return inner(caller, *tensors, attention_mask, **named)[0]

    tensors = (query, key, value)
    learning = torch.is_grad_enabled() and any(one.requires_grad for one in tensors)
    if key.shape[2] <= ONE_BLOCK or not learning or named.get("dropout"):  # dropout would be drawn anew
        return run(*tensors), None
    return _InOrder.apply(run, *tensors), None


def _repeated(heads: torch.Tensor, groups: int) -> torch.Tensor:
    """Return keys or values [n, heads, T, d] once for each query head of their group."""
    n, count, tokens, width = heads.shape
    return heads[:, :, None].expand(n, count, groups, tokens, width).reshape(n, count * groups, tokens, width)


class _Ungrouped(SimpleNamespace):
    """What ``sdpa`` reads of an attention module, its heads no longer grouped."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(num_key_value_groups=1, is_causal=getattr(module, "is_causal", True), training=module.training)


class _InOrder(torch.autograd.Function):
    """Attention whose backward pass runs it again, with gradients that are summed in one order."""

    @staticmethod
    def forward(ctx: Any, run: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> torch.Tensor:
        """Attend, and keep the inputs."""
        ctx.run = run
        ctx.save_for_backward(*tensors)
        return run(*tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of query, key and value."""
        tensors = [one.detach().requires_grad_(True) for one in ctx.saved_tensors]
        with torch.enable_grad(), _deterministic():
            return None, *torch.autograd.grad(ctx.run(*tensors), tensors, gradients[0])


@contextmanager
def _deterministic() -> Iterator[None]:
    """Ask PyTorch for deterministic kernels for the time of a block."""
    before = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("error")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)
