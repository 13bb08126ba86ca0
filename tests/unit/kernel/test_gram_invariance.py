"""A row of the kernel does not depend on its company: batches, padding, attention kernels, order of examples."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel_reference import pico, prompts, relative
from stopwise.kernel.ntk import empirical_ntk

LENGTHS = [5, 9, 3, 7, 9]
ARCHITECTURES = ["gpt2", "gpt-neo", "gpt-neox", "llama", "qwen2", "opt", "gemma", "gemma2"]
ISLANDS = 5e-6  # float32 softmax, RMSNorm and rotary angles round differently for other shapes


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_padding_side_and_extra_padding_do_not_change_a_bit(arch):
    model = pico(arch)
    right = prompts(LENGTHS)
    kernel = empirical_ntk(model, right).matrix
    assert np.array_equal(empirical_ntk(model, prompts(LENGTHS, side="left")).matrix, kernel)
    wider = {key: torch.nn.functional.pad(right[key], (0, 4)) for key in ("input_ids", "attention_mask")}
    assert np.array_equal(empirical_ntk(model, right | wider).matrix, kernel)


@pytest.mark.parametrize("arch", [*ARCHITECTURES, "bert"])
def test_batch_composition_does_not_change_a_row(arch):
    model = pico(arch)
    batch = prompts(LENGTHS, positions=[1, 8, 2, 0, 4] if arch == "bert" else None)
    together = empirical_ntk(model, batch, parameters="all", tokens_per_batch=4096).matrix
    alone = empirical_ntk(model, batch, parameters="all", tokens_per_batch=1).matrix
    assert relative(together, alone) < ISLANDS


@pytest.mark.parametrize("arch", ["gpt2", "llama", "qwen2", "opt", "gpt-neox"])
def test_attention_kernel_does_not_change_a_row(arch):
    found = [empirical_ntk(pico(arch, attention=kind), prompts(LENGTHS)).matrix for kind in ("eager", "sdpa")]
    assert relative(found[0], found[1]) < ISLANDS


@cache
def whole_sample():
    model, batch = pico("gpt2"), prompts(LENGTHS)
    return model, batch, empirical_ntk(model, batch)


@given(order=st.permutations(range(5)), size=st.integers(1, 5))
@settings(max_examples=15, deadline=None)
def test_a_smaller_or_reordered_sample_is_a_sub_block(order, size):
    model, batch, whole = whole_sample()
    chosen = torch.tensor(order[:size])
    some = {key: value[chosen] for key, value in batch.items() if key != "verbalizers"}
    rows = (chosen[:, None] * 2 + torch.arange(2)).flatten().numpy()
    found = empirical_ntk(model, some, verbalizers=batch["verbalizers"])
    assert relative(found.matrix, whole.matrix[np.ix_(rows, rows)]) < 1e-12
    assert relative(found.outputs, whole.outputs[chosen.numpy()]) < 1e-12


def test_kernel_is_positive_semidefinite_and_repeatable():
    model, batch = pico("llama", torch.float32), prompts(LENGTHS)
    first, second = (empirical_ntk(model, batch, parameters="all").matrix for _ in range(2))
    assert np.array_equal(first, second)
    eigenvalues = np.linalg.eigvalsh(first)
    assert eigenvalues[0] > -1e-6 * eigenvalues[-1]
