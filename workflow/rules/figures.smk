# Figures, each a pure function of a Parquet table of the same name, and the headline numbers. No job here imports torch.


rule figure_F1:
    input:
        spectrum=each("spectrum/{start}/{task}/seed{seed}.parquet"),
        decay=each("decay/{start}/{task}/seed{seed}.parquet"),
    output:
        table=f"{RESULTS}/figures/F1.parquet",
        svg=report(
            f"{RESULTS}/figures/F1.svg",
            caption="../report/f1.rst",
            category="Kernel",
            labels={"figure": "F1", "shows": "eigenvalue decay"},
        ),
        png=f"{RESULTS}/figures/F1.png",
    log:
        f"{RESULTS}/logs/figures/F1.log",
    benchmark:
        f"{RESULTS}/benchmarks/figures/F1.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        code=library("figure_F1", "plots.f1"),
    message:
        "Drawing F1: eigenvalue decay"
    script:
        "../scripts/figure_F1.py"


rule figure_F2:
    input:
        trajectory=each("finetune/{start}/{task}/seed{seed}/trajectory.parquet"),
        evaluation=each("evaluation/{start}/{task}/seed{seed}.parquet"),
    output:
        table=f"{RESULTS}/figures/F2.parquet",
        svg=report(
            f"{RESULTS}/figures/F2.svg",
            caption="../report/f2.rst",
            category="Stopping",
            labels={"figure": "F2", "shows": "fine-tuning curves and rules"},
        ),
        png=f"{RESULTS}/figures/F2.png",
    log:
        f"{RESULTS}/logs/figures/F2.log",
    benchmark:
        f"{RESULTS}/benchmarks/figures/F2.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        code=library("figure_F2", "plots.f2"),
    message:
        "Drawing F2: fine-tuning curves with every rule's stop"
    script:
        "../scripts/figure_F2.py"


rule figure_F3:
    input:
        evaluation=each("evaluation/{start}/{task}/seed{seed}.parquet"),
    output:
        table=f"{RESULTS}/figures/F3.parquet",
        svg=report(
            f"{RESULTS}/figures/F3.svg",
            caption="../report/f3.rst",
            category="Stopping",
            labels={"figure": "F3", "shows": "stopping rules compared"},
        ),
        png=f"{RESULTS}/figures/F3.png",
    log:
        f"{RESULTS}/logs/figures/F3.log",
    benchmark:
        f"{RESULTS}/benchmarks/figures/F3.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        code=library("figure_F3", "plots.f3"),
    message:
        "Drawing F3: stopping rules compared"
    script:
        "../scripts/figure_F3.py"


rule figure_F7:
    input:
        check=f"{RESULTS}/arithmetic_check.parquet",
    output:
        table=f"{RESULTS}/figures/F7.parquet",
        svg=report(
            f"{RESULTS}/figures/F7.svg",
            caption="../report/f7.rst",
            category="Task arithmetic",
            labels={"figure": "F7", "shows": "predicted and measured vectors"},
        ),
        png=f"{RESULTS}/figures/F7.png",
    log:
        f"{RESULTS}/logs/figures/F7.log",
    benchmark:
        f"{RESULTS}/benchmarks/figures/F7.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        code=library("figure_F7", "plots.f7"),
    message:
        "Drawing F7: cosine and interference, predicted and measured"
    script:
        "../scripts/figure_F7.py"


rule figure_F8:
    input:
        arithmetic=over_seeds("arithmetic"),
        predicted=over_seeds("arithmetic_prediction") if config["arithmetic"]["predict"] else [],
        joint=[path for path in over_seeds("joint") if path in joint_paths()],
    output:
        table=f"{RESULTS}/figures/F8.parquet",
        svg=report(
            f"{RESULTS}/figures/F8.svg",
            caption="../report/f8.rst",
            category="Task arithmetic",
            labels={"figure": "F8", "shows": "addition and negation"},
        ),
        png=f"{RESULTS}/figures/F8.png",
    log:
        f"{RESULTS}/logs/figures/F8.log",
    benchmark:
        f"{RESULTS}/benchmarks/figures/F8.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        code=library("figure_F8", "plots.f8"),
    message:
        "Drawing F8: task addition and negation"
    script:
        "../scripts/figure_F8.py"


rule figure_F4:
    input:
        evaluation=each("evaluation/{start}/{task}/seed{seed}.parquet"),
        decay=each("decay/{start}/{task}/seed{seed}.parquet"),
        stopping=each("stopping/{start}/{task}/seed{seed}.parquet"),
    output:
        table=f"{RESULTS}/figures/F4.parquet",
        svg=report(
            f"{RESULTS}/figures/F4.svg",
            caption="../report/f4.rst",
            category="Kernel",
            labels={"figure": "F4", "shows": "test error against n"},
        ),
        png=f"{RESULTS}/figures/F4.png",
    log:
        f"{RESULTS}/logs/figures/F4.log",
    benchmark:
        f"{RESULTS}/benchmarks/figures/F4.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        code=library("figure_F4", "plots.f4"),
    message:
        "Drawing F4: test error against sample size"
    script:
        "../scripts/figure_F4.py"


rule figure_F6:
    input:
        trajectory=each("finetune/{start}/{task}/seed{seed}/trajectory.parquet"),
        directions=each("directions/{start}/{task}/seed{seed}.parquet"),
        guarantee=each("guarantee/{start}/{task}/seed{seed}.parquet"),
        drift=drift_paths(),
    output:
        table=f"{RESULTS}/figures/F6.parquet",
        svg=report(
            f"{RESULTS}/figures/F6.svg",
            caption="../report/f6.rst",
            category="Stopping",
            labels={"figure": "F6", "shows": "training beside its theory"},
        ),
        png=f"{RESULTS}/figures/F6.png",
    log:
        f"{RESULTS}/logs/figures/F6.log",
    benchmark:
        f"{RESULTS}/benchmarks/figures/F6.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        code=library("figure_F6", "plots.f6"),
    message:
        "Drawing F6: is training what the theory says?"
    script:
        "../scripts/figure_F6.py"


rule figure_F9:
    input:
        share=each("layer_share/{start}/{task}/seed{seed}.parquet"),
    output:
        table=f"{RESULTS}/figures/F9.parquet",
        svg=report(
            f"{RESULTS}/figures/F9.svg",
            caption="../report/f9.rst",
            category="Kernel",
            labels={"figure": "F9", "shows": "the kernel by layer"},
        ),
        png=f"{RESULTS}/figures/F9.png",
    log:
        f"{RESULTS}/logs/figures/F9.log",
    benchmark:
        f"{RESULTS}/benchmarks/figures/F9.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        code=library("figure_F9", "plots.f9"),
    message:
        "Drawing F9: the kernel by layer"
    script:
        "../scripts/figure_F9.py"


rule summary:
    input:
        data=[f"{RESULTS}/data/{task}/seed{seed}.parquet" for task in TASKS for seed in config["seeds"]],
        gram=each("gram/{start}/{task}/seed{seed}.parquet"),
        trajectory=each("finetune/{start}/{task}/seed{seed}/trajectory.parquet"),
        evaluation=each("evaluation/{start}/{task}/seed{seed}.parquet"),
        arithmetic=[
            f"{RESULTS}/arithmetic/seed{seed}.parquet" for seed in config["arithmetic"]["seeds"] if arithmetic_runs()
        ],
    output:
        table=f"{RESULTS}/summary.parquet",
        text=f"{RESULTS}/summary.md",
    log:
        f"{RESULTS}/logs/summary.log",
    benchmark:
        f"{RESULTS}/benchmarks/summary.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        code=library("summary"),
        name=config["name"],
        sizes=sorted(config["sizes"]),
        outputs=config["kernel"]["outputs"],
        stopping={key: config["stopping"][key] for key in ("intercept", "target_scale")},
    message:
        "Writing the headline numbers"
    script:
        "../scripts/summary.py"
