# The small tables of a finished run, for the repository: `snakemake --cores 1 record --configfile FILE`.

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
