"""Judge every stopping rule on regression problems of one decay, where the truth is known."""

from job import Job
from stopwise.studies.synthetic import study

with Job(snakemake) as job:
    theory = snakemake.params.theory
    rows = study(snakemake.wildcards.decay, theory["sizes"], theory["repeats"], theory["seed"])
    job.write(snakemake.output[0], rows, "theory_study")
