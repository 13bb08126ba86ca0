# Several tasks trained together from the pretrained start, beside what their joint kernel predicts.


rule joint:
    input:
        data=expand(f"{RESULTS}/data/{{task}}/seed{{{{seed}}}}.parquet", task=MERGED),
        model=model_stamp(),
    output:
        joint=f"{RESULTS}/joint/seed{{seed}}.parquet",
        stopping=f"{RESULTS}/joint_stopping/seed{{seed}}.parquet",
        evaluation=f"{RESULTS}/joint_evaluation/seed{{seed}}.parquet",
    log:
        f"{RESULTS}/logs/joint/seed{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/joint/seed{{seed}}.tsv"
    conda:
        ENVIRONMENT
    threads: threads_per_job()
    resources:
        mem_mb=5500,
        runtime=240,
        gpu=gpus_per_job(),
    params:
        code=library("joint"),
        tasks=MERGED,
        joint={"size": config["joint"]["size"]},
        model=model_section(),
        kernel=kernel_section(),
        stopping=config["stopping"],
        finetune=config["finetune"],
        device=config["device"],
        packages=installed("numpy", "scipy", "torch", "transformers"),
    message:
        "Joint training of all tasks, seed {wildcards.seed}"
    script:
        "../scripts/joint.py"
