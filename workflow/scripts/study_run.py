"""Train one cell of the study: on all its examples, or without the folds of a part; keep the outputs along the way."""

import numpy as np

from job import Job, use_device
from stopwise.artifacts import tables as artifacts
from stopwise.artifacts.sample import read_sample
from stopwise.stopping.folds import stratified_folds
from stopwise.studies.encoder_cells import kernel_lambda
from stopwise.studies.encoder_rows import ALL, HOLDOUT, PARTS, PROBE, Cell, Recipe, output_rows, step_rows

with Job(snakemake) as job:
    device = use_device(job, snakemake.params.device)
    from stopwise.network.adapters import trained
    from stopwise.network.loading import load_start
    from stopwise.studies.encoder_runs import Looks, Runner, first_token_only, small_vocabulary
    from stopwise.tasks.batch import batch_from_table

    params, given = snakemake.params, job.wildcards
    cell, part = Cell(given["task"], int(given["seed"]), int(given["n"]), given["recipe"]), given.get("part", ALL)
    sample, n, seed = read_sample(snakemake.input.data), cell.n, cell.seed
    recipe, lambda_1 = Recipe(cell.recipe, **params.recipe), None
    for path in snakemake.input.kernel:
        lambda_1 = kernel_lambda(artifacts.read_table(path, "study_kernel"), params.batch_size, seed)

    def rates(steps):
        """Return the learning rates of a training of so many steps."""
        return recipe.rates(steps, lambda_1)

    model, stamp = load_start(snakemake, "pretrained", seed, device, sample.classes)
    splits = [("train", n), ("validation", None), ("test", None)]
    batches = [batch_from_table(sample.table, split, k, verbalizers=sample.verbalizers) for split, k in splits]
    every, rows, steps = np.arange(n), [], []
    count, left_out = PARTS.get(part, (None, [0]))
    folds = np.full(n, -1) if count is None else stratified_folds(sample.labels("train", n), count, seed)
    with small_vocabulary(model, batches) as (train, validation, test), first_token_only(model):
        watched = {"validation": validation, "test": test}
        parameters = trained(params.kernel)["parameters"]
        runner = Runner(model, train, watched, parameters, params.weight_decay, recipe.clip_norm)
        for fold in left_out:
            inside = every[folds != fold]
            looks = Looks(["train", *watched])
            if part != ALL:
                looks = Looks(["test"] if part == HOLDOUT else [], every[folds == fold], only_least=True)
            if recipe.start == PROBE:
                runner.start_head(inside, seed)
            title = f"{cell.task} n={n} {cell.recipe}" + ("" if part == ALL else f" fold {fold + 1}/{count}")
            about = recipe.decays, params.batch_size, seed
            taken = runner.follow(inside, rates, params.steps, *about, looks, title)
            for split, (at, f) in looks.outputs.items():
                rows += output_rows(cell, part, fold, at, split, np.stack(f))
            steps += [row for length, own in taken.items() for row in step_rows(cell, length, own)]
    origin = {"model": stamp["fingerprint"], "data": sample.digest}
    job.write(snakemake.output.outputs, rows, "study_outputs", **origin)
    if part == ALL:
        job.write(snakemake.output.steps, steps, "study_steps", **origin)
