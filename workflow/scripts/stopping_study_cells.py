"""Judge every stopping rule on the linearised path of one task and seed, at every training size."""

from tqdm import tqdm

from job import Job
from stopwise.artifacts import tables as artifacts
from stopwise.artifacts.gram import read_gram
from stopwise.artifacts.sample import read_sample
from stopwise.studies.on_the_path import Cell, cell_rows
from stopwise.studies.on_the_path_log_loss import LogLossCell

with Job(snakemake) as job:
    params, seed = snakemake.params, int(job.wildcards["seed"])
    sample = read_sample(snakemake.input.data)
    kernel = read_gram(artifacts.read_table(snakemake.input.gram, "gram"))
    rows, scale = [], kernel.scale(params.target_scale)
    for n in tqdm(params.sizes, desc="training sizes", unit="size"):
        for kind in (Cell, LogLossCell):
            rows += cell_rows(kind(kernel, sample, n, params.outputs, scale), seed)
    job.write(snakemake.output[0], rows, "stopping_study", data=sample.digest)
