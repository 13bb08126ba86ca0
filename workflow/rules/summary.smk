# The headline numbers of a run.


rule summary:
    input:
        data=[f"{RESULTS}/data/{task}/seed{seed}.parquet" for task in TASKS for seed in config["seeds"]],
        gram=each("gram/{start}/{task}/seed{seed}.parquet"),
        trajectory=each("finetune/{start}/{task}/seed{seed}/trajectory.parquet"),
        evaluation=each("evaluation/{start}/{task}/seed{seed}.parquet"),
        arithmetic=[
            f"{RESULTS}/arithmetic/seed{seed}.parquet" for seed in config["arithmetic"]["seeds"] if arithmetic_runs()
        ],
    output:
        table=f"{RESULTS}/summary.parquet",
        text=f"{RESULTS}/summary.md",
    log:
        f"{RESULTS}/logs/summary.log",
    benchmark:
        f"{RESULTS}/benchmarks/summary.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        code=library("summary"),
        name=config["name"],
        sizes=sorted(config["sizes"]),
        outputs=config["kernel"]["outputs"],
        stopping={key: config["stopping"][key] for key in ("intercept", "target_scale")},
    message:
        "Writing the headline numbers"
    script:
        "../scripts/summary.py"
