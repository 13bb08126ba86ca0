"""Run the passes of one Jacobian shard and add up its own layers' Gram contributions."""

import numpy as np

from job import Job, use_device
from stopwise.artifacts.sample import read_sample

with Job(snakemake) as job:
    device = use_device(job, snakemake.params.device)
    from stopwise.artifacts.gram import SUM, keeps_layers, shard_table
    from stopwise.kernel.ntk import kernel_layers, layer_costs, split_layers, train_and_new_kernels
    from stopwise.network.adapters import trained
    from stopwise.network.loading import load_start
    from stopwise.tasks.batch import batch_from_table
    from stopwise.training.decayed import plain_kernel, weights_move

    sample = read_sample(snakemake.input.data)
    kernel = trained(snakemake.params.kernel)
    shard, shards = int(job.wildcards["shard"]), int(job.wildcards["shards"])
    model, stamp = load_start(snakemake, job.wildcards["start"], int(job.wildcards["seed"]), device, sample.classes)
    train = batch_from_table(sample.table, "train", verbalizers=sample.verbalizers)
    new = batch_from_table(sample.table, ("validation", "test"), verbalizers=sample.verbalizers)

    names = kernel_layers(model, kernel["parameters"])
    layers = split_layers(names, layer_costs(model, kernel["parameters"]), shards)[shard]
    if not layers:
        raise ValueError(f"config key kernel.shards: {shards} shards for {len(names)} layers; allowed: up to that many")
    options = {}
    if snakemake.params.adam:
        from stopwise.training.adam_preconditioner import adam_preconditioner
        from stopwise.training.settings import FinetuneSettings

        settings = FinetuneSettings(**trained(snakemake.params.adam))
        options["preconditioner"] = adam_preconditioner(model, train, settings, int(job.wildcards["seed"]), layers)
    y = sample.targets("train", kernel["outputs"], 1.0)
    keeps = keeps_layers(kernel.get("layers"), y.size, y.shape[1] * sample.table.num_rows, len(names))
    train_kernel, new_kernel = train_and_new_kernels(
        model,
        train,
        new,
        parameters=kernel["parameters"],
        outputs=kernel["outputs"],
        formula=kernel["formula"],
        memory_gb=kernel["memory_gb"],
        layers=layers,
        device=device,
        progress=True,
        by="layer" if keeps else "total",
        targets={"train": y},
        products=kernel.get("products", "float32"),
        **options,
    )
    if not all(np.isfinite(f).all() for f in (train_kernel.outputs, new_kernel.outputs)):
        raise ValueError(
            f"config key model.source: the outputs of {stamp['source']!r} are not finite at the start; its weights or"
            " model.dtype cannot be used"
        )
    asked, scheduled = snakemake.params.get("scheduled", {}), {}
    if "clip_norm" in asked and kernel["formula"] == "adam":
        scheduled["plain"] = plain_kernel(model, train, kernel, layers, device)
    if "weight_decay" in asked:
        scheduled["weights_move"] = weights_move(model, train, kernel, layers)
        scheduled["weights_move_new"] = weights_move(model, new, kernel, layers)
    job.noted["kernel"] = train_kernel.plan
    table = shard_table(
        train_kernel.by_layer if keeps else {SUM: train_kernel.matrix},
        new_kernel.by_layer if keeps else {SUM: new_kernel.matrix},
        train_kernel.outputs,
        new_kernel.outputs,
        train_kernel.row_norms,
        scheduled,
        train_kernel.moments,
    )
    job.write(snakemake.output[0], table, "jacobian", model=stamp["fingerprint"], data=sample.digest)
