"""Train one task at every training size without one part of the examples, and measure that part along the way."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from job import Job, use_device
from stopwise.artifacts import tables as artifacts
from stopwise.artifacts.gram import read_gram
from stopwise.artifacts.sample import read_sample
from stopwise.stopping.folds import stratified_folds
from stopwise.training.prediction import step_eigenvalue

with Job(snakemake) as job:
    device = use_device(job, snakemake.params.device)
    from stopwise.network.adapters import trained
    from stopwise.network.loading import load_start
    from stopwise.tasks.batch import batch_from_table
    from stopwise.training.checkpoint import remove_checkpoint
    from stopwise.training.finetune import FinetuneSettings, finetune, rows_of

    params, sizes = snakemake.params, snakemake.params.sizes
    start, task, seed = job.wildcards["start"], job.wildcards["task"], int(job.wildcards["seed"])
    fold, folds = int(job.wildcards["fold"]), int(job.wildcards["folds"])
    settings = FinetuneSettings.from_config(params.finetune, **trained(params.kernel), **params.stopping)
    settings = replace(settings, stop="none", stop_at=None)
    sample = read_sample(snakemake.input.data)
    gram = read_gram(artifacts.read_table(snakemake.input.gram, "gram"))
    model, stamp = load_start(snakemake, start, seed, device, sample.classes)
    whole = batch_from_table(sample.table, "train", verbalizers=sample.verbalizers)
    output = Path(snakemake.output[0])
    checkpoints = Path(*output.parts[:2], "checkpoints", *output.parts[2:-1])
    rows, paths = [], []
    for n in sizes:
        part = stratified_folds(sample.labels("train", n), folds, seed) == fold
        paths.append(checkpoints / f"{output.stem}-n{n}.safetensors")
        run = finetune(
            model,
            rows_of(whole, np.flatnonzero(~part)),
            rows_of(whole, np.flatnonzero(part)),
            None,
            settings,
            # The step size of the training on all: the one that the folds are to stop.
            spectrum=step_eigenvalue(gram.leading(n).spectrum(settings.intercept), settings.batch_size),
            checkpoint=paths[-1],
            keep_checkpoint=True,
            metadata={"task": task, "start": start},
            seed=seed,
        )
        about = {"n": n, "fold": fold, "examples": int(part.sum())}
        rows += [{**about, "step": row["step"], "loss": row["validation_loss"]} for row in run.trajectory]
    job.write(output, rows, "fold_curve", model=stamp["fingerprint"], data=sample.digest)
    for path in paths:
        remove_checkpoint(path)
