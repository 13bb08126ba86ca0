"""F9: where the kernel comes from, layer by layer."""

from figures import draw, pairs
from job import Job

with Job(snakemake) as job:
    draw(job, "F9", pairs(snakemake.input.share, "layer_share"))
