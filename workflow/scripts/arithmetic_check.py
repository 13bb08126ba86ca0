"""Hold predicted task arithmetic against the measured: every pair of numbers, and how well they agree."""

from job import Job
from stopwise.artifacts import tables as artifacts
from stopwise.merging.agreement import agreement, compared, markdown

with Job(snakemake) as job:
    files, rows, outside = snakemake.input, [], None
    kinds = ("interference", "interference", "arithmetic_prediction", "arithmetic")
    for paths in zip(files.effects, files.measured_effects, files.points, files.arithmetic, strict=True):
        record = artifacts.read_provenance(paths[0])
        outside = record["outside_theory"]
        tables = [artifacts.read_table(path, kind).to_pylist() for path, kind in zip(paths, kinds, strict=True)]
        rows += compared(int(record["seed"]), *tables, outside)
    found = agreement(rows)
    test = [row for row in found if row["split"] != "validation"]
    metrics = {
        f"{row['method']}/{row['kind'] or 'vectors'}/{row['quantity']}/rank_correlation": row["rank_correlation"]
        for row in test
    }
    with artifacts.atomic_path(snakemake.output.text) as temporary:
        temporary.write_text(markdown(test, outside), encoding="utf-8")
    job.write(snakemake.output.table, rows, "arithmetic_check", metrics=metrics)
    job.write(snakemake.output.agreement, found, "arithmetic_agreement")
