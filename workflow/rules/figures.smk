# Figures, each a pure function of a Parquet table of the same name. No job here imports torch.

from stopwise.figures.registry import FIGURES

# What each figure reads (by the kind of artifact), its place in the report, and what it shows.
FIGURE_RULES = {
    "F1": {
        "reads": {
            "spectrum": each("spectrum/{start}/{task}/seed{seed}.parquet"),
            "decay": each("decay/{start}/{task}/seed{seed}.parquet"),
        },
        "category": "Kernel",
        "shows": "eigenvalue decay",
    },
    "F2": {
        "reads": {
            "trajectory": each("finetune/{start}/{task}/seed{seed}/trajectory.parquet"),
            "evaluation": each("evaluation/{start}/{task}/seed{seed}.parquet"),
        },
        "category": "Stopping",
        "shows": "fine-tuning curves and rules",
    },
    "F3": {
        "reads": {"evaluation": each("evaluation/{start}/{task}/seed{seed}.parquet")},
        "category": "Stopping",
        "shows": "stopping rules compared",
    },
    "F4": {
        "reads": {
            "evaluation": each("evaluation/{start}/{task}/seed{seed}.parquet"),
            "decay": each("decay/{start}/{task}/seed{seed}.parquet"),
            "stopping": each("stopping/{start}/{task}/seed{seed}.parquet"),
        },
        "category": "Kernel",
        "shows": "test error against n",
    },
    "F5": {
        "reads": {"theory_ridge": expand(f"{RESULTS}/theory/ridge/{{decay}}.parquet", decay=DECAYS)},
        "category": "Theory",
        "shows": "ridge and early stopping",
    },
    "F6": {
        "reads": {
            "trajectory": each("finetune/{start}/{task}/seed{seed}/trajectory.parquet"),
            "directions": each("directions/{start}/{task}/seed{seed}.parquet"),
            "guarantee": each("guarantee/{start}/{task}/seed{seed}.parquet"),
            "drift": drift_paths(),
        },
        "category": "Stopping",
        "shows": "training beside its theory",
    },
    "F7": {
        "reads": {"arithmetic_check": [f"{RESULTS}/arithmetic_check.parquet"]},
        "category": "Task arithmetic",
        "shows": "predicted and measured vectors",
    },
    "F8": {
        "reads": {
            "arithmetic": over_seeds("arithmetic"),
            "arithmetic_prediction": over_seeds("arithmetic_prediction") if config["arithmetic"]["predict"] else [],
            "joint": [path for path in over_seeds("joint") if path in joint_paths()],
        },
        "category": "Task arithmetic",
        "shows": "addition and negation",
    },
    "F9": {
        "reads": {"layer_share": each("layer_share/{start}/{task}/seed{seed}.parquet")},
        "category": "Kernel",
        "shows": "the kernel by layer",
    },
    "F10": {
        "reads": {"theory_study": expand(f"{RESULTS}/theory/study/{{decay}}.parquet", decay=DECAYS)},
        "category": "Theory",
        "shows": "rates and regret, synthetic",
    },
    "F11": {
        "reads": {"study_labels_spent": [f"{RESULTS}/study/development/labels_spent.parquet"]},
        "category": "Stopping",
        "shows": "worth in labels",
    },
}

for figure, asked in FIGURE_RULES.items():

    rule:
        name:
            f"figure_{figure}"
        input:
            **asked["reads"],
        output:
            table=f"{RESULTS}/figures/{figure}.parquet",
            svg=report(
                f"{RESULTS}/figures/{figure}.svg",
                caption=f"../report/{figure.lower()}.rst",
                category=asked["category"],
                labels={"figure": figure, "shows": asked["shows"]},
            ),
            png=f"{RESULTS}/figures/{figure}.png",
        log:
            f"{RESULTS}/logs/figures/{figure}.log",
        benchmark:
            f"{RESULTS}/benchmarks/figures/{figure}.tsv"
        conda:
            ENVIRONMENT
        threads: 1
        resources:
            mem_mb=1000,
            runtime=10,
        params:
            code=library("figure", f"figures.{FIGURES[figure].module}"),
            figure=figure,
        message:
            f"Drawing {figure}: {asked['shows']}"
        script:
            "../scripts/figure.py"
