"""Compute one shard of a large kernel and report its time and the memory of the process."""

import time

from job import Job, peak_mb, use_device

with Job(snakemake) as job:
    device = use_device(job, snakemake.params.device)
    from stopwise.cost.benchmark import random_batch
    from stopwise.kernel.ntk import empirical_ntk, kernel_layers, layer_costs, split_layers
    from stopwise.network.loading import load_start

    params = snakemake.params
    model, stamp = load_start(snakemake, "pretrained", 0, device)
    shard, shards = int(job.wildcards["shard"]), int(job.wildcards["shards"])
    layers = split_layers(kernel_layers(model), layer_costs(model), shards)[shard]
    batch = random_batch(params.n, params.tokens, model.config.vocab_size)
    began = time.perf_counter()
    kernel = empirical_ntk(model, batch, layers=layers, memory_gb=params.memory_gb, device=device, progress=True)
    seconds = time.perf_counter() - began
    row = {"n": params.n, "tokens": params.tokens, "shard": shard, "shards": shards, "layers": len(layers)}
    row |= {"seconds": seconds, "peak_gib": peak_mb() / 1024}
    metrics = {"trace": float(kernel.matrix.trace())}
    job.write(snakemake.output[0], [row], "benchmark_large", metrics=metrics, model=stamp["fingerprint"])
