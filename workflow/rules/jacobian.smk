# What a kernel is assembled from. A shard is some layers over all examples; a job adds up its own layers' Gram
# contributions. With kernel.blocks a job has all layers, and two blocks of the examples.


rule jacobian:
    input:
        data=f"{RESULTS}/data/{{task}}/seed{{seed}}.parquet",
        model=model_stamp(),
    output:
        f"{RESULTS}/jacobian/{{start}}/{{task}}/seed{{seed}}/{PIECE}.parquet",
    log:
        f"{RESULTS}/logs/jacobian/{{start}}-{{task}}-seed{{seed}}-{PIECE}.log",
    benchmark:
        f"{RESULTS}/benchmarks/jacobian/{{start}}-{{task}}-seed{{seed}}-{PIECE}.tsv"
    priority: 1  # before tables and figures: training, which takes longest, waits for it
    conda:
        ENVIRONMENT
    threads: PROCESSES * threads_per_job()
    resources:
        processes=PROCESSES,
        mem_mb=PROCESSES * (5000 if adam_section() is None else 6500),
        runtime=120,
        gpu=PROCESSES * gpus_per_job(),
    params:
        **({"scheduled": scheduled_section()} if scheduled_section() else {}),
        code=library("jacobian"),
        model=lambda w: model_section(w.start),
        kernel=kernel_section(),
        adam=adam_section(),
        device=config["device"],
        packages=installed("torch", "transformers"),
    message:
        f"Jacobian {PIECE_IN_WORDS}: {{wildcards.start}} {{wildcards.task}}, seed {{wildcards.seed}}"
    script:
        "../scripts/jacobian.py"
