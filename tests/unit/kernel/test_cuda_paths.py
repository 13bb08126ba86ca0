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
from stopwise.kernel import example_tiles, jacobian_rows, memory, products
from stopwise.kernel.between_tasks import cross_kernels
from stopwise.kernel.engine import Engine
from stopwise.kernel.ntk import empirical_ntk, prepared, task_kernels, train_and_new_kernels
from stopwise.network.forward import attach_head
from stopwise.training.adam_preconditioner import adam_preconditioner
from stopwise.training.settings import FinetuneSettings

LENGTHS = [5, 9, 3, 6]
# Panels and passes are larger on a device: the same sums in another order of float32.
ROUNDING = 1e-5


def batch(lengths=LENGTHS, seed=0, classes=2):
    made = prompts(lengths, seed)
    return made | {"verbalizers": made["verbalizers"][:classes], "labels": torch.arange(len(lengths)) % classes}


def tiled(model):
    with prepared(model, {"a": batch()}, None, "attention", "contrast") as bare:
        parts, _ = example_tiles.tiled_parts(replace(bare, pairs=[(0, 0)]), 2)
    return sum(parts[0].matrices.values())


def of_adam(model):
    settings = FinetuneSettings(optimizer="adamw", formula="adam", batch_size=4)
    return empirical_ntk(
        model, batch(), formula="adam", preconditioner=adam_preconditioner(model, batch(), settings)
    ).matrix


def between(model):
    train, new = {"a": batch(), "b": batch([3, 8], 1, 3)}, {"a": batch([4], 2), "b": batch([6], 3, 3)}
    found = cross_kernels(model, train, new).parts
    return np.concatenate([one.ravel() for parts in found.values() for keys in parts.values() for one in keys.values()])


def of_total(model):
    y = np.where(batch()["labels"][:, None] == 0, -1.0, 1.0)
    found = train_and_new_kernels(model, batch(), batch([3, 8], 1), by="total", targets={"train": y})
    return np.concatenate([found[0].matrix.ravel(), found[1].matrix.ravel(), *found[0].moments.values()])


def with_head(model):
    attach_head(model, 2)
    return empirical_ntk(model, batch(), parameters="all", outputs="head").matrix


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
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.slow
def test_a_device_gives_the_numbers_of_the_cpu(path, monkeypatch):
    wanted = PATHS[path](pico("gpt2", torch.float32))
    model = place(pico("gpt2", torch.float32))
    monkeypatch.setattr(torch, "mm", _mm)
    with cuda():
        found = PATHS[path](model)
    assert relative(found, wanted) < (2e-4 if path == "signgd" else ROUNDING)


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


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    assert not memory.out_of_memory(RuntimeError("shapes cannot be multiplied"))
    assert memory.out_of_memory(RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate"))


def test_products_on_a_device_are_larger():
    assert products.sizes_on("cuda").panel >= 16 * products.sizes_on("cpu").panel
    assert products.sizes_on("xpu") == products.sizes_on("cpu")
