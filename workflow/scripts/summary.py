"""Write the headline numbers: a table, and the same as text."""

from pathlib import Path

from job import Job
from stopwise.artifacts import tables as artifacts
from stopwise.artifacts.gram import read_gram
from stopwise.artifacts.sample import read_sample
from stopwise.report import summary
from stopwise.stopping.scores import rule_table

with Job(snakemake) as job:
    params, files = snakemake.params, snakemake.input
    samples = {}
    for path in files.data:
        found = artifacts.read_provenance(path)["wildcards"]
        samples[found["task"], int(found["seed"])] = read_sample(path)
    rows, evaluations = [], []
    for wildcards, table in artifacts.read_pairs(files.gram, "gram"):
        kernel, sample = read_gram(table), samples[wildcards["task"], wildcards["seed"]]
        for n in params.sizes:
            found = summary.baselines(kernel, sample, params.outputs, n=n, **params.stopping)
            rows += [{**wildcards, **row} for row in found]
    for wildcards, table in artifacts.read_pairs(files.evaluation, "evaluation"):
        judged = [{**wildcards, **row} for row in table.to_pylist()]
        evaluations += judged
        rows += [{**row, "method": row["rule"]} for row in judged]
    for wildcards, table in artifacts.read_pairs(files.trajectory, "trajectory"):
        rows += [{**wildcards, **row} for row in summary.last_steps(table.to_pylist())]
    chosen = []
    for wildcards, table in artifacts.read_pairs(files.arithmetic, "arithmetic"):
        chosen += [{**wildcards, **row} for row in table.to_pylist() if row["chosen"] and row["split"] == "test"]
    averages, rules = summary.averaged(rows), rule_table(evaluations)
    with artifacts.atomic_path(snakemake.output.text) as temporary:
        temporary.write_text(summary.markdown(params.name, averages, rules, chosen), encoding="utf-8")
    metrics = {f"regret/{row['start']}/{row['rule']}": row["regret"][0] for row in rules if row["regret"]}
    job.write(snakemake.output.table, averages, "summary", metrics=metrics)
    print(Path(snakemake.output.text).read_text(encoding="utf-8"))
