"""Estimates count what a pass really does, need no weights, and grow as they should."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import pages
from kernel_reference import pico, prompts
from stopwise.artifacts.block_pairs import repeats
from stopwise.cost.estimate import (
    DEVICES,
    cost_table,
    cost_text,
    count,
    estimate,
    gpt_neo_1_3b,
    measure_device,
    skeleton,
    work,
)
from stopwise.kernel.engine import Engine
from stopwise.kernel.memory import room
from stopwise.kernel.ntk import empirical_ntk, prepared
from stopwise.kernel.products import sizes_on
from stopwise.kernel.ranks import Ranks, multiplied_shares
from stopwise.network.forward import class_outputs
from stopwise.network.parameters import select_parameters


@pytest.mark.parametrize("arch", ["gpt2", "llama", "gpt-neox", "qwen2"])
def test_forward_operations_are_counted(arch):
    model = pico(arch)
    n, tokens = 4, 12
    class_outputs(model, prompts([tokens]))  # what attends to what is tried once for each model
    with FlopCounterMode(display=False) as counter:
        class_outputs(model, prompts([tokens] * n))
    counts = count(model)
    mine = 2 * n * tokens * (counts.forward + counts.score * tokens)
    assert mine == pytest.approx(counter.get_total_flops(), rel=0.03)  # the head's few rows are left out
    assert counts.selected == sum(p.numel() for p in select_parameters(model, "attention").values())


def test_the_papers_model_is_known_without_weights():
    model = skeleton(gpt_neo_1_3b())
    assert all(p.is_meta for p in model.parameters())
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(1.316e9, rel=1e-2)
    row = estimate(model, 100, outputs="logits", device=DEVICES["a100-80gb"])
    assert row["stored_jacobian_gb"] / 2 == pytest.approx(161, rel=0.01)  # 100 x 402 million numbers in float32
    assert row["peak_gb"] < row["stored_jacobian_gb"] / 10


def test_more_examples_cost_more_time_and_shards_less():
    rows = {(row["shards"], row["n"]): row for row in cost_table()}
    for shards in (1, 8):
        seconds = [rows[shards, n]["seconds"] for n in (100, 1_000, 10_000)]
        assert 5 * seconds[0] < seconds[1] < seconds[2] / 5
    assert rows[8, 10_000]["seconds"] < rows[1, 10_000]["seconds"] / 2
    assert all(row["peak_gb"] + row["model_gb"] < 80 for row in rows.values())


def test_blocks_repeat_the_passes_as_often_as_their_examples_run():
    """Counted in jobs of equal size: even numbers of blocks that divide the examples. Nothing is multiplied twice."""
    sizes = sizes_on("cuda")
    whole = work(1_000, 300, 1, sizes)
    for blocks in (2, 4, 10):
        own, (train, new) = work(1_000, 300, 1, sizes, blocks=blocks), repeats(blocks)
        assert own.jobs == blocks * (blocks - 1) // 2
        assert own.jobs * own.examples == pytest.approx(1_000 * train + 300 * new, rel=0.03)  # 300 / 9 is no integer
    off_diagonal = 1_000**2 * (1 - 1 / 10) / 2
    assert 45 * own.products == pytest.approx(off_diagonal + 45 * work(100, 0, 1, sizes).products + 45 * 2 * 34 * 100)
    assert whole.products < 45 * own.products  # each job counted as the largest: with a block of its own
    assert [work(1_000, 0, 1, sizes, blocks=4, adam=adam).apart for adam in (False, True)] == [0, 1_000]
    model = skeleton(gpt_neo_1_3b())
    rows = [estimate(model, 10_000, device=DEVICES["h100-80gb"], blocks=4, adam=adam) for adam in (False, True)]
    assert rows[0]["shards"] == 6
    assert rows[0]["seconds"] < rows[1]["seconds"]


def test_memory_decides_the_schedule():
    model = skeleton(gpt_neo_1_3b())
    found = [estimate(model, 2_000, device=DEVICES["a100-80gb"], memory_gb=m)["schedule"] for m in (400, 40, 6)]
    assert found[:2] == ["keep", "sweep"]
    assert found[2].endswith("tiles")


@pytest.mark.parametrize("memory_gb", [None, 1.0, 0.2])
def test_the_plan_says_what_the_engine_decides(memory_gb):
    """From the configuration alone, without weights: the room to the byte, and so the schedule."""
    model = pico("llama", torch.float32)
    batch = prompts([12] * 40)
    planned = estimate(skeleton(model.config), 40, 12, 3, device=measure_device(), memory_gb=memory_gb)
    found = empirical_ntk(model, batch, memory_gb=memory_gb).plan
    assert planned["schedule"] == found["schedule"]
    assert found["room_gb"] == round(
        room("cpu", measure_device().memory, sum(p.numel() * 4 for p in model.parameters()), memory_gb) / 1e9, 3
    )
    assert planned["peak_gb"] == pytest.approx(found["needs_gb"], rel=0.3)


@pytest.mark.parametrize(("processes", "memory_gb"), [(2, None), (3, 0.17), (5, 0.01)])
def test_the_plan_says_what_each_of_several_processes_decides(processes, memory_gb):
    """Its share of the passes, of the products, and of the memory; never tiles, whatever fits."""
    model, n, tokens = pico("llama", torch.float32), 1000, 12
    place = next(model.parameters()).device
    planned = estimate(
        skeleton(model.config), n, tokens, 3, device=measure_device(), memory_gb=memory_gb, processes=processes
    )
    with prepared(model, {"a": prompts([tokens] * n)}, None, "attention", "contrast") as bare:
        job = replace(bare, pairs=[(0, 0)], memory_gb=memory_gb)
        engines = [Engine(replace(job, ranks=Ranks(rank, processes, place))) for rank in range(processes)]
        share = multiplied_shares(bare.terms, processes)
    found = engines[0].plan()
    assert (planned["schedule"], planned["processes"], planned["devices"]) == (found["schedule"], processes, 1)
    assert found["tiles"] == 1
    assert planned["room_gb"] == pytest.approx(found["room_gb"], abs=1e-3)
    assert planned["peak_gb"] == pytest.approx(found["needs_gb"], rel=0.3)
    assert max(engine.plan()["own_passes"] for engine in engines) == -(-found["passes"] // processes)
    # The four weights of a layer's attention: two and two, two and one and one, or one each and a process without.
    sizes = {t.module: t.parameter.numel() for t in bare.terms if t.layer == bare.terms[0].layer}
    k, o, q, v = (sizes[name] for name in sorted(sizes))
    most = {2: max(k + q, o + v), 3: max(k + v, o, q), 5: max(k, o, q, v)}[processes]
    assert share == pytest.approx((most / (k + o + q + v),) * 2)


def test_processes_on_gpus_save_time_and_cost_devices_and_on_a_cpu_neither():
    model = skeleton(gpt_neo_1_3b())
    n = 4 * (sizes_on("cuda").tokens // 48)  # four passes
    gpu = [estimate(model, n, device=DEVICES["h100-80gb"], processes=k) for k in (1, 4, 8)]
    assert gpu[1]["seconds"] == pytest.approx(gpu[0]["seconds"] / 4, rel=0.02)
    assert gpu[2]["seconds"] == gpu[1]["seconds"]  # four passes, four weights a layer: half of the processes wait
    assert [row["devices"] for row in gpu] == [1, 4, 8]
    cpu = replace(DEVICES["h100-80gb"], kind="cpu")
    one, two = (estimate(model, n, device=cpu, memory_gb=1e3, processes=k) for k in (1, 2))
    assert two["seconds"] == pytest.approx(one["seconds"], rel=0.02)
    assert two["devices"] == 1
    adam = estimate(model, 1_000, device=DEVICES["h100-80gb"], adam=True, processes=4)
    plain = estimate(model, 1_000, device=DEVICES["h100-80gb"], processes=4)
    assert adam["seconds"] > 1.2 * plain["seconds"]  # every process runs all gradients by itself


def test_processes_that_share_a_machine_share_its_memory():
    assert room("cpu", 16e9, 1e9, None, 4) == pytest.approx(room("cpu", 16e9, 4e9, None) / 4)
    assert room("cuda", 16e9, 1e9, None, 4) == room("cuda", 16e9, 1e9, None)
    assert room("cpu", 16e9, 1e9, 2.0, 4) == 2e9


def test_this_machine_is_measured():
    before = torch.backends.mkldnn.matmul.fp32_precision
    device = measure_device()
    assert device.measured
    assert min(device.passes, device.forming, device.products) > 1e8
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_the_page_of_costs_prints_the_cost_table_as_it_is():
    assert cost_text() in pages.text("docs/results/cost.md")
