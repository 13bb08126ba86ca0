"""Risk of ridge at 1/eta and of early stopping at eta on the same synthetic data sets."""

from job import Job
from stopwise.studies.synthetic import ridge_and_descent

with Job(snakemake) as job:
    theory = snakemake.params.theory
    sizes = sorted(theory["sizes"])
    m = sizes[len(sizes) // 2]
    rows = ridge_and_descent(snakemake.wildcards.decay, m, theory["repeats"], theory["seed"])
    job.write(snakemake.output[0], rows, "theory_ridge")
