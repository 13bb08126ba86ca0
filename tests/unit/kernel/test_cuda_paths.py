"""Every way through the kernel on a device: nothing mixes devices, and the numbers are those of the CPU.

The device is a look-alike (``cudalike``): tensors on the CPU that say they are not. What only a GPU can show, speed and
rounding, is measured by tools/gpu_first_day.py.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from cudalike import cuda, place
from kernel_reference import pico, prompts, relative
from stopwise.cost.estimate import DEVICES, estimate, skeleton
from stopwise.kernel import example_tiles, jacobian_rows, memory, parts, products
from stopwise.kernel.between_states import anchored_grams, trained_state
from stopwise.kernel.between_tasks import cross_kernels
from stopwise.kernel.by_columns import nystrom_ntk
from stopwise.kernel.engine import Engine
from stopwise.kernel.ntk import empirical_ntk, pair_kernels, prepared, task_kernels, train_and_new_kernels
from stopwise.kernel.ranks import Ranks
from stopwise.network.forward import attach_head
from stopwise.network.parameters import select_parameters
from stopwise.training.adam_preconditioner import adam_preconditioner, own_metric
from stopwise.training.settings import FinetuneSettings

LENGTHS = [5, 9, 3, 6]
# Panels and passes are larger on a device: the same sums in another order of float32.
ROUNDING = 1e-5


def batch(lengths=LENGTHS, seed=0, classes=2):
    made = prompts(lengths, seed)
    return made | {"verbalizers": made["verbalizers"][:classes], "labels": torch.arange(len(lengths)) % classes}


def tiled(model):
    with prepared(model, {"a": batch()}, None, "attention", "contrast") as bare:
        found, _ = example_tiles.tiled_parts(replace(bare, pairs=[(0, 0)]), 2)
    return sum(found[0].matrices.values())


def of_adam(model):
    settings = FinetuneSettings(optimizer="adamw", formula="adam", batch_size=4)
    return empirical_ntk(
        model, batch(), formula="adam", preconditioner=adam_preconditioner(model, batch(), settings)
    ).matrix


def between(model):
    train, new = {"a": batch(), "b": batch([3, 8], 1, 3)}, {"a": batch([4], 2), "b": batch([6], 3, 3)}
    found = cross_kernels(model, train, new).parts
    return np.concatenate([one.ravel() for some in found.values() for keys in some.values() for one in keys.values()])


def of_total(model):
    y = np.where(batch()["labels"][:, None] == 0, -1.0, 1.0)
    found = train_and_new_kernels(model, batch(), batch([3, 8], 1), by="total", targets={"train": y})
    return np.concatenate([found[0].matrix.ravel(), found[1].matrix.ravel(), *found[0].moments.values()])


def with_head(model):
    attach_head(model, 2)
    return empirical_ntk(model, batch(), parameters="all", outputs="head").matrix


def of_own_rows(model):
    """AdamW's D read from the kernel's rows, and J d along a direction."""
    settings = FinetuneSettings(optimizer="adamw", formula="adam", batch_size=4)
    metric = own_metric(model, batch(), settings)
    along = dict(select_parameters(model, "attention"))
    found, _ = train_and_new_kernels(
        model, batch(), batch([3, 8], 1), formula="adam", preconditioner=metric, along=along
    )
    return np.concatenate([found.matrix.ravel(), found.moves.ravel()])


def in_blocks(model):
    """Two blocks of the examples as a job of them has them, without layers."""
    y = np.where(batch()["labels"][:, None] == 0, -1.0, 1.0)
    named = {"train0": batch(), "train1": batch([7, 4, 4, 9], 1), "new0": batch([3, 8], 2)}
    pairs = [("train0", "train1"), ("train0", "train0"), ("new0", "train1")]
    found = pair_kernels(model, named, pairs, by="total", targets={"train0": y, "train1": y})
    return np.concatenate([one.matrix.ravel() for one in found.values()])


def by_columns(model):
    return nystrom_ntk(model, batch(), 2)[0].matrix()


def between_states(model):
    state = trained_state(model, "attention")
    later = {name: value * 1.01 for name, value in state.items()}
    metric = {name: value.abs() for name, value in state.items()}
    found = anchored_grams(model, batch(), [state, later], [metric, None], plain=True, parameters="attention")
    return np.concatenate([one.ravel() for one in (*found.grams.values(), *found.plain.values())])


def as_one_of_several(model, by="layer"):
    """The way of several processes, by the only one that there is."""
    with prepared(model, {"a": batch()}, None, "attention", "contrast") as bare:
        ranks = Ranks(0, 1, next(bare.model.parameters()).device)
        found, _, _ = example_tiles.kernel_parts(replace(bare, pairs=[(0, 0)], ranks=ranks, by=by))
    return sum(found[0].matrices.values())


PATHS = {
    "attention": lambda m: empirical_ntk(m, batch()).matrix,
    "linear by module": lambda m: empirical_ntk(m, batch(classes=3), parameters="linear", by="module").matrix,
    "all, recomputed": lambda m: empirical_ntk(m, batch(), parameters="all", memory_gb=0.0).matrix,
    "head": with_head,
    "signgd": lambda m: empirical_ntk(m, batch(), parameters="all", formula="signgd").matrix,
    "adam": of_adam,
    "total": of_total,
    "tiles": tiled,
    "tasks": lambda m: task_kernels(m, {"a": batch(), "b": batch([3, 8], 1, 3)})["a", "b"].matrix,
    "between tasks": between,
    "stored rows": lambda m: jacobian_rows.jacobian_rows(m, batch(), parameters="all")[0],
    "sketch": lambda m: jacobian_rows.jacobian_sketch(m, batch(), 64, parameters="all", exact=True).rows,
    "float64": lambda m: empirical_ntk(m, batch(), dtype="float64").matrix,
    "halves": lambda m: empirical_ntk(m, batch(), products="fp16x2").matrix,
    "tf32": lambda m: empirical_ntk(m, batch(), products="tf32").matrix,
    "bf16 products": lambda m: empirical_ntk(m, batch(), products="bf16").matrix,
    "bf16 passes": lambda m: empirical_ntk(m, batch(), dtype="bfloat16").matrix,
    "vocabulary": lambda m: empirical_ntk(m, batch(), outputs="vocabulary", parameters=[r"h\.1\.attn"]).matrix,
    "adam, own rows": of_own_rows,
    "blocks": in_blocks,
    "by columns": by_columns,
    "between states": between_states,
    "one of several": as_one_of_several,
    "one of several, total": lambda m: as_one_of_several(m, "total"),
}
# A look-alike multiplies float32 where tensor cores would round, and its bfloat16 passes in another order.
TOLERANCES = {"signgd": 2e-4, "tf32": 1e-4, "bf16 passes": 2e-2}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.slow
def test_a_device_gives_the_numbers_of_the_cpu(path, monkeypatch):
    wanted = PATHS[path](pico("gpt2", torch.float32))
    model = place(pico("gpt2", torch.float32))
    monkeypatch.setattr(torch, "mm", _mm)
    with cuda():
        found = PATHS[path](model)
    assert relative(found, wanted) < TOLERANCES.get(path, ROUNDING)


_OWN_MM = torch.mm


def _mm(left, right, out_dtype=None):
    """Half precision with float32 sums, which the CPU does not offer under this name."""
    return _OWN_MM(left, right) if out_dtype is None else _OWN_MM(left.to(out_dtype), right.to(out_dtype))


@pytest.mark.parametrize("memory_gb", [None, 0.0])
def test_the_host_waits_for_the_device_a_few_times_a_pass(memory_gb):
    """Once for every weight of the top block, whose silent tokens are left out, and never inside a pass."""
    waits = []
    for examples in (2, 8):
        model = place(pico("gpt2", torch.float32))
        with cuda() as seen:
            empirical_ntk(model, batch([6] * examples), memory_gb=memory_gb, tokens_per_batch=12)
        waits.append(sum(seen.waits.values()))
    assert waits[1] <= waits[0] + 3 * 4, waits  # three more passes


def test_a_passes_that_would_fill_the_device_are_made_smaller(monkeypatch):
    monkeypatch.setattr("cudalike.MEMORY", 400_000)
    model = place(pico("gpt2", torch.float32))
    with cuda(), prepared(model, {"a": batch([6] * 40)}, None, "attention", "contrast") as bare:
        engine = Engine(replace(bare, pairs=[(0, 0)]))
        assert len(engine.batches) > 2
        assert engine.needs.room < 0.8 * 400_000


def test_a_device_that_is_full_is_tried_with_half_the_room_once(monkeypatch):
    wanted = empirical_ntk(pico("gpt2", torch.float32), batch()).matrix
    tried, own = [], example_tiles._parts

    def full(engine):
        tried.append(engine.needs.room)
        if len(tried) == 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return own(engine)

    monkeypatch.setattr(example_tiles, "_parts", full)
    found = empirical_ntk(pico("gpt2", torch.float32), batch())
    assert relative(found.matrix, wanted) < ROUNDING
    assert tried[1] < tried[0] / 2 + 1
    monkeypatch.setattr(example_tiles, "_parts", lambda engine: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(MemoryError, match=r"4 examples does not fit: tried with .* GB and .* Lower kernel.memory_gb"):
        empirical_ntk(pico("gpt2", torch.float32), batch())


def test_one_of_several_processes_that_is_full_does_not_try_again_alone(monkeypatch):
    tried = []
    monkeypatch.setattr(
        example_tiles, "_parts", lambda engine: tried.append(engine) or (_ for _ in ()).throw(MemoryError)
    )
    with pytest.raises(MemoryError, match=r"tried with [0-9.]+ GB beside the weights"):
        as_one_of_several(pico("gpt2", torch.float32))
    assert len(tried) == 1


def test_a_layers_kernel_comes_to_the_host_once_and_modules_when_they_are_wanted(monkeypatch):
    copies, own = [], parts._as_given
    monkeypatch.setattr(parts, "_as_given", lambda *given: copies.append(1) or own(*given))
    model = pico("gpt2", torch.float32)
    layers = len(empirical_ntk(model, batch(), parameters="linear").by_layer)
    assert len(copies) == layers
    copies.clear()
    modules = len(empirical_ntk(model, batch(), parameters="linear", by="module").by_layer)
    assert len(copies) == modules > layers
    copies.clear()
    empirical_ntk(model, batch(), parameters="linear", by="total")
    assert len(copies) == 1


def test_a_kernel_is_put_in_order_some_rows_at_a_time(monkeypatch):
    """So that nothing as large as a kernel lies beside the kernel and its copy."""
    wanted = empirical_ntk(pico("gpt2", torch.float32), batch()).matrix
    monkeypatch.setitem(products.SIZES, "cpu", products.Sizes(ordered=8))
    pieces, own = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda one, *rest, **named: pieces.append(one) or own(one, *rest, **named))
    found = empirical_ntk(pico("gpt2", torch.float32), batch())
    assert np.array_equal(found.matrix, wanted)
    assert max(one.numel() for one in pieces if one.ndim == 2 and one.dtype == torch.float64) <= 8
    assert products.SIZES["cuda"].ordered > products.Sizes().ordered


@pytest.mark.parametrize("memory_gb", [None, 0.05, 0.002])
def test_the_plan_says_what_the_engine_decides_on_a_device(memory_gb, monkeypatch):
    """From the configuration alone: with the device's share of its own memory, and its larger passes and panels."""
    total = 12e9  # larger than products on a device need, smaller than a GPU
    monkeypatch.setattr("cudalike.MEMORY", int(total))
    model = pico("llama", torch.float32)
    device = replace(DEVICES["a100-80gb"], memory=total)
    planned = estimate(skeleton(model.config), 200, 12, 2, device=device, memory_gb=memory_gb)
    with cuda(), prepared(place(model), {"a": batch([12] * 200)}, None, "attention", "contrast") as bare:
        found = Engine(replace(bare, pairs=[(0, 0)], memory_gb=memory_gb)).plan()
    tiles = f"{found['tiles']} tiles" if found["tiles"] > 1 else found["schedule"]
    assert planned["schedule"] == tiles
    assert planned["room_gb"] == pytest.approx(found["room_gb"], abs=1e-3)
    assert planned["peak_gb"] == pytest.approx(found["needs_gb"], rel=0.3)


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    assert not memory.out_of_memory(RuntimeError("shapes cannot be multiplied"))
    assert memory.out_of_memory(RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate"))


def test_products_on_a_device_are_larger():
    assert products.sizes_on("cuda").panel >= 16 * products.sizes_on("cpu").panel
    assert products.sizes_on("xpu") == products.sizes_on("cpu")
