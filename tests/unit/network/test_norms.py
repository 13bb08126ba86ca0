"""Norms of large tensors."""

import pytest
import torch

from stopwise.network.norms import ROW, euclidean


@pytest.mark.parametrize("shape", [(0,), (1,), (ROW,), (3, ROW + 5), (7, 11, 13)])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-7), (torch.float64, 1e-14), (torch.bfloat16, 1e-7)])
def test_the_norm_is_that_of_double_precision(shape, dtype, error):
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    exact = float(tensor.double().norm())  # a row is added in float32: a few of its roundings
    assert abs(euclidean(tensor) - exact) <= error * exact


def test_a_tensor_that_is_not_contiguous_has_the_same_norm():
    tensor = torch.arange(12.0).view(3, 4)
    assert euclidean(tensor.T) == euclidean(tensor)


def test_what_is_not_finite_stays_so():
    assert euclidean(torch.tensor([1.0, float("inf")])) == float("inf")
