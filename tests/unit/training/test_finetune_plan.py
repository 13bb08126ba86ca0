"""The plan of a run: its step size, and the linearised path that training of the linearised model follows."""

import numpy as np
import pytest

from stopwise.artifacts.gram import AssembledKernel
from stopwise.kernel.ntk import empirical_ntk
from stopwise.linearized.objectives import Objective
from stopwise.linearized.replay import batch_lambda_max
from stopwise.network.pico import pico_model
from stopwise.training.finetune import FinetuneSettings, finetune
from stopwise.training.prediction import predicted_paths, start_outputs, step_eigenvalue
from training_reference import made_up_batch

SEED = 3


@pytest.fixture(scope="module")
def made():
    """Return (model, batches, kernel) in float64."""
    model = pico_model("llama")
    train, validation, test = (made_up_batch(n, seed=i) for i, n in enumerate((16, 8, 8)))
    own = empirical_ntk(model, train)
    new = [empirical_ntk(model, batch, train) for batch in (validation, test)]
    outputs_new = np.concatenate([k.outputs for k in new])
    kernel = AssembledKernel(own.matrix, np.concatenate([k.matrix for k in new]), own.outputs, outputs_new, {})
    return model, (train, validation, test), kernel


@pytest.mark.parametrize(
    "values",
    [
        {"batch_size": 5, "optimizer": "gradient_descent"},
        {"batch_size": 6, "optimizer": "heavy_ball", "momentum": 0.5, "schedule": "linear", "warmup": 2},
        {"batch_size": 4, "optimizer": "nesterov", "momentum": 0.5},
        {"batch_size": None, "optimizer": "heavy_ball", "momentum": 0.5},
        {"batch_size": None, "optimizer": "gradient_descent", "objective": "cross_entropy"},
        {"batch_size": 5, "optimizer": "nesterov", "momentum": 0.5, "objective": "cross_entropy"},
    ],
    ids=lambda values: "-".join(str(value) for value in values.values()),
)
def test_training_the_linearised_model_follows_the_plan(made, values):
    """Mini-batches are the very draws of training, replayed; outputs at the start are those of the kernel."""
    model, batches, kernel = made
    settings = FinetuneSettings.from_config({"steps": 6, "evaluate_every": 1, "stop": "none", "tangent": True} | values)
    spec = kernel.spectrum("fitted")
    paths = predicted_paths(kernel, spec, objective(batches[0], settings), settings, 8, SEED)
    found = finetune(
        model,
        *batches,
        settings,
        spectrum=step_eigenvalue(spec, settings.batch_size),
        predicted=paths,
        start_outputs=start_outputs(kernel, 8),
        progress=False,
        seed=SEED,
    )
    for row in found.trajectory:
        for split in ("train", "validation", "test"):
            # start_outputs are float32: 1e-7 of f0, which is larger than its moves.
            assert row[f"linearised_{split}_loss"] == pytest.approx(row[f"{split}_loss"], rel=1e-5), split
        assert row["linearised_distance"] == pytest.approx(row["distance"], rel=1e-4, abs=1e-12)


def test_no_kernel_predicts_adamw(made):
    _, batches, kernel = made
    settings = FinetuneSettings.from_config({"steps": 6, "optimizer": "adamw", "learning_rate": 1e-3})
    assert predicted_paths(kernel, kernel.spectrum("fitted"), objective(batches[0], settings), settings, 8) == {}


def objective(train, settings):
    return Objective(settings.objective, train["labels"].numpy(), 2, settings.outputs, 1.0, np.zeros(1))


def test_the_step_of_small_batches_is_smaller(made):
    spec = made[2].spectrum("fitted")
    assert step_eigenvalue(spec, None) == step_eigenvalue(spec, 16) == spec.lambda_max
    assert step_eigenvalue(spec, 2) == batch_lambda_max(made[2].train, 1, 2) > spec.lambda_max
