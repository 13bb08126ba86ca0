"""Judge every rule on the measured curves of the run that it would have stopped."""

from job import Job
from stopwise.artifacts import tables as artifacts
from stopwise.stopping.judging import evaluate_rules
from stopwise.training.settings import FinetuneSettings

with Job(snakemake) as job:
    trajectory = artifacts.read_table(snakemake.input.trajectory, "trajectory").to_pylist()
    predicted = artifacts.read_table(snakemake.input.stopping, "stopping").to_pylist()
    rules, settings = snakemake.params.rules, FinetuneSettings.from_config(snakemake.params.finetune)
    rows = []
    for n in sorted({row["n"] for row in trajectory}):
        run = [row for row in trajectory if row["n"] == n]
        answers = [row for row in predicted if row["n"] == n]
        interval = settings.evaluation_interval(n)
        rows += evaluate_rules(run, answers, rules, settings.patience, settings.min_delta, interval)
    largest = max(row["n"] for row in rows)
    metrics = {f"regret/{row['rule']}": row["relative_regret"] for row in rows if row["n"] == largest}
    job.write(snakemake.output[0], rows, "evaluation", metrics=metrics)
