"""Write the measured tables of the synthetic check and of the linearity check as Markdown."""

from pathlib import Path

from job import Job
from stopwise.artifacts import tables as artifacts
from stopwise.studies.synthetic_tables import linearity_markdown, markdown

with Job(snakemake) as job:
    summary = artifacts.read_table(snakemake.input.figure, "F10").to_pylist()
    linear = artifacts.read_table(snakemake.input.linear, "theory_linear").to_pylist()
    text = markdown(summary) + "\n" + linearity_markdown(linear)
    with artifacts.atomic_path(snakemake.output[0]) as path:
        Path(path).write_text(text, encoding="utf-8")
    print(text)
