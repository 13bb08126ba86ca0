"""Fine-tune one task at every training size with early stopping, beside the kernel's prediction of each step."""

from dataclasses import replace
from itertools import chain
from pathlib import Path

from job import Job, use_device
from stopwise.artifacts import tables as artifacts
from stopwise.artifacts.gram import read_gram
from stopwise.artifacts.sample import SPLITS, read_sample
from stopwise.assets.wheels import sha256_of
from stopwise.training.prediction import size_plans, start_outputs, stop_steps

with Job(snakemake) as job:
    device = use_device(job, snakemake.params.device)
    from stopwise.network.adapters import trained
    from stopwise.network.loading import load_start
    from stopwise.tasks.batch import batch_from_table
    from stopwise.training.finetune import FinetuneSettings, remove_sweep, sweep

    params, sizes = snakemake.params, snakemake.params.sizes
    start, task, seed = job.wildcards["start"], job.wildcards["task"], int(job.wildcards["seed"])
    sample = read_sample(snakemake.input.data)
    gram = read_gram(artifacts.read_table(snakemake.input.gram, "gram"))
    stopping = params.stopping | {"target_scale": gram.scale(params.stopping["target_scale"])}
    settings = FinetuneSettings.from_config(params.finetune, **trained(params.kernel), **stopping)
    tables = [artifacts.read_table(path, "stopping").to_pylist() for path in snakemake.input.stopping]
    stop_at = stop_steps(chain.from_iterable(tables), settings, sizes)
    held_out = len(sample.labels("validation"))
    eigenvalues, paths = size_plans(gram, sample, settings, sizes, seed)

    model, stamp = load_start(snakemake, start, seed, device, sample.classes)
    read = [split for split in SPLITS if split != "validation" or settings.reads_validation]
    batches = {split: batch_from_table(sample.table, split, verbalizers=sample.verbalizers) for split in read}
    folder = Path(snakemake.output.trajectory).parent
    checkpoints = Path(*folder.parts[:2], "checkpoints", *folder.parts[2:])
    rows, outputs, index = [], [], []
    runs = sweep(
        model,
        batches["train"],
        batches.get("validation"),
        batches["test"],
        settings,
        sizes,
        spectra=eigenvalues,
        predicted=paths,
        start_outputs=start_outputs(gram, held_out),
        checkpoints=checkpoints,
        settings_of=lambda n, own: replace(own, stop_at=stop_at.get(n)),
        metadata={"task": task, "start": start},
        seed=seed,
    )
    for (n, run), path in zip(runs, snakemake.output.vectors, strict=True):
        run.vector.save(path)
        rows += run.table_rows()
        for split, values in run.outputs.items():
            for row, f in zip(run.trajectory, values, strict=True):
                outputs += artifacts.matrix_rows(f, n=n, step=row["step"], split=split)
        kept = {"step": run.best, "reason": run.stopped, "norm": run.vector.norm(), "intercept": list(run.intercept)}
        index.append({"n": n, "file": Path(path).name, "sha256": sha256_of(Path(path)), **kept})
    origin = {"model": stamp["fingerprint"], "data": sample.digest}
    last = rows[-1]
    metrics = {key: last[key] for key in ("train_loss", "test_loss", "test_accuracy", "distance")}
    job.write(snakemake.output.outputs, outputs, "finetune_outputs", **origin)
    job.write(snakemake.output.index, index, "vector_index", **origin)
    job.write(snakemake.output.trajectory, rows, "trajectory", metrics=metrics, **origin)
    remove_sweep(checkpoints, sizes)
