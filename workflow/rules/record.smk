# The small tables of a finished run, for the repository: `snakemake --cores 1 record --configfile FILE`.


def recorded():
    """Return the artifacts that each recorded table is made of."""
    tables = {
        "trajectory": each("finetune/{start}/{task}/seed{seed}/trajectory.parquet"),
        "summary": [f"{RESULTS}/summary.parquet"],
    }
    for stage in ("evaluation", "stopping", "decay", "guarantee"):
        tables[stage] = each(f"{stage}/{{start}}/{{task}}/seed{{seed}}.parquet")
    if drift_paths():
        tables["drift"] = drift_paths()
    if arithmetic_runs():
        tables["arithmetic"] = [f"{RESULTS}/arithmetic/seed{seed}.parquet" for seed in config["arithmetic"]["seeds"]]
    for stage in JOINT_STAGES if joint_paths() else ():
        tables[stage] = [path for path in joint_paths() if path.split("/")[-2] == stage]
    return tables | {figure: [f"{RESULTS}/figures/{figure}.parquet"] for figure in figure_ids()}


RECORD = recorded()
CONFIG_FILES = [relative(path) for path in workflow.overwrite_configfiles]


rule record:
    input:
        **RECORD,
        code=library("record"),
    output:
        tables=expand(f"docs/data/{config['name']}/{{table}}.parquet", table=RECORD),
        text=f"docs/data/{config['name']}/README.md",
    log:
        f"{RESULTS}/logs/record.log",
    benchmark:
        f"{RESULTS}/benchmarks/record.tsv"
    localrule: True
    conda:
        ENVIRONMENT
    params:
        name=config["name"],
        tables=list(RECORD),
        digest=CONFIG_DIGEST,
        command=" ".join(["snakemake --cores 2", *(f"--configfile {path}" for path in CONFIG_FILES)]),
    message:
        "Writing the run's small tables to docs/data"
    script:
        "../scripts/record.py"
