"""Judge the stopping rules, and what was tried to make them follow real training, on runs from pretrained weights."""

from itertools import groupby

from tqdm import tqdm

from job import Job
from stopwise.artifacts import tables as artifacts
from stopwise.artifacts.gram import read_gram
from stopwise.artifacts.sample import read_sample
from stopwise.stopping.scores import rule_table
from stopwise.studies.on_real_runs import equal_labels, run_halves, run_rows, runs_text
from stopwise.training.settings import FinetuneSettings

with Job(snakemake) as job:
    params, files = snakemake.params, snakemake.input
    tables = (files.stopping, files.gram, files.data, files.outputs)
    stages = list(zip(artifacts.read_pairs(files.trajectory, "trajectory"), *tables, strict=True))
    rows, halves, judges = [], [], 0
    for (wildcards, table), stopping, gram, data, outputs in tqdm(stages, desc="tasks and seeds", unit="run"):
        kept = artifacts.read_table(outputs, "finetune_outputs")
        kernel, sample = read_gram(artifacts.read_table(gram, "gram")), read_sample(data)
        scaled = params.stopping | {"target_scale": kernel.scale(params.stopping["target_scale"])}
        settings = FinetuneSettings.from_config(params.finetune, **params.kernel, **scaled)
        predicted = artifacts.read_table(stopping, "stopping").to_pylist()
        judges = len(sample.labels("test"))
        own = []
        for n, group in groupby(table.to_pylist(), key=lambda row: row["n"]):
            y = sample.targets("train", settings.outputs, settings.target_scale, n)
            answers = [row for row in predicted if row["n"] == n]
            run, seed = list(group), wildcards["seed"]
            step = run[min(1, len(run) - 1)]["step"]
            again = step, artifacts.read_matrix(kept, n=n, step=step, split="train")
            found = run_rows(kernel.leading(n), y, settings, run, answers, params.rules, seed, again)
            start = artifacts.read_matrix(kept, n=n, step=0, split="train")
            tests = {at["step"]: artifacts.read_matrix(kept, n=n, step=at["step"], split="test") for at in run}
            halves.append(run_halves(found, settings, sample, start, tests, seed))
            own += found
        own += equal_labels(own, len(sample.labels("validation")))
        rows += [{**{key: wildcards[key] for key in ("start", "task", "seed")}, **row} for row in own]
    table = rule_table(rows)
    text = runs_text(table, rows, halves, judges)
    with artifacts.atomic_path(snakemake.output.text) as temporary:
        temporary.write_text(text, encoding="utf-8")
    metrics = {f"hits/{row['rule']}": row["hits"][0] for row in table if row["hits"]}
    job.write(snakemake.output.table, rows, "stopping_runs", metrics=metrics)
    print(text)
