"""What training has left to learn by direction, beside what the kernel says where it says something."""

import numpy as np
import pytest

from stopwise.linearized.directions import TOP, error_decay, residual_decay
from stopwise.linearized.filters import HeavyBall
from stopwise.linearized.objectives import Objective
from stopwise.linearized.paths import train_path
from stopwise.linearized.spectrum import Spectrum

N, STEPS = 16, (0, 2, 5)


def problem(intercept):
    """Return (spectrum, residual, filter, outputs by step) of a run that follows the linearised path."""
    rng = np.random.default_rng(1)
    features = rng.standard_normal((N, 30)) * np.exp(-0.1 * np.arange(30))
    spec, residual = Spectrum.of(features @ features.T, intercept=intercept), rng.standard_normal((N, 1)) + 0.5
    filter = HeavyBall(1 / spec.lambda_max, 0.9)
    path = train_path(spec, residual, filter, max(STEPS))
    start = rng.standard_normal((N, 1))
    moves = path - path[0]  # the path holds the intercept from step 0 on, outputs of a network do not
    return spec, residual, filter, {step: start + moves[step][:, None] for step in STEPS}


@pytest.mark.parametrize("intercept", [False, True])
def test_a_run_on_the_path_leaves_what_the_filter_says(intercept):
    spec, residual, filter, outputs = problem(intercept)
    rows = residual_decay(spec, residual, outputs, filter)
    assert [row["direction"] for row in rows[: TOP + 1]] == [*range(1, TOP + 1), 0]
    assert len(rows) == len(STEPS) * (TOP + 1)
    for row in rows:
        assert row["measured"] == pytest.approx(row["predicted"], abs=1e-9), row
    assert all(row["measured"] == 1 for row in rows if row["step"] == 0)


def test_training_that_follows_no_filter_is_measured_only():
    spec, residual, filter, outputs = problem(True)
    followed, alone = residual_decay(spec, residual, outputs, filter), residual_decay(spec, residual, outputs, None)
    assert {row["predicted"] for row in alone} == {None}
    assert [row["measured"] for row in alone] == [row["measured"] for row in followed]


def cross_entropy_run():
    """Return (spectrum, objective, path of the outputs minus f0, outputs by step) of gradient descent on a kernel."""
    rng = np.random.default_rng(2)
    features = rng.standard_normal((N, 30)) * np.exp(-0.1 * np.arange(30))
    spec, labels = Spectrum.of(features @ features.T), rng.integers(0, 2, N)
    objective = Objective("cross_entropy", labels, 2, "contrast", 1.0, np.zeros(1))
    start = rng.standard_normal((N, 1))
    f, path = start, [np.zeros(N)]
    for _ in range(400):
        f = f - 20 / spec.lambda_max * (spec.matrix / N) @ objective.gradient(f, np.arange(N))
        path.append((f - start).ravel())
    steps = (0, 2, 400)
    return spec, objective, np.stack(path), {step: start + path[step][:, None] for step in steps}


def test_errors_of_cross_entropy_on_the_path_are_the_predicted_ones_and_fall():
    spec, objective, path, outputs = cross_entropy_run()
    rows = error_decay(spec, objective, outputs, path)
    for row in rows:
        assert row["measured"] == pytest.approx(row["predicted"], rel=1e-12), row
    assert all(row["measured"] == 1 for row in rows if row["step"] == 0)
    last = [row["measured"] for row in rows if row["step"] == 400 and row["direction"] in (0, 1, 2)]
    assert max(last) < 0.5  # while the outputs have grown
    assert np.abs(outputs[400]).mean() > 2 * np.abs(outputs[0]).mean()


def test_an_error_is_the_label_less_its_probability_along_the_direction():
    spec, objective, _, outputs = cross_entropy_run()
    found = {(row["step"], row["direction"]): row for row in error_decay(spec, objective, outputs, None)}
    # With two classes the contrast is (f_1 - f_0)/sqrt(2), and its error sqrt(2) (y - p_1).
    error = {step: objective.labels - 1 / (1 + np.exp(-np.sqrt(2) * f.ravel())) for step, f in outputs.items()}
    u = spec.raw.vectors
    for step in outputs:
        expected = abs(u[:, 0] @ error[step] / (u[:, 0] @ error[0]))
        assert found[step, 1]["measured"] == pytest.approx(expected, rel=1e-9)
        rest = np.linalg.norm(u[:, TOP:].T @ error[step]) / np.linalg.norm(u[:, TOP:].T @ error[0])
        assert found[step, 0]["measured"] == pytest.approx(rest, rel=1e-9)
        assert found[step, 1]["predicted"] is None
