# The stopping rules judged on the linearised path from the pretrained start, where every one can be:
# `snakemake --cores 2 stopping_study`.


rule stopping_study_cells:
    input:
        data=f"{RESULTS}/data/{{task}}/seed{{seed}}.parquet",
        gram=f"{RESULTS}/gram/{{start}}/{{task}}/seed{{seed}}.parquet",
    output:
        f"{RESULTS}/stopping_study/{{start}}/{{task}}/seed{{seed}}.parquet",
    log:
        f"{RESULTS}/logs/stopping_study/{{start}}-{{task}}-seed{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/stopping_study/{{start}}-{{task}}-seed{{seed}}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=kernel_memory(11, 3000),
        runtime=kernel_minutes(3 + FOLDS, 60),
    params:
        code=library("stopping_study_cells"),
        sizes=sorted(config["sizes"]),
        outputs=config["kernel"]["outputs"],
        target_scale=config["stopping"]["target_scale"],
        packages=installed("numpy", "scipy"),
    message:
        "Judging the stopping rules on the kernel's path: {wildcards.start} {wildcards.task}, seed {wildcards.seed}"
    script:
        "../scripts/stopping_study_cells.py"


rule stopping_study:
    input:
        cells=expand(
            f"{RESULTS}/stopping_study/pretrained/{{task}}/seed{{seed}}.parquet", task=MERGED, seed=config["seeds"]
        ),
    output:
        table=f"{RESULTS}/stopping_study.parquet",
        text=f"{RESULTS}/stopping_study.md",
        figure=f"{RESULTS}/figures/stopping_study.parquet",
        svg=f"{RESULTS}/figures/stopping_study.svg",
        png=f"{RESULTS}/figures/stopping_study.png",
    log:
        f"{RESULTS}/logs/stopping_study.log",
    benchmark:
        f"{RESULTS}/benchmarks/stopping_study.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        code=library("stopping_study"),
    message:
        "Writing the study of the stopping rules"
    script:
        "../scripts/stopping_study.py"


rule stopping_runs:
    input:
        trajectory=expand(
            f"{RESULTS}/finetune/pretrained/{{task}}/seed{{seed}}/trajectory.parquet",
            task=MERGED,
            seed=config["seeds"],
        ),
        stopping=expand(
            f"{RESULTS}/stopping/pretrained/{{task}}/seed{{seed}}.parquet", task=MERGED, seed=config["seeds"]
        ),
        gram=expand(f"{RESULTS}/gram/pretrained/{{task}}/seed{{seed}}.parquet", task=MERGED, seed=config["seeds"]),
        data=expand(f"{RESULTS}/data/{{task}}/seed{{seed}}.parquet", task=MERGED, seed=config["seeds"]),
        outputs=expand(
            f"{RESULTS}/finetune/pretrained/{{task}}/seed{{seed}}/finetune_outputs.parquet",
            task=MERGED,
            seed=config["seeds"],
        ),
    output:
        table=f"{RESULTS}/stopping_runs.parquet",
        text=f"{RESULTS}/stopping_runs.md",
    log:
        f"{RESULTS}/logs/stopping_runs.log",
    benchmark:
        f"{RESULTS}/benchmarks/stopping_runs.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=3000,
        runtime=60,
    params:
        code=library("stopping_runs"),
        finetune=config["finetune"],
        kernel={key: config["kernel"][key] for key in ("parameters", "outputs", "formula")},
        stopping={key: config["stopping"][key] for key in ("intercept", "target_scale")},
        rules=config["stopping"]["rules"],
        packages=installed("numpy", "scipy"),
    message:
        "Judging the stopping rules and their variants on real training"
    script:
        "../scripts/stopping_runs.py"
