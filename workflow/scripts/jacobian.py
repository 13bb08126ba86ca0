"""Run the passes of one Jacobian shard and add up its own layers' Gram contributions."""

from job import Job, use_device
from stopwise.artifacts.sample import read_sample

with Job(snakemake) as job:
    device = use_device(job, snakemake.params.device)
    from stopwise.network.loading import load_start
    from stopwise.training.jacobian_shard import jacobian_shard

    sample = read_sample(snakemake.input.data)
    seed, shard = int(job.wildcards["seed"]), (int(job.wildcards["shard"]), int(job.wildcards["shards"]))
    model, stamp = load_start(snakemake, job.wildcards["start"], seed, device, sample.classes)
    table, job.noted["kernel"] = jacobian_shard(
        model,
        sample,
        snakemake.params.kernel,
        shard,
        seed=seed,
        device=device,
        source=stamp["source"],
        adam=snakemake.params.adam,
        scheduled=snakemake.params.get("scheduled", {}),
    )
    job.write(snakemake.output[0], table, "jacobian", model=stamp["fingerprint"], data=sample.digest)
