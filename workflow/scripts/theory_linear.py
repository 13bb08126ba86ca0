"""Train pico transformers of growing width beside their linearised paths."""

from job import Job, use_device

with Job(snakemake) as job:
    use_device(job, "cpu")
    from stopwise.studies.linearity import compare_with_training

    rows = []
    for width, scale in snakemake.params.cells:
        for optimizer in ("gradient_descent", "heavy_ball"):
            rows += compare_with_training(width, scale, optimizer, seed=snakemake.params.seed)
    worst = {
        f"deviation/{width}/{scale}": max(r["deviation"] for r in rows if (r["width"], r["scale"]) == (width, scale))
        for width, scale in snakemake.params.cells
    }
    job.write(snakemake.output[0], rows, "theory_linear", metrics=worst)
