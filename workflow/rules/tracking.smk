# The record: MLflow (sqlite under results/mlflow, or a server) and one table of where every artifact comes from.


def recorded_paths():
    """Return every table and picture of a complete run."""
    return [*artifact_paths(), *figure_tables(), *figure_paths()]


def vector_paths():
    """Return the weights of all fine-tuning runs."""
    return [
        path
        for n in sorted(config["sizes"])
        for path in each(f"finetune/{{start}}/{{task}}/seed{{seed}}/n{n}.safetensors")
    ]


def tracking_attempt(wildcards):
    """Return a token that changes when the last recording left something pending: then the rule runs again."""
    from stopwise.tracking import next_attempt

    return next_attempt(RESULTS + "/tracking.parquet")


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
        artifacts=recorded_paths(),
        database=ancient("results/mlflow/database.json") if config["mlflow"]["tracking_uri"] is None else [],
        code=library("track"),
    output:
        RESULTS + "/tracking.parquet",
    log:
        RESULTS + "/logs/track.log",
    benchmark:
        RESULTS + "/benchmarks/track.tsv"
    localrule: True
    conda:
        ENVIRONMENT
    params:
        tracking_uri=config["mlflow"]["tracking_uri"],
        config_digest=CONFIG_DIGEST,
        attempt=tracking_attempt,
    message:
        "Recording the run in MLflow"
    script:
        "../scripts/track.py"


rule provenance:
    input:
        artifacts=[*recorded_paths(), *vector_paths()],
        code=library("provenance"),
    output:
        table=RESULTS + "/provenance.parquet",
        csv=RESULTS + "/provenance.csv",
    log:
        RESULTS + "/logs/provenance.log",
    benchmark:
        RESULTS + "/benchmarks/provenance.tsv"
    localrule: True
    conda:
        ENVIRONMENT
    message:
        "Listing where every artifact comes from"
    script:
        "../scripts/provenance.py"
