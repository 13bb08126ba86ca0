"""Write a finished study of the stopping rules into docs/records, with a page that says how it was made."""

from pathlib import Path

from job import Job
from stopwise.artifacts import tables as artifacts
from stopwise.report.record import copied, pictured, readme, revisions, write_record

with Job(snakemake) as job:
    params, files, output = snakemake.params, snakemake.input, snakemake.output
    tables = {"cells": list(files.cells), "methods": [files.table]}
    written = write_record(Path(output.text).parent, tables)
    copied({files.page: output.page})
    pictured({files.picture: output.picture})
    made_at = revisions([*files.cells, files.table])
    captions = {"F3": Path(files.caption).read_text(encoding="utf-8")}
    title = f"{params.name}, study of the rules"
    text = readme(title, params.command, params.digest, made_at, written, captions=captions)
    with artifacts.atomic_path(output.text) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(text)
