"""F5: ridge at 1/eta against early stopping at eta."""

from figures import draw
from job import Job
from stopwise import artifacts

with Job(snakemake) as job:
    draw(job, "F5", [artifacts.read_table(path, "theory_ridge") for path in snakemake.input.ridge])
