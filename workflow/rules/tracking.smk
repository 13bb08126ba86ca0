# The record: MLflow (sqlite under results/mlflow, or a server) and one table of where every artifact comes from.


from stopwise.tracking.ingest import next_attempt

SUMMARY = [f"{RESULTS}/{name}.{kind}" for name in ("summary", "claims") for kind in ("parquet", "md")]
RECORDED = [*artifact_paths(), *figure_tables(), *figure_paths(), *SUMMARY]
VECTORS = [path for n in config["sizes"] for path in each(f"finetune/{{start}}/{{task}}/seed{{seed}}/n{n}.safetensors")]


# Once, before anything can race it: two processes that initialise one MLflow database break it for good.
rule mlflow_database:
    output:
        "results/mlflow/database.json",
    log:
        "results/mlflow/logs/mlflow_database.log",
    benchmark:
        "results/mlflow/logs/mlflow_database.benchmark.tsv"
    localrule: True
    conda:
        ENVIRONMENT
    message:
        "Creating the MLflow database (once)"
    script:
        "../scripts/mlflow_database.py"


rule track:
    input:
        artifacts=RECORDED,
        database="results/mlflow/database.json" if config["mlflow"]["tracking_uri"] is None else [],
    output:
        f"{RESULTS}/tracking.parquet",
    log:
        f"{RESULTS}/logs/track.log",
    benchmark:
        f"{RESULTS}/benchmarks/track.tsv"
    localrule: True
    conda:
        ENVIRONMENT
    params:
        code=library("track"),
        tracking_uri=config["mlflow"]["tracking_uri"],
        config_digest=CONFIG_DIGEST,
        # Changes while something is pending, so that the rule runs again.
        attempt=lambda wildcards: next_attempt(f"{RESULTS}/tracking.parquet"),
    message:
        "Recording the run in MLflow"
    script:
        "../scripts/track.py"


rule provenance:
    input:
        artifacts=[*RECORDED, *VECTORS],
    output:
        table=f"{RESULTS}/provenance.parquet",
        csv=f"{RESULTS}/provenance.csv",
    log:
        f"{RESULTS}/logs/provenance.log",
    benchmark:
        f"{RESULTS}/benchmarks/provenance.tsv"
    localrule: True
    conda:
        ENVIRONMENT
    params:
        code=library("provenance"),
    message:
        "Listing where every artifact comes from"
    script:
        "../scripts/provenance.py"
