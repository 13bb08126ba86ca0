"""What the kernel says about a run before it starts: its spectrum and the linearised path of every split (no torch)."""

from __future__ import annotations

import numpy as np

from stopwise.dynamics import linearized_path, squared_norm_path, train_path
from stopwise.filters import Filter
from stopwise.gram_assembly import AssembledKernel
from stopwise.spectrum import Spectrum


def predicted_paths(
    kernel: AssembledKernel, spec: Spectrum, residual: np.ndarray, filter: Filter, steps: int, validation: int
) -> dict[str, np.ndarray]:
    """Return the linearised outputs minus f0 by split, [steps + 1, rows], and ``distance`` |theta_t - theta_0|.

    ``validation`` is how many of the new examples come first as validation; the rest are the test examples.
    """
    new = linearized_path(spec, residual, kernel.new, filter, steps)
    cut = validation * kernel.columns
    return {
        "train": train_path(spec, residual, filter, steps),
        "validation": new[:, :cut],
        "test": new[:, cut:],
        "distance": np.sqrt(np.maximum(squared_norm_path(spec, residual, filter, steps), 0.0)),
    }


def start_outputs(kernel: AssembledKernel, validation: int) -> dict[str, np.ndarray]:
    """Return f0 by split, float32 [n, columns] without b_hat, as the kernel's passes computed it.

    ``validation`` is how many of the new examples come first as validation; the rest are the test examples.
    """
    new = kernel.outputs_new.astype(np.float32)
    train = kernel.outputs.astype(np.float32)
    return {"train": train, "validation": new[:validation], "test": new[validation:]}
