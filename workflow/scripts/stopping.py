"""Say, from the kernel alone, when each rule would stop training at every size."""

from job import Job
from stopwise.artifacts import tables as artifacts
from stopwise.artifacts.gram import read_gram
from stopwise.artifacts.sample import read_sample
from stopwise.stopping.known import BeforeTraining
from stopwise.stopping.registry import MEASURED
from stopwise.stopping.stops import stopping_table, time_grid
from stopwise.training.prediction import replay, step_eigenvalue
from stopwise.training.settings import FinetuneSettings

with Job(snakemake) as job:
    sample = read_sample(snakemake.input.data)
    gram = read_gram(artifacts.read_table(snakemake.input.gram, "gram"))
    stopping, coding = snakemake.params.stopping, snakemake.params.outputs
    scale = gram.scale(stopping["target_scale"])
    others = {"outputs": coding, "target_scale": scale, "intercept": stopping["intercept"]}
    settings = FinetuneSettings.from_config(snakemake.params.finetune, **others)
    t_max = stopping["t_max"] or settings.steps
    rules = [rule for rule in stopping["rules"] if rule not in MEASURED]
    # Half of an adapter is zero at the start, so that the other half moves outputs in second order only.
    known = ["second_order_left_out"] if "parameters" in snakemake.params.finetune else []
    rows, curves = [], []
    for n in snakemake.params.sizes:
        kernel = gram.leading(n)
        spec = kernel.spectrum(stopping["intercept"])
        y = sample.targets("train", coding, scale, n)
        lambda_1 = step_eigenvalue(spec, settings.batch_size)
        run = BeforeTraining(
            spec,
            y - kernel.outputs,
            settings.filter(lambda_1),
            t_max,
            settings.batch_size,
            noise=stopping["noise"],
            radius=stopping["radius"],
            times=time_grid(t_max),
            targets=y,
            replay=replay(sample, settings, n, t_max, int(job.wildcards["seed"]), kernel, lambda_1),
        )
        found, values = stopping_table(run, rules)
        for row in found:
            flags = [*row["flags"].split(), *(["heuristic"] if settings.heuristic(row["rule"]) else []), *known]
            rows.append({"n": n, **row, "flags": sorted(set(flags))})
        curves += [{"n": n, **row} for row in values]
    metrics = {f"t/{row['rule']}": row["t"] for row in rows if row["n"] == max(snakemake.params.sizes)}
    job.write(snakemake.output.stopping, rows, "stopping", metrics=metrics, data=sample.digest)
    job.write(snakemake.output.curve, curves, "stopping_curve", data=sample.digest)
