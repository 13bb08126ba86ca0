"""Predict task arithmetic from the kernels: cosine, interference, and every point of the grid, before any merging."""

from job import Job
from stopwise.merging.effects import predicted_rows
from stopwise.merging.predicted import prediction_rows, read_spaces
from stopwise.training.settings import FinetuneSettings

with Job(snakemake) as job:
    params, files = snakemake.params, snakemake.input
    settings = FinetuneSettings.from_config(params.finetune, **params.kernel, **params.stopping)
    spaces = read_spaces(
        params.tasks,
        **{key: files[key] for key in ("data", "gram", "index", "outputs", "blocks")},
        settings=settings,
        formula=params.formula,
        size=params.arithmetic["size"],
        seed=int(job.wildcards["seed"]),
    )
    points, effects = [], []
    for method, space in spaces.by_method.items():
        points += prediction_rows(space, params.arithmetic["coefficients"], method)
        effects += predicted_rows(space, method)
    origin = {"model": spaces.model, "data": spaces.data, "outside_theory": spaces.outside}
    job.write(snakemake.output.grid, points, "arithmetic_prediction", **origin)
    job.write(snakemake.output.interference, effects, "interference", **origin)
