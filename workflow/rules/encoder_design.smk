# What the rules of the study on real training share: its design, its files, its parameters.

from stopwise.pipeline.config import completed_study
from stopwise.studies.encoder_design import PRETRAINED, Design
from stopwise.studies.encoder_rows import ALL, PARTS, PROBE, RANDOM

try:
    STUDY_SECTION = completed_study(config)
    DESIGN = Design.of({**config, "study": STUDY_SECTION})
except ValueError as error:
    raise WorkflowError(f"stopwise: {error}")

STUDY = f"{RESULTS}/study"
RUNS = f"{STUDY}/runs/{{task}}/seed{{seed}}/n{{n}}/{{recipe}}"
# What answers names the targets, and the page that has the protocol; the other name means the same. Memory is that of
# the weights: AdamW keeps copies of all that it trains.
WORDS = config["model"].get("head") != "classification"
STUDY_NAME, OTHER_NAME = ("language_model_study", "encoder_study")[:: 1 if WORDS else -1]
TRAINING_MB, KERNEL_MB = (6000, 8000) if WORDS else (2500, 3000)
# Four checkpoints of the weights and of what AdamW divides by, beside a training: reckoned where words answer.
ANCHORED_MB = 12000 if WORDS else 4000
# The targets that judge, by what is added to that name: the data sets, the folder of their tables, and whether only what
# is there is judged, or only the first stage: primary recipes, sizes up to study.others_size, the first seed.
JUDGED = {
    "": {"pool": "development", "folder": "development"},
    "_so_far": {"pool": "development", "folder": "development-so-far", "there": True},
    "_first": {"pool": "development", "folder": "development-first", "first": True},
    "_first_set_aside": {"pool": "set_aside", "folder": "set_aside-first", "first": True},
    "_set_aside": {"pool": "set_aside", "folder": "set_aside"},
}


wildcard_constraints:
    recipe="[A-Za-z0-9][A-Za-z0-9_.-]*",
    part="|".join(PARTS),
    head=f"{RANDOM}|{PROBE}|{PRETRAINED}",
    pool="development|set_aside",


def files_there(task):
    """Return whether a task's own files are there: a data set that is no part of stopwise may be missing."""
    source = config["tasks"][task].get("source") or {}
    own = [source[kind] for kind in ("csv", "tsv", "jsonl", "parquet") if isinstance(source.get(kind), str)]
    return all(Path(path).expanduser().is_file() for path in own)


def pool(name):
    """Return the data sets of development, or those set aside, whose files are there."""
    return [task for task in TASKS if (task in DESIGN.set_aside) == (name == "set_aside") and files_there(task)]


def study_path(cell, name):
    """Return the path of a file of a cell."""
    return f"{RUNS.format(**cell._asdict())}/{name}.parquet"


def study_files(tasks, there=False, first=False):
    """Return the inputs of a judge of these data sets: all, what is ``there``, or what the ``first`` stage trains."""
    cells = DESIGN.first_cells(tasks) if first else DESIGN.cells(tasks)
    found = lambda paths: [path for path in paths if not there or Path(path).is_file()]
    runs = found(study_path(cell, part) for cell in cells for part in DESIGN.parts(cell))
    pairs = sorted({(cell.task, cell.seed) for cell in cells})
    return {
        "runs": runs,
        "steps": found(study_path(cell, "steps") for cell in cells),
        "labels": found(f"{STUDY}/data/{task}/seed{seed}-labels.parquet" for task, seed in pairs),
        "kernels": found(sorted({kernel_path(cell) for cell in cells})),
        "answers": sorted(map(str, Path(STUDY, "answers").glob("*.parquet"))),
    }


def anchored_files(name):
    """Return the answers of the anchored leave-one-out in a pool's first stage."""
    cells = [cell for cell in DESIGN.cells(pool(name)) if DESIGN.followed(cell)]
    return [f"{STUDY}/answers/{cell.task}-seed{cell.seed}-n{cell.n}-{cell.recipe}-anchored.parquet" for cell in cells]


def kernel_path(cell):
    """Return the path of the kernel of a cell: those of its size whose heads start alike share it."""
    return f"{STUDY}/kernel/{cell.task}/seed{cell.seed}-n{cell.n}-{DESIGN.start(cell)}.parquet"


def of_kernel(wildcards, asked):
    """Return whether one of the recipes that read a kernel is what is asked for."""
    names = [cell.recipe for cell in DESIGN.cells([wildcards.task]) if kernel_path(cell) == kernel_named(wildcards)]
    return any(asked(DESIGN.recipes[name]) for name in names)


def kernel_named(wildcards):
    """Return the path of the kernel that a job makes."""
    return f"{STUDY}/kernel/{wildcards.task}/seed{wildcards.seed}-n{wildcards.n}-{wildcards.head}.parquet"


def judged_in(name):
    """Return the data sets whose runs the judge of a pool reads: those set aside learn constants on the others too."""
    return pool("development") + (pool("set_aside") if name == "set_aside" else [])


def study_run_section(key):
    """Return what the training of the study takes of other sections."""
    return config["finetune"].get(key, {"weight_decay": 0.0}.get(key))


def recipe_section(name):
    """Return what the training of a recipe depends on."""
    asked = ("learning_rate", "step_size", "schedule", "start", "clip_norm")
    return {key: getattr(DESIGN.recipes[name], key) for key in asked}


def training_params():
    """Return the params that both rules of training share."""
    return {
        "code": library("study_run"),
        "model": model_section(),
        "kernel": {key: config["kernel"][key] for key in ("parameters",)},
        "recipe": lambda w: recipe_section(w.recipe),
        "steps": lambda w: DESIGN.evaluation_steps(int(w.n), w.recipe),
        "batch_size": DESIGN.batch_size,
        "weight_decay": study_run_section("weight_decay"),
        "device": config["device"],
        "packages": installed("numpy", "torch", "transformers", *adapter_packages()),
    }


def adapter_packages():
    """Return the package that makes an adapter, where one is trained."""
    parameters = config["kernel"]["parameters"]
    return ["peft"] if isinstance(parameters, dict) and "peft" in parameters else []


def kernel_of_recipe(wildcards):
    """Return the kernel where a recipe takes its learning rate from it."""
    recipe = DESIGN.recipes[wildcards.recipe]
    # A list, so that a job is handed a list: of one path it would be handed the text.
    return [f"{STUDY}/kernel/{{task}}/seed{{seed}}-n{{n}}-{recipe.start}.parquet"] if recipe.step_size else []


def judge_params(name, first=False):
    """Return the params of the judge of a pool, of all its cells or of the ``first`` stage's."""
    asked = {"seeds": config["seeds"], "sizes": config["sizes"], "study": STUDY_SECTION}
    training = {key: config["finetune"][key] for key in ("batch_size", "clip_norm") if key in config["finetune"]}
    return {
        "code": library("encoder_study", "figures.f11_labels"),
        "config": asked | {"finetune": training, "tasks": TASKS},
        "tasks": pool(name),
        "expected": [list(cell) for cell in (DESIGN.first_cells if first else DESIGN.cells)(pool(name))],
        "weight_decay": study_run_section("weight_decay"),
        "patience": config["finetune"]["patience"],
        "packages": installed("numpy", "scipy"),
    }


def judge_outputs(folder):
    """Return what the judge writes into a folder."""
    tables = {name: f"{STUDY}/{folder}/{name}.parquet" for name in ("judged", "cells", "ways", "labels_spent", "F11")}
    return tables | {
        "text": f"{STUDY}/{folder}/ways.md",
        "svg": f"{STUDY}/{folder}/F11.svg",
        "png": f"{STUDY}/{folder}/F11.png",
    }
