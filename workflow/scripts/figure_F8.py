"""F8: task addition and negation, accuracy against the scaling coefficient, beside what the kernels predict."""

from figures import draw, pairs
from job import Job

with Job(snakemake) as job:
    files = snakemake.input
    measured, predicted = pairs(files.arithmetic, "arithmetic"), pairs(files.predicted, "arithmetic_prediction")
    draw(job, "F8", measured, (), predicted, pairs(files.joint, "joint"))
