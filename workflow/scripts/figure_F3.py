"""F3: the stopping rules compared by hit rate, regret and time."""

from figures import draw, pairs
from job import Job

with Job(snakemake) as job:
    draw(job, "F3", pairs(snakemake.input.evaluation, "evaluation"))
