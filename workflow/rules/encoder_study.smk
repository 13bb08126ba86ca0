# Ways of choosing when to stop, judged on real training (docs/results/encoder-study.md, language-model-study.md):
# `snakemake --cores 2 encoder_study --configfile config/studies/encoder.yaml`, and language_model_study where words
# answer. Each target may be stopped at any time.


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
        f"{STUDY}/kernel/{{task}}/seed{{seed}}-n{{n}}-{{head}}.parquet",
    log:
        f"{RESULTS}/logs/study_kernel/{{task}}/seed{{seed}}-n{{n}}-{{head}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/study_kernel/{{task}}/seed{{seed}}-n{{n}}-{{head}}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=KERNEL_MB,
        runtime=60,
        gpu=gpus_per_job(),
    params:
        code=library("study_kernel"),
        model=model_section(),
        kernel=kernel_section(),
        rows=STUDY_SECTION["kernel_rows"],
        batch_size=DESIGN.batch_size,
        rates=lambda w: of_kernel(w, lambda recipe: recipe.step_size is not None),
        plain=lambda w: of_kernel(w, lambda recipe: recipe.clip_norm is not None),
        device=config["device"],
        packages=installed("torch", "transformers", *adapter_packages()),
    message:
        "The kernel at the start: {wildcards.task}, seed {wildcards.seed}, n = {wildcards.n}, head {wildcards.head}"
    script:
        "../scripts/study_kernel.py"


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
            mem_mb=TRAINING_MB,
            runtime=120,
            gpu=gpus_per_job(),
        params:
            **training_params(),
        message:
            f"Training {folds}{{wildcards.task}}, seed {{wildcards.seed}}, n = {{wildcards.n}}, {{wildcards.recipe}}"
        script:
            "../scripts/study_run.py"


ANCHORED = "{task}-seed{seed}-n{n}-{recipe}-anchored.parquet"


# A way of choosing that reads the network along the trainings: they are done again.
rule study_anchored:
    input:
        data=f"{STUDY}/data/{{task}}/seed{{seed}}.parquet",
        model=model_stamp(),
    output:
        curve=f"{STUDY}/left_out/{ANCHORED}",
        answers=f"{STUDY}/answers/{ANCHORED}",
    log:
        f"{RESULTS}/logs/study_anchored/{ANCHORED}".replace(".parquet", ".log"),
    benchmark:
        f"{RESULTS}/benchmarks/study_anchored/{ANCHORED}".replace(".parquet", ".tsv")
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=ANCHORED_MB,
        runtime=120,
        gpu=gpus_per_job(),
    params:
        **{key: value for key, value in training_params().items() if key != "code"},
        code=library("study_anchored"),
        memory_gb=config["kernel"]["memory_gb"],
    message:
        "The anchored leave-one-out: {wildcards.task}, seed {wildcards.seed}, n = {wildcards.n}, {wildcards.recipe}"
    script:
        "../scripts/study_anchored.py"


for suffix, name in product(("", "_set_aside"), (STUDY_NAME, OTHER_NAME)):

    rule:
        name:
            f"{name}_anchored{suffix}"
        input:
            anchored_files(suffix.removeprefix("_") or "development"),
        localrule: True


for suffix, judged in JUDGED.items():

    rule:
        name:
            STUDY_NAME + suffix
        input:
            **study_files(judged_in(judged["pool"]), judged.get("there", False), judged.get("first", False)),
        output:
            **judge_outputs(judged["folder"]),
        log:
            f"{RESULTS}/logs/{STUDY_NAME}{suffix}.log",
        benchmark:
            f"{RESULTS}/benchmarks/{STUDY_NAME}{suffix}.tsv"
        conda:
            ENVIRONMENT
        threads: 1
        resources:
            mem_mb=4000,
            runtime=60,
        params:
            **judge_params(judged["pool"], judged.get("first", False)),
        message:
            "Judging every way of choosing a stop on real training"
        script:
            "../scripts/encoder_study.py"

    rule:
        name:
            OTHER_NAME + suffix
        input:
            judge_outputs(judged["folder"])["text"],
        localrule: True


# The rules of the targets above; a data set of such a name has no target of its own.
TAKEN = {suffix.removeprefix("_") for suffix in JUDGED} | {"anchored", "anchored_set_aside"}
for task, name in product(TASKS, (STUDY_NAME, OTHER_NAME)):
    if task.replace("-", "_") in TAKEN:
        continue

    rule:
        name:
            f"{name}_{task.replace('-', '_')}"
        input:
            study_files([task])["runs"],
            study_files([task])["kernels"],
        localrule: True


# What is finished of the development data sets, judged and kept.
rule:
    name:
        f"record_{STUDY_NAME}"
    input:
        **study_files(judged_in("development"), there=True),
        judge=[path for name, path in judge_outputs("development-so-far").items() if name != "svg"],
    output:
        f"docs/records/{config['name']}/study.md",
    log:
        f"{RESULTS}/logs/record_{STUDY_NAME}.log",
    benchmark:
        f"{RESULTS}/benchmarks/record_{STUDY_NAME}.tsv"
    localrule: True
    conda:
        ENVIRONMENT
    params:
        code=library("record_encoder_study"),
        command=command_line(f"record_{STUDY_NAME}"),
        page=STUDY_NAME.replace("_", "-"),
    message:
        "Recording what is finished of the study on real training"
    script:
        "../scripts/record_encoder_study.py"


rule:
    name:
        f"record_{OTHER_NAME}"
    input:
        f"docs/records/{config['name']}/study.md",
    localrule: True
