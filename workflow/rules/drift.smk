# How far kernel and weights drift along a real run: one small size is trained again and its kernel computed on the way.


rule drift:
    input:
        data=f"{RESULTS}/data/{{task}}/seed{{seed}}.parquet",
        gram=f"{RESULTS}/gram/{{start}}/{{task}}/seed{{seed}}.parquet",
        model=model_stamp(),
    output:
        f"{RESULTS}/drift/{{start}}/{{task}}/seed{{seed}}.parquet",
    log:
        f"{RESULTS}/logs/drift/{{start}}-{{task}}-seed{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/drift/{{start}}-{{task}}-seed{{seed}}.tsv"
    conda:
        ENVIRONMENT
    threads: threads_per_job()
    resources:
        mem_mb=5500,
        runtime=240,
        gpu=gpus_per_job(),
    params:
        code=library("drift"),
        drift={key: config["drift"][key] for key in ("size", "examples", "checkpoints")},
        model=lambda w: model_section(w.start),
        kernel=kernel_section(),
        adam=adam_section(),
        stopping={key: config["stopping"][key] for key in ("intercept", "target_scale")},
        finetune=config["finetune"],
        device=config["device"],
        packages=installed("numpy", "scipy", "torch", "transformers"),
    message:
        "Kernel drift along training: {wildcards.start} {wildcards.task}, seed {wildcards.seed}"
    script:
        "../scripts/drift.py"
