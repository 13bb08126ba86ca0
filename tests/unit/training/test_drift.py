"""Kernel drift: nothing at the start, a change of scale is no change of direction, layers add up."""

from types import SimpleNamespace

import numpy as np
import pytest

from stopwise.training.drift import check_interval, drift_rows


def kernel(*parts):
    layers = {f"model.layers.{i}": np.asarray(part, dtype=float) for i, part in enumerate(parts)}
    return SimpleNamespace(matrix=sum(layers.values()), by_layer=layers)


def rows_of(kernels):
    steps = sorted(kernels)
    trajectory = [{"step": step, "relative_distance": 0.1 * step} for step in steps]
    distances = [{"step": step, "layer": "model.layers.1", "relative_distance": 0.2 * step} for step in steps]
    return {(row["step"], row["layer"]): row for row in drift_rows(kernels, distances, trajectory)}


def test_drift_is_the_relative_frobenius_distance_from_the_start():
    a, b, other = np.eye(3), np.diag([1.0, 2.0, 3.0]), np.ones((3, 3))
    rows = rows_of({0: kernel(a, b), 4: kernel(2 * a, b + other)})
    assert rows[0, None]["drift"] == 0
    assert rows[4, "model.layers.0"]["drift"] == pytest.approx(1.0)
    assert rows[4, "model.layers.0"]["alignment"] == pytest.approx(1.0)
    assert rows[4, "model.layers.1"]["drift"] == pytest.approx(3 / np.sqrt(14))
    assert rows[4, "model.layers.1"]["alignment"] < 0.95
    assert rows[4, None]["drift"] == pytest.approx(np.linalg.norm(a + other) / np.linalg.norm(a + b))


def test_distances_are_those_of_the_run():
    rows = rows_of({0: kernel(np.eye(2), np.eye(2)), 3: kernel(np.eye(2), np.eye(2))})
    assert rows[3, None]["relative_distance"] == pytest.approx(0.3)
    assert rows[3, "model.layers.1"]["relative_distance"] == pytest.approx(0.6)
    assert rows[3, "model.layers.0"]["relative_distance"] is None


def test_a_kernel_that_is_zero_has_no_drift():
    rows = rows_of({0: kernel(np.zeros((2, 2)), np.eye(2)), 1: kernel(np.eye(2), np.eye(2))})
    assert rows[1, "model.layers.0"]["drift"] is None
    assert rows[1, "model.layers.0"]["alignment"] is None


def test_the_start_is_needed():
    with pytest.raises(ValueError, match="needs the kernel at step 0, found steps \\[2\\]"):
        drift_rows({2: kernel(np.eye(2))}, [], [])


def test_intervals_are_whole_steps():
    assert [check_interval(10, count) for count in (1, 2, 3, 20)] == [10, 5, 3, 1]
