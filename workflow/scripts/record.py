"""Write a finished run's small tables into docs/data, with a page that says how they were made."""

from pathlib import Path

from job import Job
from stopwise import artifacts
from stopwise.record import readme, revisions, write_record

with Job(snakemake) as job:
    params = snakemake.params
    folder = Path(snakemake.output.text).parent
    tables = {name: list(snakemake.input[name]) for name in params.tables}
    written = write_record(folder, tables)
    made_at = revisions(path for paths in tables.values() for path in paths)
    with artifacts.atomic_path(snakemake.output.text) as temporary:
        temporary.write_text(readme(params.name, params.command, params.digest, made_at, written), encoding="utf-8")
    print(Path(snakemake.output.text).read_text(encoding="utf-8"))
