"""Task vectors on a device: kept there, applied there, and measured as on the CPU."""

from __future__ import annotations

import pytest
import torch

from cudalike import LookAlike, cuda, place
from stopwise.merging import workbench
from stopwise.merging.workbench import TaskData, Workbench, applied
from stopwise.network.pico import pico_model
from stopwise.network.task_vectors import TaskVector
from training_reference import made_up_batch

GRID = [[0.5, 0.5], [1.0, 0.3]]


@pytest.fixture
def tasks(tmp_path):
    """Two tasks whose vectors are files."""
    found, base = {}, pico_model("llama", dtype="float32")
    for seed, name in enumerate(("a", "b"), 1):
        path = tmp_path / f"{name}.safetensors"
        TaskVector.between(base, pico_model("llama", dtype="float32", seed=seed)).save(path)
        found[name] = TaskData(TaskVector.load(path), made_up_batch(4, seed), made_up_batch(5, seed + 10))
    return found


def on_device(vector):
    return all(isinstance(vector[name], LookAlike) for name in vector)


@pytest.mark.slow
def test_a_device_merges_as_the_cpu_does_and_reads_each_vector_once(tasks, monkeypatch):
    wanted = Workbench(pico_model("llama", dtype="float32"), tasks).grid("addition", list(tasks), GRID)
    model, read, own = place(pico_model("llama", dtype="float32")), [], workbench.TaskVector.kept_on
    monkeypatch.setattr(
        workbench.TaskVector, "kept_on", lambda vector, device: read.append(device.type) or own(vector, device)
    )
    before = {name: one.detach().elem.clone() for name, one in model.named_parameters()}
    with cuda() as seen:
        bench = Workbench(model, tasks)
        assert all(on_device(task.vector) for task in bench.tasks.values())
        held, to_host = bench.tasks["a"].vector + bench.tasks["b"].vector, seen.waits["to host"]
        with applied(model, held, 0.5):
            assert seen.waits["to host"] == to_host  # nothing goes to the host and back
        found = bench.grid("addition", list(tasks), GRID)
    assert read == ["cuda"] * 2
    assert all(torch.equal(one.detach().elem, before[name]) for name, one in model.named_parameters())
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)


@pytest.mark.slow
def test_vectors_too_large_for_a_device_stay_in_their_files(tasks, monkeypatch):
    monkeypatch.setattr("cudalike.MEMORY", 1000)
    model = place(pico_model("llama", dtype="float32"))
    with cuda():
        bench = Workbench(model, tasks)
        assert not any(
            isinstance(task.vector[name], LookAlike) for task in bench.tasks.values() for name in task.vector
        )
        found = bench.measure(tasks["a"].vector, 0.5, ["a"], ["test"])
    wanted = Workbench(pico_model("llama", dtype="float32"), tasks).measure(tasks["a"].vector, 0.5, ["a"], ["test"])
    assert found["a", "test"].loss == pytest.approx(wanted["a", "test"].loss, rel=1e-5)
