"""Write a finished run's small tables, pages and pictures into docs/records, with a page on how they were made."""

from pathlib import Path

from job import Job
from stopwise.artifacts import tables as artifacts
from stopwise.report.record import copied, job_times, pictured, readme, revisions, write_record

with Job(snakemake) as job:
    params, files, output = snakemake.params, snakemake.input, snakemake.output
    tables = {name: list(files[name]) for name in params.tables}
    written = write_record(Path(output.text).parent, tables)
    copied(dict(zip(files.pages, output.pages, strict=True)))
    pictured(dict(zip(files.pictures, output.pictures, strict=True)))
    made_at = revisions(path for paths in tables.values() for path in paths)
    captions = {Path(path).stem.upper(): Path(path).read_text(encoding="utf-8") for path in files.captions}
    text = readme(params.name, params.command, params.digest, made_at, written, job_times(params.times), captions)
    with artifacts.atomic_path(output.text) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(text)
