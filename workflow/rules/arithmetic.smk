# Task arithmetic on one seed's vectors: addition over all pairs and negation, the coefficient chosen on validation.


rule arithmetic:
    input:
        data=expand(f"{RESULTS}/data/{{task}}/seed{{{{seed}}}}.parquet", task=MERGED),
        index=expand(f"{RESULTS}/finetune/pretrained/{{task}}/seed{{{{seed}}}}/vector_index.parquet", task=MERGED),
        vectors=expand(
            f"{RESULTS}/finetune/pretrained/{{task}}/seed{{{{seed}}}}/n{{n}}.safetensors",
            task=MERGED,
            n=config["arithmetic"]["size"],
        ),
        model=model_stamp(),
        code=library("arithmetic", "models"),
    output:
        f"{RESULTS}/arithmetic/seed{{seed}}.parquet",
    log:
        f"{RESULTS}/logs/arithmetic/seed{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/arithmetic/seed{{seed}}.tsv"
    conda:
        ENVIRONMENT
    threads: 2
    resources:
        mem_mb=5500,
        runtime=240,
        gpu=gpus_per_job(),
    params:
        tasks=MERGED,
        model=config["model"],
        outputs=config["kernel"]["outputs"],
        target_scale=config["stopping"]["target_scale"],
        arithmetic={key: config["arithmetic"][key] for key in ("size", "coefficients", "control_tolerance")},
        device=config["device"],
        packages=installed("torch", "transformers"),
    message:
        "Task arithmetic over all pairs, seed {wildcards.seed}"
    script:
        "../scripts/arithmetic.py"
