"""Time training steps beside those of the stock transformers Trainer, at equal settings, on a number of threads."""

from pathlib import Path

from job import Job, use_device

with Job(snakemake) as job:
    params, threads = snakemake.params, int(job.wildcards["used"])
    device = use_device(job, params.device)
    import torch

    from stopwise.cost.training_benchmark import against_stock_trainer
    from stopwise.network.loading import load_start, load_tokenizer
    from stopwise.tasks.task import Task
    from stopwise.training.finetune import first_examples

    torch.set_num_threads(threads)
    model, stamp = load_start(snakemake, "pretrained", 0, device)
    assets = Path(snakemake.input.model).parents[1]
    task = Task.from_config(params.task, {"max_tokens": params.tokens}, name=params.name, assets=assets)
    batch = task.encode(load_tokenizer(stamp["folder"]), "train", n=max(params.batch_sizes) * params.steps)
    rows = []
    for size in params.batch_sizes:
        part = first_examples(batch, size * params.steps)
        tokens = float(part["attention_mask"].sum() / len(part["labels"]))
        found = against_stock_trainer(model, part, batch_size=size, steps=params.steps, parameters=params.parameters)
        rows += [{"threads": threads, "batch_size": size, "tokens": tokens} | row for row in found]
    job.write(snakemake.output[0], rows, "benchmark_training", model=stamp["fingerprint"])
