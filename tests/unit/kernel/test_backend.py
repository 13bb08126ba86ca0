"""The fast float32 backend is used only where it is float32, and never left on."""

from __future__ import annotations

import pytest
import torch

from kernel_reference import pico, prompts
from stopwise.kernel import float32 as backend
from stopwise.kernel.ntk import empirical_ntk


@pytest.fixture(autouse=True)
def fresh():
    backend.onednn_is_float32.cache_clear()
    kinds = torch.backends, torch.backends.mkldnn.matmul, torch.backends.cuda.matmul
    before = [kind.fp32_precision for kind in kinds]
    yield
    for kind, precision in zip(kinds, before, strict=True):
        kind.fp32_precision = precision
    backend.onednn_is_float32.cache_clear()


@pytest.mark.parametrize("before", ["ieee", "tf32"])
def test_the_setting_is_restored_also_after_an_error(before):
    torch.backends.mkldnn.matmul.fp32_precision = before
    with pytest.raises(RuntimeError), backend.float32_products():
        raise RuntimeError
    assert torch.backends.mkldnn.matmul.fp32_precision == before


@pytest.mark.parametrize("kind", [torch.backends, torch.backends.cuda.matmul, torch.backends.mkldnn.matmul])
def test_a_kernel_can_be_computed_after_any_setting_of_precision(kind):
    """As after TrainingArguments(tf32=True), which sets one backend's own: the older setting can no longer be read."""
    wanted = empirical_ntk(pico("llama", torch.float32), prompts([5, 3])).matrix
    kind.fp32_precision = "tf32"
    assert (empirical_ntk(pico("llama", torch.float32), prompts([5, 3])).matrix == wanted).all()
    assert kind.fp32_precision == "tf32"


@pytest.mark.parametrize(("amx", "error"), [(True, 0.0), (False, 2e-3)])
def test_tile_units_or_an_inexact_product_keep_the_default(monkeypatch, amx, error):
    monkeypatch.setattr(backend, "has_amx", lambda: amx)
    monkeypatch.setattr(backend, "product_error", lambda precision: error)
    with backend.float32_products() as chosen:
        assert chosen == "ieee"
        assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"


def test_whatever_is_chosen_is_float32():
    with backend.float32_products() as chosen:
        assert backend.product_error(chosen) < backend.LIMIT


def test_the_probe_sees_bfloat16():
    a = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    rounded = (a.bfloat16() @ a.bfloat16()).double()
    exact = a.double() @ a.double()
    assert float((rounded - exact).norm() / exact.norm()) > 10 * backend.LIMIT


def test_a_gpu_computes_in_full_float32():
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    with backend.float32_products("cuda"):
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
    assert torch.backends.cuda.matmul.fp32_precision == "tf32"
