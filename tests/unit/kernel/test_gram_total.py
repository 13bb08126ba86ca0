"""A kernel whose layers are not kept is the same kernel, and tells the same of its layers, at once or in tiles."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from kernel_reference import pico, prompts, relative
from stopwise.artifacts.gram import SUM, assemble, layer_shares, shard_table, shares_of_moments
from stopwise.kernel.example_tiles import tiled_parts
from stopwise.kernel.ntk import Kernel, kernel_layers, prepared, train_and_new_kernels

LENGTHS, NEW = [5, 9, 3, 7, 9, 4, 6], [3, 8, 5]
Y = np.random.default_rng(0).normal(size=(len(LENGTHS), 2))


def kernels(model, **options):
    return train_and_new_kernels(model, prompts(LENGTHS), prompts(NEW, 1), parameters="all", **options)


def table(train, new, kept):
    parts = (train.by_layer, new.by_layer) if kept else ({SUM: train.matrix}, {SUM: new.matrix})
    return shard_table(*parts, train.outputs, new.outputs, train.row_norms, moments=train.moments)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_sum_alone_is_the_kernel_and_its_moments_are_the_layers(dtype):
    model = pico("llama", dtype)
    kept, summed = kernels(model), kernels(model, by="total", targets={"train": Y})
    for one, other in zip(kept, summed, strict=True):
        assert relative(other.matrix, one.matrix) < 1e-14  # float64 sums in another order
        assert not other.by_layer
        assert np.array_equal(other.outputs, one.outputs)
        for name, norms in one.row_norms.items():
            # A difference of sums of squares: of modules that matter little a few digits are lost.
            assert np.allclose(other.row_norms[name], norms, rtol=1e-6, atol=1e-9 * norms.max())
    assert np.array_equal(summed[0].matrix, summed[0].matrix.T)
    whole, told = (assemble({"a": table(*pair, kept)}) for pair, kept in ((kept, True), (summed, False)))
    for centred in (True, False):
        wanted = layer_shares(whole, 2 * Y - whole.outputs, centred=centred)
        found = shares_of_moments(told, Y, 2.0, centred=centred)
        assert [row["layer"] for row in found] == [row["layer"] for row in wanted]
        for name in ("trace_share", "alignment", "effective_dimension"):
            assert [row[name] for row in found] == pytest.approx([row[name] for row in wanted], rel=1e-8)


def test_tiles_of_examples_tell_the_same_of_every_layer():
    model = pico("gpt2")
    whole = kernels(model, by="total", targets={"train": Y})[0]
    tasks = {"train": prompts(LENGTHS), "new": prompts(NEW, 1)}
    with prepared(model, tasks, None, "all", "contrast") as bare:
        job = replace(bare, pairs=[(0, 0), (1, 0)], by="total", targets=[Y, None])
        parts, _ = tiled_parts(job, 3)
    assert relative(parts[0].matrices["total"], whole.matrix) < 1e-12
    assert set(parts[0].moments) == set(whole.moments)
    for layer, (found, rest) in parts[0].moments.items():
        assert rest is None
        assert relative(found.vector(), whole.moments[layer]) < 1e-10


def test_shards_that_keep_no_layers_add_up():
    model = pico("gpt2")
    layers = kernel_layers(model, "all")
    whole = kernels(model, by="total", targets={"train": Y})
    parts = [kernels(model, by="total", targets={"train": Y}, layers=some) for some in (layers[:2], layers[2:])]
    added = Kernel.sum_of([train for train, _ in parts])
    assert relative(added.matrix, whole[0].matrix) < 1e-14
    read = assemble({str(i): table(*pair, False) for i, pair in enumerate(parts)})
    assert np.array_equal(read.train, added.matrix)
    assert relative(read.new, whole[1].matrix) < 1e-14
    assert set(read.moments) == set(whole[0].moments)
