"""Average the folds' curves and say at which step the training on all examples ends, at every size."""

import numpy as np

from job import Job
from stopwise.artifacts import tables as artifacts
from stopwise.stopping.folds import folded_stop

with Job(snakemake) as job:
    params = snakemake.params
    parts = [row for path in snakemake.input for row in artifacts.read_table(path, "fold_curve").to_pylist()]
    rows, curves = [], []
    for n in params.sizes:
        own = [row for row in parts if row["n"] == n]
        t, loss, steps, curve = folded_stop(own, params.stop, params.patience, params.min_delta)
        epochs = t * min(params.batch_size or n, n) / n
        flags = ["still_improving"] if t == steps[-1] else []
        rows.append({"n": n, "rule": params.stop, "t": t, "epochs": epochs, "predicted_risk": loss, "flags": flags})
        for step, value in zip(steps, curve, strict=True):
            kept = float(value) if np.isfinite(value) else None
            curves.append({"n": n, "rule": params.stop, "t": int(step), "eta": float(step), "value": kept})
    job.write(snakemake.output.stopping, rows, "stopping")
    job.write(snakemake.output.curve, curves, "stopping_curve")
