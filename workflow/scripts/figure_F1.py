"""F1: eigenvalue decay of each task's kernel, with the fitted laws."""

from figures import draw, pairs
from job import Job

with Job(snakemake) as job:
    draw(job, "F1", pairs(snakemake.input.spectrum, "spectrum"), pairs(snakemake.input.decay, "decay"))
