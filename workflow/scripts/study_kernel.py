"""Compute the kernel of AdamW at the start of a data set, seed and size of the study, the head as training has it."""

import numpy as np

from job import Job, use_device
from stopwise.artifacts.sample import read_sample
from stopwise.artifacts.tables import matrix_rows
from stopwise.linearized.coding import columns
from stopwise.studies.encoder_rows import PROBE

with Job(snakemake) as job:
    device = use_device(job, snakemake.params.device)
    from stopwise.network.adapters import trained
    from stopwise.network.loading import load_start
    from stopwise.studies.encoder_runs import fit_start, kernel_rows, small_vocabulary
    from stopwise.tasks.batch import batch_from_table
    from stopwise.training.settings import FinetuneSettings

    params, task, seed = snakemake.params, job.wildcards["task"], int(job.wildcards["seed"])
    n, head = int(job.wildcards["n"]), job.wildcards["head"]
    sample, kernel = read_sample(snakemake.input.data), trained(params.kernel)
    count = min(n, params.rows // columns(sample.class_count))
    model, stamp = load_start(snakemake, "pretrained", seed, device, sample.classes)
    rows = []
    # Of fewer than all its examples a kernel tells the learning rate only.
    if count == n or params.rates:
        train = batch_from_table(sample.table, "train", n, verbalizers=sample.verbalizers)
        settings = FinetuneSettings(
            objective="cross_entropy",
            optimizer="adamw",
            formula="adam",
            batch_size=min(params.batch_size, count),
            parameters=kernel["parameters"],
        )
        with small_vocabulary(model, [train]) as (own,):
            if head == PROBE:
                logits = fit_start(model, own, np.arange(n), seed, left_out=count == n)
                rows += matrix_rows(logits.reshape(len(logits), -1), block="left_out") if count == n else []
            leading = {key: value if key == "verbalizers" else value[:count] for key, value in own.items()}
            rows += kernel_rows(model, leading, settings, kernel, seed, device, params.plain and count == n)
    rows = [{"task": task, "seed": seed, "n": n, "start": head, **row} for row in rows]
    job.write(snakemake.output[0], rows, "study_kernel", model=stamp["fingerprint"], data=sample.digest)
