"""Add and negate the task vectors of one seed on the real network; the coefficient is chosen on validation."""

from job import Job, load_start, use_device
from stopwise import artifacts
from stopwise.samples import read_sample

with Job(snakemake) as job:
    params, files = snakemake.params, snakemake.input
    device = use_device(job, params.device)
    from stopwise.arithmetic import TaskData, Workbench
    from stopwise.arithmetic_table import arithmetic_rows
    from stopwise.task_vectors import TaskVector
    from stopwise.tasks import batch_from_table

    model, stamp = load_start(snakemake, "pretrained", int(job.wildcards["seed"]), device)
    tasks, digests = {}, []
    for name, path, index, vector in zip(params.tasks, files.data, files.index, files.vectors, strict=True):
        if artifacts.read_provenance(index)["model"] != stamp["fingerprint"]:
            raise artifacts.ArtifactError(f"{index}: trained from another model than {files.model}; remove it")
        sample = read_sample(path)
        digests.append(sample.digest)
        batches = {
            split: batch_from_table(sample.table, split, verbalizers=sample.verbalizers)
            for split in ("validation", "test")
        }
        tasks[name] = TaskData(TaskVector.load(vector), **batches)
    bench = Workbench(model, tasks, outputs=params.outputs, target_scale=params.target_scale)
    own = params.arithmetic
    rows = arithmetic_rows(bench, own["coefficients"], own["control_tolerance"])
    chosen = [row for row in rows if row["chosen"] and row["split"] == "test" and row["kind"] == "addition"]
    metrics = {"addition/normalised_accuracy": sum(row["normalised_accuracy"] for row in chosen) / max(len(chosen), 1)}
    job.write(
        snakemake.output[0], rows, "arithmetic", metrics=metrics, model=stamp["fingerprint"], data=",".join(digests)
    )
