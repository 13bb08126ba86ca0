"""What is left of the training residual by direction, beside what the filter says where training follows one."""

import numpy as np
import pytest

from stopwise.linearized.directions import TOP, residual_decay
from stopwise.linearized.filters import HeavyBall
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
