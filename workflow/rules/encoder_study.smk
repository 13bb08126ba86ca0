# Ways of choosing when to stop, judged on real training (docs/results/encoder-study.md):
# `snakemake --cores 2 encoder_study --configfile config/studies/encoder.yaml`. Each target may be stopped at any time.

from stopwise.pipeline.config import completed_study
from stopwise.studies.encoder_design import Design
from stopwise.studies.encoder_rows import ALL, PARTS

try:
    STUDY_SECTION = completed_study(config)
    DESIGN = Design.of({**config, "study": STUDY_SECTION})
except ValueError as error:
    raise WorkflowError(f"stopwise: {error}")

STUDY = f"{RESULTS}/study"
RUNS = f"{STUDY}/runs/{{task}}/seed{{seed}}/n{{n}}/{{recipe}}"


wildcard_constraints:
    recipe="[A-Za-z0-9][A-Za-z0-9_.-]*",
    part="|".join(PARTS),
    pool="development|set_aside",


def files_there(task):
    """Return whether a task's own files are there: a data set that is no part of stopwise may be missing."""
    source = config["tasks"][task].get("source") or {}
    own = [source[kind] for kind in ("csv", "tsv", "jsonl", "parquet") if isinstance(source.get(kind), str)]
    return all(Path(path).expanduser().is_file() for path in own)


def pool(name):
    """Return the data sets of development, or those set aside, whose files are there."""
    return [task for task in TASKS if (task in DESIGN.set_aside) == (name == "set_aside") and files_there(task)]


def study_path(cell, name):
    """Return the path of a file of a cell."""
    return f"{RUNS.format(**cell._asdict())}/{name}.parquet"


def study_files(tasks, there=False):
    """Return the inputs of a judge of these data sets: all of a finished study, or what is ``there``."""
    cells = DESIGN.cells(tasks)
    found = lambda paths: [path for path in paths if not there or Path(path).is_file()]
    runs = found(study_path(cell, part) for cell in cells for part in (ALL, *PARTS))
    pairs = sorted({(cell.task, cell.seed) for cell in cells})
    return {
        "runs": runs,
        "steps": found(study_path(cell, "steps") for cell in cells),
        "labels": found(f"{STUDY}/data/{task}/seed{seed}-labels.parquet" for task, seed in pairs),
        "kernels": found(f"{STUDY}/kernel/{task}/seed{seed}.parquet" for task, seed in pairs),
        "answers": sorted(map(str, Path(STUDY, "answers").glob("*.parquet"))),
    }


def judged_in(name):
    """Return the data sets whose runs the judge of a pool reads: those set aside learn constants on the others too."""
    return pool("development") + (pool("set_aside") if name == "set_aside" else [])


def study_run_section(key):
    """Return what the training of the study takes of other sections."""
    return config["finetune"].get(key, {"weight_decay": 0.0}.get(key))


def recipe_section(name):
    """Return learning rate, step size and schedule of a recipe."""
    own = DESIGN.recipes[name]
    return {"learning_rate": own.learning_rate, "step_size": own.step_size, "schedule": own.schedule}


rule study_sample:
    input:
        sources=lambda w: task_files(w.task),
        model=model_stamp(),
    output:
        data=f"{STUDY}/data/{{task}}/seed{{seed}}.parquet",
        labels=f"{STUDY}/data/{{task}}/seed{{seed}}-labels.parquet",
    log:
        f"{RESULTS}/logs/study_sample/{{task}}-seed{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/study_sample/{{task}}-seed{{seed}}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        code=library("study_sample"),
        task=lambda w: config["tasks"][w.task],
        data=config["data"],
        train=max(config["sizes"]),
        seeds=config["seeds"],
        test=lambda w: DESIGN.test_count(w.task, config["data"]["test"]),
        model={key: config["model"][key] for key in ("trust_remote_code", "head") if key in config["model"]},
        packages=installed("tokenizers", "transformers"),
    message:
        "Sampling {wildcards.task}, seed {wildcards.seed}, with test rows of its own"
    script:
        "../scripts/study_sample.py"


rule study_kernel:
    input:
        data=f"{STUDY}/data/{{task}}/seed{{seed}}.parquet",
        model=model_stamp(),
    output:
        f"{STUDY}/kernel/{{task}}/seed{{seed}}.parquet",
    log:
        f"{RESULTS}/logs/study_kernel/{{task}}-seed{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/study_kernel/{{task}}-seed{{seed}}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=3000,
        runtime=60,
        gpu=gpus_per_job(),
    params:
        code=library("study_kernel"),
        model=model_section(),
        kernel=kernel_section(),
        examples=STUDY_SECTION["kernel_examples"],
        rows=STUDY_SECTION["kernel_rows"],
        batch_size=DESIGN.batch_size,
        clip_norm=study_run_section("clip_norm"),
        device=config["device"],
        packages=installed("torch", "transformers"),
    message:
        "The kernel at the start: {wildcards.task}, seed {wildcards.seed}"
    script:
        "../scripts/study_kernel.py"


def training_params():
    """Return the params that both rules of training share."""
    return {
        "code": library("study_run"),
        "model": model_section(),
        "kernel": {key: config["kernel"][key] for key in ("parameters",)},
        "recipe": lambda w: recipe_section(w.recipe),
        "steps": lambda w: DESIGN.evaluation_steps(int(w.n)),
        "batch_size": DESIGN.batch_size,
        "weight_decay": study_run_section("weight_decay"),
        "clip_norm": study_run_section("clip_norm"),
        "device": config["device"],
        "packages": installed("numpy", "torch", "transformers"),
    }


def kernel_of_recipe(wildcards):
    """Return the kernel where a recipe takes its learning rate from it."""
    return f"{STUDY}/kernel/{{task}}/seed{{seed}}.parquet" if DESIGN.recipes[wildcards.recipe].step_size else []


for training, made in {
    "study_train": {"outputs": f"{RUNS}/{ALL}.parquet", "steps": f"{RUNS}/steps.parquet"},
    "study_folds": {"outputs": f"{RUNS}/{{part}}.parquet"},
}.items():
    folds = "{wildcards.part} of " if training == "study_folds" else ""

    rule:
        name:
            training
        input:
            data=f"{STUDY}/data/{{task}}/seed{{seed}}.parquet",
            kernel=kernel_of_recipe,
            model=model_stamp(),
        output:
            **made,
        log:
            made["outputs"].replace(f"{STUDY}/runs", f"{RESULTS}/logs/{training}").replace(".parquet", ".log"),
        benchmark:
            made["outputs"].replace(f"{STUDY}/runs", f"{RESULTS}/benchmarks/{training}").replace(".parquet", ".tsv")
        conda:
            ENVIRONMENT
        threads: 1
        resources:
            mem_mb=2500,
            runtime=120,
            gpu=gpus_per_job(),
        params:
            **training_params(),
        message:
            f"Training {folds}{{wildcards.task}}, seed {{wildcards.seed}}, n = {{wildcards.n}}, {{wildcards.recipe}}"
        script:
            "../scripts/study_run.py"


def judge_params(name):
    """Return the params of the judge of a pool."""
    asked = {"seeds": config["seeds"], "sizes": config["sizes"], "study": STUDY_SECTION}
    return {
        "code": library("encoder_study", "figures.f11_labels"),
        "config": asked | {"finetune": {"batch_size": config["finetune"]["batch_size"]}, "tasks": TASKS},
        "tasks": pool(name),
        "expected": [list(cell) for cell in DESIGN.cells(pool(name))],
        "weight_decay": study_run_section("weight_decay"),
        "clip_norm": study_run_section("clip_norm"),
        "patience": config["finetune"]["patience"],
        "packages": installed("numpy", "scipy"),
    }


def judge_outputs(folder):
    """Return what the judge writes into a folder."""
    tables = {name: f"{STUDY}/{folder}/{name}.parquet" for name in ("judged", "cells", "ways", "labels_spent", "F11")}
    return tables | {
        "text": f"{STUDY}/{folder}/ways.md",
        "svg": f"{STUDY}/{folder}/F11.svg",
        "png": f"{STUDY}/{folder}/F11.png",
    }


rule encoder_study:
    input:
        **study_files(judged_in("development")),
    output:
        **judge_outputs("development"),
    log:
        f"{RESULTS}/logs/encoder_study.log",
    benchmark:
        f"{RESULTS}/benchmarks/encoder_study.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        **judge_params("development"),
    message:
        "Judging every way of choosing a stop on real training"
    script:
        "../scripts/encoder_study.py"


use rule encoder_study as encoder_study_so_far with:
    input:
        **study_files(judged_in("development"), there=True),
    output:
        **judge_outputs("development-so-far"),
    log:
        f"{RESULTS}/logs/encoder_study_so_far.log",
    benchmark:
        f"{RESULTS}/benchmarks/encoder_study_so_far.tsv"


use rule encoder_study as encoder_study_set_aside with:
    input:
        **study_files(judged_in("set_aside")),
    output:
        **judge_outputs("set_aside"),
    log:
        f"{RESULTS}/logs/encoder_study_set_aside.log",
    benchmark:
        f"{RESULTS}/benchmarks/encoder_study_set_aside.tsv"
    params:
        **judge_params("set_aside"),


for task in TASKS:

    rule:
        name:
            f"encoder_study_{task.replace('-', '_')}"
        input:
            study_files([task])["runs"],
        localrule: True


# What is finished of the development data sets, judged and kept: `record_encoder_study`.
rule record_encoder_study:
    input:
        **study_files(judged_in("development"), there=True),
        judge=[path for name, path in judge_outputs("development-so-far").items() if name != "svg"],
    output:
        f"docs/records/{config['name']}/study.md",
    log:
        f"{RESULTS}/logs/record_encoder_study.log",
    benchmark:
        f"{RESULTS}/benchmarks/record_encoder_study.tsv"
    localrule: True
    conda:
        ENVIRONMENT
    params:
        code=library("record_encoder_study"),
        command=command_line("record_encoder_study"),
    message:
        "Recording what is finished of the study on real training"
    script:
        "../scripts/record_encoder_study.py"
