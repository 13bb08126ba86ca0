"""F6: the training residual by direction, training loss, kernel drift and distance, beside what the theory says."""

from figures import draw, pairs
from job import Job

with Job(snakemake) as job:
    files, kinds = snakemake.input, ("trajectory", "directions", "drift", "guarantee")
    draw(job, "F6", *(pairs(files[kind], kind) for kind in kinds))
