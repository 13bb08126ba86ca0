"""F2: curves of real fine-tuning, the linearised prediction over them, and every rule's stop."""

from figures import draw, pairs
from job import Job

with Job(snakemake) as job:
    trajectories = pairs(snakemake.input.trajectory, "trajectory")
    draw(job, "F2", trajectories, pairs(snakemake.input.evaluation, "evaluation"))
