"""Ways of training on a device: nothing mixes devices, and the losses are those of the CPU.

Of the model linearised at its start only a GPU can tell: torch.func does not run on a look-alike.
"""

from __future__ import annotations

import numpy as np
import pytest

from cudalike import cuda, place
from stopwise.cost.estimate import measure_device
from stopwise.network.pico import pico_model
from stopwise.training.finetune import finetune
from stopwise.training.settings import FinetuneSettings
from training_reference import made_up_batch

ADAMW = {"optimizer": "adamw", "learning_rate": 1e-3}
WAYS = {
    "heavy ball": {},
    "full batches": {"batch_size": None, "optimizer": "nesterov"},
    "cross-entropy": {"optimizer": "gradient_descent", "objective": "cross_entropy"},
    "adamw": ADAMW | {"objective": "cross_entropy", "clip_norm": 0.1, "weight_decay": 0.01},
    "autocast": {"autocast": "bfloat16"},
}


def losses(model, checkpoint=None, **changed):
    """The losses of a short run, evaluated at every step."""
    settings = {"steps": 3, "batch_size": 4, "evaluate_every": 1, "objective": "squared", "optimizer": "heavy_ball"}
    settings |= {"step_size": 0.5, "stop": "holdout", "patience": 2} | changed
    batches = (made_up_batch(n, seed) for seed, n in enumerate((8, 5, 5)))
    found = finetune(model, *batches, FinetuneSettings(**settings), spectrum=1.0, progress=False, checkpoint=checkpoint)
    rows = found.trajectory
    return np.array([[row[f"{split}_loss"] for split in ("train", "validation", "test")] for row in rows])


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_device_trains_as_the_cpu_does(way, tmp_path):
    wanted = losses(pico_model("llama", dtype="float32"), **WAYS[way])
    model = place(pico_model("llama", dtype="float32"))
    with cuda():
        found = losses(model, tmp_path / "checkpoint", **WAYS[way])
    assert not (tmp_path / "checkpoint").exists()
    # Passes of half precision are rounded at other places: look-alike tensors take no autocast of the CPU.
    np.testing.assert_allclose(found, wanted, rtol=5e-2 if way == "autocast" else 1e-4)


@pytest.mark.slow
def test_a_device_is_measured():
    with cuda():
        device = measure_device.__wrapped__("cuda")
    assert (device.name, device.kind, device.measured) == ("look-alike", "cuda", True)
    assert min(device.passes, device.forming, device.products) > 0
