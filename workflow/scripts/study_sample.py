"""Sample one data set for one seed of the study on real training: test rows that no other seed has."""

import json
import logging
from pathlib import Path

from job import Job
from stopwise.network.tokenizer import check_positions, tokenizer_alone
from stopwise.studies.encoder_rows import own_test_rows
from stopwise.tasks.batch import verbalizers_of
from stopwise.tasks.head import head_task
from stopwise.tasks.task import Task

with Job(snakemake) as job:
    stamp = json.loads(Path(snakemake.input.model).read_text(encoding="utf-8"))
    params, name, seed = snakemake.params, job.wildcards["task"], int(job.wildcards["seed"])
    defaults = {**params.data, "train": params.train, "test": params.test * len(params.seeds)}
    with_head = params.model.get("head") == "classification"
    check_positions(defaults["max_tokens"], Path(stamp["folder"]))
    tokenizer = tokenizer_alone(stamp["folder"], params.model["trust_remote_code"])
    make = head_task if with_head else Task.from_config
    task = make(params.task, defaults, name=name, assets=Path(snakemake.input.model).parents[1])
    task = task if with_head else task.resolved(tokenizer)
    for note in task.notes:
        logging.info("task %s: %s", name, note)
    whole = task.sample(tokenizer, seed=seed)
    split, position = (whole[column].to_pylist() for column in ("split", "position"))
    table = whole.filter(own_test_rows(split, position, params.seeds.index(seed), params.test))
    described = {"name": name, "classes": list(task.verbalizers), "verbalizers": verbalizers_of(whole)}
    classes, labels = len(task.verbalizers), table.to_pandas()
    rows = [
        {"task": name, "seed": seed, "classes": classes, "split": part, "labels": own["label"].tolist()}
        for part, own in labels.groupby("split", sort=False)
    ]
    origin = {"task": described, "tokenizer": stamp["tokenizer"]}
    job.write(snakemake.output.data, table, "data", **origin)
    job.write(snakemake.output.labels, rows, "study_labels", **origin)
