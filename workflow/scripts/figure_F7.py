"""F7: cosine, interference and transfer of task vectors, predicted by the kernels and measured."""

from figures import draw, pairs
from job import Job

with Job(snakemake) as job:
    draw(job, "F7", pairs([snakemake.input.check], "arithmetic_check"))
