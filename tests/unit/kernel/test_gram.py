"""The kernel equals one-example-at-a-time, unpadded autograd, for every architecture, subset, coding and schedule."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch

from kernel_reference import pico, plain_jacobian, plain_outputs, prompts, relative
from stopwise.artifacts.gram import sum_in_name_order
from stopwise.kernel import engine
from stopwise.kernel import memory as memory_plan
from stopwise.kernel.ntk import Kernel, empirical_ntk, kernel_layers, layer_costs, split_layers, train_and_new_kernels
from stopwise.kernel.products import sizes_on
from stopwise.network.parameters import select_parameters

LENGTHS = [5, 9, 3, 9, 7]
MASK_AT = [2, 4, 0, 8, 6]  # output positions of a masked LM
# transformers computes these in float32 even for float64 models, so that another padding rounds differently there:
ISLANDS = {
    "gpt-neo": "q.k and softmax",
    "llama": "RMSNorm, rotary angles, softmax",
    "qwen2": "RMSNorm, rotary angles, softmax",
    "qwen3": "RMSNorm, rotary angles, softmax",
    "gemma": "RMSNorm, rotary angles, softmax",
    "gemma2": "RMSNorm, rotary angles, softmax",
    "gpt-neox": "rotary angles",
    "opt": "softmax",
}
EXACT = ["gpt2", "bert", "roberta"]
ARCHITECTURES = sorted(ISLANDS) + EXACT


def bound(arch: str) -> float:
    return 5e-6 if arch in ISLANDS else 1e-10


def sample(arch: str, lengths=None, seed: int = 0, side: str = "right") -> dict:
    lengths = LENGTHS if lengths is None else lengths
    positions = MASK_AT[: len(lengths)] if arch in ("bert", "roberta") else None
    return prompts(lengths, seed=seed, side=side, positions=positions)


def differences(matrix: np.ndarray, columns: int) -> np.ndarray:
    """K of the differences between examples: what is left when the common mode is taken out of both sides."""
    rows = matrix.reshape(-1, columns, matrix.shape[1])
    rows = (rows - rows.mean(0)).reshape(matrix.shape)
    cols = rows.reshape(len(rows), -1, columns)
    return (cols - cols.mean(1, keepdims=True)).reshape(matrix.shape)


@pytest.mark.parametrize("subset", ["attention", "all"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_gram_equals_autograd_jacobian(arch, subset):
    model, batch = pico(arch), sample(arch)
    jacobian = plain_jacobian(model, batch, list(select_parameters(model, subset)))
    wanted = (jacobian @ jacobian.T).numpy()
    kernel = empirical_ntk(model, batch, parameters=subset)
    assert relative(kernel.matrix, wanted) < bound(arch)
    assert relative(differences(kernel.matrix, 2), differences(wanted, 2)) < bound(arch)
    assert relative(kernel.outputs, torch.stack(plain_outputs(model, batch))) < bound(arch)
    assert np.array_equal(kernel.matrix, kernel.matrix.T)


@pytest.mark.parametrize("arch", ["gpt2", "gpt-neo"])
def test_gram_is_exact_without_padding(arch):
    model, batch = pico(arch), prompts([7, 7, 7])
    jacobian = plain_jacobian(model, batch, list(select_parameters(model, "attention")))
    assert relative(empirical_ntk(model, batch).matrix, jacobian @ jacobian.T) < 1e-10


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_float32_kernel_is_near_the_float64_one(arch):
    batch = sample(arch)
    exact = empirical_ntk(pico(arch), batch, outputs="logits").matrix
    single = empirical_ntk(pico(arch, torch.float32), batch, outputs="logits").matrix
    limit = 3e-5 if arch == "gpt-neo" else 1e-5
    assert relative(single, exact) < limit
    contrast = np.kron(np.eye(len(LENGTHS)), [[-(0.5**0.5), 0.5**0.5, 0]])
    assert relative(contrast @ single @ contrast.T, contrast @ exact @ contrast.T) < 3 * limit


def schedule(name: str):
    return patch.object(engine.Engine, "keeps", lambda self: name == "keep")


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_recomputed_and_kept_activations_give_one_kernel(arch):
    model, batch = pico(arch), sample(arch)
    found = []
    for name in ("keep", "sweep"):
        with schedule(name):
            found.append(empirical_ntk(model, batch, parameters="all").matrix)
    assert relative(found[0], found[1]) < 1e-12


@pytest.mark.parametrize("arch", ["gpt2", "gpt-neo", "llama"])
def test_layers_and_shards_add_up_to_the_last_bit(arch):
    model, batch = pico(arch), sample(arch)
    whole = empirical_ntk(model, batch)
    assert np.array_equal(sum_in_name_order(whole.by_layer, whole.matrix.shape), whole.matrix)
    names = kernel_layers(model)
    shards = split_layers(names, layer_costs(model), 2)
    parts = [empirical_ntk(model, batch, layers=shard) for shard in shards]
    assert [list(part.by_layer) for part in parts] == shards
    joined = Kernel.sum_of(parts)
    assert np.array_equal(joined.matrix, whole.matrix)
    assert joined.row_norms.keys() == whole.row_norms.keys()


def test_train_and_new_share_passes_and_equal_separate_calls():
    model = pico("llama")
    train, new = sample("llama"), sample("llama", [4, 6, 2], seed=1)
    own, cross = train_and_new_kernels(model, train, new)
    assert np.array_equal(own.matrix, empirical_ntk(model, train).matrix)
    jacobians = [plain_jacobian(model, b, list(select_parameters(model, "attention"))) for b in (new, train)]
    assert relative(cross.matrix, jacobians[0] @ jacobians[1].T) < 5e-6
    assert cross.matrix.shape == (6, 10)
    assert relative(cross.outputs, torch.stack(plain_outputs(model, new))) < 5e-6
    squares = sum(norm**2 for norm in cross.row_norms.values())
    assert relative(squares, (jacobians[0] ** 2).sum(1)) < 5e-6
    squares = sum(norm**2 for norm in own.row_norms.values())
    assert relative(squares, np.diag(own.matrix)) < 1e-12


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.slow
def test_tiles_of_examples_give_the_same_kernels(arch, size):
    model = pico(arch)
    few = slice(None if size > 1 else 3)  # three tiles of one example have all kinds of pairs
    tasks = [sample(arch, LENGTHS[few]), sample(arch, [4, 6, 2], seed=1)]
    for subset in ("attention", "all"):
        whole = train_and_new_kernels(model, *tasks, parameters=subset)
        with patch.object(engine.Engine, "tile", lambda self: size):
            tiled = train_and_new_kernels(model, *tasks, parameters=subset)
        for one, other in zip(whole, tiled, strict=True):
            assert relative(other.matrix, one.matrix) < bound(arch)
            assert relative(other.outputs, one.outputs) < bound(arch)
            assert other.row_norms.keys() == one.row_norms.keys()
            for module, norms in one.row_norms.items():
                assert relative(other.row_norms[module], norms) < bound(arch)
        assert np.array_equal(tiled[0].matrix, tiled[0].matrix.T)


def test_memory_decides_between_keeping_recomputing_and_tiling():
    needs = memory_plan.Needs(keep=8e9, sweep_token=1e5, sweep_fixed=1e8, room=9e9, tokens=50_000)
    assert needs.keeps
    assert needs.tile(1000) is None
    tighter = replace(needs, room=6e9)
    assert not tighter.keeps
    assert tighter.tile(1000) is None
    tight = replace(needs, room=2e9)
    size = tight.tile(1000)
    assert 2 * size * 50 * tight.sweep_token + tight.sweep_fixed <= tight.room
    assert replace(needs, room=0.0).tile(10_000) == memory_plan.SMALLEST_TILE
    assert replace(needs, room=0.0).tile(memory_plan.SMALLEST_TILE) is None


def test_a_kernel_that_fills_the_room_is_not_cut_into_the_smallest_tiles():
    products, blocks = memory_plan.product_bytes(sizes_on("cpu"), 10_000), memory_plan.block_bytes(10_000)
    assert products - blocks <= 4 * 4 * sizes_on("cpu").slab  # a slab, however many rows there are
    held = blocks / memory_plan.BLOCKS
    full = memory_plan.Needs(keep=9e9, sweep_token=2e3, sweep_fixed=products, room=3e9, tokens=6e4, blocks=blocks)
    for needs in (full, replace(full, held=held), replace(full, held=held, room=2e9)):
        size = needs.tile(10_000)
        assert size > 1_000
        assert needs.swept(2 * size / 10_000) <= max(needs.room - needs.held, needs.room / 4)
