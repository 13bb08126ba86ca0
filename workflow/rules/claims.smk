# The paper's claims held against the run, and the results page. No job here imports torch.


def table_of(figure):
    """Return a figure's table when the configuration draws it; F5 and F10 when `snakemake theory` has drawn them."""
    path = f"{RESULTS}/figures/{figure}.parquet"
    return [path] if figure in figure_ids() or (figure in ("F5", "F10") and Path(path).is_file()) else []


def run_facts():
    """Return what a reader of the results must know about the run, as short texts."""
    settings, starts = config["finetune"], config["starts"]
    batches = "full batches" if settings["batch_size"] is None else f"batches of {settings['batch_size']}"
    source, revision = config["model"]["source"], config["model"]["revision"]
    return {
        "model": source + (f" at {revision}" if revision else ""),
        "tasks": ", ".join(TASKS),
        "training examples": ", ".join(map(str, sorted(config["sizes"]))),
        "seeds": ", ".join(map(str, config["seeds"])),
        "starts": ", ".join(
            start if own == "all" else f"{start} ({', '.join(own)})"
            for start, own in (starts if isinstance(starts, dict) else dict.fromkeys(starts, "all")).items()
        ),
        "trained parameters": str(config["kernel"]["parameters"]),
        "training": (
            f"{settings['optimizer'].replace('_', ' ')}, {settings['objective'].replace('_', ' ')} loss,"
            f" {settings['steps']} steps, {batches}"
        ),
    }


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
        code=library("claims"),
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
        code=library("page", "plots.page"),
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
        name=config["name"],
        facts=run_facts(),
        packages=installed("plotly"),
    message:
        "Writing the results page"
    script:
        "../scripts/page.py"
