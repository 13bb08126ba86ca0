# The paper's claims held against the run, and the results page. No job here imports torch.


rule claims:
    input:
        trajectory=each("finetune/{start}/{task}/seed{seed}/trajectory.parquet"),
        evaluation=each("evaluation/{start}/{task}/seed{seed}.parquet"),
        stopping=each("stopping/{start}/{task}/seed{seed}.parquet"),
        decay=each("decay/{start}/{task}/seed{seed}.parquet"),
        gram=each("gram/{start}/{task}/seed{seed}.parquet"),
        data=[f"{RESULTS}/data/{task}/seed{seed}.parquet" for task in TASKS for seed in config["seeds"]],
        F4=table_of("F4"),
        F5=table_of("F5"),
        F6=table_of("F6"),
        F7=table_of("F7"),
        F8=table_of("F8"),
        F10=table_of("F10"),
    output:
        table=f"{RESULTS}/claims.parquet",
        text=f"{RESULTS}/claims.md",
    log:
        f"{RESULTS}/logs/claims.log",
    benchmark:
        f"{RESULTS}/benchmarks/claims.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        code=library("claims"),
        name=config["name"],
        facts=run_facts(),
        batch_size=config["finetune"]["batch_size"],
        outputs=config["kernel"]["outputs"],
        stopping={key: config["stopping"][key] for key in ("intercept", "target_scale")},
        packages=installed("numpy", "scipy"),
    message:
        "Holding the paper's claims against the run"
    script:
        "../scripts/claims.py"


rule page:
    input:
        summary=f"{RESULTS}/summary.parquet",
        claims=f"{RESULTS}/claims.parquet",
        tables=figure_tables(),
        pictures=[f"{RESULTS}/figures/{figure}.svg" for figure in figure_ids()],
    output:
        report(
            f"{RESULTS}/index.html",
            caption="../report/page.rst",
            category="Results page",
            labels={"figure": "all", "shows": "interactive page"},
        ),
    log:
        f"{RESULTS}/logs/page.log",
    benchmark:
        f"{RESULTS}/benchmarks/page.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        code=library("page", "report.page"),
        name=config["name"],
        facts=run_facts(),
        packages=installed("plotly"),
    message:
        "Writing the results page"
    script:
        "../scripts/page.py"
