# One ordered sample per (task, seed): train | validation | test, with prompts and token ids.


rule data:
    input:
        sources=lambda w: task_files(w.task),
        model=model_stamp(),
    output:
        f"{RESULTS}/data/{{task}}/seed{{seed}}.parquet",
    log:
        f"{RESULTS}/logs/data/{{task}}-seed{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/data/{{task}}-seed{{seed}}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        code=library("data"),
        task=lambda w: config["tasks"][w.task],
        data=config["data"],
        train=max(config["sizes"]),
        model={key: config["model"][key] for key in ("trust_remote_code", "head") if key in config["model"]},
        packages=installed("tokenizers", "transformers"),
    message:
        "Sampling and tokenising {wildcards.task}, seed {wildcards.seed}"
    script:
        "../scripts/data.py"
