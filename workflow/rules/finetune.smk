# Real fine-tuning with early stopping (one job sweeps all training sizes), the rules judged on its curves, and what
# the theory says of each direction and of the loss.


rule finetune:
    input:
        data=f"{RESULTS}/data/{{task}}/seed{{seed}}.parquet",
        gram=f"{RESULTS}/gram/{{start}}/{{task}}/seed{{seed}}.parquet",
        stopping=named_stop(),
        model=model_stamp(),
    output:
        trajectory=f"{RESULTS}/finetune/{{start}}/{{task}}/seed{{seed}}/trajectory.parquet",
        outputs=f"{RESULTS}/finetune/{{start}}/{{task}}/seed{{seed}}/finetune_outputs.parquet",
        index=f"{RESULTS}/finetune/{{start}}/{{task}}/seed{{seed}}/vector_index.parquet",
        vectors=[
            f"{RESULTS}/finetune/{{start}}/{{task}}/seed{{seed}}/n{n}.safetensors" for n in sorted(config["sizes"])
        ],
    log:
        f"{RESULTS}/logs/finetune/{{start}}-{{task}}-seed{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/finetune/{{start}}-{{task}}-seed{{seed}}.tsv"
    priority: 1  # before tables and figures: it takes longest
    conda:
        ENVIRONMENT
    threads: threads_per_job()
    resources:
        mem_mb=5500,
        runtime=480,
        gpu=gpus_per_job(),
    params:
        code=library("finetune"),
        sizes=sorted(config["sizes"]),
        model=lambda w: model_section(w.start),
        kernel={key: config["kernel"][key] for key in ("parameters", "outputs", "formula")},
        stopping={key: config["stopping"][key] for key in ("intercept", "target_scale")},
        finetune=config["finetune"],
        device=config["device"],
        packages=installed("numpy", "scipy", "torch", "transformers"),
    message:
        "Fine-tuning: {wildcards.start} {wildcards.task}, seed {wildcards.seed}, all sizes"
    script:
        "../scripts/finetune.py"


rule evaluation:
    input:
        trajectory=f"{RESULTS}/finetune/{{start}}/{{task}}/seed{{seed}}/trajectory.parquet",
        stopping=f"{RESULTS}/stopping/{{start}}/{{task}}/seed{{seed}}.parquet",
    output:
        f"{RESULTS}/evaluation/{{start}}/{{task}}/seed{{seed}}.parquet",
    log:
        f"{RESULTS}/logs/evaluation/{{start}}-{{task}}-seed{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/evaluation/{{start}}-{{task}}-seed{{seed}}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        code=library("evaluation"),
        finetune=config["finetune"] | {"formula": config["kernel"]["formula"]},
        rules=config["stopping"]["rules"],
    message:
        "Judging the rules: {wildcards.start} {wildcards.task}, seed {wildcards.seed}"
    script:
        "../scripts/evaluation.py"


rule directions:
    input:
        data=f"{RESULTS}/data/{{task}}/seed{{seed}}.parquet",
        gram=f"{RESULTS}/gram/{{start}}/{{task}}/seed{{seed}}.parquet",
        outputs=f"{RESULTS}/finetune/{{start}}/{{task}}/seed{{seed}}/finetune_outputs.parquet",
    output:
        directions=f"{RESULTS}/directions/{{start}}/{{task}}/seed{{seed}}.parquet",
        guarantee=f"{RESULTS}/guarantee/{{start}}/{{task}}/seed{{seed}}.parquet",
    log:
        f"{RESULTS}/logs/directions/{{start}}-{{task}}-seed{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/directions/{{start}}-{{task}}-seed{{seed}}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=kernel_memory(9, 1000),
        runtime=kernel_minutes(2, 10),
    params:
        code=library("directions"),
        outputs=config["kernel"]["outputs"],
        stopping={key: config["stopping"][key] for key in ("intercept", "target_scale")},
        finetune=filter_section(),
        packages=installed("numpy", "scipy"),
    message:
        "What is left to learn by eigen-direction: {wildcards.start} {wildcards.task}, seed {wildcards.seed}"
    script:
        "../scripts/directions.py"
