"""F4: test error against sample size, beside the slope that the spectrum predicts."""

from figures import draw, pairs
from job import Job

with Job(snakemake) as job:
    evaluations, decays = pairs(snakemake.input.evaluation, "evaluation"), pairs(snakemake.input.decay, "decay")
    draw(job, "F4", evaluations, decays, pairs(snakemake.input.stopping, "stopping"))
