"""Say from the kernels, before any merging, which pairs of task vectors add well and at which coefficient."""

from job import Job
from stopwise.artifacts import tables as artifacts
from stopwise.merging.pairs import advice_markdown, advise

with Job(snakemake) as job:
    advice, outside = [], None
    for points, effects in zip(snakemake.input.points, snakemake.input.effects, strict=True):
        record = artifacts.read_provenance(points)
        outside = record["outside_theory"]
        method = "least_squares" if outside else "filter"
        tables = []
        for path, kind in ((points, "arithmetic_prediction"), (effects, "interference")):
            rows = artifacts.read_table(path, kind).to_pylist()
            tables.append([row for row in rows if row["method"] == method])
        advice += advise(*tables, int(record["seed"]))
    text = advice_markdown(advice, outside)
    with artifacts.atomic_path(snakemake.output.text) as temporary:
        temporary.write_text(text, encoding="utf-8")
    job.write(snakemake.output.table, advice, "merge_advice")
    print(text)
