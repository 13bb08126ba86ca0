"""Train one cell of the study again, and say what its network answers to each example without it, by length."""

from dataclasses import asdict

from job import Job, use_device
from stopwise.artifacts.sample import read_sample
from stopwise.studies.encoder_rows import Cell, Recipe
from stopwise.studies.encoder_ways import anchored_step

with Job(snakemake) as job:
    device = use_device(job, snakemake.params.device)
    from stopwise.network.adapters import trained
    from stopwise.network.loading import load_start
    from stopwise.studies.anchored_runs import left_out_lengths
    from stopwise.studies.encoder_runs import Runner, small_vocabulary
    from stopwise.tasks.batch import batch_from_table

    params, given = snakemake.params, job.wildcards
    cell = Cell(given["task"], int(given["seed"]), int(given["n"]), given["recipe"])
    sample, recipe = read_sample(snakemake.input.data), Recipe(cell.recipe, **params.recipe)
    if not recipe.followed:
        raise ValueError(f"study.recipes.{cell.recipe}: the anchored leave-one-out is not made for it")
    model, stamp = load_start(snakemake, "pretrained", cell.seed, device, sample.classes)
    batch = batch_from_table(sample.table, "train", cell.n, verbalizers=sample.verbalizers)
    with small_vocabulary(model, [batch]) as (train,):
        parameters = trained(params.kernel)["parameters"]
        runner = Runner(model, train, {}, parameters, params.weight_decay, recipe.clip_norm)
        title = f"{cell.task} n={cell.n} {cell.recipe}"
        options = {"memory_gb": params.memory_gb, "title": title}
        found = left_out_lengths(runner, recipe.rates, params.steps, params.batch_size, cell.seed, **options)
    origin = {"model": stamp["fingerprint"], "data": sample.digest}
    rows = [asdict(one) for one in found]
    job.write(snakemake.output.curve, [{**cell._asdict(), **row} for row in rows], "study_left_out", **origin)
    answer = {**cell._asdict(), "way": "anchored", "step": float(anchored_step(rows))}
    job.write(snakemake.output.answers, [answer], "study_answers", **origin)
