# Task arithmetic on one seed's vectors: predicted from the kernels between tasks, measured on the network, compared.


SAMPLES = expand(f"{RESULTS}/data/{{task}}/seed{{{{seed}}}}.parquet", task=MERGED)
INDEXES = expand(f"{RESULTS}/finetune/pretrained/{{task}}/seed{{{{seed}}}}/vector_index.parquet", task=MERGED)
VECTORS = expand(
    f"{RESULTS}/finetune/pretrained/{{task}}/seed{{{{seed}}}}/n{{n}}.safetensors",
    task=MERGED,
    n=config["arithmetic"]["size"],
)
# What the tangent space of a seed is read from, beside its samples and the kept steps.
SPACE = {
    "gram": expand(f"{RESULTS}/gram/pretrained/{{task}}/seed{{{{seed}}}}.parquet", task=MERGED),
    "outputs": expand(f"{RESULTS}/finetune/pretrained/{{task}}/seed{{{{seed}}}}/finetune_outputs.parquet", task=MERGED),
    "blocks": expand(
        f"{RESULTS}/task_kernels/seed{{{{seed}}}}/shard{{shard}}of{{shards}}.parquet",
        shard=range(config["arithmetic"]["shards"]),
        shards=config["arithmetic"]["shards"],
    ),
}


rule arithmetic:
    input:
        data=SAMPLES,
        index=INDEXES,
        vectors=VECTORS,
        model=model_stamp(),
    output:
        arithmetic=f"{RESULTS}/arithmetic/seed{{seed}}.parquet",
        interference=f"{RESULTS}/measured_interference/seed{{seed}}.parquet",
    log:
        f"{RESULTS}/logs/arithmetic/seed{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/arithmetic/seed{{seed}}.tsv"
    conda:
        ENVIRONMENT
    threads: threads_per_job()
    resources:
        mem_mb=5500,
        runtime=240,
        gpu=gpus_per_job(),
    params:
        code=library("arithmetic"),
        tasks=MERGED,
        model=model_section(),
        outputs=config["kernel"]["outputs"],
        target_scale=config["stopping"]["target_scale"],
        arithmetic=arithmetic_section("coefficients", "control_tolerance"),
        device=config["device"],
        packages=installed("torch", "transformers"),
    message:
        "Task arithmetic over all pairs, seed {wildcards.seed}"
    script:
        "../scripts/arithmetic.py"


rule task_kernels:
    input:
        data=SAMPLES,
        model=model_stamp(),
    output:
        f"{RESULTS}/task_kernels/seed{{seed}}/shard{{shard}}of{{shards}}.parquet",
    log:
        f"{RESULTS}/logs/task_kernels/seed{{seed}}-shard{{shard}}of{{shards}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/task_kernels/seed{{seed}}-shard{{shard}}of{{shards}}.tsv"
    conda:
        ENVIRONMENT
    threads: threads_per_job()
    resources:
        mem_mb=5500,
        runtime=240,
        gpu=gpus_per_job(),
    params:
        code=library("task_kernels"),
        tasks=MERGED,
        size=config["arithmetic"]["size"],
        model=model_section(),
        kernel=kernel_section(),
        device=config["device"],
        packages=installed("torch", "transformers"),
    message:
        "Kernels between tasks, seed {wildcards.seed}, shard {wildcards.shard} of {wildcards.shards}"
    script:
        "../scripts/task_kernels.py"


rule arithmetic_prediction:
    input:
        **SPACE,
        data=SAMPLES,
        index=INDEXES,
    output:
        grid=f"{RESULTS}/arithmetic_prediction/seed{{seed}}.parquet",
        interference=f"{RESULTS}/predicted_interference/seed{{seed}}.parquet",
    log:
        f"{RESULTS}/logs/arithmetic_prediction/seed{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/arithmetic_prediction/seed{{seed}}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=3000,
        runtime=30,
    params:
        code=library("arithmetic_prediction"),
        tasks=MERGED,
        kernel={key: config["kernel"][key] for key in ("parameters", "outputs")},
        formula=config["kernel"]["formula"],
        stopping={key: config["stopping"][key] for key in ("intercept", "target_scale")},
        finetune=trained_section(),
        arithmetic=arithmetic_section("coefficients"),
        packages=installed("numpy", "scipy"),
    message:
        "Predicting task arithmetic, seed {wildcards.seed}"
    script:
        "../scripts/arithmetic_prediction.py"


rule arithmetic_check:
    input:
        effects=over_seeds("predicted_interference"),
        measured_effects=over_seeds("measured_interference"),
        points=over_seeds("arithmetic_prediction"),
        arithmetic=over_seeds("arithmetic"),
    output:
        table=f"{RESULTS}/arithmetic_check.parquet",
        agreement=f"{RESULTS}/arithmetic_agreement.parquet",
        text=f"{RESULTS}/arithmetic_check.md",
    log:
        f"{RESULTS}/logs/arithmetic_check.log",
    benchmark:
        f"{RESULTS}/benchmarks/arithmetic_check.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        code=library("arithmetic_check"),
    message:
        "Holding predicted task arithmetic against the measured"
    script:
        "../scripts/arithmetic_check.py"


rule merge_advice:
    input:
        points=over_seeds("arithmetic_prediction"),
        effects=over_seeds("predicted_interference"),
    output:
        table=f"{RESULTS}/merge_advice.parquet",
        text=f"{RESULTS}/merge_advice.md",
    log:
        f"{RESULTS}/logs/merge_advice.log",
    benchmark:
        f"{RESULTS}/benchmarks/merge_advice.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        code=library("merge_advice"),
    message:
        "Which task vectors to add, before any merging"
    script:
        "../scripts/merge_advice.py"


rule merge_score:
    input:
        advice=f"{RESULTS}/merge_advice.parquet",
        arithmetic=over_seeds("arithmetic"),
    output:
        table=f"{RESULTS}/merge_score.parquet",
        text=f"{RESULTS}/merge_score.md",
    log:
        f"{RESULTS}/logs/merge_score.log",
    benchmark:
        f"{RESULTS}/benchmarks/merge_score.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        code=library("merge_score"),
    message:
        "Scoring the merge advice"
    script:
        "../scripts/merge_score.py"


rule disentanglement:
    input:
        **SPACE,
        data=SAMPLES,
        index=INDEXES,
        vectors=VECTORS,
        model=model_stamp(),
    output:
        f"{RESULTS}/disentanglement/seed{{seed}}.parquet",
    log:
        f"{RESULTS}/logs/disentanglement/seed{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/disentanglement/seed{{seed}}.tsv"
    conda:
        ENVIRONMENT
    threads: threads_per_job()
    resources:
        mem_mb=5500,
        runtime=240,
        gpu=gpus_per_job(),
    params:
        code=library("disentanglement"),
        tasks=MERGED,
        model=model_section(),
        kernel={key: config["kernel"][key] for key in ("parameters", "outputs")},
        formula=config["kernel"]["formula"],
        stopping={key: config["stopping"][key] for key in ("intercept", "target_scale")},
        finetune=trained_section(),
        arithmetic=arithmetic_section("disentanglement", "tangent"),
        device=config["device"],
        packages=installed("numpy", "scipy", "torch", "transformers"),
    message:
        "Disentanglement over the plane of coefficients, seed {wildcards.seed}"
    script:
        "../scripts/disentanglement.py"


rule tangent_arithmetic:
    input:
        data=SAMPLES,
        index=INDEXES,
        vectors=VECTORS,
        gram=SPACE["gram"],
        stopping=expand(
            [path.replace("{start}", "pretrained").replace("{seed}", "{{seed}}") for path in named_stop()], task=MERGED
        ),
        model=model_stamp(),
    output:
        table=f"{RESULTS}/tangent_arithmetic/seed{{seed}}.parquet",
        vectors=expand(f"{RESULTS}/tangent_arithmetic/seed{{{{seed}}}}/{{task}}.safetensors", task=MERGED),
    log:
        f"{RESULTS}/logs/tangent_arithmetic/seed{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/tangent_arithmetic/seed{{seed}}.tsv"
    conda:
        ENVIRONMENT
    threads: threads_per_job()
    resources:
        mem_mb=5500,
        runtime=480,
        gpu=gpus_per_job(),
    params:
        code=library("tangent_arithmetic"),
        tasks=MERGED,
        model=model_section(),
        kernel={key: config["kernel"][key] for key in ("parameters", "outputs", "formula")},
        stopping={key: config["stopping"][key] for key in ("intercept", "target_scale")},
        finetune=config["finetune"],
        arithmetic=arithmetic_section("coefficients"),
        device=config["device"],
        packages=installed("numpy", "scipy", "torch", "transformers"),
    message:
        "Tangent vectors trained and added, seed {wildcards.seed}"
    script:
        "../scripts/tangent_arithmetic.py"
