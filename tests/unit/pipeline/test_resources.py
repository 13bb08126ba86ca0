"""What a job on a kernel asks a cluster for grows with the kernel, and is never less than it was."""

from __future__ import annotations

import pytest

from stopwise.pipeline.resources import kernel_mb, kernel_rows, memory_mb, minutes, network_threads


def config(size, words=2):
    return {
        "sizes": [size // 2, size],
        "tasks": {"own": {"verbalizers": {str(i): f" {i}" for i in range(words)}}, "trec": {}, "file": {"source": {}}},
        "kernel": {"outputs": "contrast"},
        "data": {"validation": 32, "test": 96},
    }


@pytest.mark.parametrize(("task", "columns"), [("own", 1), ("trec", 5), ("file", 9)])
def test_rows_are_examples_times_columns(task, columns):
    """A task whose labels only its file tells is taken to have ten classes."""
    assert kernel_rows(config(64), task) == 64 * columns
    assert kernel_mb(config(64), task) == pytest.approx(8e-6 * 64 * (64 + 128) * columns**2)


def test_small_kernels_ask_for_what_they_did():
    assert memory_mb(config(64), "own", 9, 2000) == 2000
    assert minutes(config(64), "own", 13, 20) <= 21


def test_a_large_kernel_gets_room_and_time():
    large = config(10_000)
    assert memory_mb(large, "own", 9, 2000) > 9 * 8e-6 * 10_000**2
    assert 400 < minutes(large, "own", 13, 20) < 1000
    assert memory_mb(config(10_000, words=3), "own", 9, 2000) > 3 * memory_mb(large, "own", 9, 2000)


@pytest.mark.parametrize(
    ("source", "jobs", "threads"),
    [("smollm2-135m", 2, 1), ("minilm", 8, 1), ("pico-llama", 2, 1), ("minilm", 1, 2), ("someone/large", 8, 2)],
)
def test_several_jobs_of_a_built_in_model_have_a_thread_each(source, jobs, threads):
    assert network_threads({"model": {"source": source}}, jobs) == threads
