"""Run the passes of one Jacobian shard, or of two blocks of the examples, and add up their Gram contributions."""

from job import Job, use_device
from stopwise.artifacts.sample import read_sample

with Job(snakemake) as job:
    device = use_device(job, snakemake.params.device)
    from stopwise.network.loading import load_start
    from stopwise.training.jacobian_block import jacobian_block
    from stopwise.training.jacobian_shard import jacobian_shard

    sample = read_sample(snakemake.input.data)
    blocks = "blocks" in job.wildcards
    names = ("left", "right", "blocks") if blocks else ("shard", "shards")
    compute, kind = (jacobian_block, "jacobian_block") if blocks else (jacobian_shard, "jacobian")
    seed, piece = int(job.wildcards["seed"]), tuple(int(job.wildcards[name]) for name in names)
    model, stamp = load_start(snakemake, job.wildcards["start"], seed, device, sample.classes)
    table, job.noted["kernel"] = compute(
        model,
        sample,
        snakemake.params.kernel,
        piece,
        seed=seed,
        device=device,
        source=stamp["source"],
        adam=snakemake.params.adam,
        scheduled=snakemake.params.get("scheduled", {}),
    )
    job.write(snakemake.output[0], table, kind, model=stamp["fingerprint"], data=sample.digest)
