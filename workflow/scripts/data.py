"""Sample one task for one seed: train | validation | test, rendered, cut and tokenised."""

import json
import logging
from pathlib import Path

from job import Job
from stopwise.network.tokenizer import check_positions, tokenizer_alone
from stopwise.tasks.batch import verbalizers_of
from stopwise.tasks.chat import ChatTask
from stopwise.tasks.head import head_task
from stopwise.tasks.task import Task

with Job(snakemake) as job:
    stamp = json.loads(Path(snakemake.input.model).read_text(encoding="utf-8"))
    params, name = snakemake.params, job.wildcards["task"]
    defaults = {**params.data, "train": params.train}
    check_positions(params.data["max_tokens"], Path(stamp["folder"]))
    with_head = params.model.get("head") == "classification"
    kind = ChatTask if defaults.pop("chat_template", False) else Task
    make = head_task if with_head else kind.from_config
    tokenizer = tokenizer_alone(stamp["folder"], params.model["trust_remote_code"])
    task = make(params.task, defaults, name=name, assets=Path(snakemake.input.model).parents[1])
    task = task if with_head else task.resolved(tokenizer)
    for note in task.notes:
        logging.info("task %s: %s", name, note)
    check_positions(task.max_tokens, Path(stamp["folder"]))
    table = task.sample(tokenizer, seed=int(job.wildcards["seed"]))
    described = {"name": name, "classes": list(task.verbalizers), "verbalizers": verbalizers_of(table)}
    metrics = {"examples": table.num_rows, "cut": sum(table["cut"].to_pylist())}
    job.write(snakemake.output[0], table, "data", task=described, metrics=metrics, tokenizer=stamp["tokenizer"])
