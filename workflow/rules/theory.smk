# What the theory says, checked where the truth is known: `snakemake --cores 2 theory` (figures F5 and F10).

# (width, scale of the targets): training grows linear as either the width grows or the distance travelled shrinks.
LINEARITY = [(32, 1.0), (32, 0.1), (32, 0.01), (128, 1.0), (128, 0.1), (128, 0.01), (512, 0.1)]


wildcard_constraints:
    decay="|".join(DECAYS),


rule theory_study:
    output:
        f"{RESULTS}/theory/study/{{decay}}.parquet",
    log:
        f"{RESULTS}/logs/theory/study-{{decay}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/theory/study-{{decay}}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=30,
    params:
        code=library("theory_study"),
        theory=config["theory"],
    message:
        "Synthetic study: {wildcards.decay}"
    script:
        "../scripts/theory_study.py"


rule theory_ridge:
    output:
        f"{RESULTS}/theory/ridge/{{decay}}.parquet",
    log:
        f"{RESULTS}/logs/theory/ridge-{{decay}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/theory/ridge-{{decay}}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=15,
    params:
        code=library("theory_ridge"),
        theory=config["theory"],
    message:
        "Ridge and early stopping: {wildcards.decay}"
    script:
        "../scripts/theory_ridge.py"


rule theory_linear:
    output:
        f"{RESULTS}/theory/linear.parquet",
    log:
        f"{RESULTS}/logs/theory/linear.log",
    benchmark:
        f"{RESULTS}/benchmarks/theory/linear.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=2000,
        runtime=15,
    params:
        code=library("theory_linear", "studies.linearity"),
        cells=LINEARITY,
        seed=config["theory"]["seed"],
    message:
        "Training pico transformers beside their linearised paths"
    script:
        "../scripts/theory_linear.py"


rule theory_summary:
    input:
        figure=f"{RESULTS}/figures/F10.parquet",
        linear=f"{RESULTS}/theory/linear.parquet",
    output:
        f"{RESULTS}/theory/summary.md",
    log:
        f"{RESULTS}/logs/theory/summary.log",
    benchmark:
        f"{RESULTS}/benchmarks/theory/summary.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        code=library("theory_summary"),
    message:
        "Writing the tables of the theory check"
    script:
        "../scripts/theory_summary.py"


rule theory:
    input:
        expand(f"{RESULTS}/figures/{{figure}}.{{kind}}", figure=["F5", "F10"], kind=["svg", "png"]),
        f"{RESULTS}/theory/summary.md",
    localrule: True
