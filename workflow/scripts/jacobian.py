"""Run the passes of one Jacobian shard, or of two blocks of the examples, and add up their Gram contributions."""

import json
from pathlib import Path

from job import Job, use_device
from stopwise.artifacts import tables as artifacts

with Job(snakemake) as job:
    processes = snakemake.resources.processes
    device = use_device(job, snakemake.params.device, processes)
    from stopwise.training.jacobian_job import Asked, computed, computed_by

    blocks = "blocks" in job.wildcards
    names = ("left", "right", "blocks") if blocks else ("shard", "shards")
    asked = Asked(
        str(snakemake.input.data),
        str(snakemake.input.model),
        job.wildcards["start"],
        int(job.wildcards["seed"]),
        tuple(int(job.wildcards[name]) for name in names),
        {name: snakemake.params.get(name) for name in ("model", "kernel", "adam")}
        | {"scheduled": snakemake.params.get("scheduled", {})},
    )
    if processes > 1:
        each = max(1, snakemake.threads // processes)
        table, job.noted["kernel"] = computed_by(asked, device, processes, each)
        job.noted["processes"] = processes
    else:
        table, job.noted["kernel"] = computed(asked, device)
    origin = {
        "model": json.loads(Path(asked.model).read_text(encoding="utf-8"))["fingerprint"],
        "data": artifacts.digest(asked.data),
    }
    job.write(snakemake.output[0], table, "jacobian_block" if blocks else "jacobian", **origin)
