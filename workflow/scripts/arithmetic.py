"""Add and negate the task vectors of one seed on the real network; the coefficient is chosen on validation."""

from job import Job, use_device

with Job(snakemake) as job:
    params, files = snakemake.params, snakemake.input
    device = use_device(job, params.device)
    from stopwise.merging.measured import arithmetic_rows, interference_rows
    from stopwise.merging.workbench import read_bench
    from stopwise.network.loading import load_start

    model, stamp = load_start(snakemake, "pretrained", int(job.wildcards["seed"]), device)
    options = {"outputs": params.outputs, "target_scale": params.target_scale}
    bench, data = read_bench(model, stamp["fingerprint"], params.tasks, files.data, files.index, files.vectors, options)
    own, origin = params.arithmetic, {"model": stamp["fingerprint"], "data": data}
    rows = arithmetic_rows(bench, own["coefficients"], own["control_tolerance"])
    chosen = [row for row in rows if row["chosen"] and row["split"] == "test" and row["kind"] == "addition"]
    metrics = {"addition/normalised_accuracy": sum(row["normalised_accuracy"] for row in chosen) / max(len(chosen), 1)}
    job.write(snakemake.output.interference, interference_rows(bench), "interference", **origin)
    job.write(snakemake.output.arithmetic, rows, "arithmetic", metrics=metrics, **origin)
