"""Train every vector again in the tangent space, and add tangent, linearised and ordinary vectors side by side."""

from dataclasses import replace
from pathlib import Path

from job import Job, use_device
from stopwise.artifacts import tables as artifacts
from stopwise.artifacts.gram import read_gram
from stopwise.artifacts.sample import SPLITS, read_sample
from stopwise.training.prediction import start_outputs, step_eigenvalue, stop_steps

with Job(snakemake) as job:
    params, files = snakemake.params, snakemake.input
    device = use_device(job, params.device)
    from stopwise.merging.linearised import tangent_rows
    from stopwise.merging.workbench import read_bench
    from stopwise.network.loading import load_start
    from stopwise.tasks.batch import batch_from_table
    from stopwise.training.finetune import FinetuneSettings, finetune, first_examples, remove_sweep

    own, n, seed = params.arithmetic, params.arithmetic["size"], int(job.wildcards["seed"])
    section = {**params.finetune, "tangent": True, "continue_after_stop": False}
    settings = FinetuneSettings.from_config(section, **params.kernel, **params.stopping)
    model, stamp = load_start(snakemake, "pretrained", seed, device)
    folder = Path(snakemake.output.table).parent
    checkpoints, vectors = Path(*folder.parts[:2], "checkpoints", *folder.parts[2:], f"seed{seed}"), {}
    predicted = dict(zip(params.tasks, files.stopping, strict=True)) if files.stopping else {}
    for name, data, gram in zip(params.tasks, files.data, files.gram, strict=True):
        sample, kernel = read_sample(data), read_gram(artifacts.read_table(gram, "gram"))
        rows = artifacts.read_table(predicted[name], "stopping").to_pylist() if predicted else []
        batches = {split: batch_from_table(sample.table, split, verbalizers=sample.verbalizers) for split in SPLITS}
        known = start_outputs(kernel, len(sample.labels("validation")))
        run = finetune(
            model,
            first_examples(batches["train"], n),
            batches["validation"] if settings.reads_validation else None,
            None,
            replace(settings, stop_at=stop_steps(rows, settings, [n]).get(n)),
            spectrum=step_eigenvalue(kernel.leading(n).spectrum(settings.intercept), settings.batch_size),
            start_outputs={**known, "train": known["train"][:n]},
            checkpoint=checkpoints / name / f"n{n}.safetensors",
            keep_checkpoint=True,
            metadata={"task": name, "start": "pretrained", "tangent": True},
            seed=seed,
        )
        vectors[name] = run.vector
    options = {"outputs": settings.outputs, "target_scale": settings.target_scale}
    paths = (params.tasks, files.data, files.index, files.vectors)
    bench, digests = read_bench(model, stamp["fingerprint"], *paths, options)
    rows = tangent_rows(bench, vectors, own["coefficients"])
    for name, path in zip(params.tasks, snakemake.output.vectors, strict=True):
        vectors[name].save(path)
    job.write(snakemake.output.table, rows, "tangent_arithmetic", model=stamp["fingerprint"], data=digests)
    for name in params.tasks:
        remove_sweep(checkpoints / name, [n])
