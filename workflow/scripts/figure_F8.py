"""F8: task addition and negation, accuracy against the scaling coefficient."""

from figures import draw, pairs
from job import Job

with Job(snakemake) as job:
    draw(job, "F8", pairs(snakemake.input.arithmetic, "arithmetic"))
