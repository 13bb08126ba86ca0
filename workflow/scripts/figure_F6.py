"""F6: the training residual by direction, training loss and distance, beside what the theory says."""

from figures import draw, pairs
from job import Job

with Job(snakemake) as job:
    draw(job, "F6", pairs(snakemake.input.trajectory, "trajectory"), pairs(snakemake.input.directions, "directions"))
