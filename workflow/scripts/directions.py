"""Project the real training residual on the kernel's eigenvectors, beside what the filter predicts and guarantees."""

from job import Job
from stopwise.artifacts import tables as artifacts
from stopwise.artifacts.gram import read_gram
from stopwise.artifacts.sample import read_sample
from stopwise.linearized.directions import residual_decay
from stopwise.linearized.guarantee import loss_guarantee
from stopwise.training.prediction import step_eigenvalue
from stopwise.training.settings import FinetuneSettings

with Job(snakemake) as job:
    params = snakemake.params
    sample = read_sample(snakemake.input.data)
    gram = read_gram(artifacts.read_table(snakemake.input.gram, "gram"))
    table = artifacts.read_table(snakemake.input.outputs, "finetune_outputs")
    settings = FinetuneSettings.from_config(params.finetune, outputs=params.outputs)
    kept = table.filter(table["split"].to_numpy() == "train")
    rows, bounds = [], []
    for n in sorted(set(kept["n"].to_pylist())):
        kernel = gram.leading(n)
        spec = kernel.spectrum(params.stopping["intercept"])
        scale = gram.scale(params.stopping["target_scale"])
        residual = sample.targets("train", params.outputs, scale, n) - kernel.outputs
        steps = sorted({row["step"] for row in kept.select(["n", "step"]).to_pylist() if row["n"] == n})
        outputs = {step: artifacts.read_matrix(kept, n=n, step=step) for step in steps}
        step_filter = None
        if settings.objective == "squared" and settings.has_path:
            step_filter = settings.filter(step_eigenvalue(spec, settings.batch_size))
        rows += [{"n": n, **row} for row in residual_decay(spec, residual, outputs, step_filter)]
        if step_filter is not None and settings.follows_filter(n):
            found = loss_guarantee(spec, residual, step_filter, steps)
            bounds += [{"n": n, "step": step, "guarantee": bound} for step, bound in zip(steps, found, strict=True)]
    job.write(snakemake.output.directions, rows, "directions", data=sample.digest)
    job.write(snakemake.output.guarantee, bounds, "guarantee", data=sample.digest)
