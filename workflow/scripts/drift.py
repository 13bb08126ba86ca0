"""Train one size again and compute the kernel on its way: how far it drifts from the one that predicted the run."""

from dataclasses import replace

from job import Job, use_device
from stopwise.artifacts import tables as artifacts
from stopwise.artifacts.gram import read_gram
from stopwise.artifacts.sample import read_sample
from stopwise.training.drift import check_interval, drift_rows
from stopwise.training.prediction import start_outputs, step_eigenvalue

with Job(snakemake) as job:
    device = use_device(job, snakemake.params.device)
    from stopwise.kernel.ntk import empirical_ntk
    from stopwise.network.adapters import trained
    from stopwise.network.loading import load_start
    from stopwise.tasks.batch import batch_from_table
    from stopwise.training.finetune import FinetuneSettings, finetune, first_examples

    params, kernel, own = snakemake.params, trained(snakemake.params.kernel), snakemake.params.drift
    start, seed, n = job.wildcards["start"], int(job.wildcards["seed"]), own["size"]
    coding = {key: kernel[key] for key in ("parameters", "outputs", "formula")}
    gram = read_gram(artifacts.read_table(snakemake.input.gram, "gram")).leading(n)
    stopping = params.stopping | {"target_scale": gram.scale(params.stopping["target_scale"])}
    settings = FinetuneSettings.from_config(params.finetune, **coding, **stopping)
    every = check_interval(settings.steps, own["checkpoints"])
    settings = replace(settings, stop="none", stop_at=None, evaluate_every=every)
    sample = read_sample(snakemake.input.data)
    model, stamp = load_start(snakemake, start, seed, device, sample.classes)
    whole = batch_from_table(sample.table, "train", verbalizers=sample.verbalizers)
    batch = first_examples(whole, n)
    shown = first_examples(batch, min(own["examples"], n))
    kernels, options = {}, {key: kernel[key] for key in ("parameters", "outputs", "formula", "memory_gb")}
    if params.adam:
        from stopwise.training.adam_preconditioner import adam_preconditioner

        # That of the kernel which predicted the run.
        options["preconditioner"] = adam_preconditioner(model, whole, FinetuneSettings(**trained(params.adam)), seed)

    def look(step):
        kernels[step] = empirical_ntk(model, shown, device=device, **options)

    run = finetune(
        model,
        batch,
        None,
        None,
        settings,
        spectrum=step_eigenvalue(gram.spectrum(params.stopping["intercept"]), settings.batch_size),
        start_outputs=start_outputs(gram, 0),
        on_evaluation=look,
        metadata={"task": job.wildcards["task"], "start": start},
        seed=seed,
    )
    rows = [{"n": n, **row} for row in drift_rows(kernels, run.layers, run.trajectory)]
    metrics = {"drift": next(row["drift"] for row in reversed(rows) if row["layer"] is None)}
    job.write(snakemake.output[0], rows, "drift", metrics=metrics, model=stamp["fingerprint"], data=sample.digest)
