"""Decompose the kernel at every training size and fit the decay of its eigenvalues."""

from job import Job
from stopwise.artifacts import tables as artifacts
from stopwise.artifacts.gram import read_gram
from stopwise.artifacts.sample import read_sample
from stopwise.linearized.spectrum_rows import decay_row, spectrum_rows

with Job(snakemake) as job:
    sample = read_sample(snakemake.input.data)
    gram = read_gram(artifacts.read_table(snakemake.input.gram, "gram"))
    stopping = snakemake.params.stopping
    rows, decays = [], []
    for n in snakemake.params.sizes:
        kernel = gram.leading(n)
        y = sample.targets("train", snakemake.params.outputs, gram.scale(stopping["target_scale"]), n)
        spec = kernel.spectrum(stopping["intercept"])
        rows += spectrum_rows(n, spec, y - kernel.outputs)
        decays.append(decay_row(n, spec, y - kernel.outputs, stopping["noise"]))
    last = decays[-1]
    metrics = {key: last[key] for key in ("exponent", "trace", "stable_rank", "effective_dimension")}
    origin = {"data": sample.digest}
    job.write(snakemake.output.spectrum, rows, "spectrum", **origin)
    job.write(snakemake.output.decay, decays, "decay", metrics=metrics, **origin)
