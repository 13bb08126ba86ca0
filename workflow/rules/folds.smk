# Real training without parts of the examples, which names the stop of the training on all (finetune.stop:
# cross_validation or holdout_refit).


rule fold:
    input:
        data=f"{RESULTS}/data/{{task}}/seed{{seed}}.parquet",
        gram=f"{RESULTS}/gram/{{start}}/{{task}}/seed{{seed}}.parquet",
        model=model_stamp(),
    output:
        f"{RESULTS}/fold/{{start}}/{{task}}/seed{{seed}}/fold{{fold}}of{{folds}}.parquet",
    log:
        f"{RESULTS}/logs/fold/{{start}}-{{task}}-seed{{seed}}-fold{{fold}}of{{folds}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/fold/{{start}}-{{task}}-seed{{seed}}-fold{{fold}}of{{folds}}.tsv"
    conda:
        ENVIRONMENT
    threads: threads_per_job()
    resources:
        mem_mb=5500,
        runtime=480,
        gpu=gpus_per_job(),
    params:
        code=library("fold"),
        sizes=sorted(config["sizes"]),
        model=lambda w: model_section(w.start),
        kernel={key: config["kernel"][key] for key in ("parameters", "outputs", "formula")},
        stopping={key: config["stopping"][key] for key in ("intercept", "target_scale")},
        finetune={key: value for key, value in config["finetune"].items() if key not in ENDING},
        device=config["device"],
        packages=installed("numpy", "scipy", "torch", "transformers"),
    message:
        "Training without part {wildcards.fold} of {wildcards.folds}: {wildcards.start} {wildcards.task}, seed {wildcards.seed}"
    script:
        "../scripts/fold.py"


rule folded:
    input:
        expand(
            f"{RESULTS}/fold/{{{{start}}}}/{{{{task}}}}/seed{{{{seed}}}}/fold{{fold}}of{{folds}}.parquet",
            fold=folds_asked()[1],
            folds=folds_asked()[0],
        ),
    output:
        stopping=f"{RESULTS}/folded/{{start}}/{{task}}/seed{{seed}}.parquet",
        curve=f"{RESULTS}/folded_curve/{{start}}/{{task}}/seed{{seed}}.parquet",
    log:
        f"{RESULTS}/logs/folded/{{start}}-{{task}}-seed{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/folded/{{start}}-{{task}}-seed{{seed}}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        code=library("folded"),
        sizes=sorted(config["sizes"]),
        stop=config["finetune"]["stop"],
        batch_size=config["finetune"]["batch_size"],
        patience=config["finetune"]["patience"],
        min_delta=config["finetune"]["min_delta"],
    message:
        "The stop that the folds name: {wildcards.start} {wildcards.task}, seed {wildcards.seed}"
    script:
        "../scripts/folded.py"
