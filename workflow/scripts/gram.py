"""Sum the Jacobian shards' Gram contributions and describe the kernel layer by layer."""

import json
from dataclasses import replace
from pathlib import Path

from job import Job
from stopwise.artifacts import tables as artifacts
from stopwise.artifacts.gram import assemble, layer_shares
from stopwise.artifacts.sample import read_sample
from stopwise.pipeline.config_auto import AUTO
from stopwise.stopping.bayes import fitted_target_scale

with Job(snakemake) as job:
    records = {str(path): artifacts.read_provenance(path) for path in snakemake.input.shards}
    sample = read_sample(snakemake.input.data)
    model = json.loads(Path(snakemake.input.model).read_text(encoding="utf-8"))["fingerprint"]
    kernel_section = snakemake.params.kernel
    for path, record in records.items():
        mine = {"model": record["model"], "data": record["data"], "kernel section": record["config"]["kernel"]}
        for what, wanted in {"model": model, "data": sample.digest, "kernel section": kernel_section}.items():
            if mine[what] != wanted:
                raise artifacts.ArtifactError(f"{path}: made with another {what} than this run's; remove it")
    kernel = assemble({path: artifacts.read_table(path, "jacobian") for path in records})
    stopping = snakemake.params.stopping
    if stopping["target_scale"] == AUTO:
        unscaled = sample.targets("train", snakemake.params.outputs, 1.0)
        fitted = fitted_target_scale(kernel.spectrum(stopping["intercept"]), unscaled, kernel.outputs)
        kernel = replace(kernel, target_scale=fitted)
    y = sample.targets("train", snakemake.params.outputs, kernel.scale(stopping["target_scale"]))
    shares = layer_shares(kernel, y - kernel.outputs, centred=stopping["intercept"] == "fitted")
    origin = {"model": model, "data": sample.digest}
    trace = float(kernel.train.trace())
    job.write(snakemake.output.gram, kernel.rows(), "gram", metrics={"trace": trace}, **origin)
    job.write(snakemake.output.layer_share, shares, "layer_share", **origin)
