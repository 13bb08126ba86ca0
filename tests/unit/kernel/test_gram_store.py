"""Stored rows are J itself; sketched rows keep its inner products, whatever the batches and shards."""

from __future__ import annotations

import numpy as np
import pytest

from kernel_reference import pico, plain_jacobian, prompts, relative
from stopwise.kernel import jacobian_rows as jacobian_rows_module
from stopwise.kernel import products
from stopwise.kernel.jacobian_rows import jacobian_rows, jacobian_sketch
from stopwise.kernel.ntk import empirical_ntk, kernel_layers
from stopwise.network.parameters import select_parameters

LENGTHS = [5, 9, 3, 7]


@pytest.mark.parametrize("arch", ["gpt2", "llama", "opt"])
def test_stored_rows_are_the_jacobian(arch):
    model, batch = pico(arch), prompts(LENGTHS)
    rows, where = jacobian_rows(model, batch, parameters="all")
    names = list(select_parameters(model, "all"))
    wanted = plain_jacobian(model, batch, names)
    assert list(where) == names
    assert relative(rows, wanted) < 5e-6  # float32 islands under padding


def test_rows_that_exceed_the_limit_are_refused_with_their_size():
    model, batch = pico("gpt2"), prompts(LENGTHS)
    total = sum(p.numel() for p in select_parameters(model, "all").values())
    with pytest.raises(ValueError, match=rf"8 rows of {total:,} parameters; the limit is 1e-05 GB"):
        jacobian_rows(model, batch, parameters="all", limit_gb=1e-5)


def test_sketch_keeps_inner_products_as_its_dimension_promises():
    model, batch = pico("gpt2"), prompts(LENGTHS)
    exact = empirical_ntk(model, batch, parameters="all").matrix
    errors = {}
    for dimension in (64, 1024):
        found = [jacobian_sketch(model, batch, dimension, seed, parameters="all", exact=True) for seed in range(4)]
        assert relative(found[0].exact, exact) < 1e-12
        assert relative(found[0].rows @ found[0].rows.T, exact) == pytest.approx(found[0].error)
        errors[dimension] = float(np.mean([one.error for one in found]))
    assert errors[1024] < 2 * (2 / 1024) ** 0.5
    assert errors[1024] < errors[64] / 2  # the expected factor is 4


def test_sketch_is_seeded_and_adds_up_over_shards():
    model, batch = pico("llama"), prompts(LENGTHS)
    whole = jacobian_sketch(model, batch, 128, seed=5)
    parts = [jacobian_sketch(model, batch, 128, seed=5, layers=[name]).rows for name in kernel_layers(model)]
    assert relative(np.sum(parts, 0), whole.rows) < 1e-12
    assert relative(jacobian_sketch(model, batch, 128, seed=6).rows, whole.rows) > 0.5
    first = {key: value[:2] for key, value in batch.items() if key != "verbalizers"}
    some = jacobian_sketch(model, first, 128, seed=5, verbalizers=batch["verbalizers"].tolist())
    assert relative(some.rows, whole.rows[:4]) < 5e-6


def test_the_projection_does_not_depend_on_how_many_examples_there_are(monkeypatch):
    """With a slab of 256 entries two rows fit in a wider one than eight do: the projection may not go by it."""
    monkeypatch.setattr(products, "TILE", 64)
    monkeypatch.setattr(jacobian_rows_module, "TILE", 64)
    monkeypatch.setitem(products.SIZES, "cpu", products.Sizes(slab=256))
    model, batch = pico("llama"), prompts(LENGTHS + LENGTHS)
    few = {key: value if key == "verbalizers" else value[:1] for key, value in batch.items()}
    whole, part = (jacobian_sketch(model, one, 32, parameters="all").rows for one in (batch, few))
    assert relative(part, whole[: len(part)]) < 5e-6  # float32 islands under padding
