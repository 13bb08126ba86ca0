"""Project what real training has left to learn on the kernel's eigenvectors, beside what the kernel predicts."""

from job import Job
from stopwise.artifacts import tables as artifacts
from stopwise.artifacts.gram import read_gram
from stopwise.artifacts.sample import read_sample
from stopwise.linearized.directions import error_decay, residual_decay
from stopwise.linearized.guarantee import loss_guarantee
from stopwise.training.prediction import predicted_paths, step_eigenvalue, train_objective
from stopwise.training.settings import FinetuneSettings

with Job(snakemake) as job:
    params = snakemake.params
    sample = read_sample(snakemake.input.data)
    gram = read_gram(artifacts.read_table(snakemake.input.gram, "gram"))
    table = artifacts.read_table(snakemake.input.outputs, "finetune_outputs")
    scale = gram.scale(params.stopping["target_scale"])
    others = {"outputs": params.outputs, "target_scale": scale, "intercept": params.stopping["intercept"]}
    settings = FinetuneSettings.from_config(params.finetune, **others)
    held_out, seed = len(sample.labels("validation")), int(job.wildcards["seed"])
    kept = table.filter(table["split"].to_numpy() == "train")
    rows, bounds = [], []
    for n in sorted(set(kept["n"].to_pylist())):
        kernel = gram.leading(n)
        spec = kernel.spectrum(params.stopping["intercept"])
        residual = sample.targets("train", params.outputs, scale, n) - kernel.outputs
        steps = sorted({row["step"] for row in kept.select(["n", "step"]).to_pylist() if row["n"] == n})
        outputs = {step: artifacts.read_matrix(kept, n=n, step=step) for step in steps}
        if settings.objective == "cross_entropy":
            objective = train_objective(sample, settings, n)
            path = predicted_paths(kernel, spec, objective, settings, held_out, seed).get("train")
            rows += [{"n": n, **row} for row in error_decay(spec, objective, outputs, path)]
            continue
        step_filter = None
        if settings.has_path:
            step_filter = settings.filter(step_eigenvalue(spec, settings.batch_size))
        rows += [{"n": n, **row} for row in residual_decay(spec, residual, outputs, step_filter)]
        if step_filter is not None and settings.follows_filter(n):
            found = loss_guarantee(spec, residual, step_filter, steps)
            bounds += [{"n": n, "step": step, "guarantee": bound} for step, bound in zip(steps, found, strict=True)]
    job.write(snakemake.output.directions, rows, "directions", data=sample.digest)
    job.write(snakemake.output.guarantee, bounds, "guarantee", data=sample.digest)
