"""Time training steps beside those of the stock transformers Trainer, at equal settings, on a number of threads."""

from job import Job, load_start, use_device
from stopwise.samples import read_sample

with Job(snakemake) as job:
    params, threads = snakemake.params, int(job.wildcards["used"])
    device = use_device(job, params.device)
    import torch

    from stopwise.finetune import first_examples
    from stopwise.tasks import batch_from_table
    from stopwise.training_benchmark import against_stock_trainer

    torch.set_num_threads(threads)
    model, stamp = load_start(snakemake, "pretrained", 0, device)
    sample = read_sample(snakemake.input.data)
    batch = batch_from_table(sample.table, "train", verbalizers=sample.verbalizers)
    batch = first_examples(batch, min(params.batch_size * params.steps, len(batch["labels"])))
    rows = against_stock_trainer(
        model, batch, batch_size=params.batch_size, steps=params.steps, parameters=params.parameters
    )
    facts = {
        "threads": threads,
        "batch_size": params.batch_size,
        "tokens": float(batch["attention_mask"].sum() / len(batch["labels"])),
    }
    rows = [facts | row for row in rows]
    job.write(snakemake.output[0], rows, "benchmark_training", model=stamp["fingerprint"], data=sample.digest)
