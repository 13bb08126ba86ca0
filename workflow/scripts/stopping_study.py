"""Bring the study of the stopping rules together: its tables, the same as text, and F3 under squared loss."""

from pathlib import Path

from job import Job
from stopwise.artifacts import tables as artifacts
from stopwise.figures import f03_rules as f3
from stopwise.figures import style
from stopwise.studies.tables import study_markdown, study_table

with Job(snakemake) as job:
    rows, drawn = [], []
    for wildcards, table in artifacts.read_pairs(snakemake.input.cells, "stopping_study"):
        found = table.to_pylist()
        rows += [{**row, **wildcards} for row in found]
        drawn += [
            {**{key: row.get(key) for key in f3.COLUMNS.names}, **wildcards, "rule": row["method"]}
            for row in found
            if row["objective"] == "squared" and row["method"] in style.RULES and row["loss"] is not None
        ]
    summary = study_table(rows)
    cells = len({(row["task"], row["seed"], row["n"]) for row in rows})
    text = study_markdown(summary, cells)
    with artifacts.atomic_path(snakemake.output.text) as temporary:
        temporary.write_text(text, encoding="utf-8")
    metrics = {f"{row['objective']}/{row['measure']}/{row['method']}": row["value"] for row in summary}
    job.write(snakemake.output.table, summary, "stopping_study_summary", metrics=metrics)
    job.write(snakemake.output.figure, drawn, "F3")
    picture = f3.draw(artifacts.read_table(snakemake.output.figure, "F3"))
    style.save(picture, Path(snakemake.output.svg).with_suffix(""))
    print(text)
