"""Measure a new head on the encoder, or an adapter: the kernel beside its floor, steps beside the stock Trainer."""

from pathlib import Path

from job import Job, use_device

with Job(snakemake) as job:
    params, kind = snakemake.params, job.wildcards["kind"]
    device = use_device(job, params.device)
    import torch

    from stopwise.cost import benchmark
    from stopwise.cost.training_benchmark import against_stock_trainer
    from stopwise.network.adapters import with_adapter
    from stopwise.network.loading import load_model, load_start, load_tokenizer
    from stopwise.tasks.batch import batch_from_table
    from stopwise.tasks.head import head_task
    from stopwise.tasks.task import Task

    assets, head = Path(snakemake.input.model).parents[1], kind == "encoder"
    n = params.batch_size * params.steps
    sizes = {"max_tokens": params.tokens, "train": n, "validation": 2, "test": 2}
    task = (head_task if head else Task.from_config)(params.task, sizes, name=params.name, assets=assets)
    if head:
        model, tokenizer = load_model("minilm", assets=assets, num_labels=len(task.verbalizers))
        model, origin = model.to(device), "minilm"
    else:
        model, stamp = load_start(snakemake, "pretrained", 0, device)
        model, origin = with_adapter(model, {}), stamp["fingerprint"]
        tokenizer = load_tokenizer(stamp["folder"])
    for module in model.modules():  # with dropout the two trainings would not be the same
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    parameters = "all" if head else "trainable"
    rows = benchmark.compare(model, params.sizes, params.tokens, parameters=parameters, outputs="contrast")
    job.write(snakemake.output.floor, rows, "benchmark_floor", model=origin)

    batch = batch_from_table(task.sample(tokenizer), "train")
    tokens = float(batch["attention_mask"].sum() / n)
    found = against_stock_trainer(model, batch, batch_size=params.batch_size, steps=params.steps, parameters=parameters)
    facts = {"threads": torch.get_num_threads(), "batch_size": params.batch_size, "tokens": tokens}
    job.write(snakemake.output.training, [facts | row for row in found], "benchmark_training", model=origin)
