"""The fast float32 backend is used only where it is float32, and never left on."""

from __future__ import annotations

import pytest
import torch

from stopwise.kernel import float32 as backend


@pytest.fixture(autouse=True)
def fresh():
    backend.onednn_is_float32.cache_clear()
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)
    backend.onednn_is_float32.cache_clear()


@pytest.mark.parametrize("before", ["highest", "high"])
def test_the_setting_is_restored_also_after_an_error(before):
    torch.set_float32_matmul_precision(before)
    with pytest.raises(RuntimeError), backend.float32_products():
        raise RuntimeError
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize(("amx", "error"), [(True, 0.0), (False, 2e-3)])
def test_tile_units_or_an_inexact_product_keep_the_default(monkeypatch, amx, error):
    monkeypatch.setattr(backend, "has_amx", lambda: amx)
    monkeypatch.setattr(backend, "product_error", lambda precision: error)
    with backend.float32_products() as chosen:
        assert chosen == "highest"
        assert torch.get_float32_matmul_precision() == "highest"


def test_whatever_is_chosen_is_float32():
    with backend.float32_products() as chosen:
        assert backend.product_error(chosen) < backend.LIMIT


def test_the_probe_sees_bfloat16():
    a = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    rounded = (a.bfloat16() @ a.bfloat16()).double()
    exact = a.double() @ a.double()
    assert float((rounded - exact).norm() / exact.norm()) > 10 * backend.LIMIT


def test_a_gpu_computes_in_full_float32():
    torch.set_float32_matmul_precision("high")
    with backend.float32_products("cuda") as chosen:
        assert chosen == "highest"
