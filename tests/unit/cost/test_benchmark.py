"""The benchmark's peers compute the same kernel, and its rows are complete; what they cost is measured elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cudalike import cuda, place
from kernel_reference import pico, relative
from stopwise.cost import benchmark, peers
from stopwise.kernel.ntk import empirical_ntk
from stopwise.network.pico import pico_tokenizer


@pytest.mark.parametrize("arch", ["gpt-neox", "llama"])
def test_peers_compute_the_same_kernel(arch):
    model = pico(arch, attention="sdpa")
    batch = benchmark.random_batch(4, 6, model.config.vocab_size)
    own = empirical_ntk(model, batch, outputs="logits").matrix
    assert relative(peers.vmap_kernel(model, batch, "logits", "attention", 3), own) < 5e-6
    assert relative(peers.loop_kernel(model, batch, "logits", "attention"), own) < 5e-6
    _, found = peers.pairwise_entries(model, batch, "logits", "attention", examples=4)
    assert relative(found, own[:, 0]) < 5e-6
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.slow
def test_peers_run_on_a_device():
    """Whatever they make beside the model is made where the model is; torch.func itself cannot run on a look-alike."""
    model = place(pico("llama", torch.float32))
    batch = benchmark.random_batch(2, 6, model.config.vocab_size)
    with cuda():
        rows = benchmark.compare_peers(model, n=4, tokens=6, peers=("loop",))
        function, chosen = peers._functional(model, batch, "contrast", "attention")
        assert function(chosen, batch["input_ids"].to(model.device)[0]).device.type == "cuda"
        assert peers.floor(model, batch, "contrast").shape == (2, 1)
    assert [row["method"] for row in rows] == ["stopwise", "loop"]
    assert max(row["error"] for row in rows) < 1e-5


def test_floor_gives_the_outputs_and_leaves_no_hook():
    model = pico("llama")
    batch = benchmark.random_batch(5, 6, model.config.vocab_size)
    assert (
        relative(peers.floor(model, batch, tokens_per_batch=12), empirical_ntk(model, batch, outputs="logits").outputs)
        < 5e-6
    )
    assert not model.get_input_embeddings()._forward_hooks


def test_rows_name_method_time_memory_and_error():
    model = pico("llama", torch.float32)
    rows = benchmark.compare(model, sizes=(3,), tokens=6, repeats=1)
    assert [row["method"] for row in rows] == [
        "stopwise, activations kept (logits)",
        "stopwise, activations recomputed (logits)",
    ]
    assert all(row["ratio_to_floor"] == row["seconds"] / row["floor_seconds"] > 0 for row in rows)
    rows = benchmark.compare_peers(model, n=4, tokens=6, chunks=(1, 2))
    assert [row["method"] for row in rows] == ["stopwise", "vmap", "loop", "pairwise"]
    assert len({frozenset(row) for row in rows}) == 1
    assert max(row["error"] for row in rows) < 1e-5
    assert rows[1]["setting"].endswith("attention, best of 4")


def test_errors_are_those_of_float32():
    model = pico("llama", torch.float32)
    rows = benchmark.errors(model, n=4, tokens=6)
    assert {row["kernel"] for row in rows} == {"logits", "difference"}
    assert all(0 < row["error"] < 1e-5 for row in rows)


def test_peak_memory_sees_an_allocation():
    with benchmark.peak_memory(0.005) as found:
        block = np.ones(40_000_000)
    assert found[0] > 0.9 * block.nbytes


def test_text_prompts_differ_and_have_one_length():
    batch = benchmark.text_batch(pico_tokenizer(), 16, 150)
    assert batch["input_ids"].shape == (16, 150)
    assert len(batch["input_ids"].unique(dim=0)) == 16
