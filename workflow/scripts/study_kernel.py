"""Compute the kernel of AdamW, and the plain one, at the start of a data set and seed of the study."""

from job import Job, use_device
from stopwise.artifacts.sample import read_sample
from stopwise.linearized.coding import columns

with Job(snakemake) as job:
    device = use_device(job, snakemake.params.device)
    from stopwise.network.adapters import trained
    from stopwise.network.loading import load_start
    from stopwise.studies.encoder_runs import kernel_rows, small_vocabulary
    from stopwise.tasks.batch import batch_from_table
    from stopwise.training.settings import FinetuneSettings

    params, task, seed = snakemake.params, job.wildcards["task"], int(job.wildcards["seed"])
    sample, kernel = read_sample(snakemake.input.data), trained(params.kernel)
    model, stamp = load_start(snakemake, "pretrained", seed, device, sample.classes)
    count = min(params.examples, params.rows // columns(sample.class_count), len(sample.labels("train")))
    train = batch_from_table(sample.table, "train", count, verbalizers=sample.verbalizers)
    settings = FinetuneSettings(
        objective="cross_entropy",
        optimizer="adamw",
        formula="adam",
        batch_size=min(params.batch_size, count),
        clip_norm=params.clip_norm,
        parameters=kernel["parameters"],
    )
    with small_vocabulary(model, [train]) as (own,):
        rows = kernel_rows(model, own, settings, kernel, seed, device)
    rows = [{"task": task, "seed": seed, **row} for row in rows]
    job.write(snakemake.output[0], rows, "study_kernel", model=stamp["fingerprint"], data=sample.digest)
