# The Gram matrix (eNTK): the sum of the shards' parts in name order, or the blocks of examples in their places, and
# what each layer contributes.


rule gram:
    input:
        shards=[f"{RESULTS}/jacobian/{{start}}/{{task}}/seed{{seed}}/{piece}.parquet" for piece in pieces()],
        data=f"{RESULTS}/data/{{task}}/seed{{seed}}.parquet",
        model=model_stamp(),
    output:
        gram=f"{RESULTS}/gram/{{start}}/{{task}}/seed{{seed}}.parquet",
        layer_share=f"{RESULTS}/layer_share/{{start}}/{{task}}/seed{{seed}}.parquet",
    log:
        f"{RESULTS}/logs/gram/{{start}}-{{task}}-seed{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/gram/{{start}}-{{task}}-seed{{seed}}.tsv"
    priority: 1  # before tables and figures: training, which takes longest, waits for it
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=kernel_memory(4, 2000),
        runtime=20,
    params:
        **({"blocks": BLOCKS} if BLOCKS > 1 else {}),
        code=library("gram"),
        kernel=kernel_section(),
        outputs=config["kernel"]["outputs"],
        stopping={key: config["stopping"][key] for key in ("intercept", "target_scale")},
        packages=installed("numpy"),
    message:
        "Assembling the Gram matrix: {wildcards.start} {wildcards.task}, seed {wildcards.seed}"
    script:
        "../scripts/gram.py"
