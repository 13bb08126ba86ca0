"""Write the run's interactive results page: one HTML file that needs no network."""

from pathlib import Path

from job import Job
from stopwise.artifacts import tables as artifacts
from stopwise.report import page

with Job(snakemake) as job:
    files = snakemake.input
    tables = {Path(path).stem: artifacts.read_table(path, Path(path).stem) for path in files.tables}
    text = page.render(
        snakemake.params.name,
        tables,
        artifacts.read_table(files.summary, "summary"),
        {Path(path).stem: Path(path).read_bytes() for path in files.pictures},
        snakemake.params.facts,
        artifacts.read_table(files.claims, "claims"),
    )
    with artifacts.atomic_path(snakemake.output[0]) as temporary:
        temporary.write_text(text, encoding="utf-8")
