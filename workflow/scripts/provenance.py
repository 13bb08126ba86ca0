"""Write the table artifact -> rule, config section, inputs' digests, versions, seed, time, memory and device."""

from pathlib import Path

import pyarrow.csv

from job import Job
from stopwise.artifacts import tables as artifacts
from stopwise.report.provenance import provenance_rows

with Job(snakemake) as job:
    results = Path(snakemake.output.table).parent
    table = artifacts.table_of(provenance_rows(results, snakemake.input.artifacts), "provenance")
    with artifacts.atomic_path(snakemake.output.csv) as temporary:
        pyarrow.csv.write_csv(table, temporary)
    job.write(snakemake.output.table, table, "provenance")
