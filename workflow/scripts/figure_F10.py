"""F10: measured rates against theory and every rule against the oracle, where the truth is known."""

from figures import draw
from job import Job
from stopwise import artifacts

with Job(snakemake) as job:
    draw(job, "F10", [artifacts.read_table(path, "theory_study") for path in snakemake.input.study])
