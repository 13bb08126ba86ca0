# Eigendecomposition, decay, and what each stopping rule says before the first gradient step.


rule spectrum:
    input:
        gram=f"{RESULTS}/gram/{{start}}/{{task}}/seed{{seed}}.parquet",
        data=f"{RESULTS}/data/{{task}}/seed{{seed}}.parquet",
    output:
        spectrum=f"{RESULTS}/spectrum/{{start}}/{{task}}/seed{{seed}}.parquet",
        decay=f"{RESULTS}/decay/{{start}}/{{task}}/seed{{seed}}.parquet",
    log:
        f"{RESULTS}/logs/spectrum/{{start}}-{{task}}-seed{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/spectrum/{{start}}-{{task}}-seed{{seed}}.tsv"
    conda:
        ENVIRONMENT
    threads: 2 if max(config["sizes"]) > 64 else 1  # of a smaller kernel one thread does all
    resources:
        mem_mb=kernel_memory(9, 2000),
        runtime=kernel_minutes(2, 20),
    params:
        code=library("spectrum"),
        sizes=sorted(config["sizes"]),
        outputs=config["kernel"]["outputs"],
        stopping={key: config["stopping"][key] for key in ("intercept", "target_scale", "noise")},
        packages=installed("numpy", "scipy"),
    message:
        "Eigendecomposition: {wildcards.start} {wildcards.task}, seed {wildcards.seed}"
    script:
        "../scripts/spectrum.py"


rule stopping:
    input:
        gram=f"{RESULTS}/gram/{{start}}/{{task}}/seed{{seed}}.parquet",
        data=f"{RESULTS}/data/{{task}}/seed{{seed}}.parquet",
    output:
        stopping=f"{RESULTS}/stopping/{{start}}/{{task}}/seed{{seed}}.parquet",
        curve=f"{RESULTS}/stopping_curve/{{start}}/{{task}}/seed{{seed}}.parquet",
    log:
        f"{RESULTS}/logs/stopping/{{start}}-{{task}}-seed{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/stopping/{{start}}-{{task}}-seed{{seed}}.tsv"
    priority: 1  # before tables and figures: training, which takes longest, waits for it
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=kernel_memory(11, 2000),
        runtime=kernel_minutes(3 + FOLDS, 20),
    params:
        code=library("stopping"),
        sizes=sorted(config["sizes"]),
        outputs=config["kernel"]["outputs"],
        stopping=config["stopping"],
        finetune=filter_section(),
        packages=installed("numpy", "scipy"),
    message:
        "Predicting the stopping time: {wildcards.start} {wildcards.task}, seed {wildcards.seed}"
    script:
        "../scripts/stopping.py"
