"""Measure one part of the benchmark: the kernel against its floor, its peers, or its error."""

from job import Job, use_device

with Job(snakemake) as job:
    device = use_device(job, snakemake.params.device)
    from stopwise.cost import benchmark
    from stopwise.network.loading import load_start

    model, stamp = load_start(snakemake, "pretrained", 0, device)
    tokens, part = snakemake.params.tokens, job.wildcards["part"]
    if part == "floor":
        rows = [
            row
            for outputs in ("contrast", "logits")
            for row in benchmark.compare(model, (32, 64, 128), tokens, outputs=outputs)
        ]
    elif part == "errors":
        rows = benchmark.errors(model, 16, tokens)
    else:
        rows = benchmark.compare_peers(model, 32, tokens)
        rows += benchmark.compare_peers(model, 64, tokens, peers=("loop",))
    job.write(snakemake.output[0], rows, f"benchmark_{part}", model=stamp["fingerprint"])
