"""Sample one task for one seed: train | validation | test, rendered, cut and tokenised."""

import json
from pathlib import Path

from stopwise.tasks import Task

from job import Job
from stopwise.models import load_tokenizer

with Job(snakemake) as job:
    stamp = json.loads(Path(snakemake.input.model).read_text(encoding="utf-8"))
    data = snakemake.params.data
    name = job.wildcards["task"]
    definition = {**(snakemake.params.task or {}), "name": name}
    defaults = {**data, "train": max(snakemake.params.sizes), "assets": snakemake.params.assets}
    task = Task.from_config(definition, defaults)
    tokenizer = load_tokenizer(stamp["folder"])
    table = task.sample(tokenizer, seed=int(job.wildcards["seed"]))
    described = {"name": name, "classes": list(task.verbalizers), "verbalizers": task.verbalizer_ids(tokenizer)}
    cut = sum(table["cut"].to_pylist())
    metrics = {"examples": table.num_rows, "cut": cut}
    job.write(snakemake.output[0], table, "data", task=described, metrics=metrics, tokenizer=stamp["tokenizer"])
