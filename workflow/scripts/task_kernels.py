"""Compute the kernel blocks between the training and held-out examples of different tasks, of one shard's layers."""

from job import Job, use_device
from stopwise.artifacts.sample import read_sample

with Job(snakemake) as job:
    params, files = snakemake.params, snakemake.input
    device = use_device(job, params.device)
    from stopwise.kernel.between_tasks import cross_kernels
    from stopwise.kernel.ntk import kernel_layers, layer_costs, split_layers
    from stopwise.network.loading import load_start
    from stopwise.tasks.batch import batch_from_table

    model, stamp = load_start(snakemake, "pretrained", int(job.wildcards["seed"]), device)
    kernel = params.kernel
    names = kernel_layers(model, kernel["parameters"])
    shard, shards = int(job.wildcards["shard"]), int(job.wildcards["shards"])
    layers = split_layers(names, layer_costs(model, kernel["parameters"]), shards)[shard]
    if not layers:
        raise ValueError(
            f"config key arithmetic.shards: {shards} shards for {len(names)} layers; allowed: up to that many"
        )
    train, new, digests = {}, {}, []
    for name, path in zip(params.tasks, files.data, strict=True):
        sample = read_sample(path)
        digests.append(sample.digest)
        train[name] = batch_from_table(sample.table, "train", params.size, sample.verbalizers)
        new[name] = batch_from_table(sample.table, ("validation", "test"), verbalizers=sample.verbalizers)
    blocks = cross_kernels(model, train, new, layers=layers, device=device, progress=True, **kernel)
    job.write(snakemake.output[0], blocks.rows(), "task_kernels", model=stamp["fingerprint"], data=",".join(digests))
