"""Fine-tune one task at every training size with early stopping, beside the kernel's prediction of each step."""

from dataclasses import replace
from pathlib import Path

from job import Job, load_start, use_device
from stopwise import artifacts
from stopwise.assets import sha256_of
from stopwise.finetune_plan import predicted_paths, start_outputs, step_eigenvalue
from stopwise.gram_assembly import read_gram
from stopwise.samples import SPLITS, read_sample

with Job(snakemake) as job:
    device = use_device(job, snakemake.params.device)
    from stopwise.finetune import FinetuneSettings, remove_sweep, sweep
    from stopwise.tasks import batch_from_table

    params, sizes = snakemake.params, snakemake.params.sizes
    start, task, seed = job.wildcards["start"], job.wildcards["task"], int(job.wildcards["seed"])
    stopping = params.stopping
    settings = FinetuneSettings.from_config(params.finetune, **params.kernel, **stopping)
    sample = read_sample(snakemake.input.data)
    gram = read_gram(artifacts.read_table(snakemake.input.gram, "gram"))
    stops = artifacts.read_table(snakemake.input.stopping, "stopping").to_pylist()
    # A rule without an answer stops nothing: the run goes to its end.
    never = settings.steps + 1
    stop_at = {row["n"]: never if row["t"] is None else row["t"] for row in stops if row["rule"] == settings.stop}
    held_out = len(sample.labels("validation"))
    eigenvalues, paths = {}, {}
    for n in sizes:
        kernel = gram.leading(n)
        spec = kernel.spectrum(stopping["intercept"])
        residual = sample.targets("train", settings.outputs, settings.target_scale, n) - kernel.outputs
        eigenvalues[n] = step_eigenvalue(spec, settings.batch_size)
        paths[n] = predicted_paths(kernel, spec, residual, settings, held_out, seed)

    model, stamp = load_start(snakemake, start, seed, device)
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
