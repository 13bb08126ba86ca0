"""Assemble the kernel from its Jacobian shards or blocks of examples, and describe it layer by layer."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

from job import Job
from stopwise.artifacts import tables as artifacts
from stopwise.artifacts.blocks import KIND, assemble_blocks
from stopwise.artifacts.gram import assemble, layer_shares, shares_of_moments
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
    stopping, blocks = snakemake.params.stopping, snakemake.params.get("blocks")
    files = {path: partial(artifacts.read_table, path, KIND if blocks else "jacobian") for path in records}
    if blocks:
        examples = len(sample.labels("train"))
        kernel = assemble_blocks(files, blocks, examples, sample.table.num_rows - examples)
    else:
        kernel = assemble(files)
    centred = stopping["intercept"] == "fitted"
    unscaled = sample.targets("train", snakemake.params.outputs, 1.0)
    if stopping["target_scale"] == AUTO:
        fitted = fitted_target_scale(kernel.spectrum(stopping["intercept"]), unscaled, kernel.outputs)
        kernel = replace(kernel, target_scale=fitted)
    scale = kernel.scale(stopping["target_scale"])
    if kernel.by_layer:
        y = sample.targets("train", snakemake.params.outputs, scale)
        shares = layer_shares(kernel, y - kernel.outputs, centred=centred)
    else:
        shares = shares_of_moments(kernel, unscaled, scale, centred=centred)
    origin = {"model": model, "data": sample.digest}
    trace = float(kernel.train.trace())
    job.write(snakemake.output.gram, kernel.table(), "gram", metrics={"trace": trace}, **origin)
    job.write(snakemake.output.layer_share, shares, "layer_share", **origin)
