"""Train one cell of the study: on all its examples, or without the folds of a part; keep the outputs along the way."""

import numpy as np

from job import Job, use_device
from stopwise.artifacts import tables as artifacts
from stopwise.artifacts.sample import read_sample
from stopwise.linearized.replay import batch_lambda_max
from stopwise.stopping.folds import stratified_folds
from stopwise.studies.encoder_rows import ALL, PARTS, Cell, Recipe, output_rows, step_rows

with Job(snakemake) as job:
    device = use_device(job, snakemake.params.device)
    from stopwise.network.adapters import trained
    from stopwise.network.loading import load_start
    from stopwise.studies.encoder_runs import Runner, small_vocabulary
    from stopwise.tasks.batch import batch_from_table

    params, given = snakemake.params, job.wildcards
    cell, part = Cell(given["task"], int(given["seed"]), int(given["n"]), given["recipe"]), given.get("part", ALL)
    sample, n, seed = read_sample(snakemake.input.data), cell.n, cell.seed
    lambda_1 = None
    for path in snakemake.input.kernel:
        table = artifacts.read_table(path, "study_kernel")
        f0, matrix = (artifacts.read_matrix(table, block=block) for block in ("outputs", "train"))
        m = min(n, len(f0)) * f0.shape[1]
        lambda_1 = batch_lambda_max(matrix[:m, :m], f0.shape[1], params.batch_size)
    rates = Recipe(cell.recipe, **params.recipe).rates(max(params.steps), lambda_1)

    model, stamp = load_start(snakemake, "pretrained", seed, device, sample.classes)
    splits = [("train", n), ("validation", None), ("test", None)]
    batches = [batch_from_table(sample.table, split, k, verbalizers=sample.verbalizers) for split, k in splits]
    rows = []
    with small_vocabulary(model, batches) as (train, validation, test):
        parameters = trained(params.kernel)["parameters"]
        watched = {"validation": validation, "test": test}
        runner = Runner(model, train, watched, parameters, params.weight_decay, params.clip_norm)
        if part == ALL:
            every = np.arange(n)
            title = f"{cell.task} n={n}"
            run = runner.run(every, rates, params.steps, params.batch_size, seed, list(watched), title=title)
            for split, (at, f) in run.outputs.items():
                rows += output_rows(cell, ALL, 0, at, split, f)
            taken = step_rows(cell, run.taken)
        else:
            count, left_out = PARTS[part]
            folds = stratified_folds(sample.labels("train", n), count, seed)
            for fold in left_out:
                inside, outside = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
                asked = {"watched": ["test"], "held_out": outside} if part == "holdout" else {"watched": []}
                title = f"{cell.task} n={n} fold {fold + 1}/{count}"
                run = runner.run(inside, rates, params.steps, params.batch_size, seed, **asked, title=title)
                for split, (at, f) in run.outputs.items():
                    rows += output_rows(cell, part, fold, at, split, f)
    origin = {"model": stamp["fingerprint"], "data": sample.digest}
    job.write(snakemake.output.outputs, rows, "study_outputs", **origin)
    if part == ALL:
        job.write(snakemake.output.steps, taken, "study_steps", **origin)
