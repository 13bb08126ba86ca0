"""Attention on a device: fused kernels for grouped heads, gradients in one order, the model left as it was."""

from __future__ import annotations

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kernel_reference import pico, prompts
from stopwise.network import attention
from stopwise.network.attention import steady_attention
from stopwise.network.forward import class_outputs


@pytest.fixture
def called(monkeypatch):
    """Note what reaches PyTorch's attention, and whether it has to be deterministic then."""
    seen, own = [], torch.nn.functional.scaled_dot_product_attention

    def spy(query, key, value, **named):
        seen.append(
            (query.shape[1], key.shape[1], named.get("enable_gqa", False), torch.are_deterministic_algorithms_enabled())
        )
        return own(query, key, value, **named)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    return seen


def gradients(model, batch):
    model.requires_grad_(True)
    f = class_outputs(model, batch)
    return torch.autograd.grad(f.sum(), [p for p in model.parameters() if p.ndim == 2], allow_unused=True)


def test_grouped_heads_are_repeated_in_float32(called):
    model, batch = pico("llama", torch.float32, attention="sdpa"), prompts([9, 5])
    wanted = gradients(model, batch)
    assert all(grouped for *_, grouped, _ in called)  # without it, they go to the plain kernel
    called.clear()
    with steady_attention("cuda"):
        found = gradients(model, batch)
    assert {(heads, keys, grouped) for heads, keys, grouped, _ in called} == {(4, 4, False)}
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, wanted, strict=True) if a is not None)


def test_long_prompts_are_differentiated_in_one_order(called, monkeypatch):
    monkeypatch.setattr(attention, "ONE_BLOCK", 4)
    model, batch = pico("llama", torch.float64, attention="sdpa"), prompts([9, 5])
    wanted = gradients(model, batch)
    called.clear()
    with steady_attention("cuda"):
        found = gradients(model, batch)
        again = gradients(model, batch)
    layers = len(model.model.layers)
    assert [strict for *_, strict in called] == 2 * (layers * [False] + layers * [True])
    assert not torch.are_deterministic_algorithms_enabled()
    for a, b, c in zip(found, again, wanted, strict=True):
        assert a is None or (torch.equal(a, b) and torch.allclose(a, c, atol=1e-12))


def test_attention_is_put_back_and_the_cpu_left_alone():
    before = ALL_ATTENTION_FUNCTIONS["sdpa"]
    with steady_attention("cpu"):
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is before
    with steady_attention("cuda"):
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is not before
    with pytest.raises(RuntimeError), steady_attention("cuda"):
        raise RuntimeError
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is before
